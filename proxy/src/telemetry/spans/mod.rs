//! Spans of requests, on their way from the workers to a collector.
//!
//! Workers write spans, as they are sent, into buffers of their own. A full buffer, or one that has waited for long enough, goes into
//! the queue of its sink, from which the exporter's thread takes it. A worker never waits: when the queue is full, the buffer's spans
//! are dropped and counted.

mod sampling;
mod sink;

pub use sampling::{ListenerTracing, Sampled};
pub use sink::{
    Batch, EXPORTER, Memory, NewSink, SpanBuffers, SpanCounts, SpanResult, SpanSink, SpanSinks, channel,
};
