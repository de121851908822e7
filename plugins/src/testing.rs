//! Helpers that the plugins' tests share.
#![allow(clippy::needless_pass_by_value, reason = "configurations are written in place")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, request};
use serde_json::{Value, json};
use signalbox_config::{Body, Consumer, Kind, Name, PluginCatalog as _, Resource};

use crate::{Catalog, Consumers, Context, Exchange, Flow, Plugin, PluginRequest, PluginType, Reply, States};

/// A client, its request, and what becomes of it.
pub(crate) struct Client {
    pub(crate) head: request::Parts,
    pub(crate) exchange: Exchange,
    pub(crate) consumers: Consumers,
    pub(crate) address: IpAddr,
    pub(crate) now: Duration,
    route: Name,
}

impl Client {
    pub(crate) fn new(method: &str, uri: &str) -> Self {
        let (head, ()) = http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
        Self {
            head,
            exchange: Exchange::default(),
            consumers: Consumers::default(),
            address: IpAddr::from([192, 0, 2, 1]),
            now: Duration::from_secs(1000),
            route: name("route"),
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.head.headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        self
    }

    pub(crate) fn knowing(mut self, consumers: &Consumers) -> Self {
        self.consumers = consumers.clone();
        self
    }

    pub(crate) fn at(mut self, now: Duration) -> Self {
        self.now = now;
        self
    }

    pub(crate) fn from(mut self, address: &str) -> Self {
        self.address = address.parse().unwrap();
        self
    }

    pub(crate) fn request(&mut self) -> PluginRequest<'_> {
        PluginRequest {
            head: &mut self.head,
            route: &self.route,
            client: self.address,
            certificate: None,
            now: self.now,
            consumers: &self.consumers,
            exchange: &mut self.exchange,
        }
    }

    /// Runs a plugin that does not wait; the answer, if it answers.
    pub(crate) fn meets(&mut self, plugin: &dyn Plugin) -> Option<Answer> {
        match plugin.on_request(&mut self.request()) {
            Flow::Continue => None,
            Flow::Respond(reply) => Some(Answer::of(*reply)),
            Flow::Wait(_) => panic!("it waits"),
        }
    }

    /// Runs a plugin over the request's body.
    pub(crate) fn sends(&mut self, plugin: &dyn Plugin, body: &str) -> Result<String, Box<Answer>> {
        let mut bytes = Bytes::copy_from_slice(body.as_bytes());
        if plugin.request_body_cap().is_some() && plugin.wants_request_body(&self.request()) {
            match plugin.on_request_body(&mut self.request(), &mut bytes) {
                Flow::Continue => {}
                Flow::Respond(reply) => return Err(Box::new(Answer::of(*reply))),
                Flow::Wait(_) => panic!("it waits"),
            }
        }
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// The headers of an answer with the headers `upstream`, once the plugins have added theirs.
    pub(crate) fn answer_headers(&mut self, upstream: &[(&'static str, &'static str)]) -> HeaderMap {
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
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) detail: String,
    pub(crate) headers: HeaderMap,
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

pub(crate) fn name(name: &str) -> Name {
    name.parse().unwrap()
}

/// Builds a plugin as both planes do: checked as it is written, built from its canonical JSON.
pub(crate) fn build(type_name: &str, config: Value) -> Arc<dyn Plugin> {
    build_in(&States::default(), type_name, config)
}

pub(crate) fn build_in(states: &States, type_name: &str, config: Value) -> Arc<dyn Plugin> {
    assert_eq!(Catalog.check(type_name, &config), [], "{config}");
    let context = Context { name: &name("p"), states };
    let config = serde_json::to_vec(&config).unwrap();
    PluginType::find(type_name).unwrap().build(&config, &context).unwrap()
}

/// The errors of a configuration: `field: message`, one a line.
#[track_caller]
pub(crate) fn refused(type_name: &str, config: Value) -> String {
    let errors = Catalog.check(type_name, &config);
    assert!(!errors.is_empty(), "accepted: {config}");
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// `(name, keys)` each; every consumer has a custom id and a group.
pub(crate) fn consumers(list: &[(&str, &[&str])]) -> Consumers {
    let mut consumers = Consumers::default();
    for (name, keys) in list {
        let (consumer, hashes) = consumer(name, keys);
        consumers.insert(&consumer, &hashes);
    }
    consumers
}

pub(crate) fn consumer(name: &str, keys: &[&str]) -> (Consumer, Vec<[u8; 32]>) {
    let credentials: Vec<Value> =
        keys.iter().map(|key| json!({"key_auth": {"key": key, "id": format!("{name}-{key}")}})).collect();
    let spec = json!({"name": name, "custom_id": "4711", "groups": ["staff"], "credentials": credentials});
    let resource = Resource::parse(Kind::Consumer, spec, &Catalog).unwrap();
    let Body::Consumer(consumer) = resource.body() else { panic!("not a consumer") };
    let hashes = keys.iter().map(|key| signalbox_config::sha256(key.as_bytes())).collect();
    (Consumer::clone(consumer), hashes)
}
