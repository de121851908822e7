//! Stores responses of the upstream, and answers requests by them (RFC 9111).
//!
//! Responses to `GET` are stored as their `Cache-Control`, `Expires` and `Vary` allow; `ttl` is the freshness of those that say
//! nothing of it. They answer `GET` and `HEAD`, conditional requests (with `304`) and requests for one range (with `206`). A stored
//! response passes the other plugins on its way to the client as one of the upstream does. The body goes to the client while it is
//! stored.
//!
//! ## Not stored
//!
//! - responses with `no-store` or `private`, or with `Set-Cookie`, and those whose `Vary` names `*` or a header that the proxy
//!   itself writes (`X-Forwarded-For`, `X-Request-Id`);
//! - responses to requests with `Authorization`, or of a user whom `ext-auth`, `oidc`, or a `jwt` without a consumer let in, or who
//!   presented a certificate without being a consumer, unless they say `public`, `s-maxage` or `must-revalidate`. Such requests are
//!   also answered only by responses that say so;
//! - responses with a status that is not among `statuses`, parts (`206`), responses that break off or are larger than `max_entry`;
//! - responses without an explicit freshness, `ttl`, `ETag` or `Last-Modified`.
//!
//! Requests with `Cache-Control: no-store`, with a body, and handshakes of WebSockets pass by the cache.
//!
//! ## Keys
//!
//! A response is stored for the route, the upstream and the URL: scheme, host with port, path and query as the client wrote them. Each
//! consumer's credential has responses of its own unless `per_consumer` is false. The request headers in `vary` are part of the key, and so are those by which
//! servers find out what was asked for (`X-Forwarded-Host`, `X-Original-URL` and the like), so that nobody can have an answer stored
//! for others that these changed. Up to 32 responses are kept for one key that differ by `Vary`.
//!
//! ## Validation
//!
//! A response that is no longer fresh is validated by its `ETag` and `Last-Modified`. `304` makes it fresh again, and the client gets
//! the stored response. A request with `no-cache`, `max-age` or `min-fresh` has a response validated earlier, `max-stale` later, and
//! `only-if-cached` is answered `504` if nothing stored may be used.
//!
//! For `stale_while_revalidate` after its freshness, a response still answers at once, and is validated in the background. For
//! `stale_if_error`, it takes the place of 500, 502, 503 and 504, and of errors of the proxy. Directives of the response of these
//! names have precedence. None of it applies to responses with `must-revalidate` or `proxy-revalidate`.
//!
//! Successful requests with other methods than `GET`, `HEAD`, `OPTIONS` and `TRACE` remove the stored responses of their URL, and of the
//! URLs on the same host that the response names in `Location` and `Content-Location`.
//!
//! ## Requests at the same time
//!
//! If several requests want the same missing response, one goes to the upstream and the others wait for it, at most for
//! `coalesce_wait`. They go on by themselves, all at once, as soon as it is known that the response cannot be stored, fits only
//! other requests, or fails. Each is answered only by a response that may answer it by the rules above. Where responses could not be
//! stored, no request waits for the next ten seconds.
//!
//! ## Memory
//!
//! Each proxy has its own cache for each plugin, of `max_size` bytes over all workers: bodies, headers, keys, and the responses that are
//! on their way into it, which reserve their bytes first. Where the room does not suffice, responses are evicted that were not used for
//! long. Not included are bodies that clients still read after their eviction, and up to eight responses that are being validated in the
//! background. A cache outlives revisions; it begins empty when the plugin's configuration changes in more than `vary`, `coalesce_wait`,
//! `purges`, `hide_headers` and `respect_request_cache_control`, and when the proxy starts.
//!
//! ## Purges
//!
//! `POST /api/v1/cache/purge` removes responses from the caches of all proxies, and answers when they are removed. It makes no
//! revision, and no rollout holds it up. The body selects them by `route`, `host`, `path` and `tag` (a response must meet all that are
//! given), or has `all: true`. Tags come from the response headers among `tag_headers`. A proxy stores no response afterwards that was
//! requested before, and one that was away carries the purge out when it comes back.
//!
//! ```json
//! {"host": "www.example.com", "path": "/shop/*"}
//! ```
//!
//! The configuration may have purges, too: the entries of `purges`. Such a purge is a revision with an author, reaches the proxies as
//! every revision does (after its rollout, where the policy of a fleet is progressive), and can be waited for (`?wait=10s`). Proxies
//! that run a file get theirs in this way. A proxy carries out those that it has not seen yet.
//!
//! ```json
//! {"config": {"purges": [{"id": "2026-11-30-1", "tag": "product-12"}]}}
//! ```
//!
//! Such a purge removes the responses of a `url`, of all URLs with a `prefix`, with a `tag` from a header among `tag_headers`, or `all`; those
//! of all consumers and routes. The list has up to 100 purges: leave out the oldest, and only when it is full. A proxy that knows none
//! of a full list may have missed others, and removes all responses. The `id` of a purge must be new.
//!
//! ## Headers and counts
//!
//! `Age` is the age of a stored response. `Cache-Status` (RFC 9211) says in the plugin's name what happened (`"my-cache"; hit; ttl=30`),
//! and `X-Cache-Status` says it in a word: `Hit`, `Stale`, `Revalidated`, `Miss` or `Bypass`. The outcomes `hit`, `stale`,
//! `revalidated`, `miss` and `bypass` of `signalbox_plugin_outcomes_total` count the same.
//!
//! With a `when`, requests that do not meet it neither use nor change the cache: `when: request.method == "GET"` would keep `POST`
//! from removing anything.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::header::{
    AUTHORIZATION, CONTENT_LOCATION, HOST, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LOCATION,
    RANGE,
};
use http::{HeaderMap, Method, StatusCode, Uri, request};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{
    BodyWish, Clock, Context, Definition, Flow, OnConditionError, Origin, Plugin, PluginRequest,
    PluginResponse, Reply, hooks,
};

mod answer;
mod config;
mod directives;
mod entry;
mod flight;
mod freshness;
mod key;
mod purge;
mod recording;
mod refresh;
mod status;
mod store;
mod storing;
#[cfg(test)]
mod tests;
mod validation;
mod vary;

use self::answer::answer;
pub(crate) use self::config::Config;
use self::directives::RequestDirectives;
use self::entry::Shared;
use self::flight::{Flights, Joined, Lead, Wait};
use self::freshness::{Received, Usable};
use self::key::{Key, url, url_of};
use self::recording::Recording;
use self::refresh::{Job, Refresher};
use self::status::{Facts, Handled, Reason, StatusHeaders};
use self::store::{Found, Store, Ticket};
use self::storing::{Asked, Rules};
use self::validation::{Arrived, freshen, set_conditions};

/// Stores responses of the upstream, and answers requests by them.
pub(crate) struct Cache {
    state: Arc<State>,
    rules: Arc<Rules>,
    /// The request headers that are part of the key.
    key_headers: Box<[HeaderName]>,
    per_consumer: bool,
    respects_requests: bool,
    largest: usize,
    wait: Duration,
    headers: Option<StatusHeaders>,
    clock: Clock,
}

/// The part of a cache that outlives revisions.
struct State {
    store: Arc<Store>,
    flights: Arc<Flights>,
    refresher: Refresher,
    purges: purge::Known,
}

/// A request that stored responses may answer.
struct Question {
    key: Key,
    directives: RequestDirectives,
    /// True if it has credentials that are no part of its key.
    has_credentials: bool,
    /// True if it has waited for another request.
    has_waited: bool,
}

/// The next step of a request.
enum Step {
    Answer(Box<Reply>, Handled),
    Wait(Wait),
    Forward(Forwarding),
}

/// The circumstances under which a request is forwarded.
struct Forwarding {
    reason: Reason,
    /// The stored response that does not suffice.
    stored: Option<Shared>,
    lead: Option<Lead>,
}

/// The part of an exchange in the cache, which its response ends.
enum Turn {
    /// It is the cache's own.
    Answered,
    /// Nothing.
    Passed(Reason),
    /// If it succeeds, the responses of this URL are outdated.
    Changes(String),
    /// It may be stored.
    Forwarded(Box<Pending>),
}

/// A request that was forwarded.
struct Pending {
    question: Question,
    forwarding: Forwarding,
    /// The request's headers and method as the cache got them.
    headers: HeaderMap,
    method: Method,
    /// True if it asks if the stored response is still right.
    is_validating: bool,
    ticket: Ticket,
    sent_at: Duration,
}

#[hooks]
impl Plugin for Cache {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let turn = match self.question(request) {
            Ok(question) => return self.begin(request, question),
            Err(turn) => turn,
        };
        request.count(Handled::Forwarded(Reason::Bypass).outcome());
        request.exchange.insert(turn);
        Flow::Continue
    }

    fn uses_consumer_headers(&self) -> bool {
        // `Vary` may name them. Where each consumer has responses of its own, the key tells them apart already.
        !self.per_consumer
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        match response.exchange.take::<Turn>() {
            None | Some(Turn::Answered) => {}
            Some(Turn::Passed(reason)) => self.tell(response, reason, None),
            Some(Turn::Changes(changed)) => {
                let status = response.head.status;
                if response.origin == Origin::Upstream && (status.is_success() || status.is_redirection()) {
                    self.invalidate(&changed, response);
                }
                self.tell(response, Reason::Method, None);
            }
            Some(Turn::Forwarded(pending)) => return self.settle(*pending, response),
        }
        Flow::Continue
    }

    fn response_body(&self, response: &mut PluginResponse<'_>) -> BodyWish {
        match response.exchange.take::<Recording>() {
            Some(recording) => BodyWish::Observe(Box::new(recording)),
            None => BodyWish::Pass,
        }
    }
}

impl Definition for Cache {
    const NAME: &'static str = "cache";
    const DESCRIPTION: &'static str = "Stores responses of the upstream, and answers requests by them.";
    const ORDER: i32 = 100;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    const OUTCOMES: &'static [&'static str] = &["hit", "miss", "stale", "revalidated", "bypass"];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.check(errors);
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        config.check(&mut errors);
        let rules = config.rules();
        let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
        let (capacity, largest) = (bytes(config.max_size.0), bytes(config.max_entry.0));
        let key_headers = config::names(&config.vary);
        // The stored responses depend on these: with others, other responses would be stored.
        let identity = (capacity, largest, &rules, config.per_consumer);
        let state = context.state(&identity, || {
            let store = Arc::new(Store::new(capacity));
            context.on_purge(&store);
            let (flights, purges) = (Arc::default(), purge::Known::new(&config.purges));
            State { refresher: Refresher::new(&store, context), flights, purges, store }
        });
        // The revision may yet be rejected; then some responses are fetched once more.
        for selector in state.purges.learn(&config.purges) {
            state.store.remove_selected(&selector);
        }
        errors.finish(Some(Self {
            state,
            rules: Arc::new(rules),
            key_headers,
            per_consumer: config.per_consumer,
            respects_requests: config.respect_request_cache_control,
            largest,
            wait: config.coalesce_wait.0,
            headers: (!config.hide_headers).then(|| StatusHeaders::new(context.name.as_str())),
            clock: context.clock.clone(),
        }))
    }
}

impl Cache {
    /// The question that a request asks the cache, or what else it means to it.
    fn question(&self, request: &PluginRequest<'_>) -> Result<Question, Turn> {
        let head: &request::Parts = request.head;
        match head.method {
            Method::GET | Method::HEAD => {}
            Method::OPTIONS | Method::TRACE => return Err(Turn::Passed(Reason::Method)),
            _ => return Err(Turn::Changes(url_of(request))),
        }
        let directives = match self.respects_requests {
            true => RequestDirectives::of(&head.headers),
            false => RequestDirectives::default(),
        };
        let is_handshake = head.headers.contains_key("sec-websocket-version");
        if directives.no_store || is_handshake || request.body_size != Some(0) {
            return Err(Turn::Passed(Reason::Bypass));
        }
        let has_own_responses = self.per_consumer && request.exchange.identity.is_some();
        // The proxy tells the upstream of a certificate.
        let is_known = request.exchange.identity.is_some() || request.certificate.is_some();
        Ok(Question {
            key: Key::of(request, &self.key_headers, self.per_consumer),
            directives,
            has_credentials: request.exchange.is_personal
                || is_known && !has_own_responses
                || head.headers.contains_key(AUTHORIZATION),
            has_waited: false,
        })
    }

    fn begin<'a>(&'a self, request: &'a mut PluginRequest<'_>, mut question: Question) -> Flow<'a> {
        match self.decide(request, &question) {
            Step::Wait(wait) => Flow::Wait(Box::pin(async move {
                self.wait_for(wait, &request.head.headers).await;
                question.has_waited = true;
                let step = self.decide(request, &question);
                self.take(request, question, step)
            })),
            step => self.take(request, question, step),
        }
    }

    /// Decides about a request by what is stored now.
    fn decide(&self, request: &PluginRequest<'_>, question: &Question) -> Step {
        let Question { key, directives, has_credentials, has_waited } = question;
        let (now, head) = (self.clock.monotonic(), &*request.head);
        let (reason, stored) = match self.state.store.find(key, &head.headers, *has_credentials) {
            Found::Nothing => (Reason::UriMiss, None),
            Found::Others => (Reason::VaryMiss, None),
            Found::Entry(entry) => {
                let age = entry.age(now);
                match entry.lifetimes.judge(age, directives) {
                    Usable::Fresh => return self.answer(&entry, request, question, Handled::Hit),
                    Usable::Stale => return self.answer(&entry, request, question, Handled::Stale),
                    Usable::WhileRevalidating => {
                        self.refresh(&entry, request, question, now);
                        return self.answer(&entry, request, question, Handled::Stale);
                    }
                    Usable::Validated
                        if age < entry.lifetimes.lifetime && !entry.lifetimes.needs_validation =>
                    {
                        (Reason::Request, Some(entry))
                    }
                    Usable::Validated => (Reason::Stale, Some(entry)),
                }
            }
        };
        if directives.only_if_cached {
            let detail = "nothing is stored that may answer the request";
            let reply = Box::new(Reply::problem(StatusCode::GATEWAY_TIMEOUT, detail));
            return Step::Answer(reply, Handled::Forwarded(Reason::Request));
        }
        let mut lead = None;
        let is_plain = head.method == Method::GET
            && !directives.demands_validation()
            && [RANGE, IF_NONE_MATCH, IF_MODIFIED_SINCE].iter().all(|name| !head.headers.contains_key(name));
        // The response to another kind of request may be no use to those who wait for it.
        // Where each response has to be validated, one answers no other request.
        let is_useful = stored.as_ref().is_none_or(|entry| !entry.lifetimes.is_never_fresh());
        if is_plain && is_useful && !self.wait.is_zero() {
            let flight = self.state.store.flight_key(key, &head.headers, *has_credentials);
            if !self.state.store.is_uncacheable(&flight, now) {
                match self.state.flights.join(&flight) {
                    Some(Joined::Leads(leads)) => lead = Some(leads),
                    Some(Joined::Waits(wait)) if !has_waited => return Step::Wait(wait),
                    Some(Joined::Waits(_)) | None => {}
                }
            }
        }
        Step::Forward(Forwarding { reason, stored, lead })
    }

    /// Waits until the response to another request is stored, or it is known that it does not fit this one.
    async fn wait_for(&self, mut wait: Wait, headers: &HeaderMap) {
        let mut time = pin!(self.clock.sleep(self.wait));
        loop {
            let told = match select(pin!(wait.changed()), time.as_mut()).await {
                Either::Left((told, _)) => told,
                Either::Right(_) => return,
            };
            let fits = wait.borrow_and_update().as_ref().is_none_or(|selection| selection.fits(headers));
            if told.is_err() || !fits {
                return;
            }
        }
    }

    /// Takes the step that was decided on.
    fn take(&self, request: &mut PluginRequest<'_>, question: Question, step: Step) -> Flow<'static> {
        match step {
            Step::Answer(reply, handled) => {
                request.count(handled.outcome());
                request.exchange.insert(Turn::Answered);
                Flow::Respond(reply)
            }
            Step::Forward(forwarding) => {
                self.forward(request, question, forwarding);
                Flow::Continue
            }
            // Nothing waits twice.
            Step::Wait(_) => Flow::Continue,
        }
    }

    fn forward(&self, request: &mut PluginRequest<'_>, question: Question, forwarding: Forwarding) {
        let (headers, method) = (request.head.headers.clone(), request.head.method.clone());
        let stored = forwarding.stored.as_ref();
        let is_validating = stored.is_some_and(|entry| set_conditions(&mut request.head.headers, entry));
        request.exchange.insert(Turn::Forwarded(Box::new(Pending {
            question,
            forwarding,
            headers,
            method,
            is_validating,
            ticket: self.state.store.ticket(),
            sent_at: self.clock.monotonic(),
        })));
    }

    fn answer(
        &self,
        entry: &Shared,
        request: &PluginRequest<'_>,
        question: &Question,
        handled: Handled,
    ) -> Step {
        let now = self.clock.monotonic();
        let mut response = answer(entry, &request.head.method, &request.head.headers, now);
        let has_waited = question.has_waited;
        let facts = Facts { entry: Some((entry, now)), has_waited, ..Facts::default() };
        if let Some(headers) = &self.headers {
            headers.write(response.headers_mut(), handled, &facts);
        }
        Step::Answer(Box::new(Reply::Response(response)), handled)
    }

    /// Has a response validated in the background, unless it is already.
    fn refresh(&self, entry: &Shared, request: &PluginRequest<'_>, question: &Question, now: Duration) {
        let Some(upstream) = request.upstream else { return };
        if !entry.begin_refresh(now, refresh::TIMEOUT) {
            return;
        }
        let begun = request.as_forwarded().is_some_and(|mut forwarded| {
            for name in [RANGE, IF_RANGE] {
                forwarded.headers_mut().remove(name);
            }
            if !set_conditions(forwarded.headers_mut(), entry) {
                for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE] {
                    forwarded.headers_mut().remove(name);
                }
            }
            self.state.refresher.begin(Job {
                entry: Arc::clone(entry),
                upstream: upstream.clone(),
                request: forwarded,
                headers: request.head.headers.clone(),
                has_credentials: question.has_credentials,
                rules: Arc::clone(&self.rules),
                largest: self.largest,
                ticket: self.state.store.ticket(),
            })
        });
        if !begun {
            entry.allow_refresh(now);
        }
    }

    /// Removes the responses of a URL that a request has changed, and of those that its response names.
    fn invalidate(&self, changed: &str, response: &PluginResponse<'_>) {
        self.state.store.invalidate(changed);
        let host = response.request.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let is_https = changed.starts_with("https:");
        for name in [LOCATION, CONTENT_LOCATION] {
            let named =
                response.head.headers.get(name).and_then(|value| value.to_str().ok()?.parse::<Uri>().ok());
            let Some((named, target)) = named.as_ref().and_then(|uri| Some((uri, uri.path_and_query()?)))
            else {
                continue;
            };
            let other = named.authority().map(|authority| authority.as_str());
            // The URL begins with its own host, so another host's is never among those of this one.
            let named = url(is_https, other.unwrap_or(host), target.as_str());
            if origin_of(&named) == origin_of(changed) {
                self.state.store.invalidate(&named);
            }
        }
    }

    /// Deals with the response to a request that was forwarded.
    fn settle<'a>(&'a self, pending: Pending, response: &mut PluginResponse<'_>) -> Flow<'a> {
        let Pending { question, forwarding, headers, method, is_validating, ticket, sent_at } = pending;
        let Forwarding { reason, stored, lead } = forwarding;
        let now = self.clock.monotonic();
        let status = response.head.status;
        let handled = Handled::Forwarded(reason);
        let by_stored = |entry: &Shared, handled: Handled, response: &PluginResponse<'_>| {
            let mut answer = answer(entry, &method, &headers, now);
            let status = (response.origin == Origin::Upstream).then_some(status);
            let facts = Facts { entry: Some((entry, now)), status, ..Facts::default() };
            if let Some(headers) = &self.headers {
                headers.write(answer.headers_mut(), handled, &facts);
            }
            response.count(handled.outcome());
            Flow::from(Reply::Response(answer))
        };
        let is_error = match response.origin {
            Origin::Upstream => matches!(status.as_u16(), 500 | 502 | 503 | 504),
            Origin::Proxy => status.is_server_error(),
            Origin::Plugin => false,
        };
        if is_error
            && let Some(entry) = &stored
            && entry.lifetimes.stands_in(entry.age(now), &question.directives)
        {
            return by_stored(entry, Handled::Stale, response);
        }
        if response.origin != Origin::Upstream {
            response.count(handled.outcome());
            self.tell(response, reason, None);
            return Flow::Continue;
        }
        let received = Received { delay: now.saturating_sub(sent_at), at: self.clock.wall() };
        let arrived = Arrived { received, now, ticket };
        let asked =
            Asked { key: &question.key, headers: &headers, has_credentials: question.has_credentials };
        let store = &self.state.store;
        if status == StatusCode::NOT_MODIFIED
            && is_validating
            && let Some(entry) = &stored
        {
            let fresh = freshen(store, &self.rules, asked, entry, &response.head.headers, arrived);
            return by_stored(&fresh, Handled::Revalidated, response);
        }
        response.count(handled.outcome());
        if method == Method::HEAD {
            if status == StatusCode::OK
                && let Some(entry) = &stored
            {
                if entry.matches(&response.head.headers) {
                    freshen(store, &self.rules, asked, entry, &response.head.headers, arrived);
                } else {
                    store.remove(entry);
                }
            }
            self.tell(response, reason, None);
            return Flow::Continue;
        }
        self.record(asked, arrived, Forwarding { reason, stored, lead }, response);
        Flow::Continue
    }

    /// Stores a response of the upstream while it passes, if it may be.
    fn record(
        &self,
        asked: Asked<'_>,
        Arrived { received, now, ticket }: Arrived,
        Forwarding { reason, stored, lead }: Forwarding,
        response: &mut PluginResponse<'_>,
    ) {
        let (store, status) = (&self.state.store, response.head.status);
        match self.rules.draft(asked, status, &response.head.headers, received, now) {
            Err(refusal) => {
                let tells_nothing = matches!(status, StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT);
                let is_lasting = !status.is_server_error() && !tells_nothing;
                if let Some(lead) = lead.filter(|_| is_lasting) {
                    store.note_uncacheable(lead.key(), now);
                }
                // The other errors of clients are about the request: a condition, credentials, a rate.
                let is_about_resource =
                    !status.is_client_error() || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
                if let Some(entry) = stored.filter(|_| is_lasting && is_about_resource) {
                    // It is outdated, and what came in its place is not stored.
                    store.remove(&entry);
                }
                self.tell(response, reason, Some(Err(refusal)));
            }
            Ok(draft) => {
                if let Some(lead) = &lead {
                    lead.tell(&draft.selection);
                }
                let size = if status == StatusCode::NO_CONTENT { Some(0) } else { response.size };
                let recording = Recording::begin(
                    store,
                    draft,
                    Arrived { received, now, ticket },
                    size,
                    self.largest,
                    lead,
                );
                self.tell(response, reason, Some(recording.as_ref().map(drop).ok_or("size")));
                match recording {
                    Some(mut recording) if size == Some(0) => drop(recording.complete()),
                    Some(recording) => response.exchange.insert(recording),
                    None => {}
                }
            }
        }
    }

    /// Says in the headers of a forwarded response what happened: it is stored, or why not.
    fn tell(
        &self,
        response: &mut PluginResponse<'_>,
        reason: Reason,
        stored: Option<Result<(), &'static str>>,
    ) {
        let Some(headers) = &self.headers else { return };
        let facts = Facts {
            status: (response.origin == Origin::Upstream).then_some(response.head.status),
            is_stored: stored == Some(Ok(())),
            detail: stored.and_then(Result::err),
            ..Facts::default()
        };
        headers.write(&mut response.head.headers, Handled::Forwarded(reason), &facts);
    }
}

/// The scheme, host and port of a URL.
fn origin_of(url: &str) -> &str {
    let authority = url.find("://").map_or(0, |end| end + 3);
    let end = url.get(authority..).and_then(|rest| rest.find('/')).map_or(url.len(), |end| authority + end);
    url.get(..end).unwrap_or(url)
}
