//! Spans of the requests to the admin API and of rollouts, sent to a collector by OpenTelemetry's protocol (OTLP) over HTTP.
//!
//! Whoever has a span puts it into a bounded [`queue`], and never waits; [`export`] sends what is in it. [`rollouts`] makes the spans of a rollout
//! when it has ended.

mod counts;
mod export;
mod queue;
mod rollouts;

pub use export::Exporter;
pub use queue::{RequestSpan, Spans};
pub use rollouts::follow_rollouts;
