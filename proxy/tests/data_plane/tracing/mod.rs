//! Spans and trace contexts, with a collector.

mod collector;
mod export;
mod spans;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use hyper::body::Incoming;

pub(crate) use self::collector::Collector;
use self::collector::{CLIENT, SERVER};
use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, forward_over, forward_to, full};
use crate::trace_context::{PARENT, ask, got};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A listener with tracing to a collector: further fields of the listener, and of its tracing.
pub(crate) fn traced(collector: SocketAddr, listener: &str, tracing: &str) -> String {
    format!(
        "listeners: [{{name: http, address: '127.0.0.1:8080'{listener}, \
         tracing: {{exporter: {{endpoint: 'http://{collector}'}}{tracing}}}}}]\n"
    )
}

/// The listener trusts the tests' client.
const TRUSTED: &str = ", trusted_proxies: [127.0.0.1]";

/// A backend that keeps the `traceparent` of each request, and answers by `answer`.
fn noting(
    wire: Wire,
    answer: impl Fn(&Request<Incoming>, usize) -> Response<AnyBody> + Send + Sync + 'static,
) -> (Backend, Arc<Mutex<Vec<String>>>) {
    let parents = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&parents);
    let backend = Backend::speaking(wire, move |request: Request<Incoming>| {
        let parent = request.headers().get("traceparent").map_or("", |value| value.to_str().unwrap());
        let number = {
            let mut noted = noted.lock().unwrap();
            noted.push(parent.to_owned());
            noted.len() - 1
        };
        let response = answer(&request, number);
        async move { response }
    });
    (backend, parents)
}

#[test]
fn a_request_has_a_span_and_one_for_its_attempt() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        let document = traced(collector.address, "", ", service_name: shop")
            + &forward_to(backend.address).replace("prefix: /}", "prefix: /a}");
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        let told = ask(&mut client, "/a/b?api_key=secret", &[]).await;
        let spans = collector.wait(2).await;
        let [server, attempt] = &*spans else { panic!("{spans:#?}") };
        assert_eq!((server.kind, &*server.name), (SERVER, "GET /a/*"));
        assert_eq!((attempt.kind, &*attempt.name), (CLIENT, "GET"));
        assert_eq!((&*server.parent, &attempt.parent), ("", &server.span_id));
        assert_eq!(server.trace_id, attempt.trace_id);
        assert_eq!(server.service, "shop");
        // The random bit is that of an id of one's own; the parent of the attempt is not remote.
        assert_eq!((server.flags, attempt.flags), (0x003, 0x103));
        let port = backend.address.port().to_string();
        let url = format!("http://{}/a/b", backend.address);
        for (span, expected) in [
            (
                server,
                &[
                    ("http.request.method", "GET"),
                    ("url.path", "/a/b"),
                    ("url.scheme", "http"),
                    ("url.query", ""),
                    ("http.route", "/a/*"),
                    ("http.response.status_code", "200"),
                    ("error.type", ""),
                    ("client.address", "127.0.0.1"),
                    ("network.protocol.version", "1.1"),
                    ("signalbox.route", "all"),
                    ("signalbox.revision", "1"),
                    ("signalbox.flags", ""),
                    ("signalbox.late", ""),
                ][..],
            ),
            (
                attempt,
                &[
                    ("http.request.method", "GET"),
                    ("server.address", "127.0.0.1"),
                    ("server.port", &port),
                    ("url.full", &url),
                    ("http.response.status_code", "200"),
                    ("http.request.resend_count", ""),
                    ("signalbox.upstream", "u"),
                ],
            ),
        ] {
            for (key, value) in expected {
                assert_eq!(span.get(key), *value, "{key}");
            }
            assert!(!format!("{span:?}").contains("secret"));
        }
        let parent = format!("00-{}-{}-03", server.trace_id, attempt.span_id);
        assert_eq!(got(&told, "traceparent"), [&*parent]);
        assert!(server.start <= attempt.start && attempt.end <= server.end);
    });
}

#[test]
fn spans_go_over_grpc_with_headers_of_the_operator() {
    block_on(async {
        let collector = Collector::grpc().await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "Bearer secret\n").unwrap();
        let exporter = format!(
            "endpoint: 'http://{}', protocol: grpc, headers: {{authorization: {{file: '{}'}}, x-tenant: a}}",
            collector.address,
            file.display()
        );
        let document = traced(collector.address, "", "")
            .replace(&format!("endpoint: 'http://{}'", collector.address), &exporter);
        let harness = Harness::start(&(document + "routes: [{name: r, respond: {body: ok}}]"));
        harness.get("/").await;
        // A plugin or an action that answers is no call to another service.
        let spans = collector.wait(1).await;
        assert_eq!((spans[0].kind, &*spans[0].name), (SERVER, "GET /*"));
        let calls = collector.calls();
        assert_eq!(calls[0]["authorization"], "Bearer secret");
        assert_eq!(calls[0]["x-tenant"], "a");
        // Its own calls belong to no trace.
        assert!(!calls[0].contains_key("traceparent"));
    });
}

#[test]
fn a_context_is_continued_for_those_who_are_trusted() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        let fields = [("traceparent", PARENT), ("tracestate", "a=1")];
        for (listener, tracing, is_continued) in [
            ("", "", false),
            (TRUSTED, "", true),
            ("", ", trace_context: trust", true),
            (TRUSTED, ", trace_context: restart", false),
        ] {
            let document = traced(collector.address, listener, tracing) + &forward_to(backend.address);
            let harness = Harness::start(&document);
            let told = ask(&mut Client::connect(harness.address()).await, "/", &fields).await;
            let spans = collector.wait(2).await;
            let (server, attempt) = (&spans[0], &spans[1]);
            let parents = got(&told, "traceparent");
            assert_eq!(parents.len(), 1);
            assert_eq!(&parents[0][3..52], format!("{}-{}", attempt.trace_id, attempt.span_id));
            if is_continued {
                assert_eq!((&*server.trace_id, &*server.parent, &*server.state), (TRACE, SPAN, "a=1"));
                assert_eq!(server.flags, 0x301);
                assert_eq!(got(&told, "tracestate"), ["a=1"]);
                assert!(parents[0].ends_with("-01"));
            } else {
                assert_ne!(server.trace_id, TRACE);
                assert_eq!((&*server.parent, &*server.state), ("", ""));
                assert!(got(&told, "tracestate").is_empty());
                assert!(parents[0].ends_with("-03"));
            }
            collector.clear();
        }
        // A value that is no context begins a trace for everybody.
        let document = traced(collector.address, TRUSTED, "") + &forward_to(backend.address);
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        for fields in [
            &[("traceparent", PARENT), ("traceparent", PARENT), ("tracestate", "a=1")][..],
            &[
                ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"),
                ("tracestate", "a=1"),
            ],
            &[("tracestate", "a=1")],
        ] {
            let told = ask(&mut client, "/", fields).await;
            let spans = collector.wait(2).await;
            assert_ne!(spans[0].trace_id, TRACE);
            assert_eq!(&got(&told, "traceparent")[0][3..35], spans[0].trace_id);
            assert!(got(&told, "tracestate").is_empty());
            collector.clear();
        }
    });
}

/// The parent that a target gets is a span that is exported, the caller's, or none.
#[test]
fn no_parent_is_one_that_nobody_exported() {
    block_on(async {
        let collector = Collector::http();
        for (tracing, wire) in [
            (", sampling: {ratio: 0.5, per_second: 0}", Wire::Http1),
            (", sampling: {ratio: 0.5, parent: ignore, per_second: 0}", Wire::Http2),
            (", sampling: {per_second: 20}", Wire::Http1),
            (", late: {slower_than: 1ms, per_second: 1000}, sampling: {ratio: 0}", Wire::Http1),
        ] {
            let (backend, parents) = noting(wire, |_, _| Response::new(full("")));
            let document = traced(collector.address, TRUSTED, tracing) + &forward_over(wire, backend.address);
            let harness = Harness::start(&document);
            let mut client = Client::connect(harness.address()).await;
            for index in 0..200 {
                let flags = index % 2;
                let parent =
                    format!("00-4bf92f3577b34da6a3ce929d0e0e{index:04x}-00f067aa0ba9{index:04x}-0{flags}");
                let request = Request::get("/");
                let request = if index % 4 < 2 { request } else { request.header("traceparent", parent) };
                client.send(request.body(full("")).unwrap()).await;
            }
            // All of the proxy's spans are sent before it has ended.
            tokio::task::block_in_place(|| drop(harness));
            let spans = collector.spans();
            let known: HashSet<_> = spans.iter().map(|span| (&*span.trace_id, &*span.span_id)).collect();
            let parents = parents.lock().unwrap();
            assert_eq!(parents.len(), 200);
            let mut own = 0;
            for (index, parent) in parents.iter().enumerate() {
                let callers = format!("4bf92f3577b34da6a3ce929d0e0e{index:04x}-00f067aa0ba9{index:04x}");
                let is_callers = index % 4 >= 2 && parent.get(3..52) == Some(&callers);
                let is_known = !parent.is_empty() && known.contains(&(&parent[3..35], &parent[36..52]));
                own += usize::from(is_known);
                assert!(parent.is_empty() || is_callers || is_known, "{tracing} {index}: {parent}");
                if is_callers {
                    assert!(
                        parent.ends_with(&format!("-0{}", index % 2)),
                        "the caller's decision is unchanged"
                    );
                }
                // A known context is told to be sampled.
                assert!(!is_known || parent.ends_with("-01") || parent.ends_with("-03"));
            }
            // The parents among the spans are spans of the proxy, or of the caller.
            for span in &spans {
                let is_callers =
                    span.kind == SERVER && (span.parent.is_empty() || span.parent.starts_with("00f067"));
                assert!(is_callers || known.contains(&(&*span.trace_id, &*span.parent)), "{span:?}");
            }
            assert!(own > 0, "{tracing}");
            collector.clear();
        }
    });
}

#[test]
fn a_caller_that_has_not_sampled_is_followed_unless_it_is_forced() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        let tracing = ", sampling: {force_header: x-signalbox-trace}";
        let document = traced(collector.address, TRUSTED, tracing) + &forward_to(backend.address);
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        let parent = PARENT.replace("-01", "-00");
        let not_sampled = [("traceparent", &*parent), ("tracestate", "a=1")];
        let told = ask(&mut client, "/", &not_sampled).await;
        assert_eq!((got(&told, "traceparent"), got(&told, "tracestate")), (vec![&*parent], vec!["a=1"]));
        // The flag that goes on follows the decision.
        let forced = [not_sampled[0], not_sampled[1], ("x-signalbox-trace", "1")];
        let told = ask(&mut client, "/", &forced).await;
        let spans = collector.wait(2).await;
        assert_eq!((&*spans[0].trace_id, &*spans[0].parent), (TRACE, SPAN));
        let sent = format!("00-{TRACE}-{}-01", spans[1].span_id);
        assert_eq!((got(&told, "traceparent"), got(&told, "tracestate")), (vec![&*sent], vec!["a=1"]));
        assert_eq!(got(&told, "x-signalbox-trace"), ["1"]);
    });
}

#[test]
fn without_samples_targets_may_begin_traces_unless_they_are_told_not_to() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        for (tell, flags) in [("", None), (", tell_not_sampled: true", Some("-02"))] {
            let tracing = format!(", sampling: {{ratio: 0{tell}}}");
            let document = traced(collector.address, TRUSTED, &tracing) + &forward_to(backend.address);
            let harness = Harness::start(&document);
            let mut client = Client::connect(harness.address()).await;
            let told = ask(&mut client, "/", &[]).await;
            assert_eq!(got(&told, "traceparent").first().map(|parent| &parent[52..]), flags);
            // A caller's context passes in both cases.
            let parent = PARENT.replace("-01", "-00");
            let told = ask(&mut client, "/", &[("traceparent", &parent)]).await;
            assert_eq!(got(&told, "traceparent"), [&*parent]);
            tokio::task::block_in_place(|| drop(harness));
            assert!(collector.spans().is_empty());
        }
    });
}

#[test]
fn a_stranger_can_neither_force_spans_nor_have_more_than_the_rate_allows() {
    block_on(async {
        let collector = Collector::http();
        for tracing in ["", ", trace_context: trust"] {
            let backend = Backend::echo();
            let tracing = format!("{tracing}, sampling: {{per_second: 20, force_header: x-signalbox-trace}}");
            let document = traced(collector.address, "", &tracing) + &forward_to(backend.address);
            let harness = Harness::start(&document);
            let began = std::time::Instant::now();
            let mut clients = Vec::new();
            for _ in 0..4 {
                clients.push(Client::connect(harness.address()).await);
            }
            for index in 0..1000 {
                let fields = [("traceparent", PARENT), ("x-signalbox-trace", "1")];
                let told = ask(&mut clients[index % 4], "/", &fields).await;
                assert!(got(&told, "x-signalbox-trace").is_empty());
            }
            tokio::task::block_in_place(|| drop(harness));
            let servers = collector.spans().iter().filter(|span| span.kind == SERVER).count();
            // A bucket holds the tokens of a second.
            let most = 20.0 * (began.elapsed().as_secs_f64() + 1.0) + 2.0;
            assert!((1..=most as usize).contains(&servers), "{servers} of {most}");
            collector.clear();
        }
    });
}

#[test]
fn a_route_has_a_ratio_of_its_own_and_ratios_are_told_to_targets() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        let document = traced(collector.address, "", ", sampling: {ratio: 0, per_second: 0}")
            + &forward_to(backend.address).replace(
                "routes: [",
                "routes: [{name: half, match: {paths: [{prefix: /half}]}, tracing: {ratio: 0.5}, \
                 forward: {upstreams: [{name: u}]}}, ",
            );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        let mut sampled = 0;
        for _ in 0..100 {
            assert!(got(&ask(&mut client, "/", &[]).await, "traceparent").is_empty());
            let told = ask(&mut client, "/half", &[]).await;
            if let Some(parent) = got(&told, "traceparent").first() {
                sampled += 1;
                assert_eq!(got(&told, "tracestate"), ["ot=th:8"]);
                // The last 56 bits have reached the threshold.
                assert!(u8::from_str_radix(&parent[21..23], 16).unwrap() >= 0x80, "{parent}");
            }
        }
        assert!((20..=80).contains(&sampled), "{sampled}");
    });
}

#[test]
fn other_formats_are_continued_beside_w3cs_which_wins() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        let document = traced(collector.address, TRUSTED, ", propagation: [w3c, b3, jaeger, xray]")
            + &forward_to(backend.address);
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        let single = format!("{TRACE}-{SPAN}-1");
        for (fields, name) in [
            (&[("b3", &*single)][..], "b3"),
            (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")], "x-b3-spanid"),
            (&[("uber-trace-id", &format!("{TRACE}:{SPAN}:0:1"))], "uber-trace-id"),
            (
                &[(
                    "x-amzn-trace-id",
                    "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1",
                )],
                "x-amzn-trace-id",
            ),
            (&[("traceparent", PARENT), ("b3", "11111111111111111111111111111111-2222222222222222-1")], "b3"),
        ] {
            let told = ask(&mut client, "/", fields).await;
            let spans = collector.wait(2).await;
            assert_eq!((&*spans[0].trace_id, &*spans[0].parent), (TRACE, SPAN), "{fields:?}");
            // Both formats name the attempt's span.
            assert!(got(&told, "traceparent")[0].contains(&spans[1].span_id));
            assert_eq!(got(&told, name).len(), 1);
            assert!(got(&told, name)[0].contains(&spans[1].span_id), "{told}");
            assert!(!told.to_string().contains(SPAN));
            collector.clear();
        }
        // A decision without ids.
        for fields in [[("b3", "0")], [("x-b3-sampled", "0")]] {
            let told = ask(&mut client, "/", &fields).await;
            assert!(got(&told, "traceparent").is_empty());
            assert_eq!(got(&told, fields[0].0), ["0"]);
        }
        tokio::task::block_in_place(|| drop(harness));
        assert!(collector.spans().is_empty());
    });
}

#[test]
fn baggage_is_passed_on_within_limits_and_to_whom_it_may() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        let many = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        let long = |length: usize| format!("key={}", "v".repeat(length - 4));
        for (listener, tracing, baggage, is_passed) in [
            ("", "", vec!["a=1,b=2;p=3".to_owned()], true),
            ("", "", vec![many(64)], true),
            ("", "", vec![many(32), many(32)], true),
            ("", "", vec![many(33), many(32)], false),
            ("", "", vec![long(8192)], true),
            ("", "", vec![long(8193)], false),
            ("", "", vec![long(4096), long(4096)], false),
            ("", ", baggage: trusted_proxies", vec![many(1)], false),
            (TRUSTED, ", baggage: trusted_proxies", vec![many(1)], true),
            (TRUSTED, ", baggage: none", vec![many(1)], false),
        ] {
            let document = traced(collector.address, listener, tracing) + &forward_to(backend.address);
            let harness = Harness::start(&document);
            let mut client = Client::connect(harness.address()).await;
            let fields: Vec<_> = baggage.iter().map(|value| ("baggage", &**value)).collect();
            let told = ask(&mut client, "/", &fields).await;
            let expected = if is_passed { baggage.clone() } else { Vec::new() };
            assert!(got(&told, "baggage") == expected, "{listener} {tracing} {}", baggage[0].len());
        }
    });
}
