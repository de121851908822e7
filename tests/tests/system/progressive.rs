//! Progressive rollouts, with real processes and traffic.

mod approval;
mod commands;
pub(crate) mod fleet;
mod leaders;
mod model;
mod scenarios;
mod unequal;
