//! The plugins that every proxy has, one file each; `wasm` comes from a crate of its own, unless the feature of that name is off.
//!
//! To add a plugin, write one file (see `key_auth.rs` for a short one) and name it in the list below. Its
//! configuration type gives the schema from which the admin API checks and the admin UI draws its form.

#![warn(missing_docs)]

mod authentication;
mod authorization;
mod claims;
mod clock;
mod cookies;
mod headers;
mod lenient_base64;
mod limit;
mod log_sink;
mod origin;
mod password_pool;
mod provider;
mod query;
mod redis;
mod reference;
mod signature;
mod template;
#[cfg(test)]
mod testing;
mod token;
mod token_key;
mod transform;
#[cfg(test)]
mod types;
mod verified;

use std::sync::LazyLock;

use signalbox_plugin::{PluginType, Registry};

/// Declares the modules of the plugins and the table of them: `file::Type`.
macro_rules! plugins {
    ($($module:ident :: $type:ident),* $(,)?) => {
        $(mod $module;)*

        /// The types that every proxy has: those of this crate, and `wasm`, which has a crate of its own.
        pub fn types() -> impl Iterator<Item = PluginType> {
            let types = [$(PluginType::of::<$module::$type>()),*].into_iter();
            #[cfg(feature = "wasm")]
            let types = types.chain(signalbox_wasm::types());
            types
        }
    };
}

plugins! {
    acl::Acl,
    auth::Auth,
    basic_auth::BasicAuth,
    bot_detection::BotDetection,
    cache::Cache,
    compress::Compress,
    concurrency_limit::ConcurrencyLimit,
    cors::Cors,
    csrf::Csrf,
    ext_auth::ExtAuth,
    fault::Fault,
    file_log::FileLog,
    grpc_json::GrpcJson,
    grpc_web::GrpcWeb,
    hmac_auth::HmacAuth,
    http_log::HttpLog,
    ip_restriction::IpRestriction,
    jwt::Jwt,
    key_auth::KeyAuth,
    mtls_auth::MtlsAuth,
    oidc::Oidc,
    otel_log::OtelLog,
    rate_limit::RateLimit,
    redirect::Redirect,
    request_id::RequestId,
    request_size_limit::RequestSizeLimit,
    request_transform::RequestTransform,
    respond::Respond,
    response_transform::ResponseTransform,
    token_limit::TokenLimit,
    traffic_split::TrafficSplit,
}

/// The default order of all types that are designed, so that users' own `order`s stay right when one is added.
pub const ORDERS: [(&str, i32); 33] = [
    ("request-id", 100_000),
    ("bot-detection", 2500),
    ("cors", 2000),
    ("ip-restriction", 1990),
    ("request-size-limit", 1951),
    ("csrf", 1900),
    ("mtls-auth", 1460),
    ("jwt", 1450),
    ("hmac-auth", 1430),
    ("oidc", 1430),
    ("basic-auth", 1400),
    ("key-auth", 1350),
    ("auth", 1340),
    ("ext-auth", 1300),
    ("fault", 995),
    ("mirror", 970),
    ("traffic-split", 966),
    ("acl", 950),
    ("rate-limit", 910),
    ("token-limit", 908),
    ("concurrency-limit", 905),
    ("request-transform", 801),
    ("response-transform", 800),
    ("redirect", 779),
    ("respond", 778),
    ("grpc-web", 700),
    ("grpc-json", 690),
    ("wasm", 500),
    ("cache", 100),
    ("compress", 90),
    ("http-log", 10),
    ("file-log", 10),
    ("otel-log", 10),
];

/// The registry of these types alone.
pub fn builtin() -> &'static Registry {
    #[expect(clippy::expect_used, reason = "the names are constants, which a test reads")]
    static BUILTIN: LazyLock<Registry> = LazyLock::new(|| Registry::new(types()).expect("unique names"));
    &BUILTIN
}
