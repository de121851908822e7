//! The way of a response through the plugins.
//!
//! Whoever answers, a target, a plugin or the proxy itself, the response passes all plugins of the request that have a hook for it,
//! in the reverse order of the way in. A type may have a place of its own there.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{header, request};
use http_body::Frame;
use signalbox_plugin::host::{self, ResponseFields};
use signalbox_plugin::precedence::response_order;
use signalbox_plugin::{
    BodyWish, Exchange as PluginNotes, Flow, Hooks, Outcomes, PluginResponse, Reply as PluginReply,
};
use smallvec::SmallVec;

use super::exchange::Exchange;
use super::finalise::{has_no_body, prepare};
use super::outbound;
use super::plugins::{Chains, PluginState, panicked};
use super::problem;
use super::reply::{Content, Reply};
use super::worker_context::Serving;
use crate::active::Step;
use crate::core::failure::Failure;
use crate::core::filters::{FilterError, FilteredError, Filters};
use crate::upstream::{ExchangeError, TargetBody};
use crate::wire::body::joined;

/// The request that a response belongs to.
#[derive(Clone, Copy)]
pub(super) struct Way<'w, 'a> {
    pub(super) exchange: &'w Exchange,
    pub(super) serving: &'a Rc<Serving>,
    /// The head of the request, as it was sent on.
    pub(super) head: &'w request::Parts,
    pub(super) is_head: bool,
    /// True if a plugin has panicked on the way in; it is not called again.
    pub(super) has_panicked: bool,
}

/// A response on its way out.
struct Outgoing<'r> {
    reply: &'r mut Reply,
    detour: Detour,
}

/// The consequences of a response's way through plugins.
#[derive(Default)]
pub(super) struct Detour {
    /// The filters that the body is to pass.
    pub(super) filters: Filters,
    /// A target's body that was read to its end.
    pub(super) spent: Option<TargetBody>,
    /// The failure that took the place of the response on the way.
    pub(super) failure: Option<Failure>,
}

/// True if plugins of the request have a hook for its response. Creates the state of those of a request that has passed none.
#[inline]
pub(super) fn has_way_back<'a>(
    exchange: &Exchange,
    serving: &'a Serving,
    state: &mut Option<PluginState<'a>>,
) -> bool {
    if let Some(state) = state {
        return state.has(Hooks::WAY_BACK);
    }
    let chains = Chains::of(exchange, serving, None).filter(|chains| chains.have(Hooks::WAY_BACK));
    if let Some(chains) = chains {
        *state = Some(PluginState::new(&chains));
    }
    state.is_some()
}

/// Passes a response through the plugins.
pub(super) async fn run_response_plugins<'a>(
    way: Way<'_, 'a>,
    reply: &mut Reply,
    state: &mut PluginState<'a>,
) -> Detour {
    state.decide_rest(way.exchange, way.head);
    let out = &mut Outgoing { reply, detour: Detour::default() };
    run(way, out, state).await;
    if out.detour.filters.hold_head() {
        out.await_beginning(way).await;
    }
    std::mem::take(&mut out.detour)
}

async fn run<'a>(way: Way<'_, 'a>, out: &mut Outgoing<'_>, state: &mut PluginState<'a>) {
    let plugins = state.plugins().filter(|(step, _)| step.hooks.intersects(Hooks::WAY_BACK));
    let mut steps: SmallVec<[(&Step, bool); 6]> = plugins.collect();
    let PluginState { notes, current, .. } = state;
    steps.sort_by(|(one, _), (other, _)| response_order(*one, *other));
    if let Some(panicked) = current.filter(|_| way.has_panicked) {
        steps.retain(|(step, _)| !std::ptr::eq(*step, panicked));
    }
    let mut steps = steps.into_iter();
    // Each turn but the last ends with a panic.
    loop {
        let hooks = async {
            for (step, saw_request) in steps.by_ref() {
                *current = Some(step);
                if let Err(failure) = meet(way, out, notes, step, saw_request).await {
                    way.exchange.set_plugin(&step.name);
                    out.fail(way, failure);
                }
            }
        };
        if AssertUnwindSafe(hooks).catch_unwind().await.is_ok() {
            return;
        }
        let failure = panicked(way.exchange, *current);
        out.fail(way, failure);
    }
}

/// Passes a response through the hooks of one plugin.
async fn meet(
    way: Way<'_, '_>,
    out: &mut Outgoing<'_>,
    notes: &mut PluginNotes,
    step: &Step,
    saw_request: bool,
) -> Result<(), Failure> {
    if step.hooks.intersects(Hooks::RESPONSE) {
        let mut response = out.response(way, notes, step, saw_request);
        let flow = step.plugin.on_response(&mut response);
        if let Some(reply) = resolve(way, step, flow).await? {
            out.replace(way, Reply::of_plugin(*reply, way.exchange.request.request_id()));
        }
    }
    if !step.hooks.intersects(Hooks::RESPONSE_BODY) || !out.has_body(way) {
        return Ok(());
    }
    match step.plugin.response_body(&mut out.response(way, notes, step, saw_request)) {
        BodyWish::Buffered(cap) => {
            let Some(mut whole) = Box::pin(out.read_whole(way, cap)).await? else { return Ok(()) };
            let mut response = out.response(way, notes, step, saw_request);
            let flow = step.plugin.on_response_body(&mut response, &mut whole);
            match resolve(way, step, flow).await? {
                Some(reply) => out.replace(way, Reply::of_plugin(*reply, way.exchange.request.request_id())),
                None => out.reply.content = Content::Whole(whole),
            }
        }
        BodyWish::Filter(filter) => {
            out.reply.parts.headers.remove(header::CONTENT_LENGTH);
            out.detour.filters.push(filter, &step.name, &step.stats.outcomes);
        }
        BodyWish::Observe(observer) => {
            out.detour.filters.observe(observer, &step.name, &step.stats.outcomes);
        }
        _ => {}
    }
    Ok(())
}

/// Waits for a plugin's decision. Returns `Some` if its answer takes the place of the response.
async fn resolve(way: Way<'_, '_>, step: &Step, flow: Flow<'_>) -> Result<Option<Box<PluginReply>>, Failure> {
    let decided = match flow {
        Flow::Wait(future) => {
            step.stats.note_wait();
            way.exchange.in_time(future).await?
        }
        flow => flow,
    };
    match decided {
        Flow::Continue => Ok(None),
        Flow::Respond(reply) => {
            step.stats.outcomes.count(way.exchange.request.downstream.worker.index, Outcomes::ANSWERED);
            way.exchange.set_plugin(&step.name);
            Ok(Some(reply))
        }
        Flow::Wait(_) => Err(Failure::Misconfigured),
    }
}

impl Outgoing<'_> {
    /// The response as the hook of `step` gets it.
    fn response<'r>(
        &'r mut self,
        way: Way<'r, 'r>,
        notes: &'r mut PluginNotes,
        step: &'r Step,
        saw_request: bool,
    ) -> PluginResponse<'r> {
        let size = match &self.reply.content {
            _ if self.detour.filters.may_change() => None,
            Content::Whole(bytes) => Some(bytes.len() as u64),
            Content::Target(body) => body.size_hint().exact(),
            Content::Switched(_) => None,
        };
        let worker = &way.exchange.request.downstream.worker;
        let fields = ResponseFields {
            head: &mut self.reply.parts,
            origin: self.reply.origin,
            size,
            request: way.head,
            route: way.exchange.request.route().map(|route| &route.route().name),
            clock: &worker.shared.clock,
            outbound: outbound::under(way.serving, worker),
            exchange: notes,
            worker: worker.index,
        };
        host::response(fields, &*step.plugin, &step.stats.outcomes, saw_request)
    }

    /// True if a body follows the head.
    fn has_body(&self, way: Way<'_, '_>) -> bool {
        !way.is_head
            && !has_no_body(self.reply.parts.status)
            && match &self.reply.content {
                Content::Whole(bytes) => !bytes.is_empty(),
                Content::Target(body) => !body.is_end(),
                Content::Switched(_) => false,
            }
    }

    /// Puts another response in the place of this one.
    fn replace(&mut self, way: Way<'_, '_>, mut reply: Reply) {
        self.detour.filters = Filters::default();
        prepare(&mut reply, way.exchange);
        let before = std::mem::replace(self.reply, reply);
        if let Content::Target(body) = before.content
            && body.is_end()
        {
            self.detour.spent = Some(body);
        }
    }

    /// Puts a failure in the place of the response.
    fn fail(&mut self, way: Way<'_, '_>, failure: Failure) {
        let (status, detail) = (failure.status(), failure.detail());
        let response = problem::response(status, detail, way.exchange.request.request_id());
        self.replace(way, Reply::of_proxy(response));
        self.detour.failure = Some(failure);
    }

    /// Waits for the first part behind the filters, or the end of the body. A filter that refuses the body until then has its reply take the
    /// place of the response; no plugin sees that once more.
    async fn await_beginning(&mut self, way: Way<'_, '_>) {
        let (reply, filters) = (&mut *self.reply, &mut self.detour.filters);
        let next = poll_fn(|cx| {
            filters.poll(cx, |cx| match &mut reply.content {
                Content::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
                Content::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
                Content::Target(body) => poll_target(way, body, cx),
                Content::Switched(_) => Poll::Ready(None),
            })
        });
        let failure = match way.exchange.in_time(next).await {
            Ok(part) => {
                let begun = match part {
                    Some(Ok(part)) => {
                        filters.unread(part);
                        filters.finish_head(&mut reply.parts)
                    }
                    None => filters.finish_head(&mut reply.parts),
                    Some(Err(FilteredError::Filter(error))) => Err(error),
                    Some(Err(FilteredError::Source(_))) => return self.fail(way, Failure::Reset),
                };
                match begun {
                    Ok(()) => return,
                    Err(FilterError::Aborted(plugin, abort)) => {
                        way.exchange.set_plugin(&plugin);
                        let reply = Reply::of_plugin(*abort.reply, way.exchange.request.request_id());
                        return self.replace(way, reply);
                    }
                    Err(error @ FilterError::Panicked(_)) => way.exchange.note_filter_error(&error),
                }
            }
            Err(failure) => failure,
        };
        self.fail(way, failure);
    }

    /// Reads the body, up to `cap` bytes. `None`: a filter that holds the head has refused the body, and its reply is the response.
    async fn read_whole(&mut self, way: Way<'_, '_>, cap: usize) -> Result<Option<Bytes>, Failure> {
        let content = std::mem::replace(&mut self.reply.content, Content::Whole(Bytes::new()));
        let mut source = match content {
            Content::Whole(bytes) if self.detour.filters.is_empty() => {
                return if bytes.len() > cap { Err(Failure::ResponseTooLarge) } else { Ok(Some(bytes)) };
            }
            content => Some(content),
        };
        let mut filters = std::mem::take(&mut self.detour.filters);
        self.reply.parts.headers.remove(header::TRAILER);
        self.reply.parts.headers.remove(header::CONTENT_LENGTH);
        let (mut parts, mut size): (Vec<Bytes>, usize) = (Vec::new(), 0);
        loop {
            let next = poll_fn(|cx| {
                filters.poll(cx, |cx| match &mut source {
                    Some(Content::Whole(bytes)) => {
                        let part = std::mem::take(bytes);
                        source = None;
                        Poll::Ready(Some(Ok(Frame::data(part))))
                    }
                    Some(Content::Target(body)) => poll_target(way, body, cx),
                    Some(Content::Switched(_)) | None => Poll::Ready(None),
                })
            });
            match way.exchange.in_time(next).await? {
                None => break,
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    size += data.len();
                    if size > cap {
                        return Err(Failure::ResponseTooLarge);
                    }
                    parts.push(data);
                }
                Some(Err(FilteredError::Source(_))) => return Err(Failure::Reset),
                Some(Err(FilteredError::Filter(FilterError::Aborted(plugin, abort))))
                    if filters.hold_head() =>
                {
                    way.exchange.set_plugin(&plugin);
                    if let Some(source) = source {
                        self.reply.content = source;
                    }
                    self.replace(way, Reply::of_plugin(*abort.reply, way.exchange.request.request_id()));
                    return Ok(None);
                }
                Some(Err(FilteredError::Filter(error))) => {
                    return Err(way.exchange.note_filter_error(&error));
                }
            }
        }
        let finished = filters.finish_head(&mut self.reply.parts);
        finished.map_err(|error| way.exchange.note_filter_error(&error))?;
        if let Some(Content::Target(body)) = source {
            self.detour.spent = Some(body);
        }
        Ok(Some(joined(parts)))
    }
}

/// The next part of a target's body, whose trailers say how a gRPC call has ended.
fn poll_target(
    way: Way<'_, '_>,
    body: &mut TargetBody,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
    body.poll(cx)
        .map(|frame| frame.map(|frame| frame.inspect(|frame| way.exchange.read_target_trailers(frame))))
}
