//! Tokens of consumers and of keys in the configuration.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::HeaderValue;
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use signalbox_plugin::Consumers;

use crate::clock::since_1970;
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
        !headers.contains_key("x-none") && !headers.contains_key("x_sub") && !headers.contains_key("x.sub")
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
