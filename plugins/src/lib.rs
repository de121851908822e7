//! Plugins: what one is ([`Plugin`]), which there are ([`TYPES`]), and what one may use ([`Context`]).
//!
//! To add a plugin, write one file (see `key_auth.rs` for a short one) and name it in the list below. Its
//! configuration type gives the schema from which the admin API checks and the admin UI draws its form.

#![warn(missing_docs)]

mod catalog;
mod consumers;
mod context;
mod plugin;
pub mod precedence;
mod query;
mod registry;
#[cfg(test)]
mod testing;

pub use catalog::Catalog;
pub use consumers::{Consumers, Identity, KnownConsumer};
pub use context::{Context, States};
pub use plugin::{Exchange, Flow, Phase, Plugin, PluginRequest, PluginResponse, Reply};
pub use registry::{Definition, PluginType};

registry::plugins! {
    cors::Cors,
    key_auth::KeyAuth,
    rate_limit::RateLimit,
    request_transform::RequestTransform,
}
