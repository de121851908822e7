//! `jwt` with keys that a provider publishes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use http::{Request, Response};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, full, nobody, until};

/// A key pair with a number for its seed and its `kid`.
fn pair(number: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[number; 32]).unwrap()
}

fn jwk(number: u8) -> Value {
    let x = BASE64.encode(pair(number).public_key().as_ref());
    json!({"kty": "OKP", "crv": "Ed25519", "kid": number.to_string(), "use": "sig", "x": x})
}

fn jwks(numbers: &[u8]) -> String {
    json!({"keys": numbers.iter().map(|number| jwk(*number)).collect::<Vec<_>>()}).to_string()
}

/// A token that the key with this number has signed, under this `kid`.
fn token_as(number: u8, key_id: &str, claims: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut all = json!({"iss": "https://login.example", "exp": now + 60});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    let header = json!({"alg": "EdDSA", "kid": key_id});
    let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(all.to_string()));
    format!("Bearer {signed}.{}", BASE64.encode(pair(number).sign(signed.as_bytes())))
}

fn token(number: u8) -> String {
    token_as(number, &number.to_string(), &json!({}))
}

/// A provider whose answer can be changed while it runs, and which counts how often it was asked for its keys.
struct Login {
    backend: Backend,
    answer: Arc<Mutex<(u16, String)>>,
    fetches: Arc<AtomicUsize>,
}

impl Login {
    fn publishing(numbers: &[u8]) -> Self {
        let answer = Arc::new(Mutex::new((200, jwks(numbers))));
        let fetches = Arc::<AtomicUsize>::default();
        let (told, counted) = (Arc::clone(&answer), Arc::clone(&fetches));
        let backend = Backend::start(move |request: Request<hyper::body::Incoming>| {
            let (told, counted) = (Arc::clone(&told), Arc::clone(&counted));
            async move {
                if request.uri().path() == "/tenant/.well-known/openid-configuration" {
                    assert_eq!(request.headers()["host"], "login.example");
                    let issuer = "https://login.example/tenant";
                    let document = json!({"issuer": issuer, "jwks_uri": "https://keys.example/keys?all"});
                    return Response::new(full(document.to_string()));
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let (status, body) = told.lock().unwrap().clone();
                let body = match request.uri().query() {
                    Some("all") if request.headers()["host"] == "keys.example" => body,
                    None => body,
                    query => panic!("{query:?}"),
                };
                Response::builder().status(status).body(full(body)).unwrap()
            }
        });
        Self { backend, answer, fetches }
    }

    fn answers(&self, status: u16, body: impl Into<String>) {
        *self.answer.lock().unwrap() = (status, body.into());
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

/// A document whose route wants a token. `jwks` and `rest` are parts of the configuration.
fn document(login: &str, backend: &Backend, jwks: &str, rest: &str) -> String {
    format!(
        "
plugins: [{{name: jwt, type: jwt, config: {{jwks: {{upstream: login, {jwks}}}, {rest}}}}}]
consumers: [{{name: alice, groups: [staff]}}]
upstreams:
- {{name: u, targets: [{{address: '{}'}}]}}
- {{name: login, targets: [{{address: '{login}'}}]}}
routes:
- {{name: all, match: {{paths: [{{prefix: /}}]}}, plugins: [jwt], forward: {{upstreams: [{{name: u}}]}}}}
",
        backend.address
    )
}

async fn status(client: &mut Client, token: &str) -> u16 {
    client.send(ask(token)).await.status
}

fn ask(token: &str) -> Request<AnyBody> {
    Request::get("/").header("authorization", token).body(full("")).unwrap()
}

fn outcome(harness: &Harness, outcome: &str) -> u64 {
    harness.proxy.counted(|_, compiled, _, _| {
        let stats = compiled.plugin_stats().find(|stats| stats.name.as_str() == "jwt").unwrap();
        stats.outcomes.read().find(|(name, _)| *name == outcome).unwrap().1
    })
}

#[test]
fn the_keys_of_a_provider_are_used_under_every_kind_of_place() {
    block_on(async {
        let (login, backend) = (Login::publishing(&[1, 2]), Backend::echo());
        let address = login.backend.address.to_string();
        for (jwks, rest, issuer) in [
            ("path: /keys", "consumer_claim: name", "https://login.example"),
            ("path: /keys", "issuer: 'https://login.example', consumer_claim: name", "https://login.example"),
            (
                "timeout: 10s",
                "issuer: 'https://login.example/tenant', consumer_claim: name",
                "https://login.example/tenant",
            ),
        ] {
            let harness = Harness::start(&document(&address, &backend, jwks, rest));
            for wire in Wire::BOTH {
                let mut client = Client::speaking(wire, harness.address()).await;
                let claims = json!({"iss": issuer, "name": "alice"});
                let answer = client.send(ask(&token_as(2, "2", &claims))).await;
                assert_eq!(answer.status, 200, "{jwks}: {}", answer.text());
                assert!(answer.text().contains(r#"["x-consumer-groups","staff"]"#), "{}", answer.text());
                // The name of a key is not its signature.
                assert_eq!(status(&mut client, &token_as(1, "2", &claims)).await, 401);
                let stranger = json!({"iss": issuer, "name": "mallory"});
                assert_eq!(status(&mut client, &token_as(2, "2", &stranger)).await, 401);
            }
            assert_eq!(outcome(&harness, "keys_fetched"), 1);
        }
    });
}

#[test]
fn keys_that_are_not_known_are_fetched_once_for_all_and_then_not_for_a_while() {
    block_on(async {
        let (login, backend) = (Login::publishing(&[1]), Backend::echo());
        let document = document(
            &login.backend.address.to_string(),
            &backend,
            "path: /keys, cooldown: 1h, timeout: 30s",
            "",
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        assert_eq!(status(&mut client, &token(1)).await, 200);
        assert_eq!(login.fetches(), 1);

        // The provider has rotated its keys: many clients find out at the same time, on all workers.
        login.answers(200, jwks(&[2]));
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let address = harness.address();
                tokio::spawn(async move { status(&mut Client::connect(address).await, &token(2)).await })
            })
            .collect();
        for client in clients {
            assert_eq!(client.await.unwrap(), 200);
        }
        assert_eq!(login.fetches(), 2);
        // A token that was verified by a key that is gone counts no more, though it was remembered.
        assert_eq!(status(&mut client, &token(1)).await, 401);

        for number in 0..10_000 {
            let unknown = token_as(3, &format!("unknown-{number}"), &json!({}));
            assert_eq!(status(&mut client, &unknown).await, 401);
        }
        assert_eq!(login.fetches(), 2);
        // Neither other errors of tokens nor secrets make it ask.
        assert_eq!(status(&mut client, &token_as(2, "3", &json!({"exp": 1}))).await, 401);
        assert_eq!((login.fetches(), outcome(&harness, "keys_fetched")), (2, 2));
    });
}

#[test]
fn the_last_good_keys_stay_while_the_provider_fails() {
    block_on(async {
        let (login, backend) = (Login::publishing(&[1]), Backend::echo());
        let document = document(
            &login.backend.address.to_string(),
            &backend,
            "path: /keys, refresh: 1s",
            "cache: false",
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        assert_eq!(status(&mut client, &token(1)).await, 200);
        for (number, (code, body)) in [
            (500, jwks(&[2])),
            (200, "<html>It works!</html>".to_owned()),
            (200, "{}".to_owned()),
            (200, r#"{"keys":[]}"#.to_owned()),
            (200, r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"1"}]}"#.to_owned()),
            (200, format!("{{\"keys\":[],\"padding\":\"{}\"}}", "x".repeat(300 << 10))),
            (302, jwks(&[2])),
        ]
        .into_iter()
        .enumerate()
        {
            let failures = outcome(&harness, "keys_fetch_failed");
            login.answers(code, body.clone());
            // The second failure in a row is certainly one of this answer.
            until("the fetch fails", || outcome(&harness, "keys_fetch_failed") >= failures + 2).await;
            assert_eq!(status(&mut client, &token(1)).await, 200, "{number} {code} {body:.50}");
            assert_eq!(status(&mut client, &token(2)).await, 401, "{number} {code} {body:.50}");
            login.answers(200, jwks(&[1]));
            let good = outcome(&harness, "keys_fetched");
            until("it recovers", || outcome(&harness, "keys_fetched") > good).await;
        }
        // A key that is withdrawn is gone after the interval.
        login.answers(200, jwks(&[2]));
        let good = outcome(&harness, "keys_fetched");
        until("it is fetched", || outcome(&harness, "keys_fetched") >= good + 2).await;
        assert_eq!((status(&mut client, &token(1)).await, status(&mut client, &token(2)).await), (401, 200));
    });
}

#[test]
fn a_provider_that_was_never_reached_is_no_reason_to_refuse_tokens_as_bad() {
    block_on(async {
        let (address, backend) = (nobody(), Backend::echo());
        let mut harness = Harness::start(&document(&address.to_string(), &backend, "path: /keys", ""));
        let mut client = Client::connect(harness.address()).await;
        let began = tokio::time::Instant::now();
        until("it tries again", || outcome(&harness, "keys_fetch_failed") >= 3).await;
        // The pauses are at least 125 ms and 250 ms.
        assert!(began.elapsed() >= Duration::from_millis(375), "it asks without pauses");
        let answer = client.send(ask(&token(1))).await;
        assert_eq!((answer.status, &answer.headers["retry-after"]), (503, &"1".parse().unwrap()));
        assert_eq!(client.get("/").await.status, 401);
        let login = Login::publishing(&[1]);
        harness.apply(&document(&login.backend.address.to_string(), &backend, "path: /keys", "")).unwrap();
        until("it recovers", || outcome(&harness, "keys_fetched") == 1).await;
        assert_eq!(status(&mut client, &token(1)).await, 200);
    });
}

#[test]
fn keys_outlive_revisions_and_verified_tokens_do_not_outlive_their_consumer() {
    block_on(async {
        let (login, backend) = (Login::publishing(&[1]), Backend::echo());
        let address = login.backend.address.to_string();
        let before = document(&address, &backend, "path: /keys, refresh: 1h", "consumer_claim: name");
        let mut harness = Harness::start(&before);
        let mut client = Client::connect(harness.address()).await;
        let alices = token_as(1, "1", &json!({"name": "alice"}));
        for _ in 0..2 {
            let answer = client.send(ask(&alices)).await;
            assert!(answer.text().contains(r#"["x-consumer-groups","staff"]"#), "{}", answer.text());
        }
        // The groups change, and the plugin does not.
        harness.apply(&before.replace("groups: [staff]", "groups: [guests]")).unwrap();
        let answer = client.send(ask(&alices)).await;
        assert!(answer.text().contains(r#"["x-consumer-groups","guests"]"#), "{}", answer.text());
        harness.apply(&before.replace("name: alice", "name: bob")).unwrap();
        assert_eq!(status(&mut client, &alices).await, 401);
        // The configuration changes, and the provider does not: its keys are there already.
        login.answers(500, "");
        harness.apply(&before.replace("consumer_claim: name", "audiences: [shop]")).unwrap();
        assert_eq!(status(&mut client, &alices).await, 401);
        assert_eq!(status(&mut client, &token_as(1, "1", &json!({"aud": "shop"}))).await, 200);
        assert_eq!(login.fetches(), 1);
    });
}
