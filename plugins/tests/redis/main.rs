//! `rate-limit` and `token-limit` with their counts in real Redis servers.
#![allow(clippy::unwrap_used, reason = "a test")]

mod clock;
mod fleet;
mod leases;
mod servers;
mod tokens;
mod trouble;
