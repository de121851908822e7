//! The cost of a lookup, of a change and of a route. It prints figures, so it is run by hand:
//! `cargo test --release -p signalbox-config --test router_speed -- --ignored --nocapture`

#![allow(clippy::print_stdout, reason = "figures are what it is for")]

mod common;

use std::fmt::Write as _;
use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use common::route;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use signalbox_config::router::RequestParts;
use signalbox_config::{Route, RouteIndex};

/// A layout of `count` routes: the fields of the route `i`, and the host and path that lead to it.
struct Layout {
    name: &'static str,
    fields: fn(usize) -> Value,
    request: fn(usize) -> (String, String),
}

const LAYOUTS: [Layout; 5] = [
    Layout {
        name: "prefixes, siblings on one host",
        fields: |i| json!({"match": {"hosts": ["api.example.com"], "paths": [{"prefix": format!("/api/v1/x{i:05}")}]}}),
        request: |i| ("api.example.com".to_owned(), format!("/api/v1/x{i:05}")),
    },
    Layout {
        name: "prefixes, 1000 hosts",
        fields: |i| {
            let host = format!("h{}.example.com", i % 1000);
            json!({"match": {"hosts": [host], "paths": [{"prefix": format!("/svc{}/r{i}", i % 7)}]}})
        },
        request: |i| (format!("h{}.example.com", i % 1000), format!("/svc{}/r{i}", i % 7)),
    },
    Layout {
        name: "exact, GET, a host each",
        fields: |i| {
            let host = format!("h{i}.example.com");
            json!({"match": {"hosts": [host], "paths": [{"exact": "/health"}], "methods": ["GET"]}})
        },
        request: |i| (format!("h{i}.example.com"), "/health".to_owned()),
    },
    Layout {
        name: "templates, siblings on one host",
        fields: |i| {
            let text = format!("/api/t{i:05}/{{id}}/items/{{item}}");
            json!({"match": {"hosts": ["*.example.com"], "paths": [{"template": text}]}})
        },
        request: |i| ("api.example.com".to_owned(), format!("/api/t{i:05}/{i}/items/7")),
    },
    Layout {
        name: "prefixes, priorities all different",
        fields: |i| json!({"priority": i, "match": {"paths": [{"prefix": format!("/a/b/c/x{i:05}")}]}}),
        request: |i| ("any.example.com".to_owned(), format!("/a/b/c/x{i:05}")),
    },
];

#[test]
#[ignore = "prints figures; needs a release build"]
fn figures() {
    println!(
        "{:<36} {:>7} {:>9} {:>10} {:>10} {:>10} {:>9}",
        "layout", "routes", "ns/find", "µs/insert", "p99 µs", "µs/remove", "B/route"
    );
    for layout in &LAYOUTS {
        for count in [100, 10_000, 100_000] {
            measure(layout, count);
        }
    }
}

fn measure(layout: &Layout, count: usize) {
    let routes: Vec<Route> = (0..count).map(|i| route(&format!("r{i}"), &(layout.fields)(i))).collect();
    let before = resident();
    let mut index = RouteIndex::new();
    for (i, route) in routes.iter().enumerate() {
        index.insert(route, i);
    }
    let bytes = resident().saturating_sub(before) / count;

    // Random routes, and tails that never repeat where a prefix allows them.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let has_tail = layout.name.starts_with("prefixes");
    // In one text, for what a connection has just read is in the cache.
    let mut text = String::new();
    let requests: Vec<(usize, Range<usize>, Range<usize>)> = (0..200_000)
        .map(|n| {
            let i = next() % count;
            let (host, path) = (layout.request)(i);
            let start = text.len();
            text.push_str(&host);
            let middle = text.len();
            text.push_str(&path);
            if has_tail {
                write!(text, "/users/{n}").expect("to a text");
            }
            (i, start..middle, middle..text.len())
        })
        .collect();
    let headers = HeaderMap::new();
    // The fastest tenth of many rounds: the others say how busy the machine was.
    let mut rounds: Vec<u128> = requests
        .chunks(5_000)
        .map(|round| {
            let start = Instant::now();
            for (i, host, path) in round {
                let (host, path) = (&text[host.clone()], &text[path.clone()]);
                let method = &Method::GET;
                let parts =
                    RequestParts { listener: "http", method, host, path, query: None, headers: &headers };
                let found = index.find(black_box(&parts)).expect("every request has a route");
                assert_eq!(*found.value, *i);
            }
            start.elapsed().as_nanos() / round.len() as u128
        })
        .collect();
    rounds.sort_unstable();
    let find = rounds[rounds.len() / 10];

    // As the data plane does it: the running index stays as it is, a clone of it is changed.
    let (mut inserts, mut removes) = (Vec::new(), Vec::new());
    for _ in 0..2_000 {
        let i = next() % count;
        let running = index.clone();
        let start = Instant::now();
        index.remove(&routes[i]);
        removes.push(start.elapsed());
        let between = index.clone();
        let start = Instant::now();
        index.insert(&routes[i], i);
        inserts.push(start.elapsed());
        drop((running, between));
    }
    inserts.sort_unstable();
    removes.sort_unstable();
    let micros =
        |at: &[std::time::Duration], share: usize| at[at.len() * share / 100].as_nanos() as f64 / 1000.0;
    println!(
        "{:<36} {count:>7} {find:>9} {:>10.1} {:>10.1} {:>10.1} {bytes:>9}",
        layout.name,
        micros(&inserts, 50),
        micros(&inserts, 99),
        micros(&removes, 50),
    );
}

/// Resident memory of this process, bytes; 0 where it cannot be told.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}
