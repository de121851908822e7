//! The routine request costs no allocation in the plugins' request hooks.
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "counting allocations needs an allocator of one's own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use signalbox_config::{Body, Kind, Resource, sha256};
use signalbox_plugin::testing::{Client, Services, build_type};
use signalbox_plugin::{Consumers, Flow, Plugin, ResolvedSecret, States};
use signalbox_plugins::builtin;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it is the system's allocator, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn plugin(type_name: &str, config: Value) -> Arc<dyn Plugin> {
    build_type(builtin().find(type_name).unwrap(), &Services::default(), &States::default(), config)
}

fn consumers() -> Consumers {
    let spec =
        json!({"name": "alice", "groups": ["staff"], "credentials": [{"key_auth": {"key": "secret"}}]});
    let resource = Resource::parse(Kind::Consumer, spec, builtin()).unwrap();
    let Body::Consumer(alice) = resource.body() else { panic!("not a consumer") };
    let mut consumers = Consumers::default();
    consumers.insert(alice, &[ResolvedSecret::Key(sha256(b"secret"))]);
    consumers
}

/// Allocations of the chain's request hooks and of writing the answer's headers, by request.
fn allocations(chain: &[Arc<dyn Plugin>], uri: &str, headers: &[(&'static str, &'static str)]) -> Vec<usize> {
    let consumers = consumers();
    let request = |number: u64| {
        let mut client = Client::new("GET", uri).knowing(&consumers).at(Duration::from_millis(number));
        // As hyper hands it over: with room, for it was made for more than a few headers.
        client.head.headers.reserve(24);
        for (name, value) in headers {
            client.head.headers.append(*name, HeaderValue::from_static(value));
        }
        let mut answer = HeaderMap::with_capacity(24);
        let before = ALLOCATIONS.get();
        let mut request = client.request();
        for plugin in chain {
            assert!(matches!(plugin.on_request(&mut request), Flow::Continue));
        }
        client.exchange.write_response_headers(&mut answer);
        ALLOCATIONS.get() - before
    };
    (0..100).map(request).collect()
}

#[test]
fn key_auth_rate_limit_and_cors_allocate_nothing_for_the_routine_request() {
    for (uri, headers) in [("/?a=1&b=2", &[("apikey", "secret")][..]), ("/?a=%20&apikey=s%65cret", &[])] {
        let chain = [
            plugin("cors", json!({"origins": ["https://a.example"]})),
            plugin("key-auth", json!({})),
            plugin("rate-limit", json!({"limit": 9999, "window": "1h"})),
        ];
        let counts = allocations(&chain, uri, headers);
        // The first request of a client makes its count; the log of its times grows a few times after that.
        assert!(counts[..50].iter().sum::<usize>() > 0, "nothing was counted");
        assert_eq!(counts[50..], [0; 50], "{uri}");
    }
    let chain = [
        plugin("request-size-limit", json!({"max_body": "1MiB", "max_headers": "8KiB"})),
        plugin("fault", json!({"abort": {"status": 503, "percent": 0}})),
        plugin(
            "request-transform",
            json!({"remove": {"headers": ["x-b"]}, "set": {"headers": {"x-a": "1"}}}),
        ),
        plugin("response-transform", json!({"remove": {"headers": ["server"], "body": ["secret"]}})),
    ];
    assert_eq!(allocations(&chain, "/", &[("x-b", "1")])[1..], [0; 99]);
    // The id itself, and that it is in two places.
    let chain = [plugin("request-id", json!({}))];
    assert_eq!(allocations(&chain, "/", &[])[1..], [2; 99]);
    let chain = [plugin(
        "rate-limit",
        json!({"limit": 5000, "window": "1s", "algorithm": "token-bucket", "by": "ip"}),
    )];
    assert_eq!(allocations(&chain, "/", &[])[1..], [0; 99]);
}
