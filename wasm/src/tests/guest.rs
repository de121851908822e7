//! Modules for tests, and plugins that run them.

use bytes::Bytes;
use serde_json::{Value, json};
use signalbox_config::{BlobId, FieldError};
use signalbox_plugin::testing::{Services, name};
use signalbox_plugin::{Context, Definition as _, States};

use crate::Wasm;

/// The parts that every module has: its version, a memory, and an allocator that never frees.
const BASE: &str = r#"
    (memory (export "memory") 2)
    (global $top (mut i32) (i32.const 65536))
    (func $allocate (export "proxy_on_memory_allocate") (param $size i32) (result i32)
        global.get $top
        (global.set $top (i32.add (global.get $top) (local.get $size))))
    (func (export "proxy_abi_version_0_2_1"))
"#;

/// The signatures of the functions of the host, by their number of parameters.
const IMPORTS: [(&str, usize); 27] = [
    ("log", 3),
    ("get_log_level", 1),
    ("set_tick_period_milliseconds", 1),
    ("get_buffer_bytes", 5),
    ("set_buffer_bytes", 5),
    ("get_buffer_status", 3),
    ("get_header_map_size", 2),
    ("get_header_map_pairs", 3),
    ("set_header_map_pairs", 3),
    ("get_header_map_value", 5),
    ("add_header_map_value", 5),
    ("replace_header_map_value", 5),
    ("remove_header_map_value", 3),
    ("get_property", 4),
    ("set_property", 4),
    ("continue_stream", 1),
    ("close_stream", 1),
    ("get_status", 3),
    ("send_local_response", 8),
    ("http_call", 10),
    ("set_effective_context", 1),
    ("done", 0),
    ("get_shared_data", 5),
    ("set_shared_data", 5),
    ("define_metric", 4),
    ("get_metric", 2),
    ("register_shared_queue", 3),
];

/// A module with this body. It may call each function of the host by its name, `$log`.
pub(crate) fn module(body: &str) -> Bytes {
    let mut text = String::from("(module\n");
    for (name, parameters) in IMPORTS {
        let parameters = "i32 ".repeat(parameters);
        text +=
            &format!("(import \"env\" \"proxy_{name}\" (func ${name} (param {parameters}) (result i32)))\n");
    }
    text += BASE;
    text += body;
    text += ")";
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}")).into()
}

/// A plugin that runs `module`.
pub(crate) fn plugin(module: &Bytes, config: Value) -> Wasm {
    plugin_with(Services::default(), module, config).unwrap()
}

/// The same with services, and with the errors if it cannot be built.
pub(crate) fn plugin_with(
    services: Services,
    module: &Bytes,
    mut config: Value,
) -> Result<Wasm, Vec<FieldError>> {
    config["module"] = json!(BlobId::of(module).to_string());
    let (name, states) = (name("p"), States::default());
    let services = services.with_blobs([module.clone()]);
    let context: Context<'_> = services.context(&name, &states);
    Wasm::build(serde_json::from_value(config).unwrap(), &context)
}

/// The text that the module has put into the shared data under `trace`.
pub(crate) fn trace(plugin: &Wasm) -> String {
    let value = plugin.pool.setup.shared.get(b"trace").map(|(value, _)| value);
    String::from_utf8(value.unwrap_or_default().to_vec()).unwrap()
}

/// A function `$note` that appends a letter to the trace.
pub(crate) const NOTE: &str = r#"
    (global $noted (mut i32) (i32.const 0))
    (data (i32.const 1000) "trace")
    (func $note (param $letter i32)
        (i32.store8 (i32.add (i32.const 1100) (global.get $noted)) (local.get $letter))
        (global.set $noted (i32.add (global.get $noted) (i32.const 1)))
        (drop (call $set_shared_data
            (i32.const 1000) (i32.const 5) (i32.const 1100) (global.get $noted) (i32.const 0))))
"#;
