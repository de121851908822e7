//! The interface of plugins: what one is ([`Plugin`]), how it is described ([`Definition`]), and what it may use ([`Context`]).
//!
//! A plugin is a configuration type, a type that implements [`Plugin`] under the attribute [`hooks`](macro@hooks), and its
//! [`Definition`]. A [`Registry`] of definitions is given to both planes. [`testing`] drives a plugin without a proxy.

#![warn(missing_docs)]

// For the paths that `#[hooks]` writes.
#[allow(unused_extern_crates, reason = "only the tests have plugins")]
extern crate self as signalbox_plugin;

pub mod blobs;
mod body;
mod clock;
mod consumers;
mod context;
mod exchange;
mod facts;
mod flow;
pub mod grpc;
pub mod hex;
mod hooks;
pub mod host;
mod log;
mod log_record;
mod metrics;
pub mod otlp;
pub mod outbound;
mod plugin;
pub mod precedence;
mod purges;
mod registry;
mod request;
pub mod tasks;
pub mod testing;
pub mod trace_context;

pub use blobs::Blobs;
pub use body::{Abort, BodyFilter, BodyObserver, BodyWish, Output};
pub use clock::{Clock, TimeSource};
pub use consumers::{
    Consumers, Identity, KnownConsumer, KnownCredential, PasswordSecret, ResolvedSecret, TokenSecret,
    VerificationKey,
};
pub use context::{Context, States};
pub use exchange::Exchange;
pub use flow::{Flow, Reply};
pub use hooks::{Hooked, Hooks, Phase};
pub use log::Logger;
pub use log_record::LogRecord;
pub use metrics::Outcomes;
pub use outbound::{CallAnswer, CallError, CallLimits, Outbound};
pub use plugin::Plugin;
pub use purges::{Purgeable, Purges};
pub use registry::{Definition, OnConditionError, PluginType, Registry, RegistryError};
pub use request::{Origin, PluginRequest, PluginResponse, UnroutedRequest};
pub use signalbox_expr::Condition;
pub use signalbox_plugin_macros::hooks;
pub use tasks::{Task, TaskContext, Tasks};
