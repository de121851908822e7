//! One request to the receiver of a webhook.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use signalbox_config::Webhook;

use super::event::Event;
use super::host_secret::HostSecrets;
use super::signature::sign;
use crate::outbound;

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
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    #[error(transparent)]
    Call(#[from] outbound::CallError),
    #[error("there was no answer in {0:?}")]
    Timeout(Duration),
}

/// Sends an event, and returns when the receiver has answered or the webhook's time is over. `now_s` is the time of the attempt, in seconds
/// since 1970.
pub(super) async fn post(
    webhook: &Webhook,
    event: &Event,
    secrets: &HostSecrets,
    now_s: i64,
) -> Result<Answer, CallError> {
    let timeout = webhook.timeout;
    let called = tokio::time::timeout(timeout, exchange(webhook, event, secrets, now_s)).await;
    called.unwrap_or(Err(CallError::Timeout(timeout)))
}

async fn exchange(
    webhook: &Webhook,
    event: &Event,
    secrets: &HostSecrets,
    now_s: i64,
) -> Result<Answer, CallError> {
    let url = secrets.url(&webhook.url).await.map_err(CallError::Secret)?;
    let request = request(webhook, event, secrets, &url, now_s).await?;
    let answer = outbound::call(&url, request).await?;
    Ok(Answer { status: answer.status, retry_after: answer.retry_after() })
}

async fn request(
    webhook: &Webhook,
    event: &Event,
    secrets: &HostSecrets,
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
        let key = secrets.key(secret).await.map_err(CallError::Secret)?;
        request = request.header("webhook-signature", sign(&key, &id, now_s, body.as_bytes()));
    }
    let mut request = request.body(Full::new(Bytes::from(body)))?;
    let headers = request.headers_mut();
    for (name, text) in &webhook.headers {
        let value = secrets.header(text).await;
        let value = value.map_err(|error| CallError::Secret(format!("the header {name}: {error}")))?;
        headers.insert(name, value);
    }
    let agent = HeaderValue::from_static(concat!("signalbox/", env!("CARGO_PKG_VERSION")));
    headers.entry(header::USER_AGENT).or_insert(agent);
    Ok(request)
}
