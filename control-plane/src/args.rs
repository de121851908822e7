//! The flags of the program. Each has an environment variable; the flag has precedence.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Parser};
use signalbox_process::ProcessArgs;

/// The control plane of Signalbox. It stores the resources and sends them to the proxies.
///
/// Every flag has an environment variable. The command line has precedence over the environment.
#[derive(Debug, Parser)]
#[command(name = "signalbox-control-plane", version)]
pub struct Args {
    /// URL of the database: sqlite://PATH or postgres://USER:PASSWORD@HOST/DATABASE. Several servers are written
    /// HOST1:5432,HOST2:5432; the control plane uses the one that takes writes
    #[arg(
        long,
        env = "SIGNALBOX_DATABASE_URL",
        default_value = "sqlite://signalbox-data/signalbox.db",
        hide_env_values = true
    )]
    pub database_url: String,

    /// Address of the admin API, the UI, /metrics, /healthz and /readyz
    #[arg(long, env = "SIGNALBOX_ADMIN_ADDRESS", default_value = "127.0.0.1:9080")]
    pub admin_address: SocketAddr,

    /// Address of the gRPC server that proxies connect to
    #[arg(long, env = "SIGNALBOX_XDS_ADDRESS", default_value = "127.0.0.1:9081")]
    pub xds_address: SocketAddr,

    /// Tokens of administrators, comma-separated, each of at least 16 characters. They are valid on this replica while
    /// they are given, and are not stored. Without this flag the first start makes a token, stores it and prints it
    #[arg(long, env = "SIGNALBOX_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,

    /// File with tokens of administrators, one a line. It is read again when it changes
    #[arg(long, env = "SIGNALBOX_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Tokens of proxies, comma-separated, each of at least 16 characters. They are valid on this replica while they are
    /// given, and are not stored
    #[arg(long, env = "SIGNALBOX_PROXY_TOKEN", hide_env_values = true)]
    pub proxy_token: Option<String>,

    /// File with tokens of proxies, one a line. It is read again when it changes
    #[arg(long, env = "SIGNALBOX_PROXY_TOKEN_FILE")]
    pub proxy_token_file: Option<PathBuf>,

    /// Key that encrypts secrets in the database, 64 hexadecimal digits. Without it, and with SQLite, a key is made in a
    /// file beside the database
    #[arg(long, env = "SIGNALBOX_SECRETS_KEY", hide_env_values = true, conflicts_with = "secrets_key_file")]
    pub secrets_key: Option<String>,

    /// File with the key that encrypts secrets
    #[arg(long, env = "SIGNALBOX_SECRETS_KEY_FILE")]
    pub secrets_key_file: Option<PathBuf>,

    /// PEM file with the certificate chain of the admin address
    #[arg(long, env = "SIGNALBOX_ADMIN_TLS_CERT", requires = "admin_tls_key")]
    pub admin_tls_cert: Option<PathBuf>,

    /// PEM file with the private key of the admin address
    #[arg(long, env = "SIGNALBOX_ADMIN_TLS_KEY", requires = "admin_tls_cert")]
    pub admin_tls_key: Option<PathBuf>,

    /// PEM file with the certificate chain of the xDS address
    #[arg(long, env = "SIGNALBOX_XDS_TLS_CERT", requires = "xds_tls_key")]
    pub xds_tls_cert: Option<PathBuf>,

    /// PEM file with the private key of the xDS address
    #[arg(long, env = "SIGNALBOX_XDS_TLS_KEY", requires = "xds_tls_cert")]
    pub xds_tls_key: Option<PathBuf>,

    /// PEM file with the authorities of the proxies' certificates. With it each proxy must present a certificate
    #[arg(long, env = "SIGNALBOX_XDS_TLS_CLIENT_CA", requires = "xds_tls_cert")]
    pub xds_tls_client_ca: Option<PathBuf>,

    /// Name of this replica, shown in the UI and in `connected_to` [default: host name and xDS port]
    #[arg(long, env = "SIGNALBOX_REPLICA_NAME")]
    pub replica_name: Option<String>,

    /// Start a new epoch, after a database was restored by hand and revision numbers are used again
    #[arg(long, env = "SIGNALBOX_NEW_EPOCH", action = ArgAction::SetTrue)]
    pub new_epoch: bool,

    /// Flags that both programs have.
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Print the OpenAPI document of the admin API, and exit
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
