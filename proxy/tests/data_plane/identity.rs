//! Authentication over a running proxy, with clients that compute their credentials themselves.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::Request;
use ring::{digest, hmac};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Answer, Backend, Client, Harness, Wire, block_on, full, raw};

const TOKEN_SECRET: &str = "a secret that is long enough for HS256";
const SIGNING_SECRET: &str = "a secret to sign with";

fn document(backend: std::net::SocketAddr) -> String {
    let route = |name: &str| {
        format!(
            "- {{name: {name}, match: {{paths: [{{prefix: /{name}}}]}}, plugins: [{name}], forward: {{upstreams: [{{name: u}}]}}}}\n"
        )
    };
    let routes: String = ["basic", "jwt", "hmac", "any", "all", "open"].map(route).concat();
    format!(
        "
plugins:
- {{name: basic, type: basic-auth, config: {{hide_credentials: true}}}}
- {{name: jwt, type: jwt, config: {{claims_to_headers: {{x-user: sub}}}}}}
- {{name: hmac, type: hmac-auth, config: {{validate_body: true}}}}
- {{name: any, type: auth, config: {{any: [{{jwt: {{}}}}, {{basic-auth: {{}}}}]}}}}
- {{name: all, type: auth, config: {{all: [{{key-auth: {{}}}}, {{basic-auth: {{}}}}]}}}}
- {{name: open, type: jwt, config: {{anonymous: guest, claims_to_headers: {{x-user: sub}}}}}}
- {{name: group-limit, type: rate-limit, config: {{limit: 1, window: 1h, by: consumer}}}}
consumer_groups: [{{name: limited, plugins: [group-limit]}}]
consumers:
- name: alice
  groups: [staff]
  credentials:
  - {{key_auth: {{key: alice-key}}}}
  - {{basic_auth: {{username: alice, password: open sesame}}}}
  - {{jwt: {{issuer: shop, algorithm: HS256, secret: {TOKEN_SECRET}}}}}
  - {{hmac_auth: {{key_id: alice-signs, secret: {SIGNING_SECRET}}}}}
- {{name: bob, groups: [limited], credentials: [{{key_auth: {{key: bob-key}}}}, {{basic_auth: {{username: bob, password: open}}}}]}}
- {{name: guest}}
upstreams: [{{name: u, targets: [{{address: '{backend}'}}]}}]
routes:
{routes}"
    )
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn basic(text: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(text))
}

fn sign(secret: &str, text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), text.as_bytes()).as_ref().to_vec()
}

fn token(secret: &str, claims: &Value) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string());
    let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(secret, &signed));
    format!("Bearer {signed}.{signature}")
}

/// A header as the upstream got it.
fn upstream_header(answer: &Answer, name: &str) -> Option<String> {
    let told = answer.json();
    let headers = told["headers"].as_array().unwrap();
    let found = headers.iter().find(|header| header[0] == name)?;
    Some(found[1].as_str().unwrap().to_owned())
}

async fn ask(client: &mut Client, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send(request.body(full("")).unwrap()).await
}

#[test]
fn passwords_and_tokens_identify_their_consumer() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&document(backend.address));
        let good = token(TOKEN_SECRET, &json!({"iss": "shop", "sub": "a@b", "exp": now().as_secs() + 60}));
        let old = token(TOKEN_SECRET, &json!({"iss": "shop", "exp": now().as_secs() - 600}));
        let forged =
            token("another secret of the right length", &json!({"iss": "shop", "exp": now().as_secs() + 60}));
        let (right, wrong) = (basic("alice:open sesame"), basic("alice:open"));
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (path, authorization, status, challenge) in [
                ("/basic", None, 401, "Basic realm=\"signalbox\", charset=\"UTF-8\""),
                ("/basic", Some(&wrong), 401, "Basic realm=\"signalbox\", charset=\"UTF-8\""),
                ("/basic", Some(&right), 200, ""),
                ("/basic", Some(&right), 200, ""),
                ("/jwt", None, 401, "Bearer realm=\"signalbox\""),
                ("/jwt", Some(&old), 401, "Bearer realm=\"signalbox\", error=\"invalid_token\""),
                ("/jwt", Some(&forged), 401, "Bearer realm=\"signalbox\", error=\"invalid_token\""),
                ("/jwt", Some(&good), 200, ""),
                ("/any", Some(&right), 200, ""),
                ("/any", Some(&good), 200, ""),
                ("/any", Some(&forged), 401, "Bearer realm=\"signalbox\", error=\"invalid_token\""),
            ] {
                let headers: Vec<_> = authorization.map(|it| ("authorization", &**it)).into_iter().collect();
                let answer = ask(&mut client, path, &headers).await;
                assert_eq!(answer.status, status, "{wire:?} {path} {authorization:?}: {}", answer.text());
                match status {
                    200 => {
                        assert_eq!(upstream_header(&answer, "x-consumer-username").as_deref(), Some("alice"));
                        assert_eq!(upstream_header(&answer, "x-consumer-groups").as_deref(), Some("staff"));
                        let is_hidden = upstream_header(&answer, "authorization").is_none();
                        assert_eq!(is_hidden, path == "/basic");
                    }
                    _ => assert_eq!(answer.headers["www-authenticate"], challenge, "{path}"),
                }
            }
            let told = ask(&mut client, "/jwt", &[("authorization", &good), ("x-user", "spoofed")]).await;
            assert_eq!(upstream_header(&told, "x-user").as_deref(), Some("a@b"));
            let both = ask(&mut client, "/all", &[("authorization", &right), ("apikey", "alice-key")]).await;
            assert_eq!(both.status, 200);
            let mixed = ask(&mut client, "/all", &[("authorization", &right), ("apikey", "bob-key")]).await;
            assert_eq!(mixed.status, 401);
            assert_eq!(ask(&mut client, "/all", &[("apikey", "alice-key")]).await.status, 401);
        }
    });
}

#[test]
fn what_nobody_vouches_for_reaches_no_upstream_in_any_spelling() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&document(backend.address));
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let answer = ask(
                &mut client,
                "/open",
                &[
                    ("x_consumer_id", "alice"),
                    ("x.consumer.id", "alice"),
                    ("x-consumer_groups", "staff"),
                    ("x~credential~identifier", "key"),
                    ("x-user", "alice"),
                    ("x_user", "alice"),
                    ("x.user", "alice"),
                ],
            )
            .await;
            assert_eq!(answer.status, 200);
            assert_eq!(upstream_header(&answer, "x-consumer-id").as_deref(), Some("guest"));
            assert_eq!(upstream_header(&answer, "x-anonymous-consumer").as_deref(), Some("true"));
            assert!(
                !answer.text().contains("alice") && !answer.text().contains("staff"),
                "{}",
                answer.text()
            );
        }
    });
}

#[test]
fn trailers_vouch_for_nobody_either() {
    block_on(async {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<String>();
        let backend = Backend::raw(move |mut stream| {
            let sender = sender.clone();
            async move {
                let mut read = Vec::new();
                while !read.windows(7).any(|window| window == b"\r\nx-end")
                    && stream.read_buf(&mut read).await.unwrap() > 0
                {}
                sender.send(String::from_utf8_lossy(&read).into_owned()).unwrap();
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .await
                    .unwrap();
            }
        });
        let harness = Harness::start(&document(backend.address));
        let request = b"POST /open HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
            1\r\nx\r\n0\r\nX-Consumer-ID: alice\r\nX_Consumer_ID: alice\r\nX.Consumer.ID: alice\r\nX-End: 1\r\n\r\n";
        let answer = raw(harness.address(), request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let sent = receiver.recv().await.unwrap();
        assert!(sent.contains("x-end") && !sent.contains("alice"), "{sent}");
    });
}

#[test]
fn signatures_identify_their_consumer_and_cover_the_body() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&document(backend.address));
        let date = httpdate::fmt_http_date(SystemTime::now());
        let sha256 = |body: &str| {
            format!("SHA-256={}", BASE64_STANDARD.encode(digest::digest(&digest::SHA256, body.as_bytes())))
        };
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (target, signed_target, body, digest_of, status) in [
                ("/hmac?a=1", "/hmac?a=1", "hello", "hello", 200),
                ("/hmac", "/hmac", "", "", 200),
                ("/hmac?a=1", "/hmac?a=2", "hello", "hello", 401),
                ("/hmac", "/hmac", "hello", "other", 401),
            ] {
                let digest = sha256(digest_of);
                let text =
                    format!("x-date: {date}\npost {signed_target}\nhost: test.example\ndigest: {digest}");
                let signature = BASE64_STANDARD.encode(sign(SIGNING_SECRET, &text));
                let authorization = format!(
                    "hmac keyId=\"alice-signs\", algorithm=\"hmac-sha256\", \
                     headers=\"x-date @request-target host digest\", signature=\"{signature}\""
                );
                let request = Request::post(target)
                    .header("x-date", &date)
                    .header("digest", &digest)
                    .header("authorization", authorization)
                    .body(full(body))
                    .unwrap();
                let answer = client.send(request).await;
                assert_eq!(answer.status, status, "{wire:?} {target} {body}: {}", answer.text());
                if status == 200 {
                    assert_eq!(upstream_header(&answer, "x-consumer-username").as_deref(), Some("alice"));
                    assert_eq!(answer.json()["body"], body);
                }
            }
        }
    });
}

#[test]
fn the_plugins_of_a_group_run_for_its_consumers() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&document(backend.address));
        let mut client = Client::connect(harness.address()).await;
        let bob = basic("bob:open");
        let statuses = [
            ask(&mut client, "/basic", &[("authorization", &bob)]).await.status,
            ask(&mut client, "/basic", &[("authorization", &bob)]).await.status,
        ];
        assert_eq!(statuses, [200, 429]);
        let alice = basic("alice:open sesame");
        for _ in 0..2 {
            assert_eq!(ask(&mut client, "/basic", &[("authorization", &alice)]).await.status, 200);
        }
    });
}

#[test]
fn passwords_that_are_verified_hold_up_no_other_request() {
    block_on(async {
        let backend = Backend::echo();
        // The machine is busy, which is no reason to refuse requests here.
        let harness = Harness::with(&document(backend.address), |settings| settings.max_queue_delay = None);
        let floods = (0..300).map(|number| {
            let address = harness.address();
            tokio::spawn(async move {
                let wrong = basic(&format!("alice:wrong {number}"));
                let mut client = Client::connect(address).await;
                let answer = ask(&mut client, "/basic", &[("authorization", &wrong)]).await;
                let retry_after =
                    answer.headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned());
                assert_eq!(retry_after.as_deref(), (answer.status == 503).then_some("1"));
                answer.status
            })
        });
        let floods: Vec<_> = floods.collect();
        // While two threads verify, and others wait or are refused, requests without a password are answered.
        let mut client = Client::connect(harness.address()).await;
        let mut answered = 0;
        while !floods.iter().all(tokio::task::JoinHandle::is_finished) {
            assert_eq!(ask(&mut client, "/open", &[]).await.status, 200);
            answered += 1;
        }
        let mut statuses = Vec::new();
        for flood in floods {
            statuses.push(flood.await.unwrap());
        }
        assert!(answered > 0);
        assert!(statuses.iter().all(|status| [401, 503].contains(status)), "{statuses:?}");
        assert!(statuses.contains(&401), "{statuses:?}");
        assert!(statuses.contains(&503), "{statuses:?}");
    });
}
