//! The plugins that every proxy has, one file each.
//!
//! To add a plugin, write one file (see `key_auth.rs` for a short one) and name it in the list below. Its
//! configuration type gives the schema from which the admin API checks and the admin UI draws its form.

#![warn(missing_docs)]

mod authentication;
mod authorization;
mod clock;
mod limit;
mod origin;
mod password_pool;
mod query;
mod redis;
mod signature;
#[cfg(test)]
mod testing;
mod token;
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
    acl::Acl,
    auth::Auth,
    basic_auth::BasicAuth,
    bot_detection::BotDetection,
    cors::Cors,
    csrf::Csrf,
    hmac_auth::HmacAuth,
    ip_restriction::IpRestriction,
    jwt::Jwt,
    key_auth::KeyAuth,
    mtls_auth::MtlsAuth,
    rate_limit::RateLimit,
    request_transform::RequestTransform,
    respond::Respond,
}

/// The registry of the types of this crate alone.
pub fn builtin() -> &'static Registry {
    #[expect(clippy::expect_used, reason = "the names are constants, which a test reads")]
    static BUILTIN: LazyLock<Registry> = LazyLock::new(|| Registry::new(types()).expect("unique names"));
    &BUILTIN
}
