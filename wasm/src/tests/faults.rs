//! The fate of requests when a module fails.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use serde_json::json;
use signalbox_plugin::Origin;
use signalbox_plugin::testing::{Client, Services};

use super::guest::{NOTE, module, plugin, plugin_with, trace};
use crate::Wasm;

/// Traps for `/trap`, runs for ever for `/loop`, and lets other requests pass.
fn faulty() -> Bytes {
    module(
        r#"
        (data (i32.const 0) ":path")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $letter i32)
            (drop (call $get_header_map_value (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 16) (i32.const 20)))
            (local.set $letter (i32.load8_u (i32.add (i32.load (i32.const 16)) (i32.const 1))))
            (if (i32.eq (local.get $letter) (i32.const 116)) (then unreachable))
            (if (i32.eq (local.get $letter) (i32.const 108)) (then (loop $again (br $again))))
            i32.const 0)
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) i32.const 0)
        "#,
    )
}

fn status(client: &mut Client, plugin: &Wasm) -> u16 {
    client.meets(plugin).map_or(200, |answer| answer.status)
}

fn response_status(client: &mut Client, plugin: &Wasm) -> u16 {
    client.receives(plugin, Origin::Upstream, Response::new(Bytes::new())).status().as_u16()
}

#[test]
fn a_module_that_traps_fails_that_request_as_configured() {
    for (on_error, expected) in [("deny", 500), ("allow", 200)] {
        let plugin = plugin(&faulty(), json!({"on_error": on_error}));
        let mut client = Client::new("GET", "/trap").counting::<Wasm>();
        assert_eq!(status(&mut client, &plugin), expected);
        assert_eq!(client.counted("trapped"), 1);
        assert!(!plugin.pool.slot().is_running(), "the instance was thrown away");
        // The module has lost its context: no response of the upstream passes unseen, unless the module may fail.
        assert_eq!(response_status(&mut client, &plugin), expected);
        assert_eq!(status(&mut Client::new("GET", "/"), &plugin), 200);
        assert!(plugin.pool.slot().is_running());
    }
}

#[test]
fn a_module_that_runs_for_ever_is_interrupted_in_time() {
    let plugin = plugin(&faulty(), json!({"limits": {"time": "20ms"}}));
    let mut client = Client::new("GET", "/loop").counting::<Wasm>();
    let began = Instant::now();
    assert_eq!(status(&mut client, &plugin), 500);
    assert!(began.elapsed() >= Duration::from_millis(18), "{:?}", began.elapsed());
    assert_eq!((client.counted("timed_out"), client.counted("trapped")), (1, 0));
    assert_eq!(status(&mut Client::new("GET", "/"), &plugin), 200);
}

#[test]
fn requests_whose_instance_another_one_has_broken_are_treated_as_configured() {
    for (on_error, expected) in [("deny", 500), ("allow", 200)] {
        let plugin = plugin(&faulty(), json!({"on_error": on_error}));
        let mut other = Client::new("GET", "/").counting::<Wasm>();
        assert_eq!(status(&mut other, &plugin), 200);
        status(&mut Client::new("GET", "/trap"), &plugin);
        assert_eq!(response_status(&mut other, &plugin), expected);
        assert_eq!(other.counted("lost"), 1);
        // Requests that begin afterwards see nothing of it.
        let mut next = Client::new("GET", "/").counting::<Wasm>();
        assert_eq!((status(&mut next, &plugin), response_status(&mut next, &plugin)), (200, 200));
        assert_eq!(next.counted("lost"), 0);
    }
}

#[test]
fn a_module_that_always_fails_is_started_only_so_often() {
    let services = Services::default();
    let clock = services.clock.clone();
    let plugin = plugin_with(services, &faulty(), json!({})).unwrap();
    let trap = || status(&mut Client::new("GET", "/trap"), &plugin);
    for _ in 0..60 {
        assert_eq!(trap(), 500);
    }
    assert_eq!(status(&mut Client::new("GET", "/"), &plugin), 500, "it is not started any more");
    clock.advance(Duration::from_secs(1));
    assert_eq!(status(&mut Client::new("GET", "/"), &plugin), 200);
}

#[test]
fn a_module_gets_no_more_memory_than_its_limit() {
    // It answers by the number of pages that it could add, at most 100.
    let bomb = module(
        r#"
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $pages i32)
            (block $full
                (loop $more
                    (br_if $full (i32.eq (memory.grow (i32.const 1)) (i32.const -1)))
                    (local.set $pages (i32.add (local.get $pages) (i32.const 1)))
                    (br_if $more (i32.lt_u (local.get $pages) (i32.const 100)))))
            (drop (call $send_local_response (i32.add (i32.const 300) (local.get $pages))
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
            i32.const 1)
        "#,
    );
    let plugin = plugin(&bomb, json!({"limits": {"memory": "1MiB"}}));
    // 16 pages, of which it begins with two.
    assert_eq!(status(&mut Client::new("GET", "/"), &plugin), 314);
    let refused = plugin_with(Services::default(), &bomb, json!({"limits": {"memory": "64KiB"}}));
    assert!(refused.err().unwrap()[0].to_string().starts_with("module: failed when it was started"));
}

#[test]
fn deep_recursion_ends_the_module_and_not_the_proxy() {
    let deep = module(
        r#"
        (func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $deep (i32.const 0)))
        "#,
    );
    assert_eq!(status(&mut Client::new("GET", "/"), &plugin(&deep, json!({}))), 500);
}

#[test]
fn a_module_that_refuses_its_configuration_is_refused() {
    let picky = module(
        r#"
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eq (local.get 1) (i32.const 5)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 0)
        "#,
    );
    let errors = |config| {
        let built = plugin_with(Services::default(), &picky, config);
        built.err().map(|errors| errors[0].to_string())
    };
    assert_eq!(errors(json!({"config": "12345"})), None);
    let refused = "the module refused its configuration";
    assert_eq!(errors(json!({"config": "1234"})).unwrap(), format!("config: {refused}"));
    assert_eq!(errors(json!({"config": {"a": 1}})).unwrap(), format!("config: {refused}"));
    assert_eq!(errors(json!({})).unwrap(), format!("module: {refused}"));
}

#[test]
fn a_module_that_does_not_start_is_refused_with_the_time() {
    let endless = module(
        r#"
        (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (loop $again (br $again)) i32.const 1)
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 0)
        "#,
    );
    let errors = plugin_with(Services::default(), &endless, json!({})).err().unwrap();
    assert_eq!(errors[0].to_string(), "module: took longer than 5 s to start");
}

/// Notes every callback.
fn noting(done: &str) -> Bytes {
    module(&format!(
        r#"
        {NOTE}
        (func (export "_initialize") (call $note (i32.const 105)))
        (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (call $note (i32.const 118)) i32.const 1)
        (func (export "proxy_on_configure") (param i32 i32) (result i32) (call $note (i32.const 99)) i32.const 1)
        (func (export "proxy_on_context_create") (param i32 i32)
            (if (local.get 1) (then (call $note (i32.const 43))) (else (call $note (i32.const 114)))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $note (i32.const 113)) i32.const 0)
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (call $note (i32.const 112)) i32.const 0)
        (func (export "proxy_on_done") (param i32) (result i32) (call $note (i32.const 100)) {done})
        (func (export "proxy_on_log") (param i32) (call $note (i32.const 108)))
        (func (export "proxy_on_delete") (param i32) (call $note (i32.const 120)))
        "#
    ))
}

#[test]
fn a_context_is_made_and_ended_once_however_the_exchange_ends() {
    let plugin = plugin(&noting("i32.const 1"), json!({}));
    assert_eq!(trace(&plugin), "irvc");
    let mut client = Client::new("GET", "/");
    assert_eq!((status(&mut client, &plugin), response_status(&mut client, &plugin)), (200, 200));
    client.ends(&plugin, 200);
    assert_eq!(trace(&plugin), "irvc+qpdlx");
    // A client that goes away: nothing is logged, and what the exchange keeps is dropped.
    let mut client = Client::new("GET", "/");
    assert_eq!(status(&mut client, &plugin), 200);
    drop(client);
    assert_eq!(trace(&plugin), "irvc+qpdlx+qdlx");
}

#[test]
fn contexts_are_forgotten_also_by_a_module_without_callbacks_for_their_end() {
    let plugin = plugin(&faulty(), json!({}));
    let contexts = || plugin.pool.slot().run(&plugin.pool, |vm| Ok(vm.state().contexts.len())).unwrap();
    let mut client = Client::new("GET", "/");
    assert_eq!((status(&mut client, &plugin), contexts()), (200, 1));
    drop(client);
    assert_eq!(contexts(), 0);
    // So are those of responses to requests that the module did not see.
    let mut client = Client::new("GET", "/");
    client.refused(&plugin, Response::new(Bytes::new()));
    assert_eq!(contexts(), 1);
    drop(client);
    assert_eq!(contexts(), 0);
}

#[test]
fn a_context_that_is_not_done_waits_for_the_module() {
    // The second request lets the first one go.
    let body = noting("i32.const 0");
    let plugin = plugin(&body, json!({}));
    let mut client = Client::new("GET", "/");
    status(&mut client, &plugin);
    client.ends(&plugin, 200);
    assert_eq!(trace(&plugin), "irvc+qd");

    let lets_go = module(&format!(
        r#"
        {NOTE}
        (global $first (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (global.get $first)
                (then
                    (drop (call $set_effective_context (global.get $first)))
                    (if (i32.eqz (call $done)) (then (call $note (i32.const 49))))
                    (if (i32.eq (call $done) (i32.const 1)) (then (call $note (i32.const 50)))))
                (else (global.set $first (local.get 0))))
            i32.const 0)
        (func (export "proxy_on_done") (param i32) (result i32) (call $note (i32.const 100)) i32.const 0)
        (func (export "proxy_on_delete") (param i32) (call $note (i32.const 120)))
        "#
    ));
    let plugin = self::plugin(&lets_go, json!({}));
    let mut client = Client::new("GET", "/");
    status(&mut client, &plugin);
    client.ends(&plugin, 200);
    assert_eq!(trace(&plugin), "d");
    status(&mut Client::new("GET", "/"), &plugin);
    // It lets go once; the end is told after the callback. Then the second client is gone.
    assert_eq!(trace(&plugin), "d12xd");
}
