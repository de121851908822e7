//! The way of spans to a collector that may be slow, away or wrong.

use std::time::{Duration, Instant};

use super::collector::{Answer, Collector, TAKEN};
use super::traced;
use crate::harness::{Backend, Client, Harness, block_on, block_on_alone, nobody, until};
use crate::process::Process;
use crate::telling::metrics;

const ROUTE: &str = "routes: [{name: r, respond: {body: ok}}]";

fn count(harness: &Harness, result: &str) -> usize {
    let name = format!("signalbox_trace_spans_total{{result=\"{result}\"}} ");
    let metrics = metrics(harness);
    metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

/// A collector that accepts connections and never reads.
fn hanging() -> Backend {
    Backend::raw(|stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
}

#[test]
fn only_what_may_be_sent_again_is_sent_again() {
    block_on(async {
        const CASES: &[(&[Answer], usize, &str)] = &[
            (&[(500, &[], b"")], 1, "failed"),
            (&[(400, &[], b"")], 1, "failed"),
            (&[(503, &[], b""), TAKEN], 2, "sent"),
            (&[(429, &[("retry-after", "1")], b""), TAKEN], 2, "sent"),
            (&[(502, &[], b""), (504, &[], b""), TAKEN], 3, "sent"),
            // ExportTraceServiceResponse{partial_success: {rejected_spans: 1}}
            (&[(200, &[], b"\x0a\x02\x08\x01")], 1, "rejected"),
        ];
        for (answers, calls, result) in CASES {
            let collector = Collector::answering(|number| answers[number.min(answers.len() - 1)]);
            let harness = Harness::start(&(traced(collector.address, "", "") + ROUTE));
            let began = Instant::now();
            harness.get("/").await;
            until("the span is counted", || count(&harness, result) == 1).await;
            let took = began.elapsed();
            assert_eq!(collector.calls().len(), *calls, "{answers:?}");
            if answers[0].0 == 429 {
                assert!(took >= Duration::from_secs(1), "{took:?}");
            }
            for other in ["sent", "rejected", "failed", "queue_full", "ended"] {
                assert_eq!(count(&harness, other), usize::from(other == *result), "{answers:?} {other}");
            }
        }
    });
}

#[test]
fn spans_for_a_collector_that_is_away_are_counted_and_requests_go_on() {
    block_on(async {
        let address = nobody();
        let harness = Harness::start(&(traced(address, "", "") + ROUTE));
        for _ in 0..10 {
            assert_eq!(harness.get("/").await.status, 200);
        }
        until("they have failed", || count(&harness, "failed") == 10).await;
        assert_eq!(count(&harness, "sent"), 0);
    });
}

#[test]
fn a_collector_that_never_reads_costs_neither_memory_nor_time() {
    block_on_alone(async {
        let collector = hanging();
        let listener = format!(
            ", tracing: {{exporter: {{endpoint: 'http://{}', timeout: 1m}}, sampling: {{per_second: 0}}}}",
            collector.address
        );
        let process = Process::listening(&listener, ROUTE).await;
        let path = format!("/{}", "x".repeat(2000));
        let mut slowest = [Duration::ZERO; 2];
        let mut memory = [0; 2];
        // First the queue fills, and then it stays full.
        for (round, requests) in [(0, 12_000), (1, 4_000)] {
            let mut clients = Vec::new();
            for _ in 0..4 {
                clients.push(Client::connect(process.address).await);
            }
            for index in 0..requests {
                let began = Instant::now();
                assert_eq!(clients[index % 4].get(&path).await.status, 200);
                slowest[round] = slowest[round].max(began.elapsed());
            }
            memory[round] = process.peak_memory();
        }
        let metrics = Client::connect(process.admin()).await.get("/metrics").await;
        let name = "signalbox_trace_spans_total{result=\"queue_full\"} ";
        let dropped = metrics.text().lines().find_map(|line| line.strip_prefix(name)).unwrap().parse::<u64>();
        assert!(dropped.unwrap() > 0, "{}", metrics.text());
        assert!(memory[1] < memory[0] + (4 << 20), "{memory:?}");
        assert!(slowest[1] < slowest[0] + Duration::from_millis(500), "{slowest:?}");
    });
}

#[test]
fn a_revision_changes_the_exporter_while_the_collector_hangs() {
    block_on(async {
        let (hanging, collector) = (hanging(), Collector::http());
        let mut harness = Harness::start(&(traced(hanging.address, "", "") + ROUTE));
        harness.get("/").await;
        until("the exporter calls", || hanging.connections() == 1).await;
        let began = Instant::now();
        harness.apply(&(traced(collector.address, "", "") + ROUTE)).unwrap();
        harness.get("/").await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        collector.wait(1).await;
        // Spans on their way to the old one are given up in time.
        until("the old exporter has ended", || {
            tokio::task::block_in_place(|| harness.proxy.drop_retired());
            count(&harness, "failed") + count(&harness, "ended") == 1
        })
        .await;
        // The same exporter goes on when other settings change.
        harness.apply(&(traced(collector.address, "", ", sampling: {per_second: 7}") + ROUTE)).unwrap();
        harness.get("/").await;
        collector.wait(2).await;
        // Without tracing there are no more spans.
        harness.apply(ROUTE).unwrap();
        harness.get("/").await;
        tokio::task::block_in_place(|| drop(harness));
        assert_eq!(collector.spans().len(), 2);
    });
}

#[test]
fn a_secret_that_is_not_there_rejects_the_revision() {
    block_on(async {
        let mut harness = Harness::start(ROUTE);
        let document = traced(nobody(), "", "")
            .replace("{endpoint:", "{headers: {authorization: {file: /nowhere/key}}, endpoint:");
        let rejected = harness.apply(&(document + ROUTE)).unwrap_err();
        assert_eq!(rejected[0].field, "tracing.exporter.headers.authorization");
        assert!(rejected[0].message.contains("/nowhere/key"), "{rejected:?}");
    });
}

#[test]
fn the_spans_of_the_last_request_arrive_and_a_hanging_collector_delays_the_end_only_so_long() {
    block_on(async {
        let collector = Collector::http();
        let tracing = |address| format!(", tracing: {{exporter: {{endpoint: 'http://{address}'}}}}");
        let mut process = Process::listening(&tracing(collector.address), ROUTE).await;
        assert_eq!(Client::connect(process.address).await.get("/last").await.status, 200);
        process.terminate();
        assert!(process.ended().await.success());
        let spans = collector.spans();
        assert_eq!((spans.len(), spans[0].get("url.path")), (1, "/last"));

        let hanging = hanging();
        let mut process = Process::listening(&tracing(hanging.address), ROUTE).await;
        assert_eq!(Client::connect(process.address).await.get("/").await.status, 200);
        let began = Instant::now();
        process.terminate();
        assert!(process.ended().await.success());
        // Without tracing it takes about a second.
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    });
}

#[test]
fn a_collector_behind_the_proxy_makes_no_loop() {
    block_on(async {
        let collector = Collector::http();
        let address = nobody();
        let document = format!(
            "listeners: [{{name: http, address: '127.0.0.1:8080'}}, {{name: loop, address: '{address}', \
             tracing: {{exporter: {{endpoint: 'http://{address}'}}}}}}]
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes: [{{name: all, match: {{paths: [{{prefix: /v1}}]}}, forward: {{upstreams: [{{name: u}}]}}}}]
",
            collector.address
        );
        let harness = Harness::start(&document);
        Client::connect(address).await.get("/nowhere").await;
        let spans = collector.wait(1).await;
        assert_eq!(spans[0].get("url.path"), "/nowhere");
        until("it is counted", || count(&harness, "sent") == 1).await;
        tokio::task::block_in_place(|| drop(harness));
        assert_eq!((collector.spans().len(), collector.calls().len()), (1, 1));
    });
}
