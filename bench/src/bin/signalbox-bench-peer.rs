//! Peers for the measurements beside wrk and h2load: a gRPC service, a server for large requests, a client that makes
//! handshakes, and one that holds connections open.

#![expect(clippy::print_stdout, reason = "what it prints is read by who starts it")]

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use clap::{Parser, Subcommand};
use http::{HeaderMap, HeaderValue, Response};
use signalbox_bench::raise_open_files;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, HandshakeKind, SignatureScheme,
};

/// A peer for measurements.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Answers every gRPC call with one message of 100 bytes, over HTTP/2 with prior knowledge.
    Grpc { address: SocketAddr },
    /// Reads the bodies of requests, which must say their length, and answers each with 204.
    Sink { address: SocketAddr },
    /// Makes TLS connections, one request on each, and prints their number.
    Handshakes {
        address: SocketAddr,
        /// The number of connections.
        #[arg(long, default_value_t = 2000)]
        count: usize,
        /// The number of concurrent connections.
        #[arg(long, default_value_t = 16)]
        at_once: usize,
        /// Resume the session of the previous connection; a connection that is not resumed is an error.
        #[arg(long)]
        resume: bool,
        /// The host of the requests.
        #[arg(long)]
        host: String,
        /// The path of the requests.
        #[arg(long)]
        path: String,
    },
    /// Opens connections, makes one request on each, prints `ready`, and keeps them until its standard input ends.
    Idle {
        address: SocketAddr,
        /// The number of connections.
        #[arg(long, default_value_t = 10_000)]
        count: usize,
        /// Use TLS.
        #[arg(long)]
        tls: bool,
        /// The host of the requests.
        #[arg(long)]
        host: String,
        /// The path of the requests.
        #[arg(long)]
        path: String,
    },
}

/// The deadline for a connection and its request.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    raise_open_files().context("cannot raise the number of open files")?;
    match Args::parse().what {
        What::Grpc { address } => accept(address, |stream| async { Ok(serve_grpc(stream).await?) }).await,
        What::Sink { address } => accept(address, serve_sink).await,
        What::Handshakes { address, count, at_once, resume, host, path } => {
            handshakes(address, count, at_once, resume, &Request::new(host, &path)?).await
        }
        What::Idle { address, count, tls, host, path } => {
            idle(address, count, tls, &Request::new(host, &path)?).await
        }
    }
}

struct Request {
    name: ServerName<'static>,
    text: String,
}

impl Request {
    fn new(host: String, path: &str) -> Result<Self> {
        let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        Ok(Self { name: ServerName::try_from(host)?, text })
    }
}

async fn accept<F: Future<Output = Result<()>> + Send + 'static>(
    address: SocketAddr,
    serve: impl Fn(TcpStream) -> F,
) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A client that leaves ends its connection with an error.
        tokio::spawn(serve(stream));
    }
}

async fn serve_sink(mut stream: TcpStream) -> Result<()> {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    while stream.read_buf(&mut buffer).await? > 0 {
        let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = buffer.split_to(end + 4);
        let mut left = content_length(std::str::from_utf8(&head)?).context("a request without a length")?;
        loop {
            let taken = left.min(buffer.len());
            buffer.advance(taken);
            left -= taken;
            if left == 0 {
                break;
            }
            buffer.reserve(64 << 10);
            ensure!(stream.read_buf(&mut buffer).await? > 0, "the connection ended in a request");
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
    }
    Ok(())
}

fn content_length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

async fn serve_grpc(stream: TcpStream) -> Result<(), h2::Error> {
    let mut message = vec![0, 0, 0, 0, 100];
    message.resize(105, b'x');
    let message = Bytes::from(message);
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .max_concurrent_streams(1000)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let message = message.clone();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                // The connection may be gone.
                let _ = body.flow_control().release_capacity(data.len());
            }
            let mut response = Response::new(());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let mut stream = respond.send_response(response, false)?;
            stream.send_data(message, false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers)
        });
    }
    Ok(())
}

async fn handshakes(
    address: SocketAddr,
    count: usize,
    at_once: usize,
    resume: bool,
    request: &Request,
) -> Result<()> {
    let each = count.div_ceil(at_once);
    let clients = (0..at_once).map(|_| async {
        // The client has a session of its own, as a real one does.
        let connector = connector(resume);
        // The first connection has nothing to resume.
        for turn in 0..each {
            let connect = async {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let mut stream = connector.connect(request.name.clone(), tcp).await?;
                ask(&mut stream, &request.text).await?;
                let kind = stream.get_ref().1.handshake_kind();
                anyhow::Ok(kind == Some(HandshakeKind::Resumed))
            };
            let resumed = timeout(PATIENCE, connect).await??;
            ensure!(turn == 0 || resumed == resume, "connection {turn} was resumed: {resumed}");
        }
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(clients).await?;
    println!("{}", each * at_once);
    Ok(())
}

async fn idle(address: SocketAddr, count: usize, tls: bool, request: &Request) -> Result<()> {
    let connector = connector(true);
    let mut plain = Vec::new();
    let mut encrypted = Vec::new();
    for _ in 0..count {
        let connect = async {
            let mut tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            if tls {
                let mut stream = connector.connect(request.name.clone(), tcp).await?;
                ask(&mut stream, &request.text).await?;
                encrypted.push(stream);
            } else {
                ask(&mut tcp, &request.text).await?;
                plain.push(tcp);
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, connect).await??;
    }
    println!("ready");
    tokio::task::spawn_blocking(|| io::stdin().read(&mut [0])).await??;
    Ok(())
}

/// Sends a request, and reads the response to its end.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> Result<()> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the connection ended in an answer");
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        ensure!(head.starts_with("HTTP/1.1 200"), "answered: {head}");
        if body.len() >= content_length(head).context("an answer without a length")? {
            return Ok(());
        }
    }
}

fn connector(resume: bool) -> TlsConnector {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Trusting(Arc::clone(&provider)));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    if !resume {
        config.resumption = Resumption::disabled();
    }
    TlsConnector::from(Arc::new(config))
}

/// Accepts any certificate: verification by the client is no cost of the proxy.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
