//! The addresses of targets that are configured by name, kept up to date on the control side.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{debug, warn};

/// The bounds for the time to live that a name server gives.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(300);

/// The timeout of a lookup.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The delay before a failed lookup is repeated: it doubles each time, up to the maximum.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);

/// How long a revision with new names waits for their first addresses, for all names together, so that its first
/// requests find some.
const FIRST_LOOKUP: Duration = Duration::from_millis(300);

/// The maximum number of addresses that are used per name.
const MAX_ADDRESSES: usize = 256;

/// The files that configure name resolution on this host.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Notifies an upstream that an address or a target's health has changed. An upstream keeps its sender over all
/// revisions.
pub type Changes = Arc<watch::Sender<()>>;

/// The addresses of a target.
#[derive(Debug)]
pub enum Addresses {
    Fixed(SocketAddr),
    Name { name: Arc<Resolved>, port: u16 },
}

/// The addresses that a name resolves to, kept up to date. The last result stays in use when the name server does not
/// answer.
#[derive(Debug)]
pub struct Resolved {
    host: Box<str>,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// The addresses, sorted.
    addresses: Arc<[IpAddr]>,
    /// The upstreams that are notified of changes.
    users: Vec<Weak<watch::Sender<()>>>,
    /// The error and the time of the last lookup, if it failed.
    error: Option<(String, Timestamp)>,
}

/// Resolves names on the control side, and again whenever their records expire, while a target uses them.
#[derive(Debug)]
pub struct Resolver {
    handle: Handle,
    names: Mutex<HashMap<Box<str>, Weak<Resolved>>>,
    client: Arc<Client>,
}

/// The DNS client.
struct Client {
    /// Name servers to use instead of this host's.
    servers: Vec<SocketAddr>,
    /// The resolvers, with the timestamps of the files that they were made from.
    current: Mutex<Option<(Stamps, Resolvers)>>,
}

type Stamps = [Option<SystemTime>; FILES.len()];

/// One resolver per address family.
#[derive(Clone)]
struct Resolvers {
    ipv4: TokioResolver,
    ipv6: TokioResolver,
}

impl Addresses {
    /// All current addresses; empty if the name has not been resolved yet.
    pub fn all(&self) -> Vec<SocketAddr> {
        match self {
            Self::Fixed(address) => vec![*address],
            Self::Name { name, port } => {
                let found = Arc::clone(&name.known().addresses);
                found.iter().map(|ip| SocketAddr::new(*ip, *port)).collect()
            }
        }
    }
}

impl Addresses {
    /// The error and the time of the name's last lookup, if it failed.
    pub fn lookup_error(&self) -> Option<(String, Timestamp)> {
        match self {
            Self::Fixed(_) => None,
            Self::Name { name, .. } => name.known().error.clone(),
        }
    }
}

impl Resolver {
    /// Creates a resolver on the runtime of `handle` that asks these name servers, or this host's if the list is
    /// empty.
    pub fn new(handle: Handle, servers: Vec<SocketAddr>) -> Self {
        let client = Arc::new(Client { servers, current: Mutex::new(None) });
        Self { handle, names: Mutex::default(), client }
    }

    /// Starts to resolve those of `hosts` that are new names, concurrently, and waits at most once for their first
    /// addresses. They are kept up to date as long as the returned values are held, or a target uses them.
    ///
    /// Must not be called on a thread that drives the resolver's runtime.
    pub fn prepare<'a>(&self, hosts: impl IntoIterator<Item = &'a str>) -> Vec<Arc<Resolved>> {
        let (first_lookup, looked) = mpsc::channel();
        let names = hosts.into_iter().filter(|host| host.parse::<IpAddr>().is_err());
        let names = names.map(|host| self.name(host, Some(&first_lookup))).collect();
        drop(first_lookup);
        // Nothing is sent: the channel closes when the last lookup ends.
        if looked.recv_timeout(FIRST_LOOKUP) == Err(mpsc::RecvTimeoutError::Timeout) {
            debug!("not all names of the revision are resolved yet");
        }
        names
    }

    /// The addresses of `host`, which is an IP address or a name; see [`Resolver::prepare`]. `changes` is notified of
    /// changes.
    pub fn addresses(&self, host: &str, port: u16, changes: &Changes) -> Addresses {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Addresses::Fixed(SocketAddr::new(ip, port));
        }
        let name = self.name(host, None);
        name.notify(changes);
        Addresses::Name { name, port }
    }

    /// The state of a name, which is resolved from now on. If the name is new, a copy of `first_lookup` is dropped when the
    /// first lookup is over.
    fn name(&self, host: &str, first_lookup: Option<&FirstLookup>) -> Arc<Resolved> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(host).and_then(Weak::upgrade) {
            return known;
        }
        names.retain(|_, name| name.strong_count() > 0);
        let resolved = Arc::new(Resolved { host: host.into(), found: Mutex::default() });
        names.insert(host.into(), Arc::downgrade(&resolved));
        let keep = keep_resolved(Arc::downgrade(&resolved), Arc::clone(&self.client), first_lookup.cloned());
        self.handle.spawn(keep);
        resolved
    }
}

/// Held while a name is looked up for the first time.
type FirstLookup = mpsc::Sender<Infallible>;

/// Keeps a name resolved until no target uses it.
async fn keep_resolved(name: Weak<Resolved>, client: Arc<Client>, mut first_lookup: Option<FirstLookup>) {
    let mut retry = RETRY;
    loop {
        let Some(resolved) = name.upgrade() else { return };
        let knows_ipv4 = resolved.known().addresses.iter().any(IpAddr::is_ipv4);
        let wait = match client.lookup(&resolved.host, knows_ipv4).await {
            Ok((addresses, ttl)) => {
                resolved.set(addresses);
                retry = RETRY;
                ttl.clamp(MIN_TTL, MAX_TTL)
            }
            Err(error) => {
                let kept = resolved.known().addresses.len();
                warn!(host = %resolved.host, error, kept, "cannot resolve the name of a target");
                resolved.known().error = Some((error, Timestamp::now()));
                let wait = retry;
                retry = (retry * 2).min(MAX_RETRY);
                // The delay varies, because many names fail at once when their server does.
                wait.mul_f64(0.75 + 0.5 * fastrand::f64())
            }
        };
        drop(resolved);
        drop(first_lookup.take());
        tokio::time::sleep(wait).await;
    }
}

impl Resolved {
    fn known(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies `changes` from now on.
    fn notify(&self, changes: &Changes) {
        let mut found = self.known();
        found.users.retain(|user| user.strong_count() > 0);
        if !found.users.iter().any(|user| std::ptr::eq(user.as_ptr(), Arc::as_ptr(changes))) {
            found.users.push(Arc::downgrade(changes));
        }
    }

    fn set(&self, addresses: Vec<IpAddr>) {
        let mut found = self.known();
        found.error = None;
        if *found.addresses == *addresses {
            return;
        }
        debug!(host = %self.host, ?addresses, "resolved");
        found.addresses = addresses.into();
        for user in found.users.iter().filter_map(Weak::upgrade) {
            user.send_replace(());
        }
    }
}

impl Client {
    /// Looks up the addresses of `host`: returns them sorted, with their time to live.
    async fn lookup(&self, host: &str, knows_ipv4: bool) -> Result<(Vec<IpAddr>, Duration), String> {
        let Resolvers { ipv4, ipv6 } = self.resolvers()?;
        // A host with both address families is one target, not two, and many proxies have no IPv6 connectivity, so
        // IPv4 is preferred. A target moves to IPv6 only when the name server says that there is no IPv4 address; a
        // failed lookup is not enough.
        let found = async {
            match ipv4.lookup_ip(host).await {
                Err(error) if error.is_no_records_found() || !knows_ipv4 => ipv6.lookup_ip(host).await,
                found => found,
            }
        };
        let found = match tokio::time::timeout(TIMEOUT, found).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the name server does not answer".to_owned()),
        };
        let mut addresses: Vec<IpAddr> = found.iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() {
            return Err("it has no address".to_owned());
        }
        Ok((addresses, found.valid_until().saturating_duration_since(Instant::now())))
    }

    /// The resolvers, as the files configure them now.
    fn resolvers(&self) -> Result<Resolvers, String> {
        let stamps = FILES.map(|file| Path::new(file).metadata().and_then(|it| it.modified()).ok());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, resolvers)) = &*current
            && *known == stamps
        {
            return Ok(resolvers.clone());
        }
        let build = |family| self.build(family).map_err(|error| format!("no resolver: {error}"));
        let resolvers =
            Resolvers { ipv4: build(LookupIpStrategy::Ipv4Only)?, ipv6: build(LookupIpStrategy::Ipv6Only)? };
        *current = Some((stamps, resolvers.clone()));
        Ok(resolvers)
    }

    fn build(&self, family: LookupIpStrategy) -> Result<TokioResolver, hickory_resolver::net::NetError> {
        let system = self.servers.is_empty().then(TokioResolver::builder_tokio).transpose();
        let system = system.unwrap_or_else(|error| {
            warn!(%error, "cannot read {}: only {} is known", FILES[0], FILES[1]);
            None
        });
        let mut builder = system.unwrap_or_else(|| {
            let server = |address: &SocketAddr| {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = address.port();
                    connection
                });
                NameServerConfig::new(address.ip(), true, connections.into())
            };
            let servers = self.servers.iter().map(server).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        });
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Always;
        options.ip_strategy = family;
        // Caching is off: names are looked up when they expire.
        options.cache_size = 0;
        options.timeout = Duration::from_secs(1);
        builder.build()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("servers", &self.servers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes() -> Changes {
        Arc::new(watch::Sender::new(()))
    }

    fn resolver() -> (tokio::runtime::Runtime, Resolver) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let resolver = Resolver::new(runtime.handle().clone(), Vec::new());
        (runtime, resolver)
    }

    #[test]
    fn names_and_addresses_are_resolved() {
        let (_runtime, resolver) = resolver();
        let names = resolver.prepare(["::1", "localhost", "does-not-exist.invalid", "localhost"]);
        assert_eq!(names.len(), 3);
        assert_eq!(resolver.addresses("::1", 80, &changes()).all(), ["[::1]:80".parse().unwrap()]);
        let known = || resolver.addresses("localhost", 81, &changes()).all();
        let began = std::time::Instant::now();
        while known().is_empty() && began.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        let name = known();
        assert!(name.iter().all(|address| address.ip().is_loopback() && address.port() == 81), "{name:?}");
        assert_eq!(name.len(), 1);
        assert_eq!(resolver.addresses("does-not-exist.invalid", 80, &changes()).all(), []);
    }

    #[test]
    fn a_name_is_resolved_once_for_all_its_targets() {
        let (_runtime, resolver) = resolver();
        let (Addresses::Name { name: one, .. }, Addresses::Name { name: other, .. }) = (
            resolver.addresses("localhost", 81, &changes()),
            resolver.addresses("localhost", 82, &changes()),
        ) else {
            panic!("localhost is a name");
        };
        assert!(Arc::ptr_eq(&one, &other));
    }
}
