//! An upstream as requests see it (Envoy: cluster).

use std::sync::Arc;
use std::time::{Duration, Instant};

use signalbox_config::{HashOn, LoadBalancing, Name};
use signalbox_process::ErrorChain;

use super::breaker::Breaker;
use super::endpoint::Endpoint;
use super::failure::{LastError, UpstreamError, UpstreamErrors};
use super::members::{Members, Pick, Picked, View};
use super::target::Target;
use super::transport::Transport;
use crate::core::outcome::Outcome;
use crate::services::{Checking, Services};
use crate::telemetry::{Cells, TrafficCounts};
use crate::wire::tls::UpstreamTls;

/// An upstream, ready for requests. It is replaced as a whole when its resource changes; the state of the targets that
/// stay is carried over.
#[derive(Debug)]
pub struct Upstream {
    pub name: Name,
    pub members: Arc<Members>,
    /// The request property that is hashed, if the balancing policy hashes.
    pub hash_on: Option<HashOn>,
    /// The observations that the upstream's policies need.
    observes: Observations,
    pub transport: Transport,
    pub stats: Arc<UpstreamStats>,
    pub breaker: Option<Arc<Breaker>>,
}

/// The observations that are made of requests. If all are off, they cost nothing.
#[derive(Debug, Clone, Copy)]
struct Observations {
    in_flight: bool,
    latency: bool,
    /// The number of consecutive failures that ejects a target.
    failures: Option<u32>,
}

/// An upstream's counters. They are kept when the upstream changes.
#[derive(Debug)]
pub struct UpstreamStats {
    pub name: Name,
    pub requests: Cells,
    pub traffic: TrafficCounts,
    pub errors: UpstreamErrors,
}

/// A target with one more request in flight.
#[derive(Debug)]
pub struct InFlight(Arc<Target>);

/// The most targets among which that of a failed request is looked for.
const MAX_SEARCHED: usize = 256;

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
            observes: Observations {
                in_flight: matches!(policy, LoadBalancing::LeastRequest | LoadBalancing::PeakEwma),
                latency: policy == LoadBalancing::PeakEwma,
                failures,
            },
            stats: before.map_or_else(
                || {
                    Arc::new(UpstreamStats {
                        name: name.clone(),
                        requests: Cells::new(services.workers),
                        traffic: TrafficCounts::new(&services.upstreams),
                        errors: UpstreamErrors::new(Instant::now()),
                    })
                },
                |before| Arc::clone(&before.stats),
            ),
            breaker: spec.circuit_breaker.error_rate.as_ref().map(|settings| {
                let before = before.and_then(|before| before.breaker.as_deref());
                Arc::new(Breaker::new(name, settings, services.workers, before))
            }),
            transport: Transport {
                protocol: spec.protocol,
                connect_timeout: spec.connect_timeout,
                idle_timeout: spec.idle_timeout,
                load: before.map_or_else(Arc::default, |before| Arc::clone(&before.transport.load)),
                limits: spec.circuit_breaker.limits,
                response_limits: spec.limits,
                tls,
            },
        }
    }

    /// Makes this upstream the one in use, in place of its predecessor.
    pub fn activate(&self, checking: &Checking) {
        self.transport.load.limit_connections(self.transport.limits.is_some());
        self.members.activate(checking);
    }

    /// True if requests need a permit before they are sent.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.transport.limits.is_some() || self.breaker.is_some()
    }

    /// Picks the target for the next request; `None` if there is none.
    #[inline]
    pub fn pick(&self, by: &Pick<'_>) -> Option<Picked<'_>> {
        self.members.pick(by)
    }

    /// Counts a request to `target` as in flight, if a policy needs that count.
    #[inline]
    pub fn begin(&self, target: &Arc<Target>) -> Option<InFlight> {
        let Observations { in_flight, failures, .. } = self.observes;
        (in_flight || failures.is_some()).then(|| {
            target.begin();
            InFlight(Arc::clone(target))
        })
    }

    /// Ends a request from [`Upstream::begin`]. `took` is the time to the response head; `None` if there was none.
    #[inline]
    pub fn end(&self, request: &InFlight, outcome: Outcome, took: Option<Duration>, now: Instant) {
        let target = &request.0;
        if self.observes.latency {
            target.record_latency(took, outcome, now);
        }
        if let Some(limit) = self.observes.failures
            && target.count(outcome, limit)
        {
            self.members.changed();
        }
    }

    /// Counts a failed request at the target at `endpoint`. Of an upstream with very many targets, to find it would take too long.
    #[cold]
    pub fn count_failed(&self, endpoint: Endpoint) {
        let view = self.members.view();
        if view.targets.len() <= MAX_SEARCHED
            && let Some(target) = self.target_at(&view, endpoint)
        {
            target.count_failed();
        }
    }

    fn target_at<'v>(&self, view: &'v View, endpoint: Endpoint) -> Option<&'v Arc<Target>> {
        let is_it =
            |it: &&Arc<Target>| it.address == endpoint.address && self.transport.endpoint(it) == endpoint;
        view.targets.iter().find(is_it)
    }

    /// Records why the target at `endpoint` did not answer a request: in the metrics, in `/debug/upstreams`, and, at a
    /// limited rate, in the log.
    #[cold]
    pub fn note_error(&self, endpoint: Endpoint, reason: UpstreamError, error: &dyn std::error::Error) {
        self.stats.errors.count(reason);
        if reason == UpstreamError::TooManyConnections {
            // This follows from the upstream's configuration, and says nothing about the target.
            return;
        }
        let now = Instant::now();
        let view = self.members.view();
        let target = self.target_at(&view, endpoint);
        let detail = || ErrorChain(error).to_string();
        let is_news =
            target.is_none_or(|target| LastError::note(&mut target.last_error(), reason, now, detail));
        if !is_news {
            return self.stats.errors.suppress();
        }
        if let Some(suppressed) = self.stats.errors.may_write(now) {
            let label = target.map_or_else(|| endpoint.address.to_string(), |it| it.label.to_string());
            tracing::warn!(
                upstream = %self.name, target = label, address = %endpoint.address, reason = reason.as_str(),
                error = %ErrorChain(error), suppressed, "a target does not answer"
            );
        }
    }

    /// The reason why there is no target, if it is that none of the target names resolves to an address.
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

    /// True if in-flight requests are counted per target.
    pub fn counts_in_flight(&self) -> bool {
        self.observes.in_flight || self.observes.failures.is_some()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end();
    }
}
