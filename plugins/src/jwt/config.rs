//! The configuration of the plugin.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, HumanDuration, PublicKey, ResourceKey, TokenAlgorithm};

use crate::authentication::{anonymous_reference, check_anonymous, check_realm, default_realm};
use crate::provider::{KeysSpec, Source};
use crate::token_key::TokenKey;

/// The place of the token, the keys, and what the token must claim.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "JWT", example = serde_json::json!({}), example = serde_json::json!({
    "issuer": "https://login.example.com", "audiences": ["shop"],
    "keys": [{"key_id": "2026", "algorithm": "EdDSA", "public_key": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"}],
    "claims_to_headers": {"x-user": "sub"}, "hide_credentials": true,
}), example = serde_json::json!({
    "issuer": "https://login.example.com", "audiences": ["shop"], "jwks": {"upstream": "login"}, "consumer_claim": "client_id",
}))]
pub(crate) struct Config {
    /// The issuer of all tokens, their claim `iss`. Absent: any issuer for which there is a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Issuer")]
    pub(super) issuer: Option<String>,
    /// The audiences of which a token must name at least one, in its claim `aud`. Without any, the claim is not looked at.
    #[serde(default)]
    #[schemars(title = "Audiences")]
    pub(super) audiences: Vec<String>,
    /// Keys that verify tokens besides those of consumers.
    #[serde(default)]
    #[schemars(title = "Keys")]
    pub(super) keys: Vec<KeySpec>,
    /// A provider whose published keys (JWKS) verify tokens besides the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Key set")]
    pub(super) jwks: Option<KeysSpec>,
    /// The algorithms that keys may have.
    #[serde(default = "default_algorithms")]
    #[schemars(title = "Algorithms", length(min = 1))]
    pub(super) algorithms: Vec<TokenAlgorithm>,
    /// The claims that a token must have.
    #[serde(default = "default_claims")]
    #[schemars(title = "Required claims")]
    pub(super) claims_required: Vec<String>,
    /// The difference between the clocks of issuer and proxy that is allowed for, at most 1h.
    #[serde(default = "default_leeway")]
    #[schemars(title = "Leeway")]
    pub(super) leeway: HumanDuration,
    /// The names of headers that may hold the token.
    #[serde(default = "default_headers")]
    #[schemars(title = "Headers")]
    pub(super) headers: Vec<String>,
    /// The names of query parameters that may hold the token.
    #[serde(default)]
    #[schemars(title = "Query parameters")]
    pub(super) query: Vec<String>,
    /// The names of cookies that may hold the token.
    #[serde(default)]
    #[schemars(title = "Cookies")]
    pub(super) cookies: Vec<String>,
    /// The headers by which the upstream learns claims: header to claim.
    #[serde(default)]
    #[schemars(title = "Claims to headers")]
    pub(super) claims_to_headers: BTreeMap<String, String>,
    /// The claim that names the consumer, for tokens that one of `keys` or of `jwks` verifies. Absent: they belong to no consumer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Consumer claim")]
    pub(super) consumer_claim: Option<String>,
    /// Remembers tokens that were verified, for 5m at most and no longer than they are valid.
    #[serde(default = "default_cache")]
    #[schemars(title = "Cache")]
    pub(super) cache: bool,
    /// Removes the token from the request before it is forwarded.
    #[serde(default)]
    #[schemars(title = "Hide credentials")]
    pub(super) hide_credentials: bool,
    /// The consumer as which requests without a valid token pass. Absent: they are answered 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Anonymous consumer")]
    pub(crate) anonymous: Option<String>,
    /// The realm in the header `WWW-Authenticate`.
    #[serde(default = "default_realm")]
    #[schemars(title = "Realm")]
    pub(super) realm: String,
}

/// A key that verifies tokens.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeySpec {
    /// The identifier of the key in the header of tokens, `kid`. Absent: the key is tried for all tokens for which there is no key with
    /// their `kid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Key id")]
    pub(super) key_id: Option<String>,
    /// The algorithm of the signatures, with a public key.
    #[schemars(title = "Algorithm")]
    pub(super) algorithm: TokenAlgorithm,
    /// The public key in PEM.
    #[schemars(title = "Public key")]
    pub(super) public_key: String,
}

impl Config {
    /// Adds the errors of the configuration to `errors`, and reads the parts that are more than their text.
    pub(super) fn parse(&self, errors: &mut Errors) -> Keys {
        check_anonymous(self.anonymous.as_deref(), errors);
        check_realm(&self.realm, errors);
        let mut required = |field: &str, is_empty: bool, message: &str| {
            if is_empty {
                errors.push(field, message);
            }
        };
        required("algorithms", self.algorithms.is_empty(), "must have at least one algorithm");
        required("issuer", self.issuer.as_deref() == Some(""), "must not be empty; leave it out for any");
        let places = self.headers.len() + self.query.len() + self.cookies.len();
        required("headers", places == 0, "must not be empty if query and cookies are");
        if self.leeway.0 > Duration::from_secs(3600) {
            errors.push("leeway", "must be at most 1h");
        }
        let mut fixed = Vec::with_capacity(self.keys.len());
        for (index, spec) in self.keys.iter().enumerate() {
            match spec.parse() {
                Ok(key) => fixed.push(key),
                Err((field, message)) => errors.push(format_args!("keys[{index}].{field}"), message),
            }
        }
        let source = self.jwks.as_ref().and_then(|jwks| {
            let mut own = Errors::default();
            let source = jwks.parse(self.issuer.as_deref(), &mut own);
            errors.extend_below("jwks", own.finish(Some(())).err().unwrap_or_default());
            source
        });
        if self.consumer_claim.is_some() && self.keys.is_empty() && self.jwks.is_none() {
            errors.push("consumer_claim", "is only used with keys or jwks");
        }
        Keys { fixed, source }
    }

    /// The resources that the configuration refers to.
    pub(crate) fn references(&self) -> Vec<(ResourceKey, String)> {
        let upstream = self.jwks.as_ref().and_then(|jwks| jwks.reference("jwks"));
        anonymous_reference(self.anonymous.as_deref()).into_iter().chain(upstream).collect()
    }
}

/// The keys that verify tokens besides those of consumers.
pub(super) struct Keys {
    pub(super) fixed: Vec<TokenKey>,
    /// The provider that publishes others.
    pub(super) source: Option<Source>,
}

impl KeySpec {
    fn parse(&self) -> Result<TokenKey, (&'static str, String)> {
        if self.algorithm.min_secret().is_some() {
            return Err((
                "algorithm",
                "is one of secrets, which only credentials of consumers can hold".to_owned(),
            ));
        }
        let key = PublicKey::from_pem(&self.public_key).map_err(|message| ("public_key", message))?;
        if !self.algorithm.fits(key.shape) {
            let message = format!("is of another type than {} needs", self.algorithm.as_str());
            return Err(("public_key", message));
        }
        Ok(TokenKey::new(self.key_id.as_deref(), Some(self.algorithm), key))
    }
}

fn default_algorithms() -> Vec<TokenAlgorithm> {
    TokenAlgorithm::ALL.into()
}

fn default_claims() -> Vec<String> {
    vec!["exp".to_owned()]
}

fn default_leeway() -> HumanDuration {
    HumanDuration(Duration::from_secs(60))
}

fn default_headers() -> Vec<String> {
    vec!["authorization".to_owned()]
}

fn default_cache() -> bool {
    true
}
