//! A change costs what the change is: compiling it takes as much memory in a large configuration as in a small one.
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "counting what is allocated needs an allocator of one's own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use signalbox_config::{Change, Kind, Resource, RevisionId};
use signalbox_plugin::{Blobs, Clock, States};
use signalbox_plugins::builtin;
use signalbox_proxy::compile::Compiled;
use signalbox_proxy::core::clock::SystemClock;
use signalbox_proxy::resolve::Resolver;
use signalbox_proxy::secrets::HostSecrets;
use signalbox_proxy::services::{Checking, Services};
use signalbox_proxy::source::Candidate;
use signalbox_proxy::tasks;
use signalbox_proxy::telemetry::TrafficGroup;
use signalbox_proxy::telemetry::spans;

struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it is the system's allocator, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get() + layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn put(kind: Kind, spec: Value) -> Change {
    Change::Put(Arc::new(Resource::parse(kind, spec, builtin()).unwrap()))
}

fn upstream(index: usize, port: u16) -> Change {
    put(
        Kind::Upstream,
        json!({"name": format!("u{index}"), "targets": [{"address": format!("10.0.0.1:{port}")}]}),
    )
}

fn plugin(index: usize, origin: &str) -> Change {
    put(Kind::Plugin, json!({"name": format!("p{index}"), "type": "cors", "config": {"origins": [origin]}}))
}

fn route(index: usize, timeout: &str) -> Change {
    put(
        Kind::Route,
        json!({
            "name": format!("r{index}"),
            "match": {"paths": [{"prefix": format!("/api/{index}")}]},
            "plugins": [format!("p{index}")],
            "forward": {"upstreams": [{"name": format!("u{index}")}], "timeout": timeout},
        }),
    )
}

fn consumer(index: usize, group: &str) -> Change {
    let keys = json!([{"key_auth": {"key": format!("key {index}")}}]);
    put(
        Kind::Consumer,
        json!({
            "name": format!("c{index}"),
            "groups": [group],
            "plugins": [format!("p{index}")],
            "credentials": keys,
        }),
    )
}

/// The next revision, and how many bytes were allocated to compile it.
fn compile(before: &Compiled, changes: Vec<Change>, services: &Services) -> (Compiled, usize) {
    let id = RevisionId { epoch: "e".into(), number: before.snapshot.id().number + 1 };
    let candidate = Candidate { snapshot: before.snapshot.with(id, 0, changes.clone()), changes };
    let allocated = BYTES.get();
    let mut compiled = before.next(&candidate, services).unwrap();
    let allocated = BYTES.get() - allocated;
    compiled.activate(&services.checking);
    (compiled, allocated)
}

#[test]
fn the_cost_of_a_change_does_not_grow_with_the_configuration() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let services = Services {
        types: builtin().clone(),
        clock: Clock::new(SystemClock(Instant::now())),
        spawner: Arc::new(tasks::channel().0),
        states: States::default(),
        blobs: Blobs::default(),
        secrets: Box::new(HostSecrets),
        span_sinks: spans::channel().0,
        resolver: Arc::new(Resolver::new(runtime.handle().clone(), Vec::new())),
        checking: Checking::new(runtime.handle().clone()),
        zone: None,
        workers: 1,
        routes: TrafficGroup::new(1, 100),
        upstreams: TrafficGroup::new(1, 100),
    };
    let costs = [100, 2_000].map(|count| {
        let all = (0..count).flat_map(|index| {
            [
                upstream(index, 80),
                plugin(index, "https://a.example"),
                route(index, "1s"),
                consumer(index, "a"),
            ]
        });
        let (all, whole) = compile(&Compiled::empty(), all.collect(), &services);
        let changes = [
            ("upstream", upstream(50, 81)),
            ("plugin", plugin(50, "https://b.example")),
            ("route", route(50, "2s")),
            ("consumer", consumer(50, "b")),
        ];
        let costs = changes.map(|(kind, change)| (kind, compile(&all, vec![change], &services).1));
        (whole, costs)
    });
    let [(_, small), (whole, large)] = costs;
    for ((kind, small), (_, large)) in small.into_iter().zip(large) {
        // Trees that are deeper by a level or two have more nodes to copy.
        assert!(large < 4 * small, "{kind}: {small} bytes of 100, {large} of 2,000");
        assert!(large < whole / 20, "{kind}: {large} bytes, {whole} for all");
    }
}
