//! Takes spans, and puts them into the queue of the exporter.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use signalbox_plugin::otlp::span::{Kind, Parent, SpanHead, Status, encode};
use signalbox_plugin::otlp::{Buffer, nanoseconds};
use signalbox_plugin::trace_context::{RANDOM, SAMPLED, TraceContext};
use tokio::sync::mpsc;

use super::counts::Counts;
use super::export::Exporter;
use crate::metrics::SpanTotals;
use crate::outbound::Collector;

/// Takes spans.
#[derive(Debug)]
pub struct Spans {
    /// `None`: there is no collector.
    queue: Option<mpsc::Sender<Buffer>>,
    counts: Arc<Counts>,
}

/// A request to the admin API that was answered.
#[derive(Debug)]
pub struct RequestSpan<'a> {
    /// The caller's context, if it has brought one.
    pub parent: Option<TraceContext>,
    /// The method.
    pub method: &'a str,
    /// The template of the path.
    pub route: &'a str,
    /// The name of the operation in the OpenAPI document.
    pub operation: &'a str,
    /// The path.
    pub path: &'a str,
    /// The status of the response.
    pub status: u16,
    /// The revision that it has made or answered.
    pub revision: Option<u64>,
    /// The time at which it came, since 1970.
    pub began: Duration,
    /// The time until its response.
    pub took: Duration,
}

/// The most spans that wait. Further ones are dropped.
const QUEUE: usize = 4096;

impl Spans {
    /// Takes spans for a collector, if there is one, and the task that sends them.
    pub fn new(collector: Option<Collector>, replica: &str) -> (Arc<Self>, Option<Exporter>) {
        let counts = Arc::<Counts>::default();
        let (queue, exporter) = match collector {
            None => (None, None),
            Some(collector) => {
                let (sender, receiver) = mpsc::channel(QUEUE);
                let exporter = Exporter::new(collector, replica, receiver, Arc::clone(&counts));
                (Some(sender), Some(exporter))
            }
        };
        (Arc::new(Self { queue, counts }), exporter)
    }

    /// True if there is a collector.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// The number of spans by their result.
    pub fn totals(&self) -> SpanTotals {
        self.counts.totals()
    }

    /// Takes the span of a request, unless its caller does not record the trace.
    pub fn request(&self, request: &RequestSpan<'_>) {
        let is_wanted = self.is_on() && request.parent.is_none_or(|parent| parent.is_sampled());
        if !is_wanted {
            return;
        }
        let trace_id =
            request.parent.map_or_else(|| fastrand::u128(1..).to_be_bytes(), |parent| parent.trace_id);
        let end = request.began.saturating_add(request.took);
        let is_error = request.status >= 500;
        let span = SpanHead {
            context: context(trace_id, fastrand::u64(1..).to_be_bytes()),
            parent: request.parent.map_or(Parent::None, |parent| Parent::Remote(parent.span_id)),
            state: &[],
            name: [request.method, " ", request.route, ""],
            kind: Kind::Server,
            start: nanoseconds(request.began),
            end: nanoseconds(end),
            status: if is_error { Status::Error } else { Status::Unset },
        };
        let mut out = Buffer::new();
        encode(&mut out, &mut Buffer::new(), &span, |attributes| {
            attributes.text("http.request.method", request.method);
            attributes.text("http.route", request.route);
            attributes.text("url.path", request.path);
            attributes.number("http.response.status_code", request.status.into());
            attributes.text("signalbox.operation", request.operation);
            if let Some(revision) = request.revision {
                attributes.number("signalbox.revision", revision);
            }
            if is_error {
                attributes.text("error.type", &request.status.to_string());
            }
        });
        self.put(out);
    }

    /// Puts an encoded span into the queue.
    pub(super) fn put(&self, span: Buffer) {
        if let Some(queue) = &self.queue
            && queue.try_send(span).is_err()
        {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A span of this process, which is always recorded.
pub(super) fn context(trace_id: [u8; 16], span_id: [u8; 8]) -> TraceContext {
    TraceContext { trace_id, span_id, flags: SAMPLED | RANDOM }
}
