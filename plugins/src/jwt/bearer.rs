//! The authentication by tokens.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use signalbox_config::{Errors, TokenAlgorithm};
use signalbox_plugin::{Consumers, Context, Identity, PluginRequest};

use super::config::{Config, Keys};
use crate::authentication::{Attempt, Method, NotRewritable, Refusal, Verdict, challenge, remove_parameters};
use crate::authorization::after_scheme;
use crate::claims::ClaimHeaders;
use crate::clock::since_1970;
use crate::provider::{Provider, Refetch};
use crate::signature::verifies;
use crate::token::Token;
use crate::token_key::{TokenKey, fitting, have_signed};
use crate::verified::{self, Verified};
use crate::{cookies, query};

/// The authentication by tokens.
pub(crate) struct Bearer {
    issuer: Option<Box<str>>,
    audiences: Box<[Box<str>]>,
    keys: Box<[TokenKey]>,
    provider: Option<Arc<Provider>>,
    verified: Option<Verified<Remembered>>,
    algorithms: Box<[TokenAlgorithm]>,
    claims_required: Box<[Box<str>]>,
    leeway: Duration,
    headers: Box<[HeaderName]>,
    parameters: Box<[Box<str>]>,
    cookies: Box<[Box<str>]>,
    claims_to_headers: ClaimHeaders,
    consumer_claim: Option<Box<str>>,
    hide_credentials: bool,
    challenge: HeaderValue,
    invalid_token: HeaderValue,
}

/// The rights that a good token gives.
#[derive(Clone)]
struct Good {
    /// `None`: it belongs to no consumer.
    identity: Option<Identity>,
    /// The headers about its claims.
    told: Arc<[(HeaderName, HeaderValue)]>,
}

/// A token that was verified.
struct Remembered {
    good: Good,
    /// The times since 1970 between which it need not be verified again.
    from: Duration,
    until: Duration,
    /// The keys of the provider, by which it was verified.
    generation: u64,
}

/// Why a token does not count.
enum Unproven {
    Absent(&'static str),
    Bad(&'static str),
    /// Nothing else is wrong with it, but no key is known that could have signed it.
    UnknownKey,
}

impl From<&'static str> for Unproven {
    fn from(detail: &'static str) -> Self {
        Self::Bad(detail)
    }
}

/// The longest time for which a token is remembered.
const MEMORY: Duration = Duration::from_secs(300);

/// The most bytes of headers about claims that are remembered with a token.
const MAX_REMEMBERED: usize = 2048;

const NO_KEY: &str = "the token is not signed by a known key";

impl Method for Bearer {
    fn strip(&self, request: &mut PluginRequest<'_>) {
        self.claims_to_headers.strip(&mut request.head.headers);
    }

    fn authenticate(&self, request: &mut PluginRequest<'_>) -> Attempt {
        let judged = self.judge(request);
        if let (Err(Unproven::UnknownKey), Some(provider)) = (&judged, &self.provider) {
            return match provider.refetch(request.now, request.clock) {
                Refetch::Wait(fetched) => Attempt::Again(fetched),
                Refetch::TooSoon => self.refuse(NO_KEY).into(),
                Refetch::NoKeys => Verdict::Refused(no_keys()).into(),
            };
        }
        self.conclude(judged, request).into()
    }

    fn authenticate_again(&self, request: &mut PluginRequest<'_>) -> Verdict {
        let judged = self.judge(request);
        let lacks_keys = self.provider.as_ref().is_some_and(|provider| provider.generation() == 0);
        match judged {
            Err(Unproven::UnknownKey) if lacks_keys => no_keys().into(),
            judged => self.conclude(judged, request),
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
        if !self.cookies.is_empty() {
            cookies::remove(&mut request.head.headers, |name| self.is_cookie(name));
        }
        remove_parameters(&mut request.head.uri, &self.parameters)
    }

    fn challenge(&self) -> Option<&HeaderValue> {
        Some(&self.challenge)
    }

    fn uses_consumer_headers(&self) -> bool {
        let written = self.claims_to_headers.names();
        self.headers.iter().chain(written).any(|name| Consumers::HEADERS.contains(name))
    }
}

const SCHEME: &str = "Bearer";

fn no_keys() -> Refusal {
    Refusal::unavailable("the keys that verify tokens could not be fetched yet")
}

impl Bearer {
    /// Adds the errors of a configuration to `errors`.
    pub(crate) fn check(config: &Config, errors: &mut Errors) {
        config.parse(errors);
        ClaimHeaders::of(&config.claims_to_headers, errors);
        token_headers(config, errors);
    }

    /// Reads a configuration. Parts that are wrong are missing from the result.
    pub(crate) fn of(config: &Config, context: &Context<'_>, errors: &mut Errors) -> Self {
        let Keys { fixed, source } = config.parse(errors);
        let texts = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
        Self {
            issuer: config.issuer.as_deref().map(Into::into),
            audiences: texts(&config.audiences),
            keys: fixed.into(),
            provider: source.map(|source| Provider::of(&source, context)),
            verified: config.cache.then(Verified::default),
            algorithms: config.algorithms.as_slice().into(),
            claims_required: texts(&config.claims_required),
            leeway: config.leeway.0,
            headers: token_headers(config, errors),
            parameters: texts(&config.query),
            cookies: texts(&config.cookies),
            claims_to_headers: ClaimHeaders::of(&config.claims_to_headers, errors),
            consumer_claim: config.consumer_claim.as_deref().map(Into::into),
            hide_credentials: config.hide_credentials,
            challenge: challenge(SCHEME, &config.realm, ""),
            invalid_token: challenge(SCHEME, &config.realm, ", error=\"invalid_token\""),
        }
    }

    fn judge(&self, request: &PluginRequest<'_>) -> Result<Good, Unproven> {
        let text = self.find(request)?.ok_or(Unproven::Absent("no token was found in the request"))?;
        let now = since_1970(request.clock);
        // Read before the keys are: a change meanwhile makes what is remembered old, and not new.
        let generation = self.provider.as_ref().map_or(0, |provider| provider.generation());
        let Some(verified) = &self.verified else {
            return self.verify(&Token::read(&text)?, request.consumers, now);
        };
        let hash = verified::hash(&text);
        let known = verified.find(&hash, |remembered| {
            remembered.is_current(generation, now, request.consumers).then(|| remembered.good.clone())
        });
        if let Some(good) = known {
            return Ok(good);
        }
        let token = Token::read(&text)?;
        let good = self.verify(&token, request.consumers, now)?;
        if good.told.iter().map(|(_, value)| value.len()).sum::<usize>() <= MAX_REMEMBERED {
            let longest = now + MEMORY;
            let until = token.expires().map_or(longest, |expires| expires.min(longest));
            verified.remember(hash, Remembered { good: good.clone(), from: now, until, generation });
        }
        Ok(good)
    }

    fn conclude(&self, judged: Result<Good, Unproven>, request: &mut PluginRequest<'_>) -> Verdict {
        match judged {
            Ok(Good { identity, told }) => {
                for (name, value) in &*told {
                    request.head.headers.insert(name, value.clone());
                }
                Verdict::Passed(identity)
            }
            Err(Unproven::Absent(detail)) => Verdict::Absent(detail),
            Err(Unproven::Bad(detail)) => self.refuse(detail),
            Err(Unproven::UnknownKey) => self.refuse(NO_KEY),
        }
    }

    /// The only token of the request. An error, if there are several.
    fn find<'r>(&self, request: &'r PluginRequest<'_>) -> Result<Option<Cow<'r, [u8]>>, &'static str> {
        let headers = &request.head.headers;
        let mut found: Option<Cow<'r, [u8]>> = None;
        let mut add = |token: Cow<'r, [u8]>| match &found {
            Some(other) if **other != *token => Err("the request has more than one token"),
            Some(_) => Ok(()),
            None => {
                found = Some(token);
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
                        add(Cow::Owned(token.to_vec()))?;
                    }
                }
            }
        }
        if !self.cookies.is_empty() {
            for (name, value) in cookies::all(headers) {
                if !value.is_empty() && self.is_cookie(name) {
                    add(Cow::Borrowed(value))?;
                }
            }
        }
        Ok(found)
    }

    fn is_cookie(&self, name: &[u8]) -> bool {
        self.cookies.iter().any(|cookie| cookie.as_bytes() == name)
    }

    fn verify(&self, token: &Token<'_>, consumers: &Consumers, now: Duration) -> Result<Good, Unproven> {
        self.check_claims(token, now)?;
        let identity = match self.is_signed_by_own_key(token) {
            true => self.named_consumer(token, consumers)?,
            false => {
                let is_signed = |algorithm, key| {
                    algorithm == token.algorithm && verifies(algorithm, key, token.signed, &token.signature)
                };
                let keys = token.issuer().map_or(&[][..], |issuer| consumers.by_issuer(issuer));
                let wanted = token.key_id.as_deref();
                let known = fitting(keys, |known| known.secret.key_id.as_deref(), wanted)
                    .find(|known| is_signed(known.secret.algorithm, &known.secret.key));
                Some(known.ok_or_else(|| self.unsigned(token))?.identity.clone())
            }
        };
        Ok(Good { identity, told: self.claims_to_headers.values(|name| token.claim(name)).collect() })
    }

    fn check_claims(&self, token: &Token<'_>, now: Duration) -> Result<(), &'static str> {
        if !self.algorithms.contains(&token.algorithm) {
            return Err("the token's algorithm is not supported");
        }
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
        Ok(())
    }

    /// True if a key of the configuration or of the provider has signed the token.
    fn is_signed_by_own_key(&self, token: &Token<'_>) -> bool {
        if have_signed(&self.keys, token) {
            return true;
        }
        let known = self.provider.as_ref().and_then(|provider| provider.known());
        known.is_some_and(|known| have_signed(&known.keys, token))
    }

    /// The error of a token that no key has signed.
    fn unsigned(&self, token: &Token<'_>) -> Unproven {
        let Some(provider) = &self.provider else { return Unproven::Bad(NO_KEY) };
        // Providers publish no secrets, so other keys would not help.
        if token.algorithm.min_secret().is_some() {
            return Unproven::Bad(NO_KEY);
        }
        let is_known = |key_id: &str| {
            provider
                .known()
                .is_some_and(|known| known.keys.iter().any(|key| key.key_id.as_deref() == Some(key_id)))
        };
        match &token.key_id {
            Some(key_id) if is_known(key_id) => Unproven::Bad(NO_KEY),
            _ => Unproven::UnknownKey,
        }
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
}

impl Remembered {
    /// True if the token would be found good again: under the same keys, at this time, and with its consumer as it was. A consumer that
    /// a revision changed is another one.
    fn is_current(&self, generation: u64, now: Duration, consumers: &Consumers) -> bool {
        let is_as_it_was = |identity: &Identity| {
            let current = consumers.named(identity.consumer.name.as_str());
            current.is_some_and(|current| Arc::ptr_eq(&current, &identity.consumer))
        };
        self.generation == generation
            && (self.from..self.until).contains(&now)
            && self.good.identity.as_ref().is_none_or(is_as_it_was)
    }
}

/// The headers that may hold the token.
fn token_headers(config: &Config, errors: &mut Errors) -> Box<[HeaderName]> {
    let named = config.headers.iter().enumerate();
    let parsed = named.filter_map(|(index, name)| match name.parse::<HeaderName>() {
        Ok(header) => Some(header),
        Err(_) => {
            let message = format_args!("{name:?} is not the name of a header");
            errors.push(format_args!("headers[{index}]"), message);
            None
        }
    });
    parsed.collect()
}
