//! The handling of a request: admit, decide, finalise and frame the response.

use std::rc::Rc;
use std::sync::Arc;

use http::{Method, Response, StatusCode, header, request};
use signalbox_config::Action;
use signalbox_config::router::{Found, Preflight, RequestParts};
use signalbox_plugin::outbound::Forwarding;
use signalbox_plugin::{Exchange as PluginNotes, Hooks, host};

use super::as_sent::AsSent;
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::finalise::{finalise, frame, has_no_body, prepare, read_end};
use super::forward;
use super::head::{self, HeaderFlags};
use super::plugins::{Chains, PluginState, WayIn, run_no_route_plugins, run_request_plugins};
use super::problem;
use super::redirect::{redirect_slash, redirect_to};
use super::reply::{Content, Reply};
use super::request_body::Inbound;
use super::response_body::ResponseBody;
use super::rewrite;
use super::switch::{self, ConnectRequest, Switch};
use super::way_out::{Way, has_way_back, run_response_plugins};
use super::worker_context::Serving;
use crate::active::{Active, CompiledRoute};
use crate::core::failure::Failure;
use crate::overload::Refusal;
use crate::upstream::TargetBody;
use crate::wire::body::ClientBody;

/// A request that may be routed.
struct Admitted {
    flags: HeaderFlags,
    /// The CONNECT request, if it is one.
    connect: Option<ConnectRequest>,
}

/// Answers a request. The notes of its plugins have headers to be written with those of the response: putting them into
/// its map would cost more than all else that a simple plugin does.
pub async fn handle(
    downstream: Rc<Downstream>,
    head: &mut request::Parts,
    body: ClientBody,
) -> (Response<ResponseBody>, Option<Box<PluginNotes>>) {
    let mut exchange = Exchange::begin(downstream, head);
    let serving = Rc::clone(&exchange.request.serving);
    let method = MethodRules::of(&head.method);
    let mut inbound = Inbound::new(body, &head.headers);
    let mut plugins = None;
    let decided = match admit(&mut exchange, head) {
        Ok(admitted) => decide(&mut exchange, &serving, head, &admitted, &mut inbound, &mut plugins).await,
        Err(failure) => Err(failure),
    };
    let decided = decided.and_then(|reply| check_switch(&mut exchange, reply, method.connects));
    if method.connects && !matches!(&decided, Ok(Reply { content: Content::Switched(_), .. })) {
        // The client may continue as if the CONNECT had succeeded.
        exchange.request.downstream.close_without_reuse();
    }
    let (mut reply, failure) = match decided {
        Ok(reply) => (reply, None),
        Err(failure) => match exchange.aborted_reply() {
            Some(reply) => (reply, None),
            None => (local_reply(&exchange, failure), Some(failure)),
        },
    };
    let is_read = inbound.finish(&exchange, reply.is_whole()).await;
    if !is_read
        && let Content::Target(body) = &reply.content
        && is_final(reply.parts.status, body)
    {
        exchange.request.downstream.end_after_this();
    }
    prepare(&mut reply, &exchange);
    let mut filters = None;
    let mut failure = failure;
    if exchange.request.switch != Some(Switch::Connect)
        && has_way_back(&exchange, &serving, &mut plugins)
        && let Some(plugins) = &mut plugins
    {
        let has_panicked = failure == Some(Failure::PluginPanicked);
        let way = Way { exchange: &exchange, serving: &serving, head, is_head: method.is_head, has_panicked };
        // Boxed, because it would double the size of the future of every request.
        let detour = Box::pin(run_response_plugins(way, &mut reply, plugins)).await;
        if let Some(body) = detour.spent {
            exchange.give_back(body);
        }
        filters = Some(detour.filters).filter(|filters| !filters.is_empty()).map(Box::new);
        failure = detour.failure.or(failure);
    }
    finalise(&mut reply, &mut exchange);
    let flag = exchange.flag_of(failure);
    exchange.set_answer(reply.parts.status.as_u16(), flag);
    if !is_read {
        exchange.request.downstream.mark_unread();
    }
    let notes = plugins.map(|mut plugins| {
        if plugins.has(Hooks::LOG) || plugins.has_unmet() {
            plugins.decide_rest(&exchange, head);
            exchange.watch(plugins.plugins().map(|(step, _)| step), head);
        }
        let (notes, kept) = plugins.into_notes();
        exchange.keep(kept);
        exchange.request.downstream.worker.keep_headers(std::mem::take(&mut head.headers));
        notes
    });
    exchange.note_headers(&reply.parts.headers, notes.as_deref());
    if let Content::Target(body) = &mut reply.content
        && !body.is_end()
        && (method.is_head || has_no_body(reply.parts.status))
    {
        // Only the end of the stream may follow, which over HTTP/2 may arrive separately.
        Box::pin(read_end(&exchange, body)).await;
    }
    (frame(reply, filters, exchange, method.is_head), notes)
}

/// Returns true if a response that arrives before the end of its request's body does not depend on the rest: it is an
/// error, or its length is known. Only a response of unknown length may be generated while the request is read.
fn is_final(status: StatusCode, body: &TargetBody) -> bool {
    status.is_client_error() || status.is_server_error() || body.size_hint().exact().is_some()
}

/// The methods that change the meaning of a response.
#[derive(Clone, Copy)]
struct MethodRules {
    connects: bool,
    is_head: bool,
}

impl MethodRules {
    fn of(method: &Method) -> Self {
        Self { connects: *method == Method::CONNECT, is_head: *method == Method::HEAD }
    }
}

/// The proxy's own response to a failed request.
fn local_reply(exchange: &Exchange, failure: Failure) -> Reply {
    let request = &exchange.request;
    if matches!(failure, Failure::BadRequest(_) | Failure::NotImplemented(_)) {
        request.downstream.close_without_reuse();
    }
    Reply::of_proxy(problem::response(failure.status(), failure.detail(), request.request_id()))
}

/// Refuses requests under overload and ambiguous requests, and removes headers that only the proxy may set, before
/// anything uses them.
#[inline]
fn admit(exchange: &mut Exchange, head: &mut request::Parts) -> Result<Admitted, Failure> {
    let request = &mut exchange.request;
    let flags = HeaderFlags::of(&head.headers);
    request.is_grpc = head::is_grpc_call(&head.headers, flags);
    let trace = head::take_trace(&mut head.headers, flags);
    exchange.set_trace(trace, head);
    let request = &mut exchange.request;
    if let Some(refusal) = request.downstream.worker.overload.refuses(request.started) {
        if refusal == Refusal::Crowded {
            request.downstream.end_after_this();
        }
        return Err(Failure::Overloaded);
    }
    if request.downstream.refuses_requests() {
        return Err(Failure::Overloaded);
    }
    let connect = switch::take_connect(head, flags)?;
    if request.downstream.trusts_peer() {
        request.apply_forwarded(&mut head.headers);
    } else {
        request.claimed_id = head::claimed_id(&head.headers, flags).map(Box::new);
    }
    head::strip_claims(&mut head.headers, flags, request.is_forwarded());
    head::check(head, flags)?;
    if !request.downstream.features().checks_heads {
        rewrite::encode(&mut head.uri)?;
        // However a client splits its cookies, they count as one field.
        head::join_cookies(&mut head.headers, flags);
        let limits = &request.listener.limits;
        if head.headers.len() > limits.header_count || head::size(head) > limits.header_size {
            return Err(Failure::HeadTooLarge);
        }
    }
    if let Some(slashes) = request.listener.edge.normalize_path {
        rewrite::normalize(&mut head.uri, slashes)?;
    }
    head::name_host(head, flags)?;
    Ok(Admitted { flags, connect })
}

/// Finds the route, runs its plugins, and carries out its action.
async fn decide<'a>(
    exchange: &mut Exchange,
    serving: &'a Rc<Serving>,
    head: &mut request::Parts,
    admitted: &Admitted,
    inbound: &mut Inbound,
    plugins: &mut Option<PluginState<'a>>,
) -> Result<Reply, Failure> {
    let Admitted { flags, connect } = admitted;
    let found = match find(exchange, serving, head, *flags) {
        Err(Failure::NoRoute) => return answer_unrouted(exchange, serving, head, plugins),
        found => found?,
    };
    let Found { value: route, path, prefix_len, slash, is_preflight_only } = found;
    route.stats.prefetch();
    let forward = match &route.route().action {
        Action::Forward(forward) => Some(forward),
        Action::Redirect(_) | Action::Respond(_) => None,
    };
    exchange.request.switch = Switch::requested(connect.as_ref(), head, *flags, forward)?;
    exchange.request.set_route(route, head::grpc_timeout(&head.headers, *flags));
    exchange.decide_trace(path);
    // Browsers follow no redirect of a preflight.
    if let Some(slash) = slash
        && !(serving.answers_preflights(route, &exchange.request.listener)
            && Preflight::of(&head.method, &head.headers).is_some())
    {
        return redirect_slash(slash, head);
    }
    head::to_http1(head, *flags);
    head::prepare_request(&mut head.headers, *flags);
    // This is the host that the client asked for; a plugin may change the header.
    let host = head.headers.get(header::HOST).cloned();
    inbound.begin(&mut exchange.request, &head.headers, *flags)?;
    let drawn = forward.and_then(|_| route.upstream(|total| fastrand::u32(..total)));
    let mut upstream = drawn.and_then(|slot| serving.upstreams.get(slot));
    if let Some(chains) = Chains::of(exchange, serving, upstream.map(|upstream| &**upstream)) {
        exchange.request.has_plugins = true;
        if chains.have(Hooks::LOG) {
            exchange.watch(chains.steps(), head);
        }
        let state = plugins.insert(PluginState::new(&chains));
        let drawn = upstream.map(|upstream| &**upstream);
        let seen: &Exchange = exchange;
        let as_sent =
            forward.map(|forward| AsSent { exchange: seen, forward, prefix_len, host: host.as_ref() });
        let forwarding = as_sent.as_ref().map(|as_sent| as_sent as &dyn Forwarding);
        let way = WayIn {
            exchange: seen,
            serving,
            route,
            upstream: drawn,
            forwarding,
            head,
            body: inbound.body_mut(),
        };
        let ran = run_request_plugins(way, state).await;
        if state.has_unmet() {
            exchange.watch(state.plugins().map(|(step, _)| step), head);
        }
        if let Some(chosen) = state.notes.chosen_upstream() {
            // One that this proxy does not have leads nowhere, and not to where the route would have sent the request.
            upstream = serving.upstream_named(chosen);
        }
        if let Some(id) = host::take_request_id(&mut state.notes) {
            exchange.request.set_request_id(id);
        }
        if let Some(reply) = ran? {
            return Ok(Reply::of_plugin(*reply, exchange.request.request_id()));
        }
        if state.has_waited {
            // The time of plugins is not the upstream's.
            exchange.attempts.begin_anew();
        }
    }
    if is_preflight_only {
        // The route does not accept the method, and no plugin has answered.
        return Err(Failure::NoRoute);
    }
    let notes = plugins.as_ref().map(|plugins| &*plugins.notes);
    if let Some(identity) = notes.and_then(|notes| notes.identity.as_ref()) {
        exchange.set_consumer(&identity.consumer.name);
    }
    match &route.route().action {
        Action::Forward(forward) => {
            if let Some(switch) = &exchange.request.switch {
                switch.insert(&mut head.headers);
            }
            let keeps_head = plugins.as_ref().is_some_and(|plugins| plugins.has(Hooks::WAY_BACK));
            let (flags, body) = (*flags, inbound.take_body());
            let request =
                forward::Request { head, flags, host: host.as_ref(), notes, body, prefix_len, keeps_head };
            let upstream = upstream.ok_or(Failure::NoHealthyTarget)?;
            forward::forward(exchange, serving, route, forward, upstream, request).await
        }
        Action::Redirect(redirect) => redirect_to(exchange, redirect, head, prefix_len),
        Action::Respond(respond) => Ok(Reply::configured(respond)),
    }
}

/// Finds the route of the request.
#[inline]
fn find<'a>(
    exchange: &Exchange,
    serving: &'a Active,
    head: &request::Parts,
    flags: HeaderFlags,
) -> Result<Found<'a, Arc<CompiledRoute>>, Failure> {
    let host = head::host(head, flags)?;
    let parts = RequestParts {
        listener: exchange.request.listener.name.as_str(),
        method: &head.method,
        host: &host,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: &head.headers,
    };
    let found = match Preflight::of(parts.method, parts.headers) {
        None => serving.routes.find(&parts),
        Some(preflight) => {
            let listener = &exchange.request.listener;
            serving
                .routes
                .find_preflight(&parts, &preflight, |route| serving.answers_preflights(route, listener))
        }
    };
    found.ok_or(Failure::NoRoute)
}

/// Answers a request without a route: a plugin that runs on every route may answer, a CORS preflight for instance.
fn answer_unrouted<'a>(
    exchange: &mut Exchange,
    serving: &'a Rc<Serving>,
    head: &request::Parts,
    plugins: &mut Option<PluginState<'a>>,
) -> Result<Reply, Failure> {
    let chains = Chains::of(exchange, serving, None).filter(|chains| chains.have(Hooks::NO_ROUTE));
    let state = plugins.insert(PluginState::new(&chains.ok_or(Failure::NoRoute)?));
    let reply = run_no_route_plugins(exchange, head, state);
    if let Some(id) = host::take_request_id(&mut state.notes) {
        exchange.request.set_request_id(id);
    }
    match reply {
        Some(reply) => Ok(Reply::of_plugin(reply, exchange.request.request_id())),
        None => Err(Failure::NoRoute),
    }
}

/// Makes a response with which the target switches protocols a switch of both sides. Refuses a switch to a protocol that was
/// not requested, and a response that reports success of a CONNECT that has not succeeded; a target that responded so is to blame.
fn check_switch(exchange: &mut Exchange, reply: Reply, connects: bool) -> Result<Reply, Failure> {
    let Reply { parts, content, origin } = reply;
    let checked = match content {
        Content::Target(body) if parts.status == StatusCode::SWITCHING_PROTOCOLS => {
            let agreed = exchange.request.switch.as_ref().is_some_and(|it| it.is_agreed(&parts.headers));
            let target = if agreed { body.into_switched() } else { None };
            target.map(|target| Content::Switched(Box::new(target)))
        }
        Content::Target(_) | Content::Whole(_) if connects && parts.status.is_success() => None,
        other => Some(other),
    };
    let checked = checked.map(|content| Reply { parts, content, origin });
    checked.ok_or_else(|| {
        exchange.attempts.set_outcome(Failure::Reset.outcome());
        Failure::Reset
    })
}
