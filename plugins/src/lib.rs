//! The plugins that every proxy has, one file each.
//!
//! To add a plugin, write one file (see `key_auth.rs` for a short one) and name it in the list below. Its
//! configuration type gives the schema from which the admin API checks and the admin UI draws its form.

#![warn(missing_docs)]

mod limit;
mod query;
mod redis;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod types;

use std::sync::LazyLock;

use signalbox_plugin::{PluginType, Registry};

/// Declares the modules of the plugins and the table of them: `file::Type`.
macro_rules! plugins {
    ($($module:ident :: $type:ident),* $(,)?) => {
        $(mod $module;)*

        /// The types of this crate.
        pub fn types() -> impl Iterator<Item = PluginType> {
            [$(PluginType::of::<$module::$type>()),*].into_iter()
        }
    };
}

plugins! {
    cors::Cors,
    key_auth::KeyAuth,
    rate_limit::RateLimit,
    request_transform::RequestTransform,
}

/// The registry of the types of this crate alone.
pub fn builtin() -> &'static Registry {
    #[expect(clippy::expect_used, reason = "the names are constants, which a test reads")]
    static BUILTIN: LazyLock<Registry> = LazyLock::new(|| Registry::new(types()).expect("unique names"));
    &BUILTIN
}
