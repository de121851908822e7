//! The cost of a module for each request. It is measured by hand, in a release build:
//! `cargo test --release -p signalbox-wasm -- --ignored --nocapture cost`.

use std::time::Instant;

use bytes::Bytes;
use http::Response;
use serde_json::json;
use signalbox_plugin::Origin;
use signalbox_plugin::testing::Client;

use super::guest::{module, plugin};
use crate::module::{Compiled, check};
use crate::runtime::Runtime;

#[test]
#[ignore = "measures"]
#[allow(clippy::print_stdout, reason = "it prints what it measures")]
fn cost_of_a_request() {
    let read = module(
        r#"
        (data (i32.const 0) "x-in")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $top (i32.const 65536))
            (drop (call $get_header_map_value (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 400) (i32.const 404)))
            i32.const 0)
        "#,
    );
    let nothing = module("");
    for (name, module) in [("reads a header", read), ("does nothing", nothing)] {
        let plugin = plugin(&module, json!({}));
        let run = |count: u32, meets: bool| {
            let began = Instant::now();
            for _ in 0..count {
                let mut client = Client::new("GET", "/").header("x-in", "hello");
                if meets {
                    assert!(client.meets(&plugin).is_none());
                }
            }
            began.elapsed() / count
        };
        run(1000, true);
        let (with, without) = (run(20_000, true), run(20_000, false));
        println!("a module that {name}: {:?} a request", with.saturating_sub(without));
    }
}

/// Measures a module given by the environment variable `MODULE`.
#[test]
#[ignore = "measures"]
#[allow(clippy::print_stdout, reason = "it prints what it measures")]
fn cost_of_a_given_module() {
    let Some(path) = std::env::var_os("MODULE") else { return };
    let content: Bytes = std::fs::read(path).unwrap().into();
    let runtime = std::sync::Arc::new(Runtime::without_ticker().unwrap());
    let began = Instant::now();
    check(&runtime, &content).unwrap();
    println!("checked in {:?}", began.elapsed());
    let began = Instant::now();
    Compiled::new(runtime, signalbox_config::BlobId::of(&content), &content).map(drop).unwrap();
    println!("compiled in {:?}", began.elapsed());
    let plugin = plugin(&content, json!({}));
    std::thread::scope(|scope| {
        // The first thread takes the instance that was made when the plugin was built.
        scope.spawn(|| Client::new("GET", "/").meets(&plugin)).join().unwrap();
        let began = Instant::now();
        scope.spawn(|| Client::new("GET", "/").meets(&plugin)).join().unwrap();
        println!("a new instance in {:?}", began.elapsed());
    });
    let count = 5000;
    let run = |responds: bool| {
        let began = Instant::now();
        for _ in 0..count {
            let mut client = Client::new("GET", "/").header("x-in", "hello");
            assert!(client.meets(&plugin).is_none());
            if responds {
                client.receives(&plugin, Origin::Upstream, Response::new(Bytes::new()));
            }
        }
        began.elapsed() / count
    };
    run(false);
    println!("{:?} for a request, {:?} with its response", run(false), run(true));
}
