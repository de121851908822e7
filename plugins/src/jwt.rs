//! Authenticates requests by JSON Web Tokens (JWT, RFC 7519).
//!
//! A token is looked for in the `headers`, where `Bearer` may stand before it, in the `query` parameters and in the
//! `cookies`. Its signature is verified with the key of a consumer's `jwt` credential, which is found by the token's issuer
//! (`iss`) and, where the credential has one, by the token's `kid`; with one of the plugin's own `keys`; or with one of those that
//! a provider publishes (`jwks`). The algorithm is the one of the key, and the token must name the same: there is no `none`, and a
//! public key never serves as the secret of an HMAC. Keys and addresses of keys that a token brings along (`jwk`, `jku`, `x5u`)
//! are ignored.
//!
//! The times `exp`, `nbf` and `iat` are checked where they are there, with the `leeway`. What `issuer`, `audiences` and
//! `claims_required` name must be there.
//!
//! With a consumer's key, the request passes as the consumer, whose identity the upstream gets in headers, as with
//! [key-auth](key-auth.md). With another key, it passes as the consumer that the claim `consumer_claim` names, or
//! without one if that is not configured. `claims_to_headers` tells the upstream more: texts, numbers and booleans as they are,
//! lists and objects as JSON, and what is not printable ASCII percent-encoded. A header of that name that the client sends is
//! always removed, in every spelling that a server may take for it (`X_User`, `X.User`).
//!
//! A request without a token is answered `401` with `WWW-Authenticate: Bearer realm="…"`; one with a bad token has
//! `error="invalid_token"` besides. So is a request with two different tokens, or with two headers of the name: the upstream
//! might act on another than the gateway checked. With `anonymous`, such requests pass as that consumer.
//!
//! ## Keys of a provider
//!
//! With `jwks`, the proxy fetches the provider's keys from a target of `upstream`: from `path`, or from the place that the discovery
//! document of the `issuer` names (`/.well-known/openid-configuration` below its path, OpenID Connect Discovery). Every request to
//! the provider goes to `upstream`, whatever host its documents name; that host is sent as `Host`. Keys for RSA, EC and Ed25519
//! signatures are used, and others in the set are ignored.
//!
//! - The keys are fetched beside requests, at each `refresh`, and kept over revisions.
//! - A token whose key is not known makes the proxy fetch the keys at once. All requests with such tokens wait for the same fetch, on
//!   all workers, and at most one such fetch is made in a `cooldown`. Until it is over, tokens with unknown keys are answered `401`.
//! - While the provider fails (it is down, answers another status than `200`, more than 256 KiB, no JSON, or no usable key), the
//!   last good keys stay in use. The proxy tries again after pauses that grow from a quarter of a second to half a minute and vary at
//!   random. The log has the reason, and `signalbox_plugin_outcomes_total` counts `keys_fetched` and `keys_fetch_failed`.
//! - While no keys could be fetched at all, tokens that no other key verifies are answered `503` with `Retry-After`, or
//!   pass as the `anonymous` consumer.
//!
//! ## Cache
//!
//! A token that was verified is remembered by its SHA-256, so that the same token costs less the next time. It is verified anew when
//! the keys, its consumer or the configuration change, when it expires, and after five minutes. A proxy remembers at most 16,384
//! tokens of a plugin. `cache: false` verifies each request's token.

use signalbox_config::{Errors, FieldError, ResourceKey};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, hooks};

pub(crate) use self::bearer::Bearer;
pub(crate) use self::config::Config;
use crate::authentication::Guard;
use crate::provider::Provider;

mod bearer;
mod config;
#[cfg(test)]
mod tests;

/// Authenticates requests by JSON Web Tokens.
pub(crate) struct Jwt(Guard);

#[hooks]
impl Plugin for Jwt {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        self.0.on_request(request)
    }

    fn uses_consumer_headers(&self) -> bool {
        self.0.uses_consumer_headers()
    }
}

impl Definition for Jwt {
    const NAME: &'static str = "jwt";
    const DESCRIPTION: &'static str = "Lets in who presents a token (JWT) that a known key has signed.";
    const ORDER: i32 = 1450;
    const CAN_SHADOW: bool = true;
    const OUTCOMES: &'static [&'static str] = &[Provider::FETCHED, Provider::FETCH_FAILED];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        Bearer::check(config, errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        config.references()
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let method = Bearer::of(&config, context, &mut errors);
        errors.finish(Some(Self(Guard::of(method, config.anonymous))))
    }
}
