//! What the command line and the environment say.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use signalbox_config::{HumanDuration, Name};
use signalbox_process::ProcessArgs;

/// An API gateway's proxy: serves the revisions of a control plane, or a file.
///
/// Every flag has an environment variable, which flags win over.
#[derive(Debug, Clone, Parser)]
#[command(name = "signalbox-proxy", version)]
pub struct Args {
    /// Where the control plane listens for proxies; repeatable.
    #[arg(
        long,
        env = "SIGNALBOX_CONTROL_PLANE",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:9081"
    )]
    pub control_plane: Vec<String>,

    /// What the proxy presents to the control plane.
    #[arg(long, env = "SIGNALBOX_PROXY_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// PEM file with the certificate authority of the control plane.
    #[arg(long, env = "SIGNALBOX_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// PEM file with the proxy's own certificate chain.
    #[arg(long, env = "SIGNALBOX_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the key of `--tls-cert`.
    #[arg(long, env = "SIGNALBOX_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Unique per proxy [default: made once, kept in the data directory].
    #[arg(long, env = "SIGNALBOX_NODE_ID", value_name = "ID")]
    pub node_id: Option<String>,

    /// The fleet it belongs to.
    #[arg(long, env = "SIGNALBOX_FLEET", value_name = "NAME", default_value = "default")]
    pub fleet: Name,

    /// What selectors see of it; repeatable. `zone=NAME` is where it is: it prefers targets of that zone.
    #[arg(long = "label", env = "SIGNALBOX_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub labels: Vec<Label>,

    /// Overrides a listener's address on this host; repeatable. Port 0 takes any free port.
    #[arg(long = "listener", env = "SIGNALBOX_LISTENER", value_name = "NAME=ADDRESS", value_delimiter = ',')]
    pub listeners: Vec<ListenerOverride>,

    /// Where the proxy tells of itself: /healthz, /readyz, /metrics, /config, /revision, /drain, /debug/upstreams.
    #[arg(long, env = "SIGNALBOX_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:9082")]
    pub admin_address: SocketAddr,

    /// Holds the last good snapshot.
    #[arg(long, env = "SIGNALBOX_DATA_DIR", value_name = "DIR", default_value = "signalbox-proxy-data")]
    pub data_dir: PathBuf,

    /// No control plane: run this declarative file, and apply it again when it changes.
    #[arg(long, env = "SIGNALBOX_CONFIG", value_name = "FILE", conflicts_with_all = ["control_plane", "tls_ca", "tls_cert"])]
    pub config: Option<PathBuf>,

    /// Threads that serve requests [default: number of cores].
    #[arg(long, env = "SIGNALBOX_WORKERS", value_name = "COUNT")]
    pub workers: Option<NonZeroUsize>,

    /// Requests that one worker may have under way; what is beyond is answered with 503.
    #[arg(long, env = "SIGNALBOX_MAX_REQUESTS", value_name = "COUNT", default_value = "8192")]
    pub max_requests: NonZeroU32,

    /// How long requests may wait for their turn in a worker before those that wait too long are answered with 503; 0s: none
    /// are.
    #[arg(long, env = "SIGNALBOX_MAX_QUEUE_DELAY", value_name = "DURATION", default_value = "250ms", value_parser = parse_queue_delay)]
    pub max_queue_delay: QueueDelay,

    /// Client connections at once; beyond, idle ones are closed, and new ones wait [default: what the limit on open files
    /// allows when each needs one more to a target].
    #[arg(long, env = "SIGNALBOX_MAX_CONNECTIONS", value_name = "COUNT")]
    pub max_connections: Option<NonZeroU64>,

    /// Where the names of targets are resolved, instead of what /etc/resolv.conf says; repeatable.
    #[arg(long = "dns-server", env = "SIGNALBOX_DNS_SERVER", value_name = "ADDRESS", value_delimiter = ',', value_parser = parse_dns_server)]
    pub dns_servers: Vec<SocketAddr>,

    /// At SIGTERM, how long running requests may take.
    #[arg(long, env = "SIGNALBOX_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// At a drain, how long connections are still accepted after /readyz says that it drains, for load balancers to notice.
    #[arg(long, env = "SIGNALBOX_DRAIN_GRACE", value_name = "DURATION", default_value = "300ms", value_parser = parse_duration)]
    pub drain_grace: Duration,

    /// Unix socket by which a proxy takes the listening sockets over from the one that runs with the same flag, which
    /// then drains: a new version without a refused connection.
    #[arg(long, env = "SIGNALBOX_TAKEOVER", value_name = "PATH")]
    pub takeover: Option<PathBuf>,

    /// Where the access log goes: `stdout`, `off` or a file's path.
    #[arg(long, env = "SIGNALBOX_ACCESS_LOG", value_name = "WHERE", default_value = "stdout")]
    pub access_log: AccessLog,

    /// What both programs have.
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl Args {
    /// Listener name to the address that overrides the configured one.
    pub fn listener_overrides(&self) -> BTreeMap<String, SocketAddr> {
        self.listeners.iter().map(|item| (item.name.as_str().to_owned(), item.address)).collect()
    }

    /// Where this proxy is.
    pub fn zone(&self) -> Option<&str> {
        self.labels.iter().find(|label| label.key == "zone").map(|label| label.value.as_str())
    }
}

/// `KEY=VALUE`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    pub key: String,
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("{s:?} is not KEY=VALUE")),
        }
    }
}

/// `NAME=ADDRESS`
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

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    Stdout,
    File(PathBuf),
}

impl FromStr for AccessLog {
    type Err = std::convert::Infallible;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(match s {
            "off" => Self::Off,
            "stdout" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

/// How long requests may wait for their turn; `None`: any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDelay(pub Option<Duration>);

/// Below, a worker would take the time that a few requests need for too much load.
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

/// `192.0.2.53` or `192.0.2.53:53`
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
        assert_eq!(args.access_log, AccessLog::Off);
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
            "--workers=0",
            "--max-requests=0",
            "--max-queue-delay=5ms",
            "--max-queue-delay=",
            "--drain-timeout=5",
            "--tls-cert=a.pem",
            "--dns-server=dns.example",
            "--config=a.yaml --control-plane=http://a:1",
            "--config=a.yaml --tls-ca=ca.pem",
        ] {
            let bad = bad.split(' ');
            let bad: Vec<_> = std::iter::once("signalbox-proxy").chain(bad).collect();
            assert!(Args::try_parse_from(&bad).is_err(), "{bad:?}");
        }
    }
}
