//! Progressive rollouts, with real processes and traffic.

mod commands;
mod fleet;
mod leaders;
mod model;
mod scenarios;
