//! Decides how a revision reaches a fleet: which proxies get it, when a rollout takes its next step, and when it is taken back.
//!
//! All decisions are pure functions over values. The crate does no I/O and reads no clock: its callers pass the time.
//!
//! - a [`FleetTarget`] says which revision each proxy of a fleet is to serve;
//! - a [`Reading`] is the judgement of one gate at one moment;
//! - [`gate`] makes readings from what the proxies count;
//! - [`members`] decides who is a canary, [`frozen_until`] whether a freeze window is open;
//! - [`machine`] folds writes, readings, time and commands into the state of a fleet, and returns decisions as data.

#![warn(missing_docs)]

mod freeze;
pub mod gate;
pub mod machine;
pub mod members;
mod reading;
mod target;

pub use freeze::frozen_until;
pub use reading::{Counts, GateKind, Reading, Scope, Verdict};
pub use target::{Because, Candidate, FleetTarget, Plan, Target};
