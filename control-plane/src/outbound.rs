//! Calls of this control plane to others: a request over a connection of its own.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use signalbox_plugin::otlp;
use signalbox_process::tls::host_authorities;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::task::AbortOnDropHandle;

/// The collector of spans.
#[derive(Debug, Clone)]
pub struct Collector {
    /// The URL of calls, with its path.
    pub url: Uri,
    /// Further headers of calls.
    pub headers: HeaderMap,
}

/// The answer to a call.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// The begin of its body, at most [`MAX_ANSWER`] bytes.
    pub body: Vec<u8>,
}

impl Answer {
    /// The pause that it asks for. A date needs two clocks that agree, and is left to the usual pause.
    pub fn retry_after(&self) -> Option<Duration> {
        otlp::retry_after(&self.headers)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("TLS")]
    Tls(#[source] std::io::Error),
    #[error("TLS: {0}")]
    TlsSettings(String),
    #[error("the connection failed")]
    Http(#[from] hyper::Error),
}

/// So much of the body of an answer is read, so that the other side can end it in order; bytes.
pub const MAX_ANSWER: usize = 64 << 10;

/// Sends a request to where `url` says, and returns when its answer has come. There are few calls, so each has a connection of its own. The
/// caller limits the time.
pub async fn call(url: &Uri, request: Request<Full<Bytes>>) -> Result<Answer, CallError> {
    let is_tls = url.scheme_str() == Some("https");
    let host = url.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(CallError::Connect)?;
    if !is_tls {
        return send(stream, request).await;
    }
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| CallError::TlsSettings(error.to_string()))?;
    let config = tls_config().map_err(CallError::TlsSettings)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(CallError::Tls)?;
    send(stream, request).await
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, CallError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with this call, whatever the other side does.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let (head, body) = sender.send_request(request).await?.into_parts();
    let mut read = Vec::new();
    // The answer counts, even if its body never ends.
    let _ = tokio::time::timeout(READING, read_body(body, &mut read)).await;
    Ok(Answer { status: head.status, headers: head.headers, body: read })
}

/// So long it is waited for the body of an answer.
const READING: Duration = Duration::from_millis(500);

async fn read_body(mut body: Incoming, read: &mut Vec<u8>) {
    while read.len() < MAX_ANSWER
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Some(data) = frame.data_ref() {
            let room = MAX_ANSWER - read.len();
            read.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
        }
    }
}

/// The settings of TLS, with the authorities that this host trusts, which are read on first use.
fn tls_config() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
        let roots = host_authorities()
            .ok_or_else(|| "the control plane's host has no certificate authorities".to_owned())?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session would not look at the certificate again.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    });
    CONFIG.clone()
}
