//! Measures what plugins cost each request: `cargo run --release -p signalbox-plugins --example cost`.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::HeaderValue;
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use signalbox_config::{Body, Kind, Resource, sha256};
use signalbox_plugin::testing::{Client, Services, build_type, consumers_of};
use signalbox_plugin::{Consumers, Exchange, Flow, Plugin, ResolvedSecret, States};
use signalbox_plugins::builtin;

const REQUESTS: usize = 5_000;
const ROUNDS: usize = 200;

fn main() {
    for count in [10, 10_000] {
        println!("{count} consumers:");
        measure_all(&consumers(count), count);
    }
    println!("tokens with 6 claims, of 1,000 users:");
    for (algorithm, keys) in [("EdDSA", ed25519_tokens()), ("HS256", hmac_tokens())] {
        let Tokens { config, consumers, values } = keys;
        for cache in [true, false] {
            let mut config = config.clone();
            config["cache"] = json!(cache);
            let what = if cache { "seen before" } else { "verified each time" };
            measure(
                &format!("jwt, {algorithm}, {what}"),
                &[plugin("jwt", &config)],
                &consumers,
                ("authorization", &values),
            );
        }
    }
}

fn measure_all(consumers: &Consumers, count: usize) {
    let key_auth = || plugin("key-auth", &json!({}));
    let rate_limit = || plugin("rate-limit", &json!({"limit": 9000, "window": "1s"}));
    let cors = || plugin("cors", &json!({"origins": ["https://a.example"]}));
    let keys: Vec<HeaderValue> =
        (0..count).map(|n| HeaderValue::try_from(key(n)).expect("plain text")).collect();
    let keys = ("apikey", &*keys);
    measure("nothing", &[], consumers, keys);
    measure("key-auth", &[key_auth()], consumers, keys);
    measure("rate-limit by address", &[rate_limit()], consumers, keys);
    measure("key-auth, rate-limit", &[key_auth(), rate_limit()], consumers, keys);
    measure("cors, key-auth, rate-limit", &[cors(), key_auth(), rate_limit()], consumers, keys);
}

/// Measures a chain with requests that have a credential each: the name of a header, and its values.
fn measure(
    what: &str,
    chain: &[Arc<dyn Plugin>],
    consumers: &Consumers,
    (header, credentials): (&'static str, &[HeaderValue]),
) {
    let mut clients: Vec<_> = (0..1000)
        .map(|n| {
            let mut client = Client::new("GET", "/some/path?a=1&b=2").knowing(consumers);
            client.head.headers.reserve(24);
            for name in ["host", "user-agent", "accept", "accept-encoding"] {
                client.head.headers.insert(name, HeaderValue::from_static("something"));
            }
            if let Some(credential) = credentials.get(n * 7919 % credentials.len()) {
                client.head.headers.insert(header, credential.clone());
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

/// Tokens, and who knows their key.
struct Tokens {
    config: Value,
    consumers: Consumers,
    values: Vec<HeaderValue>,
}

/// Tokens of a key in the configuration.
fn ed25519_tokens() -> Tokens {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed");
    // RFC 8410, section 4.
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let der = BASE64_STANDARD.encode([&prefix[..], pair.public_key().as_ref()].concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n");
    Tokens {
        config: json!({"keys": [{"algorithm": "EdDSA", "public_key": pem}], "claims_to_headers": {"x-user": "sub"}}),
        consumers: Consumers::default(),
        values: tokens("EdDSA", |message| pair.sign(message).as_ref().to_vec()),
    }
}

/// Tokens of a consumer.
fn hmac_tokens() -> Tokens {
    let secret = "a secret that is long enough for HS256";
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let credential =
        json!({"jwt": {"issuer": "https://login.example.com", "algorithm": "HS256", "secret": secret}});
    let spec = json!({"name": "c", "credentials": [credential]});
    Tokens {
        config: json!({"claims_to_headers": {"x-user": "sub"}}),
        consumers: consumers_of(&[spec]),
        values: tokens("HS256", |message| hmac::sign(&key, message).as_ref().to_vec()),
    }
}

fn tokens(algorithm: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> Vec<HeaderValue> {
    let token = |number| {
        let claims = json!({
            "iss": "https://login.example.com", "sub": format!("user-{number}"), "aud": "shop", "iat": 1_000_000_000,
            "exp": 4_000_000_000_u64, "scope": "read write profile email",
        });
        let header = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": algorithm, "typ": "JWT"}).to_string());
        let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
        HeaderValue::try_from(format!("Bearer {signed}.{signature}")).expect("plain text")
    };
    (0..1000).map(token).collect()
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
