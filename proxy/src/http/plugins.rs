//! The plugins of a request: their order, and their state for the response.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, header, request, response};
use http_body::Body as _;
use signalbox_plugin::{
    BodyWish, Exchange as PluginNotes, Flow, Hooks, PluginRequest, PluginResponse, Reply as PluginReply,
};
use smallvec::SmallVec;

use super::exchange::Exchange;
use crate::active::{Active, Chain, CompiledRoute, Step, TypeSet};
use crate::core::failure::Failure;
use crate::wire::body::{RequestBody, joined};

/// The state that plugins keep for the response. It is created if there is a plugin.
#[derive(Default)]
pub(super) struct PluginState<'a> {
    /// The state that the plugins share. It has the headers that they add to the response.
    notes: Box<PluginNotes>,
    /// Plugins with a hook for an upstream's response, in the order in which they ran.
    on_response: Steps<'a>,
    /// The types of plugins with a hook for every response that have seen this request.
    seen: TypeSet,
}

/// Plugins with a later hook.
type Steps<'a> = SmallVec<[&'a Step; 6]>;

impl PluginState<'_> {
    /// Creates the state of a request to which `chain` applies.
    pub(super) fn new(chain: &Chain) -> Self {
        let mut state = Self::default();
        if !chain.uses_consumer_headers {
            state.notes.defer_identity();
        }
        state
    }

    pub(super) fn notes(&self) -> &PluginNotes {
        &self.notes
    }

    /// Returns the notes, when all plugins have run.
    pub(super) fn into_notes(self) -> Box<PluginNotes> {
        self.notes
    }
}

/// Runs the plugins' request hooks. Returns `Some` if one of them answers.
pub(super) async fn run_request_plugins<'a>(
    exchange: &Exchange,
    serving: &'a Active,
    route: &CompiledRoute,
    chain: &'a Chain,
    head: &mut request::Parts,
    body: &mut RequestBody,
    state: &mut PluginState<'a>,
) -> Result<Option<Box<PluginReply>>, Failure> {
    let mut walk = Walk::new(chain);
    let mut wants_body = Steps::new();
    let mut is_identified = false;
    // Only a sample is measured, because reading the clock would cost as much as some plugins.
    let measured = fastrand::u8(..64) == 0;
    let worker = exchange.request.downstream.worker.index;
    let mut request = PluginRequest {
        head,
        route: &route.route().name,
        client: exchange.request.client().address,
        certificate: exchange.request.downstream.certificate.get(),
        now: exchange
            .request
            .started
            .saturating_duration_since(exchange.request.downstream.worker.shared.epoch),
        consumers: &serving.consumers,
        exchange: &mut state.notes,
    };
    while let Some(step) = walk.next() {
        if step.hooks.intersects(Hooks::LOCAL_REPLY) {
            state.seen = state.seen.with(step.type_set);
        }
        let began = measured.then(Instant::now);
        let flow = step.plugin.on_request(&mut request);
        if let Some(began) = began {
            step.stats.durations.record(worker, began.elapsed());
        }
        if let Some(reply) = resolve_flow(exchange, flow).await? {
            return Ok(Some(reply));
        }
        if step.hooks.intersects(Hooks::RESPONSE) {
            state.on_response.push(step);
        }
        if step.hooks.intersects(Hooks::REQUEST_BODY) {
            wants_body.push(step);
        }
        if !is_identified && let Some(identity) = &request.exchange.identity {
            is_identified = true;
            if let Some(chain) = serving.consumer_chains.get(&identity.consumer.name) {
                walk.join(chain);
                if chain.uses_consumer_headers {
                    request.stop_deferring_identity();
                }
            }
        }
    }
    let mut cap = None;
    wants_body.retain(|step| match step.plugin.request_body(&request) {
        BodyWish::Buffered(most) => {
            cap = Some(cap.map_or(most, |cap: usize| cap.min(most)));
            true
        }
        _ => false,
    });
    let Some(cap) = cap else { return Ok(None) };
    let mut whole = Box::pin(exchange.in_time(read_whole(body, cap))).await??;
    for step in wants_body {
        let flow = step.plugin.on_request_body(&mut request, &mut whole);
        if let Some(reply) = resolve_flow(exchange, flow).await? {
            return Ok(Some(reply));
        }
    }
    // Trailers went with the framing; the length is that of the new body.
    request.head.headers.remove(header::TRAILER);
    let had_length = request.head.headers.remove(header::CONTENT_LENGTH).is_some();
    if !whole.is_empty() || had_length {
        request.head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(whole.len()));
    }
    *body = if whole.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(whole)) };
    Ok(None)
}

/// Waits for a plugin's decision.
#[inline]
async fn resolve_flow(exchange: &Exchange, flow: Flow<'_>) -> Result<Option<Box<PluginReply>>, Failure> {
    match flow {
        Flow::Continue => Ok(None),
        Flow::Respond(reply) => Ok(Some(reply)),
        Flow::Wait(future) => match exchange.in_time(future).await? {
            Flow::Continue => Ok(None),
            Flow::Respond(reply) => Ok(Some(reply)),
            Flow::Wait(_) => Err(Failure::Misconfigured),
        },
    }
}

/// Reads a body of at most `cap` bytes.
async fn read_whole(body: &mut RequestBody, cap: usize) -> Result<Bytes, Failure> {
    if body.size_hint().lower() > cap as u64 {
        return Err(Failure::BodyTooLarge);
    }
    let mut parts: Vec<Bytes> = Vec::new();
    let mut size = 0;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| Failure::from(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size > cap {
            return Err(Failure::BodyTooLarge);
        }
        parts.push(data);
    }
    Ok(joined(parts))
}

/// Lets plugins set headers on a local response that was made before they ran: those of the route, or the global ones
/// if no route was found. Returns the first response that one of them has itself.
pub(super) fn run_local_reply_plugins<'a>(
    exchange: &Exchange,
    serving: &'a Active,
    head: &request::Parts,
    state: &mut Option<PluginState<'a>>,
) -> Option<PluginReply> {
    let slot = exchange.request.route().map_or(Chain::GLOBAL, |route| route.chain);
    let chain = serving.chains.get(slot).filter(|chain| chain.hooks.intersects(Hooks::LOCAL_REPLY))?;
    let mut reply = None;
    for step in chain.steps.iter().filter(|step| step.hooks.intersects(Hooks::LOCAL_REPLY)) {
        let state = state.get_or_insert_default();
        if !state.seen.intersects(step.type_set) {
            state.seen = state.seen.with(step.type_set);
            let made = step.plugin.on_local_reply(head, &mut state.notes);
            reply = reply.or(made);
        }
    }
    reply
}

/// Runs the plugins' hooks for an upstream's response.
pub(super) fn run_response_plugins(
    parts: &mut response::Parts,
    exchange: &Exchange,
    state: &mut PluginState<'_>,
) {
    let Some(route) = exchange.request.route() else { return };
    for step in state.on_response.iter().rev() {
        let mut response =
            PluginResponse { head: parts, route: &route.route().name, exchange: &mut state.notes };
        step.plugin.on_response(&mut response);
    }
}

/// Walks the chain of a route and, once a plugin has found the consumer, that consumer's chain: both are merged by
/// order on the way, so that nothing has to be built per pair.
///
/// For each type the most specific plugin wins. A consumer's plugin replaces the route's of its type; if the route's
/// has run already, the consumer's does not run.
struct Walk<'a> {
    route: &'a [Step],
    consumer: &'a [Step],
    /// The plugin types of the consumer's chain, which replace those of the route.
    consumer_types: TypeSet,
    ran: TypeSet,
}

impl<'a> Walk<'a> {
    fn new(route: &'a Chain) -> Self {
        Self {
            route: &route.steps,
            consumer: &[],
            consumer_types: TypeSet::default(),
            ran: TypeSet::default(),
        }
    }

    /// Adds the chain of the consumer.
    fn join(&mut self, consumer: &'a Arc<Chain>) {
        self.consumer = &consumer.steps;
        self.consumer_types = consumer.types;
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = &'a Step;

    fn next(&mut self) -> Option<&'a Step> {
        loop {
            let of_consumer = match (self.route.first(), self.consumer.first()) {
                (None, None) => return None,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(route), Some(consumer)) => consumer.precedes(route),
            };
            let from = if of_consumer { &mut self.consumer } else { &mut self.route };
            let (step, rest) = from.split_first()?;
            *from = rest;
            let instead = if of_consumer { self.ran } else { self.consumer_types };
            if !instead.intersects(step.type_set) {
                if !of_consumer {
                    self.ran = self.ran.with(step.type_set);
                }
                return Some(step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use signalbox_plugin::{Plugin, hooks};

    use super::*;
    use crate::active::PluginStats;
    use crate::telemetry::Histograms;

    struct Nothing;
    #[hooks]
    impl Plugin for Nothing {}

    fn chain(steps: &[(&str, usize, i32)]) -> Arc<Chain> {
        let step = |(name, type_index, order): &(&str, usize, i32)| Step {
            name: name.parse().unwrap(),
            plugin: Arc::new(Nothing),
            type_set: TypeSet::of(*type_index),
            order: *order,
            hooks: Hooks::NONE,
            answers_preflights: false,
            stats: Arc::new(PluginStats { name: name.parse().unwrap(), durations: Histograms::new(1) }),
        };
        Arc::new(Chain::of(steps.iter().map(step).collect()))
    }

    /// The names in the order in which they run, if the plugin named `auth` finds the consumer.
    fn order(route: &Chain, consumer: &Arc<Chain>) -> Vec<String> {
        let mut walk = Walk::new(route);
        let mut names = Vec::new();
        while let Some(step) = walk.next() {
            names.push(step.name.to_string());
            if step.name.as_str() == "auth" {
                walk.join(consumer);
            }
        }
        names
    }

    const CORS: usize = 0;
    const AUTH: usize = 1;
    const LIMIT: usize = 2;
    const TRANSFORM: usize = 3;

    #[test]
    fn the_highest_order_runs_first_and_equals_by_name() {
        let route = chain(&[("b", CORS, 5), ("z", AUTH, 9), ("a", LIMIT, 5)]);
        assert_eq!(order(&route, &chain(&[])), ["z", "a", "b"]);
    }

    #[test]
    fn the_consumers_plugin_takes_the_place_of_the_routes() {
        let route = chain(&[("auth", AUTH, 1000), ("limit", LIMIT, 900), ("transform", TRANSFORM, 800)]);
        let consumer = chain(&[("own-limit", LIMIT, 900)]);
        assert_eq!(order(&route, &consumer), ["auth", "own-limit", "transform"]);
        // The result does not depend on its position.
        let consumer = chain(&[("own-limit", LIMIT, 1)]);
        assert_eq!(order(&route, &consumer), ["auth", "transform", "own-limit"]);
    }

    #[test]
    fn what_has_run_does_not_run_again() {
        let route = chain(&[("limit", LIMIT, 2000), ("auth", AUTH, 1000)]);
        assert_eq!(order(&route, &chain(&[("own-limit", LIMIT, 900)])), ["limit", "auth"]);
    }

    #[test]
    fn a_consumers_plugin_whose_turn_has_passed_runs_at_once() {
        let route = chain(&[("auth", AUTH, 1000), ("transform", TRANSFORM, 800)]);
        assert_eq!(order(&route, &chain(&[("own-cors", CORS, 2000)])), ["auth", "own-cors", "transform"]);
    }

    #[test]
    fn a_consumer_may_have_two_plugins_of_a_type() {
        let route = chain(&[("auth", AUTH, 1000), ("limit", LIMIT, 900)]);
        let consumer = chain(&[("a", LIMIT, 900), ("b", LIMIT, 900)]);
        assert_eq!(order(&route, &consumer), ["auth", "a", "b"]);
    }
}
