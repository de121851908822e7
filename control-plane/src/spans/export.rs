//! Sends spans to the collector.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request};
use http_body_util::Full;
use signalbox_plugin::otlp::{self, Buffer, Envelope};
use signalbox_process::ErrorChain;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use crate::outbound::{Answer, Collector, call};

/// The task that sends spans.
#[derive(Debug)]
pub struct Exporter {
    collector: Collector,
    envelope: Envelope,
    queue: mpsc::Receiver<Buffer>,
    counts: Arc<Counts>,
    is_failing: bool,
}

/// The spans of a call at most, and the time to gather them.
const MAX_BATCH: usize = 512;
const GATHER: Duration = Duration::from_secs(1);

/// The longest time of a call.
const CALL: Duration = Duration::from_secs(10);

/// The time for what is queued when the process ends.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// The pause before the first retry, and the longest; each is twice the one before.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];
const MAX_RETRIES: u8 = 4;

impl Exporter {
    pub(super) fn new(
        collector: Collector,
        replica: &str,
        queue: mpsc::Receiver<Buffer>,
        counts: Arc<Counts>,
    ) -> Self {
        let envelope = Envelope::new([
            ("service.name", "signalbox-control-plane"),
            ("service.instance.id", replica),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ]);
        Self { collector, envelope, queue, counts, is_failing: false }
    }

    /// Sends until `shutdown`, and then what is left.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                first = self.queue.recv() => {
                    // Nobody has spans any more: the control plane ends.
                    let Some(first) = first else { return shutdown.cancelled().await };
                    let batch = self.gather(first, &shutdown).await;
                    tokio::select! {
                        () = self.deliver(&batch) => {}
                        // A collector that does not answer is no reason to stay. It is tried once more below.
                        () = shutdown.cancelled() => return self.send_last(batch).await,
                    }
                }
            }
        }
        self.send_last(Vec::new()).await;
    }

    /// Waits a moment for further spans.
    async fn gather(&mut self, first: Buffer, shutdown: &CancellationToken) -> Vec<Buffer> {
        let until = Instant::now() + GATHER;
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH {
            let next = tokio::select! {
                () = shutdown.cancelled() => break,
                next = timeout_at(until, self.queue.recv()) => next,
            };
            let Ok(Some(next)) = next else { break };
            batch.push(next);
        }
        batch
    }

    async fn send_last(&mut self, mut batch: Vec<Buffer>) {
        self.queue.close();
        while let Ok(span) = self.queue.try_recv() {
            batch.push(span);
        }
        let until = Instant::now() + LAST_CALLS;
        for part in batch.chunks(MAX_BATCH) {
            if timeout_at(until, self.deliver(part)).await.is_err() {
                self.counts.failed.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
        }
    }

    /// The collector's host. The rest of the URL may hold a secret.
    fn host(&self) -> &str {
        self.collector.url.host().unwrap_or_default()
    }

    /// Sends a batch, and again where OTLP says so.
    async fn deliver(&mut self, batch: &[Buffer]) {
        if batch.is_empty() {
            return;
        }
        let body = self.envelope.request(batch);
        let spans = batch.len() as u64;
        let mut retries = 0;
        loop {
            let answered = match timeout(CALL, self.call(body.clone())).await {
                Ok(answered) => answered,
                Err(_) => Err(format!("there was no answer in {CALL:?}")),
            };
            let (reason, asked) = match answered {
                Ok(answer) if answer.status.is_success() => return self.sent(spans, &answer),
                Ok(answer) if !otlp::is_retryable(answer.status) => {
                    return self.failed(spans, &format!("the collector answered {}", answer.status));
                }
                Ok(answer) => (format!("the collector answered {}", answer.status), answer.retry_after()),
                Err(reason) => (reason, None),
            };
            if retries >= MAX_RETRIES {
                return self.failed(spans, &reason);
            }
            tokio::time::sleep(otlp::pause(retries, PAUSES, asked, fastrand::f64())).await;
            retries += 1;
        }
    }

    async fn call(&self, body: Bytes) -> Result<Answer, String> {
        let Collector { url, headers } = &self.collector;
        let target = url.path_and_query().map_or("/", |target| target.as_str());
        let host = url.authority().map_or("", |authority| authority.as_str());
        let request = Request::builder()
            .method(Method::POST)
            .uri(target)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(Full::new(body));
        let mut request = request.map_err(|error| error.to_string())?;
        let agent = HeaderValue::from_static(concat!("signalbox/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        request.headers_mut().extend(headers.clone());
        call(url, request).await.map_err(|error| ErrorChain(&error).to_string())
    }

    fn sent(&mut self, spans: u64, answer: &Answer) {
        let rejected = otlp::rejected(&answer.body).min(spans);
        self.counts.sent.fetch_add(spans - rejected, Ordering::Relaxed);
        self.counts.failed.fetch_add(rejected, Ordering::Relaxed);
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(collector = self.host(), "the collector takes spans again");
        }
    }

    fn failed(&mut self, spans: u64, reason: &str) {
        self.counts.failed.fetch_add(spans, Ordering::Relaxed);
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                collector = self.host(),
                reason,
                "spans cannot be sent; this is not logged again until they can"
            );
        }
    }
}
