//! The queue between the workers and the exporter of one collector.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use signalbox_config::TraceExporter;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// A collector that gets spans. Dropping the last reference lets its exporter end.
pub struct SpanSink {
    exporter: TraceExporter,
    queue: mpsc::Sender<Batch>,
    memory: Arc<Memory>,
    counts: Arc<SpanCounts>,
    mark: HeaderValue,
    /// Cancelled once no revision will use the sink any more.
    retired: CancellationToken,
}

/// Spans in the form in which they are sent.
#[derive(Debug)]
pub struct Batch {
    pub bytes: Vec<u8>,
    pub spans: u64,
}

/// A sink whose exporter is to be started.
pub struct NewSink {
    pub exporter: TraceExporter,
    /// The value of [`EXPORTER`] in calls to the collector.
    pub mark: HeaderValue,
    pub queue: mpsc::Receiver<Batch>,
    pub memory: Arc<Memory>,
    pub counts: Arc<SpanCounts>,
    /// Cancelled once no revision will use the sink any more. Requests that began before may still have spans for it.
    pub retired: CancellationToken,
}

/// The sinks of all listeners: those with the same collector and resource share one.
#[derive(Debug)]
pub struct SpanSinks {
    started: mpsc::UnboundedSender<NewSink>,
    known: Mutex<Vec<Weak<SpanSink>>>,
    counts: Arc<SpanCounts>,
    mark: HeaderValue,
}

/// Buffers that were sent, for reuse.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Vec<Vec<u8>>>);

/// The spans of the proxy by what became of them.
#[derive(Debug, Default)]
pub struct SpanCounts([AtomicU64; SpanResult::ALL.len()]);

/// The fate of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SpanResult {
    /// The collector has taken it.
    Sent,
    /// The collector has taken others of its batch, and rejected it.
    Rejected,
    /// The collector has not taken its batch.
    Failed,
    /// The queue was full: the collector is too slow, or does not answer.
    QueueFull,
    /// The proxy, or the exporter, ended before it was sent.
    Ended,
}

/// One worker's buffers, one for each sink.
#[derive(Default)]
pub struct SpanBuffers {
    open: RefCell<Open>,
    /// Notified when a buffer is no longer empty.
    begun: Rc<Notify>,
}

#[derive(Default)]
struct Open {
    buffers: Vec<Buffer>,
    scratch: Vec<u8>,
}

struct Buffer {
    sink: Arc<SpanSink>,
    bytes: Vec<u8>,
    spans: u64,
}

/// The header by which a proxy knows the calls of its own exporter.
pub const EXPORTER: HeaderName = HeaderName::from_static("x-signalbox-exporter");

/// A buffer is sent at this size in bytes, or [`FLUSH`] after its first span.
const BUFFER: usize = 256 << 10;
const FLUSH: Duration = Duration::from_millis(500);

/// The number of buffers that may wait for the exporter; together 16 MiB.
const QUEUE: usize = 64;

/// The number of sent buffers that are kept for reuse.
const KEPT: usize = 16;

/// Creates the sinks, and the exporter's end.
pub fn channel() -> (SpanSinks, mpsc::UnboundedReceiver<NewSink>) {
    let (started, receiver) = mpsc::unbounded_channel();
    // It has hexadecimal digits only.
    let mark = HeaderValue::try_from(format!("{:032x}", fastrand::u128(..)));
    let mark = mark.unwrap_or(HeaderValue::from_static("exporter"));
    (SpanSinks { started, known: Mutex::default(), counts: Arc::default(), mark }, receiver)
}

impl SpanSinks {
    /// The sink for this collector: one that is in use already, or a new one.
    pub fn sink(&self, exporter: &TraceExporter) -> Arc<SpanSink> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|sink| sink.strong_count() > 0);
        let mut usable = known.iter().filter_map(Weak::upgrade).filter(|sink| !sink.retired.is_cancelled());
        let same = usable.find(|sink| sink.exporter == *exporter);
        drop(usable);
        same.unwrap_or_else(|| {
            let (sender, queue) = mpsc::channel(QUEUE);
            let (memory, counts) = (Arc::<Memory>::default(), Arc::clone(&self.counts));
            let retired = CancellationToken::new();
            let sink = Arc::new(SpanSink {
                exporter: exporter.clone(),
                queue: sender,
                memory: Arc::clone(&memory),
                counts: Arc::clone(&counts),
                mark: self.mark.clone(),
                retired: retired.clone(),
            });
            known.push(Arc::downgrade(&sink));
            // The exporter's thread is gone only when the proxy ends.
            let (exporter, mark) = (exporter.clone(), self.mark.clone());
            let _ = self.started.send(NewSink { exporter, mark, queue, memory, counts, retired });
            sink
        })
    }

    /// Retires all sinks that the served revision does not use: their exporters wait no longer for a collector that hangs.
    pub fn retire_others<'a>(&self, used: impl Iterator<Item = &'a Arc<SpanSink>>) {
        let used: Vec<_> = used.map(Arc::as_ptr).collect();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let others = known.iter().filter(|sink| !used.contains(&sink.as_ptr()));
        others.filter_map(Weak::upgrade).for_each(|sink| sink.retired.cancel());
    }

    pub fn counts(&self) -> &Arc<SpanCounts> {
        &self.counts
    }
}

impl SpanSink {
    /// True for a call of this proxy's exporter, which leads back here because the collector is behind the proxy. A span of it would
    /// make the next call.
    #[inline]
    pub fn is_call_of_exporter(&self, headers: &HeaderMap) -> bool {
        headers.get(EXPORTER).is_some_and(|mark| *mark == self.mark)
    }
}

impl SpanBuffers {
    /// Has `write` append spans for `sink` to the first buffer, with the second as memory; it returns their number.
    #[inline]
    pub fn write(&self, sink: &Arc<SpanSink>, write: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>) -> u64) {
        let mut open = self.open.borrow_mut();
        let Open { buffers, scratch } = &mut *open;
        let index = match buffers.iter().position(|buffer| Arc::ptr_eq(&buffer.sink, sink)) {
            Some(index) => index,
            None => {
                buffers.push(Buffer { sink: Arc::clone(sink), bytes: sink.memory.take(), spans: 0 });
                self.begun.notify_one();
                buffers.len() - 1
            }
        };
        let Some(buffer) = buffers.get_mut(index) else { return };
        buffer.spans += write(&mut buffer.bytes, scratch);
        if buffer.bytes.len() >= BUFFER {
            buffers.swap_remove(index);
        }
    }

    /// Sends all buffers.
    pub fn flush(&self) {
        self.open.borrow_mut().buffers.clear();
    }

    /// Sends buffers [`FLUSH`] after they were begun; never returns.
    pub async fn flush_when_due(&self) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(FLUSH).await;
            self.flush();
        }
    }
}

impl Drop for SpanSink {
    fn drop(&mut self) {
        self.retired.cancel();
    }
}

/// A buffer that is given up is sent.
impl Drop for Buffer {
    fn drop(&mut self) {
        let batch = Batch { bytes: std::mem::take(&mut self.bytes), spans: self.spans };
        if batch.spans == 0 {
            return self.sink.memory.keep(batch.bytes);
        }
        let (lost, result) = match self.sink.queue.try_send(batch) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(lost)) => (lost, SpanResult::QueueFull),
            Err(mpsc::error::TrySendError::Closed(lost)) => (lost, SpanResult::Ended),
        };
        self.sink.counts.add(result, lost.spans);
        self.sink.memory.keep(lost.bytes);
    }
}

impl Memory {
    /// Returns an empty buffer without waiting.
    fn take(&self) -> Vec<u8> {
        let kept = self.0.try_lock().ok().and_then(|mut kept| kept.pop());
        // The last spans of a full buffer need some more.
        kept.unwrap_or_else(|| Vec::with_capacity(BUFFER + (16 << 10)))
    }

    /// Keeps a buffer that was sent.
    pub fn keep(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        if let Ok(mut kept) = self.0.lock()
            && kept.len() < KEPT
        {
            kept.push(buffer);
        }
    }
}

impl SpanCounts {
    pub fn add(&self, result: SpanResult, spans: u64) {
        if let Some(count) = self.0.get(result as usize) {
            count.fetch_add(spans, Ordering::Relaxed);
        }
    }

    pub fn of(&self, result: SpanResult) -> u64 {
        self.0.get(result as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl SpanResult {
    pub const ALL: [Self; 5] = [Self::Sent, Self::Rejected, Self::Failed, Self::QueueFull, Self::Ended];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::QueueFull => "queue_full",
            Self::Ended => "ended",
        }
    }
}

impl fmt::Debug for SpanSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanSink").field("url", &self.exporter.url).finish_non_exhaustive()
    }
}
