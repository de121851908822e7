//! Limits the number of requests that a client may make in a span of time.
//!
//! `limit` requests are allowed in every `window`, counted for each client by itself; `by` defines a client. Each
//! plugin counts on its own, over all routes that it is attached to.
//!
//! ## Algorithms
//!
//! - `sliding-window` (default): never more than `limit` requests in *any* span of time as long as `window`. Up to a
//!   limit of 64 it is exact to the nanosecond; beyond, a request counts for up to 1/63 of the window longer than it must,
//!   which keeps the memory for a client at about 1 KiB.
//! - `token-bucket`: a bucket of `burst` tokens (absent: `limit`) is filled again evenly, `limit` tokens a window; each
//!   request takes one. In a time t at most `burst` + t × `limit` / `window` requests pass.
//! - `leaky-bucket`: the same with a `burst` of 1 where none is given: requests must come evenly spaced. What comes too
//!   early is refused, not delayed.
//!
//! They hold exactly however many requests come at once: a client's count is read and raised in one step. No window begins at
//! a full minute or hour, so nobody gets twice the limit around such a moment. Refused requests do not count.
//!
//! ## Stores
//!
//! - `local` (default): each proxy counts by itself, so a fleet of ten proxies lets through up to ten times the limit. Time is
//!   the proxy's monotonic clock: a wall clock that is set back or forward changes nothing.
//! - `redis`: all proxies count together in Redis. Each request waits for one answer, at most for `redis.timeout`. A script
//!   reads and raises the count in one step, by the clock of the server, so proxies need no clocks that agree.
//! - `local-with-sync`: all proxies count together, but each takes `lease` requests of a client from the shared count
//!   beforehand, and renews its lease in the background. Only a request that finds no lease waits: the first of a client, and
//!   the last ones before the limit, where leases become small (an eighth of what is left at most).
//!
//! The error of `local-with-sync` is bounded. A lease counts from the moment in which it is taken, so that a request may pass
//! up to a tenth of the window (1s at most) after it was counted. In any span of time as long as the window, the fleet lets
//! through at most `limit` and the requests for which proxies held leases at its beginning: never more than `lease` for each
//! proxy. A proxy that cannot reach Redis spends what it holds, and then `on_store_error` decides: with `deny` the bound holds
//! during a partition, too. A proxy that crashes loses its leases: for one window, up to `lease` requests fewer pass. A lease
//! that is not spent in time comes back.
//!
//! With Redis the limit is as exact as its data. A failover may lose what the replica did not have yet, and a server that
//! restarts without its data counts from zero. If the server's clock goes back, a count neither grows nor shrinks for that
//! time; if it goes forward, counts age by that time, once. Commands go to primaries only. The keys are hashes of one length.
//! Each expires when nothing is counted any more.
//!
//! After five requests in a row without an answer in time, or without a connection, Redis counts as unavailable, and no
//! request waits for it until it answers again. Meanwhile `on_store_error` decides: `local` (default) lets each proxy count by
//! itself, from zero, `allow` lets requests pass, and `deny` answers 503. The responses then carry no headers about the limit.
//!
//! All plugins with the same `redis` settings share one connection in each proxy, over which requests go out together. The
//! passwords are references to the environment or to files of the proxy; a file is read again at each connection.
//!
//! ## Clients
//!
//! `ip` is the client's address as far as it can be trusted; an IPv6 client is its /64 network, which is what one client
//! commonly has. `consumer` is who an authentication plugin found, the anonymous consumer included; `credential` tells
//! apart the keys of one consumer. `header` is the value of the header that `header` names, `path` the path of the request
//! as the client wrote it, and `global` is everybody together. A request that has no such thing (no consumer, no such
//! header) counts for its `ip`.
//!
//! ## Answers
//!
//! Every answer carries `RateLimit-Limit` (the `limit`), `RateLimit-Remaining` (how many would pass now) and
//! `RateLimit-Reset` (seconds until nothing is counted any more), and the same as `X-RateLimit-…`. A request too many is
//! answered `429` (or `status`) with `Retry-After`, the seconds after which one will pass.
//!
//! `ietf_headers` adds `RateLimit-Policy` (`"my-limit";q=100;w=60`) and `RateLimit` (`"my-limit";r=12;t=5`) as the IETF's draft
//! "RateLimit header fields for HTTP" has them: `r` requests are left, and more come in `t` seconds. If several limits apply to
//! a request, each adds an item of its own to these two, and the other headers tell the limit of which least is left.
//! `hide_headers` leaves all of these out.
//!
//! ## Changes and bounds
//!
//! Counts outlive a change of `limit`, `burst` and all that concerns answers; a change of `by`, `header`, `algorithm` or
//! `window` begins anew, and so does a restart of the proxy with `store: local`. A plugin knows about 65,000 clients at once, and
//! forgets one only when nothing is counted for it any more, so nobody gets a fresh count by coming under many names. Should all
//! be in use, clients that are new share one count in each of 64 groups, until some room is free.

use std::sync::Arc;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Context, Definition, Exchange, Flow, Plugin, PluginRequest, Reply, hooks};

mod config;
#[cfg(test)]
mod tests;

pub(crate) use self::config::Config;
use self::config::Store;
use crate::limit::{
    Budget, Client, ClientKey, Counters, LeasedCounts, LimitHeaders, OnStoreError, SharedCounts, SharedId,
    Verdict, nanoseconds, retry_after,
};
use crate::redis::{RedisPool, Unavailable};

/// Limits the number of requests that a client may make in a span of time.
pub(crate) struct RateLimit {
    budget: Budget,
    key: ClientKey,
    store: Counts,
    /// The counts of this proxy alone: for `store: local`, and while Redis is away.
    counters: Arc<Counters>,
    on_store_error: OnStoreError,
    /// The meaning of the counts, which is a part of their keys in Redis.
    scope: Box<[u8]>,
    status: StatusCode,
    headers: Option<LimitHeaders>,
}

/// The counts that decide.
enum Counts {
    Local,
    Shared(SharedCounts),
    Leased(Arc<LeasedCounts>),
}

impl Counts {
    fn new(config: &Config, budget: &Budget, key: &ClientKey, context: &Context<'_>) -> Self {
        let Some(settings) = config.redis.as_ref().filter(|_| config.store != Store::Local) else {
            return Self::Local;
        };
        let shared = SharedCounts::new(RedisPool::shared(context, settings), settings.key_prefix());
        if config.store == Store::Redis {
            return Self::Shared(shared);
        }
        let size = config.lease.map_or(budget.limit.div_ceil(100), |lease| lease.get().into());
        let identity = (settings, config.algorithm, budget, size, key);
        let leases = context.state(&identity, || LeasedCounts::new(shared, *budget, size));
        leases.sweep();
        Self::Leased(leases)
    }
}

#[hooks]
impl Plugin for RateLimit {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        match &self.store {
            Counts::Local => {
                let verdict = self.take_alone(request);
                self.decide(&verdict, request.exchange)
            }
            Counts::Shared(shared) => {
                let client = self.shared_id(&self.key.client(request));
                Flow::Wait(Box::pin(async move {
                    let grant = shared.take(client, &self.budget, 1, 0).await;
                    self.conclude(grant.map(|grant| grant.verdict), request)
                }))
            }
            Counts::Leased(leases) => {
                let client = self.key.client(request);
                match leases.spend(&client, || self.shared_id(&client)) {
                    Ok(verdict) => self.decide(&verdict, request.exchange),
                    Err(ask) => {
                        Flow::Wait(Box::pin(async move { self.conclude(ask.decide().await, request) }))
                    }
                }
            }
        }
    }

    fn uses_consumer_headers(&self) -> bool {
        self.key.uses_consumer_headers()
    }
}

impl Definition for RateLimit {
    const NAME: &'static str = "rate-limit";
    const DESCRIPTION: &'static str = "Limits how many requests a client may make in a time.";
    const ORDER: i32 = 910;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.check(errors);
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let status = StatusCode::from_u16(config.status.get());
        if let Err(error) = &status {
            errors.push("status", error);
        }
        let budget = config.budget();
        let headers = (!config.hide_headers)
            .then(|| LimitHeaders::new(context.name.as_str(), &budget, config.ietf_headers));
        let key = ClientKey::new(config.by, config.header.as_deref());
        // The limit is not part of it: a changed limit must not give everybody a fresh count.
        let counters = context.state(&(config.algorithm, budget.window, &key), Counters::default);
        let store = Counts::new(&config, &budget, &key, context);
        errors.finish(Some(Self {
            budget,
            store,
            counters,
            on_store_error: config.on_store_error,
            scope: config.scope(&budget, context.name.as_str()),
            key,
            status: status.unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            headers,
        }))
    }
}

impl RateLimit {
    fn shared_id(&self, client: &Client<'_>) -> SharedId {
        SharedId(client.digest(&self.scope))
    }

    /// Counts a request in this proxy alone.
    fn take_alone(&self, request: &PluginRequest<'_>) -> Verdict {
        let client = self.counters.id(&self.key.client(request));
        self.counters.take(client, nanoseconds(request.now), &self.budget, 1)
    }

    fn decide(&self, verdict: &Verdict, exchange: &mut Exchange) -> Flow<'static> {
        if let Some(headers) = &self.headers {
            headers.write(verdict, exchange);
        }
        verdict.refused_for.map_or(Flow::Continue, |wait| self.refuse(wait))
    }

    /// Decides by the store's answer. Without one, no headers are invented.
    fn conclude(
        &self,
        answer: Result<Verdict, Unavailable>,
        request: &mut PluginRequest<'_>,
    ) -> Flow<'static> {
        match (answer, self.on_store_error) {
            (Ok(verdict), _) => self.decide(&verdict, request.exchange),
            (Err(Unavailable), OnStoreError::Allow) => Flow::Continue,
            (Err(Unavailable), OnStoreError::Local) => {
                let verdict = self.take_alone(request);
                verdict.refused_for.map_or(Flow::Continue, |wait| self.refuse(wait))
            }
            (Err(Unavailable), OnStoreError::Deny) => {
                Reply::problem(StatusCode::SERVICE_UNAVAILABLE, "the store of the rate limit is unavailable")
                    .into()
            }
        }
    }

    fn refuse(&self, wait: u64) -> Flow<'static> {
        let mut headers = HeaderMap::new();
        if self.headers.is_some() {
            headers.insert(RETRY_AFTER, retry_after(wait));
        }
        Reply::Problem { status: self.status, detail: "too many requests".into(), headers }.into()
    }
}
