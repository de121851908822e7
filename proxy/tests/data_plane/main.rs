//! The data plane with real sockets: the tests apply configuration by [`DataPlane::apply`], clients send requests, and
//! backends answer them.
//!
//! [`DataPlane::apply`]: signalbox_proxy::source::DataPlane::apply

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests to all but clippy")]

mod access_log;
mod answers;
mod attacks;
mod balancing;
mod blame;
mod cache;
mod compress;
mod concurrency_limit;
mod conditions;
mod cors;
mod durations;
mod edge;
mod ext_auth;
mod filters;
mod forwarding;
mod grpc;
mod grpc_json;
mod grpc_translated;
mod grpc_web;
mod harness;
mod http1;
mod http2_targets;
mod identity;
mod jwks;
mod large_bodies;
mod limits;
mod logs;
mod memory;
mod mtls_auth;
#[path = "../../../tests/shared/ocsp.rs"]
mod ocsp;
mod oidc;
mod overload;
mod pairings;
mod plugins;
mod process;
mod resilience;
mod revisions;
mod shaping;
mod smuggling;
mod telling;
mod tls;
mod token_limit;
mod trace_context;
mod tracing;
mod traffic_split;
mod transforms;
mod upgrades;
mod upstreams;
mod wasm;
mod wire;
