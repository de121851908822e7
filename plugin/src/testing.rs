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

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, request};
use serde_json::{Value, json};
use signalbox_config::{
    Body, ClientCertificate, Consumer, Kind, Name, Password, Proof, Resource, Secret, SharedSecret, TokenKey,
};

use crate::{
    BodyWish, Consumers, Context, Definition, Exchange, Flow, PasswordSecret, Plugin, PluginRequest,
    PluginType, Registry, Reply, ResolvedSecret, States, TokenSecret, VerificationKey,
};

/// A client, its request, and what becomes of it.
pub struct Client {
    /// The head of the request, as the plugins leave it.
    pub head: request::Parts,
    /// What the plugins leave beyond it.
    pub exchange: Exchange,
    /// The consumers of the revision.
    pub consumers: Consumers,
    /// The address that the client comes from.
    pub address: IpAddr,
    /// The certificate that it presented.
    pub certificate: Option<ClientCertificate>,
    /// The monotonic time of the request.
    pub now: Duration,
    route: Name,
}

impl Client {
    /// A client that sends a request without headers or body.
    pub fn new(method: &str, uri: &str) -> Self {
        let (head, ()) = http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
        Self {
            head,
            exchange: Exchange::default(),
            consumers: Consumers::default(),
            address: IpAddr::from([192, 0, 2, 1]),
            certificate: None,
            now: Duration::from_secs(1000),
            route: name("route"),
        }
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        self
    }

    /// With the consumers of the revision.
    pub fn knowing(mut self, consumers: &Consumers) -> Self {
        self.consumers = consumers.clone();
        self
    }

    /// With the monotonic time of the request.
    pub fn at(mut self, now: Duration) -> Self {
        self.now = now;
        self
    }

    /// With the address that the client comes from.
    pub fn from(mut self, address: &str) -> Self {
        self.address = address.parse().unwrap();
        self
    }

    /// The request as a plugin gets it.
    pub fn request(&mut self) -> PluginRequest<'_> {
        PluginRequest {
            head: &mut self.head,
            route: &self.route,
            client: self.address,
            certificate: self.certificate.as_ref(),
            now: self.now,
            consumers: &self.consumers,
            exchange: &mut self.exchange,
        }
    }

    /// Runs a plugin that does not wait; the answer, if it answers.
    pub fn meets(&mut self, plugin: &dyn Plugin) -> Option<Answer> {
        match plugin.on_request(&mut self.request()) {
            Flow::Continue => None,
            Flow::Respond(reply) => Some(Answer::of(*reply)),
            Flow::Wait(_) => panic!("it waits"),
        }
    }

    /// Runs a plugin that may wait; the answer, if it answers.
    pub fn meets_waiting(&mut self, plugin: &dyn Plugin) -> Option<Answer> {
        let flow = match plugin.on_request(&mut self.request()) {
            Flow::Wait(future) => block_on(future),
            Flow::Continue => Flow::Continue,
            Flow::Respond(reply) => Flow::Respond(reply),
        };
        match flow {
            Flow::Continue => None,
            Flow::Respond(reply) => Some(Answer::of(*reply)),
            Flow::Wait(_) => panic!("it waits twice"),
        }
    }

    /// Runs a plugin over the request's body.
    pub fn sends(&mut self, plugin: &dyn Plugin, body: &str) -> Result<String, Box<Answer>> {
        let mut bytes = Bytes::copy_from_slice(body.as_bytes());
        if let BodyWish::Buffered(cap) = plugin.request_body(&self.request()) {
            assert!(bytes.len() <= cap, "the proxy answers 413");
            match plugin.on_request_body(&mut self.request(), &mut bytes) {
                Flow::Continue => {}
                Flow::Respond(reply) => return Err(Box::new(Answer::of(*reply))),
                Flow::Wait(_) => panic!("it waits"),
            }
        }
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
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
    build_type(&PluginType::of::<D>(), &States::default(), config)
}

/// The same with the state of earlier revisions, for a type that is known by its entry.
pub fn build_type(plugin_type: &PluginType, states: &States, config: Value) -> Arc<dyn Plugin> {
    assert_eq!(plugin_type.check(&config), [], "{config}");
    let context = Context { name: &name("p"), states };
    plugin_type.build(config.to_string().as_bytes(), &context).unwrap()
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
/// built, and so is the first one with every default written out.
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
    let states = States::default();
    for example in &examples {
        build_type(plugin_type, &states, example.clone());
    }
    let mut with_defaults = first.clone();
    for (field, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let Some(default) = schema.get("default") {
            with_defaults[field] = default.clone();
        }
    }
    build_type(plugin_type, &states, with_defaults);
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
