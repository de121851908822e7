//! One request to the receiver of a webhook.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use signalbox_config::Webhook;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::task::AbortOnDropHandle;

use super::event::Event;
use super::host_secret;
use super::retry::retry_after;
use super::signature::sign;

/// The answer of a receiver.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The pause that it asks for.
    pub(super) retry_after: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("{0}")]
    Secret(String),
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("TLS")]
    Tls(#[source] std::io::Error),
    #[error("TLS: {0}")]
    TlsSettings(String),
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    #[error("the connection failed")]
    Http(#[from] hyper::Error),
    #[error("there was no answer in {0:?}")]
    Timeout(Duration),
}

/// So much of the body of an answer is read, so that the receiver can end it in order; bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Sends an event, and returns when the receiver has answered or the webhook's time is over. `now_s` is the time of the attempt, in seconds
/// since 1970. Each call has a connection of its own: there are few.
pub(super) async fn post(webhook: &Webhook, event: &Event, now_s: i64) -> Result<Answer, CallError> {
    let timeout = webhook.timeout;
    let called = tokio::time::timeout(timeout, exchange(webhook, event, now_s)).await;
    called.unwrap_or(Err(CallError::Timeout(timeout)))
}

async fn exchange(webhook: &Webhook, event: &Event, now_s: i64) -> Result<Answer, CallError> {
    let url = host_secret::url(&webhook.url).await.map_err(CallError::Secret)?;
    let request = request(webhook, event, &url, now_s).await?;
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
    // It ends with this call, whatever the receiver does.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await?;
    let answer = Answer {
        status: response.status(),
        retry_after: response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(retry_after),
    };
    // The answer counts, even if its body never ends.
    let _ = tokio::time::timeout(DISCARDING, discard(response.into_body())).await;
    Ok(answer)
}

/// So long it is waited for the body of an answer.
const DISCARDING: Duration = Duration::from_millis(500);

async fn discard(mut body: Incoming) {
    let mut read = 0;
    while read < MAX_ANSWER
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

async fn request(
    webhook: &Webhook,
    event: &Event,
    url: &Uri,
    now_s: i64,
) -> Result<Request<Full<Bytes>>, CallError> {
    let body = event.body(webhook);
    let id = event.id_for(&webhook.name);
    let target = url.path_and_query().map_or("/", |target| target.as_str());
    let host = url.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(target)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .header("webhook-id", &id)
        .header("webhook-timestamp", now_s);
    if let Some(secret) = &webhook.secret {
        let key = host_secret::key(secret).await.map_err(CallError::Secret)?;
        request = request.header("webhook-signature", sign(&key, &id, now_s, body.as_bytes()));
    }
    let mut request = request.body(Full::new(Bytes::from(body)))?;
    let headers = request.headers_mut();
    for (name, text) in &webhook.headers {
        let value = host_secret::header(text).await;
        let value = value.map_err(|error| CallError::Secret(format!("the header {name}: {error}")))?;
        headers.insert(name, value);
    }
    let agent = HeaderValue::from_static(concat!("signalbox/", env!("CARGO_PKG_VERSION")));
    headers.entry(header::USER_AGENT).or_insert(agent);
    Ok(request)
}

/// The settings of TLS, with the authorities that this host trusts, which are read on first use.
fn tls_config() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "cannot read all of the host's certificate authorities");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("the control plane's host has no certificate authorities".to_owned());
        }
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
