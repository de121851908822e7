//! The parts that the control plane and the proxy have in common: arguments from flags, environment and a file, the
//! log, metrics as text, debugging pages, limits of the operating system, certificate files, the connections of their own servers, and an
//! orderly error when the start fails.
//!
//! It lies below both planes and knows neither.

#![warn(missing_docs)]

// First, for its macro.
#[macro_use]
pub mod prometheus;

pub mod accept;
pub mod admin_address;
mod allocator;
mod args;
pub mod arguments;
pub mod debug;
mod error_chain;
pub mod health;
pub mod limits;
pub mod liveness;
pub mod log;
pub mod process_metrics;
mod procfs;
pub mod profile;
mod run;
pub mod stream;
pub mod tls;

pub use args::ProcessArgs;
pub use error_chain::ErrorChain;
pub use run::run;
