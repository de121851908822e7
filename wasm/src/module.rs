//! A module: its checks, and its compiled form.

use std::sync::Arc;

use wasmtime::{ExternType, InstancePre, Module, UnknownImportError, ValType};

use crate::runtime::Runtime;
use crate::state::State;

/// A module that was compiled, with the functions that it imports.
pub(crate) struct Compiled {
    pub(crate) pre: InstancePre<State>,
    /// Keeps the thread that interrupts it.
    pub(crate) runtime: Arc<Runtime>,
}

/// The functions that a module exports to be called, with the number of their parameters and results, all of type `i32`.
const CALLBACKS: [(&str, usize, usize); 22] = [
    ("_initialize", 0, 0),
    ("_start", 0, 0),
    ("malloc", 1, 1),
    ("proxy_on_memory_allocate", 1, 1),
    ("proxy_on_context_create", 2, 0),
    ("proxy_on_vm_start", 2, 1),
    ("proxy_on_configure", 2, 1),
    ("proxy_on_request_headers", 3, 1),
    ("proxy_on_request_body", 3, 1),
    ("proxy_on_request_trailers", 2, 1),
    ("proxy_on_response_headers", 3, 1),
    ("proxy_on_response_body", 3, 1),
    ("proxy_on_response_trailers", 2, 1),
    ("proxy_on_http_call_response", 5, 0),
    ("proxy_on_tick", 1, 0),
    ("proxy_on_queue_ready", 2, 0),
    ("proxy_on_done", 1, 1),
    ("proxy_on_log", 1, 0),
    ("proxy_on_delete", 1, 0),
    ("proxy_on_foreign_function", 3, 0),
    ("proxy_on_grpc_close", 3, 0),
    ("proxy_on_grpc_receive", 3, 0),
];

/// The functions that mark the version of the ABI.
const VERSIONS: [&str; 2] = ["proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"];

impl Compiled {
    /// Compiles a module. It takes long, and belongs on no thread that serves requests.
    pub(crate) fn new(runtime: Arc<Runtime>, content: &[u8]) -> Result<Self, String> {
        if !content.starts_with(b"\0asm\x01\0\0\0") {
            return Err("is not a WebAssembly module".to_owned());
        }
        let module = Module::new(&runtime.engine, content).map_err(|error| causes(&error))?;
        check_exports(&module)?;
        let pre = runtime.linker.instantiate_pre(&module).map_err(|error| {
            match error.downcast_ref::<UnknownImportError>() {
                Some(import) => {
                    format!("imports {}.{}, which this host does not have", import.module(), import.name())
                }
                None => causes(&error),
            }
        })?;
        Ok(Self { pre, runtime })
    }
}

fn check_exports(module: &Module) -> Result<(), String> {
    if !VERSIONS.iter().any(|version| module.get_export(version).is_some()) {
        return Err(format!(
            "exports neither {} nor {}: it is not built for the proxy-wasm ABI 0.2",
            VERSIONS[0], VERSIONS[1]
        ));
    }
    if !matches!(module.get_export("memory"), Some(ExternType::Memory(_))) {
        return Err("exports no memory".to_owned());
    }
    for (name, parameters, results) in CALLBACKS {
        let Some(export) = module.get_export(name) else { continue };
        let fits = export.func().is_some_and(|function| {
            let (given, returned) = (function.params(), function.results());
            given.len() == parameters
                && returned.len() == results
                && function.params().chain(function.results()).all(|value| matches!(value, ValType::I32))
        });
        if !fits {
            return Err(format!("exports {name} with other parameters or results than the ABI has"));
        }
    }
    Ok(())
}

fn causes(error: &wasmtime::Error) -> String {
    let all: Vec<String> = error.chain().map(ToString::to_string).collect();
    all.join(": ")
}
