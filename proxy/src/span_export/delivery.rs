//! The exporter of one sink: it sends batches one after another, and again where OTLP says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use signalbox_plugin::otlp::{self, Envelope};
use signalbox_process::ErrorChain;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::call::{CallError, Caller};
use crate::telemetry::spans::{Batch, Memory, NewSink, SpanCounts, SpanResult};

/// The time for what is queued once the proxy ends, and for a call once its sink is retired.
pub(super) const LAST_CALLS: Duration = Duration::from_secs(2);

/// The pause before the first retry, which doubles with each further one, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(30)];

/// The number of times that a batch is sent again.
const MAX_RETRIES: u8 = 5;

/// Buffers that wait are sent together, up to this size in bytes. Collectors take 4 MiB by default.
const MAX_CALL: usize = 1 << 20;

/// One exporter.
struct Exporter {
    envelope: Envelope,
    caller: Caller,
    memory: Arc<Memory>,
    counts: Arc<SpanCounts>,
    retired: CancellationToken,
    is_failing: bool,
}

/// Spans that are on their way. Those that are dropped have not been sent.
struct Underway<'c> {
    spans: u64,
    counts: &'c SpanCounts,
}

/// The batches that wait. What is left when the exporter ends counts as lost.
struct Queue(mpsc::Receiver<Batch>, Arc<SpanCounts>);

/// Sends what comes into the queue of a sink, until nobody uses the sink, or until `stop` and what is left then.
pub(super) async fn run(sink: NewSink, stop: CancellationToken) {
    let NewSink { exporter, mark, queue, memory, counts, retired } = sink;
    let mut queue = Queue(queue, Arc::clone(&counts));
    let attributes = exporter.resource.iter().map(|(name, value)| (&**name, &**value));
    let envelope = Envelope::new(attributes);
    let caller = Caller::new(exporter, mark);
    let mut exporter = Exporter { envelope, caller, memory, counts, retired, is_failing: false };
    loop {
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            batch = queue.0.recv() => batch,
        };
        let Some(first) = first else { return };
        let batches = with_waiting(first, || queue.0.try_recv().ok());
        exporter.deliver(batches).await;
    }
    // The queue has all that will ever be in it.
    while let Ok(first) = queue.0.try_recv() {
        let batches = with_waiting(first, || queue.0.try_recv().ok());
        exporter.deliver(batches).await;
    }
}

/// Takes what waits, up to [`MAX_CALL`].
fn with_waiting(first: Batch, mut next: impl FnMut() -> Option<Batch>) -> Vec<Batch> {
    let mut size = first.bytes.len();
    let mut batches = vec![first];
    while size < MAX_CALL {
        let Some(batch) = next() else { break };
        size += batch.bytes.len();
        batches.push(batch);
    }
    batches
}

impl Exporter {
    async fn deliver(&mut self, batches: Vec<Batch>) {
        let spans = batches.iter().map(|batch| batch.spans).sum();
        let parts: Vec<&[u8]> = batches.iter().map(|batch| &*batch.bytes).collect();
        let body = self.envelope.request(&parts);
        for batch in batches {
            self.memory.keep(batch.bytes);
        }
        let counts = Arc::clone(&self.counts);
        let mut underway = Underway { spans, counts: &counts };
        match self.send(body).await {
            Ok(rejected) => {
                let rejected = rejected.min(underway.spans);
                counts.add(SpanResult::Rejected, rejected);
                counts.add(SpanResult::Sent, underway.spans - rejected);
                underway.spans = 0;
                if std::mem::take(&mut self.is_failing) {
                    info!(collector = %self.caller.url(), "the collector takes spans again");
                }
            }
            Err(error) => {
                let result =
                    if matches!(error, CallError::Ended) { SpanResult::Ended } else { SpanResult::Failed };
                counts.add(result, underway.spans);
                underway.spans = 0;
                // The counters tell of the rest.
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(
                        collector = %self.caller.url(), error = %ErrorChain(&error),
                        "the collector takes no spans; they are dropped and counted until it does"
                    );
                }
            }
        }
    }

    /// Sends a request, and again while OTLP allows it. Returns the number of rejected spans.
    async fn send(&mut self, body: Bytes) -> Result<u64, CallError> {
        let mut retries = 0;
        loop {
            let error = match self.call(body.clone()).await {
                Ok(rejected) => return Ok(rejected),
                Err(error) => error,
            };
            let Some(asked) = error.retry() else { return Err(error) };
            if retries >= MAX_RETRIES || self.retired.is_cancelled() {
                return Err(error);
            }
            let pause = otlp::pause(retries, PAUSES, asked, fastrand::f64());
            retries += 1;
            tokio::select! {
                () = self.retired.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Makes one call, which must not take long once the sink is retired.
    async fn call(&mut self, body: Bytes) -> Result<u64, CallError> {
        let retired = self.retired.clone();
        let late = async move {
            retired.cancelled().await;
            tokio::time::sleep(LAST_CALLS).await;
        };
        tokio::select! {
            called = self.caller.call(body) => called,
            () = late => Err(CallError::Ended),
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        while let Ok(batch) = self.0.try_recv() {
            self.1.add(SpanResult::Ended, batch.spans);
        }
    }
}

/// The thread ends its exporters when their time is over.
impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.counts.add(SpanResult::Ended, self.spans);
    }
}
