//! `rate-limit` with its counts in real Redis servers.
#![allow(clippy::unwrap_used, reason = "a test")]

mod clock;
mod fleet;
mod leases;
mod servers;
mod trouble;
