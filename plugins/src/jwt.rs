//! Authenticates requests by JSON Web Tokens (JWT, RFC 7519).
//!
//! A token is looked for in the `headers`, where `Bearer` may stand before it, in the `query` parameters and in the
//! `cookies`. Its signature is verified with the key of a consumer's `jwt` credential, which is found by the token's issuer
//! (`iss`) and, where the credential has one, by the token's `kid`; or with one of the plugin's own `keys`. The algorithm is
//! the one of the key, and the token must name the same: there is no `none`, and a public key never serves as the secret of an
//! HMAC. Keys and addresses of keys that a token brings along (`jwk`, `jku`, `x5u`) are ignored.
//!
//! The times `exp`, `nbf` and `iat` are checked where they are there, with the `leeway`. What `issuer`, `audiences` and
//! `claims_required` name must be there.
//!
//! With a consumer's key, the request passes as the consumer, whose identity the upstream gets in headers, as with
//! [key-auth](key-auth.md). With a key of the plugin, it passes as the consumer that the claim `consumer_claim` names, or
//! without one if that is not configured. `claims_to_headers` tells the upstream more: texts, numbers and booleans as they are,
//! lists and objects as JSON, and what is not printable ASCII percent-encoded. A header of that name that the client sends is
//! always removed, in every spelling that a server may take for it (`X_User`, `X.User`).
//!
//! A request without a token is answered `401` with `WWW-Authenticate: Bearer realm="…"`; one with a bad token has
//! `error="invalid_token"` besides. So is a request with two different tokens, or with two headers of the name: the upstream
//! might act on another than the gateway checked. With `anonymous`, such requests pass as that consumer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use signalbox_config::arrival::remove_every_spelling;
use signalbox_config::{Errors, FieldError, HumanDuration, PublicKey, ResourceKey, TokenAlgorithm};
use signalbox_plugin::{
    Consumers, Context, Definition, Flow, Identity, Plugin, PluginRequest, VerificationKey, hooks,
};

use crate::authentication::{
    Attempt, Guard, Method, NotRewritable, Refusal, Verdict, anonymous_reference, challenge, check_anonymous,
    check_realm, default_realm, remove_parameters,
};
use crate::authorization::after_scheme;
use crate::clock::since_1970;
use crate::query;
use crate::signature::verifies;
use crate::token::Token;

/// The place of the token, the keys, and what the token must claim.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "JWT", example = serde_json::json!({}), example = serde_json::json!({
    "issuer": "https://login.example.com", "audiences": ["shop"],
    "keys": [{"key_id": "2026", "algorithm": "EdDSA", "public_key": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"}],
    "claims_to_headers": {"x-user": "sub"}, "hide_credentials": true,
}))]
pub(crate) struct Config {
    /// The issuer of all tokens, their claim `iss`. Absent: any issuer for which there is a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Issuer")]
    issuer: Option<String>,
    /// The audiences of which a token must name at least one, in its claim `aud`. Without any, the claim is not looked at.
    #[serde(default)]
    #[schemars(title = "Audiences")]
    audiences: Vec<String>,
    /// Keys that verify tokens besides those of consumers.
    #[serde(default)]
    #[schemars(title = "Keys")]
    keys: Vec<KeySpec>,
    /// The algorithms that keys may have.
    #[serde(default = "default_algorithms")]
    #[schemars(title = "Algorithms", length(min = 1))]
    algorithms: Vec<TokenAlgorithm>,
    /// The claims that a token must have.
    #[serde(default = "default_claims")]
    #[schemars(title = "Required claims")]
    claims_required: Vec<String>,
    /// The difference between the clocks of issuer and proxy that is allowed for, at most 1h.
    #[serde(default = "default_leeway")]
    #[schemars(title = "Leeway")]
    leeway: HumanDuration,
    /// The names of headers that may hold the token.
    #[serde(default = "default_headers")]
    #[schemars(title = "Headers")]
    headers: Vec<String>,
    /// The names of query parameters that may hold the token.
    #[serde(default)]
    #[schemars(title = "Query parameters")]
    query: Vec<String>,
    /// The names of cookies that may hold the token.
    #[serde(default)]
    #[schemars(title = "Cookies")]
    cookies: Vec<String>,
    /// The headers by which the upstream learns claims: header to claim.
    #[serde(default)]
    #[schemars(title = "Claims to headers")]
    claims_to_headers: BTreeMap<String, String>,
    /// The claim that names the consumer, for tokens that one of `keys` verifies. Absent: they belong to no consumer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Consumer claim")]
    consumer_claim: Option<String>,
    /// Removes the token from the request before it is forwarded.
    #[serde(default)]
    #[schemars(title = "Hide credentials")]
    hide_credentials: bool,
    /// The consumer as which requests without a valid token pass. Absent: they are answered 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Anonymous consumer")]
    pub(crate) anonymous: Option<String>,
    /// The realm in the header `WWW-Authenticate`.
    #[serde(default = "default_realm")]
    #[schemars(title = "Realm")]
    realm: String,
}

/// A key that verifies tokens.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct KeySpec {
    /// The identifier of the key in the header of tokens, `kid`. Absent: the key is tried for all tokens for which there is no key with
    /// their `kid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Key id")]
    key_id: Option<String>,
    /// The algorithm of the signatures, with a public key.
    #[schemars(title = "Algorithm")]
    algorithm: TokenAlgorithm,
    /// The public key in PEM.
    #[schemars(title = "Public key")]
    public_key: String,
}

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
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        Bearer::of(config, errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        anonymous_reference(config.anonymous.as_deref())
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let method = Bearer::of(&config, &mut errors);
        errors.finish(Some(Self(Guard::of(method, config.anonymous))))
    }
}

/// The authentication by tokens.
pub(crate) struct Bearer {
    issuer: Option<Box<str>>,
    audiences: Box<[Box<str>]>,
    keys: Box<[Key]>,
    algorithms: Box<[TokenAlgorithm]>,
    claims_required: Box<[Box<str>]>,
    leeway: Duration,
    headers: Box<[HeaderName]>,
    parameters: Box<[Box<str>]>,
    cookies: Box<[Box<str>]>,
    claims_to_headers: Box<[(HeaderName, Box<str>)]>,
    consumer_claim: Option<Box<str>>,
    hide_credentials: bool,
    challenge: HeaderValue,
    invalid_token: HeaderValue,
}

struct Key {
    key_id: Option<Box<str>>,
    algorithm: TokenAlgorithm,
    key: VerificationKey,
}

impl Method for Bearer {
    fn strip(&self, request: &mut PluginRequest<'_>) {
        for (name, _) in &self.claims_to_headers {
            remove_every_spelling(&mut request.head.headers, name);
        }
    }

    fn authenticate(&self, request: &mut PluginRequest<'_>) -> Attempt {
        let text = match self.find(request) {
            Ok(Some(text)) => text,
            Ok(None) => return Verdict::Absent("no token was found in the request").into(),
            Err(detail) => return self.refuse(detail).into(),
        };
        let now = since_1970(request.clock);
        let verified = Token::read(&text)
            .and_then(|token| self.verify(&token, request.consumers, now).map(|identity| (token, identity)));
        match verified {
            Err(detail) => self.refuse(detail).into(),
            Ok((token, identity)) => {
                for (name, claim) in &self.claims_to_headers {
                    if let Some(value) = token.claim(claim).and_then(header_value) {
                        request.head.headers.insert(name, value);
                    }
                }
                Verdict::Passed(identity).into()
            }
        }
    }

    fn hide(&self, request: &mut PluginRequest<'_>) -> Result<(), NotRewritable> {
        if !self.hide_credentials {
            return Ok(());
        }
        for name in &self.headers {
            let is_other = |value: &HeaderValue| {
                *name == AUTHORIZATION && after_scheme(value.as_bytes(), SCHEME).is_none()
            };
            if !request.head.headers.get_all(name).iter().all(is_other) {
                request.head.headers.remove(name);
            }
        }
        self.hide_cookies(&mut request.head.headers);
        remove_parameters(&mut request.head.uri, &self.parameters)
    }

    fn challenge(&self) -> Option<&HeaderValue> {
        Some(&self.challenge)
    }

    fn uses_consumer_headers(&self) -> bool {
        let written = self.claims_to_headers.iter().map(|(name, _)| name);
        self.headers.iter().chain(written).any(|name| Consumers::HEADERS.contains(name))
    }
}

const SCHEME: &str = "Bearer";

impl Bearer {
    /// Reads a configuration. Parts that are wrong are missing from the result.
    pub(crate) fn of(config: &Config, errors: &mut Errors) -> Self {
        check_anonymous(config.anonymous.as_deref(), errors);
        check_realm(&config.realm, errors);
        let mut required = |field: &str, is_empty: bool, message: &str| {
            if is_empty {
                errors.push(field, message);
            }
        };
        required("algorithms", config.algorithms.is_empty(), "must have at least one algorithm");
        required("issuer", config.issuer.as_deref() == Some(""), "must not be empty; leave it out for any");
        let places = config.headers.len() + config.query.len() + config.cookies.len();
        required("headers", places == 0, "must not be empty if query and cookies are");
        if config.leeway.0 > Duration::from_secs(3600) {
            errors.push("leeway", "must be at most 1h");
        }
        let mut keys = Vec::with_capacity(config.keys.len());
        for (index, spec) in config.keys.iter().enumerate() {
            match spec.parse() {
                Ok(key) => keys.push(key),
                Err((field, message)) => errors.push(format_args!("keys[{index}].{field}"), message),
            }
        }
        if config.consumer_claim.is_some() && config.keys.is_empty() {
            errors.push("consumer_claim", "is only used with keys");
        }
        let mut header = |field: String, name: &str| {
            let parsed: Result<HeaderName, _> = name.parse();
            parsed.map_err(|_| errors.push(field, format_args!("{name:?} is not the name of a header"))).ok()
        };
        let named = config.headers.iter().enumerate();
        let headers = named.filter_map(|(index, name)| header(format!("headers[{index}]"), name)).collect();
        let claims = config.claims_to_headers.iter();
        let claims_to_headers = claims
            .filter_map(|(name, claim)| {
                Some((header(format!("claims_to_headers.{name}"), name)?, claim.as_str().into()))
            })
            .collect();
        let texts = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
        Self {
            issuer: config.issuer.as_deref().map(Into::into),
            audiences: texts(&config.audiences),
            keys: keys.into(),
            algorithms: config.algorithms.as_slice().into(),
            claims_required: texts(&config.claims_required),
            leeway: config.leeway.0,
            headers,
            parameters: texts(&config.query),
            cookies: texts(&config.cookies),
            claims_to_headers,
            consumer_claim: config.consumer_claim.as_deref().map(Into::into),
            hide_credentials: config.hide_credentials,
            challenge: challenge(SCHEME, &config.realm, ""),
            invalid_token: challenge(SCHEME, &config.realm, ", error=\"invalid_token\""),
        }
    }

    /// The only token of the request. An error, if there are several.
    fn find(&self, request: &PluginRequest<'_>) -> Result<Option<Vec<u8>>, &'static str> {
        let headers = &request.head.headers;
        let mut found: Option<Cow<'_, [u8]>> = None;
        let mut add = |token: Cow<'_, [u8]>| match &found {
            Some(other) if **other != *token => Err("the request has more than one token"),
            Some(_) => Ok(()),
            None => {
                found = Some(Cow::Owned(token.into_owned()));
                Ok(())
            }
        };
        for name in &self.headers {
            let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err("the request has more than one header with a token");
            }
            let token = match after_scheme(value, SCHEME) {
                // `Authorization` with another scheme is for somebody else.
                None if *name == AUTHORIZATION => continue,
                token => token.unwrap_or(value),
            };
            if !token.is_empty() {
                add(Cow::Borrowed(token))?;
            }
        }
        if let Some(query) = request.head.uri.query().filter(|_| !self.parameters.is_empty()) {
            for parameter in query::parameters(query) {
                if self.parameters.iter().any(|name| parameter.is_named(name)) {
                    let token = parameter.value();
                    if !token.is_empty() {
                        add(Cow::Borrowed(&token))?;
                    }
                }
            }
        }
        for (name, value) in headers.get_all(COOKIE).iter().flat_map(cookies) {
            if !value.is_empty() && self.cookies.iter().any(|cookie| cookie.as_bytes() == name) {
                add(Cow::Borrowed(value))?;
            }
        }
        Ok(found.map(Cow::into_owned))
    }

    /// Whose token it is; `None`: it is good, and belongs to no consumer.
    fn verify(
        &self,
        token: &Token<'_>,
        consumers: &Consumers,
        now: Duration,
    ) -> Result<Option<Identity>, &'static str> {
        if !self.algorithms.contains(&token.algorithm) {
            return Err("the token's algorithm is not supported");
        }
        let is_signed = |algorithm: TokenAlgorithm, key: &VerificationKey| {
            algorithm == token.algorithm && verifies(algorithm, key, token.signed, &token.signature)
        };
        let wanted = token.key_id.as_deref();
        let mut own = fitting(&self.keys, |key| key.key_id.as_deref(), wanted);
        let identity = if own.any(|key| is_signed(key.algorithm, &key.key)) {
            self.named_consumer(token, consumers)?
        } else {
            let keys = token.issuer().map_or(&[][..], |issuer| consumers.by_issuer(issuer));
            let known = fitting(keys, |known| known.secret.key_id.as_deref(), wanted)
                .find(|known| is_signed(known.secret.algorithm, &known.secret.key));
            Some(known.ok_or("the token is not signed by a known key")?.identity.clone())
        };
        token.check_times(now, self.leeway)?;
        if self.issuer.as_deref().is_some_and(|issuer| token.issuer() != Some(issuer)) {
            return Err("the token has another issuer");
        }
        if !self.audiences.is_empty() && !token.is_for(&self.audiences) {
            return Err("the token is for another audience");
        }
        if self.claims_required.iter().any(|name| token.claim(name).is_none_or(Value::is_null)) {
            return Err("the token lacks a claim");
        }
        Ok(identity)
    }

    fn named_consumer(
        &self,
        token: &Token<'_>,
        consumers: &Consumers,
    ) -> Result<Option<Identity>, &'static str> {
        let Some(claim) = &self.consumer_claim else { return Ok(None) };
        let name = token.claim(claim).and_then(Value::as_str).ok_or("the token names no consumer")?;
        let named = consumers.named(name).ok_or("the token names a consumer that does not exist")?;
        Ok(Some(Identity { credential: HeaderValue::from_str(name).ok(), consumer: named }))
    }

    fn refuse(&self, detail: &'static str) -> Verdict {
        Refusal { challenge: Some(self.invalid_token.clone()), ..Refusal::unauthorized(detail) }.into()
    }

    /// Takes the token out of the cookies, and leaves the others as they are.
    fn hide_cookies(&self, headers: &mut HeaderMap) {
        if self.cookies.is_empty() {
            return;
        }
        let is_ours =
            |(name, _): &(&[u8], &[u8])| self.cookies.iter().any(|cookie| cookie.as_bytes() == *name);
        if !headers.get_all(COOKIE).iter().flat_map(cookies).any(|cookie| is_ours(&cookie)) {
            return;
        }
        let kept: Vec<HeaderValue> = headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| {
                let parts = value.as_bytes().split(|byte| *byte == b';');
                let kept: Vec<&[u8]> =
                    parts.map(<[u8]>::trim_ascii).filter(|part| !is_ours(&cookie(part))).collect();
                if kept.is_empty() { None } else { HeaderValue::from_bytes(&kept.join(&b"; "[..])).ok() }
            })
            .collect();
        headers.remove(COOKIE);
        for value in kept {
            headers.append(COOKIE, value);
        }
    }
}

/// The most keys that are tried for a token.
const MAX_TRIED: usize = 8;

/// The keys that may have signed a token: those with its `kid`, or else those without one; all, if the token has none.
fn fitting<'k, K>(
    keys: &'k [K],
    key_id: impl Fn(&K) -> Option<&str> + Copy + 'k,
    wanted: Option<&'k str>,
) -> impl Iterator<Item = &'k K> {
    let is_named = wanted.is_some() && keys.iter().any(|key| key_id(key) == wanted);
    let fits = move |key: &&K| match wanted {
        None => true,
        Some(_) if is_named => key_id(key) == wanted,
        Some(_) => key_id(key).is_none(),
    };
    keys.iter().filter(fits).take(MAX_TRIED)
}

impl KeySpec {
    fn parse(&self) -> Result<Key, (&'static str, String)> {
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
        Ok(Key {
            key_id: self.key_id.as_deref().map(Into::into),
            algorithm: self.algorithm,
            key: VerificationKey::Public(key),
        })
    }
}

/// The cookies of a header, name and value.
fn cookies(header: &HeaderValue) -> impl Iterator<Item = (&[u8], &[u8])> {
    header.as_bytes().split(|byte| *byte == b';').map(|part| cookie(part.trim_ascii()))
}

fn cookie(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b'=') {
        Some(place) => (text.get(..place).unwrap_or_default(), text.get(place + 1..).unwrap_or_default()),
        None => (text, b""),
    }
}

/// A claim as the value of a header. `None`: it has none.
fn header_value(claim: &Value) -> Option<HeaderValue> {
    /// The bytes that stand for themselves in a value: printable ASCII, and not what the encoding begins with.
    const ENCODED: AsciiSet = CONTROLS.add(b'%');
    let text = match claim {
        Value::Null => return None,
        Value::String(text) => Cow::Borrowed(text.as_str()),
        other => Cow::Owned(other.to_string()),
    };
    HeaderValue::from_str(&Cow::from(percent_encode(text.as_bytes(), &ENCODED))).ok()
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

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    use ring::hmac;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;
    use crate::testing::{Client, build, consumers_of, refused};

    const SECRET: &str = "a secret of alice that is long enough";
    const SEED: [u8; 32] = [7; 32];

    fn known() -> Consumers {
        consumers_of(&[
            json!({"name": "alice", "credentials": [
                {"jwt": {"issuer": "shop", "algorithm": "HS256", "secret": SECRET}},
                {"jwt": {"issuer": "rotating", "key_id": "old", "algorithm": "HS256", "secret": SECRET}},
                {"jwt": {"issuer": "rotating", "key_id": "new", "algorithm": "EdDSA", "public_key": public_key()}},
            ]}),
            json!({"name": "guest"}),
        ])
    }

    fn pair() -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&SEED).unwrap()
    }

    fn public_key() -> String {
        // RFC 8410, section 4.
        let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let der = [&prefix[..], pair().public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(der))
    }

    fn in_an_hour() -> u64 {
        since_1970(&Client::new("GET", "/").clock).as_secs() + 3600
    }

    /// A token whose signature is the one that the header names.
    fn token(header: &Value, mut claims: Value) -> String {
        let fields = claims.as_object_mut().unwrap();
        fields.entry("exp").or_insert_with(in_an_hour_value);
        let signed = format!(
            "{}.{}",
            BASE64_URL_SAFE_NO_PAD.encode(header.to_string()),
            BASE64_URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = match header["alg"].as_str().unwrap() {
            "EdDSA" => pair().sign(signed.as_bytes()).as_ref().to_vec(),
            _ => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
                hmac::sign(&key, signed.as_bytes()).as_ref().to_vec()
            }
        };
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    fn in_an_hour_value() -> Value {
        json!(in_an_hour())
    }

    fn of_shop() -> String {
        token(&json!({"alg": "HS256"}), json!({"iss": "shop", "sub": "alice@example.com"}))
    }

    fn with(token: &str) -> Client {
        Client::new("GET", "/").header("authorization", &format!("Bearer {token}")).knowing(&known())
    }

    #[test]
    fn a_token_of_a_consumer_is_the_consumers() {
        let plugin = build("jwt", json!({}));
        let rotating = |header: Value| token(&header, json!({"iss": "rotating"}));
        for (token, credential) in [
            (of_shop(), Some("shop")),
            (token(&json!({"alg": "HS256", "kid": "any"}), json!({"iss": "shop"})), Some("shop")),
            (rotating(json!({"alg": "HS256", "kid": "old"})), Some("old")),
            (rotating(json!({"alg": "EdDSA", "kid": "new"})), Some("new")),
            (rotating(json!({"alg": "EdDSA"})), Some("new")),
            (rotating(json!({"alg": "EdDSA", "kid": "old"})), None),
            (rotating(json!({"alg": "HS256", "kid": "new"})), None),
            (rotating(json!({"alg": "HS256", "kid": "other"})), None),
            (token(&json!({"alg": "HS256"}), json!({"iss": "other"})), None),
            (token(&json!({"alg": "HS256"}), json!({"iss": ["shop"]})), None),
            (token(&json!({"alg": "HS256"}), json!({})), None),
            // The algorithm is the one of the key.
            (token(&json!({"alg": "EdDSA"}), json!({"iss": "shop"})), None),
            (token(&json!({"alg": "HS512"}), json!({"iss": "shop"})), None),
        ] {
            let mut client = with(&token);
            let answer = client.meets(&*plugin);
            let found = client.head.headers.get("x-credential-identifier").map(|id| id.to_str().unwrap());
            assert_eq!(found, credential, "{token}");
            if let Some(answer) = answer {
                assert_eq!(answer.status, 401);
                let challenge = &answer.headers["www-authenticate"];
                assert_eq!(challenge, "Bearer realm=\"signalbox\", error=\"invalid_token\"");
            }
        }
    }

    #[test]
    fn without_a_token_the_challenge_has_no_error() {
        for client in [
            Client::new("GET", "/"),
            Client::new("GET", "/").header("authorization", "Basic YTpi"),
            Client::new("GET", "/").header("authorization", "Bearer "),
        ] {
            let answer = client.knowing(&known()).meets(&*build("jwt", json!({"realm": "x"}))).unwrap();
            assert_eq!(
                (answer.status, &answer.headers["www-authenticate"]),
                (401, &HeaderValue::from_static("Bearer realm=\"x\""))
            );
        }
    }

    #[test]
    fn what_is_configured_is_required() {
        let header = json!({"alg": "HS256"});
        let now = since_1970(&Client::new("GET", "/").clock).as_secs();
        for (config, claims, passes) in [
            (json!({"issuer": "shop"}), json!({"iss": "shop"}), true),
            (json!({"issuer": "other"}), json!({"iss": "shop"}), false),
            (json!({"audiences": ["a", "b"]}), json!({"iss": "shop", "aud": ["x", "b"]}), true),
            (json!({"audiences": ["a"]}), json!({"iss": "shop", "aud": "b"}), false),
            (json!({"audiences": ["a"]}), json!({"iss": "shop"}), false),
            (json!({"claims_required": ["sub"]}), json!({"iss": "shop", "sub": "x"}), true),
            (json!({"claims_required": ["sub"]}), json!({"iss": "shop", "sub": null}), false),
            (json!({"claims_required": ["sub"]}), json!({"iss": "shop"}), false),
            (json!({"algorithms": ["EdDSA"]}), json!({"iss": "shop"}), false),
            (json!({}), json!({"iss": "shop", "exp": now - 30}), true),
            (json!({"leeway": "10s"}), json!({"iss": "shop", "exp": now - 30}), false),
            (json!({}), json!({"iss": "shop", "exp": now - 90}), false),
            (json!({}), json!({"iss": "shop", "exp": null}), false),
            (json!({}), json!({"iss": "shop", "exp": in_an_hour().to_string()}), false),
            (json!({}), json!({"iss": "shop", "nbf": now + 90}), false),
        ] {
            let mut client = with(&token(&header, claims.clone()));
            assert_eq!(client.meets(&*build("jwt", config.clone())).is_none(), passes, "{config} {claims}");
        }
    }

    #[test]
    fn a_key_of_the_plugin_verifies_tokens_of_anybody_or_of_the_consumer_that_a_claim_names() {
        let keys = json!([{"algorithm": "EdDSA", "public_key": public_key()}]);
        let header = json!({"alg": "EdDSA", "kid": "whatever"});
        let plugin = build("jwt", json!({"keys": keys}));
        let mut client = with(&token(&header, json!({"iss": "anyone"})));
        assert!(client.meets(&*plugin).is_none() && client.exchange.identity.is_none());
        let plugin = build("jwt", json!({"keys": keys, "consumer_claim": "user"}));
        for (claims, expected) in [
            (json!({"user": "alice"}), Some("alice")),
            (json!({"user": "nobody"}), None),
            (json!({"user": 1}), None),
            (json!({}), None),
        ] {
            let mut client = with(&token(&header, claims.clone()));
            let passes = client.meets(&*plugin).is_none();
            let name = client.exchange.identity.map(|identity| identity.consumer.name.to_string());
            assert_eq!((passes, name.as_deref()), (expected.is_some(), expected), "{claims}");
        }
    }

    #[test]
    fn a_token_is_found_wherever_it_may_stand_and_only_one_may() {
        let plugin = build(
            "jwt",
            json!({
                "headers": ["authorization", "x-token"], "query": ["token"], "cookies": ["session"],
            }),
        );
        let (good, other) = (of_shop(), token(&json!({"alg": "HS256"}), json!({"iss": "shop", "jti": "2"})));
        let bare = || Client::new("GET", "/").knowing(&known());
        for (what, mut client, passes) in [
            ("bearer", bare().header("authorization", &format!("bEaReR {good}")), true),
            ("a header as it is", bare().header("x-token", &good), true),
            ("a header with the scheme", bare().header("x-token", &format!("Bearer {good}")), true),
            ("the query", Client::new("GET", &format!("/?a&token={good}")).knowing(&known()), true),
            ("a cookie", bare().header("cookie", &format!("a=b; session={good}; c=d")), true),
            ("the same twice", with(&good).header("x-token", &good), true),
            ("two different ones", with(&good).header("x-token", &other), false),
            ("two in one header", with(&good).header("authorization", &format!("Bearer {good}")), false),
            (
                "two in the query",
                Client::new("GET", &format!("/?token={good}&token={other}")).knowing(&known()),
                false,
            ),
            ("another cookie", bare().header("cookie", &format!("xsession={good}")), false),
        ] {
            assert_eq!(client.meets(&*plugin).is_none(), passes, "{what}");
        }
    }

    #[test]
    fn hidden_tokens_do_not_reach_the_upstream_and_their_neighbours_do() {
        let plugin = build(
            "jwt",
            json!({
                "headers": ["authorization"], "query": ["token"], "cookies": ["session"], "hide_credentials": true,
            }),
        );
        let good = of_shop();
        let mut client = Client::new("GET", &format!("/p?a=%20&token={good}&b"))
            .header("authorization", &format!("Bearer {good}"))
            .header("cookie", &format!("a=b; session={good};c=d"))
            .header("cookie", &format!("session={good}"))
            .knowing(&known());
        assert!(client.meets(&*plugin).is_none());
        assert_eq!(client.head.uri, "/p?a=%20&b");
        assert!(!client.head.headers.contains_key("authorization"));
        assert_eq!(client.head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=b; c=d"]);
    }

    #[test]
    fn claims_are_told_in_headers_that_no_client_can_set() {
        let config = json!({"anonymous": "guest", "claims_to_headers": {
            "x-sub": "sub", "x-text": "text", "x-number": "number", "x-list": "list", "x-none": "none",
        }});
        let plugin = build("jwt", config);
        let spoofed = |client: Client| {
            ["x-sub", "x_sub", "X.Sub", "x-text", "x-number", "x-list", "x-none"]
                .iter()
                .fold(client, |client, name| client.header(name, "spoofed"))
        };
        let claims = json!({
            "iss": "shop", "sub": "a%b", "text": "Gr\u{fc}n\r\nx-evil: 1", "number": 9_007_199_254_740_993_u64,
            "list": ["a", 1], "none": null,
        });
        let mut client = spoofed(with(&token(&json!({"alg": "HS256"}), claims)));
        assert!(client.meets(&*plugin).is_none());
        let headers = &client.head.headers;
        assert_eq!(headers["x-sub"], "a%25b");
        assert_eq!(headers["x-text"], "Gr%C3%BCn%0D%0Ax-evil: 1");
        assert_eq!(headers["x-number"], "9007199254740993");
        assert_eq!(headers["x-list"], "[\"a\",1]");
        assert!(
            !headers.contains_key("x-none")
                && !headers.contains_key("x_sub")
                && !headers.contains_key("x.sub")
        );
        // Without a token nobody vouches for them.
        let mut client = spoofed(Client::new("GET", "/").knowing(&known()));
        assert!(client.meets(&*plugin).is_none());
        assert!(
            ["x-sub", "x_sub", "x.sub", "x-text", "x-number", "x-list", "x-none"]
                .iter()
                .all(|it| !client.head.headers.contains_key(*it))
        );
    }

    #[test]
    fn bad_configurations_are_refused() {
        let ed25519 = public_key();
        for (config, field) in [
            (json!({"issuer": ""}), "issuer: "),
            (json!({"algorithms": []}), "algorithms: "),
            (json!({"algorithms": ["none"]}), "algorithms[0]: "),
            (json!({"leeway": "2h"}), "leeway: "),
            (json!({"headers": []}), "headers: "),
            (json!({"headers": ["a b"]}), "headers[0]: "),
            (json!({"claims_to_headers": {"a b": "sub"}}), "claims_to_headers.a b: "),
            (json!({"consumer_claim": "sub"}), "consumer_claim: "),
            (json!({"keys": [{"algorithm": "HS256", "public_key": ed25519}]}), "keys[0].algorithm: "),
            (json!({"keys": [{"algorithm": "ES256", "public_key": ed25519}]}), "keys[0].public_key: "),
            (json!({"keys": [{"algorithm": "EdDSA", "public_key": "x"}]}), "keys[0].public_key: "),
        ] {
            let errors = refused("jwt", config.clone());
            assert!(errors.starts_with(field), "{config}: {errors}");
        }
    }
}
