//! Upstreams: which target gets a request, and the connections to it.

mod balance;
mod breaker;
mod check;
mod connection;
mod failure;
pub mod hash;
mod http1;
mod http2;
mod load;
mod members;
mod pool;
mod resolve;
mod target;
mod waiters;

pub use breaker::{Breaker, Position, Trial};
pub use check::Checking;
pub use connection::{AnswerBody, ConnectError, Connection, ExchangeError, Outgoing, Switched};
pub use failure::{LastError, UpstreamError, UpstreamErrors};
pub use http1::{Head, Malformed};
pub use http2::SendError;
pub use load::{Load, Permit, RetryOutcome};
pub use members::{Changes, Members, Picked, View};
pub use pool::{Endpoint, Pool};
pub use resolve::{Addresses, Resolver};
pub use target::{Outcome, Target};

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Scheme;
use signalbox_config::{HashOn, LoadBalancing, Name, ResponseLimits, UpstreamLimits, UpstreamProtocol};

use crate::causes::Causes;
use crate::compile::Services;
use crate::telemetry::Cells;
use crate::tls::UpstreamTls;

/// An upstream, ready for requests. Replaced as a whole when its resource changes; what it knows of the targets that
/// stay goes on to the next.
#[derive(Debug)]
pub struct Upstream {
    pub name: Name,
    pub members: Arc<Members>,
    /// What a request is known by, if the policy asks for it.
    pub hash_on: Option<HashOn>,
    /// Whether it matters how many requests a target has under way, and how they end.
    watches: Watches,
    pub protocol: UpstreamProtocol,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub stats: Arc<UpstreamStats>,
    pub load: Arc<Load>,
    pub limits: Option<UpstreamLimits>,
    pub response_limits: ResponseLimits,
    pub breaker: Option<Arc<Breaker>>,
    /// How TLS is spoken to the targets; `None`: it is not.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// What is looked at of requests; all off, they cost nothing.
#[derive(Debug, Clone, Copy)]
struct Watches {
    in_flight: bool,
    latency: bool,
    /// Failures in a row that matter.
    failures: Option<u32>,
}

/// What is counted of an upstream; kept when it changes.
#[derive(Debug)]
pub struct UpstreamStats {
    pub name: Name,
    pub requests: Cells,
    pub errors: UpstreamErrors,
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

impl Upstream {
    pub fn new(
        name: &Name,
        spec: &signalbox_config::Upstream,
        tls: Option<Arc<UpstreamTls>>,
        before: Option<&Self>,
        services: &Services,
    ) -> Self {
        let policy = spec.load_balancing;
        let failures = spec.health_check.passive.as_ref().map(|passive| passive.consecutive_failures);
        Self {
            name: name.clone(),
            members: Members::new(spec, tls.as_ref(), before.map(|before| &*before.members), services),
            hash_on: spec.hash_on.clone(),
            watches: Watches {
                in_flight: matches!(policy, LoadBalancing::LeastRequest | LoadBalancing::PeakEwma),
                latency: policy == LoadBalancing::PeakEwma,
                failures,
            },
            protocol: spec.protocol,
            connect_timeout: spec.connect_timeout,
            idle_timeout: spec.idle_timeout,
            stats: before.map_or_else(
                || {
                    Arc::new(UpstreamStats {
                        name: name.clone(),
                        requests: Cells::new(services.workers),
                        errors: UpstreamErrors::new(Instant::now()),
                    })
                },
                |before| Arc::clone(&before.stats),
            ),
            load: before.map_or_else(Arc::default, |before| Arc::clone(&before.load)),
            limits: spec.circuit_breaker.limits,
            response_limits: spec.limits,
            breaker: spec.circuit_breaker.error_rate.as_ref().map(|settings| {
                let before = before.and_then(|before| before.breaker.as_deref());
                Arc::new(Breaker::new(name, settings, services.workers, before))
            }),
            tls,
        }
    }

    /// It is the one that is in use from now on, in the place of the one before.
    pub fn take_over(&self, checking: &Checking) {
        self.load.limit_connections(self.limits.is_some());
        self.members.take_over(checking);
    }

    /// How connections to `target` are made.
    #[inline]
    pub fn endpoint(&self, target: &Target) -> Endpoint {
        let settings = self.tls.as_ref().map_or(0, |tls| tls.settings(&target.label));
        let only_of = self.limits.map_or(0, |_| Arc::as_ptr(&self.load).addr());
        Endpoint { address: target.address, settings, only_of }
    }

    /// What requests to it are said to be.
    pub fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// Whether requests must ask before they are sent to it.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.limits.is_some() || self.breaker.is_some()
    }

    /// The target for the next request; `None`: there is none.
    #[inline]
    pub fn pick(&self, by: &Pick<'_>) -> Option<Picked<'_>> {
        self.members.pick(by)
    }

    /// Notes a request to `target`, if anybody asks for it.
    #[inline]
    pub fn begin(&self, target: &Arc<Target>) -> Option<InFlight> {
        let Watches { in_flight, failures, .. } = self.watches;
        (in_flight || failures.is_some()).then(|| {
            target.begin();
            InFlight(Arc::clone(target))
        })
    }

    /// Notes what became of a request that was noted; `took` is how long the head of its answer did, if there was one.
    #[inline]
    pub fn end(&self, request: &InFlight, outcome: Outcome, took: Option<Duration>, now: Instant) {
        let target = &request.0;
        if self.watches.latency {
            target.took(took, outcome, now);
        }
        if let Some(limit) = self.watches.failures
            && target.count(outcome, limit)
        {
            self.members.changed();
        }
    }

    /// Notes why the target at `endpoint` did not answer a request: for the metrics, for `/debug/upstreams`, and now and then for
    /// the log.
    #[cold]
    pub fn note_error(&self, endpoint: Endpoint, reason: UpstreamError, error: &dyn std::error::Error) {
        self.stats.errors.count(reason);
        if reason == UpstreamError::TooManyConnections {
            // That is as the upstream is configured, and says nothing of the target.
            return;
        }
        let now = Instant::now();
        let view = self.members.view();
        let is_it = |it: &&Arc<Target>| it.address == endpoint.address && self.endpoint(it) == endpoint;
        let target = view.targets.iter().find(is_it);
        let detail = || Causes(error).to_string();
        let is_news =
            target.is_none_or(|target| LastError::note(&mut target.last_error(), reason, now, detail));
        if !is_news {
            return self.stats.errors.suppress();
        }
        if let Some(suppressed) = self.stats.errors.may_write(now) {
            let label = target.map_or_else(|| endpoint.address.to_string(), |it| it.label.to_string());
            tracing::warn!(
                upstream = %self.name, target = label, address = %endpoint.address, reason = reason.as_str(),
                error = %Causes(error), suppressed, "a target does not answer"
            );
        }
    }

    /// Why there is no target for a request, if it is that no name of one has an address.
    #[cold]
    pub fn note_no_target(&self) -> Option<UpstreamError> {
        if !self.members.view().targets.is_empty() {
            return None;
        }
        let unresolved = self.members.unresolved();
        let first = unresolved.first()?;
        let reason = UpstreamError::NameNotResolved;
        self.stats.errors.count(reason);
        if let Some(suppressed) = self.stats.errors.may_write(Instant::now()) {
            tracing::warn!(
                upstream = %self.name, target = first, unresolved = unresolved.len(), reason = reason.as_str(),
                suppressed, "no target's name has an address"
            );
        }
        Some(reason)
    }

    /// Whether requests that are under way are counted for each target.
    pub fn counts_in_flight(&self) -> bool {
        self.watches.in_flight || self.watches.failures.is_some()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A target's address as it was configured.
pub fn label(target: &signalbox_config::Target) -> String {
    if target.host.contains(':') {
        format!("[{}]:{}", target.host, target.port)
    } else {
        format!("{}:{}", target.host, target.port)
    }
}
