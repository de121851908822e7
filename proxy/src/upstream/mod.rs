//! Upstreams: which target gets a request, and the connections to it.

mod balance;
mod breaker;
mod connection;
mod http1;
mod http2;
mod load;
mod pool;
mod resolve;

pub use balance::Balancer;
pub use breaker::{Breaker, Position, Trial};
pub use connection::{AnswerBody, ConnectError, Connection, ExchangeError, Outgoing};
pub use http1::{Head, Malformed};
pub use http2::SendError;
pub use load::{Load, Permit, RetryOutcome};
pub use pool::{Endpoint, Pool};
pub use resolve::{Addresses, Resolver};

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use signalbox_config::{LoadBalancing, Name, UpstreamLimits, UpstreamProtocol};

use crate::compile::Services;
use crate::telemetry::Cells;

/// An upstream, ready for requests. Replaced as a whole when its resource changes; what it knows of the targets that
/// stay goes on to the next.
#[derive(Debug)]
pub struct Upstream {
    pub name: Name,
    pub targets: Box<[Arc<Target>]>,
    balancer: Balancer,
    pub protocol: UpstreamProtocol,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub stats: Arc<UpstreamStats>,
    pub load: Arc<Load>,
    pub limits: Option<UpstreamLimits>,
    pub breaker: Option<Arc<Breaker>>,
}

/// What is counted of an upstream; kept when it changes.
#[derive(Debug)]
pub struct UpstreamStats {
    pub name: Name,
    pub requests: Cells,
}

/// One address of an upstream.
#[derive(Debug)]
pub struct Target {
    /// As it was configured: `users.internal:8080`, `[::1]:80`.
    pub label: Box<str>,
    pub addresses: Addresses,
    /// Requests that are under way, where the balancing asks for it.
    in_flight: AtomicU32,
}

/// A target that has a request under way.
#[derive(Debug)]
pub struct InFlight(Arc<Target>);

/// What a target is picked by.
#[derive(Debug, Clone, Copy)]
pub struct Pick<'a> {
    /// The number of the worker that asks.
    pub worker: usize,
    /// When it asks; a little before will do.
    pub now: Instant,
    /// The hash of what the request is known by, where the balancing asks for it and the request has it.
    pub hash: Option<u64>,
    /// Targets that have had the request: another one is picked, if there is any.
    pub exclude: &'a [Arc<Target>],
}

/// A target that was picked.
pub struct Picked<'a>(&'a Arc<Target>);

impl Upstream {
    pub fn new(
        name: &Name,
        spec: &signalbox_config::Upstream,
        before: Option<&Self>,
        services: &Services,
    ) -> Self {
        let targets = spec.targets.iter().map(|target| {
            let label = if target.host.contains(':') {
                format!("[{}]:{}", target.host, target.port)
            } else {
                format!("{}:{}", target.host, target.port)
            };
            let kept = before.and_then(|before| before.targets.iter().find(|known| *known.label == *label));
            match kept {
                Some(kept) => Arc::clone(kept),
                None => Arc::new(Target {
                    label: label.into(),
                    addresses: services.resolver.addresses(&target.host, target.port),
                    in_flight: AtomicU32::new(0),
                }),
            }
        });
        let weights: Vec<u32> = spec.targets.iter().map(|target| target.weight.get()).collect();
        Self {
            name: name.clone(),
            targets: targets.collect(),
            balancer: Balancer::new(
                spec.load_balancing,
                &weights,
                services.workers,
                before.map(|it| &it.balancer),
            ),
            protocol: spec.protocol,
            connect_timeout: spec.connect_timeout,
            idle_timeout: spec.idle_timeout,
            stats: before.map_or_else(
                || Arc::new(UpstreamStats { name: name.clone(), requests: Cells::new(services.workers) }),
                |before| Arc::clone(&before.stats),
            ),
            load: before.map_or_else(Arc::default, |before| Arc::clone(&before.load)),
            limits: spec.circuit_breaker.limits,
            breaker: spec.circuit_breaker.error_rate.as_ref().map(|settings| {
                let before = before.and_then(|before| before.breaker.as_deref());
                Arc::new(Breaker::new(name, settings, services.workers, before))
            }),
        }
    }

    /// How connections to `target` are made; `None`: its name has not been resolved.
    #[inline]
    pub fn endpoint(&self, target: &Target) -> Option<Endpoint> {
        Some(Endpoint { address: target.address()?, settings: 0 })
    }

    /// Whether requests must ask before they are sent to it.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.limits.is_some() || self.breaker.is_some()
    }

    /// The target for the next request; `None`: there is none.
    #[inline]
    pub fn pick(&self, by: &Pick<'_>) -> Option<Picked<'_>> {
        let target = |index: usize| self.targets.get(index);
        let index = self.balancer.pick(
            by.worker,
            |index| target(index).map_or(0, |target| target.load()),
            |index| target(index).is_some_and(|it| by.exclude.iter().any(|tried| Arc::ptr_eq(it, tried))),
        );
        target(index?).map(Picked)
    }

    /// Notes a request to `target`, if the balancing asks for it.
    #[inline]
    pub fn begin(&self, target: &Arc<Target>) -> Option<InFlight> {
        (self.balancer.policy() == LoadBalancing::LeastRequest).then(|| {
            target.in_flight.fetch_add(1, Ordering::Relaxed);
            InFlight(Arc::clone(target))
        })
    }
}

impl Target {
    fn load(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// One of its addresses; `None`: the name has not been resolved.
    #[inline]
    pub fn address(&self) -> Option<SocketAddr> {
        self.addresses.one()
    }
}

impl Deref for Picked<'_> {
    type Target = Arc<Target>;

    #[inline]
    fn deref(&self) -> &Arc<Target> {
        self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
