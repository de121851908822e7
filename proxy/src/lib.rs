//! The data plane: a stateless proxy that applies revisions atomically.
//!
//! A control plane or a file is the [`source`] of configuration. [`proxy`] takes each revision: [`compile`] turns it
//! into what requests see ([`active`]), [`listener`] binds its sockets, and each [`worker`] serves it from the next
//! request on. [`http`] is the life of a request, [`upstream`] its way to a target, [`telemetry`] its counters and
//! log.

pub mod active;
pub mod admin;
pub mod admin_token;
pub mod args;
pub mod compile;
pub mod core;
pub mod hot_restart;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod overload;
pub mod proxy;
pub mod resolve;
pub mod route_series;
pub mod run;
pub mod secrets;
pub mod services;
pub mod sockets;
pub mod source;
mod span_export;
pub mod tasks;
pub mod telemetry;
pub mod upstream;
pub mod wire;
pub mod worker;

use std::process::ExitCode;

use signalbox_plugin::{Registry, RegistryError};
use signalbox_process::arguments;

/// Runs the program of a proxy that knows these plugin types, with the arguments of the process.
pub fn run(types: Result<Registry, RegistryError>) -> ExitCode {
    signalbox_process::run(|| run::run(arguments::parse(), types?))
}
