//! The credentials of consumers: what is accepted, stored, shown and kept.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;

use common::parse;
use serde_json::{Value, json};
use signalbox_config::{
    Body, Change, Consumer, Kind, Password, Proof, Relations, Resource, RevisionId, Snapshot,
};

const BCRYPT: &str = "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
const ED25519: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

fn consumer(credentials: &Value) -> Value {
    json!({"name": "c", "credentials": credentials})
}

fn parsed(credentials: &Value) -> Resource {
    parse(Kind::Consumer, consumer(credentials)).unwrap()
}

fn errors(credentials: &Value) -> Vec<String> {
    let parsed = parse(Kind::Consumer, consumer(credentials));
    parsed.err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

fn spec(resource: &Resource) -> Value {
    serde_json::from_slice(resource.spec()).unwrap()
}

fn body(resource: &Resource) -> &Consumer {
    let Body::Consumer(consumer) = resource.body() else { panic!("not a consumer") };
    consumer
}

/// One of each type that holds a secret.
fn all() -> Value {
    json!([
        {"key_auth": {"key": "k"}},
        {"basic_auth": {"username": "alice", "password": "pw"}},
        {"jwt": {"issuer": "shop", "algorithm": "HS256", "secret": "j".repeat(32)}},
        {"jwt": {"issuer": "login", "key_id": "1", "algorithm": "EdDSA", "public_key": ED25519}},
        {"hmac_auth": {"key_id": "signer", "secret": "h".repeat(16)}},
        {"mtls": {"subject": "CN=alice,O=Example"}},
    ])
}

#[test]
fn every_credential_has_an_identifier() {
    let resource = parsed(&all());
    let ids: Vec<&str> = body(&resource).credentials.iter().map(|credential| &*credential.id).collect();
    assert_eq!(ids[1..], ["alice", "shop", "1", "signer", "CN=alice,O=Example"]);
    // Two types may have the same one, two credentials of a type may not.
    assert_eq!(
        errors(&json!([
            {"basic_auth": {"username": "a", "password": "x"}},
            {"hmac_auth": {"key_id": "a", "secret": "h".repeat(16)}},
        ])),
        [""; 0]
    );
    assert_eq!(
        errors(&json!([
            {"basic_auth": {"username": "a", "password": "x"}},
            {"basic_auth": {"username": "b", "id": "a", "password": "x"}},
        ])),
        ["credentials[1].basic_auth.id: \"a\" is used twice"]
    );
    assert_eq!(
        errors(&json!([{"basic_auth": {"username": "\u{e4}", "password": "x"}}])),
        ["credentials[0].basic_auth.id: must be 1 to 256 printable ASCII characters"]
    );
    assert_eq!(
        errors(&json!([{"basic_auth": {"username": "\u{e4}", "id": "ae", "password": "x"}}])),
        [""; 0]
    );
}

#[test]
fn of_a_password_only_a_hash_is_stored() {
    let resource = parsed(&all());
    let stored =
        spec(&resource)["credentials"][1]["basic_auth"]["password"]["hash"].as_str().unwrap().to_owned();
    assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
    let Proof::Password { password: Password::Hash(hash), .. } = &body(&resource).credentials[1].proof else {
        panic!("no hash")
    };
    assert_eq!(hash.as_str(), stored);
    assert!(hash.verifies(b"pw") && !hash.verifies(b"PW"));
    let debug = format!("{resource:?}");
    for secret in [&stored[30..], "pw\"", &"j".repeat(32), &"h".repeat(16)] {
        assert!(!debug.contains(secret), "{secret} in {debug}");
    }
    // A stored value is read as it is.
    let again = Resource::from_stored(Kind::Consumer, resource.spec(), &common::Catalog).unwrap();
    assert_eq!(again.version(), resource.version());
    let written = parse(Kind::Consumer, spec(&resource)).unwrap();
    assert_eq!(written.version(), resource.version());
}

#[test]
fn hashes_and_references_are_kept_as_they_are() {
    for password in [json!({"hash": BCRYPT}), json!({"env": "PW"}), json!({"file": "/run/pw"})] {
        let credentials = json!([{"basic_auth": {"username": "a", "password": password}}]);
        assert_eq!(spec(&parsed(&credentials))["credentials"], credentials);
    }
}

#[test]
fn secrets_are_not_shown_and_what_is_shown_keeps_them() {
    let stored = parsed(&all());
    let shown = stored.redacted();
    let fields: Vec<&Value> = [
        (0, "key_auth", "key"),
        (1, "basic_auth", "password"),
        (2, "jwt", "secret"),
        (4, "hmac_auth", "secret"),
    ]
    .into_iter()
    .map(|(index, tag, field)| &shown["credentials"][index][tag][field])
    .collect();
    assert_eq!(fields, ["<redacted>"; 4]);
    assert_eq!(shown["credentials"][3]["jwt"]["public_key"], ED25519);
    let mut written = shown.clone();
    stored.restore_secrets(&mut written);
    assert_eq!(parse(Kind::Consumer, written).unwrap().version(), stored.version());
    // In another order, too; a new name of the only one of its type keeps the secret.
    let mut reordered = shown.clone();
    reordered["credentials"].as_array_mut().unwrap().reverse();
    reordered["credentials"][4]["basic_auth"]["username"] = json!("alice2");
    stored.restore_secrets(&mut reordered);
    let reordered = parse(Kind::Consumer, reordered).unwrap();
    assert_eq!(
        spec(&reordered)["credentials"][4]["basic_auth"]["password"],
        spec(&stored)["credentials"][1]["basic_auth"]["password"]
    );
    // A new one of which nothing is stored is an error, and so is one that could be either of two.
    let two = parsed(&json!([
        {"hmac_auth": {"key_id": "a", "secret": "a".repeat(16)}},
        {"hmac_auth": {"key_id": "b", "secret": "b".repeat(16)}},
    ]));
    let mut renamed = consumer(&json!([{"hmac_auth": {"key_id": "c", "secret": "<redacted>"}}]));
    two.restore_secrets(&mut renamed);
    assert!(parse(Kind::Consumer, renamed).is_err());
    let mut swapped = two.redacted();
    swapped["credentials"].as_array_mut().unwrap().swap(0, 1);
    two.restore_secrets(&mut swapped);
    assert_eq!(swapped["credentials"][0]["hmac_auth"]["secret"], "b".repeat(16));
}

#[test]
fn a_password_that_is_written_again_changes_nothing() {
    let stored = parsed(&all());
    let hashed = |password: &str| {
        let mut again = consumer(&json!([{"basic_auth": {"username": "alice", "password": password}}]));
        Kind::Consumer.hash_passwords(&mut again, Some(stored.spec()));
        again["credentials"][0]["basic_auth"]["password"].clone()
    };
    let kept = spec(&stored)["credentials"][1]["basic_auth"]["password"].clone();
    assert_eq!(hashed("pw"), kept);
    let other = hashed("other");
    assert!(other["hash"].is_string() && other != kept, "{other}");
    assert_eq!(hashed("<redacted>"), "<redacted>");
    assert_eq!(hashed(""), "");
    for wrong in
        [json!(5), json!({}), json!({"credentials": 5}), json!({"credentials": [5, {"basic_auth": 5}]})]
    {
        let mut unchanged = wrong.clone();
        Kind::Consumer.hash_passwords(&mut unchanged, Some(stored.spec()));
        assert_eq!(unchanged, wrong);
    }
}

#[test]
fn a_secret_that_proxies_need_is_stored_encrypted_and_an_export_hides_it() {
    let stored = parsed(&all());
    assert!(Kind::Consumer.holds_secret(stored.spec()));
    let mut hidden = Vec::new();
    let exported = stored.exported(&mut |field, secret| {
        hidden.push(format!("{field}={secret}"));
        json!({"encrypted": "x"})
    });
    assert_eq!(
        hidden,
        [
            format!("credentials[2].jwt.secret={}", "j".repeat(32)),
            format!("credentials[4].hmac_auth.secret={}", "h".repeat(16)),
        ]
    );
    assert_eq!(exported["credentials"][2]["jwt"]["secret"], json!({"encrypted": "x"}));
    // A value that is only compared is no such secret.
    let compared =
        parsed(&json!([{"key_auth": {"key": "k"}}, {"basic_auth": {"username": "a", "password": "b"}}]));
    assert!(!Kind::Consumer.holds_secret(compared.spec()));
    let referred = parsed(&json!([{"hmac_auth": {"key_id": "a", "secret": {"env": "X"}}}]));
    assert!(!Kind::Consumer.holds_secret(referred.spec()));
}

#[test]
fn what_is_wrong_with_a_credential_is_told() {
    for (credential, error) in [
        (
            json!({"basic_auth": {"username": "", "password": "x"}}),
            "basic_auth.username: must have 1 to 256 bytes",
        ),
        (
            json!({"basic_auth": {"username": "a\n", "password": "x"}}),
            "basic_auth.username: must have 1 to 256 bytes",
        ),
        (
            json!({"basic_auth": {"username": "a", "password": {"hash": "x"}}}),
            "basic_auth.password: is neither a hash",
        ),
        (
            json!({"basic_auth": {"username": "a", "password": {"env": ""}}}),
            "basic_auth.password: env must not be empty",
        ),
        (json!({"jwt": {"issuer": "a", "algorithm": "HS256"}}), "jwt.secret: is required by HS256"),
        (
            json!({"jwt": {"issuer": "a", "algorithm": "HS512", "secret": "x".repeat(63)}}),
            "jwt.secret: has 63 bytes; at least 64",
        ),
        (
            json!({"jwt": {"issuer": "a", "algorithm": "HS256", "public_key": ED25519}}),
            "jwt.public_key: is not used by HS256",
        ),
        (
            json!({"jwt": {"issuer": "a", "algorithm": "ES256", "secret": "x".repeat(32)}}),
            "jwt.secret: is not used by ES256",
        ),
        (
            json!({"jwt": {"issuer": "a", "algorithm": "ES256", "public_key": ED25519}}),
            "jwt.public_key: is of another type than ES256 needs",
        ),
        (
            json!({"jwt": {"issuer": "a", "algorithm": "EdDSA", "public_key": "x"}}),
            "jwt.public_key: is not a public key in PEM",
        ),
        (json!({"jwt": {"issuer": "a", "algorithm": "none", "secret": "x".repeat(32)}}), "jwt.algorithm: "),
        (
            json!({"hmac_auth": {"key_id": "a", "secret": "short"}}),
            "hmac_auth.secret: has 5 bytes; at least 16",
        ),
        (json!({"mtls": {}}), "mtls: needs exactly one of subject, san and fingerprint"),
        (
            json!({"mtls": {"subject": "CN=a", "san": "DNS:a"}}),
            "mtls: needs exactly one of subject, san and fingerprint",
        ),
        (json!({"mtls": {"san": "a.example"}}), "mtls.san: must begin with DNS:"),
        (json!({"mtls": {"fingerprint": "ab"}}), "mtls.fingerprint: must be a SHA-256"),
    ] {
        let found = errors(&json!([credential]));
        assert!(
            found.len() == 1 && found[0].starts_with(&format!("credentials[0].{error}")),
            "{credential}: {found:?}"
        );
    }
    let twice = |credential: Value| errors(&json!([credential, with_id(&credential)]));
    let claimed = [
        json!({"basic_auth": {"username": "a", "password": "x"}}),
        json!({"jwt": {"issuer": "a", "algorithm": "HS256", "secret": "x".repeat(32)}}),
        json!({"hmac_auth": {"key_id": "a", "secret": "x".repeat(16)}}),
        json!({"mtls": {"san": "DNS:a"}}),
    ];
    for credential in claimed {
        let found = twice(credential);
        assert!(found.len() == 1 && found[0].ends_with("is that of another of its credentials"), "{found:?}");
    }
}

fn with_id(credential: &Value) -> Value {
    let mut other = credential.clone();
    for (_, fields) in other.as_object_mut().unwrap() {
        fields["id"] = json!("other");
    }
    other
}

#[test]
fn two_consumers_cannot_have_the_same_credential() {
    let one = |name: &str, credential: &Value| {
        let spec = json!({"name": name, "credentials": [credential]});
        Change::Put(Arc::new(parse(Kind::Consumer, spec).unwrap()))
    };
    let fingerprint = "AB".repeat(32);
    for (first, second, claim) in [
        (
            json!({"basic_auth": {"username": "a", "password": "x"}}),
            json!({"basic_auth": {"username": "a", "password": "y"}}),
            Some("the user name \"a\""),
        ),
        (
            json!({"jwt": {"issuer": "a", "algorithm": "HS256", "secret": "x".repeat(32)}}),
            json!({"jwt": {"issuer": "a", "algorithm": "EdDSA", "public_key": ED25519}}),
            Some("the token issuer \"a\""),
        ),
        (
            json!({"jwt": {"issuer": "a", "key_id": "1", "algorithm": "EdDSA", "public_key": ED25519}}),
            json!({"jwt": {"issuer": "a", "key_id": "2", "algorithm": "EdDSA", "public_key": ED25519}}),
            None,
        ),
        (
            json!({"hmac_auth": {"key_id": "a", "secret": "x".repeat(16)}}),
            json!({"hmac_auth": {"key_id": "a", "secret": "y".repeat(16)}}),
            Some("the signing key \"a\""),
        ),
        (
            json!({"mtls": {"fingerprint": fingerprint.to_lowercase()}}),
            json!({"mtls": {"fingerprint": fingerprint}}),
            Some("the certificate with SHA-256 "),
        ),
        (json!({"mtls": {"subject": "CN=a"}}), json!({"mtls": {"san": "DNS:a"}}), None),
    ] {
        let changes = [one("first", &first), one("second", &second)];
        let empty = Snapshot::empty("e");
        let id = RevisionId { epoch: "e".into(), number: 1 };
        let set = empty.with(id, 0, changes.iter().cloned());
        let problems = Relations::default().with(&empty, &set, &changes).err().unwrap_or_default();
        let told = format!("{problems:?}");
        assert_eq!(problems.len(), usize::from(claim.is_some()), "{told}");
        assert!(claim.is_none_or(|claim| told.contains(&claim.replace('"', "\\\""))), "{told}");
    }
}
