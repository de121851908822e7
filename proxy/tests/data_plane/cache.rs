//! `cache` on the way of real requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, PluginType, Registry, hooks};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_stream::StreamExt as _;

use crate::harness::{Answer, AnyBody, Backend, Client, Harness, Wire, block_on, full, read_head, until};

/// A document with a cache of this configuration before `backend`, and further plugins.
fn document(backend: &Backend, config: &str, plugins: &str) -> String {
    format!(
        "
plugins: [{{name: c, type: cache, global: true, config: {config}}}{plugins}]
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes:
- {{name: moved, match: {{paths: [{{prefix: /moved}}]}}, forward: {{upstreams: [{{name: u}}], rewrite: {{path_prefix: /}}}}}}
- {{name: all, match: {{paths: [{{prefix: /}}]}}, forward: {{upstreams: [{{name: u}}]}}}}
",
        backend.address
    )
}

fn start(backend: &Backend, config: &str) -> Harness {
    Harness::start(&document(backend, config, ""))
}

/// A backend that counts its requests, and answers each by its path: `/TEXT?HEADER=VALUE&…`.
fn counting() -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let backend = Backend::start(move |request| {
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        let mut response = Response::builder().header("x-number", number);
        for pair in request.uri().query().unwrap_or_default().split('&') {
            if let Some((name, value)) = pair.split_once('=') {
                response = match name {
                    "status" => response.status(value.parse::<u16>().unwrap()),
                    "etag" => {
                        let tag = format!("\"{value}\"");
                        let is_known = request.headers().get("if-none-match").is_some_and(|it| *it == *tag);
                        if is_known { response.status(304) } else { response }.header(name, tag)
                    }
                    _ => response.header(name, value.replace('+', " ")),
                };
            }
        }
        let text = format!("{} for {}", request.method(), request.uri().path());
        async move { response.body(full(text)).unwrap() }
    });
    (backend, count)
}

const MINUTE: &str = "cache-control=max-age=60";

fn word(headers: &HeaderMap) -> &str {
    headers["x-cache-status"].to_str().unwrap()
}

fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<AnyBody> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(full("")).unwrap()
}

#[test]
fn a_hit_passes_the_other_plugins_as_a_miss_does() {
    block_on(async {
        let (backend, count) = counting();
        let others = ", {name: z, type: compress, global: true, config: {min_size: 1}}, \
            {name: o, type: cors, global: true, config: {origins: ['https://a.example']}}, \
            {name: l, type: rate-limit, global: true, config: {limit: 1000, window: 1h, by: ip}}";
        let harness = Harness::start(&document(&backend, "{}", others));
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let path = format!("/{wire:?}?{MINUTE}&content-type=text/plain&etag=1");
            let fields = [("accept-encoding", "gzip"), ("origin", "https://a.example")];
            let mut seen: Vec<Answer> = Vec::new();
            for expected in ["Miss", "Hit"] {
                let answer = client.send(request("GET", &path, &fields)).await;
                assert_eq!(word(&answer.headers), expected);
                seen.push(answer);
            }
            assert_eq!(seen[1].headers["age"], "0");
            assert_eq!(seen[0].body, seen[1].body);
            let changing = [
                "age",
                "cache-status",
                "x-cache-status",
                "date",
                "x-request-id",
                "ratelimit-remaining",
                "x-ratelimit-remaining",
                "ratelimit-reset",
                "x-ratelimit-reset",
            ];
            let [miss, hit] = [&seen[0], &seen[1]].map(|answer| {
                let mut headers = answer.headers.clone();
                changing.iter().for_each(|name| drop(headers.remove(*name)));
                headers
            });
            assert_eq!(miss, hit);
            assert_eq!(hit["content-encoding"], "gzip");
            assert_eq!(hit["access-control-allow-origin"], "https://a.example");
        }
        assert_eq!(count.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn one_stored_response_answers_get_head_conditions_and_ranges() {
    block_on(async {
        let (backend, count) = counting();
        let harness = start(&backend, "{}");
        for (wire, asked) in Wire::BOTH.into_iter().zip(1..) {
            let mut client = Client::speaking(wire, harness.address()).await;
            let path = format!("/{wire:?}?{MINUTE}&etag=1");
            let length = format!("GET for /{wire:?}").len().to_string();
            let miss = client.get(&path).await;
            assert_eq!(miss.headers["content-length"], length.as_str(), "the length of a miss is known, too");
            let head = client.send(request("HEAD", &path, &[])).await;
            assert_eq!((head.status, &head.body[..], word(&head.headers)), (200, &b""[..], "Hit"));
            assert_eq!(head.headers["content-length"], length.as_str());
            let known = client.send(request("GET", &path, &[("if-none-match", "\"1\"")])).await;
            assert_eq!((known.status, &known.body[..], word(&known.headers)), (304, &b""[..], "Hit"));
            let part = client.send(request("GET", &path, &[("range", "bytes=0-2")])).await;
            assert_eq!((part.status, part.text(), word(&part.headers)), (206, "GET", "Hit"));
            assert_eq!(part.headers["content-length"], "3");
            assert_eq!(count.load(Ordering::SeqCst), asked);
        }
    });
}

#[test]
fn parts_and_heads_are_never_stored_as_the_whole() {
    block_on(async {
        let (backend, _) = counting();
        let harness = start(&backend, "{}");
        let mut client = Client::connect(harness.address()).await;
        let part = format!("/part?{MINUTE}&status=206&content-range=bytes+0-1/9");
        let whole = format!("/whole?{MINUTE}");
        for expected in ["Miss", "Miss"] {
            let answer = client.send(request("GET", &part, &[("range", "bytes=0-1")])).await;
            assert_eq!((answer.status, word(&answer.headers)), (206, expected));
            assert_eq!(word(&client.send(request("HEAD", &whole, &[])).await.headers), expected);
        }
        assert_eq!(client.get(&whole).await.text(), "GET for /whole");
    });
}

#[test]
fn a_body_that_breaks_off_is_not_stored() {
    block_on(async {
        let count = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&count);
        let backend = Backend::raw(move |mut stream| {
            let counted = Arc::clone(&counted);
            async move {
                while let Some(head) = read_head(&mut stream).await {
                    let number = counted.fetch_add(1, Ordering::SeqCst);
                    let chunked = head.starts_with("GET /chunked");
                    let framing = if chunked { "transfer-encoding: chunked" } else { "content-length: 10" };
                    let head = format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n{framing}\r\n\r\n");
                    let body = match (chunked, number % 2) {
                        (true, 0) => "5\r\nhello\r\n",
                        (true, _) => "5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n",
                        (false, 0) => "hello",
                        (false, _) => "helloworld",
                    };
                    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                    if number % 2 == 0 {
                        return;
                    }
                }
            }
        });
        let harness = start(&backend, "{}");
        for path in ["/chunked", "/sized"] {
            let mut client = Client::connect(harness.address()).await;
            let broken = client.start(request("GET", path, &[])).await.unwrap();
            assert!(broken.into_body().collect().await.is_err(), "{path}");
            let miss = harness.get(path).await;
            assert_eq!((miss.text(), word(&miss.headers)), ("helloworld", "Miss"), "{path}");
            let hit = harness.get(path).await;
            assert_eq!((hit.text(), word(&hit.headers)), ("helloworld", "Hit"), "{path}");
        }
        assert_eq!(count.load(Ordering::SeqCst), 4);
    });
}

/// A backend whose body comes part by part, as the test sends them.
fn streaming() -> (Backend, mpsc::Sender<&'static str>) {
    let (next, parts) = mpsc::channel::<&'static str>(1);
    let parts = Arc::new(Mutex::new(Some(parts)));
    let backend = Backend::start(move |_| {
        let parts = Arc::clone(&parts);
        async move {
            let response = Response::builder().header("cache-control", "max-age=60");
            let Some(parts) = parts.lock().await.take() else { return response.body(full("again")).unwrap() };
            let stream = tokio_stream::wrappers::ReceiverStream::new(parts);
            let frames = stream.map(|part| Ok(http_body::Frame::data(Bytes::from_static(part.as_bytes()))));
            response.body(BoxBody::new(StreamBody::new(frames))).unwrap()
        }
    });
    (backend, next)
}

#[test]
fn the_client_gets_what_has_come_while_it_is_stored() {
    block_on(async {
        for wire in Wire::BOTH {
            let (backend, next) = streaming();
            let harness = start(&backend, "{}");
            let mut client = Client::speaking(wire, harness.address()).await;
            let mut answer = client.start(request("GET", "/", &[])).await.unwrap();
            for part in ["one", "two"] {
                next.send(part).await.unwrap();
                let mut come = Vec::new();
                while come.len() < part.len() {
                    come.extend(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap());
                }
                assert_eq!(come, part.as_bytes());
            }
            drop(next);
            answer.into_body().collect().await.unwrap();
            let hit = harness.get("/").await;
            assert_eq!((hit.text(), word(&hit.headers)), ("onetwo", "Hit"));
        }
    });
}

/// A backend that answers a request when it gets a permit. The path says how: `/cached`, `/private`, `/failing`.
fn held() -> (Backend, Arc<AtomicUsize>, Arc<Semaphore>) {
    let (count, gate) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
    let (counted, held) = (Arc::clone(&count), Arc::clone(&gate));
    let backend = Backend::start(move |request| {
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.unwrap().forget();
            let response = match request.uri().path() {
                "/cached" => Response::builder().header("cache-control", "max-age=60"),
                "/private" => Response::builder().header("cache-control", "private"),
                _ => Response::builder().status(500),
            };
            response.body(full(number.to_string())).unwrap()
        }
    });
    (backend, count, gate)
}

const CROWD: usize = 20;

/// Counts the requests that come to the cache, by the name of the plugin.
struct Arrivals(String);

static ARRIVED: std::sync::Mutex<BTreeMap<String, usize>> = std::sync::Mutex::new(BTreeMap::new());

#[hooks]
impl Plugin for Arrivals {
    fn on_request<'a>(&'a self, _: &'a mut PluginRequest<'_>) -> Flow<'a> {
        *ARRIVED.lock().unwrap().entry(self.0.clone()).or_default() += 1;
        Flow::Continue
    }
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

impl Definition for Arrivals {
    const NAME: &'static str = "arrivals";
    const DESCRIPTION: &'static str = "Counts requests.";
    const ORDER: i32 = 101;
    type Config = NoSettings;

    fn check(_: &NoSettings, _: &mut Errors) {}

    fn build(_: NoSettings, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        Ok(Self(context.name.to_string()))
    }
}

/// Sends as many requests for a path at once, each over a connection of its own.
fn crowd(harness: &Harness, path: &'static str, size: usize) -> Vec<tokio::task::JoinHandle<Answer>> {
    let address = harness.address();
    let ask = || tokio::spawn(async move { Client::connect(address).await.get(path).await });
    std::iter::repeat_with(ask).take(size).collect()
}

#[test]
fn of_many_requests_at_once_one_reaches_the_upstream() {
    block_on(async {
        let (backend, count, gate) = held();
        let harness = start(&backend, "{}");
        let crowd = crowd(&harness, "/cached", CROWD);
        until("one has reached the upstream", || count.load(Ordering::SeqCst) == 1).await;
        gate.add_permits(1);
        let mut words = Vec::new();
        for answer in crowd {
            let answer = answer.await.unwrap();
            assert_eq!((answer.status, answer.text()), (200, "1"));
            words.push(word(&answer.headers).to_owned());
        }
        assert_eq!(words.iter().filter(|word| *word == "Miss").count(), 1);
        assert_eq!(count.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn those_who_wait_are_freed_all_at_once_when_the_first_brings_nothing() {
    block_on(async {
        for (path, counter) in [("/private", "n-private"), ("/failing", "n-failing")] {
            let (backend, count, gate) = held();
            let counting = format!(", {{name: {counter}, type: arrivals, global: true, config: {{}}}}");
            let types = signalbox_plugins::types().chain([PluginType::of::<Arrivals>()]);
            let types = Registry::new(types).unwrap();
            let document = document(&backend, "{coalesce_wait: 60s}", &counting);
            let harness = Harness::with(&document, |settings| settings.types = types);
            let mut leader = crowd(&harness, path, 1);
            until("the first has reached the upstream", || count.load(Ordering::SeqCst) == 1).await;
            let waiting = crowd(&harness, path, CROWD);
            let arrived = || ARRIVED.lock().unwrap().get(counter).copied().unwrap_or_default();
            until("all have come", || arrived() == 1 + CROWD).await;
            gate.add_permits(1);
            leader.remove(0).await.unwrap();
            // No answer is given before all have reached the upstream: none waits for another.
            until("all have reached the upstream", || count.load(Ordering::SeqCst) == 1 + CROWD).await;
            gate.add_permits(CROWD);
            let mut seen = Vec::new();
            for answer in waiting {
                seen.push(answer.await.unwrap().text().to_owned());
            }
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), CROWD, "each has an answer of its own");
        }
    });
}

#[test]
fn those_who_wait_are_freed_when_the_client_of_the_first_goes_away() {
    block_on(async {
        let (backend, count, gate) = held();
        let harness = start(&backend, "{coalesce_wait: 60s}");
        let leader = crowd(&harness, "/cached", 1);
        until("the first has reached the upstream", || count.load(Ordering::SeqCst) == 1).await;
        let waiting = crowd(&harness, "/cached", CROWD);
        leader.iter().for_each(tokio::task::JoinHandle::abort);
        until("another has reached the upstream", || count.load(Ordering::SeqCst) >= 2).await;
        gate.add_permits(1 + CROWD);
        for answer in waiting {
            assert_eq!(answer.await.unwrap().status, 200);
        }
    });
}

#[test]
fn no_request_waits_for_a_response_that_is_for_others_or_for_too_long() {
    block_on(async {
        let (next, parts) = mpsc::channel::<&'static str>(1);
        let parts = Arc::new(Mutex::new(Some(parts)));
        let backend = Backend::start(move |request| {
            let parts = Arc::clone(&parts);
            async move {
                let response = Response::builder()
                    .header("cache-control", "max-age=60")
                    .header("vary", "accept-language");
                if request.headers()["accept-language"] != "de" {
                    return response.body(full("other")).unwrap();
                }
                let Some(parts) = parts.lock().await.take() else {
                    return response.body(full("late")).unwrap();
                };
                let stream = tokio_stream::wrappers::ReceiverStream::new(parts);
                let frames =
                    stream.map(|part| Ok(http_body::Frame::data(Bytes::from_static(part.as_bytes()))));
                response.body(BoxBody::new(StreamBody::new(frames))).unwrap()
            }
        });
        let ask = |language: &'static str| request("GET", "/", &[("accept-language", language)]);
        let mut harness = start(&backend, "{coalesce_wait: 60s}");
        let mut leader = Client::connect(harness.address()).await;
        let mut leading = leader.start(ask("de")).await.unwrap();
        // The head of the first response is there, and its body is not.
        let mut client = Client::connect(harness.address()).await;
        let other = client.send(ask("fr")).await;
        assert_eq!((other.text(), word(&other.headers)), ("other", "Miss"));
        harness.apply(&document(&backend, "{coalesce_wait: 1ms}", "")).unwrap();
        let late = client.send(ask("de")).await;
        assert_eq!((late.text(), word(&late.headers)), ("late", "Miss"));
        next.send("first").await.unwrap();
        drop(next);
        let mut whole = Vec::new();
        while let Some(frame) = leading.body_mut().frame().await {
            whole.extend(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(whole, b"first");
    });
}

#[test]
fn a_stale_response_answers_while_it_is_validated_once_in_the_background() {
    block_on(async {
        let (backend, count) = counting();
        let harness = start(&backend, "{}");
        // The route rewrites the path, and the validation asks for the rewritten one.
        let path = "/moved/x?cache-control=max-age=0,+stale-while-revalidate=60&etag=1";
        let first = harness.get(path).await;
        assert_eq!((first.text(), word(&first.headers)), ("GET for /x", "Miss"));
        let stale = harness.get(path).await;
        assert_eq!((stale.text(), word(&stale.headers)), ("GET for /x", "Stale"));
        until("it is validated", || count.load(Ordering::SeqCst) >= 2).await;
        let mut renewed = harness.get(path).await;
        while renewed.headers["x-number"] == "1" {
            renewed = harness.get(path).await;
        }
        assert_eq!((renewed.text(), word(&renewed.headers)), ("GET for /x", "Stale"));
    });
}

#[test]
fn a_stale_response_takes_the_place_of_an_upstream_that_is_gone() {
    block_on(async {
        let (backend, _) = counting();
        let mut harness = start(&backend, "{stale_if_error: 1h}");
        let path = "/x?cache-control=max-age=0&etag=1";
        assert_eq!(word(&harness.get(path).await.headers), "Miss");
        assert_eq!(word(&harness.get(path).await.headers), "Revalidated");
        let gone = document(&backend, "{stale_if_error: 1h}", "")
            .replace(&backend.address.to_string(), &crate::harness::nobody().to_string());
        harness.apply(&gone).unwrap();
        let stale = harness.get(path).await;
        assert_eq!((stale.status, stale.text(), word(&stale.headers)), (200, "GET for /x", "Stale"));
        assert_eq!(harness.get("/other").await.status, 503);
    });
}

#[test]
fn what_is_stored_outlives_a_hundred_revisions() {
    block_on(async {
        let (backend, count) = counting();
        let mut harness = start(&backend, "{}");
        let path = format!("/x?{MINUTE}");
        harness.get(&path).await;
        for number in 0..100 {
            let other = format!(", {{name: r{number}, type: respond, config: {{status: 200}}}}");
            harness.apply(&document(&backend, "{}", &other)).unwrap();
            assert_eq!(word(&harness.get(&path).await.headers), "Hit");
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        harness.apply(&document(&backend, "{ttl: 1h}", "")).unwrap();
        assert_eq!(word(&harness.get(&path).await.headers), "Miss");
    });
}

#[test]
fn a_purge_comes_with_a_revision_and_removes_what_has_the_tag() {
    block_on(async {
        let (backend, _) = counting();
        let mut harness = start(&backend, "{}");
        let paths = [
            format!("/a?{MINUTE}&cache-tag=one"),
            format!("/b?{MINUTE}&surrogate-key=two+one"),
            format!("/c?{MINUTE}"),
        ];
        for expected in [["Miss"; 3], ["Hit"; 3]] {
            for (path, expected) in paths.iter().zip(expected) {
                assert_eq!(word(&harness.get(path).await.headers), expected);
            }
        }
        harness.apply(&document(&backend, "{purges: [{id: '1', tag: one}]}", "")).unwrap();
        for expected in [["Miss", "Miss", "Hit"], ["Hit"; 3]] {
            for (path, expected) in paths.iter().zip(expected) {
                assert_eq!(word(&harness.get(path).await.headers), expected, "{path}");
            }
        }
    });
}

#[test]
fn memory_is_bounded_and_large_responses_pass_unstored() {
    block_on(async {
        let body = "x".repeat(60_000);
        let backend = Backend::start(move |request| {
            let body = if request.uri().path() == "/large" { body.repeat(3) } else { body.clone() };
            async move { Response::builder().header("cache-control", "max-age=60").body(full(body)).unwrap() }
        });
        let harness = start(&backend, "{max_size: 1MiB, max_entry: 100000}");
        let mut client = Client::connect(harness.address()).await;
        for _ in 0..2 {
            let large = client.get("/large").await;
            assert_eq!((large.body.len(), word(&large.headers)), (180_000, "Miss"));
        }
        for number in 0..200 {
            assert_eq!(word(&client.get(&format!("/{number}")).await.headers), "Miss");
        }
        // No more than 17 bodies of this size fit, and whoever looks for one that is gone brings it back.
        let mut hits = 0;
        for number in 0..200 {
            let answer =
                client.send(request("GET", &format!("/{number}"), &[("cache-control", "only-if-cached")]));
            hits += usize::from(answer.await.status == 200);
        }
        assert!((10..=17).contains(&hits), "{hits} of 60,000 bytes are in a mebibyte");
    });
}

#[test]
fn requests_that_do_not_meet_the_condition_pass_by() {
    block_on(async {
        let (backend, count) = counting();
        let harness = Harness::start(
            &document(&backend, "{}", "")
                .replace("global: true", "global: true, when: 'request.headers[\"x-cached\"] == \"yes\"'"),
        );
        let path = format!("/x?{MINUTE}");
        let mut client = Client::connect(harness.address()).await;
        for fields in [&[][..], &[("x-cached", "no")]] {
            let answer = client.send(request("GET", &path, fields)).await;
            assert!(!answer.headers.contains_key("x-cache-status"), "{fields:?}");
        }
        for expected in ["Miss", "Hit"] {
            let answer = client.send(request("GET", &path, &[("x-cached", "yes")])).await;
            assert_eq!(word(&answer.headers), expected);
        }
        assert_eq!(count.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn responses_of_one_consumer_are_not_for_others() {
    block_on(async {
        let (backend, _) = counting();
        let auth = ", {name: k, type: key-auth, global: true, config: {in: [query, header], hide_credentials: true}}";
        let consumers = "
consumers:
- {name: alice, credentials: [{key_auth: {key: a-key}}]}
- {name: bob, credentials: [{key_auth: {key: b-key}}]}
";
        let harness = Harness::start(&(document(&backend, "{}", auth) + consumers));
        let path = format!("/x?{MINUTE}");
        let mut client = Client::connect(harness.address()).await;
        for (key, number, expected) in
            [("a-key", "1", "Miss"), ("a-key", "1", "Hit"), ("b-key", "2", "Miss"), ("b-key", "2", "Hit")]
        {
            let answer = client.send(request("GET", &path, &[("apikey", key)])).await;
            assert_eq!(word(&answer.headers), expected, "{key}");
            assert_eq!(answer.headers["x-number"], number);
        }
        assert_eq!(client.get(&path).await.status, 401, "a stored response is for nobody without a key");
    });
}

#[test]
fn responses_to_one_user_do_not_answer_another_where_the_consumer_does_not_tell_them_apart() {
    block_on(async {
        let (backend, count) = counting();
        // The service says who the user of a cookie is; the cookie says nothing to the cache.
        let service = Backend::start(|request| {
            let user = request.headers().get("cookie").cloned();
            async move {
                let response = Response::builder().header("x-user", user.as_ref().unwrap());
                response.body(full("")).unwrap()
            }
        });
        let plugins = ", {name: users, type: ext-auth, global: true, config: {upstream: users, path: /check, upstream_headers: [x-user]}}";
        let document = document(&backend, "{ttl: 1m}", plugins).replace(
            "upstreams: [{name: u,",
            &format!(
                "upstreams: [{{name: users, targets: [{{address: '{}'}}]}}, {{name: u,",
                service.address
            ),
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        for (number, user) in ["alice", "bob", "alice"].into_iter().enumerate() {
            let path = format!("/account?{MINUTE}");
            let answer = client.send(request("GET", &path, &[("cookie", user)])).await;
            assert_eq!(answer.headers["x-number"], (number + 1).to_string(), "{user}: {:?}", answer.headers);
        }
        // A public response answers all.
        for user in ["alice", "bob"] {
            let path = "/page?cache-control=public,+max-age=60";
            let answer = client.send(request("GET", path, &[("cookie", user)])).await;
            assert_eq!(answer.headers["x-number"], "4", "{user}");
        }
        assert_eq!(count.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn a_response_of_one_upstream_does_not_answer_requests_for_another() {
    block_on(async {
        let (stable, beta) = (Backend::text("stable"), Backend::text("beta"));
        let splits = "[{upstreams: [{name: beta}], when: 'request.headers[\"x-beta\"] == \"1\"'}]";
        let plugins =
            format!(", {{name: split, type: traffic-split, global: true, config: {{splits: {splits}}}}}");
        let document = document(&stable, "{ttl: 1m}", &plugins).replace(
            "upstreams: [{name: u,",
            &format!("upstreams: [{{name: beta, targets: [{{address: '{}'}}]}}, {{name: u,", beta.address),
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        for _ in 0..2 {
            let answer = client.send(request("GET", "/", &[("x-beta", "1")])).await;
            assert_eq!(answer.text(), "beta");
            assert_eq!(client.get("/").await.text(), "stable");
        }
    });
}
