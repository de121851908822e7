//! The host of plugins: a type that only these tests know takes part in every phase, and breaks every rule.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{
    Abort, BodyFilter, BodyWish, CallLimits, Context, Definition, Flow, LogRecord, Origin, Output, Plugin,
    PluginRequest, PluginResponse, PluginType, Registry, Reply, Task, UnroutedRequest, hooks,
};

use crate::harness::{Answer, Backend, Client, Harness, Wire, block_on, full, nobody, until};

/// A plugin that does what the request's `x-do` names, and notes what it sees.
struct Probe {
    name: String,
    log: Arc<Seen>,
    _task: Option<Task>,
}

/// The observations of the probes of one test.
#[derive(Default)]
struct Seen {
    events: Mutex<Vec<String>>,
    guards: AtomicUsize,
    starts: AtomicUsize,
    /// The duration of exchanges, and the time that their targets took.
    times: Mutex<Vec<(Duration, Option<Duration>)>>,
}

impl Seen {
    fn note(&self, event: impl Into<String>) {
        self.events.lock().unwrap().push(event.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

/// Tells that the exchange has ended.
struct Guard(Arc<Seen>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.guards.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Passes everything on in capitals, and the last part only at a pause or at the end.
struct Capitals {
    held: Option<Bytes>,
}

impl BodyFilter for Capitals {
    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        if data.starts_with(b"panic") {
            panic!("as it was told");
        }
        if data.starts_with(b"abort") {
            return Err(Abort::new("it was told to", Reply::problem(StatusCode::CONFLICT, "no such body")));
        }
        out.push(self.held.replace(data.to_ascii_uppercase().into()).unwrap_or_default());
        Ok(())
    }

    fn on_pause(&mut self, out: &mut Output) -> Result<(), Abort> {
        out.push(self.held.take().unwrap_or_default());
        Ok(())
    }

    fn on_end(&mut self, trailers: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
        if !trailers.is_empty() {
            trailers.insert("x-filtered", HeaderValue::from_static("1"));
        }
        self.on_pause(out)
    }
}

/// Puts everything out at its end, byte by byte.
#[derive(Default)]
struct AtEnd(Vec<u8>);

impl BodyFilter for AtEnd {
    fn on_data(&mut self, data: Bytes, _: &mut Output) -> Result<(), Abort> {
        self.0.extend_from_slice(&data);
        Ok(())
    }

    fn on_end(&mut self, _: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
        self.0.chunks(1).for_each(|byte| out.push(Bytes::copy_from_slice(byte)));
        Ok(())
    }
}

/// Passes everything on in capitals, and waits once for each part, as a module does that calls a service.
#[derive(Default)]
struct Slow {
    held: Option<Bytes>,
    has_waited: bool,
}

impl BodyFilter for Slow {
    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        if self.held.is_some() && !std::mem::replace(&mut self.has_waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        self.on_pause(out)?;
        self.held = Some(data);
        Ok(())
    }

    fn on_pause(&mut self, out: &mut Output) -> Result<(), Abort> {
        let Some(held) = self.held.take() else { return Ok(()) };
        if !std::mem::take(&mut self.has_waited) {
            return Err(Abort::new(
                "it was not waited for",
                Reply::problem(StatusCode::CONFLICT, "too early"),
            ));
        }
        out.push(held.to_ascii_uppercase().into());
        Ok(())
    }

    fn on_end(&mut self, _: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
        self.on_pause(out)
    }
}

/// The filters of two probes, the second of which waits for each part that the first puts out at its end.
fn slow_chain(is_first: bool) -> BodyWish {
    if is_first {
        BodyWish::Filter(Box::<AtEnd>::default())
    } else {
        BodyWish::Filter(Box::<Slow>::default())
    }
}

fn wanted(head: &http::request::Parts) -> &str {
    head.headers.get("x-do").and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[hooks]
impl Plugin for Probe {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        self.log.note(format!("{} request", self.name));
        self.log.guards.fetch_add(1, Ordering::SeqCst);
        request.exchange.guard(Guard(Arc::clone(&self.log)));
        request.exchange.insert(self.name.clone());
        let what = wanted(request.head).to_owned();
        match what.strip_prefix(&format!("{}:", self.name)).unwrap_or_default() {
            "panic" => panic!("as it was told"),
            "answer" => {
                let mut answer = http::Response::new(Bytes::from_static(b"of the plugin"));
                answer.headers_mut().insert("x-by", HeaderValue::from_static("plugin"));
                Reply::Response(answer).into()
            }
            "wait" => Flow::Wait(Box::pin(async {
                request.clock.sleep(Duration::from_millis(300)).await;
                Flow::Continue
            })),
            "wait-and-panic" => Flow::Wait(Box::pin(async {
                request.clock.sleep(Duration::from_millis(1)).await;
                panic!("as it was told")
            })),
            "wait-forever" => Flow::Wait(Box::pin(std::future::pending())),
            "call" => Flow::Wait(Box::pin(async {
                let call = Request::get("http://oracle.example/ask?now").body(Bytes::new()).unwrap();
                let limits = CallLimits { timeout: Duration::from_secs(20), answer_size: 64 };
                let answer = request.outbound.call(&"u".parse().unwrap(), call, limits).await;
                let text = match answer {
                    Ok(answer) => String::from_utf8_lossy(answer.response.body()).into_owned(),
                    Err(error) => error.to_string(),
                };
                Reply::Response(http::Response::new(text.into())).into()
            })),
            _ => Flow::Continue,
        }
    }

    fn request_body(&self, request: &mut PluginRequest<'_>) -> BodyWish {
        if wanted(request.head) == "slow-chain" {
            return slow_chain(self.name == "outer");
        }
        match wanted(request.head).strip_prefix(&format!("{}:", self.name)).unwrap_or_default() {
            "buffer" => BodyWish::Buffered(16),
            "filter-request" => BodyWish::Filter(Box::new(Capitals { held: None })),
            _ => BodyWish::Pass,
        }
    }

    fn on_request_body<'a>(&'a self, _: &'a mut PluginRequest<'_>, body: &'a mut Bytes) -> Flow<'a> {
        *body = [body, &b"!"[..]].concat().into();
        Flow::Continue
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        let (origin, status) = (response.origin, response.head.status.as_u16());
        let state = response.exchange.get::<String>().map_or("nothing", String::as_str);
        self.log.note(format!("{} response {origin:?} {status} {} {state}", self.name, response.saw_request));
        let seen = HeaderValue::from_str(&self.name).unwrap();
        response.head.headers.append("x-seen", seen);
        match wanted(response.request).strip_prefix(&format!("{}:", self.name)).unwrap_or_default() {
            "panic-late" => panic!("as it was told"),
            "replace" => Reply::problem(StatusCode::IM_A_TEAPOT, "replaced").into(),
            "stale" if response.origin == Origin::Proxy => {
                Reply::Response(http::Response::new("stale".into())).into()
            }
            "wait-late" => Flow::Wait(Box::pin(async {
                response.clock.sleep(Duration::from_millis(1)).await;
                response.head.headers.insert("x-waited", HeaderValue::from_static("1"));
                Flow::Continue
            })),
            _ => Flow::Continue,
        }
    }

    fn response_body(&self, response: &mut PluginResponse<'_>) -> BodyWish {
        if wanted(response.request) == "slow-chain" {
            return slow_chain(self.name == "inner");
        }
        match wanted(response.request).strip_prefix(&format!("{}:", self.name)).unwrap_or_default() {
            "filter" => BodyWish::Filter(Box::new(Capitals { held: None })),
            "whole" => BodyWish::Buffered(16),
            _ => BodyWish::Pass,
        }
    }

    fn on_response_body<'a>(&'a self, _: &'a mut PluginResponse<'_>, body: &'a mut Bytes) -> Flow<'a> {
        *body = [body, &b"?"[..]].concat().into();
        Flow::Continue
    }

    fn on_no_route(&self, request: &mut UnroutedRequest<'_>) -> Option<Reply> {
        (wanted(request.head) == "find").then(|| Reply::Response(http::Response::new("found".into())))
    }

    fn on_log(&self, record: &LogRecord<'_>) {
        let state = record.get::<String>().map_or("nothing", String::as_str);
        let LogRecord { flags, plugin, route, bytes_out, .. } = record;
        let status = record.status.as_u16();
        let path = record.uri.path();
        self.log.times.lock().unwrap().push((record.duration, record.upstream_duration));
        self.log.note(format!(
            "{} log {path} {status} {flags:?} {plugin:?} {route:?} {bytes_out} {state}",
            self.name
        ));
        if record.flags == "NR" && record.uri.query() == Some("panic") {
            panic!("as it was told");
        }
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Probe")]
struct Config {
    /// Starts a task that panics the first time.
    #[serde(default)]
    task: bool,
}

thread_local! {
    /// The log of the test that starts a proxy on this thread.
    static SEEN: Arc<Seen> = Arc::default();
}

impl Definition for Probe {
    const NAME: &'static str = "probe";
    const DESCRIPTION: &'static str = "Does what it is told.";
    const ORDER: i32 = 500;
    type Config = Config;

    fn check(_: &Config, _: &mut Errors) {}

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let log = SEEN.with(Arc::clone);
        let task = config.task.then(|| {
            let log = Arc::clone(&log);
            context.tasks.spawn("counts", move |task| {
                let log = Arc::clone(&log);
                async move {
                    if log.starts.fetch_add(1, Ordering::SeqCst) == 0 {
                        panic!("as it was told");
                    }
                    let _running = Guard(Arc::clone(&log));
                    log.guards.fetch_add(1, Ordering::SeqCst);
                    let call = Request::get("/from-a-task").header("host", "a").body(Bytes::new()).unwrap();
                    let limits = CallLimits { timeout: Duration::from_secs(20), answer_size: 64 };
                    let answer = task.outbound.call(&"u".parse().unwrap(), call, limits).await;
                    log.note(format!("task {}", answer.unwrap().response.status()));
                    std::future::pending::<()>().await;
                }
            })
        });
        Ok(Self { name: context.name.to_string(), log, _task: task })
    }
}

fn types() -> Registry {
    Registry::new(signalbox_plugins::types().chain([PluginType::of::<Probe>()])).unwrap()
}

/// Two probes, `outer` and `inner`, on each route, and one without a route.
fn document(backend: &Backend) -> String {
    let probes = "plugins: [outer, inner]";
    format!(
        "
plugins:
- {{name: outer, type: probe, order: 900}}
- {{name: inner, type: probe}}
- {{name: every, type: probe, global: true}}
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}, {{name: down, targets: [{{address: '{}'}}]}}]
routes:
- {{name: echo, match: {{hosts: [{A}]}}, {probes}, forward: {{upstreams: [{{name: u}}], timeout: 0s}}}}
- {{name: quick, match: {{paths: [{{prefix: /quick}}], hosts: [{A}]}}, {probes}, forward: {{upstreams: [{{name: u}}], timeout: 100ms}}}}
- {{name: down, match: {{paths: [{{prefix: /down}}], hosts: [{A}]}}, {probes}, forward: {{upstreams: [{{name: down}}]}}}}
- {{name: own, match: {{paths: [{{prefix: /own}}], hosts: [{A}]}}, {probes}, respond: {{status: 200, body: own}}}}
",
        backend.address,
        nobody(),
    )
}

/// A proxy that serves this, and what the probes see.
fn start(backend: &Backend) -> (Harness, Arc<Seen>) {
    let harness = Harness::with(&document(backend), |settings| settings.types = types());
    (harness, SEEN.with(Arc::clone))
}

const A: &str = "a.example";

fn request(path: &str, what: &str, body: &'static str) -> Request<crate::harness::AnyBody> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    let request = Request::builder().method(method).uri(path).header("host", A).header("x-do", what);
    request.body(full(body)).unwrap()
}

fn seen(answer: &Answer) -> Vec<&str> {
    answer.headers.get_all("x-seen").iter().map(|value| value.to_str().unwrap()).collect()
}

/// The count of an outcome of a plugin.
fn outcomes(harness: &Harness, plugin: &str, outcome: &str) -> u64 {
    harness.proxy.counted(|_, compiled, _, _| {
        let stats = compiled.plugin_stats().find(|stats| stats.name.as_str() == plugin).unwrap();
        stats.outcomes.read().find(|(name, _)| *name == outcome).unwrap().1
    })
}

/// Waits until all exchanges are over, and returns what was seen.
async fn over(seen: &Seen) -> Vec<String> {
    until("the guards are dropped", || seen.guards.load(Ordering::SeqCst) == 0).await;
    seen.take()
}

#[test]
fn a_response_passes_the_plugins_in_the_reverse_order() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, log) = start(&backend);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let answer = client.send(request("/x", "inner:wait-late", "")).await;
            assert_eq!((answer.status, seen(&answer)), (200, vec!["inner", "outer"]));
            assert_eq!(answer.headers["x-waited"], "1");
            let size = answer.body.len();
            assert_eq!(
                over(&log).await,
                [
                    "outer request".to_owned(),
                    "inner request".to_owned(),
                    "inner response Upstream 200 true inner".to_owned(),
                    "outer response Upstream 200 true outer".to_owned(),
                    format!("outer log /x 200 \"\" \"\" \"echo\" {size} outer"),
                    format!("inner log /x 200 \"\" \"\" \"echo\" {size} inner"),
                ]
            );
        }
    });
}

#[test]
fn answers_of_plugins_and_of_the_proxy_pass_the_same_hooks() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, log) = start(&backend);
        let mut client = Client::connect(harness.address()).await;
        let answer = client.send(request("/x", "inner:answer", "")).await;
        assert_eq!((answer.text(), seen(&answer)), ("of the plugin", vec!["inner", "outer"]));
        let events = over(&log).await;
        assert_eq!(
            events[2..4],
            ["inner response Plugin 200 true inner", "outer response Plugin 200 true outer"]
        );
        assert_eq!(events[4], "outer log /x 200 \"\" \"inner\" \"echo\" 13 outer");
        assert_eq!(outcomes(&harness, "inner", "answered"), 1);

        let answer = client.send(request("/x", "outer:answer", "")).await;
        assert_eq!((answer.text(), seen(&answer)), ("of the plugin", vec!["inner", "outer"]));
        let events = over(&log).await;
        assert_eq!(events[..2], ["outer request", "inner response Plugin 200 false nothing"]);

        let answer = client.send(request("/down", "", "")).await;
        assert_eq!((answer.status, seen(&answer)), (503, vec!["inner", "outer"]));
        let events = over(&log).await;
        assert_eq!(events[2], "inner response Proxy 503 true inner");
        assert!(events[4].starts_with("outer log /down 503 \"UF\" \"\" \"down\""), "{events:?}");

        let answer = client.send(request("/own", "", "")).await;
        assert_eq!((answer.text(), seen(&answer)), ("own", vec!["inner", "outer"]));
        assert_eq!(over(&log).await[2], "inner response Proxy 200 true inner");

        // As a cache does with a stale copy.
        let answer = client.send(request("/down", "inner:stale", "")).await;
        assert_eq!((answer.status, answer.text(), seen(&answer)), (200, "stale", vec!["outer"]));
        let events = over(&log).await;
        assert_eq!(events[3], "outer response Plugin 200 true outer");
        assert!(events[4].starts_with("outer log /down 200 \"UF\" \"inner\""), "{events:?}");

        // A response that a plugin replaces is dropped, and the connection goes on.
        for _ in 0..3 {
            let answer = client.send(request("/x", "inner:replace", "")).await;
            assert_eq!((answer.status, seen(&answer)), (418, vec!["outer"]));
        }
    });
}

#[test]
fn without_a_route_the_global_plugins_see_the_request_and_the_answer() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, log) = start(&backend);
        let mut client = Client::connect(harness.address()).await;
        let find = Request::get("/x").header("x-do", "find").body(full("")).unwrap();
        let answer = client.send(find).await;
        assert_eq!((answer.text(), seen(&answer)), ("found", vec!["every"]));
        assert_eq!(over(&log).await[0], "every response Plugin 200 false nothing");
        let answer = client.get("/y?panic").await;
        assert_eq!((answer.status, seen(&answer)), (404, vec!["every"]));
        let events = over(&log).await;
        assert_eq!(events[0], "every response Proxy 404 false nothing");
        assert!(events[1].starts_with("every log /y 404 \"NR\""), "{events:?}");
        assert_eq!(outcomes(&harness, "every", "panicked"), 1);
        // The worker goes on, though `on_log` has panicked.
        assert_eq!(client.get("/z").await.status, 404);
    });
}

#[test]
fn a_plugin_that_panics_fails_its_request_only() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, log) = start(&backend);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (what, others) in [
                ("inner:panic", vec!["outer"]),
                ("inner:wait-and-panic", vec!["outer"]),
                ("outer:panic", vec!["inner"]),
                ("inner:panic-late", vec!["outer"]),
                ("outer:panic-late", vec![]),
            ] {
                let name = what.split(':').next().unwrap();
                let before = outcomes(&harness, name, "panicked");
                let answer = client.send(request("/x", what, "")).await;
                assert_eq!((answer.status, seen(&answer)), (500, others), "{what}");
                assert_eq!(answer.json()["detail"], "The gateway failed.");
                let events = over(&log).await;
                let expected = format!("log /x 500 \"PP\" {name:?} \"echo\"");
                assert!(events.iter().any(|event| event.contains(&expected)), "{events:?}");
                assert_eq!(outcomes(&harness, name, "panicked"), before + 1);
                assert_eq!(client.send(request("/x", "", "")).await.status, 200);
                over(&log).await;
            }
        }
    });
}

#[test]
fn a_filter_passes_on_what_it_holds_when_the_upstream_pauses() {
    block_on(async {
        let (next, parts) = tokio::sync::mpsc::channel::<&'static str>(1);
        let parts = Arc::new(tokio::sync::Mutex::new(Some(parts)));
        let backend = Backend::start(move |_| {
            let parts = Arc::clone(&parts);
            async move {
                let parts = parts.lock().await.take();
                let Some(parts) = parts else { return http::Response::new(full("again")) };
                let stream = tokio_stream::wrappers::ReceiverStream::new(parts);
                let frames = futures_util::StreamExt::map(stream, |part| {
                    Ok(http_body::Frame::data(Bytes::from_static(part.as_bytes())))
                });
                let body = http_body_util::StreamBody::new(frames);
                http::Response::new(http_body_util::combinators::BoxBody::new(body))
            }
        });
        let (harness, log) = start(&backend);
        let mut client = Client::connect(harness.address()).await;
        let mut answer = client.start(request("/x", "inner:filter", "")).await.unwrap();
        assert!(!answer.headers().contains_key("content-length"));
        for part in ["one", "two"] {
            next.send(part).await.unwrap();
            let frame = http_body_util::BodyExt::frame(answer.body_mut()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), part.to_uppercase());
        }
        drop(next);
        assert!(http_body_util::BodyExt::frame(answer.body_mut()).await.is_none());
        let events = over(&log).await;
        assert!(events.last().unwrap().ends_with("6 inner"), "{events:?}");
        // The connection to the target is whole, too.
        assert_eq!(client.send(request("/x", "inner:filter", "")).await.text(), "AGAIN");
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn a_filter_behind_one_that_puts_out_all_at_its_end_waits_for_each_part() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, _) = start(&backend);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let answer = client.send(request("/x", "slow-chain", "shout")).await;
            assert_eq!(answer.status, 200, "{wire:?}: {:?}", answer.body);
            assert!(answer.text().contains("\"BODY\":\"SHOUT\""), "{wire:?}: {}", answer.text());
            let answer = client.send(request("/own", "slow-chain", "")).await;
            assert_eq!((answer.status, answer.text()), (200, "OWN"), "{wire:?}");
        }
    });
}

#[test]
fn bodies_pass_filters_or_are_held_whole() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, log) = start(&backend);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let answer = client.send(request("/x", "inner:filter-request", "shout")).await;
            assert_eq!(answer.json()["body"], "SHOUT");
            let answer = client.send(request("/x", "inner:buffer", "whole")).await;
            assert_eq!(answer.json()["body"], "whole!");
            let answer = client.send(request("/x", "inner:buffer", "far too long a body")).await;
            assert_eq!(answer.status, 413);
            let answer = client.send(request("/own", "inner:whole", "")).await;
            assert_eq!((answer.text(), answer.headers["content-length"].to_str().unwrap()), ("own?", "4"));
            let answer = client.send(request("/own", "inner:filter", "")).await;
            assert_eq!(answer.text(), "OWN");
            let answer = client.send(request("/x", "inner:whole", "")).await;
            assert_eq!(answer.status, 502, "{answer:?}");
            over(&log).await;
        }
    });
}

#[test]
fn a_filter_that_ends_the_requests_body_answers() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, log) = start(&backend);
        for (body, status, flags) in [("abort", 409, ""), ("panic", 500, "PP")] {
            let mut client = Client::connect(harness.address()).await;
            let answer = client.send(request("/x", "inner:filter-request", body)).await;
            assert_eq!((answer.status, seen(&answer)), (status, vec!["inner", "outer"]));
            let events = over(&log).await;
            let expected = format!("outer log /x {status} {flags:?} \"inner\" \"echo\"");
            assert!(events.iter().any(|event| event.starts_with(&expected)), "{events:?}");
        }
    });
}

#[test]
fn a_filter_that_ends_a_response_breaks_it_off() {
    block_on(async {
        for (text, flags) in [("abort it", "PA"), ("panic now", "PP")] {
            let backend = Backend::text(text);
            let (harness, log) = start(&backend);
            let mut client = Client::connect(harness.address()).await;
            let answer = client.start(request("/x", "inner:filter", "")).await.unwrap();
            assert!(Answer::of(answer).await.is_err());
            let events = over(&log).await;
            let expected = format!("outer log /x 200 {flags:?} \"inner\" \"echo\" 0 outer");
            assert!(events.contains(&expected), "{events:?}");
            assert_eq!(harness.get("/").await.status, 404);
        }
    });
}

#[test]
fn trailers_pass_a_filter() {
    block_on(async {
        let backend = Backend::speaking(Wire::Http2, |_| async {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body = http_body_util::BodyExt::with_trailers(
                full("message"),
                std::future::ready(Some(Ok(trailers))),
            );
            http::Response::new(http_body_util::combinators::BoxBody::new(body))
        });
        let (mut harness, _) = start(&backend);
        let document = document(&backend).replace("{name: u,", "{name: u, protocol: http2,");
        harness.apply(&document).unwrap();
        let mut client = Client::connect_http2(harness.address()).await;
        let answer = client.send(request("/x", "inner:filter", "")).await;
        assert_eq!(answer.text(), "MESSAGE");
        let trailers = answer.trailers.unwrap();
        assert_eq!(
            (trailers["grpc-status"].as_bytes(), trailers["x-filtered"].as_bytes()),
            (&b"0"[..], &b"1"[..])
        );
    });
}

#[test]
fn the_time_of_a_plugin_that_waits_is_its_own() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, log) = start(&backend);
        let mut client = Client::connect(harness.address()).await;
        assert_eq!(client.send(request("/x", "inner:wait", "")).await.status, 200);
        over(&log).await;
        let (duration, upstream) = log.times.lock().unwrap().pop().unwrap();
        assert!(duration - upstream.unwrap() >= Duration::from_millis(300), "{duration:?} {upstream:?}");
        let totals = harness.proxy.counted(|_, compiled, _, _| {
            let stats = compiled.plugin_stats().find(|stats| stats.name.as_str() == "inner").unwrap();
            stats.durations.read()
        });
        assert!(totals.count() >= 1 && totals.sum_us >= 300_000, "{} {}", totals.count(), totals.sum_us);
    });
}

#[test]
fn waiting_ends_with_the_timeout_of_the_route_or_with_the_client() {
    block_on(async {
        let backend = Backend::echo();
        let (harness, log) = start(&backend);
        let mut client = Client::connect(harness.address()).await;
        let answer = client.send(request("/quick", "inner:wait-forever", "")).await;
        assert_eq!((answer.status, seen(&answer)), (504, vec!["inner", "outer"]));
        let events = over(&log).await;
        assert!(events.iter().any(|it| it.contains("504 \"UT\" \"inner\" \"quick\"")), "{events:?}");
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let answering =
                tokio::spawn(async move { client.start(request("/x", "inner:wait-forever", "")).await });
            until("the plugin waits", || log.guards.load(Ordering::SeqCst) == 2).await;
            answering.abort();
            let events = over(&log).await;
            assert_eq!(events[..2], ["outer request", "inner request"]);
            assert!(events.iter().all(|event| !event.contains("response")), "{events:?}");
            until("the exchange is logged", || !log.take().is_empty() || events.len() > 2).await;
        }
    });
}

#[test]
fn a_plugin_calls_a_service_through_an_upstream() {
    block_on(async {
        for wire in Wire::BOTH {
            let backend = Backend::speaking(wire, |request| async move {
                let host = request.uri().host().map(str::to_owned);
                let host = host.or_else(|| Some(request.headers().get("host")?.to_str().ok()?.to_owned()));
                http::Response::new(full(format!(
                    "{} {}",
                    host.unwrap(),
                    request.uri().path_and_query().unwrap()
                )))
            });
            let (mut harness, _) = start(&backend);
            let version = format!("{wire:?}").to_lowercase();
            harness
                .apply(&document(&backend).replace("{name: u,", &format!("{{name: u, protocol: {version},")))
                .unwrap();
            let mut client = Client::connect(harness.address()).await;
            for _ in 0..3 {
                let answer = client.send(request("/x", "inner:call", "")).await;
                assert_eq!(answer.text(), "oracle.example /ask?now");
            }
            assert_eq!(backend.connections(), 1, "{wire:?}");
        }
        let backend = Backend::text("more than what the plugin wants to read: sixty-four bytes, and a few");
        let (harness, _) = start(&backend);
        let answer = Client::connect(harness.address()).await.send(request("/x", "inner:call", "")).await;
        assert_eq!(answer.text(), "the answer is larger than 64 bytes");
    });
}

#[test]
fn a_task_starts_anew_after_a_panic_and_ends_with_its_plugin() {
    block_on(async {
        let backend = Backend::text("hello");
        let (mut harness, log) = start(&backend);
        let with_task = document(&backend)
            .replace("name: every, type: probe", "name: every, type: probe, config: {task: true}");
        harness.apply(&with_task).unwrap();
        until("the task has called", || log.take().contains(&"task 200 OK".to_owned())).await;
        assert_eq!(log.starts.load(Ordering::SeqCst), 2);
        assert_eq!(log.guards.load(Ordering::SeqCst), 1);
        harness.apply(&document(&backend)).unwrap();
        // The revision before is dropped a little later.
        until("the task has ended", || {
            harness.proxy.drop_retired();
            log.guards.load(Ordering::SeqCst) == 0
        })
        .await;
    });
}

#[test]
fn the_most_specific_plugin_of_a_type_runs() {
    block_on(async {
        let backend = Backend::echo();
        let document = |disabled: &str| {
            let plugin = |name: &str| {
                let enabled = !disabled.contains(name);
                format!("{{name: {name}, type: probe, enabled: {enabled}, global: {}}}", name == "every")
            };
            let plugins = ["of-route", "of-upstream", "of-listener", "every"].map(plugin).join(", ");
            format!(
                "
listeners: [{{name: http, address: '127.0.0.1:8080', plugins: [of-listener]}}]
plugins: [{plugins}]
upstreams: [{{name: u, plugins: [of-upstream], targets: [{{address: '{}'}}]}}]
routes:
- {{name: with, match: {{paths: [{{prefix: /with}}]}}, plugins: [of-route], forward: {{upstreams: [{{name: u}}]}}}}
- {{name: without, match: {{paths: [{{prefix: /without}}]}}, forward: {{upstreams: [{{name: u}}]}}}}
- {{name: own, match: {{paths: [{{prefix: /own}}]}}, respond: {{status: 200}}}}
",
                backend.address
            )
        };
        let mut harness = Harness::with(&document(""), |settings| settings.types = types());
        let mut client = Client::connect(harness.address()).await;
        for (disabled, runs) in [
            ("", ["of-route", "of-upstream", "of-listener", "of-listener"]),
            ("of-route", ["of-upstream", "of-upstream", "of-listener", "of-listener"]),
            ("of-upstream", ["of-route", "of-listener", "of-listener", "of-listener"]),
            ("of-upstream, of-listener", ["of-route", "every", "every", "every"]),
        ] {
            harness.apply(&document(disabled)).unwrap();
            for (path, runs) in ["/with", "/without", "/own", "/nowhere"].into_iter().zip(runs) {
                assert_eq!(seen(&client.get(path).await), [runs], "{path} without {disabled:?}");
            }
        }
        // The plugins of a listener or an upstream change without it, and it without them.
        harness.apply(&document("").replace("plugins: [of-listener]", "plugins: []")).unwrap();
        assert_eq!(seen(&client.get("/own").await), ["every"]);
    });
}
