//! The flags of the program. Each has an environment variable; the flag has precedence.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Parser};
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{HeaderMap, Uri};
use signalbox_process::ProcessArgs;

use crate::outbound::Collector;

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

    /// URL of an OpenTelemetry collector, like http://collector:4318, that gets spans of the admin API's requests and of rollouts by
    /// OTLP over HTTP; /v1/traces is added to its path. Without this flag OTEL_EXPORTER_OTLP_ENDPOINT counts
    #[arg(long, env = "SIGNALBOX_OTLP_ENDPOINT", hide_env_values = true)]
    pub otlp_endpoint: Option<String>,

    /// Headers of these calls: NAME=VALUE, comma-separated. Without this flag OTEL_EXPORTER_OTLP_HEADERS counts
    #[arg(long, env = "SIGNALBOX_OTLP_HEADERS", hide_env_values = true)]
    pub otlp_headers: Option<String>,

    /// Directory below which the files with secrets must lie that webhooks refer to: whoever writes webhooks can read all of
    /// them
    #[arg(long, env = "SIGNALBOX_WEBHOOK_SECRETS_DIR", default_value = "/run/secrets/webhooks")]
    pub webhook_secrets_dir: PathBuf,

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

/// The headers that follow from a call itself.
const FRAMING: [HeaderName; 5] = [HOST, CONTENT_TYPE, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION];

/// The most headers of calls to a collector.
const MAX_HEADERS: usize = 32;

impl Args {
    /// The collector of spans; `None`: there is none. An error names what is wrong, and quotes neither URL nor headers, which may hold secrets.
    /// The standard variables are meant for many programs, so what cannot be used there is only warned about.
    pub fn collector(&self) -> Result<Option<Collector>, String> {
        let headers = |text: &Option<String>| collector_headers(text.as_deref().unwrap_or_default());
        if let Some(endpoint) = &self.otlp_endpoint {
            let url = collector_url(endpoint).map_err(|reason| format!("--otlp-endpoint: {reason}"))?;
            let headers = match &self.otlp_headers {
                None => headers(&std::env::var(OTEL_HEADERS).ok())
                    .map_err(|reason| format!("{OTEL_HEADERS}: {reason}")),
                given => headers(given).map_err(|reason| format!("--otlp-headers: {reason}")),
            };
            return Ok(Some(Collector { url, headers: headers? }));
        }
        let standard = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(endpoint) = standard(OTEL_ENDPOINT) else { return Ok(None) };
        let is_off = standard("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let is_grpc = standard("OTEL_EXPORTER_OTLP_PROTOCOL").is_some_and(|protocol| protocol == "grpc");
        let found = match (is_off, is_grpc) {
            (true, _) => return Ok(None),
            (_, true) => Err("the protocol grpc is not spoken here".to_owned()),
            _ => collector_url(&endpoint).and_then(|url| {
                let headers = headers(&self.otlp_headers.clone().or_else(|| standard(OTEL_HEADERS)))?;
                Ok(Collector { url, headers })
            }),
        };
        let warn = |reason: String| {
            tracing::warn!(
                reason,
                "{OTEL_ENDPOINT} cannot be used: there are no spans of this control plane"
            );
        };
        Ok(found.map_err(warn).ok())
    }
}

/// The variables that programs have in common.
const OTEL_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const OTEL_HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

fn collector_url(endpoint: &str) -> Result<Uri, String> {
    let url: Uri = endpoint.parse().map_err(|error| format!("it is no URL: {error}"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err("it must begin with http:// or https://".to_owned());
    }
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) || url.query().is_some() {
        return Err("it must have no user, no password and no query".to_owned());
    }
    let has_port = url.authority().zip(url.host()).is_some_and(|(all, host)| all.as_str().len() > host.len());
    if has_port && url.port_u16().is_none_or(|port| port == 0) {
        return Err("its port must be from 1 to 65535".to_owned());
    }
    let path = url.path().trim_end_matches('/');
    let path = if path.ends_with("/v1/traces") { path.to_owned() } else { format!("{path}/v1/traces") };
    let mut parts = url.into_parts();
    parts.path_and_query = Some(path.parse().map_err(|_| "its path cannot be used".to_owned())?);
    Uri::from_parts(parts).map_err(|error| error.to_string())
}

fn collector_headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("each must be NAME=VALUE")?;
        let name = name.trim();
        let key =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no header's name"))?;
        let decoded = percent_encoding::percent_decode_str(value.trim()).collect::<Vec<_>>();
        let mut value = HeaderValue::from_bytes(&decoded)
            .map_err(|_| format!("{name} has a value that no header can have"))?;
        value.set_sensitive(true);
        if FRAMING.contains(&key) {
            return Err(format!("{name} is set by the control plane"));
        }
        headers.insert(key, value);
    }
    if headers.len() > MAX_HEADERS {
        return Err(format!("there are more than {MAX_HEADERS}"));
    }
    Ok(headers)
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
    fn a_collector_is_a_url_and_headers() {
        for (endpoint, expected) in [
            ("http://collector:4318", Ok("http://collector:4318/v1/traces")),
            ("https://c.example/otlp/", Ok("https://c.example/otlp/v1/traces")),
            ("https://c.example/v1/traces", Ok("https://c.example/v1/traces")),
            ("collector:4318", Err("must begin with")),
            ("ftp://collector", Err("must begin with")),
            ("http://user:secret@collector", Err("no user")),
            ("http://", Err("no URL")),
            ("http://collector:99999", Err("port")),
        ] {
            let found = collector_url(endpoint).map(|url| url.to_string());
            match expected {
                Ok(url) => assert_eq!(found.as_deref(), Ok(url)),
                Err(part) => assert!(found.as_ref().is_err_and(|error| error.contains(part)), "{found:?}"),
            }
        }
        let headers = collector_headers("api-key=a%20b, X-Team = shop ,").unwrap();
        assert_eq!(
            (&headers["api-key"], &headers["x-team"]),
            (&"a b".parse().unwrap(), &"shop".parse().unwrap())
        );
        for wrong in ["host=a", "api-key", "a b=c", "key=secret%0Avalue"] {
            let error = collector_headers(wrong).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_empty_value_of_any_flag_is_as_if_absent() {
        assert_eq!(signalbox_process::arguments::empty_values_that_count::<Args>(), Vec::<String>::new());
    }
}
