//! The flags of the program. Each has an environment variable, which flags win over.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Parser};
use signalbox_process::ProcessArgs;

/// The control plane of Signalbox.
#[derive(Debug, Parser)]
#[command(name = "signalbox-control-plane", version)]
pub struct Args {
    /// Where everything is kept: sqlite://PATH or postgres://USER:PASSWORD@HOST/DATABASE; several servers are written
    /// HOST1:5432,HOST2:5432, and the one that takes writes is used
    #[arg(
        long,
        env = "SIGNALBOX_DATABASE_URL",
        default_value = "sqlite://signalbox-data/signalbox.db",
        hide_env_values = true
    )]
    pub database_url: String,

    /// REST, UI, /metrics, /healthz and /readyz
    #[arg(long, env = "SIGNALBOX_ADMIN_ADDRESS", default_value = "127.0.0.1:9080")]
    pub admin_address: SocketAddr,

    /// gRPC for proxies
    #[arg(long, env = "SIGNALBOX_XDS_ADDRESS", default_value = "127.0.0.1:9081")]
    pub xds_address: SocketAddr,

    /// Tokens that may do everything, comma-separated, each of at least 16 characters: in force on this replica while
    /// they are given, and not stored; absent: one is made, stored and printed at the first start
    #[arg(long, env = "SIGNALBOX_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,

    /// A file with such tokens, one a line, which is read again when it changes
    #[arg(long, env = "SIGNALBOX_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Tokens that proxies present, comma-separated, likewise
    #[arg(long, env = "SIGNALBOX_PROXY_TOKEN", hide_env_values = true)]
    pub proxy_token: Option<String>,

    /// A file with such tokens, one a line, which is read again when it changes
    #[arg(long, env = "SIGNALBOX_PROXY_TOKEN_FILE")]
    pub proxy_token_file: Option<PathBuf>,

    /// The key that secrets are encrypted with in the database: 64 hexadecimal digits; absent, with SQLite: made, in a
    /// file beside the database
    #[arg(long, env = "SIGNALBOX_SECRETS_KEY", hide_env_values = true, conflicts_with = "secrets_key_file")]
    pub secrets_key: Option<String>,

    /// A file with that key
    #[arg(long, env = "SIGNALBOX_SECRETS_KEY_FILE")]
    pub secrets_key_file: Option<PathBuf>,

    /// PEM file with the certificate chain of the admin address
    #[arg(long, env = "SIGNALBOX_ADMIN_TLS_CERT", requires = "admin_tls_key")]
    pub admin_tls_cert: Option<PathBuf>,

    /// PEM file with its private key
    #[arg(long, env = "SIGNALBOX_ADMIN_TLS_KEY", requires = "admin_tls_cert")]
    pub admin_tls_key: Option<PathBuf>,

    /// PEM file with the certificate chain of the xDS address
    #[arg(long, env = "SIGNALBOX_XDS_TLS_CERT", requires = "xds_tls_key")]
    pub xds_tls_cert: Option<PathBuf>,

    /// PEM file with its private key
    #[arg(long, env = "SIGNALBOX_XDS_TLS_KEY", requires = "xds_tls_cert")]
    pub xds_tls_key: Option<PathBuf>,

    /// PEM file with who may have signed the proxies' certificates; then each proxy must present one
    #[arg(long, env = "SIGNALBOX_XDS_TLS_CLIENT_CA", requires = "xds_tls_cert")]
    pub xds_tls_client_ca: Option<PathBuf>,

    /// Name of this replica, shown in the UI and in `connected_to`; absent: host name and xDS port
    #[arg(long, env = "SIGNALBOX_REPLICA_NAME")]
    pub replica_name: Option<String>,

    /// Start a new epoch: for a database that was restored by hand, whose revision numbers come again
    #[arg(long, env = "SIGNALBOX_NEW_EPOCH", action = ArgAction::SetTrue)]
    pub new_epoch: bool,

    /// What both programs have
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Print the OpenAPI document of the admin API, and end
    #[arg(long)]
    pub openapi: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Flags with which the program does one thing and ends.
    const ENDS: [&str; 2] = ["openapi", "check-health"];

    #[test]
    fn every_flag_has_its_environment_variable() {
        let command = Args::command();
        command.clone().debug_assert();
        for argument in command.get_arguments() {
            let Some(long) = argument.get_long().filter(|long| !ENDS.contains(long)) else { continue };
            let expected = format!("SIGNALBOX_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(&*expected), "--{long}");
        }
    }

    #[test]
    fn an_empty_value_of_any_flag_is_as_if_absent() {
        assert_eq!(signalbox_process::arguments::empty_values_that_count::<Args>(), Vec::<String>::new());
    }
}
