//! The command line and the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::{IntErrorKind, NonZeroU32, NonZeroU64, NonZeroUsize, ParseIntError};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use signalbox_config::node::{MAX_LABELS, check_label};
use signalbox_config::{HumanDuration, Name, NodeId};
use signalbox_process::ProcessArgs;
use signalbox_process::admin_address::AdminAddress;

use crate::admin_token::AdminToken;
use crate::telemetry::access_log::Destination;

/// The proxy of Signalbox. It serves the revisions of a control plane, or a declarative file.
///
/// Every flag has an environment variable. The command line has precedence over the environment.
#[derive(Debug, Clone, Parser)]
#[command(name = "signalbox-proxy", version)]
pub struct Args {
    /// URL of a control plane's xDS port. The flag can be repeated.
    #[arg(
        long,
        env = "SIGNALBOX_CONTROL_PLANE",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:9081"
    )]
    pub control_plane: Vec<String>,

    /// Token that the proxy presents to the control plane.
    #[arg(long, env = "SIGNALBOX_PROXY_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// PEM file with the certificate authorities of the control plane. The proxy trusts no others.
    #[arg(long, env = "SIGNALBOX_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// PEM file with the certificate chain that the proxy presents to the control plane.
    #[arg(long, env = "SIGNALBOX_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the private key of `--tls-cert`.
    #[arg(long, env = "SIGNALBOX_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Identity of this proxy, unique among all proxies [default: generated once, kept in the data directory].
    #[arg(long, env = "SIGNALBOX_NODE_ID", value_name = "ID")]
    pub node_id: Option<NodeId>,

    /// Fleet that the proxy belongs to.
    #[arg(long, env = "SIGNALBOX_FLEET", value_name = "NAME", default_value = "default")]
    pub fleet: Name,

    /// Label that the control plane shows for this proxy. The flag can be repeated. With `zone=NAME` the proxy prefers
    /// targets of that zone.
    #[arg(long = "label", env = "SIGNALBOX_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub labels: Vec<Label>,

    /// Address of a listener on this host, in place of the configured one. The flag can be repeated. Port 0 means any free
    /// port.
    #[arg(long = "listener", env = "SIGNALBOX_LISTENER", value_name = "NAME=ADDRESS", value_delimiter = ',')]
    pub listeners: Vec<ListenerOverride>,

    /// Address of the admin server, or unix:PATH: /healthz, /readyz, /metrics, /config, /revision, /drain, /debug/upstreams.
    /// Without --admin-token, other hosts can read only the first three.
    #[arg(long, env = "SIGNALBOX_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:9082")]
    pub admin_address: AdminAddress,

    /// Token of the admin server, at least 16 characters. With it, all paths but /healthz, /readyz and /metrics need it:
    /// `Authorization: Bearer TOKEN`. The flag can be repeated; each token is valid.
    #[arg(
        long,
        env = "SIGNALBOX_PROXY_ADMIN_TOKEN",
        value_name = "TOKEN",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub admin_token: Vec<AdminToken>,

    /// Ask for the token of the admin server at /metrics, too.
    #[arg(long, env = "SIGNALBOX_GUARD_METRICS", requires = "admin_token")]
    pub guard_metrics: bool,

    /// Directory of the last good snapshot, the last proven one, the proxy's identity, and the uploaded files that plugins use.
    #[arg(long, env = "SIGNALBOX_DATA_DIR", value_name = "DIR", default_value = "signalbox-proxy-data")]
    pub data_dir: PathBuf,

    /// Time after a start, and after a revision was applied, in which the end of the process counts as a crash. After three
    /// crashes in a row the proxy starts from the last proven revision.
    #[arg(long, env = "SIGNALBOX_CRASH_WINDOW", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub crash_window: Duration,

    /// Time for which the proxy must serve a revision without a crash until the revision counts as proven.
    #[arg(long, env = "SIGNALBOX_PROVEN_AFTER", value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub proven_after: Duration,

    /// Declarative file to serve without a control plane. The proxy applies the file again when it changes.
    #[arg(long, env = "SIGNALBOX_CONFIG", value_name = "FILE", conflicts_with_all = ["control_plane", "tls_ca", "tls_cert"])]
    pub config: Option<PathBuf>,

    /// Number of worker threads, which serve requests [default: number of cores].
    #[arg(long, env = "SIGNALBOX_WORKERS", value_parser = at_least_one::<NonZeroUsize>, value_name = "COUNT")]
    pub workers: Option<NonZeroUsize>,

    /// Maximum number of concurrent requests of each worker. Further requests are answered with 503.
    #[arg(long, env = "SIGNALBOX_MAX_REQUESTS", value_parser = at_least_one::<NonZeroU32>, value_name = "COUNT", default_value = "8192")]
    pub max_requests: NonZeroU32,

    /// Maximum queue delay. While requests wait longer for their turn in a worker, some are answered with 503. 0s means no
    /// limit.
    #[arg(long, env = "SIGNALBOX_MAX_QUEUE_DELAY", value_name = "DURATION", default_value = "250ms", value_parser = parse_queue_delay)]
    pub max_queue_delay: QueueDelay,

    /// Maximum number of client connections. At this number the proxy closes idle connections, and new ones wait [default:
    /// as many as the limit on open files allows if each needs a connection to a target].
    #[arg(long, env = "SIGNALBOX_MAX_CONNECTIONS", value_parser = at_least_one::<NonZeroU64>, value_name = "COUNT")]
    pub max_connections: Option<NonZeroU64>,

    /// DNS server for the names of targets, instead of those in /etc/resolv.conf. The flag can be repeated.
    #[arg(long = "dns-server", env = "SIGNALBOX_DNS_SERVER", value_name = "ADDRESS", value_delimiter = ',', value_parser = parse_dns_server)]
    pub dns_servers: Vec<SocketAddr>,

    /// Time that requests in progress have to finish after SIGTERM. The proxy then closes their connections.
    #[arg(long, env = "SIGNALBOX_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// Time for which a drain still accepts connections after /readyz fails, so that load balancers notice.
    #[arg(long, env = "SIGNALBOX_DRAIN_GRACE", value_name = "DURATION", default_value = "300ms", value_parser = parse_duration)]
    pub drain_grace: Duration,

    /// Path of the Unix socket for a hot restart. A proxy that is started with the same path takes over the listening
    /// sockets of the running one, which then drains, so that no connection is refused.
    #[arg(long, env = "SIGNALBOX_TAKEOVER", value_name = "PATH")]
    pub takeover: Option<PathBuf>,

    /// Maximum number of routes with series of their own at /metrics. Further routes are counted together as `_other`.
    #[arg(long, env = "SIGNALBOX_METRICS_ROUTES", value_name = "COUNT", default_value = "4096")]
    pub metrics_routes: usize,

    /// Destination of the access log: `stdout`, `off`, the path of a file, or a collector of syslog: `syslog:udp://HOST:PORT`,
    /// `syslog:tcp://HOST:PORT` or `syslog:unix:/dev/log`.
    #[arg(long, env = "SIGNALBOX_ACCESS_LOG", value_name = "WHERE", default_value = "stdout")]
    pub access_log: Destination,

    /// Flags that both programs have.
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl Args {
    /// Checks the conditions that span several flags.
    pub fn check(&self) -> anyhow::Result<()> {
        let keys: BTreeSet<&str> = self.labels.iter().map(|label| label.key.as_str()).collect();
        anyhow::ensure!(
            keys.len() <= MAX_LABELS,
            "--label: {} labels are given; at most {MAX_LABELS} are allowed",
            keys.len()
        );
        Ok(())
    }

    /// Maps a listener's name to the address that overrides the configured one.
    pub fn listener_overrides(&self) -> BTreeMap<String, SocketAddr> {
        self.listeners.iter().map(|item| (item.name.as_str().to_owned(), item.address)).collect()
    }

    /// The zone of this proxy, from its labels.
    pub fn zone(&self) -> Option<&str> {
        self.labels.iter().find(|label| label.key == "zone").map(|label| label.value.as_str())
    }
}

/// A label: `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    pub key: String,
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((key, value)) => {
                check_label(key, value)?;
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            None => Err(format!("{s:?} is not KEY=VALUE")),
        }
    }
}

/// Reads a number that must not be 0.
fn at_least_one<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::Zero => "must be at least 1".to_owned(),
        _ => error.to_string(),
    })
}

/// A listener's address on this host: `NAME=ADDRESS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerOverride {
    pub name: Name,
    pub address: SocketAddr,
}

impl FromStr for ListenerOverride {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (name, address) = s.split_once('=').ok_or_else(|| format!("{s:?} is not NAME=ADDRESS"))?;
        let address = address
            .parse()
            .map_err(|_| format!("{address:?} is not an IP address and a port, like 0.0.0.0:8080"))?;
        Ok(Self { name: name.parse()?, address })
    }
}

/// How long requests may wait for their turn; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDelay(pub Option<Duration>);

/// Below this, a worker would take the time that a few requests need for overload.
const MIN_QUEUE_DELAY: Duration = Duration::from_millis(20);

fn parse_queue_delay(text: &str) -> Result<QueueDelay, String> {
    match parse_duration(text)? {
        Duration::ZERO => Ok(QueueDelay(None)),
        delay if delay < MIN_QUEUE_DELAY => Err("must be 0s, or at least 20ms".to_owned()),
        delay => Ok(QueueDelay(Some(delay))),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    text.parse::<HumanDuration>().map(|duration| duration.0)
}

/// Parses `192.0.2.53` or `192.0.2.53:53`.
fn parse_dns_server(text: &str) -> Result<SocketAddr, String> {
    let with_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    text.parse()
        .or_else(|_| with_port())
        .map_err(|_| format!("{text:?} is not an IP address, with a port or without"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_the_documentation_are_read() {
        let args = Args::try_parse_from([
            "signalbox-proxy",
            "--control-plane=http://a:1",
            "--control-plane=http://b:2",
            "--label=zone=a",
            "--listener=http=127.0.0.1:0",
            "--workers=2",
            "--drain-timeout=800ms",
            "--access-log=off",
            "--dns-server=192.0.2.1,[2001:db8::1]:5353",
        ])
        .unwrap();
        assert_eq!(args.control_plane, ["http://a:1", "http://b:2"]);
        assert_eq!(args.labels, [Label { key: "zone".into(), value: "a".into() }]);
        assert_eq!(args.listener_overrides()["http"], "127.0.0.1:0".parse().unwrap());
        assert_eq!(args.drain_timeout, Duration::from_millis(800));
        assert_eq!(args.access_log, Destination::Off);
        assert_eq!(args.zone(), Some("a"));
        assert_eq!(args.max_queue_delay, QueueDelay(Some(Duration::from_millis(250))));
        let never = Args::try_parse_from(["signalbox-proxy", "--max-queue-delay=0s"]).unwrap();
        assert_eq!(never.max_queue_delay, QueueDelay(None));
        assert_eq!(
            args.dns_servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1:53", "[2001:db8::1]:5353"]
        );
    }

    #[test]
    fn an_empty_value_of_any_flag_is_as_if_absent() {
        assert_eq!(signalbox_process::arguments::empty_values_that_count::<Args>(), Vec::<String>::new());
    }

    #[test]
    fn wrong_values_are_refused() {
        for bad in [
            "--listener=http",
            "--listener=http=localhost:80",
            "--label=zone",
            "--label==a",
            "--node-id=a/b",
            "--node-id=ä",
            "--workers=0",
            "--max-requests=0",
            "--max-queue-delay=5ms",
            "--max-queue-delay=",
            "--drain-timeout=5",
            "--tls-cert=a.pem",
            "--dns-server=dns.example",
            "--config=a.yaml --control-plane=http://a:1",
            "--config=a.yaml --tls-ca=ca.pem",
            "--admin-address=localhost:9082",
            "--admin-address=unix:",
            "--admin-token=short",
            "--guard-metrics",
            "--access-log=syslog:tcp://logs.example",
        ] {
            let bad = bad.split(' ');
            let bad: Vec<_> = std::iter::once("signalbox-proxy").chain(bad).collect();
            assert!(Args::try_parse_from(&bad).is_err(), "{bad:?}");
        }
        let error = Args::try_parse_from(["signalbox-proxy", "--node-id", "a b"]).unwrap_err().to_string();
        assert!(error.contains("--node-id <ID>") && error.contains("must have 1 to 128 letters"), "{error}");
        let long = format!("--label=zone={}", "x".repeat(257));
        assert!(Args::try_parse_from(["signalbox-proxy", &long]).is_err());
        let many = (0..=MAX_LABELS).map(|index| format!("--label=l{index}=x"));
        let many = std::iter::once("signalbox-proxy".to_owned()).chain(many);
        let error = Args::try_parse_from(many).unwrap().check().unwrap_err().to_string();
        assert_eq!(error, "--label: 65 labels are given; at most 64 are allowed");
    }
}
