//! Limits the number of requests that are under way at once.
//!
//! A request counts from the moment in which it reaches this plugin until its exchange has ended, however that happens: its
//! response is complete or broken off, its client or its upstream goes away, its connection is upgraded and closed, a plugin
//! panics. A request beyond the limit is not held back but answered `503` with `Retry-After`, and never reaches the upstream.
//! Count and comparison are one step, so that requests that come at once do not exceed the limit.
//!
//! Each proxy counts by itself: a fleet of ten proxies lets up to ten times the limit through. Each plugin counts on its own, over
//! all routes that it is attached to. Responses that last, such as server-sent events and WebSockets, count as long as they last.
//!
//! ## A fixed limit
//!
//! `limit` requests may be under way for each client; `by` defines a client. `global` (default) is everybody together. `ip` is the
//! client's address as far as it can be trusted; an IPv6 client is its /64 network. `consumer` is who an authentication plugin
//! found, the anonymous consumer included, and `credential` tells apart the keys of one consumer. `header` is the value of the
//! header that `header` names, and `path` the path of the request as the client wrote it. A request that has no such thing counts
//! for its `ip`.
//!
//! ## An adaptive limit
//!
//! With `adaptive` the limit follows the latency of the upstream: the time from the sending of a request to the head of its
//! response. While the upstream is as fast as usual, the limit grows, by a fifth of `queue` with each response. As soon as latency
//! exceeds `tolerance` times the usual one, the limit shrinks with each response, by up to a tenth. It stays between `min`, where it
//! begins, and `max`. It changes only while clients use at least half of it.
//!
//! The usual latency is an average over about 600 responses that came under a low load. A probe measures it anew: for ten
//! responses, only a quarter of `min` may be under way, so that no queue is part of what it measures. There is a probe after five
//! responses that left the limit at `min`, but not within 10s of the one before, and one each minute while the limit is below `max`.
//! A probe ends after three times the usual latency at the latest (10s at least, 120s at most). Responses to requests from before a
//! probe are not considered any more. So an upstream that stays slower becomes the new normal, and gets the full limit again.
//!
//! Not considered are answers of the proxy and of plugins, server errors (an upstream that fails fast would look fast), upgraded
//! connections, responses whose body takes longer than 10s, and requests with a body of more than 64KiB, whose time is that of their
//! clients. A request that the upstream does not answer within the timeout counts with the time that it took.
//!
//! Where latency varies by the kind of request, attach a plugin of its own to each route.
//!
//! ## Changes
//!
//! Requests under way stay counted when `limit`, `adaptive` or `retry_after` change; a change of `by` or `header` begins anew. An
//! adaptive limit is learned anew when its bounds change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Clock, Context, Definition, Flow, LogRecord, Plugin, PluginRequest, Reply, hooks};

mod config;
mod gradient;
#[cfg(test)]
mod tests;

pub(crate) use self::config::Config;
use self::gradient::{Gradient, Sample};
use crate::limit::{ClientKey, InFlight, nanoseconds, retry_after};

/// Limits the number of requests that are under way at once.
pub(crate) struct ConcurrencyLimit {
    limit: Limit,
    key: ClientKey,
    in_flight: Arc<InFlight>,
    retry_after: HeaderValue,
    clock: Clock,
}

enum Limit {
    Fixed(u32),
    Adaptive(Arc<Mutex<Gradient>>),
}

/// The beginning of a request whose latency is to be learned.
struct Began {
    at: Duration,
    in_flight: u32,
}

/// A response whose body takes longer is a stream.
const LONGEST_BODY: Duration = Duration::from_secs(10);
/// The largest body of a request whose latency tells of the upstream.
const LARGEST_REQUEST: u64 = 64 << 10;

#[hooks]
impl Plugin for ConcurrencyLimit {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let (limit, at) = match &self.limit {
            Limit::Fixed(limit) => (*limit, None),
            Limit::Adaptive(gradient) => {
                // Not `request.now`: plugins before this one may have waited.
                let now = self.clock.monotonic();
                (lock(gradient).limit(now), Some(now))
            }
        };
        let Some(permit) = self.in_flight.enter(&self.key.client(request), limit) else {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, self.retry_after.clone());
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Reply::Problem { status, detail: "too many requests at once".into(), headers }.into();
        };
        if let Some(at) = at {
            request.exchange.insert(Began { at, in_flight: permit.place });
        }
        request.exchange.guard(permit);
        Flow::Continue
    }

    fn uses_consumer_headers(&self) -> bool {
        self.key.uses_consumer_headers()
    }

    fn on_log(&self, record: &LogRecord<'_>) {
        if let (Limit::Adaptive(gradient), Some(began)) = (&self.limit, record.get::<Began>())
            && let Some(latency) = latency(record)
        {
            let sample = Sample { began: began.at, in_flight: began.in_flight, latency };
            lock(gradient).learn(sample, self.clock.monotonic());
        }
    }
}

impl Definition for ConcurrencyLimit {
    const NAME: &'static str = "concurrency-limit";
    const DESCRIPTION: &'static str = "Limits how many requests are under way at once, by a fixed number or by the latency of the upstream.";
    const ORDER: i32 = 905;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.check(errors);
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let limit = match (&config.adaptive, config.limit) {
            (Some(adaptive), _) => {
                let bounds = adaptive.bounds();
                Limit::Adaptive(context.state(&bounds, || Mutex::new(Gradient::new(bounds))))
            }
            (None, Some(limit)) => Limit::Fixed(limit.get()),
            // An error already.
            (None, None) => Limit::Fixed(0),
        };
        let key = ClientKey::new(config.by, config.header.as_deref());
        errors.finish(Some(Self {
            limit,
            // The limit is not part of it: requests under way are those under way, whatever the limit.
            in_flight: context.state(&key, InFlight::default),
            key,
            retry_after: retry_after(nanoseconds(config.retry_after.0)),
            clock: context.clock.clone(),
        }))
    }
}

/// The time that the upstream took to answer, if it tells of its load.
fn latency(record: &LogRecord<'_>) -> Option<Duration> {
    if record.bytes_in > LARGEST_REQUEST {
        return None;
    }
    // The flags are a list: `UT,URX`.
    if record.flags.split(',').any(|flag| flag == "UT") {
        return Some(record.duration);
    }
    let latency = record.upstream_duration?;
    let status = record.status;
    let is_sample = !status.is_server_error() && status != StatusCode::SWITCHING_PROTOCOLS;
    (is_sample && record.duration.saturating_sub(latency) <= LONGEST_BODY).then_some(latency)
}

fn lock(gradient: &Mutex<Gradient>) -> MutexGuard<'_, Gradient> {
    // A panic cannot leave it half changed: nothing in there panics.
    gradient.lock().unwrap_or_else(PoisonError::into_inner)
}
