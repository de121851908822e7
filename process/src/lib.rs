//! What the control plane and the proxy both need of their process: arguments from flags, environment and a file, the
//! log, limits of the operating system, certificate files, and an orderly error when the start fails.
//!
//! It lies below both planes and knows neither.

#![warn(missing_docs)]

pub mod arguments;
pub mod health;
pub mod limits;
pub mod log;
mod run;
pub mod tls;

pub use run::run;

use std::path::PathBuf;

/// The arguments that both programs have.
#[derive(Debug, Clone, clap::Args)]
pub struct ProcessArgs {
    /// File with more flags, one `name = value` a line; the command line and the environment win over it.
    #[arg(long, env = "SIGNALBOX_FLAGS_FILE", value_name = "FILE")]
    pub flags_file: Option<PathBuf>,

    /// The least severe level that is logged (off, error, warn, info, debug), or one for each module:
    /// `info,signalbox_proxy::upstream=debug`.
    #[arg(long, env = "SIGNALBOX_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LogLevel,

    /// How the program's own log is written [default: text on a terminal, else json].
    #[arg(long, env = "SIGNALBOX_LOG_FORMAT", value_name = "FORMAT", value_enum)]
    pub log_format: Option<log::LogFormat>,

    /// Ask the program that runs with the same flags whether it is ready, and end: for the health checks of containers.
    #[arg(long)]
    pub check_health: bool,
}
