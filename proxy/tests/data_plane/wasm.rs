//! `wasm` in the running data plane: modules of users in the way of real requests.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use serde_json::json;
use signalbox_config::BlobId;
use signalbox_plugin::Blobs;

use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, full};

/// The module does as the first letter of the path says: it traps (`t`), runs for ever (`l`), calls a service (`c`), tells of its ticks
/// (`k`), holds the head until it has seen the body (`b`), or lets the request pass. It stamps requests and responses.
fn module() -> Bytes {
    let pairs = [(":method", "GET"), (":path", "/check"), (":authority", "svc")];
    let mut encoded = vec![3, 0, 0, 0];
    for (name, value) in pairs {
        encoded.extend([name.len() as u8, 0, 0, 0, value.len() as u8, 0, 0, 0]);
    }
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        encoded.extend(text.bytes().chain([0]));
    }
    let size = encoded.len();
    let encoded: String = encoded.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let text = format!(
        r#"(module
        (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_http_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_set_effective_context" (func $become (param i32) (result i32)))
        (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
        (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
        (import "env" "proxy_get_buffer_bytes" (func $read (param i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_set_buffer_bytes" (func $write (param i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 2)
        (data (i32.const 0) ":path")
        (data (i32.const 16) "x-wasm")
        (data (i32.const 32) "yes")
        (data (i32.const 48) "svc")
        (data (i32.const 64) "x-role")
        (data (i32.const 80) "x-body")
        (data (i32.const 96) "!")
        (data (i32.const 128) "{encoded}")
        (global $top (mut i32) (i32.const 65536))
        (global $caller (mut i32) (i32.const 0))
        (global $ticks (mut i32) (i32.const 0))
        (global $kind (mut i32) (i32.const 0))
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
            global.get $top
            (global.set $top (i32.add (global.get $top) (local.get $size))))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $tick (i32.const 20)))
            i32.const 1)
        (func (export "proxy_on_tick") (param i32)
            (global.set $ticks (i32.add (global.get $ticks) (i32.const 1))))
        (func (export "proxy_on_request_headers") (param $id i32) (param i32) (param $end i32) (result i32)
            (global.set $top (i32.const 65536))
            (drop (call $get (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 400) (i32.const 404)))
            (global.set $kind (i32.load8_u (i32.add (i32.load (i32.const 400)) (i32.const 1))))
            (if (i32.eq (global.get $kind) (i32.const 116)) (then unreachable))
            (if (i32.eq (global.get $kind) (i32.const 108)) (then (loop $again (br $again))))
            (if (i32.eq (global.get $kind) (i32.const 99)) (then
                (global.set $caller (local.get $id))
                (if (call $call (i32.const 48) (i32.const 3) (i32.const 128) (i32.const {size})
                        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5000) (i32.const 420))
                    (then unreachable))
                (return (i32.const 1))))
            (if (i32.eq (global.get $kind) (i32.const 107)) (then
                (drop (call $respond (i32.add (i32.const 200) (i32.lt_u (i32.const 2) (global.get $ticks)))
                    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
                (return (i32.const 1))))
            (drop (call $set (i32.const 0) (i32.const 16) (i32.const 6) (i32.const 32) (i32.const 3)))
            (i32.and (i32.eq (global.get $kind) (i32.const 98)) (i32.eqz (local.get $end))))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (drop (call $become (global.get $caller)))
            (drop (call $get (i32.const 6) (i32.const 64) (i32.const 6) (i32.const 400) (i32.const 404)))
            (drop (call $set (i32.const 0) (i32.const 64) (i32.const 6)
                (i32.load (i32.const 400)) (i32.load (i32.const 404))))
            (drop (call $continue (i32.const 0))))
        (func (export "proxy_on_request_body") (param i32) (param $size i32) (param $end i32) (result i32)
            (if (i32.eqz (local.get $end)) (then (return (i32.const 1))))
            (if (i32.eq (global.get $kind) (i32.const 98)) (then
                (drop (call $read (i32.const 0) (i32.const 0) (local.get $size) (i32.const 400) (i32.const 404)))
                (drop (call $set (i32.const 0) (i32.const 80) (i32.const 6)
                    (i32.load (i32.const 400)) (i32.load (i32.const 404))))))
            (drop (call $write (i32.const 0) (i32.const -1) (i32.const 0) (i32.const 96) (i32.const 1)))
            i32.const 0)
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $set (i32.const 2) (i32.const 16) (i32.const 6) (i32.const 32) (i32.const 3)))
            i32.const 0)
        )"#
    );
    wat::parse_str(text).unwrap().into()
}

fn document(backend: &Backend, service: &Backend, module: BlobId) -> String {
    format!(
        "
plugins: [{{name: w, type: wasm, global: true, config: {{module: '{module}', upstreams: [svc], limits: {{time: 200ms}}}}}}]
upstreams:
- {{name: u, targets: [{{address: '{}'}}]}}
- {{name: svc, targets: [{{address: '{}'}}]}}
routes: [{{name: all, match: {{paths: [{{prefix: /}}]}}, forward: {{upstreams: [{{name: u}}]}}}}]
",
        backend.address, service.address
    )
}

fn start(backend: &Backend, service: &Backend) -> Harness {
    let module = module();
    let id = BlobId::of(&module);
    Harness::with(&document(backend, service, id), |settings| {
        settings.blobs = Blobs::new(Arc::new(move |wanted| (wanted == id).then(|| module.clone())));
    })
}

fn service() -> Backend {
    Backend::start(|request| async move {
        let role = if request.uri().path() == "/check" { "admin" } else { "none" };
        Response::builder().header("x-role", role).body(full("checked")).unwrap()
    })
}

/// The value of a header in what the backend tells.
fn told(answer: &crate::harness::Answer, name: &str) -> Option<String> {
    let told = answer.json();
    let headers = told["headers"].as_array().unwrap().iter();
    headers.clone().find(|header| header[0] == name).map(|header| header[1].as_str().unwrap().to_owned())
}

#[test]
fn a_module_stamps_requests_and_responses_on_all_workers() {
    block_on(async {
        let (backend, service) = (Backend::echo(), service());
        let harness = start(&backend, &service);
        for wire in Wire::BOTH {
            let clients = join_all((0..8).map(|_| Client::speaking(wire, harness.address()))).await;
            let answers = clients.into_iter().map(|mut client| async move {
                let mut all = Vec::new();
                for _ in 0..5 {
                    all.push(client.get("/").await);
                }
                all
            });
            for answer in join_all(answers).await.into_iter().flatten() {
                assert_eq!((answer.status, &answer.headers["x-wasm"]), (200, &"yes".parse().unwrap()));
                assert_eq!(told(&answer, "x-wasm").as_deref(), Some("yes"));
            }
        }
    });
}

#[test]
fn a_module_that_fails_fails_that_request_and_not_the_proxy() {
    block_on(async {
        let (backend, service) = (Backend::echo(), service());
        let harness = start(&backend, &service);
        let mut client = Client::connect(harness.address()).await;
        for path in ["/trap", "/loop"] {
            let began = Instant::now();
            let answer = client.get(path).await;
            assert_eq!(
                (answer.status, &answer.headers["content-type"]),
                (500, &"application/problem+json".parse().unwrap())
            );
            assert_eq!(answer.json()["detail"], "a plugin failed", "{path} after {:?}", began.elapsed());
            assert_eq!(client.get("/").await.status, 200);
        }
    });
}

#[test]
fn a_request_waits_for_the_service_that_its_module_calls() {
    block_on(async {
        let (backend, service) = (Backend::echo(), service());
        let harness = start(&backend, &service);
        let answer = harness.get("/call").await;
        assert_eq!((answer.status, told(&answer, "x-role").as_deref()), (200, Some("admin")));
    });
}

#[test]
fn a_module_changes_bodies_whose_size_is_known_and_those_that_stream() {
    block_on(async {
        let (backend, service) = (Backend::echo(), service());
        let harness = start(&backend, &service);
        let mut client = Client::connect(harness.address()).await;
        let answer = client.send(Request::post("/x").body(full("known")).unwrap()).await;
        assert_eq!(answer.json()["body"], json!("known!"));
        assert_eq!(told(&answer, "content-length").as_deref(), Some("6"));
        for (path, header) in [("/x", None), ("/body", Some("streamed"))] {
            let parts = ["str", "eam", "ed"]
                .map(|part| Ok(http_body::Frame::data(Bytes::from_static(part.as_bytes()))));
            let body: AnyBody = http_body_util::StreamBody::new(futures_util::stream::iter(parts)).boxed();
            let answer = client.send(Request::post(path).body(body).unwrap()).await;
            assert_eq!((answer.status, &answer.json()["body"]), (200, &json!("streamed!")), "{path}");
            assert_eq!(told(&answer, "x-body").as_deref(), header, "{path}");
        }
    });
}

#[test]
fn ticks_are_called_beside_requests() {
    block_on(async {
        let (backend, service) = (Backend::echo(), service());
        let harness = start(&backend, &service);
        let mut client = Client::connect(harness.address()).await;
        let began = Instant::now();
        loop {
            if client.get("/k").await.status == 201 {
                break;
            }
            assert!(began.elapsed().as_secs() < 30, "waited in vain for ticks");
        }
    });
}

#[test]
fn a_revision_without_its_module_is_refused_and_the_old_one_is_served() {
    block_on(async {
        let (backend, service) = (Backend::echo(), service());
        let mut harness = start(&backend, &service);
        let refused = harness.apply(&document(&backend, &service, BlobId::of(b"another")));
        assert_eq!(
            refused.unwrap_err()[0].to_string(),
            "plugin/w: config.module: is not there, or is damaged"
        );
        assert_eq!(harness.get("/").await.headers["x-wasm"], "yes");
    });
}
