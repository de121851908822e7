//! A test harness for plugins: a [`Client`] sends a request through a plugin and gets its answer, without a proxy.
//!
//! ```
//! use signalbox_plugin::{Flow, Plugin, PluginRequest, hooks, testing::Client};
//!
//! struct Stamp;
//! #[hooks]
//! impl Plugin for Stamp {
//!     fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
//!         request.head.headers.insert("x-stamp", 1.into());
//!         Flow::Continue
//!     }
//! }
//!
//! let mut client = Client::new("GET", "/");
//! assert!(client.meets(&Stamp).is_none());
//! assert_eq!(client.head.headers["x-stamp"], "1");
//! ```
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]
#![allow(clippy::needless_pass_by_value, reason = "configurations are written in place")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::{BoxFuture, LocalBoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, request};
use serde_json::{Value, json};
use signalbox_config::{
    BlobId, Body, ClientCertificate, Consumer, Kind, Name, Password, Proof, Resource, Secret, SharedSecret,
    TokenKey,
};

use crate::host::{self, RequestFields, ResponseFields, UnroutedFields};
use crate::outbound::{Caller, Forwarding};
use crate::tasks::{Spawner, Work};
use crate::{
    Abort, Blobs, BodyFilter, BodyWish, CallAnswer, CallError, CallLimits, Clock, Consumers, Context,
    Definition, Exchange, Flow, LogRecord, Logger, Origin, Outbound, Outcomes, Output, PasswordSecret,
    Plugin, PluginRequest, PluginType, Registry, Reply, ResolvedSecret, States, Tasks, TimeSource,
    TokenSecret, VerificationKey,
};

/// A client, its request, and what becomes of it.
pub struct Client {
    /// The head of the request, as the plugins leave it.
    pub head: request::Parts,
    /// The state that the plugins leave beyond it.
    pub exchange: Exchange,
    /// The consumers of the revision.
    pub consumers: Consumers,
    /// The address that the client comes from.
    pub address: IpAddr,
    /// The certificate that it presented.
    pub certificate: Option<ClientCertificate>,
    /// True if it speaks TLS.
    pub https: bool,
    /// True if it is a proxy that the listener trusts.
    pub is_peer_trusted: bool,
    /// The `X-Request-Id` that it sent, if it is not trusted.
    pub claimed_id: Option<HeaderValue>,
    /// The monotonic time of the request.
    pub now: Duration,
    /// The clock that plugins read.
    pub clock: Clock,
    /// The size of the request's body.
    pub body_size: Option<u64>,
    /// True if it asks for another protocol.
    pub asks_for_switch: bool,
    outbound: Outbound,
    outcomes: Outcomes,
    upstream: Option<Name>,
    route: Name,
    listener: Name,
}

/// The id that the proxy gives a request.
const OWN_ID: &[u8] = b"01890a5d-ac96-774b-bcce-b302099a8057";

/// A clock that stands still until it is set. Who sleeps by it wakes at once, and the clock has gone on by that.
#[derive(Debug, Clone)]
pub struct TestClock(Arc<Mutex<(Duration, SystemTime)>>);

/// The services that a plugin may be built with: a clock of its own, no tasks.
#[derive(Debug)]
pub struct Services {
    /// The time that plugins see.
    pub clock: TestClock,
    shared: Clock,
    tasks: Tasks,
    log: Logger,
    outcomes: Outcomes,
    blobs: Blobs,
}

impl TestClock {
    /// A clock that shows these times.
    pub fn new(monotonic: Duration, wall: SystemTime) -> Self {
        Self(Arc::new(Mutex::new((monotonic, wall))))
    }

    /// Lets time go on.
    pub fn advance(&self, duration: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.0 += duration;
        times.1 += duration;
    }

    /// Sets the time of day, as an administrator does.
    pub fn set_wall(&self, wall: SystemTime) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = wall;
    }
}

impl TimeSource for TestClock {
    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn wall(&self) -> SystemTime {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.advance(duration);
        Box::pin(std::future::ready(()))
    }
}

/// Runs nothing: tasks are for the running proxy.
struct NoTasks;

impl Spawner for NoTasks {
    fn spawn(&self, _: String, _: Logger, _: Duration, _: Work) -> Box<dyn Send + Sync> {
        Box::new(())
    }
}

impl Default for Services {
    fn default() -> Self {
        let clock =
            TestClock::new(Duration::from_secs(1000), SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30));
        let shared = Clock::new(clock.clone());
        let log = Logger::new(name("p"), shared.clone());
        Self {
            clock,
            tasks: Tasks::new(Arc::new(NoTasks), log.clone()),
            log,
            outcomes: Outcomes::new(&[], 1),
            blobs: Blobs::default(),
            shared,
        }
    }
}

impl Services {
    /// The same with these uploaded files.
    #[must_use]
    pub fn with_blobs(self, files: impl IntoIterator<Item = Bytes>) -> Self {
        let files: HashMap<BlobId, Bytes> =
            files.into_iter().map(|content| (BlobId::of(&content), content)).collect();
        Self { blobs: Blobs::new(Arc::new(move |id| files.get(&id).cloned())), ..self }
    }

    /// The context of a plugin of this name.
    pub fn context<'a>(&'a self, name: &'a Name, states: &'a States) -> Context<'a> {
        Context::new(name, states, &self.shared, &self.tasks, &self.log, &self.outcomes, &self.blobs)
    }

    /// The time, as plugins get it.
    pub fn shared_clock(&self) -> &Clock {
        &self.shared
    }
}

/// Answers calls by a function.
struct Script<F>(RefCell<F>);

impl<F: FnMut(&Name, Request<Bytes>) -> Result<Response<Bytes>, CallError>> Caller for Script<F> {
    fn call<'a>(
        &'a self,
        upstream: &'a Name,
        request: Request<Bytes>,
        _: CallLimits,
    ) -> LocalBoxFuture<'a, Result<CallAnswer, CallError>> {
        let answer = (self.0.borrow_mut())(upstream, request);
        Box::pin(std::future::ready(answer.map(|response| CallAnswer::new(response, HeaderMap::new()))))
    }
}

/// Forwards requests as they are.
struct AsItIs;

impl Forwarding for AsItIs {
    fn forwarded(&self, head: &request::Parts, _: &Exchange) -> Option<request::Parts> {
        Some(head.clone())
    }
}

/// Waits as the proxy does. `Some`: the plugin answers.
async fn decided(flow: Flow<'_>) -> Option<Box<Reply>> {
    let flow = match flow {
        Flow::Wait(future) => future.await,
        flow => flow,
    };
    match flow {
        Flow::Continue => None,
        Flow::Respond(reply) => Some(reply),
        Flow::Wait(_) => panic!("it waits twice"),
    }
}

impl Client {
    /// A client that sends a request without headers or body.
    pub fn new(method: &str, uri: &str) -> Self {
        let (head, ()) = Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
        Self {
            head,
            exchange: Exchange::default(),
            consumers: Consumers::default(),
            address: IpAddr::from([192, 0, 2, 1]),
            certificate: None,
            https: false,
            is_peer_trusted: false,
            claimed_id: None,
            now: Duration::from_secs(1000),
            clock: Services::default().shared,
            body_size: Some(0),
            asks_for_switch: false,
            outbound: Outbound::new(Rc::new(Script(RefCell::new(|_: &Name, _| Err(CallError::NoUpstream))))),
            outcomes: Outcomes::new(&[], 1),
            upstream: Some(name("upstream")),
            route: name("route"),
            listener: name("listener"),
        }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        self
    }

    /// With the consumers of the revision.
    #[must_use]
    pub fn knowing(mut self, consumers: &Consumers) -> Self {
        self.consumers = consumers.clone();
        self
    }

    /// With the monotonic time of the request.
    #[must_use]
    pub fn at(mut self, now: Duration) -> Self {
        self.now = now;
        self
    }

    /// With the address that the client comes from.
    #[must_use]
    pub fn from(mut self, address: &str) -> Self {
        self.address = address.parse().unwrap();
        self
    }

    /// With the clock that plugins read.
    #[must_use]
    pub fn with_clock(mut self, clock: &Clock) -> Self {
        self.clock = clock.clone();
        self
    }

    /// With the services that plugins call, by the name of the upstream.
    #[must_use]
    pub fn answering(
        mut self,
        answer: impl FnMut(&Name, Request<Bytes>) -> Result<Response<Bytes>, CallError> + 'static,
    ) -> Self {
        self.outbound = Outbound::new(Rc::new(Script(RefCell::new(answer))));
        self
    }

    /// With the outcomes of a type, so that what its plugins count can be [read](Client::counted).
    #[must_use]
    pub fn counting<D: Definition>(mut self) -> Self {
        self.outcomes = Outcomes::new(D::OUTCOMES, 1);
        self
    }

    /// How often plugins have counted this outcome.
    pub fn counted(&self, outcome: &str) -> u64 {
        self.outcomes.read().find(|(name, _)| *name == outcome).map_or(0, |(_, count)| count)
    }

    /// The request as a plugin gets it.
    pub fn request(&mut self) -> PluginRequest<'_> {
        host::request(RequestFields {
            head: &mut self.head,
            route: &self.route,
            listener: &self.listener,
            own_id: OWN_ID,
            claimed_id: self.claimed_id.as_ref(),
            is_peer_trusted: self.is_peer_trusted,
            upstream: self.upstream.as_ref(),
            client: self.address,
            https: self.https,
            certificate: self.certificate.as_ref(),
            now: self.now,
            clock: &self.clock,
            body_size: self.body_size,
            asks_for_switch: self.asks_for_switch,
            forwarding: self.upstream.as_ref().map(|_| &AsItIs as &dyn Forwarding),
            consumers: &self.consumers,
            outbound: &self.outbound,
            exchange: &mut self.exchange,
            worker: 0,
        })
    }

    /// Calls `hook` with the request, on behalf of `plugin`.
    fn on_behalf<T>(&mut self, plugin: &dyn Plugin, hook: impl FnOnce(&mut PluginRequest<'_>) -> T) -> T {
        let outcomes = self.outcomes.clone();
        let mut request = self.request();
        host::enter(&mut request, plugin, &outcomes);
        hook(&mut request)
    }

    /// Runs a plugin; the answer, if it answers.
    #[track_caller]
    pub fn meets(&mut self, plugin: &dyn Plugin) -> Option<Answer> {
        let reply = self.on_behalf(plugin, |request| block_on(decided(plugin.on_request(request))));
        reply.map(|reply| Answer::of(*reply))
    }

    /// Runs a plugin while no route takes the request; the answer, if it answers.
    pub fn finds_no_route(&mut self, plugin: &dyn Plugin) -> Option<Answer> {
        let fields = UnroutedFields {
            head: &self.head,
            own_id: OWN_ID,
            claimed_id: self.claimed_id.as_ref(),
            is_peer_trusted: self.is_peer_trusted,
            exchange: &mut self.exchange,
        };
        plugin.on_no_route(&mut host::unrouted(fields, plugin)).map(Answer::of)
    }

    /// Runs a plugin over the request's body, which comes in one part.
    #[track_caller]
    pub fn sends(&mut self, plugin: &dyn Plugin, body: &str) -> Result<String, Box<Answer>> {
        let bytes = self.sends_bytes(plugin, Bytes::copy_from_slice(body.as_bytes()))?;
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// The same for bytes.
    #[track_caller]
    pub fn sends_bytes(&mut self, plugin: &dyn Plugin, mut bytes: Bytes) -> Result<Bytes, Box<Answer>> {
        match self.on_behalf(plugin, |request| plugin.request_body(request)) {
            BodyWish::Pass | BodyWish::Observe(_) => {}
            BodyWish::Start(cap) => {
                let rest = bytes.split_off(cap.min(bytes.len()));
                let hook = |request: &mut PluginRequest<'_>| {
                    block_on(decided(plugin.on_request_body(request, &mut bytes)))
                };
                if let Some(reply) = self.on_behalf(plugin, hook) {
                    return Err(Box::new(Answer::of(*reply)));
                }
                bytes = [bytes, rest].concat().into();
            }
            BodyWish::Buffered(cap) => {
                assert!(bytes.len() <= cap, "the proxy answers 413");
                let hook = |request: &mut PluginRequest<'_>| {
                    block_on(decided(plugin.on_request_body(request, &mut bytes)))
                };
                if let Some(reply) = self.on_behalf(plugin, hook) {
                    return Err(Box::new(Answer::of(*reply)));
                }
            }
            BodyWish::Filter(mut filter) => {
                let passed = pass(&mut *filter, [bytes]);
                bytes = passed.map_err(|abort| Box::new(Answer::of(*abort.reply)))?.concat().into();
            }
        }
        Ok(bytes)
    }

    /// Runs a plugin over a response, and says what the client gets. The headers that were left in the exchange are among its
    /// headers.
    #[track_caller]
    pub fn receives(
        &mut self,
        plugin: &dyn Plugin,
        origin: Origin,
        response: Response<Bytes>,
    ) -> Response<Bytes> {
        self.responded(plugin, origin, true, response)
    }

    /// The same for an answer of the proxy that was made before the plugin's turn.
    #[track_caller]
    pub fn refused(&mut self, plugin: &dyn Plugin, response: Response<Bytes>) -> Response<Bytes> {
        self.responded(plugin, Origin::Proxy, false, response)
    }

    fn response<'r>(
        &'r mut self,
        head: &'r mut http::response::Parts,
        origin: Origin,
        size: Option<u64>,
    ) -> ResponseFields<'r> {
        ResponseFields {
            head,
            origin,
            size,
            request: &self.head,
            route: Some(&self.route),
            clock: &self.clock,
            outbound: &self.outbound,
            exchange: &mut self.exchange,
            worker: 0,
        }
    }

    #[track_caller]
    fn responded(
        &mut self,
        plugin: &dyn Plugin,
        origin: Origin,
        saw_request: bool,
        response: Response<Bytes>,
    ) -> Response<Bytes> {
        let (mut head, body) = response.into_parts();
        let outcomes = self.outcomes.clone();
        let size = Some(body.len() as u64);
        let fields = self.response(&mut head, origin, size);
        let mut response = host::response(fields, plugin, &outcomes, saw_request);
        let replaced = block_on(decided(plugin.on_response(&mut response)));
        let body = match replaced {
            Some(reply) => {
                let answer = Answer::of(*reply);
                let mut response = Response::builder().status(answer.status).body(()).unwrap();
                *response.headers_mut() = answer.headers;
                head = response.into_parts().0;
                answer.detail.into()
            }
            None if body.is_empty() => body,
            None => {
                let fields = self.response(&mut head, origin, size);
                let mut response = host::response(fields, plugin, &outcomes, saw_request);
                match plugin.response_body(&mut response) {
                    BodyWish::Pass | BodyWish::Start(_) => body,
                    BodyWish::Buffered(cap) => {
                        assert!(body.len() <= cap, "the client gets 502");
                        let mut whole = body;
                        let reply = block_on(decided(plugin.on_response_body(&mut response, &mut whole)));
                        assert!(reply.is_none(), "{reply:?}");
                        whole
                    }
                    BodyWish::Observe(mut observer) => {
                        observer.on_data(&body);
                        observer.on_end(&HeaderMap::new());
                        body
                    }
                    BodyWish::Filter(mut filter) => {
                        let passed = pass(&mut *filter, [body]).expect("it does not abort");
                        head.headers.remove(http::header::CONTENT_LENGTH);
                        passed.concat().into()
                    }
                }
            }
        };
        self.exchange.write_response_headers(&mut head.headers);
        Response::from_parts(head, body)
    }

    /// The headers of an answer with the headers `upstream`, once the plugins have added theirs.
    pub fn answer_headers(&mut self, upstream: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in upstream {
            headers.append(*name, HeaderValue::from_static(value));
        }
        self.exchange.write_response_headers(&mut headers);
        headers
    }

    /// Ends the exchange: `on_log` of the plugin is called, and what it guards is dropped.
    pub fn ends(mut self, plugin: &dyn Plugin, status: u16) {
        let kept = host::take_kept(&mut self.exchange);
        let mut record = LogRecord::new(&self.head.method, &self.head.uri);
        record.status = http::StatusCode::from_u16(status).unwrap();
        host::enter_log(&mut record, host::key_of(plugin), Some(&kept), &self.outcomes, 0);
        plugin.on_log(&record);
    }
}

/// Passes the parts of a body through a filter, with a pause after each, and returns what it puts out for each, and at the end.
pub fn pass(
    filter: &mut dyn BodyFilter,
    parts: impl IntoIterator<Item = Bytes>,
) -> Result<Vec<Vec<u8>>, Abort> {
    let mut all = Vec::new();
    let mut out = Output::default();
    for part in parts {
        filter.on_data(part, &mut out)?;
        filter.on_pause(&mut out)?;
        all.push(out.take().collect::<Vec<_>>().concat());
    }
    filter.on_end(&mut HeaderMap::new(), &mut out)?;
    all.push(out.take().collect::<Vec<_>>().concat());
    Ok(all)
}

/// A plugin's own answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The detail of a problem, or the body.
    pub detail: String,
    /// The headers.
    pub headers: HeaderMap,
}

impl Answer {
    fn of(reply: Reply) -> Self {
        match reply {
            Reply::Problem { status, detail, headers } => {
                Self { status: status.as_u16(), detail: detail.into_owned(), headers }
            }
            Reply::Response(response) => Self {
                status: response.status().as_u16(),
                detail: String::from_utf8_lossy(response.body()).into_owned(),
                headers: response.headers().clone(),
            },
        }
    }
}

/// A name from its text.
pub fn name(name: &str) -> Name {
    name.parse().unwrap()
}

/// Builds a plugin as both planes do: checked as it is written, built from its canonical JSON.
pub fn build<D: Definition>(config: Value) -> Arc<dyn Plugin> {
    build_type(&PluginType::of::<D>(), &Services::default(), &States::default(), config)
}

/// The same with services and with the state of earlier revisions, for a type that is known by its entry.
pub fn build_type(
    plugin_type: &PluginType,
    services: &Services,
    states: &States,
    config: Value,
) -> Arc<dyn Plugin> {
    assert_eq!(plugin_type.check(&config), [], "{config}");
    let name = name("p");
    plugin_type.build(config.to_string().as_bytes(), &services.context(&name, states)).unwrap()
}

/// The errors of a configuration: `field: message`, one a line.
#[track_caller]
pub fn refused(plugin_type: &PluginType, config: Value) -> String {
    let errors = plugin_type.check(&config);
    assert!(!errors.is_empty(), "accepted: {config}");
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Checks what holds for every plugin type: its description, its schema as a form, and its examples.
///
/// Every field of the form has a title and a description, and unknown fields are refused. Every example is accepted and
/// built, and so is the first one with every default written out. Those that name uploaded files, which are not there, are only checked.
#[track_caller]
pub fn check_type(plugin_type: &PluginType) {
    let name = plugin_type.name;
    assert!(name.parse::<Name>().is_ok(), "{name:?} is not the name of a type");
    assert!(plugin_type.description.ends_with('.'), "the description of {name} is not a sentence");
    assert!(plugin_type.hooks.phases().next().is_some(), "{name} has no hook");
    let schema = plugin_type.schema();
    assert!(schema.get("title").is_some(), "the configuration of {name} has no title");
    check_forms(schema.as_value(), name);
    let examples = schema.get("examples").and_then(Value::as_array).cloned().unwrap_or_default();
    let first = examples.first().unwrap_or_else(|| panic!("{name} has no example"));
    let (services, states) = (Services::default(), States::default());
    let build_example = |example: &Value| match plugin_type.blobs(example).is_empty() {
        true => drop(build_type(plugin_type, &services, &states, example.clone())),
        false => assert_eq!(plugin_type.check(example), [], "{example}"),
    };
    examples.iter().for_each(build_example);
    let mut with_defaults = first.clone();
    for (field, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let Some(default) = schema.get("default") {
            with_defaults[field] = default.clone();
        }
    }
    build_example(&with_defaults);
    let mut unknown = first.clone();
    unknown["no-such-field"] = json!(1);
    assert_eq!(refused(plugin_type, unknown), "no-such-field: unknown field");
    assert!(!plugin_type.check(&json!([])).is_empty(), "{name} takes a list for its configuration");
}

/// Every object schema has titles and descriptions for its fields, and refuses others, unless it is a map.
fn check_forms(schema: &Value, path: &str) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        assert_eq!(schema.get("additionalProperties"), Some(&json!(false)), "{path} takes unknown fields");
        for (field, property) in properties {
            for word in ["title", "description"] {
                let text = property.get(word).and_then(Value::as_str).unwrap_or_default();
                assert!(!text.is_empty() && !text.contains('\n'), "{path}.{field} has no {word}: {text:?}");
            }
        }
    }
    match schema {
        Value::Object(object) => {
            for (word, inner) in object {
                check_forms(inner, &format!("{path}.{word}"));
            }
        }
        Value::Array(items) => items.iter().for_each(|inner| check_forms(inner, path)),
        _ => {}
    }
}

/// Waits for a future that another thread completes.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    let patience = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        assert!(std::time::Instant::now() < patience, "it does not complete");
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

/// `(name, keys)` each; every consumer has a custom id and a group.
pub fn consumers(list: &[(&str, &[&str])]) -> Consumers {
    let mut consumers = Consumers::default();
    for (name, keys) in list {
        let (consumer, secrets) = consumer(name, keys);
        consumers.insert(&consumer, &secrets);
    }
    consumers
}

/// A consumer with a custom id, a group, and these API keys with their hashes.
pub fn consumer(name: &str, keys: &[&str]) -> (Consumer, Vec<ResolvedSecret>) {
    let credentials: Vec<Value> =
        keys.iter().map(|key| json!({"key_auth": {"key": key, "id": format!("{name}-{key}")}})).collect();
    consumer_of(&json!({"name": name, "custom_id": "4711", "groups": ["staff"], "credentials": credentials}))
}

/// Consumers by their specifications; none of their secrets is a reference.
pub fn consumers_of(specs: &[Value]) -> Consumers {
    let mut consumers = Consumers::default();
    for spec in specs {
        let (consumer, secrets) = consumer_of(spec);
        consumers.insert(&consumer, &secrets);
    }
    consumers
}

/// A consumer by its specification.
pub fn parse_consumer(spec: &Value) -> Consumer {
    let resource = Resource::parse(Kind::Consumer, spec.clone(), &Registry::default()).unwrap();
    let Body::Consumer(consumer) = resource.body() else { panic!("not a consumer") };
    Consumer::clone(consumer)
}

/// A consumer, with the secrets of its credentials, none of which is a reference.
pub fn consumer_of(spec: &Value) -> (Consumer, Vec<ResolvedSecret>) {
    let consumer = parse_consumer(spec);
    let text = |secret: &SharedSecret| match secret {
        SharedSecret::Text(text) => text.as_bytes().into(),
        SharedSecret::Env(_) | SharedSecret::File(_) => panic!("a reference"),
    };
    let secrets = consumer.credentials.iter().map(|credential| match &credential.proof {
        Proof::Key(Secret::Hash(hash)) => ResolvedSecret::Key(*hash),
        Proof::Password { password: Password::Hash(hash), .. } => {
            ResolvedSecret::Password(PasswordSecret::Hash(hash.clone()))
        }
        Proof::Token { key_id, algorithm, key, .. } => ResolvedSecret::Token(TokenSecret {
            key_id: key_id.clone(),
            algorithm: *algorithm,
            key: match key {
                TokenKey::Secret(secret) => VerificationKey::Secret(text(secret)),
                TokenKey::Public(key) => VerificationKey::Public(key.clone()),
            },
        }),
        Proof::Signature { secret, .. } => ResolvedSecret::Signature(text(secret)),
        Proof::Certificate(_) => ResolvedSecret::Certificate,
        Proof::Key(_) | Proof::Password { .. } => panic!("a reference"),
    });
    let secrets = secrets.collect();
    (consumer, secrets)
}
