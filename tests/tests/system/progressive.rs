//! Progressive rollouts, with real processes and traffic.

mod approval;
mod commands;
mod fleet;
mod leaders;
mod model;
mod scenarios;
