//! `oidc` with a browser of few words, and a provider whose answers a test can change. `tests/browser/login.test.js` has the real
//! ones.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD as BASE64};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::harness::{Answer, AnyBody, Backend, Client, Harness, block_on, full, until};

const ISSUER: &str = "https://login.example";
const ORIGIN: &str = "http://test.example";

/// The key pair with this number for its seed and its `kid`.
fn pair(number: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[number; 32]).unwrap()
}

/// The behaviour of the provider.
#[derive(Default)]
struct Conduct {
    /// Codes that were given out, with nonce and challenge.
    codes: HashMap<String, (String, String)>,
    /// The refresh token that it accepts.
    refresh_token: String,
    /// The lifetime of access tokens, seconds.
    expires_in: u64,
    /// More claims, or others, of ID tokens.
    claims: Value,
    /// An answer of the token endpoint in the place of its own.
    answer: Option<(u16, String)>,
    /// The number of the key that signs ID tokens, which alone is published.
    signer: u8,
    /// The place of the keys answers 503.
    hides_keys: bool,
    /// The answers of the token endpoint to refreshes wait for it.
    hold: Option<Arc<Notify>>,
}

struct Login {
    backend: Backend,
    conduct: Arc<Mutex<Conduct>>,
    refreshes: Arc<AtomicUsize>,
}

impl Login {
    fn start() -> Self {
        let conduct = Conduct { expires_in: 3600, claims: json!({}), signer: 1, ..Conduct::default() };
        let (conduct, refreshes) = (Arc::new(Mutex::new(conduct)), Arc::<AtomicUsize>::default());
        let (shared, counted) = (Arc::clone(&conduct), Arc::clone(&refreshes));
        let backend = Backend::start(move |request: Request<hyper::body::Incoming>| {
            let (shared, counted) = (Arc::clone(&shared), Arc::clone(&counted));
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (status, text) = match head.uri.path() {
                    "/.well-known/openid-configuration" => (200, discovery()),
                    "/keys" => shared.lock().unwrap().keys(),
                    "/token" => {
                        assert_eq!(
                            head.headers["authorization"],
                            format!("Basic {}", BASE64_STANDARD.encode("shop:s%2Fcret"))
                        );
                        let form: HashMap<String, String> =
                            pairs(std::str::from_utf8(&body).unwrap()).collect();
                        let (answer, hold) = {
                            let mut conduct = shared.lock().unwrap();
                            (conduct.token(&form, &counted), conduct.hold.clone())
                        };
                        if let Some(hold) = hold {
                            hold.notified().await;
                        }
                        answer
                    }
                    other => panic!("{other}"),
                };
                Response::builder().status(status).body(full(text)).unwrap()
            }
        });
        Self { backend, conduct, refreshes }
    }

    fn conduct(&self, change: impl FnOnce(&mut Conduct)) {
        change(&mut self.conduct.lock().unwrap());
    }

    /// The user logs in at the address to which a browser was sent; the address to which it is sent back.
    fn authorize(&self, location: &str) -> String {
        let (place, query) = location.split_once('?').unwrap();
        assert_eq!(place, "https://login.example/authorize");
        let sent: HashMap<String, String> = pairs(query).collect();
        for (name, value) in [
            ("response_type", "code"),
            ("client_id", "shop"),
            ("redirect_uri", "http://test.example/callback"),
            ("scope", "openid offline_access"),
            ("code_challenge_method", "S256"),
            ("prompt", "login"),
        ] {
            assert_eq!(sent[name], value, "{location}");
        }
        let (state, code) = (&sent["state"], format!("code-of-{}", sent["state"]));
        let known = (sent["nonce"].clone(), sent["code_challenge"].clone());
        self.conduct(|conduct| drop(conduct.codes.insert(code.clone(), known)));
        format!("/callback?code={code}&state={state}&iss=https%3A%2F%2Flogin.example")
    }
}

impl Conduct {
    fn token(&mut self, form: &HashMap<String, String>, refreshes: &AtomicUsize) -> (u16, String) {
        let refused = (400, json!({"error": "invalid_grant"}).to_string());
        let mut claims = json!({"sub": "alice"});
        if form["grant_type"] == "refresh_token" {
            refreshes.fetch_add(1, Ordering::SeqCst);
            if let Some(answer) = &self.answer {
                return answer.clone();
            }
            if form["refresh_token"] != self.refresh_token {
                return refused;
            }
        } else {
            if let Some(answer) = &self.answer {
                return answer.clone();
            }
            assert_eq!(form["redirect_uri"], "http://test.example/callback");
            let Some((nonce, challenge)) = self.codes.remove(&form["code"]) else { return refused };
            let verifier = BASE64.encode(digest(&SHA256, form["code_verifier"].as_bytes()));
            assert_eq!(verifier, challenge);
            claims["nonce"] = nonce.into();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let usual = json!({"iss": ISSUER, "aud": "shop", "iat": now, "exp": now + 60});
        for more in [&usual, &self.claims] {
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        let header = BASE64.encode(json!({"alg": "EdDSA", "kid": self.signer.to_string()}).to_string());
        let signed = format!("{header}.{}", BASE64.encode(claims.to_string()));
        let id_token = format!("{signed}.{}", BASE64.encode(pair(self.signer).sign(signed.as_bytes())));
        self.refresh_token = format!("refresh-{}", refreshes.load(Ordering::SeqCst));
        let tokens = json!({
            "access_token": "opaque", "token_type": "Bearer", "expires_in": self.expires_in, "id_token": id_token,
            "refresh_token": self.refresh_token,
        });
        (200, tokens.to_string())
    }

    fn keys(&self) -> (u16, String) {
        if self.hides_keys {
            return (503, String::new());
        }
        let x = BASE64.encode(pair(self.signer).public_key().as_ref());
        let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": self.signer.to_string(), "x": x});
        (200, json!({"keys": [key]}).to_string())
    }
}

fn discovery() -> String {
    let at = |path: &str| format!("{ISSUER}{path}");
    json!({
        "issuer": ISSUER, "jwks_uri": at("/keys"), "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"), "end_session_endpoint": at("/end?x=1"),
    })
    .to_string()
}

/// The names and values of a query or a form.
fn pairs(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    text.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        let value = percent_encoding::percent_decode_str(value).decode_utf8().unwrap();
        (name.to_owned(), value.into_owned())
    })
}

/// The secrets of the gateway.
struct Secrets(TempDir);

impl Secrets {
    fn new() -> Self {
        let secrets = Self(TempDir::new().unwrap());
        for (name, text) in [("client", "s/cret\n"), ("old", &"o".repeat(40)), ("new", &"n".repeat(40))] {
            std::fs::write(secrets.0.path().join(name), text).unwrap();
        }
        secrets
    }

    fn reference(&self, name: &str) -> String {
        format!("{{file: '{}'}}", self.0.path().join(name).display())
    }

    fn document(&self, login: &Login, backend: &Backend, keys: &[&str], more: &str) -> String {
        let keys: Vec<String> = keys.iter().map(|key| self.reference(key)).collect();
        format!(
            "
plugins:
- name: login
  type: oidc
  config:
    issuer: {ISSUER}
    upstream: login
    client_id: shop
    client_secret: {}
    redirect_uri: http://test.example/callback
    scopes: [offline_access]
    parameters: {{prompt: login}}
    session: {{keys: [{}]}}
    claims_to_headers: {{x-user: sub, x-note: note}}
    {more}
consumers: [{{name: alice, groups: [staff]}}]
upstreams:
- {{name: u, targets: [{{address: '{}'}}]}}
- {{name: login, targets: [{{address: '{}'}}]}}
routes:
- {{name: all, match: {{paths: [{{prefix: /}}]}}, plugins: [login], forward: {{upstreams: [{{name: u}}]}}}}
",
            self.reference("client"),
            keys.join(", "),
            backend.address,
            login.backend.address
        )
    }
}

/// A browser: it keeps cookies.
struct Browser {
    client: Client,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    async fn open(harness: &Harness) -> Self {
        Self { client: Client::connect(harness.address()).await, cookies: BTreeMap::new() }
    }

    /// Opens a page.
    async fn page(&mut self, target: &str) -> Answer {
        self.send(Request::get(target).header("sec-fetch-mode", "navigate")).await
    }

    /// Makes a request as a script does.
    async fn script(&mut self, target: &str) -> Answer {
        self.send(Request::get(target).header("sec-fetch-mode", "cors").header("accept", "*/*")).await
    }

    async fn send(&mut self, request: http::request::Builder) -> Answer {
        let answer = self.client.send(self.with_cookies(request)).await;
        for set in answer.headers.get_all("set-cookie") {
            let set = set.to_str().unwrap();
            assert!(set.len() <= 4096 && set.contains("; Path=/; HttpOnly; SameSite=Lax"), "{set}");
            let (pair, attributes) = set.split_once(';').unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            match attributes.contains("Max-Age=0") {
                true => drop(self.cookies.remove(name)),
                false => drop(self.cookies.insert(name.to_owned(), value.to_owned())),
            }
        }
        answer
    }

    fn with_cookies(&self, request: http::request::Builder) -> Request<AnyBody> {
        let cookies = self.cookies.iter().map(|(name, value)| format!("{name}={value}"));
        let cookies = cookies.collect::<Vec<_>>().join("; ");
        let request = if cookies.is_empty() { request } else { request.header("cookie", cookies) };
        request.body(full("")).unwrap()
    }

    /// Logs in at a page; the address to which it is sent at the end.
    async fn log_in(&mut self, login: &Login, target: &str) -> String {
        let answer = self.page(target).await;
        assert_eq!(answer.status, 302, "{}", answer.text());
        let back = login.authorize(&location(&answer));
        let answer = self.page(&back).await;
        assert_eq!(answer.status, 302, "{}", answer.text());
        assert_eq!(answer.headers["cache-control"], "no-store");
        location(&answer)
    }
}

fn location(answer: &Answer) -> String {
    answer.headers["location"].to_str().unwrap().to_owned()
}

#[test]
fn a_browser_logs_in_and_returns_to_the_page_that_it_wanted() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(
            &login,
            &backend,
            &["old"],
            "consumer_claim: sub\n    forward_access_token: true",
        ));
        let mut browser = Browser::open(&harness).await;
        assert_eq!(browser.log_in(&login, "/page?a=b&c=%20d").await, format!("{ORIGIN}/page?a=b&c=%20d"));
        // Nothing of the login is left but the session.
        assert_eq!(browser.cookies.keys().collect::<Vec<_>>(), ["session"]);
        browser.cookies.insert("other".to_owned(), "1".to_owned());
        for spoofed in ["x-note", "x_note", "X.Note"] {
            let request =
                Request::get("/page").header(spoofed, "spoofed").header("authorization", "Basic YTpi");
            let answer = browser.send(request).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            for told in [
                r#"["x-user","alice"]"#,
                r#"["x-consumer-groups","staff"]"#,
                r#"["authorization","Bearer opaque"]"#,
                r#"["cookie","other=1"]"#,
            ] {
                assert!(answer.text().contains(told), "{told} is not in {}", answer.text());
            }
            assert!(
                !answer.text().contains("spoofed") && !answer.text().contains("session="),
                "{}",
                answer.text()
            );
        }
        // The user is none of the consumers.
        login.conduct(|conduct| conduct.claims = json!({"sub": "bob"}));
        let mut stranger = Browser::open(&harness).await;
        stranger.log_in(&login, "/").await;
        assert_eq!(stranger.page("/").await.status, 403);
    });
}

#[test]
fn only_pages_are_sent_to_the_provider() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let document = secrets.document(&login, &backend, &["old"], "");
        let mut harness = Harness::start(&document);
        let mut browser = Browser::open(&harness).await;
        for (request, status) in [
            (Request::get("/").header("sec-fetch-mode", "navigate"), 302),
            (Request::get("/").header("accept", "text/html,*/*"), 302),
            (Request::head("/").header("accept", "text/html"), 302),
            (Request::get("/").header("sec-fetch-mode", "cors").header("accept", "text/html"), 401),
            (
                Request::get("/").header("x-requested-with", "XMLHttpRequest").header("accept", "text/html"),
                401,
            ),
            (Request::get("/").header("accept", "application/json"), 401),
            (Request::get("/"), 401),
            (Request::post("/").header("sec-fetch-mode", "navigate"), 401),
            (Request::get("/").header("sec-fetch-mode", "navigate").header("authorization", "Bearer x"), 401),
        ] {
            let asked = format!("{request:?}");
            let answer = browser.send(request).await;
            assert_eq!(answer.status, status, "{asked}");
            assert_eq!(answer.headers.contains_key("location"), status == 302, "{asked}");
        }
        for (more, page, script) in [("unauthenticated: deny", 401, 401), ("unauthenticated: pass", 200, 200)]
        {
            harness.apply(&secrets.document(&login, &backend, &["old"], more)).unwrap();
            let mut browser = Browser::open(&harness).await;
            assert_eq!(
                (browser.page("/").await.status, browser.script("/").await.status),
                (page, script),
                "{more}"
            );
        }
        // Nobody vouches for a client that passes without a session.
        let answer = browser.send(Request::get("/").header("x_user", "alice")).await;
        assert!(answer.status == 200 && !answer.text().contains("alice"), "{}", answer.text());
        // A consumer that another plugin has found counts, and a token that nobody has checked does not.
        let keys = document.replace(
            "plugins:\n",
            "plugins:\n- {name: keys, type: key-auth, order: 1500, config: {anonymous: guest}}\n",
        );
        let keys = keys.replace(
            "[{name: alice, groups: [staff]}]",
            "[{name: alice, credentials: [{key_auth: {key: secret}}]}, {name: guest}]",
        );
        let keys = keys
            .replace("plugins: [login]", "plugins: [login, keys]")
            .replace("    claims_to_headers", "    bearer: pass\n    claims_to_headers");
        harness.apply(&keys).unwrap();
        for (key, status) in [("secret", 200), ("wrong", 401)] {
            let request = Request::get("/").header("authorization", "Bearer x").header("apikey", key);
            assert_eq!(browser.send(request).await.status, status, "{key}");
        }
    });
}

#[test]
fn tabs_do_not_disturb_each_other_and_callbacks_that_lead_nowhere_are_refused() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &backend, &["old"], ""));
        let mut browser = Browser::open(&harness).await;
        let mut backs = Vec::new();
        for target in ["/one", "/two", "/three"] {
            backs.push(login.authorize(&location(&browser.page(target).await)));
        }
        assert_eq!(location(&browser.page(&backs[1]).await), format!("{ORIGIN}/two"));
        assert_eq!(location(&browser.page(&backs[0]).await), format!("{ORIGIN}/one"));
        // Opened again, and who has a session does not need it.
        assert_eq!(location(&browser.page(&backs[0]).await), format!("{ORIGIN}/"));
        assert_eq!(browser.page("/").await.status, 200);

        let mut other = Browser::open(&harness).await;
        assert_eq!(other.page(&backs[2]).await.status, 400, "another browser has begun it");
        let begun = login.authorize(&location(&other.page("/").await));
        let state = begun.split('&').find(|part| part.starts_with("state=")).unwrap();
        let kept = other.cookies.clone();
        for (target, status) in [
            ("/callback".to_owned(), 400),
            ("/callback?code=x".to_owned(), 400),
            ("/callback?code=x&state=".to_owned(), 400),
            ("/callback?code=x&state=unknown".to_owned(), 400),
            (format!("/callback?code=x&{state}&{state}"), 400),
            (format!("/callback?{state}"), 400),
            (format!("/callback?{state}&code=a&code=b"), 400),
            (format!("/callback?{state}&code=stolen"), 400),
            (format!("/callback?{state}&error=access_denied%0d%0a"), 403),
            (format!("/callback?{state}&code=x&iss=https%3A%2F%2Fevil.example"), 400),
        ] {
            other.cookies.clone_from(&kept);
            let answer = other.page(&target).await;
            assert_eq!(answer.status, status, "{target}: {}", answer.text());
            assert!(!other.cookies.contains_key("session"));
        }
        // The code of one login is no good for another: it has another nonce and another verifier.
        other.cookies.clone_from(&kept);
        assert_eq!(other.page(&begun).await.status, 302);
        for claims in [
            json!({"nonce": "another"}),
            json!({"aud": "another"}),
            json!({"iss": "https://evil.example"}),
            json!({"exp": 1}),
            json!({"sub": null}),
        ] {
            login.conduct(|conduct| conduct.claims = claims.clone());
            let mut browser = Browser::open(&harness).await;
            let back = login.authorize(&location(&browser.page("/").await));
            assert_eq!(browser.page(&back).await.status, 502, "{claims}");
            assert!(browser.cookies.is_empty(), "{claims}");
        }
    });
}

#[test]
fn cookies_that_the_gateway_did_not_write_so_are_no_session() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let document = |keys: &[&str]| secrets.document(&login, &backend, keys, "");
        let mut harness = Harness::start(&document(&["old"]));
        let mut browser = Browser::open(&harness).await;
        browser.page("/a-login-that-is-not-finished").await;
        let flow = browser.cookies.values().next().unwrap().clone();
        browser.log_in(&login, "/").await;
        let good = browser.cookies["session"].clone();
        assert_eq!(browser.script("/").await.status, 200);
        let changed = |place: usize| {
            let mut text = good.clone().into_bytes();
            text[place] = if text[place] == b'A' { b'B' } else { b'A' };
            String::from_utf8(text).unwrap()
        };
        let bad = [
            String::new(),
            format!("1.{flow}"),
            good.replacen("1.", "2.", 1),
            good.replacen("1.", "", 1),
            good[..good.len() - 4].to_owned(),
            format!("{good}AAAA"),
            changed(4),
            changed(40),
            changed(good.len() - 3),
        ];
        for cookie in bad {
            browser.cookies.insert("session".to_owned(), cookie.clone());
            assert_eq!(browser.script("/").await.status, 401, "{cookie}");
        }
        browser.cookies.insert("session".to_owned(), good);
        // Rotated: the old key opens as long as it is there.
        harness.apply(&document(&["new", "old"])).unwrap();
        assert_eq!(browser.script("/").await.status, 200);
        harness.apply(&document(&["new"])).unwrap();
        assert_eq!(browser.script("/").await.status, 401);
        // A key for another client.
        harness.apply(&document(&["old"]).replace("client_id: shop", "client_id: other")).unwrap();
        assert_eq!(browser.script("/").await.status, 401);
        // Without its secrets, the gateway lets nobody pass, and serves other routes.
        harness.apply(&document(&["missing"])).unwrap();
        assert_eq!(browser.script("/").await.status, 503);
    });
}

#[test]
fn a_large_session_takes_several_cookies_and_leaves_none_behind() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &backend, &["old"], ""));
        let mut browser = Browser::open(&harness).await;
        login.conduct(|conduct| conduct.claims = json!({"note": "x".repeat(3000)}));
        browser.log_in(&login, "/").await;
        let names: Vec<_> = browser.cookies.keys().cloned().collect();
        assert_eq!(names, ["session", "session.1", "session.2"]);
        assert_eq!(browser.script("/").await.status, 200);
        let all = browser.cookies.clone();
        for name in &names {
            browser.cookies.clone_from(&all);
            browser.cookies.remove(name);
            assert_eq!(browser.script("/").await.status, 401, "without {name}");
        }
        // A smaller one takes their place.
        browser.cookies.clone_from(&all);
        login.conduct(|conduct| conduct.claims = json!({}));
        let begun = browser.cookies.remove("session").unwrap();
        let location = location(&browser.page("/").await);
        browser.cookies.insert("session".to_owned(), begun);
        browser.page(&login.authorize(&location)).await;
        assert_eq!(browser.cookies.keys().collect::<Vec<_>>(), ["session"]);
        assert_eq!(browser.script("/").await.status, 200);
        // One that is too large without its ID token, too, is none.
        login.conduct(|conduct| conduct.claims = json!({"note": "x".repeat(11_000)}));
        let mut other = Browser::open(&harness).await;
        other.log_in(&login, "/").await;
        assert!(other.cookies.len() <= 5);
        assert_eq!(other.script("/").await.status, 200);
    });
}

#[test]
fn a_session_is_refreshed_once_for_all_requests_and_ends_only_when_the_provider_says_so() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &backend, &["old"], ""));
        let mut browser = Browser::open(&harness).await;
        login.conduct(|conduct| conduct.expires_in = 10);
        browser.log_in(&login, "/").await;
        let old = browser.cookies.clone();
        login.conduct(|conduct| {
            conduct.expires_in = 3600;
            conduct.claims = json!({"note": "fresh"});
        });
        let requests: Vec<_> = (0..20)
            .map(|_| {
                let (request, address) = (browser.with_cookies(Request::get("/")), harness.address());
                tokio::spawn(async move { Client::connect(address).await.send(request).await })
            })
            .collect();
        for request in requests {
            let answer = request.await.unwrap();
            assert_eq!(answer.status, 200);
            assert!(
                answer.headers.contains_key("set-cookie") && answer.text().contains("fresh"),
                "{}",
                answer.text()
            );
        }
        assert_eq!(login.refreshes.load(Ordering::SeqCst), 1);
        // The old cookie leads to the new session, which needs no refresh.
        assert_eq!(browser.script("/").await.status, 200);
        assert_ne!(browser.cookies, old);
        let answer = browser.script("/").await;
        assert!(answer.status == 200 && !answer.headers.contains_key("set-cookie"));
        assert_eq!(login.refreshes.load(Ordering::SeqCst), 1);

        // A provider that fails ends no session: not while the access token is good, and not after it.
        for (expires_in, answer, status) in [
            (19, (503, String::new()), 200),
            (19, (200, "<html>".to_owned()), 200),
            (19, (401, json!({"error": "invalid_client"}).to_string()), 200),
            (0, (503, String::new()), 503),
            (0, (400, "?".to_owned()), 503),
        ] {
            login.conduct(|conduct| {
                conduct.answer = None;
                conduct.expires_in = expires_in;
            });
            let mut browser = Browser::open(&harness).await;
            browser.log_in(&login, "/").await;
            login.conduct(|conduct| conduct.answer = Some(answer.clone()));
            assert_eq!(browser.script("/").await.status, status, "{answer:?}");
            assert!(browser.cookies.contains_key("session"), "{answer:?}");
        }
        login.conduct(|conduct| conduct.answer = None);
        let mut browser = Browser::open(&harness).await;
        browser.log_in(&login, "/").await;
        login.conduct(|conduct| conduct.refresh_token = "revoked".to_owned());
        assert_eq!(browser.script("/").await.status, 401);
        assert!(browser.cookies.is_empty());
    });
}

#[test]
fn a_refresh_with_a_wrong_id_token_ends_the_session_at_once() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &backend, &["old"], ""));
        for claims in [json!({"sub": "bob"}), json!({"aud": "other"}), json!({"exp": 1})] {
            login.conduct(|conduct| {
                conduct.expires_in = 10;
                conduct.claims = json!({});
            });
            let mut browser = Browser::open(&harness).await;
            browser.log_in(&login, "/").await;
            let before = (browser.cookies.clone(), login.refreshes.load(Ordering::SeqCst));
            login.conduct(|conduct| conduct.claims = claims.clone());
            let answer = browser.script("/").await;
            assert_eq!(answer.status, 401, "{claims}");
            assert!(answer.text().contains("the session has ended"), "{}", answer.text());
            assert!(browser.cookies.is_empty(), "{claims}");
            // The provider is not asked again for a request that was sent with the old cookie.
            browser.cookies = before.0;
            assert_eq!(browser.script("/").await.status, 401, "{claims}");
            assert_eq!(login.refreshes.load(Ordering::SeqCst), before.1 + 1, "{claims}");
        }
        assert_eq!(harness.outcome("login", "session_ended"), 6);
    });
}

#[test]
fn a_new_refresh_token_is_kept_when_the_key_of_its_id_token_is_not_known_yet() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &backend, &["old"], ""));
        let mut browser = Browser::open(&harness).await;
        login.conduct(|conduct| conduct.expires_in = 19);
        browser.log_in(&login, "/").await;
        let before = browser.cookies.clone();
        login.conduct(|conduct| {
            conduct.expires_in = 3600;
            conduct.claims = json!({"note": "fresh"});
            (conduct.signer, conduct.hides_keys) = (2, true);
        });
        // The provider accepts the first refresh token no more.
        let answer = browser.script("/").await;
        assert!(answer.status == 200 && !answer.text().contains("fresh"), "{}", answer.text());
        assert_ne!(browser.cookies, before);
        assert_eq!(login.refreshes.load(Ordering::SeqCst), 1);
        login.conduct(|conduct| conduct.hides_keys = false);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = browser.script("/").await;
            // On a slow machine the access token may end before.
            assert!([200, 503].contains(&answer.status), "{}", answer.text());
            if answer.text().contains("fresh") {
                break;
            }
            assert!(Instant::now() < deadline, "the session was not renewed: {}", answer.text());
        }
    });
}

/// A backend that answers requests for `/slow` when it is told to.
struct Slow {
    backend: Backend,
    arrived: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Slow {
    fn start() -> Self {
        let (arrived, go_on) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let told = (Arc::clone(&arrived), Arc::clone(&go_on));
        let backend = Backend::start(move |request: Request<hyper::body::Incoming>| {
            let (arrived, go_on) = (Arc::clone(&told.0), Arc::clone(&told.1));
            async move {
                if request.uri().path() == "/slow" {
                    arrived.notify_one();
                    go_on.notified().await;
                }
                Response::new(full(""))
            }
        });
        Self { backend, arrived, go_on }
    }

    /// Sends a request for `/slow` with the cookies of `browser`, and waits until it is here. It is answered when `go_on` is notified.
    async fn ask(&self, harness: &Harness, browser: &Browser) -> JoinHandle<Answer> {
        let answer = spawned(harness, browser, "/slow");
        self.arrived.notified().await;
        answer
    }
}

/// Sends a request with the cookies of `browser` over another connection.
fn spawned(harness: &Harness, browser: &Browser, path: &str) -> JoinHandle<Answer> {
    let (request, address) = (browser.with_cookies(Request::get(path)), harness.address());
    tokio::spawn(async move { Client::connect(address).await.send(request).await })
}

#[test]
fn no_request_that_began_before_a_logout_brings_the_session_back() {
    block_on(async {
        let (login, slow, secrets) = (Login::start(), Slow::start(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &slow.backend, &["old"], ""));
        login.conduct(|conduct| conduct.expires_in = 10);
        // It was refreshed before the logout, and its response comes after it.
        let mut browser = Browser::open(&harness).await;
        browser.log_in(&login, "/").await;
        let copy = browser.cookies.clone();
        let late = slow.ask(&harness, &browser).await;
        assert_eq!(login.refreshes.load(Ordering::SeqCst), 1);
        browser.page("/logout").await;
        slow.go_on.notify_one();
        let answer = late.await.unwrap();
        assert_eq!((answer.status, answer.headers.get("set-cookie")), (200, None));
        browser.cookies = copy;
        assert_eq!(browser.script("/").await.status, 401, "a copy of the cookies is no session");

        // It waits for its refresh meanwhile.
        let mut browser = Browser::open(&harness).await;
        browser.log_in(&login, "/").await;
        let hold = Arc::<Notify>::default();
        login.conduct(|conduct| conduct.hold = Some(Arc::clone(&hold)));
        let late = spawned(&harness, &browser, "/");
        until("it is refreshed", || login.refreshes.load(Ordering::SeqCst) == 2).await;
        browser.page("/logout").await;
        hold.notify_one();
        let answer = late.await.unwrap();
        assert_eq!((answer.status, answer.headers.get("set-cookie")), (401, None));
    });
}

#[test]
fn a_slow_response_puts_no_old_session_in_the_place_of_a_newer_one() {
    block_on(async {
        let (login, slow, secrets) = (Login::start(), Slow::start(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &slow.backend, &["old"], ""));
        login.conduct(|conduct| conduct.expires_in = 10);
        let mut browser = Browser::open(&harness).await;
        browser.log_in(&login, "/").await;
        // Nothing is newer than what it brings.
        let late = slow.ask(&harness, &browser).await;
        slow.go_on.notify_one();
        assert!(late.await.unwrap().headers.contains_key("set-cookie"));
        // Two more refreshes are faster.
        let late = slow.ask(&harness, &browser).await;
        for _ in 0..2 {
            assert_eq!(browser.script("/").await.status, 200);
        }
        assert_eq!(login.refreshes.load(Ordering::SeqCst), 2);
        slow.go_on.notify_one();
        assert_eq!(late.await.unwrap().headers.get("set-cookie"), None);
        // Another login is.
        let late = slow.ask(&harness, &browser).await;
        let session = browser.cookies.remove("session").unwrap();
        let begun = location(&browser.page("/").await);
        browser.cookies.insert("session".to_owned(), session);
        assert_eq!(browser.page(&login.authorize(&begun)).await.status, 302);
        slow.go_on.notify_one();
        assert_eq!(late.await.unwrap().headers.get("set-cookie"), None);
    });
}

#[test]
fn a_login_on_another_host_goes_on_at_the_host_of_the_redirect_uri() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &backend, &["old"], ""));
        let page = |target: &str| Request::get(target).header("sec-fetch-mode", "navigate");
        let elsewhere = |request: http::request::Builder| request.header("host", "www.test.example:8080");
        let path = |answer: &Answer| {
            let location = location(answer);
            location.strip_prefix(ORIGIN).unwrap_or_else(|| panic!("{location}")).to_owned()
        };
        let mut browser = Browser::open(&harness).await;
        let answer = browser.send(elsewhere(page("/page?a=b"))).await;
        assert_eq!((answer.status, browser.cookies.len()), (302, 0));
        let start = path(&answer);
        assert!(start.starts_with("/callback?begin="), "{start}");
        // Whatever host the proxy sees, the browser is not sent there again.
        for request in [elsewhere(page(&start)), page(&start)] {
            let mut browser = Browser::open(&harness).await;
            let answer = browser.send(request).await;
            let back = login.authorize(&location(&answer));
            assert_eq!(path(&browser.page(&back).await), "/page?a=b");
        }
        // A browser that is logged in there gets the page.
        browser.log_in(&login, "/").await;
        assert_eq!(path(&browser.page(&start).await), "/page?a=b");
        // One that does not open leads to the site, and no image begins a login.
        let forged = start.replace("begin=A", "begin=B");
        assert_eq!(path(&Browser::open(&harness).await.page(&forged).await), "/");
        assert_eq!(Browser::open(&harness).await.script(&start).await.status, 400);
        let mut browser = Browser::open(&harness).await;
        let form = Request::post("/page").header("sec-fetch-mode", "navigate");
        assert_eq!(browser.send(elsewhere(form)).await.status, 401);
        let head = Request::head("/page").header("sec-fetch-mode", "navigate");
        login.authorize(&location(&browser.send(elsewhere(head)).await));
    });
}

#[test]
fn no_link_leads_a_login_to_another_host() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(&login, &backend, &["old"], ""));
        for target in [
            "//evil.example",
            "//evil.example/%2e%2e",
            "/%5cevil.example",
            "/%09/evil.example",
            "/%2f%2fevil.example",
            "/.//evil.example",
            "/a?rd=https://evil.example",
        ] {
            let mut browser = Browser::open(&harness).await;
            let answer = browser.page(target).await;
            if answer.status != 302 {
                assert_eq!(answer.status, 400, "{target}");
                continue;
            }
            let after = location(&browser.page(&login.authorize(&location(&answer))).await);
            let rest = after.strip_prefix(ORIGIN).unwrap_or_else(|| panic!("{target} leads to {after}"));
            assert!(
                rest.starts_with('/') && !rest.starts_with("//") && !rest.contains('\\'),
                "{target} leads to {after}"
            );
        }
    });
}

#[test]
fn a_logout_takes_all_cookies_away_and_no_other_site_can_ask_for_it() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let harness = Harness::start(&secrets.document(
            &login,
            &backend,
            &["old"],
            "after_logout: 'http://test.example/bye'",
        ));
        let mut browser = Browser::open(&harness).await;
        browser.log_in(&login, "/").await;
        let session = browser.cookies.clone();
        assert_eq!(
            browser.send(Request::get("/logout").header("sec-fetch-site", "cross-site")).await.status,
            403
        );
        assert_eq!(browser.cookies, session);
        let answer = browser.page("/logout").await;
        let place = location(&answer);
        let sent: HashMap<String, String> =
            pairs(place.strip_prefix("https://login.example/end?").unwrap()).collect();
        assert_eq!((&*sent["x"], &*sent["client_id"]), ("1", "shop"));
        assert_eq!(sent["post_logout_redirect_uri"], "http://test.example/bye");
        assert_eq!(sent["id_token_hint"].split('.').count(), 3);
        assert!(browser.cookies.is_empty());
        assert_eq!(browser.script("/").await.status, 401);
        // Without a session there is nobody to log out at the provider.
        assert_eq!(location(&browser.page("/logout").await), "http://test.example/bye");
    });
}

#[test]
fn a_provider_that_is_away_stops_logins_and_nothing_else() {
    block_on(async {
        let (login, backend, secrets) = (Login::start(), Backend::echo(), Secrets::new());
        let document = secrets.document(&login, &backend, &["old"], "");
        let mut harness = Harness::start(&document);
        let mut browser = Browser::open(&harness).await;
        browser.log_in(&login, "/").await;
        let back = login.authorize(&location(&Browser::open(&harness).await.page("/").await));
        assert!(back.starts_with("/callback"));
        login.conduct(|conduct| conduct.answer = Some((503, String::new())));
        let mut other = Browser::open(&harness).await;
        let back = login.authorize(&location(&other.page("/").await));
        let answer = other.page(&back).await;
        assert_eq!((answer.status, &answer.headers["retry-after"]), (503, &"1".parse().unwrap()));
        // Under another name, by an upstream of another name, nothing is known of the provider, which is not there.
        let away = document
            .replace(&login.backend.address.to_string(), &crate::harness::nobody().to_string())
            .replace("upstream: login", "upstream: away")
            .replace("{name: login, targets", "{name: away, targets");
        harness
            .apply(&away.replace("name: login\n  type", "name: again\n  type").replace("[login]", "[again]"))
            .unwrap();
        until("it is known to be away", || {
            harness.proxy.counted(|_, compiled, _, _| {
                let stats = compiled.plugin_stats().find(|stats| stats.name.as_str() == "again").unwrap();
                stats.outcomes.read().any(|(name, count)| name == "keys_fetch_failed" && count > 0)
            })
        })
        .await;
        assert_eq!(browser.script("/").await.status, 200);
        assert_eq!(other.page("/").await.status, 503);
        assert_eq!(other.script("/").await.status, 401);
    });
}
