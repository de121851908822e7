//! Traffic that is not plain HTTP requests: gRPC, WebSockets, and what goes through TLS. Each speaker goes on until it is told
//! to stop, checks every answer, and says how many there were.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use http::uri::PathAndQuery;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use signalbox_tests::Echo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_tungstenite::tungstenite::Message;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

/// Ends all speakers.
pub(crate) type Stop = Arc<AtomicBool>;

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(15);

type Words = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// A gRPC service with one method, which says everything again, in capitals.
#[derive(Clone)]
struct Talk;

impl tonic::server::NamedService for Talk {
    const NAME: &'static str = "test.Talk";
}

impl Service<Request<Body>> for Talk {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
        Box::pin(async move { Ok(grpc.streaming(Capitals, request).await) })
    }
}

#[derive(Clone)]
struct Capitals;

impl Service<tonic::Request<Streaming<String>>> for Capitals {
    type Response = Response<Words>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Streaming<String>>) -> Self::Future {
        let words = request.into_inner().map(|word| word.map(|word| word.to_uppercase()));
        Box::pin(async move { Ok(Response::new(Box::pin(words) as Words)) })
    }
}

/// Serves gRPC.
pub(crate) async fn grpc_server() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(Talk);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// Serves WebSockets, and says everything again.
pub(crate) async fn web_socket_server() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Calls of some words each, over one connection.
pub(crate) fn call(address: SocketAddr, stop: &Stop) -> JoinHandle<u64> {
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut grpc = Grpc::new(channel);
        let mut heard = 0;
        while !stop.load(Ordering::Relaxed) {
            let talk = async {
                grpc.ready().await.unwrap();
                let (say, said) = tokio::sync::mpsc::channel(1);
                let request = tonic::Request::new(ReceiverStream::new(said));
                let path = PathAndQuery::from_static("/test.Talk/Talk");
                say.send("first".to_owned()).await.unwrap();
                let codec = ProstCodec::<String, String>::default();
                let mut answers = grpc.streaming(request, path, codec).await.unwrap().into_inner();
                assert_eq!(answers.message().await.unwrap().unwrap(), "FIRST");
                for word in ["and", "so", "on", "\u{e4}"] {
                    say.send(word.repeat(200)).await.unwrap();
                    assert_eq!(answers.message().await.unwrap().unwrap(), word.to_uppercase().repeat(200));
                }
                drop(say);
                assert_eq!(answers.message().await.unwrap(), None, "the trailers come");
            };
            tokio::time::timeout(PATIENCE, talk).await.expect("a call ends in time");
            heard += 1;
        }
        heard
    })
}

/// WebSockets, one after the other, with messages of all sizes.
pub(crate) fn chat(address: SocketAddr, stop: &Stop) -> JoinHandle<u64> {
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let mut heard = 0;
        while !stop.load(Ordering::Relaxed) {
            let chat = async {
                let stream = TcpStream::connect(address).await.unwrap();
                let (mut socket, _) =
                    tokio_tungstenite::client_async("ws://chat.example/", stream).await.unwrap();
                for size in [0, 1, 125, 126, 70_000, 300_000] {
                    let said = Message::binary(vec![b'x'; size]);
                    socket.send(said.clone()).await.unwrap();
                    assert_eq!(socket.next().await.unwrap().unwrap(), said);
                }
                socket.close(None).await.unwrap();
                while let Some(message) = socket.next().await {
                    assert!(message.unwrap().is_close());
                }
            };
            tokio::time::timeout(PATIENCE, chat).await.expect("a chat ends in time");
            heard += 1;
        }
        heard
    })
}

/// Requests through TLS, twenty to a connection, over HTTP/1.1 and HTTP/2 in turn. The server is `a.example`.
pub(crate) fn ask_through_tls(address: SocketAddr, certificate: &str, stop: &Stop) -> JoinHandle<u64> {
    let stop = Arc::clone(stop);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let config = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    tokio::spawn(async move {
        let mut answered = 0;
        while !stop.load(Ordering::Relaxed) {
            let is_http2 = answered % 40 >= 20;
            config.alpn_protocols = vec![if is_http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
            let connector = TlsConnector::from(Arc::new(config.clone()));
            let connection = async {
                let stream = TcpStream::connect(address).await.unwrap();
                let name = ServerName::try_from("a.example").unwrap();
                let stream = TokioIo::new(connector.connect(name, stream).await.unwrap());
                if is_http2 {
                    let (mut sender, connection) =
                        http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                    tokio::spawn(connection);
                    for number in 0..20 {
                        let uri = format!("https://a.example{}", path(number));
                        let request = Request::post(uri).body(body(number)).unwrap();
                        check(sender.send_request(request).await.unwrap(), number).await;
                    }
                } else {
                    let (mut sender, connection) = http1::handshake(stream).await.unwrap();
                    tokio::spawn(connection);
                    for number in 0..20 {
                        sender.ready().await.unwrap();
                        let request = Request::post(path(number)).header("host", "a.example");
                        let answer = sender.send_request(request.body(body(number)).unwrap()).await.unwrap();
                        check(answer, number).await;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, connection).await.expect("a connection ends in time");
            answered += 20;
        }
        answered
    })
}

fn path(number: usize) -> String {
    format!("/{}", number * 1_000)
}

fn body(number: usize) -> Full<Bytes> {
    Full::from(vec![b'x'; number * 1_000])
}

async fn check(answer: http::Response<hyper::body::Incoming>, number: usize) {
    assert_eq!(answer.status(), 200);
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let echo = Echo::parse(&bytes).unwrap();
    assert_eq!((echo.path, echo.body_length), (path(number), number * 1_000));
}
