//! The gates: functions over values that judge the canaries by what they serve, compared with the other proxies.
//!
//! Proxies report [`Sample`]s that only grow. [`Counters`] makes [`Delta`]s from them, and a [`Window`] sorts the deltas of an interval into
//! canaries and rest. [`History`] keeps the last hour of the stable revision. A [`Judge`] collects the evidence of one step of a rollout, and
//! says at any time what the gates read.
//!
//! - [`sequential`] is the statistical test, with [`dispersion`], which corrects it for failures that come in bursts;
//! - [`histogram`] holds latencies.

mod counters;
pub mod dispersion;
pub mod histogram;
mod history;
mod judge;
mod pairs;
mod policy;
mod sample;
pub mod sequential;
mod track;
mod usage;
mod window;

#[cfg(test)]
mod random;
#[cfg(test)]
mod simulation;

pub use counters::{Counters, Report};
pub use history::{History, Past};
pub use judge::{Judge, Judgement, Members, Reference, Step, Swap};
pub use policy::{Policy, Tolerance};
pub use sample::{Sample, Series};
pub use window::{Delta, Group, Place, ProxyWindow, StepKey, Window};
