//! The data plane with real sockets: configuration goes in by [`DataPlane::apply`], requests by clients, and backends
//! answer them.
//!
//! [`DataPlane::apply`]: signalbox_proxy::source::DataPlane::apply

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests to all but clippy")]

mod answers;
mod attacks;
mod balancing;
mod blame;
mod cors;
mod edge;
mod forwarding;
mod grpc;
mod harness;
mod http1;
mod http2_targets;
mod limits;
mod memory;
mod overload;
mod pairings;
mod process;
mod resilience;
mod revisions;
mod smuggling;
mod telling;
mod tls;
mod upgrades;
mod upstreams;
mod wire;
