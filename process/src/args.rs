//! The arguments that both programs have.

use std::path::PathBuf;

use crate::log;

/// The arguments that both programs have.
#[derive(Debug, Clone, clap::Args)]
pub struct ProcessArgs {
    /// File with more flags, one `name = value` a line. The command line and the environment have precedence over the file.
    #[arg(long, env = "SIGNALBOX_FLAGS_FILE", value_name = "FILE")]
    pub flags_file: Option<PathBuf>,

    /// Least severe level that is logged: off, error, warn, info, debug or trace (which release builds log as debug). A
    /// module can have its own level: `info,signalbox_proxy::upstream=debug`.
    #[arg(long, env = "SIGNALBOX_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LogLevel,

    /// Format of the program's own log [default: text on a terminal, else json].
    #[arg(long, env = "SIGNALBOX_LOG_FORMAT", value_name = "FORMAT", value_enum)]
    pub log_format: Option<log::LogFormat>,

    /// Serve the debugging pages of the admin address: CPU profiles at /debug/pprof/profile, /debug/memory and /debug/tasks.
    #[arg(long, env = "SIGNALBOX_PROFILING")]
    pub profiling: bool,

    /// Ask the program that runs with the same flags whether it is ready, and exit. Health checks of containers use this
    /// flag.
    #[arg(long)]
    pub check_health: bool,
}
