//! The statuses of hostcalls, as the specification has them.

use bytes::Bytes;
use serde_json::{Value, json};
use signalbox_config::BlobId;
use signalbox_plugin::testing::{Client, Services, refused};
use signalbox_plugin::{Definition as _, PluginType};

use super::guest::{module, plugin};
use crate::Wasm;
use crate::module::check;
use crate::runtime::Runtime;

/// The memory of the module: texts at 0, room for results at 400, 404 and 408.
const TEXTS: &str = r#"
    (data (i32.const 0) "x-in")
    (data (i32.const 16) "x-absent")
    (data (i32.const 32) "value")
    (data (i32.const 48) "a\0d\0a")
    (data (i32.const 64) "request\00path")
    (data (i32.const 96) "request\00nonsense")
    (data (i32.const 128) "svc")
    (data (i32.const 144) "\01\00\00\00\ff\ff\ff\7f\01\00\00\00")
"#;

/// The status that a hostcall returns in `on_request_headers`.
fn status_of(call: &str) -> u16 {
    let body = format!(
        r#"
        {TEXTS}
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $status i32)
            (local.set $status {call})
            (drop (call $send_local_response (i32.add (i32.const 200) (local.get $status))
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
            i32.const 1)
        "#
    );
    let plugin = plugin(&module(&body), json!({"upstreams": ["svc"]}));
    let mut client = Client::new("GET", "/p").header("x-in", "hello");
    client.meets(&plugin).map_or(0, |answer| answer.status - 200)
}

/// A call with these arguments.
fn call(text: &str) -> String {
    let mut words = text.split(' ');
    let name = words.next().unwrap();
    let arguments: Vec<String> = words.map(|word| format!("(i32.const {word})")).collect();
    format!("(call ${name} {})", arguments.join(" "))
}

#[test]
fn statuses_are_those_of_the_specification() {
    const OK: u16 = 0;
    const NOT_FOUND: u16 = 1;
    const BAD: u16 = 2;
    const MEMORY: u16 = 6;
    const CAS: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    for (text, expected) in [
        ("log 2 0 4", OK),
        ("log 6 0 4", BAD),
        ("log 2 131070 4", MEMORY),
        ("log 2 -1 2", MEMORY),
        ("log 2 0 -1", MEMORY),
        ("get_log_level 400", OK),
        ("get_log_level 131070", MEMORY),
        ("get_log_level -1", MEMORY),
        ("set_tick_period_milliseconds 0", OK),
        ("get_header_map_value 0 0 4 400 404", OK),
        ("get_header_map_value 0 16 8 400 404", NOT_FOUND),
        ("get_header_map_value 9 0 4 400 404", BAD),
        ("get_header_map_value 0 0 4 131070 404", MEMORY),
        ("get_header_map_value 0 0 4 400 131070", MEMORY),
        ("get_header_map_value 0 -4 8 400 404", MEMORY),
        ("get_header_map_value 0 131064 80 400 404", MEMORY),
        // A map that is not there now is an empty one to read, and none to change.
        ("get_header_map_value 2 0 4 400 404", NOT_FOUND),
        ("get_header_map_pairs 2 400 404", OK),
        ("get_header_map_pairs 6 400 404", OK),
        ("add_header_map_value 2 0 4 32 5", BAD),
        ("get_header_map_pairs 0 400 404", OK),
        ("get_header_map_pairs 8 400 404", BAD),
        ("get_header_map_size 0 400", OK),
        ("get_header_map_size 0 131070", MEMORY),
        ("add_header_map_value 0 0 4 32 5", OK),
        ("add_header_map_value 0 0 4 48 5", BAD),
        ("replace_header_map_value 0 0 4 32 5", OK),
        ("replace_header_map_value 0 0 4 131070 5", MEMORY),
        ("remove_header_map_value 0 16 8", OK),
        ("remove_header_map_value 7 16 8", BAD),
        ("set_header_map_pairs 0 400 0", OK),
        ("set_header_map_pairs 0 144 12", BAD),
        ("set_header_map_pairs 0 0 -1", MEMORY),
        ("get_buffer_bytes 0 0 10 400 404", NOT_FOUND),
        ("get_buffer_bytes 7 0 10 400 404", NOT_FOUND),
        ("get_buffer_bytes 9 0 10 400 404", BAD),
        ("set_buffer_bytes 0 0 0 32 5", NOT_FOUND),
        ("set_buffer_bytes 9 0 0 32 5", BAD),
        ("get_buffer_status 0 400 404", NOT_FOUND),
        ("get_property 64 12 400 404", OK),
        ("get_property 96 16 400 404", NOT_FOUND),
        ("get_property 64 -1 400 404", MEMORY),
        ("set_property 96 16 32 5", OK),
        ("set_property 96 16 32 -5", MEMORY),
        ("continue_stream 0", OK),
        ("continue_stream 2", UNIMPLEMENTED),
        ("continue_stream 4", BAD),
        ("close_stream 4", BAD),
        ("get_status 400 404 408", OK),
        ("send_local_response 99 0 0 0 0 0 0 -1", BAD),
        ("send_local_response 200 0 0 0 -1 0 0 -1", MEMORY),
        ("http_call 128 3 400 0 0 0 0 0 100 408", BAD),
        ("http_call 32 5 400 0 0 0 0 0 100 408", BAD),
        ("http_call 128 3 400 0 0 -1 0 0 100 408", MEMORY),
        ("http_call 128 3 400 0 0 0 0 0 100 131070", MEMORY),
        ("set_effective_context 1", OK),
        ("set_effective_context 77", BAD),
        ("done", NOT_FOUND),
        ("get_shared_data 0 4 400 404 408", NOT_FOUND),
        ("set_shared_data 0 4 32 5 0", OK),
        ("set_shared_data 0 4 32 5 3", CAS),
        ("set_shared_data 0 4 32 -5 0", MEMORY),
        ("define_metric 0 0 4 400", OK),
        ("define_metric 3 0 4 400", BAD),
        ("define_metric 0 0 4 131070", MEMORY),
        ("get_metric 7 400", NOT_FOUND),
        ("register_shared_queue 0 4 400", UNIMPLEMENTED),
    ] {
        // The effective context is that of the plugin then, which has no response to send.
        if text == "set_effective_context 1" {
            continue;
        }
        assert_eq!(status_of(&call(text)), expected, "{text}");
    }
}

#[test]
fn an_allocator_that_fails_or_lies_is_an_invalid_access() {
    for allocated in ["0", "131070", "-2"] {
        let body = format!(
            r#"
            (data (i32.const 0) "x-in")
            (func (export "malloc") (param i32) (result i32) (i32.const {allocated}))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (drop (call $send_local_response
                    (i32.add (i32.const 200) (call $get_header_map_value
                        (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 400) (i32.const 404)))
                    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
                i32.const 1)
            "#
        );
        // The allocator of the base has another name, so that the old one is used.
        let text = String::from_utf8(module(&body).to_vec());
        assert!(text.is_err(), "it is binary");
        let renamed = rename(&module(&body), b"proxy_on_memory_allocate", b"proxy_on_memory_allocat_");
        let mut client = Client::new("GET", "/").header("x-in", "hello");
        let answer = client.meets(&plugin(&renamed, json!({}))).unwrap();
        assert_eq!(answer.status, 206, "{allocated}");
    }
}

/// Gives an export another name of the same length.
fn rename(module: &Bytes, from: &[u8], to: &[u8]) -> Bytes {
    let at = module.windows(from.len()).position(|window| window == from).unwrap();
    let mut renamed = module.to_vec();
    renamed[at..at + to.len()].copy_from_slice(to);
    renamed.into()
}

/// The error of a module, as the control plane says it.
fn refusal(text: &str) -> Option<String> {
    let module: Bytes = wat::parse_str(text).unwrap().into();
    check(&Runtime::without_ticker().unwrap(), &module).err()
}

#[test]
fn a_module_is_checked_before_it_is_stored() {
    let version = r#"(func (export "proxy_abi_version_0_2_1")) (memory (export "memory") 1)"#;
    for (body, expected) in [
        (version.to_owned(), None),
        (r#"(memory (export "memory") 1)"#.to_owned(), Some("exports neither proxy_abi_version_0_2_0 nor")),
        (r#"(func (export "proxy_abi_version_0_2_0"))"#.to_owned(), Some("exports no memory")),
        (
            format!(r#"(import "env" "proxy_unheard_of" (func)) {version}"#),
            Some("imports env.proxy_unheard_of, which this host does not have"),
        ),
        (
            format!(r#"(import "env" "proxy_log" (func (param i64))) {version}"#),
            Some("incompatible import type for `env::proxy_log`"),
        ),
        (
            format!(r#"{version} (func (export "proxy_on_done") (param i64) (result i32) i32.const 1)"#),
            Some("exports proxy_on_done with other parameters or results than the ABI has"),
        ),
    ] {
        let refusal = refusal(&format!("(module {body})"));
        match (&refusal, expected) {
            (None, None) => {}
            (Some(found), Some(expected)) => assert!(found.starts_with(expected), "{found}"),
            _ => panic!("{body}: {refusal:?}"),
        }
    }
    let runtime = Runtime::without_ticker().unwrap();
    assert_eq!(check(&runtime, b"not one").err().unwrap(), "is not a WebAssembly module");
    let broken = check(&runtime, b"\0asm\x01\0\0\0\x01\xff");
    assert!(broken.unwrap_err().contains("unexpected end"));
}

#[test]
fn a_module_that_begins_with_more_memory_than_its_limit_is_refused() {
    let content = module("");
    let services = Services::default().with_blobs([content.clone()]);
    let (name, states) = (signalbox_plugin::testing::name("p"), signalbox_plugin::States::default());
    let blobs = services.context(&name, &states).blobs.clone();
    let errors = |memory| {
        let config = json!({"module": BlobId::of(&content).to_string(), "limits": {"memory": memory}});
        PluginType::of::<Wasm>().check_blobs(&config, &blobs)
    };
    assert_eq!(errors("128KiB"), []);
    let expected = "limits.memory: is less than the 131072 bytes that the module begins with";
    assert_eq!(errors("64KiB")[0].to_string(), expected);
}

#[test]
fn a_wrong_module_is_an_error_of_its_field() {
    let wrong = Bytes::from_static(b"not one");
    let services = Services::default().with_blobs([wrong.clone()]);
    let (name, states) = (signalbox_plugin::testing::name("p"), signalbox_plugin::States::default());
    let blobs = services.context(&name, &states).blobs.clone();
    let config = json!({"module": BlobId::of(&wrong).to_string()});
    let plugin_type = PluginType::of::<Wasm>();
    let errors = plugin_type.check_blobs(&config, &blobs);
    assert_eq!(errors[0].to_string(), "module: is not a WebAssembly module");
    let built =
        Wasm::build(serde_json::from_value(config.clone()).unwrap(), &services.context(&name, &states));
    assert_eq!(built.err().unwrap()[0].to_string(), "module: is not a WebAssembly module");
    assert_eq!(plugin_type.blobs(&config), [(BlobId::of(&wrong), "module".to_owned())]);
}

#[test]
fn configurations_are_checked() {
    let plugin_type = PluginType::of::<Wasm>();
    let with = |field: &str, value: Value| {
        let mut config = json!({"module": BlobId::of(b"").to_string()});
        config[field] = value;
        config
    };
    assert_eq!(plugin_type.check(&with("config", json!({"any": ["thing"]}))), []);
    for (field, value, expected) in [
        ("module", json!("abc"), "module: "),
        ("config", json!(7), "config: must be a text or an object"),
        ("config", json!("a".repeat(300_000)), "config: is larger than 262144 bytes"),
        ("limits", json!({"memory": "1KiB"}), "limits.memory: must be from 64KiB to 1GiB"),
        ("limits", json!({"time": "1ms"}), "limits.time: must be from 5ms to 10s"),
        ("limits", json!({"time": "1h"}), "limits.time: must be from 5ms to 10s"),
        ("max_body", json!(0), "max_body: must be from 1 byte to 64MiB"),
        ("upstreams", json!(["A B"]), "upstreams[0]: "),
        ("on_error", json!("maybe"), "on_error: "),
    ] {
        let error = refused(&plugin_type, with(field, value));
        assert!(error.starts_with(expected), "{error}");
    }
}
