//! Authenticates requests by the user names and passwords of consumers (HTTP Basic, RFC 7617).
//!
//! A request passes whose `Authorization: Basic …` has the user name and the password of a consumer's `basic_auth`
//! credential. The upstream gets the consumer's identity in headers, as with [key-auth](key-auth.md). All other requests are
//! answered `401` with `WWW-Authenticate: Basic realm="…", charset="UTF-8"`, or pass as the `anonymous` consumer.
//!
//! The user name ends at the first colon. Both are UTF-8, and neither is empty.
//!
//! Only hashes of passwords are stored: argon2id, or bcrypt where that was imported. To verify one takes 20 ms and more, so it
//! is done on two threads besides the workers, for at most 64 requests that wait; then the answer is `503` with
//! `Retry-After`. A password that was verified is remembered for a minute, in memory and as a keyed hash, and only for the
//! stored hash that it was verified against: a password that is changed counts at once. A user name that nobody has takes as
//! long as the slowest password of all consumers, so the time of an answer does not say who exists.

use std::sync::Arc;

use base64::Engine as _;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError, PasswordHash, ResourceKey, sha256};
use signalbox_plugin::{Context, Definition, Flow, Identity, PasswordSecret, Plugin, PluginRequest, hooks};

use crate::authentication::{
    Attempt, Guard, Method, NotRewritable, Refusal, Verdict, anonymous_reference, challenge, check_anonymous,
    check_realm, default_realm,
};
use crate::authorization::{self, Several};
use crate::lenient_base64::BASE64;
use crate::password_pool::{Busy, PasswordPool};

/// The treatment of the password, and of requests without one.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Basic authentication", example = serde_json::json!({}),
    example = serde_json::json!({"realm": "the shop", "hide_credentials": true}))]
pub(crate) struct Config {
    /// Removes the password from the request before it is forwarded.
    #[serde(default)]
    #[schemars(title = "Hide credentials")]
    hide_credentials: bool,
    /// The consumer as which requests without a valid password pass. Absent: they are answered 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Anonymous consumer")]
    pub(crate) anonymous: Option<String>,
    /// The realm, which browsers show to the user.
    #[serde(default = "default_realm")]
    #[schemars(title = "Realm")]
    realm: String,
}

/// Authenticates requests by the user names and passwords of consumers.
pub(crate) struct BasicAuth(Guard);

#[hooks]
impl Plugin for BasicAuth {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        self.0.on_request(request)
    }

    fn uses_consumer_headers(&self) -> bool {
        self.0.uses_consumer_headers()
    }
}

impl Definition for BasicAuth {
    const NAME: &'static str = "basic-auth";
    const DESCRIPTION: &'static str = "Lets in who has the password of a consumer.";
    const ORDER: i32 = 1400;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        check_anonymous(config.anonymous.as_deref(), errors);
        check_realm(&config.realm, errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        anonymous_reference(config.anonymous.as_deref())
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let method = UserPassword::of(&config, context);
        errors.finish(Some(Self(Guard::of(method, config.anonymous))))
    }
}

/// The authentication by user name and password.
pub(crate) struct UserPassword {
    hide_credentials: bool,
    challenge: HeaderValue,
    pool: Arc<PasswordPool>,
}

impl Method for UserPassword {
    fn authenticate(&self, request: &mut PluginRequest<'_>) -> Attempt {
        let (username, password) = match credentials(request) {
            Ok(Some(credentials)) => credentials,
            Ok(None) => return Verdict::Absent("no password was found in the request").into(),
            Err(refusal) => return Verdict::Refused(refusal).into(),
        };
        let now = request.now;
        let known = request.consumers.by_username(&username);
        let decoy = request.consumers.password_decoy();
        let (hash, accepts, stored) = match known.map(|known| &known.secret) {
            Some(PasswordSecret::Hash(hash)) => (Some(hash), Accepts::IfVerified, hash.as_str().as_bytes()),
            // It takes as long as for a name that nobody has.
            Some(PasswordSecret::Digest(digest)) if sha256(&password) == *digest => {
                (decoy, Accepts::Always, &digest[..])
            }
            Some(PasswordSecret::Digest(_)) | None => (decoy, Accepts::Never, &[][..]),
        };
        let identity = known.map(|known| known.identity.clone());
        let Some(hash) = hash else { return verdict(accepts, false, identity).into() };
        let key = self.pool.memory_key([username.as_bytes(), &password, stored]);
        if key.is_some_and(|key| self.pool.is_remembered(&key, now)) {
            return verdict(Accepts::Always, true, identity).into();
        }
        self.verify(hash, &password, move |pool, verified| {
            let verdict = verdict(accepts, verified, identity);
            if let (Verdict::Passed(_), Some(key)) = (&verdict, key) {
                pool.remember(key, now);
            }
            verdict
        })
    }

    fn hide(&self, request: &mut PluginRequest<'_>) -> Result<(), NotRewritable> {
        let is_ours = authorization::of_scheme(&request.head.headers, SCHEME) != Ok(None);
        if self.hide_credentials && is_ours {
            request.head.headers.remove(AUTHORIZATION);
        }
        Ok(())
    }

    fn challenge(&self) -> Option<&HeaderValue> {
        Some(&self.challenge)
    }
}

const SCHEME: &str = "Basic";

/// The decision that follows from the verification of a hash.
#[derive(Debug, Clone, Copy)]
enum Accepts {
    IfVerified,
    Always,
    Never,
}

impl UserPassword {
    pub(crate) fn of(config: &Config, context: &Context<'_>) -> Self {
        Self {
            hide_credentials: config.hide_credentials,
            challenge: challenge(SCHEME, &config.realm, ", charset=\"UTF-8\""),
            pool: context.state(&(), PasswordPool::default),
        }
    }

    fn verify(
        &self,
        hash: &PasswordHash,
        password: &[u8],
        judge: impl FnOnce(&PasswordPool, bool) -> Verdict + 'static,
    ) -> Attempt {
        match self.pool.verify(hash, password) {
            Ok(result) => {
                let pool = Arc::clone(&self.pool);
                Attempt::Wait(Box::pin(async move { judge(&pool, result.await) }))
            }
            Err(Busy) => {
                Verdict::Refused(Refusal::unavailable("too many passwords wait to be verified")).into()
            }
        }
    }
}

fn verdict(accepts: Accepts, verified: bool, identity: Option<Identity>) -> Verdict {
    match (accepts, identity) {
        (Accepts::Always, Some(identity)) => Verdict::Passed(Some(identity)),
        (Accepts::IfVerified, Some(identity)) if verified => Verdict::Passed(Some(identity)),
        _ => Refusal::unauthorized("the user name or the password is wrong").into(),
    }
}

/// User name and password; `None`: there are none.
fn credentials(request: &PluginRequest<'_>) -> Result<Option<(String, Vec<u8>)>, Refusal> {
    let encoded = match authorization::of_scheme(&request.head.headers, SCHEME) {
        Ok(Some(encoded)) => encoded,
        Ok(None) => return Ok(None),
        Err(Several) => return Err(Refusal::unauthorized("the request has more than one Authorization")),
    };
    let malformed = || Refusal::unauthorized("the Authorization is not one of the scheme Basic");
    let decoded = BASE64.decode(encoded).map_err(|_| malformed())?;
    let colon = decoded.iter().position(|byte| *byte == b':').ok_or_else(malformed)?;
    let (username, password) = decoded.split_at(colon);
    let password = password.get(1..).unwrap_or_default();
    let username = std::str::from_utf8(username).map_err(|_| malformed())?;
    if username.is_empty() || password.is_empty() {
        return Err(Refusal::unauthorized("the user name or the password is empty"));
    }
    Ok(Some((username.to_owned(), password.to_vec())))
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_STANDARD;
    use serde_json::json;

    use super::*;
    use crate::testing::{Client, build, consumer_of, consumers_of};
    use signalbox_plugin::Consumers;

    fn known() -> Consumers {
        consumers_of(&[
            json!({"name": "alice", "credentials": [{"basic_auth": {"username": "alice", "password": "se:cret"}}]}),
            json!({"name": "bob", "credentials": [{"basic_auth": {"username": "b\u{f6}b", "id": "bob", "password": "Gr\u{fc}n"}}]}),
            json!({"name": "carol", "credentials": [{"basic_auth": {
                "username": "carol", "password": {"hash": "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"},
            }}]}),
            json!({"name": "guest"}),
        ])
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(text))
    }

    #[test]
    fn the_right_password_is_the_consumers() {
        let (plugin, known) = (build("basic-auth", json!({})), known());
        let unpadded = basic("alice:se:cret").trim_end_matches('=').replace("Basic", "bASIC");
        for (authorization, consumer) in [
            (basic("alice:se:cret"), "alice"),
            (unpadded, "alice"),
            (basic("b\u{f6}b:Gr\u{fc}n"), "bob"),
            (basic("carol:U*U"), "carol"),
        ] {
            // The second time it is remembered.
            for _ in 0..2 {
                let mut client =
                    Client::new("GET", "/").header("authorization", &authorization).knowing(&known);
                assert!(client.meets(&*plugin).is_none(), "{authorization}");
                assert_eq!(client.head.headers["x-consumer-username"], consumer);
                assert_eq!(client.head.headers["x-credential-identifier"], consumer);
                assert_eq!(client.head.headers["authorization"], authorization);
            }
        }
    }

    #[test]
    fn without_the_right_password_the_answer_is_401_with_a_challenge() {
        let (plugin, known) = (build("basic-auth", json!({"realm": "the shop"})), known());
        for (values, detail) in [
            (&[][..], "no password was found"),
            (&["Bearer abc".to_owned()][..], "no password was found"),
            (&[basic("alice:wrong")], "is wrong"),
            (&[basic("alice:se")], "is wrong"),
            (&[basic("ALICE:se:cret")], "is wrong"),
            (&[basic("nobody:se:cret")], "is wrong"),
            (&[basic("alice:")], "is empty"),
            (&[basic(":se:cret")], "is empty"),
            (&[basic("alice")], "is not one of the scheme"),
            (&["Basic ###".to_owned()], "is not one of the scheme"),
            (&["Basic ".to_owned()], "is not one of the scheme"),
            (&["Basic /////zpv".to_owned()], "is not one of the scheme"),
            (&[basic("alice:se:cret"), basic("alice:se:cret")], "more than one"),
        ] {
            let mut client = Client::new("GET", "/").knowing(&known);
            for value in values {
                client = client.header("authorization", value);
            }
            let answer = client.meets(&*plugin).expect(detail);
            assert_eq!(answer.status, 401, "{values:?}");
            assert_eq!(answer.headers["www-authenticate"], "Basic realm=\"the shop\", charset=\"UTF-8\"");
            assert!(answer.detail.contains(detail), "{values:?}: {}", answer.detail);
        }
    }

    #[test]
    fn a_changed_password_counts_at_once() {
        let (plugin, mut known) = (build("basic-auth", json!({})), known());
        let status = |known: &Consumers, password: &str| {
            let authorization = basic(&format!("alice:{password}"));
            let mut client = Client::new("GET", "/").header("authorization", &authorization).knowing(known);
            client.meets(&*plugin).map_or(200, |answer| answer.status)
        };
        assert_eq!(status(&known, "se:cret"), 200);
        let alice = json!({"name": "alice", "credentials": [{"basic_auth": {"username": "alice", "password": "new"}}]});
        let (alice, secrets) = consumer_of(&alice);
        known.remove(&alice);
        known.insert(&alice, &secrets);
        assert_eq!(status(&known, "se:cret"), 401);
        assert_eq!(status(&known, "new"), 200);
    }

    #[test]
    fn a_password_that_lies_on_the_host_is_compared() {
        let plugin = build("basic-auth", json!({}));
        let spec = json!({"name": "dora", "credentials": [{"basic_auth": {"username": "dora", "password": {"env": "X"}}}]});
        let dora = crate::testing::parse_consumer(&spec);
        let secrets = [signalbox_plugin::ResolvedSecret::Password(PasswordSecret::of_clear(b"from-env"))];
        for others in [Consumers::default(), known()] {
            let mut known = others;
            known.insert(&dora, &secrets);
            for (password, expected) in [("from-env", 200), ("wrong", 401)] {
                let authorization = basic(&format!("dora:{password}"));
                let mut client =
                    Client::new("GET", "/").header("authorization", &authorization).knowing(&known);
                let status = client.meets(&*plugin).map_or(200, |answer| answer.status);
                assert_eq!(status, expected, "{password}");
            }
        }
    }

    #[test]
    fn hidden_passwords_do_not_reach_the_upstream_and_other_schemes_do() {
        let plugin = build("basic-auth", json!({"hide_credentials": true, "anonymous": "guest"}));
        for (authorization, kept) in
            [(basic("alice:se:cret"), false), (basic("alice:wrong"), false), ("Bearer x".to_owned(), true)]
        {
            let mut client =
                Client::new("GET", "/").header("authorization", &authorization).knowing(&known());
            assert!(client.meets(&*plugin).is_none());
            assert_eq!(client.head.headers.contains_key("authorization"), kept, "{authorization}");
        }
    }
}
