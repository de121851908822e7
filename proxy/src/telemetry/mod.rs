//! Counters and the access log.
//!
//! Each worker writes only its own cells, so counting is a load and a store; the admin server reads all of them at any
//! time. Counting a request allocates nothing: its cells are found through the compiled revision.
//!
//! Metrics count from the start of the process. Beside them, [`Generations`] keeps the counts by which control planes judge
//! canaries: those of the requests that began under each of the last generations.

pub mod access_log;
mod cells;
mod consumers;
mod counters;
mod cpu_time;
mod exemplars;
mod flag;
mod generations;
mod handshake;
mod histogram;
mod latencies;
mod period;
mod series;
pub mod spans;
mod traffic;

pub use cells::{Cells, Class, Counted, Key};
pub use consumers::{ConsumerTraffic, SharedCounts, WorkerConsumers};
pub use counters::{Counter, StreamKind, WorkerStats};
pub use cpu_time::process_cpu_us;
pub use exemplars::{Exemplars, TracedLatency};
pub use flag::Flag;
pub use generations::{Generations, Scope, Series};
pub use handshake::HandshakeFailure;
pub use histogram::{Histogram, Histograms, Totals};
pub use latencies::{Latencies, Latency};
pub use period::{Mark, Period, PeriodCounts, RequestSums};
pub use series::{SeriesCell, SeriesPlace};
pub use traffic::{End, EndedRequest, TrafficCounts, TrafficGroup, TrafficSums};
