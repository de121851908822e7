//! Upstreams: picking targets, and the connections to them.
//!
//! [`cluster`] is an upstream as requests see it, [`members`] its targets. An [`attempt`] picks one of them, has the
//! request [sent](send) over a connection of the worker's [`pool`], and reports the result.

pub mod attempt;
mod balance;
pub mod breaker;
pub mod check;
pub mod cluster;
pub mod connect;
pub mod connection;
pub mod endpoint;
pub mod error;
pub mod failure;
pub mod hash;
pub mod http1;
pub mod http2;
pub mod load;
pub mod members;
pub mod outgoing;
pub mod pool;
pub mod send;
pub mod switched;
pub mod target;
pub mod target_body;
pub mod transport;
pub mod waiters;

pub use attempt::{Attempt, AttemptError};
pub use breaker::{Breaker, Position, Trial};
pub use cluster::{Upstream, UpstreamStats};
pub use error::{ExchangeError, NO_UPGRADES, SendError};
pub use failure::{LastError, Timeout, UpstreamError, UpstreamErrors};
pub use http1::Head;
pub use load::{Load, Permit, RetryOutcome};
pub use members::{Members, Pick, Picked, View};
pub use outgoing::Outgoing;
pub use pool::Pool;
pub use send::SendRecord;
pub use switched::Switched;
pub use target::Target;
pub use target_body::TargetBody;
pub use transport::Transport;
