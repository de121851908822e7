//! Measures what plugins cost each request: `cargo run --release -p signalbox-plugins --example cost`.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use serde_json::{Value, json};
use signalbox_config::{Body, Kind, Name, Resource, sha256};
use signalbox_plugin::{Consumers, Context, Exchange, Flow, Plugin, PluginRequest, ResolvedSecret, States};
use signalbox_plugins::builtin;

const REQUESTS: usize = 5_000;
const ROUNDS: usize = 200;

fn main() {
    for count in [10, 10_000] {
        println!("{count} consumers:");
        measure_all(&consumers(count), count);
    }
}

fn measure_all(consumers: &Consumers, count: usize) {
    let key_auth = || plugin("key-auth", &json!({}));
    let rate_limit = || plugin("rate-limit", &json!({"limit": 9000, "window": "1s"}));
    let cors = || plugin("cors", &json!({"origins": ["https://a.example"]}));
    measure("nothing", &[], consumers, count);
    measure("key-auth", &[key_auth()], consumers, count);
    measure("rate-limit by address", &[rate_limit()], consumers, count);
    measure("key-auth, rate-limit", &[key_auth(), rate_limit()], consumers, count);
    measure("cors, key-auth, rate-limit", &[cors(), key_auth(), rate_limit()], consumers, count);
}

fn measure(what: &str, chain: &[Arc<dyn Plugin>], consumers: &Consumers, count: usize) {
    let route: Name = "r".parse().expect("a name");
    let keys: Vec<HeaderValue> =
        (0..count).map(|n| HeaderValue::try_from(key(n)).expect("plain text")).collect();
    let mut heads: Vec<_> = (0..1000)
        .map(|n| {
            let (mut head, ()) =
                http::Request::get("/some/path?a=1&b=2").body(()).expect("a request").into_parts();
            head.headers.reserve(24);
            for name in ["host", "user-agent", "accept", "accept-encoding"] {
                head.headers.insert(name, HeaderValue::from_static("something"));
            }
            if let Some(key) = keys.get(n * 7919 % count) {
                head.headers.insert("apikey", key.clone());
            }
            head
        })
        .collect();
    let mut best = Duration::MAX;
    // The best round is one that nothing disturbed.
    for round in 0..ROUNDS {
        let start = Instant::now();
        for number in 0..REQUESTS {
            let Some(head) = heads.get_mut(number % 1000) else { continue };
            let mut exchange = Exchange::default();
            // As the proxy does where no plugin uses the headers about the consumer.
            exchange.defer_identity();
            let mut request = PluginRequest {
                head,
                route: &route,
                client: IpAddr::from([192, 0, 2, 1]),
                certificate: None,
                now: Duration::from_micros((round * REQUESTS + number) as u64 * 200),
                consumers,
                exchange: &mut exchange,
            };
            for plugin in chain {
                if let Flow::Respond(reply) = plugin.on_request(&mut request) {
                    panic!("{reply:?}");
                }
            }
            exchange.deferred_headers().for_each(|header| _ = black_box(header));
            exchange.response_headers().for_each(|header| _ = black_box(header));
        }
        best = best.min(start.elapsed());
    }
    println!("  {what}: {} ns", best.as_nanos() / (REQUESTS as u128));
}

fn key(number: usize) -> String {
    format!("key-of-consumer-{number:016}")
}

fn plugin(type_name: &str, config: &Value) -> Arc<dyn Plugin> {
    let (name, states): (Name, _) = ("p".parse().expect("a name"), States::default());
    let context = Context { name: &name, states: &states };
    let plugin_type = builtin().find(type_name).expect("a type");
    plugin_type.build(config.to_string().as_bytes(), &context).expect("a good configuration")
}

fn consumers(count: usize) -> Consumers {
    let mut consumers = Consumers::default();
    for number in 0..count {
        let key = key(number);
        let spec = json!({"name": format!("c{number}"), "credentials": [{"key_auth": {"key": key}}]});
        let resource = Resource::parse(Kind::Consumer, spec, builtin()).expect("a good consumer");
        if let Body::Consumer(consumer) = resource.body() {
            consumers.insert(consumer, &[ResolvedSecret::Key(sha256(key.as_bytes()))]);
        }
    }
    consumers
}
