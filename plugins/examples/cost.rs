//! Measures what plugins cost each request: `cargo run --release -p signalbox-plugins --example cost`.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use serde_json::{Value, json};
use signalbox_config::{Body, Kind, Resource, sha256};
use signalbox_plugin::testing::{Client, Services, build_type};
use signalbox_plugin::{Consumers, Exchange, Flow, Plugin, ResolvedSecret, States};
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
    let keys: Vec<HeaderValue> =
        (0..count).map(|n| HeaderValue::try_from(key(n)).expect("plain text")).collect();
    let mut clients: Vec<_> = (0..1000)
        .map(|n| {
            let mut client = Client::new("GET", "/some/path?a=1&b=2").knowing(consumers);
            client.head.headers.reserve(24);
            for name in ["host", "user-agent", "accept", "accept-encoding"] {
                client.head.headers.insert(name, HeaderValue::from_static("something"));
            }
            if let Some(key) = keys.get(n * 7919 % count) {
                client.head.headers.insert("apikey", key.clone());
            }
            client
        })
        .collect();
    let mut best = Duration::MAX;
    // The best round is one that nothing disturbed.
    for round in 0..ROUNDS {
        let start = Instant::now();
        for number in 0..REQUESTS {
            let Some(client) = clients.get_mut(number % 1000) else { continue };
            client.now = Duration::from_micros((round * REQUESTS + number) as u64 * 200);
            client.exchange = Exchange::default();
            // As the proxy does where no plugin uses the headers about the consumer.
            client.exchange.defer_identity();
            let mut request = client.request();
            for plugin in chain {
                if let Flow::Respond(reply) = plugin.on_request(&mut request) {
                    panic!("{reply:?}");
                }
            }
            let exchange = &client.exchange;
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
    let plugin_type = builtin().find(type_name).expect("a type");
    build_type(plugin_type, &Services::default(), &States::default(), config.clone())
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
