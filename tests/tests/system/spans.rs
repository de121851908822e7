//! Spans of a control plane, taken by a collector.

use std::time::Duration;

use http::Method;
use signalbox_tests::{ControlPlane, Received, Receiver, Reply, eventually};

use crate::fixture::respond;

const DEADLINE: Duration = Duration::from_secs(20);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn contains(received: &Received, part: &[u8]) -> bool {
    received.body.windows(part.len()).any(|window| window == part)
}

fn trace_id() -> Vec<u8> {
    (0..32).step_by(2).map(|at| u8::from_str_radix(&TRACE[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calls_of_the_admin_api_have_spans_that_continue_the_callers_trace() {
    // The first call is to be sent again.
    let collector = Receiver::answering(Reply::Status(200), [Reply::RetryAfter(503, 0)]).unwrap();
    let control_plane = ControlPlane::builder()
        .arg(format!("--otlp-endpoint={}", collector.url("")))
        .env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret%20of%20the%20collector")
        .start()
        .await
        .unwrap();
    let api = control_plane.api();
    for (name, flags) in [("traced", "01"), ("untraced", "00")] {
        let call = api.request(Method::PUT, &format!("/routes/{name}"));
        let call = call.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-{flags}"));
        let call = call.json(&respond("/", "fine"));
        let answer = signalbox_tests::control_plane::send(call).await.unwrap();
        assert_eq!(answer.status, 201, "{answer}");
    }
    let is_told = eventually(DEADLINE, async || {
        collector.taken().iter().any(|call| contains(call, b"/api/v1/routes/traced"))
    });
    assert!(is_told.await, "{}", control_plane.log());
    let taken = collector.taken();
    let call = taken.iter().find(|call| contains(call, b"/api/v1/routes/traced")).unwrap();
    assert_eq!((&*call.path, call.header("content-type")), ("/v1/traces", "application/x-protobuf"));
    assert_eq!(call.header("api-key"), "secret of the collector");
    assert!(contains(call, &trace_id()) && contains(call, b"\x00\xf0\x67\xaa\x0b\xa9\x02\xb7"));
    for text in ["PUT /api/v1/routes/{name}", "signalbox-control-plane", "signalbox.revision"] {
        assert!(contains(call, text.as_bytes()), "{text} is not in the call");
    }
    // Whoever does not record a trace gets no spans of it.
    assert!(!taken.iter().any(|call| contains(call, b"/api/v1/routes/untraced")));
    let sent = async || api.metrics().await.unwrap().sum("signalbox_trace_spans_total", &["result=\"sent\""]);
    assert!(eventually(DEADLINE, async || sent().await >= 1.0).await);
    assert!(!control_plane.log().contains("secret of the collector"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_collector_that_never_answers_delays_neither_calls_nor_the_end() {
    let collector = Receiver::answering(Reply::Never, []).unwrap();
    let mut control_plane = ControlPlane::builder()
        .arg(format!("--otlp-endpoint={}", collector.url("/v1/traces")))
        .start()
        .await
        .unwrap();
    let api = control_plane.api().clone();
    for number in 0..50 {
        api.put("routes", "a", &respond(&format!("/{number}"), "fine")).await.unwrap();
    }
    assert!(eventually(DEADLINE, async || !collector.received().is_empty()).await);
    let ended = tokio::time::timeout(DEADLINE, async { control_plane.stop() }).await;
    ended.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wrong_collector_is_an_error_at_the_start() {
    let mut control_plane = ControlPlane::builder().arg("--otlp-endpoint=collector:4318").prepare().unwrap();
    let error = control_plane.start().await.unwrap_err().to_string() + &control_plane.log();
    assert!(error.contains("--otlp-endpoint") && error.contains("must begin with http"), "{error}");
}
