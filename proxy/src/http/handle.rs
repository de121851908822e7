//! What becomes of a request.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request, response};
use http_body::Body;
use signalbox_config::router::{Found, Preflight, RequestParts, Slash};
use signalbox_config::{Action, Redirect};
use signalbox_plugins::{Exchange as Noted, Flow, PluginRequest, PluginResponse, Reply};

use super::body::{ClientBody, Patience, Progress, RequestBody, ResponseBody, State, joined};
use super::connection::Downstream;
use super::exchange::Exchange;
use super::forward::{self, in_time, respond};
use super::head::{self, Special};
use super::plugins::{Steps, Walk};
use super::problem::{self, Failure};
use super::rewrite;
use super::switch::{self, Switch};
use super::tunnel::Tunnel;
use crate::active::{Active, Chain, CompiledRoute, TypeSet};
use crate::overload::Refusal;
use crate::telemetry::Flag;
use crate::upstream::{AnswerBody, Switched};

/// What the client is to get.
pub(super) enum Answer {
    /// From the proxy or a plugin.
    Own(Response<Bytes>),
    /// From a target.
    Target(response::Parts, AnswerBody),
    /// A connection to a target, for a CONNECT.
    Connected(Box<Switched>),
}

/// What plugins leave for the answer. Made when there is a plugin.
#[derive(Default)]
struct Left<'a> {
    noted: Noted,
    /// Plugins that want to see an upstream's answer, in the order in which they ran.
    later: Steps<'a>,
    /// The types of those that want to see every answer, and have seen this request.
    marked: TypeSet,
}

/// Answers a request.
pub async fn handle(
    downstream: Rc<Downstream>,
    head: &mut request::Parts,
    body: ClientBody,
) -> Response<ResponseBody> {
    let mut exchange = Exchange::begin(downstream, head);
    let connects = head.method == Method::CONNECT;
    let headless = head.method == Method::HEAD;
    let bodiless = body.is_end();
    // Asked to be told to go on, a client sends nothing before.
    let small = body.size_hint().exact().is_some_and(|length| length <= SMALL)
        && !head::expects_continue(&head.headers);
    let (mut client, mut body) = (body, RequestBody::Empty);
    let serving = Rc::clone(&exchange.serving);
    let mut left = None;
    let overload = &exchange.downstream.worker.overload;
    let answer = match overload.refuses(exchange.started) {
        None => decide(&mut exchange, &serving, head, (&mut client, &mut body), &mut left).await,
        Some(refusal) => {
            if refusal == Refusal::Crowded {
                exchange.downstream.end_after_this();
            }
            exchange.is_grpc = head::is_grpc(&head.headers);
            Err(Failure::Overloaded)
        }
    };
    let answer = answer.and_then(|answer| switched(&exchange, answer, connects));
    if connects && !matches!(answer, Ok(Answer::Connected(_))) {
        // The client may go on as if it had been let through.
        exchange.downstream.distrust();
    }
    let (mut answer, flag) = match answer {
        Ok(answer) => (answer, exchange.noted),
        Err(failure) => {
            if matches!(failure, Failure::BadRequest(_) | Failure::NotImplemented(_)) {
                exchange.downstream.distrust();
            }
            let detail = failure.detail();
            let response = problem::response(failure.status(), detail, exchange.request_id());
            let flag = match exchange.noted {
                Flag::RetriesExhausted => failure.flag().exhausted(),
                _ => failure.flag(),
            };
            (Answer::Own(response), flag)
        }
    };
    let switches =
        matches!(&answer, Answer::Target(parts, _) if parts.status == StatusCode::SWITCHING_PROTOCOLS);
    let all_read = exchange.progress.as_ref().map(|progress| progress.state.get() == State::Done);
    let mut all_read = all_read.unwrap_or(bodiless);
    if !all_read && matches!(answer, Answer::Own(_)) && !exchange.downstream.http2.get() {
        all_read = small && !exchange.downstream.says_close() && read_over(client, body).await;
        if !all_read {
            // Who takes the connection for usable would lose a request.
            exchange.downstream.end_after_this();
        }
    }
    let status = match &mut answer {
        Answer::Own(response) => {
            head::prepare_response(response.headers_mut());
            if exchange.is_grpc {
                problem::to_grpc(response);
                exchange.note_grpc_status(response.headers());
            }
            mark_local_reply(&exchange, &serving, head, &mut left);
            finish(response.headers_mut(), &exchange, left.as_deref_mut());
            response.status()
        }
        Answer::Target(parts, ..) => {
            let required = switch::required(parts, exchange.downstream.http2.get());
            head::prepare_response(&mut parts.headers);
            if let Some(protocols) = required {
                switch::require(&mut parts.headers, protocols);
            }
            if parts.status == StatusCode::NO_CONTENT {
                // RFC 9110, section 8.6: clients of HTTP/2 would see an answer that is not whole.
                parts.headers.remove(header::CONTENT_LENGTH);
            }
            if switches && let Some(switch) = &exchange.switch {
                switch.tell(parts, exchange.downstream.http2.get());
            }
            if let Some(left) = left.as_deref_mut() {
                see_response(parts, &exchange, left);
            }
            if let Some(cookie) = exchange.set_cookie.take() {
                parts.headers.append(header::SET_COOKIE, *cookie);
            }
            finish(&mut parts.headers, &exchange, left.as_deref_mut());
            parts.status
        }
        Answer::Connected(_) => StatusCode::OK,
    };
    exchange.answered(status.as_u16(), flag);
    if !all_read {
        exchange.downstream.leaves_unread();
    }
    match answer {
        Answer::Own(response) => {
            let (mut parts, mut body) = response.into_parts();
            frame(&mut parts, &mut body, headless);
            Response::from_parts(parts, ResponseBody::whole(body, exchange))
        }
        Answer::Target(parts, body) if switches => {
            let body = match body.into_switched() {
                Some(target) => switch_to(target, exchange),
                None => ResponseBody::none(),
            };
            Response::from_parts(parts, body)
        }
        Answer::Connected(target) => {
            let mut headers = HeaderMap::new();
            finish(&mut headers, &exchange, left.as_deref_mut());
            let mut response = Response::new(switch_to(*target, exchange));
            *response.headers_mut() = headers;
            response
        }
        Answer::Target(parts, mut body) => {
            if !body.is_end() && (headless || has_no_body(parts.status)) {
                // Nothing is to come but the end, which over HTTP/2 may come by itself.
                Box::pin(end_of(&exchange, &mut body)).await;
            }
            Response::from_parts(parts, ResponseBody::target(body, exchange))
        }
    }
}

/// Waits for the end of a body that has nothing to say.
async fn end_of(exchange: &Exchange, body: &mut AnswerBody) {
    for _ in 0..MAX_NOTHING {
        // Whatever else comes of it, the answer has none of it.
        let part = in_time(exchange, poll_fn(|cx| body.poll(cx))).await;
        if !matches!(part, Ok(Some(Ok(_)))) {
            return;
        }
    }
}

/// A body of so many bytes is hardly ever far behind its head. Where nobody wants it, it is waited for for a moment, so that the
/// connection can go on.
const SMALL: u64 = 8 << 10;
const MOMENT: Duration = Duration::from_millis(50);

/// Frames that a target may send where there may be no body.
const MAX_NOTHING: usize = 8;

/// RFC 9110, section 6.4.1.
fn has_no_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Says how long the body of an answer is, and leaves it out where there may be none (RFC 9112, section 6.3).
fn frame(parts: &mut response::Parts, body: &mut Bytes, headless: bool) {
    let bodiless = has_no_body(parts.status);
    if !body.is_empty() && !bodiless && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    if headless || bodiless {
        body.clear();
    }
}

/// Both sides have agreed to switch to another protocol, which `target` speaks. Of HTTP/1.1 the connection is what is left for
/// it, of HTTP/2 the stream.
fn switch_to(target: Switched, mut exchange: Box<Exchange>) -> ResponseBody {
    exchange.leaves_load();
    let idle_timeout = exchange.route().and_then(|route| match &route.route().action {
        Action::Forward(forward) => forward.idle_timeout,
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    let downstream = Rc::clone(&exchange.downstream);
    let tunnel = Box::new(Tunnel::new(exchange, target, idle_timeout));
    if downstream.http2.get() {
        return ResponseBody::tunnel(tunnel);
    }
    downstream.switches(tunnel);
    ResponseBody::none()
}

/// Refuses an answer by which the target switches to another protocol than it was asked for; and, to a CONNECT, one that says
/// that it is through where it is not.
fn switched(exchange: &Exchange, answer: Answer, connects: bool) -> Result<Answer, Failure> {
    let status = match &answer {
        Answer::Target(parts, _) if parts.status == StatusCode::SWITCHING_PROTOCOLS => {
            let agreed = exchange.switch.as_ref().is_some_and(|switch| switch.is_agreed(&parts.headers));
            return if agreed { Ok(answer) } else { Err(Failure::Reset) };
        }
        Answer::Target(parts, _) => parts.status,
        Answer::Own(response) => response.status(),
        Answer::Connected(_) => return Ok(answer),
    };
    if connects && status.is_success() { Err(Failure::Reset) } else { Ok(answer) }
}

/// Reads over what nobody has taken of a request, if it comes soon; whether it did.
async fn read_over(client: ClientBody, body: RequestBody) -> bool {
    let mut unread = match body {
        RequestBody::Stream(stream) => stream.into_incoming(),
        RequestBody::Empty | RequestBody::Whole(_) | RequestBody::Replay { .. } => client,
    };
    if matches!(unread, ClientBody::None) {
        return false;
    }
    let end = async {
        loop {
            match poll_fn(|cx| unread.poll_frame(cx)).await {
                None => return true,
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
            }
        }
    };
    tokio::time::timeout(MOMENT, end).await.unwrap_or(false)
}

/// Finds the route, runs its plugins, and does what it says.
async fn decide<'a>(
    exchange: &mut Exchange,
    serving: &'a Active,
    head: &mut request::Parts,
    (client, body): (&mut ClientBody, &mut RequestBody),
    left: &mut Option<Box<Left<'a>>>,
) -> Result<Answer, Failure> {
    let special = Special::of(&head.headers);
    exchange.is_grpc = head::is_grpc_call(&head.headers, special);
    if exchange.downstream.has_left() {
        return Err(Failure::Overloaded);
    }
    let asked = switch::asked(head, special)?;
    if exchange.downstream.trusts_peer() {
        exchange.believe(&mut head.headers);
    }
    head::disbelieve(&mut head.headers, special, exchange.is_told());
    head::check(head, special)?;
    let limits = &exchange.listener.limits;
    // That of HTTP/1.1 was refused when it was read.
    if exchange.downstream.http2.get() {
        rewrite::encode(&mut head.uri)?;
        // However a client splits its cookies, they count as one field.
        head::join_cookies(&mut head.headers, special);
        if head.headers.len() > limits.header_count || head::size(head) > limits.header_size {
            return Err(Failure::HeadTooLarge);
        }
    }
    if let Some(slashes) = exchange.listener.edge.normalize_path {
        rewrite::normalize(&mut head.uri, slashes)?;
    }
    head::name_host(head, special)?;
    let found = match find(exchange, serving, head, special) {
        Err(Failure::NoRoute) => return answer_unrouted(exchange, serving, head, left),
        found => found?,
    };
    let Found { value: route, prefix_len, slash, is_preflight_only } = found;
    let forward = match &route.route().action {
        Action::Forward(forward) => Some(forward),
        Action::Redirect(_) | Action::Respond(_) => None,
    };
    exchange.switch = Switch::wanted(asked.as_ref(), head, special, forward)?;
    exchange.routed(route, head::grpc_timeout(&head.headers, special));
    // Browsers follow no redirect of a preflight.
    if let Some(slash) = slash
        && !(serving.answers_preflights(route) && Preflight::of(&head.method, &head.headers).is_some())
    {
        return redirect_slash(slash, head);
    }
    head::to_http1(head, special);
    head::prepare_request(&mut head.headers, special);
    // As the client asked for it; a plugin may change it.
    let host = head.headers.get(header::HOST).cloned();
    if client.is_end() && head::announces_body(&head.headers, special) {
        return Err(Failure::BadRequest("The request has less body than it says."));
    }
    *body = incoming(exchange, std::mem::replace(client, ClientBody::None))?;
    let chain = serving.chains.get(route.chain as usize);
    if let Some(chain) = chain.filter(|chain| !chain.steps.is_empty()) {
        exchange.has_plugins = true;
        let left = left.insert(Box::default());
        let run = run_plugins(exchange, serving, route, chain, head, body, left);
        if let Some(reply) = run.await? {
            return Ok(Answer::Own(reply_response(*reply, exchange.request_id())));
        }
    }
    if is_preflight_only {
        // The route does not take its method, and no plugin has answered it.
        return Err(Failure::NoRoute);
    }
    let identity = left.as_ref().and_then(|left| left.noted.identity.as_ref());
    let consumer = identity.map(|identity| &identity.consumer.name);
    if let Some(consumer) = consumer {
        exchange.consumer(consumer);
    }
    match &route.route().action {
        Action::Forward(forward) => {
            if let Some(switch) = &exchange.switch {
                switch.insert(&mut head.headers);
            }
            let body = std::mem::replace(body, RequestBody::Empty);
            let request = forward::Request { head, special, host: host.as_ref(), consumer, body, prefix_len };
            forward::forward(exchange, serving, route, forward, request).await
        }
        Action::Redirect(redirect) => redirect_to(exchange, redirect, head, prefix_len),
        Action::Respond(respond) => Ok(Answer::Own(self::respond(respond))),
    }
}

/// The route that takes the request.
#[inline]
fn find<'a>(
    exchange: &Exchange,
    serving: &'a Active,
    head: &request::Parts,
    special: Special,
) -> Result<Found<'a, Arc<CompiledRoute>>, Failure> {
    let host = head::host(head, special)?;
    let parts = RequestParts {
        listener: exchange.listener.name.as_str(),
        method: &head.method,
        host: &host,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: &head.headers,
    };
    let found = match Preflight::of(parts.method, parts.headers) {
        None => serving.routes.find(&parts),
        Some(preflight) => {
            serving.routes.find_preflight(&parts, &preflight, |route| serving.answers_preflights(route))
        }
    };
    found.ok_or(Failure::NoRoute)
}

/// Answers a request that no route takes: a global plugin may have an answer, which is to a CORS preflight.
fn answer_unrouted<'a>(
    exchange: &Exchange,
    serving: &'a Active,
    head: &request::Parts,
    left: &mut Option<Box<Left<'a>>>,
) -> Result<Answer, Failure> {
    match mark_local_reply(exchange, serving, head, left) {
        Some(reply) => Ok(Answer::Own(reply_response(reply, exchange.request_id()))),
        None => Err(Failure::NoRoute),
    }
}

/// Lets plugins leave headers for an answer that was made before their turn came: those of the route, or the global ones where
/// no route was found. Returns the first answer that one of them has itself.
fn mark_local_reply<'a>(
    exchange: &Exchange,
    serving: &'a Active,
    head: &request::Parts,
    left: &mut Option<Box<Left<'a>>>,
) -> Option<Reply> {
    let slot = exchange.route().map_or(0, |route| route.chain);
    let chain = serving.chains.get(slot as usize).filter(|chain| chain.wants_local_reply)?;
    let mut reply = None;
    for step in chain.steps.iter().filter(|step| step.wants_local_reply) {
        let left = left.get_or_insert_default();
        if !left.marked.meets(step.type_set) {
            left.marked = left.marked.with(step.type_set);
            let made = step.plugin.on_local_reply(head, &mut left.noted);
            reply = reply.or(made);
        }
    }
    reply
}

/// The body of a request on its way, if it has one.
#[inline]
fn incoming(exchange: &mut Exchange, body: ClientBody) -> Result<RequestBody, Failure> {
    if body.is_end() {
        return Ok(RequestBody::Empty);
    }
    let limits = &exchange.listener.limits;
    let limit = limits.body_size;
    let patience = Patience::new(&exchange.downstream.worker.deadlines, limits.body_timeout);
    let progress = Rc::<Progress>::default();
    exchange.progress = Some(Rc::clone(&progress));
    if limit.is_some_and(|limit| body.size_hint().lower() > limit) {
        return Err(Failure::BodyTooLarge);
    }
    Ok(RequestBody::stream(body, limit, patience, progress, exchange.idle.clone()))
}

/// Runs the request's side of the plugins. `Some`: one of them answers.
async fn run_plugins<'a>(
    exchange: &Exchange,
    serving: &'a Active,
    route: &CompiledRoute,
    chain: &'a Chain,
    head: &mut request::Parts,
    body: &mut RequestBody,
    left: &mut Left<'a>,
) -> Result<Option<Box<Reply>>, Failure> {
    let mut walk = Walk::new(chain);
    let mut wants_body = Steps::new();
    let mut known = false;
    // Reading the clock for every plugin would cost as much as some of them.
    let measured = fastrand::u8(..64) == 0;
    let worker = exchange.downstream.worker.index;
    let mut request = PluginRequest {
        head,
        route: &route.route().name,
        client: exchange.client().address,
        certificate: exchange.downstream.certificate.get(),
        now: exchange.started.saturating_duration_since(exchange.downstream.worker.shared.epoch),
        consumers: &serving.consumers,
        exchange: &mut left.noted,
    };
    while let Some(step) = walk.next() {
        if step.wants_local_reply {
            left.marked = left.marked.with(step.type_set);
        }
        let began = measured.then(Instant::now);
        let flow = step.plugin.on_request(&mut request);
        if let Some(began) = began {
            step.stats.durations.record(worker, began.elapsed());
        }
        if let Some(reply) = settle(exchange, flow).await? {
            return Ok(Some(reply));
        }
        if step.wants_response {
            left.later.push(step);
        }
        if step.body_cap.is_some() {
            wants_body.push(step);
        }
        if !known && let Some(identity) = &request.exchange.identity {
            known = true;
            if let Some(chain) = serving.consumer_chains.get(&identity.consumer.name) {
                walk.join(chain);
            }
        }
    }
    wants_body.retain(|step| step.plugin.wants_request_body(&request));
    let Some(cap) = wants_body.iter().filter_map(|step| step.body_cap).min() else { return Ok(None) };
    let mut whole = Box::pin(in_time(exchange, read_whole(body, cap))).await??;
    for step in wants_body {
        let flow = step.plugin.on_request_body(&mut request, &mut whole);
        if let Some(reply) = settle(exchange, flow).await? {
            return Ok(Some(reply));
        }
    }
    // Trailers went with the framing; the length is what it is now.
    request.head.headers.remove(header::TRAILER);
    let had_length = request.head.headers.remove(header::CONTENT_LENGTH).is_some();
    if !whole.is_empty() || had_length {
        request.head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(whole.len()));
    }
    *body = if whole.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(whole)) };
    Ok(None)
}

/// Waits until it is known what becomes of a request.
#[inline]
async fn settle(exchange: &Exchange, flow: Flow<'_>) -> Result<Option<Box<Reply>>, Failure> {
    match flow {
        Flow::Continue => Ok(None),
        Flow::Respond(reply) => Ok(Some(reply)),
        Flow::Wait(future) => match in_time(exchange, future).await? {
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
        let frame = frame.map_err(|error| Failure::of_body(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size > cap {
            return Err(Failure::BodyTooLarge);
        }
        parts.push(data);
    }
    Ok(joined(parts))
}

/// RFC 9110, section 15.4: only a method that stays the same under 301 for all clients gets one.
fn redirect_slash(slash: Slash, head: &request::Parts) -> Result<Answer, Failure> {
    let status = match head.method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    redirect_response(status, &rewrite::slash_location(slash, &head.uri))
}

fn redirect_to(
    exchange: &Exchange,
    redirect: &Redirect,
    head: &request::Parts,
    prefix_len: usize,
) -> Result<Answer, Failure> {
    let authority = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if authority.is_empty()
        && redirect.host.is_none()
        && (redirect.scheme.is_some() || redirect.port.is_some())
    {
        return Err(Failure::BadRequest("The request has no Host header."));
    }
    // Another's word is still there if it is trusted.
    let told = head.headers.get(&head::X_FORWARDED_PROTO);
    let https = told.map_or(exchange.downstream.https, |told| told == "https");
    let asked = rewrite::Origin { https, authority };
    redirect_response(redirect.status, &rewrite::location(redirect, asked, &head.uri, prefix_len))
}

fn redirect_response(status: StatusCode, location: &str) -> Result<Answer, Failure> {
    let location = HeaderValue::from_str(location).map_err(|_| Failure::Misconfigured)?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(Answer::Own(response))
}

fn reply_response(reply: Reply, request_id: &[u8]) -> Response<Bytes> {
    match reply {
        Reply::Response(response) => response,
        Reply::Problem { status, detail, headers } => {
            let mut response = problem::response(status, &detail, request_id);
            response.headers_mut().extend(headers);
            response
        }
    }
}

/// Shows an upstream's answer to the plugins that want to see it.
fn see_response(parts: &mut response::Parts, exchange: &Exchange, left: &mut Left<'_>) {
    let Some(route) = exchange.route() else { return };
    for step in left.later.iter().rev() {
        let mut response =
            PluginResponse { head: parts, route: &route.route().name, exchange: &mut left.noted };
        step.plugin.on_response(&mut response);
    }
}

/// What every answer has.
#[inline]
fn finish(headers: &mut HeaderMap, exchange: &Exchange, left: Option<&mut Left<'_>>) {
    if let Some(left) = left {
        left.noted.write_response_headers(headers);
    }
    if exchange.downstream.says_close()
        && !(exchange.switch.is_some() && headers.contains_key(header::UPGRADE))
    {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}
