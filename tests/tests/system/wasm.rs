//! A module of WebAssembly on its way from the admin API to the proxies.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use signalbox_tests::control_plane::send;
use signalbox_tests::{Load, get};

use crate::fixture::{Gateway, respond};

/// A module that puts `x-module: VERSION` on responses; `VERSION` is one character.
fn module(version: char) -> Vec<u8> {
    let text = format!(
        r#"(module
        (import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "x-module{version}")
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 1024)
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $set (i32.const 2) (i32.const 0) (i32.const 8) (i32.const 8) (i32.const 1)))
            i32.const 0))"#
    );
    wat::parse_str(text).unwrap()
}

async fn upload(gateway: &Gateway, content: Vec<u8>) -> Value {
    let request = gateway.control_plane.api().request(Method::POST, "/blobs").body(content);
    send(request).await.unwrap().success().unwrap().body["sha256"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_module_is_uploaded_reaches_the_proxies_and_is_swapped_under_load() {
    let mut gateway = Gateway::start(2).await;
    let api = gateway.control_plane.api().clone();
    // A file that is no module is refused at the write.
    let text = upload(&gateway, b"no module".to_vec()).await;
    let wrong = json!({"type": "wasm", "global": true, "config": {"module": text}});
    let refused = api.call(Method::PUT, "/plugins/stamp", Some(&wrong)).await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.fields()), (422, vec!["config.module"]), "{refused}");

    api.put("routes", "r", &respond("/", "x")).await.unwrap();
    let stamp = |module: &Value| json!({"type": "wasm", "global": true, "config": {"module": module}});
    let first = upload(&gateway, module('1')).await;
    let number = api.put("plugins", "stamp", &stamp(&first)).await.unwrap();
    api.wait_default(number).await.unwrap();
    let header = async |index: usize| {
        let answer = get(gateway.proxies[index].http(), "a", "/").await.unwrap();
        answer.headers.get("x-module").map(|value| value.to_str().unwrap().to_owned())
    };
    for index in 0..2 {
        assert_eq!(header(index).await.as_deref(), Some("1"));
    }

    // Every response has the stamp of one version or the other.
    let addresses: Vec<_> = gateway.proxies.iter().map(|proxy| proxy.http()).collect();
    let check = |answer: &signalbox_tests::Answer| match answer.headers.get("x-module") {
        Some(value) if value == "1" || value == "2" => Ok(()),
        other => Err(format!("the stamp is {other:?}")),
    };
    let load = Load::on(addresses).check(check).start().await.unwrap();
    load.wait_for(50).await.unwrap();
    let second = upload(&gateway, module('2')).await;
    let number = api.put("plugins", "stamp", &stamp(&second)).await.unwrap();
    api.wait_default(number).await.unwrap();
    for index in 0..2 {
        assert_eq!(header(index).await.as_deref(), Some("2"));
    }
    load.wait_for(50).await.unwrap();
    load.finish().assert_flawless(100);

    // A proxy that starts without a control plane has the module on its disk.
    gateway.control_plane.kill9();
    let proxy = &mut gateway.proxies[0];
    proxy.kill9();
    proxy.start().await.unwrap();
    let stamped = signalbox_tests::eventually(Duration::from_secs(20), async || {
        let answer = get(proxy.http(), "a", "/").await;
        answer.is_ok_and(|answer| answer.headers.get("x-module").is_some_and(|value| value == "2"))
    });
    assert!(stamped.await, "{}", proxy.log());
}
