use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tracing::{debug, warn};

/// How often names are resolved again: `getaddrinfo` does not tell a record's lifetime.
const INTERVAL: Duration = Duration::from_secs(5);

/// A lookup that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long a revision that brings a new name waits for its first address, so that its first requests find one.
const FIRST_LOOKUP: Duration = Duration::from_millis(300);

/// Where a target is.
#[derive(Debug)]
pub enum Addresses {
    Fixed(SocketAddr),
    Name(Arc<Resolved>),
}

/// What a name resolves to, kept up to date; what was found last stays when the name server does not answer.
#[derive(Debug)]
pub struct Resolved {
    host: Box<str>,
    port: u16,
    found: ArcSwap<Vec<SocketAddr>>,
}

type HostAndPort = (Box<str>, u16);

/// Resolves names on the control side, again and again, for as long as a target uses them.
#[derive(Debug)]
pub struct Resolver {
    handle: Handle,
    names: Mutex<HashMap<HostAndPort, Weak<Resolved>>>,
}

impl Addresses {
    /// One of them, another each time; `None`: the name has not been resolved yet.
    #[inline]
    pub fn one(&self) -> Option<SocketAddr> {
        match self {
            Self::Fixed(address) => Some(*address),
            Self::Name(name) => {
                let found = name.found.load();
                match found.as_slice() {
                    [] => None,
                    [only] => Some(*only),
                    several => several.get(fastrand::usize(..several.len())).copied(),
                }
            }
        }
    }
}

impl Resolver {
    /// Resolves on the runtime of `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, names: Mutex::default() }
    }

    /// The addresses of `host`, which is an IP address or a name. Waits a little for a name that is new.
    ///
    /// Must not be called on a thread that drives the resolver's runtime.
    pub fn addresses(&self, host: &str, port: u16) -> Addresses {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Addresses::Fixed(SocketAddr::new(ip, port));
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Box::from(host), port);
        if let Some(known) = names.get(&key).and_then(Weak::upgrade) {
            return Addresses::Name(known);
        }
        names.retain(|_, name| name.strong_count() > 0);
        let resolved = Arc::new(Resolved { host: host.into(), port, found: ArcSwap::default() });
        names.insert(key, Arc::downgrade(&resolved));
        drop(names);
        let (first_done, first) = std::sync::mpsc::sync_channel(1);
        self.handle.spawn(keep_resolved(Arc::downgrade(&resolved), first_done));
        if first.recv_timeout(FIRST_LOOKUP).is_err() {
            debug!(host, "not resolved yet");
        }
        Addresses::Name(resolved)
    }
}

/// Ends when nobody uses the name any more.
async fn keep_resolved(name: Weak<Resolved>, first_done: std::sync::mpsc::SyncSender<()>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(name) = name.upgrade() else { return };
        name.resolve().await;
        // Nobody waits after the first time.
        let _ = first_done.try_send(());
    }
}

impl Resolved {
    async fn resolve(&self) {
        let lookup = tokio::net::lookup_host((&*self.host, self.port));
        let error = match tokio::time::timeout(TIMEOUT, lookup).await {
            Ok(Ok(found)) => {
                let mut found: Vec<_> = found.collect();
                found.sort_unstable();
                found.dedup();
                if !found.is_empty() {
                    if **self.found.load() != found {
                        debug!(host = %self.host, ?found, "resolved");
                        self.found.store(Arc::new(found));
                    }
                    return;
                }
                "it has no address".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the name server does not answer".to_owned(),
        };
        let kept = self.found.load().len();
        warn!(host = %self.host, error, kept, "cannot resolve the name of a target");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_resolved() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let resolver = Resolver::new(runtime.handle().clone());
        assert_eq!(resolver.addresses("::1", 80).one(), Some("[::1]:80".parse().unwrap()));
        let name = resolver.addresses("localhost", 81);
        assert!(name.one().is_some_and(|address| address.ip().is_loopback() && address.port() == 81));
        assert_eq!(resolver.addresses("does-not-exist.invalid", 80).one(), None);
    }

    #[test]
    fn a_name_is_resolved_once_for_all_its_targets() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let resolver = Resolver::new(runtime.handle().clone());
        let (Addresses::Name(one), Addresses::Name(other)) =
            (resolver.addresses("localhost", 81), resolver.addresses("localhost", 81))
        else {
            panic!("localhost is a name");
        };
        assert!(Arc::ptr_eq(&one, &other));
    }
}
