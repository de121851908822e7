//! The plugin type `wasm`: it runs modules of users that speak the proxy-wasm ABI 0.2.
//!
//! A [module](module) is compiled once for each revision that brings a new one, on the thread that compiles revisions. Each worker
//! has one instance of it for each plugin, a [`vm`], in which all requests of that worker have a context each. Calls into a module
//! never wait, so no call begins inside another; what a module waits for ([`pause`]) is awaited outside of it.

#![warn(missing_docs)]

mod abi;
mod background;
mod body;
mod config;
mod context;
mod fault;
mod headers;
mod memory;
mod module;
mod pairs;
mod pause;
mod plugin;
mod pool;
mod properties;
mod runtime;
mod shared;
mod state;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod vm;
mod wasi;

use signalbox_plugin::PluginType;

pub use plugin::Wasm;

/// The types of this crate.
pub fn types() -> impl Iterator<Item = PluginType> {
    [PluginType::of::<Wasm>()].into_iter()
}
