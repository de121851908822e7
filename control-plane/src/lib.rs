//! The control plane: keeps the configuration in a database, serves the admin API and the UI, and streams every
//! revision to the proxies.

pub mod args;
pub mod auth;
pub mod board;
mod clock;
mod compute;
pub mod health_report;
mod locked;
pub mod metrics;
pub mod outbound;
mod program;
pub mod publish;
pub mod rest;
pub mod rollout;
pub mod serve;
pub mod spans;
pub mod stats;
pub mod store;
pub mod webhook;
pub mod writer;
pub mod xds;

pub use program::run;
