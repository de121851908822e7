//! Modules that read and change messages.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response};
use serde_json::json;
use signalbox_config::{BlobId, Name};
use signalbox_plugin::testing::{Client, Services, name};
use signalbox_plugin::{
    BodyWish, CallError, Definition as _, Flow, Hooks, Origin, Output, Plugin as _, States, host,
};

use super::guest::{NOTE, module, plugin, trace};
use crate::Wasm;

/// A function `$get` that answers with the value of a property whose path is at 0, with this length.
fn answering_with_property(path: &str) -> Bytes {
    let length = path.len();
    let path = path.replace('.', "\\00");
    module(&format!(
        r#"
        (data (i32.const 0) "{path}")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $status i32)
            (local.set $status
                (call $get_property (i32.const 0) (i32.const {length}) (i32.const 400) (i32.const 404)))
            (drop (call $send_local_response (i32.add (i32.const 200) (local.get $status))
                (i32.const 0) (i32.const 0) (i32.load (i32.const 400)) (i32.load (i32.const 404))
                (i32.const 0) (i32.const 0) (i32.const -1)))
            i32.const 1)
        "#
    ))
}

#[test]
fn properties_are_those_of_the_request() {
    for (path, expected) in [
        ("plugin_name", Some("p")),
        ("request.path", Some("/a?b=c")),
        ("request.url_path", Some("/a")),
        ("request.query", Some("b=c")),
        ("request.method", Some("PUT")),
        ("request.host", Some("example.com")),
        ("request.scheme", Some("http")),
        ("request.protocol", Some("HTTP/1.1")),
        ("request.id", Some("01890a5d-ac96-774b-bcce-b302099a8057")),
        ("request.headers.x-in", Some("hello")),
        ("request.headers.absent", None),
        ("request.size", Some("\0\0\0\0\0\0\0\0")),
        ("source.address", Some("192.0.2.1")),
        ("connection.mtls", Some("\0")),
        ("route_name", Some("route")),
        ("listener_name", Some("listener")),
        ("cluster_name", Some("upstream")),
        ("consumer.name", None),
        ("response.code", None),
        ("", None),
    ] {
        let plugin = plugin(&answering_with_property(path), json!({}));
        let client = Client::new("PUT", "/a?b=c").header("host", "example.com").header("x-in", "hello");
        let mut client = client;
        let answer = client.meets(&plugin).unwrap();
        let found = (answer.status == 200).then_some(answer.detail.as_str());
        assert_eq!(found, expected, "{path}");
    }
}

/// Sets `x-out` to the value of `x-in`, in requests and in responses.
fn copying() -> Bytes {
    module(
        r#"
        (data (i32.const 0) "x-in")
        (data (i32.const 8) "x-out")
        (func $copy (param $map i32)
            (if (i32.eqz (call $get_header_map_value
                    (local.get $map) (i32.const 0) (i32.const 4) (i32.const 400) (i32.const 404)))
                (then (drop (call $replace_header_map_value
                    (local.get $map) (i32.const 8) (i32.const 5)
                    (i32.load (i32.const 400)) (i32.load (i32.const 404)))))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $copy (i32.const 0)) i32.const 0)
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (call $copy (i32.const 2)) i32.const 0)
        "#,
    )
}

#[test]
fn headers_of_requests_and_responses_are_changed() {
    let plugin = plugin(&copying(), json!({}));
    let mut client = Client::new("GET", "/").header("x-in", "hello");
    assert!(client.meets(&plugin).is_none());
    assert_eq!(client.head.headers["x-out"], "hello");
    let response = Response::builder().header("x-in", "back").body(Bytes::new()).unwrap();
    let response = client.receives(&plugin, Origin::Upstream, response);
    assert_eq!(response.headers()["x-out"], "back");
    // So is a response of the proxy for a request that the module did not see.
    let response = Response::builder().header("x-in", "own").body(Bytes::new()).unwrap();
    assert_eq!(Client::new("GET", "/").refused(&plugin, response).headers()["x-out"], "own");
}

#[test]
fn a_request_whose_headers_the_module_changes_has_a_personal_response() {
    let plugin = plugin(&copying(), json!({}));
    for (header, is_personal) in [("x-in", true), ("x-other", false)] {
        let mut client = Client::new("GET", "/").header(header, "hello");
        assert!(client.meets(&plugin).is_none());
        assert_eq!(client.exchange.is_personal, is_personal);
    }
}

#[test]
fn only_the_hooks_are_called_for_which_the_module_has_callbacks() {
    let hooks = plugin(&copying(), json!({})).hooks();
    assert_eq!(hooks, Hooks::REQUEST.with(Hooks::RESPONSE));
}

/// Calls the service `svc` for each request, and goes on when it has answered: the status becomes the header `x-status`, and the
/// body is appended to `x-body`. A failed call answers 503.
fn calling(pause: u32) -> Bytes {
    // :method GET, :path /check, :authority svc
    let pairs: [(&str, &str); 3] = [(":method", "GET"), (":path", "/check"), (":authority", "svc")];
    let encoded = crate::pairs::encode(pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    let escaped: String = encoded.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let size = encoded.len();
    module(&format!(
        r#"
        {NOTE}
        (data (i32.const 0) "svc")
        (data (i32.const 16) "{escaped}")
        (data (i32.const 200) "x-status")
        (data (i32.const 216) ":status")
        (data (i32.const 232) "x-body")
        (global $caller (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $caller (local.get 0))
            (if (call $http_call (i32.const 0) (i32.const 3) (i32.const 16) (i32.const {size}) (i32.const 0) (i32.const 0)
                    (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 300))
                (then unreachable))
            i32.const {pause})
        (func (export "proxy_on_http_call_response") (param $root i32) (param $call i32) (param $headers i32) (param i32 i32)
            (call $note (i32.add (i32.const 48) (local.get $root)))
            (drop (call $set_effective_context (global.get $caller)))
            (if (i32.eqz (local.get $headers))
                (then
                    (drop (call $send_local_response (i32.const 503) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                        (i32.const 0) (i32.const 0) (i32.const -1)))
                    return))
            (drop (call $get_header_map_value
                (i32.const 6) (i32.const 216) (i32.const 7) (i32.const 400) (i32.const 404)))
            (drop (call $replace_header_map_value (i32.const 0) (i32.const 200) (i32.const 8)
                (i32.load (i32.const 400)) (i32.load (i32.const 404))))
            (drop (call $get_buffer_bytes
                (i32.const 4) (i32.const 0) (i32.const 100) (i32.const 400) (i32.const 404)))
            (drop (call $replace_header_map_value (i32.const 0) (i32.const 232) (i32.const 6)
                (i32.load (i32.const 400)) (i32.load (i32.const 404))))
            (drop (call $continue_stream (i32.const 0))))
        "#
    ))
}

#[test]
fn a_request_waits_for_the_call_of_its_module() {
    let plugin = plugin(&calling(1), json!({"upstreams": ["svc"]}));
    let seen = Rc::new(RefCell::new(Vec::new()));
    let calls = Rc::clone(&seen);
    let mut client = Client::new("GET", "/").answering(move |upstream, request| {
        calls.borrow_mut().push(format!(
            "{upstream} {} {}",
            request.uri(),
            request.headers()["host"].to_str().unwrap()
        ));
        Ok(Response::builder().status(207).body(Bytes::from_static(b"yes")).unwrap())
    });
    assert!(client.meets(&plugin).is_none());
    assert_eq!(*seen.borrow(), ["svc /check svc"]);
    assert_eq!(
        (&client.head.headers["x-status"], &client.head.headers["x-body"]),
        (&"207".parse().unwrap(), &"yes".parse().unwrap())
    );
    assert_eq!(trace(&plugin), "1", "the callback gets the context of the plugin");
}

#[test]
fn a_call_that_fails_is_told_without_headers() {
    let plugin = plugin(&calling(1), json!({"upstreams": ["svc"]}));
    let mut client = Client::new("GET", "/").answering(|_, _| Err(CallError::Timeout));
    assert_eq!(client.meets(&plugin).unwrap().status, 503);
}

#[test]
fn a_module_calls_only_the_upstreams_that_are_named() {
    let plugin = plugin(&calling(1), json!({"upstreams": ["other"]}));
    assert_eq!(Client::new("GET", "/").meets(&plugin).unwrap().status, 500);
}

#[test]
fn a_request_that_is_held_for_ever_fails() {
    let holding =
        module(r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 1)"#);
    let mut client = Client::new("GET", "/").counting::<Wasm>();
    assert_eq!(client.meets(&plugin(&holding, json!({}))).unwrap().status, 500);
    assert_eq!(client.counted("timed_out"), 1);
    let allowing = plugin(&holding, json!({"on_error": "allow"}));
    assert!(Client::new("GET", "/").meets(&allowing).is_none());
}

#[test]
fn the_calls_of_a_request_are_cancelled_with_it() {
    let plugin = plugin(&calling(1), json!({"upstreams": ["svc"]}));
    let mut client = Client::new("GET", "/").answering(|_, _| Ok(Response::new(Bytes::new())));
    let outcomes = signalbox_plugin::Outcomes::new(&[], 1);
    let mut request = client.request();
    host::enter(&mut request, &plugin, &outcomes);
    let Flow::Wait(waiting) = plugin.on_request(&mut request) else { panic!("it does not wait") };
    drop(waiting);
    drop(client);
    assert_eq!(trace(&plugin), "", "no answer is told");
}

/// Notes size and end of every part; it puts `<` before and `>` behind what it gets. It holds parts back until the end if `hold`.
fn wrapping(hold: bool) -> Bytes {
    let action = if hold { "(i32.eqz (local.get $end))" } else { "(i32.const 0)" };
    let condition = if hold { "(local.get $end)" } else { "(i32.const 1)" };
    module(&format!(
        r#"
        {NOTE}
        (data (i32.const 0) "<>")
        (func $part (param $buffer i32) (param $size i32) (param $end i32) (result i32)
            (call $note (i32.add (i32.const 48) (local.get $size)))
            (if (local.get $end) (then (call $note (i32.const 46))))
            (if {condition} (then
                (drop (call $set_buffer_bytes (local.get $buffer) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1)))
                (drop (call $set_buffer_bytes
                    (local.get $buffer) (i32.const -1) (i32.const 0) (i32.const 1) (i32.const 1)))))
            {action})
        (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            (call $part (i32.const 0) (local.get 1) (local.get 2)))
        (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
            (call $part (i32.const 1) (local.get 1) (local.get 2)))
        "#
    ))
}

#[test]
fn a_body_of_known_size_is_seen_whole() {
    let plugin = plugin(&wrapping(false), json!({}));
    let mut client = Client::new("POST", "/");
    client.body_size = Some(3);
    assert!(client.meets(&plugin).is_none());
    assert_eq!(client.sends(&plugin, "abc").unwrap(), "<abc>");
    let response = client.receives(&plugin, Origin::Upstream, Response::new("hello".into()));
    assert_eq!(response.body(), "<hello>");
    assert_eq!(trace(&plugin), "3.5.");
}

/// The filter of a plugin for a request whose size is not known.
fn filtered(plugin: &Wasm, parts: &[&'static str]) -> Result<Vec<String>, u16> {
    let mut client = Client::new("POST", "/");
    client.body_size = None;
    assert!(client.meets(plugin).is_none());
    let outcomes = signalbox_plugin::Outcomes::new(&[], 1);
    let mut request = client.request();
    host::enter(&mut request, plugin, &outcomes);
    let BodyWish::Filter(mut filter) = plugin.request_body(&mut request) else { panic!("no filter") };
    let mut all = Vec::new();
    let mut out = Output::default();
    for part in parts {
        let passed = filter.on_data(Bytes::from_static(part.as_bytes()), &mut out);
        passed.map_err(|abort| abort.reply.status().as_u16())?;
        all.push(String::from_utf8(out.take().collect::<Vec<_>>().concat()).unwrap());
    }
    let ended = filter.on_end(&mut HeaderMap::new(), &mut out);
    ended.map_err(|abort| abort.reply.status().as_u16())?;
    all.push(String::from_utf8(out.take().collect::<Vec<_>>().concat()).unwrap());
    Ok(all)
}

#[test]
fn a_body_of_unknown_size_passes_part_by_part() {
    let plugin = plugin(&wrapping(false), json!({}));
    assert_eq!(filtered(&plugin, &["ab", "c"]).unwrap(), ["<ab>", "<c>", "<>"]);
    assert_eq!(trace(&plugin), "210.");
}

#[test]
fn calls_of_grpc_pass_part_by_part_so_that_their_trailers_do() {
    let plugin = plugin(&wrapping(false), json!({}));
    let mut client = Client::new("POST", "/").header("content-type", "application/grpc");
    client.body_size = Some(3);
    assert!(client.meets(&plugin).is_none());
    assert_eq!(client.sends(&plugin, "abc").unwrap(), "<abc><>");
}

#[test]
fn a_response_without_a_body_is_at_its_end() {
    // It answers 500 + end.
    let ends = module(
        r#"
        (data (i32.const 0) ":status")
        (data (i32.const 16) "500501")
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $replace_header_map_value (i32.const 2) (i32.const 0) (i32.const 7)
                (i32.add (i32.const 16) (i32.mul (i32.const 3) (local.get 2))) (i32.const 3)))
            i32.const 0)
        "#,
    );
    let plugin = plugin(&ends, json!({}));
    for (method, status, body, expected) in
        [("GET", 200, "a", 500), ("GET", 200, "", 501), ("HEAD", 200, "a", 501), ("GET", 304, "a", 501)]
    {
        let mut client = Client::new(method, "/");
        assert!(client.meets(&plugin).is_none());
        let response = Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap();
        let response = client.receives(&plugin, Origin::Upstream, response);
        assert_eq!(response.status().as_u16(), expected, "{method} {status} {body:?}");
    }
}

#[test]
fn parts_that_are_held_back_accumulate_up_to_the_bound() {
    let plugin = plugin(&wrapping(true), json!({"max_body": 6}));
    assert_eq!(filtered(&plugin, &["ab", "c"]).unwrap(), ["", "", "<abc>"]);
    assert_eq!(trace(&plugin), "233.", "the size is that of all that is held");
    assert_eq!(filtered(&plugin, &["abcd", "efg"]), Err(413));
}

#[test]
fn a_module_that_holds_the_head_sees_the_whole_body_before_the_head_is_sent() {
    // It holds the head, and copies the body into a header.
    let holding = module(
        r#"
        (data (i32.const 0) "x-body")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 1)
        (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            (drop (call $get_buffer_bytes
                (i32.const 0) (i32.const 0) (i32.const 100) (i32.const 400) (i32.const 404)))
            (drop (call $replace_header_map_value (i32.const 0) (i32.const 0) (i32.const 6)
                (i32.load (i32.const 400)) (i32.load (i32.const 404))))
            i32.const 0)
        "#,
    );
    let plugin = plugin(&holding, json!({}));
    let mut client = Client::new("POST", "/");
    client.body_size = None;
    assert!(client.meets(&plugin).is_none());
    assert_eq!(client.sends(&plugin, "abc").unwrap(), "abc");
    assert_eq!(client.head.headers["x-body"], "abc");
}

#[test]
fn the_plugin_works_on_several_threads_each_with_its_own_instance() {
    let plugin = plugin(&copying(), json!({}));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = Client::new("GET", "/").header("x-in", "hello");
                assert!(client.meets(&plugin).is_none());
                assert_eq!(client.head.headers["x-out"], "hello");
            });
        }
    });
    assert_eq!(plugin.pool.slots().len(), 3);
}

#[test]
fn a_module_is_compiled_once_while_a_plugin_uses_it() {
    let content = copying();
    let services = Services::default().with_blobs([content.clone()]);
    let (one, other, states) = (name("one"), name("other"), States::default());
    let built = |name: &Name, text: &str| {
        let config = json!({"module": BlobId::of(&content).to_string(), "config": text});
        Wasm::build(serde_json::from_value(config).unwrap(), &services.context(name, &states)).unwrap()
    };
    let first = built(&one, "a");
    // The next revision changes the plugin, and another plugin uses the module.
    let next = built(&one, "b");
    let beside = built(&other, "");
    assert!(Arc::ptr_eq(&first.pool.compiled, &next.pool.compiled));
    assert!(Arc::ptr_eq(&first.pool.compiled, &beside.pool.compiled));
    // Shared data belongs to the plugin.
    first.pool.setup.shared.set(b"k", b"1", 0).unwrap();
    assert_eq!(next.pool.setup.shared.get(b"k").unwrap().0, "1");
    assert!(beside.pool.setup.shared.get(b"k").is_none());
    let compiled = Arc::downgrade(&first.pool.compiled);
    drop((first, next, beside));
    assert!(compiled.upgrade().is_none(), "what nobody uses is gone");
}
