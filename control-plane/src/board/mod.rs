//! The board: what is known of every proxy and of every revision's way through its fleet, folded from what the
//! streams see (sent, ACK, NACK, gone) and what the proxies report.
//!
//! All of it is in memory, and [`fold`] decides it. The store has a copy, written behind: a database that is away
//! holds nothing up, but for the first answer to a stream, for a second at most. Where several control planes share a database, each writes the proxies it has a stream to, and
//! reads the others' ([`sync`]). Three rules make a wait's answer true for all of them:
//!
//! - A stream is registered in the database before it is answered for the first time. The latest registration of a
//!   proxy counts; a control plane that sees a later one ends its own stream of that proxy.
//! - Whoever says that a revision is served everywhere has read the rows of all proxies after it looked so.
//! - A control plane says every second that it is alive. The proxies of one that does not are of unknown state, and are
//!   waited for. Before it says so again it registers its streams anew.

mod event;
mod fleet;
mod fleet_proxy;
mod fold;
mod proxy;
mod replicas;
mod rollout;
mod service;
mod state;
mod status;
mod sync;
mod view;
mod wait;

pub use event::{EndedBy, Event, Link, Node, Presented};
pub use fleet_proxy::FleetProxy;
pub use replicas::StreamShare;
pub use service::{Board, BoardEvent, ForgetError};
pub use state::Sharing;
pub use status::{
    FleetStatus, Propagation, ProxyError, ProxyResourceError, ProxyRevision, ProxyState, ProxyStatus,
    ProxyTraffic, PurgeProgress, Rollout, RolloutBake, RolloutCounts, RolloutEvent, RolloutFault,
    RolloutGate, RolloutGateCounts, RolloutReason, RolloutRevert, RolloutState, RolloutStep,
    RolloutSuccessor, TrafficClasses, WaitResult, Waiting,
};
pub use wait::WaitOutcome;
