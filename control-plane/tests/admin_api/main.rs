//! The admin API over real connections, on a real SQLite database. The board is told directly what proxies do.

// Clippy lets only the tests themselves unwrap, not what they share.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod access;
mod cache;
mod certificates;
mod consumers;
mod documents;
mod endpoints;
mod explain;
mod files;
mod fixture;
mod history;
#[path = "../../../tests/shared/ocsp.rs"]
mod ocsp;
mod proxies;
mod resources;
mod stats;
mod webhooks;
mod writes;
