//! The plugins of a request on its way in: their order, and the state that they leave for the way out.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, header, request};
use http_body::Body as _;
use signalbox_plugin::host::{self, Kept, RequestFields, UnroutedFields};
use signalbox_plugin::outbound::Forwarding;
use signalbox_plugin::precedence::{Source, Walk};
use signalbox_plugin::{
    BodyWish, Exchange as PluginNotes, Flow, Hooks, Outcomes, PluginRequest, Reply as PluginReply,
};
use smallvec::SmallVec;

use super::conditions::RequestFacts;
use super::exchange::Exchange;
use super::outbound;
use super::shadow::run_in_shadow;
use super::worker_context::Serving;
use crate::active::{Chain, CompiledRoute, Step};
use crate::core::failure::Failure;
use crate::upstream::Upstream;
use crate::wire::body::{RequestBody, joined};

/// The plugins of a request. It is created if there are any.
pub(super) struct PluginState<'a> {
    /// The state that the plugins share. It has the headers that they add to the response.
    pub(super) notes: Box<PluginNotes>,
    /// All plugins of the request, as far as it is known whose they are.
    pub(super) walk: Walk<'a, Step>,
    /// The hooks of all of them, and perhaps of some that give way to others.
    hooks: Hooks,
    /// Those of them whose condition this request does not meet. None of their hooks is called.
    unmet: SmallVec<[&'a Step; 2]>,
    /// The plugin whose hook is called.
    pub(super) current: Option<&'a Step>,
    /// True if the request has waited for plugins, or for its body on their behalf.
    pub(super) has_waited: bool,
}

impl<'a> PluginState<'a> {
    /// Creates the state of a request to which these chains apply.
    pub(super) fn new(chains: &Chains<'a>) -> Self {
        let mut notes = Box::<PluginNotes>::default();
        if !chains.all().any(|chain| chain.uses_consumer_headers) {
            notes.defer_identity();
        }
        let mut walk = Walk::new(chains.route.lane());
        chains.joined.into_iter().flatten().for_each(|chain| walk.join(chain.lane()));
        let hooks = chains.all().fold(Hooks::NONE, |hooks, chain| hooks.with(chain.hooks));
        Self { notes, walk, hooks, unmet: SmallVec::new(), current: None, has_waited: false }
    }

    /// True if a plugin has one of these hooks.
    pub(super) fn has(&self, hooks: Hooks) -> bool {
        self.hooks.intersects(hooks) && self.plugins().any(|(step, _)| step.hooks.intersects(hooks))
    }

    /// All plugins of the request, but for those whose condition it does not meet. The flag says if the turn of the plugin has come.
    pub(super) fn plugins(&self) -> impl Iterator<Item = (&'a Step, bool)> {
        self.walk.plugins().filter(|(step, _)| !self.unmet.iter().any(|unmet| std::ptr::eq(*unmet, *step)))
    }

    /// True if the request does not meet the condition of a plugin.
    pub(super) fn has_unmet(&self) -> bool {
        !self.unmet.is_empty()
    }

    /// Evaluates the conditions of the plugins whose turn has not come.
    pub(super) fn decide_rest(&mut self, exchange: &Exchange, head: &request::Parts) {
        let identity = self.notes.identity.as_ref();
        let facts = RequestFacts { exchange, head, identity, body_size: None };
        let waiting = self.plugins().filter(|(step, has_run)| !has_run && step.condition.is_some());
        let unmet: SmallVec<[&'a Step; 2]> =
            waiting.filter(|(step, _)| !facts.meet(step)).map(|(step, _)| step).collect();
        self.unmet.extend(unmet);
    }

    /// Returns the notes, and what is to be kept to the end of the exchange.
    pub(super) fn into_notes(mut self) -> (Box<PluginNotes>, Kept) {
        let kept = host::take_kept(&mut self.notes);
        (self.notes, kept)
    }
}

/// A request on its way through the plugins, with what they may use.
pub(super) struct WayIn<'w, 'a> {
    pub(super) exchange: &'w Exchange,
    pub(super) serving: &'a Rc<Serving>,
    pub(super) route: &'a CompiledRoute,
    /// The upstream that was drawn.
    pub(super) upstream: Option<&'w Upstream>,
    /// The request in the form in which targets get it; `None`: it goes to no target.
    pub(super) forwarding: Option<&'w dyn Forwarding>,
    pub(super) head: &'w mut request::Parts,
    pub(super) body: &'w mut RequestBody,
}

/// Runs the plugins' request hooks. Returns `Some` if one of them answers.
pub(super) async fn run_request_plugins<'a>(
    way: WayIn<'_, 'a>,
    state: &mut PluginState<'a>,
) -> Result<Option<Box<PluginReply>>, Failure> {
    let exchange = way.exchange;
    match AssertUnwindSafe(run_hooks(way, state)).catch_unwind().await {
        Ok(ran) => ran,
        Err(_) => Err(panicked(exchange, state.current)),
    }
}

/// Notes which plugin has panicked.
#[cold]
pub(super) fn panicked(exchange: &Exchange, step: Option<&Step>) -> Failure {
    if let Some(step) = step {
        let worker = exchange.request.downstream.worker.index;
        step.stats.outcomes.count(worker, Outcomes::PANICKED);
        exchange.set_plugin(&step.name);
        tracing::error!(plugin = %step.name, "a plugin panicked");
    }
    Failure::PluginPanicked
}

/// The hooks of one request.
struct Run<'w> {
    exchange: &'w Exchange,
    worker: usize,
    /// Only a sample is measured, because reading the clock would cost as much as some plugins. Where one has ever waited,
    /// all its requests are.
    is_sampled: bool,
}

async fn run_hooks<'a>(
    way: WayIn<'_, 'a>,
    state: &mut PluginState<'a>,
) -> Result<Option<Box<PluginReply>>, Failure> {
    let WayIn { exchange, serving, route, upstream, forwarding, head, body } = way;
    let PluginState { notes, walk, hooks, unmet, current, has_waited } = state;
    let worker = &exchange.request.downstream.worker;
    let run = Run { exchange, worker: worker.index, is_sampled: fastrand::u8(..64) == 0 };
    let mut wants_body: SmallVec<[&'a Step; 6]> = SmallVec::new();
    let mut is_identified = false;
    let body_size = body.size_hint().exact();
    let mut request = host::request(RequestFields {
        head,
        route: &route.route().name,
        listener: &exchange.request.listener.name,
        own_id: exchange.request.request_id(),
        claimed_id: exchange.request.claimed_id.as_deref(),
        is_peer_trusted: exchange.request.is_forwarded(),
        upstream: upstream.map(|upstream| &upstream.name),
        client: exchange.request.client().address,
        https: exchange.request.downstream.https,
        certificate: exchange.request.downstream.certificate.get(),
        now: exchange.request.started.saturating_duration_since(worker.shared.epoch),
        clock: &worker.shared.clock,
        body_size,
        asks_for_switch: exchange.request.switch.is_some(),
        forwarding,
        consumers: &serving.consumers,
        outbound: outbound::under(serving, worker),
        exchange: notes,
        worker: worker.index,
    });
    loop {
        let identity = request.exchange.identity.as_ref();
        let facts = RequestFacts { exchange, head: request.head, identity, body_size };
        let next = walk.next_that(|step| {
            let meets = facts.meet(step);
            if !meets {
                unmet.push(step);
            }
            meets
        });
        let Some(step) = next else { break };
        if step.is_shadow {
            Box::pin(run_in_shadow(exchange, step, &mut request)).await?;
            continue;
        }
        *current = Some(step);
        if step.hooks.intersects(Hooks::REQUEST) {
            host::enter(&mut request, &*step.plugin, &step.stats.outcomes);
            let began = run.begin(step);
            let flow = step.plugin.on_request(&mut request);
            if let Some(reply) = run.resolve(step, flow, began, has_waited).await? {
                return Ok(Some(reply));
            }
        }
        if step.hooks.intersects(Hooks::REQUEST_BODY) {
            wants_body.push(step);
        }
        follow_choice(serving, &mut request, walk, hooks);
        if !is_identified && let Some(identity) = &request.exchange.identity {
            is_identified = true;
            if let Some(chain) = serving.consumer_chains.get(&identity.consumer.name) {
                walk.join(chain.lane());
                *hooks = hooks.with(chain.hooks);
                if chain.uses_consumer_headers {
                    host::stop_deferring_identity(&mut request);
                }
            }
        }
    }
    for step in wants_body {
        *current = Some(step);
        host::enter(&mut request, &*step.plugin, &step.stats.outcomes);
        match step.plugin.request_body(&mut request) {
            wish @ (BodyWish::Buffered(_) | BodyWish::Start(_)) => {
                *has_waited = true;
                let mut read = Box::pin(exchange.in_time(read(body, &wish))).await??;
                let began = run.begin(step);
                let flow = step.plugin.on_request_body(&mut request, &mut read.bytes);
                let reply = run.resolve(step, flow, began, has_waited).await?;
                if reply.is_none() || read.is_whole {
                    put_back(body, read, &mut request);
                }
                if reply.is_some() {
                    return Ok(reply);
                }
            }
            BodyWish::Filter(filter) if !body.is_empty() => {
                request.head.headers.remove(header::CONTENT_LENGTH);
                let aborted = exchange.request.filter_abort.get_or_init(Rc::default);
                body.add_filter(filter, &step.name, &step.stats.outcomes, aborted);
            }
            _ => {}
        }
    }
    *current = None;
    Ok(None)
}

/// Follows a plugin's choice of another upstream: the plugins of that one take the place of those of the one before.
#[inline]
fn follow_choice<'r, 'a: 'r>(
    serving: &'a Serving,
    request: &mut PluginRequest<'r>,
    walk: &mut Walk<'a, Step>,
    hooks: &mut Hooks,
) {
    if let Some(chosen) = request.exchange.chosen_upstream()
        && request.upstream.is_some_and(|upstream| upstream != chosen)
        && let Some(upstream) = serving.upstream_named(chosen)
    {
        request.upstream = Some(&upstream.name);
        let chain = serving.upstream_chain(upstream);
        walk.replace(Source::Upstream, chain.map(|chain| chain.lane()));
        if let Some(chain) = chain {
            *hooks = hooks.with(chain.hooks);
            if chain.uses_consumer_headers {
                host::stop_deferring_identity(request);
            }
        }
    }
}

impl Run<'_> {
    #[inline]
    fn begin(&self, step: &Step) -> Option<Instant> {
        (self.is_sampled || step.stats.has_waited()).then(Instant::now)
    }

    /// Waits for a plugin's decision. Returns `Some` if it answers.
    #[inline]
    async fn resolve(
        &self,
        step: &Step,
        flow: Flow<'_>,
        mut began: Option<Instant>,
        has_waited: &mut bool,
    ) -> Result<Option<Box<PluginReply>>, Failure> {
        let decided = match flow {
            Flow::Wait(future) => {
                *has_waited = true;
                step.stats.note_wait();
                // Nobody works for a client that does not wait.
                self.exchange.request.downstream.forwarding_begins();
                began.get_or_insert_with(Instant::now);
                let waited = self.exchange.in_time(future).await;
                waited.inspect_err(|_| self.exchange.set_plugin(&step.name))
            }
            flow => Ok(flow),
        };
        if let Some(began) = began {
            step.stats.durations.record(self.worker, began.elapsed());
        }
        match decided? {
            Flow::Continue => Ok(None),
            Flow::Respond(reply) => {
                step.stats.outcomes.count(self.worker, Outcomes::ANSWERED);
                self.exchange.set_plugin(&step.name);
                Ok(Some(reply))
            }
            Flow::Wait(_) => {
                self.exchange.set_plugin(&step.name);
                Err(Failure::Misconfigured)
            }
        }
    }
}

/// A body that was read for a plugin, or its start.
struct Read {
    /// The bytes that the plugin sees.
    bytes: Bytes,
    /// The bytes behind them that came together with them.
    beyond: Bytes,
    /// True if there is nothing behind `bytes`.
    is_whole: bool,
}

/// Reads a body as a plugin wants it.
async fn read(body: &mut RequestBody, wish: &BodyWish) -> Result<Read, Failure> {
    match wish {
        BodyWish::Buffered(cap) if body.size_hint().lower() > *cap as u64 => Err(Failure::BodyTooLarge),
        BodyWish::Buffered(cap) => {
            // One byte more than may come tells if there is more.
            let read = read_start(body, cap.saturating_add(1)).await?;
            if read.bytes.len() > *cap { Err(Failure::BodyTooLarge) } else { Ok(read) }
        }
        BodyWish::Start(cap) => read_start(body, *cap).await,
        _ => Ok(Read { bytes: Bytes::new(), beyond: Bytes::new(), is_whole: false }),
    }
}

/// Reads a body to its end, or until `cap` bytes are there and more may follow.
async fn read_start(body: &mut RequestBody, cap: usize) -> Result<Read, Failure> {
    let mut parts: Vec<Bytes> = Vec::new();
    let (mut size, mut is_whole) = (0, false);
    while !is_whole && size < cap {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => is_whole = true,
            Some(frame) => {
                // Trailers go with the framing.
                if let Ok(data) = frame.map_err(|error| Failure::from(&error))?.into_data() {
                    size += data.len();
                    parts.push(data);
                }
            }
        }
    }
    let mut bytes = joined(parts);
    let beyond = bytes.split_off(cap.min(bytes.len()));
    let is_whole = beyond.is_empty() && (is_whole || body.is_end_stream());
    Ok(Read { bytes, beyond, is_whole })
}

/// Puts what a plugin has left of a body in the place of what was read. The length of a whole body is the new one, and trailers went
/// with the framing.
fn put_back(body: &mut RequestBody, read: Read, request: &mut PluginRequest<'_>) {
    let Read { bytes, beyond, is_whole } = read;
    let had_length = request.head.headers.remove(header::CONTENT_LENGTH).is_some();
    if !is_whole {
        body.put_back(joined(vec![bytes, beyond]));
        return;
    }
    request.head.headers.remove(header::TRAILER);
    if !bytes.is_empty() || had_length {
        request.head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    *body = if bytes.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(bytes)) };
}

/// Asks the plugins that run on every route about a request that no route takes. Returns the first answer.
pub(super) fn run_no_route_plugins(
    exchange: &Exchange,
    head: &request::Parts,
    state: &mut PluginState<'_>,
) -> Option<PluginReply> {
    state.decide_rest(exchange, head);
    let steps: SmallVec<[&Step; 6]> = state.plugins().map(|(step, _)| step).collect();
    let mut steps = steps.into_iter();
    let PluginState { notes, current, .. } = state;
    let run = AssertUnwindSafe(|| {
        steps.find_map(|step| {
            *current = Some(step);
            if !step.hooks.intersects(Hooks::NO_ROUTE) {
                return None;
            }
            let fields = UnroutedFields {
                head,
                own_id: exchange.request.request_id(),
                claimed_id: exchange.request.claimed_id.as_deref(),
                is_peer_trusted: exchange.request.is_forwarded(),
                exchange: notes,
            };
            step.plugin.on_no_route(&mut host::unrouted(fields, &*step.plugin)).inspect(|_| {
                step.stats.outcomes.count(exchange.request.downstream.worker.index, Outcomes::ANSWERED);
                exchange.set_plugin(&step.name);
            })
        })
    });
    std::panic::catch_unwind(run).unwrap_or_else(|_| {
        panicked(exchange, state.current);
        None
    })
}

/// The chains that apply to a request, as far as they are known before it passes them.
#[derive(Clone, Copy)]
pub(super) struct Chains<'a> {
    /// That of its route, or the global one.
    route: &'a Chain,
    /// Those of its upstream and of its listener.
    joined: [Option<&'a Chain>; 2],
}

impl<'a> Chains<'a> {
    /// The chains of a request to `upstream`. `None`: no plugin is attached to any of them.
    #[inline]
    pub(super) fn of(exchange: &Exchange, serving: &'a Serving, upstream: Option<&Upstream>) -> Option<Self> {
        let slot = exchange.request.route().map_or(Chain::GLOBAL, |route| route.chain);
        let route = &**serving.chains.get(slot)?;
        let joined = [
            upstream.and_then(|upstream| serving.upstream_chain(upstream)),
            serving.listener_chain(&exchange.request.listener),
        ];
        let joined = joined.map(|chain| chain.map(|chain| &**chain));
        let is_empty = route.steps.is_empty() && joined.iter().all(Option::is_none);
        (!is_empty).then_some(Self { route, joined })
    }

    fn all(&self) -> impl Iterator<Item = &'a Chain> + use<'a> {
        [Some(self.route)].into_iter().chain(self.joined).flatten()
    }

    /// True if a plugin has one of these hooks.
    pub(super) fn have(&self, hooks: Hooks) -> bool {
        self.all().any(|chain| chain.hooks.intersects(hooks))
    }

    /// All plugins, also those that give way to others.
    pub(super) fn steps(&self) -> impl Iterator<Item = &'a Step> + use<'a> {
        self.all().flat_map(|chain| &chain.steps)
    }
}
