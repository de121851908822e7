//! The gateway as a client of the provider: its calls to the token endpoint, and its check of ID tokens.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use signalbox_plugin::{CallLimits, Clock, Outbound};

use super::config::ClientAuth;
use crate::clock::since_1970;
use crate::provider::{Known, Metadata, Provider, Refetch};
use crate::query::encode;
use crate::token::Token;
use crate::token_key::have_signed;

/// The gateway, as the provider knows it.
pub(super) struct Client {
    pub(super) provider: Arc<Provider>,
    pub(super) registration: Registration,
}

/// The facts by which the provider knows the gateway, and the claims that are taken from ID tokens.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Registration {
    pub(super) issuer: Box<str>,
    pub(super) client_id: Box<str>,
    pub(super) secret: Option<Box<str>>,
    pub(super) auth: ClientAuth,
    pub(super) redirect_uri: Box<str>,
    pub(super) timeout: Duration,
    pub(super) leeway: Duration,
    pub(super) claims: Box<[Box<str>]>,
}

/// The tokens of a user.
pub(super) struct Tokens {
    pub(super) access_token: Option<String>,
    pub(super) refresh_token: Option<String>,
    /// The end of the access token's validity, in seconds since 1970.
    pub(super) expires: Option<u64>,
    pub(super) identity: Option<IdToken>,
}

/// An ID token that was verified.
pub(super) struct IdToken {
    pub(super) text: String,
    pub(super) claims: Map<String, Value>,
}

/// The demands on an ID token beyond the usual ones.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected<'e> {
    /// The one of a login with this nonce.
    Nonce(&'e str),
    /// One that a refresh brings, about this user.
    Subject(&'e str),
}

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// The provider cannot be asked now.
    #[error("the provider cannot be asked: {0}")]
    Unavailable(String),
    /// The provider says no.
    #[error("the provider refuses: {0}")]
    Refused(String),
    /// The provider says what cannot be believed.
    #[error("the provider's ID token is not acceptable: {0}")]
    Untrusted(&'static str),
    /// The provider's ID token cannot be verified now: no key is known that has signed it, and the keys could not be fetched anew.
    #[error("the provider's ID token cannot be verified before the provider's keys are fetched anew")]
    Unproven {
        /// The refresh token that came with it.
        refresh_token: Option<String>,
    },
}

/// The reason why an ID token does not count.
enum Unverified {
    Wrong(&'static str),
    /// No key is known that has signed it, and the keys could not be fetched anew.
    UnknownKey,
}

#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    refresh_token: Option<String>,
    id_token: Option<String>,
    expires_in: Option<Value>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: String,
}

/// The largest answer of the token endpoint, bytes.
const MAX_ANSWER: usize = 64 << 10;

/// The longest time for which an access token is believed to be valid, seconds.
const MAX_EXPIRES_IN: u64 = 10 * 365 * 24 * 3600;

impl Client {
    /// Returns the metadata of the provider; waits for the first fetch if it is under way.
    pub(super) async fn metadata(&self, clock: &Clock) -> Result<Metadata, TokenError> {
        if self.provider.known().is_none()
            && let Refetch::Wait(fetched) = self.provider.refetch(clock.monotonic(), clock)
        {
            fetched.await;
        }
        let metadata = self.provider.known().and_then(|known| known.metadata.clone());
        metadata.ok_or_else(|| {
            TokenError::Unavailable("its discovery document could not be fetched yet".to_owned())
        })
    }

    /// Redeems the code of a login.
    pub(super) async fn redeem(
        &self,
        code: &str,
        verifier: &str,
        nonce: &str,
        outbound: &Outbound,
        clock: &Clock,
    ) -> Result<Tokens, TokenError> {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &*self.registration.redirect_uri),
            ("code_verifier", verifier),
        ];
        let tokens = self.ask(&form, Expected::Nonce(nonce), outbound, clock).await?;
        match tokens.identity {
            Some(_) => Ok(tokens),
            None => Err(TokenError::Untrusted("it is missing")),
        }
    }

    /// Renews the tokens of a user.
    pub(super) async fn refresh(
        &self,
        refresh_token: &str,
        subject: &str,
        outbound: &Outbound,
        clock: &Clock,
    ) -> Result<Tokens, TokenError> {
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh_token)];
        self.ask(&form, Expected::Subject(subject), outbound, clock).await
    }

    async fn ask(
        &self,
        form: &[(&str, &str)],
        expected: Expected<'_>,
        outbound: &Outbound,
        clock: &Clock,
    ) -> Result<Tokens, TokenError> {
        let unavailable = |message: &str| TokenError::Unavailable(message.to_owned());
        let endpoint = self.metadata(clock).await?.token;
        let endpoint = endpoint.ok_or_else(|| unavailable("it has no token endpoint"))?;
        let request = self
            .request(form, endpoint.url)
            .ok_or_else(|| unavailable("the client's secret cannot be sent"))?;
        let limits = CallLimits { timeout: self.registration.timeout, answer_size: MAX_ANSWER };
        let answer = outbound.call(self.provider.upstream(), request, limits).await;
        let response = answer.map_err(|error| unavailable(&error.to_string()))?.response;
        let status = response.status();
        if matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED)
            && let Ok(ErrorAnswer { error }) = serde_json::from_slice(response.body())
        {
            // Only this one is about the user (RFC 6749, section 5.2); the others are about the gateway.
            return Err(match error.as_str() {
                "invalid_grant" => TokenError::Refused(error),
                _ => TokenError::Unavailable(format!("it answered with the error {:?}", printable(&error))),
            });
        }
        if status != StatusCode::OK {
            return Err(TokenError::Unavailable(format!("it answered {status}")));
        }
        let answer: Answer = serde_json::from_slice(response.body())
            .map_err(|_| unavailable("its answer is not the JSON of a token response"))?;
        let refresh_token = answer.refresh_token.filter(|token| !token.is_empty());
        let identity = match answer.id_token {
            Some(text) => match self.verify(&text, expected, clock).await {
                Ok(claims) => Some(IdToken { text, claims }),
                Err(Unverified::Wrong(reason)) => return Err(TokenError::Untrusted(reason)),
                Err(Unverified::UnknownKey) => return Err(TokenError::Unproven { refresh_token }),
            },
            None => None,
        };
        Ok(Tokens {
            access_token: answer.access_token,
            refresh_token,
            expires: answer
                .expires_in
                .as_ref()
                .and_then(seconds)
                .map(|seconds| since_1970(clock).as_secs().saturating_add(seconds.min(MAX_EXPIRES_IN))),
            identity,
        })
    }

    fn request(&self, form: &[(&str, &str)], url: http::Uri) -> Option<Request<Bytes>> {
        let Registration { client_id, secret, auth, .. } = &self.registration;
        let mut body = String::new();
        for (name, value) in form {
            let _ = write!(body, "{}{name}={}", if body.is_empty() { "" } else { "&" }, encode(value));
        }
        let mut request = Request::new(Bytes::new());
        let headers = request.headers_mut();
        match (secret, auth) {
            (Some(secret), ClientAuth::Basic) => {
                let pair = BASE64.encode(format!("{}:{}", encode(client_id), encode(secret)));
                let mut value = HeaderValue::try_from(format!("Basic {pair}")).ok()?;
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
            (Some(secret), ClientAuth::Post) => {
                let _ = write!(body, "&client_id={}&client_secret={}", encode(client_id), encode(secret));
            }
            (None, _) => {
                let _ = write!(body, "&client_id={}", encode(client_id));
            }
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url;
        *request.body_mut() = body.into();
        Some(request)
    }

    /// Verifies an ID token (OpenID Connect Core, section 3.1.3.7), and returns the claims that are wanted.
    async fn verify(
        &self,
        text: &str,
        expected: Expected<'_>,
        clock: &Clock,
    ) -> Result<Map<String, Value>, Unverified> {
        let token = Token::read(text.as_bytes()).map_err(Unverified::Wrong)?;
        check(&token, &self.registration, expected, since_1970(clock)).map_err(Unverified::Wrong)?;
        if !self.has_signed(&token) {
            let fetches = self.provider.fetches();
            if let Refetch::Wait(fetched) = self.provider.refetch(clock.monotonic(), clock) {
                fetched.await;
            }
            let is_fetched = self.provider.fetches() != fetches;
            if !self.has_signed(&token) {
                return Err(match is_fetched {
                    true => Unverified::Wrong("it is not signed by a key of the provider"),
                    false => Unverified::UnknownKey,
                });
            }
        }
        let wanted = self.registration.claims.iter().map(|name| &**name).chain(["sub"]);
        let found = wanted.filter_map(|name| Some((name.to_owned(), token.claim(name)?.clone())));
        Ok(found.collect())
    }

    fn has_signed(&self, token: &Token<'_>) -> bool {
        let is_signer = |known: Arc<Known>| have_signed(&known.keys, token);
        self.provider.known().is_some_and(is_signer)
    }
}

/// Checks the claims of an ID token.
fn check(
    token: &Token<'_>,
    registration: &Registration,
    expected: Expected<'_>,
    now: Duration,
) -> Result<(), &'static str> {
    let text = |name: &str| token.claim(name).and_then(Value::as_str);
    if token.issuer() != Some(&registration.issuer) {
        return Err("it has another issuer");
    }
    if !token.is_for(std::slice::from_ref(&registration.client_id)) {
        return Err("it is for another client");
    }
    let has_several = token.claim("aud").and_then(Value::as_array).is_some_and(|list| list.len() > 1);
    match token.claim("azp") {
        None if has_several => {
            return Err("it has several audiences, and does not say for which client it is");
        }
        None => {}
        Some(party) if party.as_str() == Some(&registration.client_id) => {}
        Some(_) => return Err("it was issued to another client"),
    }
    if token.expires().is_none() {
        return Err("it does not expire");
    }
    token.check_times(now, registration.leeway)?;
    let subject = text("sub").filter(|subject| !subject.is_empty());
    let subject = subject.ok_or("it names no user")?;
    match expected {
        Expected::Nonce(nonce) if text("nonce") != Some(nonce) => Err("it belongs to another login"),
        Expected::Subject(known) if subject != known => Err("it is about another user"),
        Expected::Nonce(_) | Expected::Subject(_) => Ok(()),
    }
}

/// A number of seconds; some providers send it as a text.
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// A text of the provider for logs and answers.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_token_is_for_this_client_this_login_and_this_user() {
        let registration = Registration {
            issuer: "https://login.example".into(),
            client_id: "shop".into(),
            secret: None,
            auth: ClientAuth::Basic,
            redirect_uri: "https://shop.example/callback".into(),
            timeout: Duration::ZERO,
            leeway: Duration::from_secs(60),
            claims: [].into(),
        };
        let nonce = Expected::Nonce("n");
        for (changes, expected, accepted) in [
            (json!({}), nonce, true),
            (json!({}), Expected::Subject("alice"), true),
            (json!({}), Expected::Subject("bob"), false),
            (json!({}), Expected::Nonce("m"), false),
            (json!({"nonce": null}), nonce, false),
            (json!({"iss": "https://login.example/"}), nonce, false),
            (json!({"iss": "https://login.example/other"}), nonce, false),
            (json!({"aud": ["shop"]}), nonce, true),
            (json!({"aud": "other"}), nonce, false),
            (json!({"aud": ["shop", "other"]}), nonce, false),
            (json!({"aud": ["shop", "other"], "azp": "shop"}), nonce, true),
            (json!({"aud": ["shop", "other"], "azp": "other"}), nonce, false),
            (json!({"azp": "other"}), nonce, false),
            (json!({"azp": 7}), nonce, false),
            (json!({"sub": ""}), nonce, false),
            (json!({"sub": 7}), nonce, false),
            (json!({"exp": 939}), nonce, false),
            (json!({"exp": 941}), nonce, true),
            (json!({"exp": null}), nonce, false),
            (json!({"exp": "2000"}), nonce, false),
            (json!({"iat": 1061}), nonce, false),
        ] {
            let mut claims = json!({"iss": "https://login.example", "aud": "shop", "sub": "alice", "exp": 2000, "nonce": "n"});
            claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
            let text = format!("{}.{}.AAAA", part(&json!({"alg": "ES256"})), part(&claims));
            let token = Token::read(text.as_bytes()).unwrap();
            let checked = check(&token, &registration, expected, Duration::from_secs(1000));
            assert_eq!(checked.is_ok(), accepted, "{changes} {expected:?} {checked:?}");
        }
    }
}
