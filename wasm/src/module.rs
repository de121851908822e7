//! A module: its checks, and its compiled form.

use std::ops::Range;
use std::sync::Arc;

use signalbox_config::BlobId;
use wasmparser::{Export, ExternalKind, FuncType, Parser, Payload, TypeRef, ValType};
use wasmtime::{InstancePre, Module, UnknownImportError};

use crate::runtime::Runtime;
use crate::state::State;

/// A module that was compiled, with the functions that it imports.
pub(crate) struct Compiled {
    pub(crate) id: BlobId,
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

/// The unit in which memory grows, in bytes.
const PAGE: u64 = 64 << 10;

/// The first bytes of a module: of WebAssembly, version 1.
const HEADER: &[u8] = b"\0asm\x01\0\0\0";

/// The functions that mark the version of the ABI.
const VERSIONS: [&str; 2] = ["proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"];

impl Compiled {
    /// Compiles a module. It takes a second for each megabyte, and belongs on no thread that serves requests.
    pub(crate) fn new(runtime: Arc<Runtime>, id: BlobId, content: &[u8]) -> Result<Self, String> {
        check(&runtime, content)?;
        let module = Module::new(&runtime.engine, content).map_err(|error| causes(&error))?;
        let pre = runtime.linker.instantiate_pre(&module).map_err(|error| causes(&error))?;
        Ok(Self { id, pre, runtime })
    }
}

/// Checks a module without compiling it: that it is valid, is built for this ABI, and imports only functions that are here. Returns
/// the memory that it begins with, in bytes.
pub(crate) fn check(runtime: &Runtime, content: &[u8]) -> Result<u64, String> {
    if !content.starts_with(HEADER) {
        return Err("is not a WebAssembly module".to_owned());
    }
    Module::validate(&runtime.engine, content).map_err(|error| causes(&error))?;
    let outline = Outline::of(content).map_err(|error| error.to_string())?;
    outline.check_exports()?;
    outline.check_imports(runtime, content)?;
    Ok(outline.memory)
}

/// The exports and imports that a module shows to its host.
#[derive(Default)]
struct Outline<'m> {
    types: Vec<FuncType>,
    /// The sections of types and imports, by their numbers.
    sections: Vec<(u8, Range<usize>)>,
    /// The types of all functions, first those that are imported.
    functions: Vec<u32>,
    exports: Vec<Export<'m>>,
    /// The memory that it begins with, in bytes.
    memory: u64,
}

impl<'m> Outline<'m> {
    fn of(content: &'m [u8]) -> wasmparser::Result<Self> {
        let mut outline = Self::default();
        for payload in Parser::new(0).parse_all(content) {
            let payload = payload?;
            if matches!(payload, Payload::TypeSection(_) | Payload::ImportSection(_)) {
                outline.sections.extend(payload.as_section());
            }
            match payload {
                Payload::TypeSection(types) => {
                    outline.types = types.into_iter_err_on_gc_types().collect::<Result<_, _>>()?;
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        if let TypeRef::Func(function) = import?.ty {
                            outline.functions.push(function);
                        }
                    }
                }
                Payload::FunctionSection(functions) => {
                    for function in functions {
                        outline.functions.push(function?);
                    }
                }
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        outline.memory = memory?.initial.saturating_mul(PAGE);
                    }
                }
                Payload::ExportSection(exports) => {
                    outline.exports = exports.into_iter().collect::<Result<_, _>>()?;
                }
                _ => {}
            }
        }
        Ok(outline)
    }

    fn export(&self, name: &str) -> Option<&Export<'m>> {
        self.exports.iter().find(|export| export.name == name)
    }

    fn type_at(&self, index: u32) -> Option<&FuncType> {
        self.types.get(index as usize)
    }

    fn check_exports(&self) -> Result<(), String> {
        let [older, newer] = VERSIONS;
        if self.export(older).or_else(|| self.export(newer)).is_none() {
            return Err(format!(
                "exports neither {older} nor {newer}: it is not built for the proxy-wasm ABI 0.2"
            ));
        }
        if self.export("memory").is_none_or(|export| export.kind != ExternalKind::Memory) {
            return Err("exports no memory".to_owned());
        }
        for (name, parameters, results) in CALLBACKS {
            let Some(export) = self.export(name) else { continue };
            let function = self.functions.get(export.index as usize);
            let function = function.filter(|_| export.kind == ExternalKind::Func);
            let fits = function.and_then(|function| self.type_at(*function)).is_some_and(|function| {
                let mut values = function.params().iter().chain(function.results());
                function.params().len() == parameters
                    && function.results().len() == results
                    && values.all(|value| *value == ValType::I32)
            });
            if !fits {
                return Err(format!("exports {name} with other parameters or results than the ABI has"));
            }
        }
        Ok(())
    }

    /// Links a module that has only the imports of this one.
    fn check_imports(&self, runtime: &Runtime, content: &[u8]) -> Result<(), String> {
        let mut stub = HEADER.to_vec();
        for (id, range) in &self.sections {
            let section = content.get(range.clone()).unwrap_or_default();
            stub.push(*id);
            let mut size = section.len();
            while size >= 0x80 {
                stub.push((size & 0x7f) as u8 | 0x80);
                size >>= 7;
            }
            stub.push(size as u8);
            stub.extend_from_slice(section);
        }
        let module = Module::new(&runtime.engine, stub).map_err(|error| causes(&error))?;
        let linked = runtime.linker.instantiate_pre(&module).map(drop);
        linked.map_err(|error| match error.downcast_ref::<UnknownImportError>() {
            Some(import) => {
                format!("imports {}.{}, which this host does not have", import.module(), import.name())
            }
            None => causes(&error),
        })
    }
}

fn causes(error: &wasmtime::Error) -> String {
    let all: Vec<String> = error.chain().map(ToString::to_string).collect();
    all.join(": ")
}
