//! The system: real control planes, proxies and databases, under real traffic.

// Clippy lets only the tests themselves unwrap, not what they share.
#![allow(clippy::unwrap_used)]

mod access;
mod admin_server;
mod authority;
mod bad_input;
mod certificates;
mod configuration;
mod control_planes;
mod crash_loop;
mod data_path;
mod documents;
mod drain;
mod explain;
mod failover;
mod fixture;
mod full_disk;
mod health_report;
mod limits;
mod metrics;
mod newer;
mod observability;
mod outage;
mod peers;
mod persistence;
mod planes_tls;
mod pooler;
mod process;
mod profiling;
mod progressive;
mod purge;
mod replica_model;
mod replicas;
mod rollout;
mod runbooks;
mod soak;
mod spans;
mod speakers;
mod targets;
mod waiting;
mod wasm;
mod webhooks;
