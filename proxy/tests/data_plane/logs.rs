//! `http-log`, `file-log` and `otel-log` with sinks of their own.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use prost::Message as _;
use serde_json::Value;
use tokio::sync::Notify;

use crate::harness::{Backend, Client, Harness, block_on, full, nobody, until};
use crate::process::Process;

/// The calls that a sink got: content type and body.
type Calls = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A sink that answers with this status and body once it may.
fn sink(status: u16, body: &'static [u8], may_answer: Option<Arc<Notify>>) -> (Backend, Calls) {
    let calls = Calls::default();
    let noted = Arc::clone(&calls);
    let backend = Backend::start(move |request| {
        let (noted, may_answer) = (Arc::clone(&noted), may_answer.clone());
        async move {
            let (head, body_in) = request.into_parts();
            assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/in"));
            let content_type = head.headers["content-type"].to_str().unwrap().to_owned();
            let bytes = body_in.collect().await.unwrap().to_bytes();
            if let Some(may_answer) = may_answer {
                may_answer.notified().await;
            }
            noted.lock().unwrap().push((content_type, bytes.to_vec()));
            Response::builder().status(status).body(full(body)).unwrap()
        }
    });
    (backend, calls)
}

/// A document with a plugin `log` on all requests, whose sink has this address. `/private` wants a key.
fn document(type_name: &str, config: &str, sink: &str) -> String {
    format!(
        "
plugins:
- {{name: log, type: {type_name}, global: true, config: {{{config}}}}}
- {{name: key, type: key-auth, config: {{}}}}
upstreams: [{{name: sink, targets: [{{address: '{sink}'}}]}}]
routes:
- {{name: private, match: {{paths: [{{prefix: /private}}]}}, plugins: [key], respond: {{body: ok}}}}
- {{name: public, match: {{paths: [{{prefix: /public}}]}}, respond: {{body: ok}}}}
"
    )
}

/// The entries of JSON batches.
fn entries(calls: &Calls) -> Vec<Value> {
    let calls = calls.lock().unwrap();
    let batches = calls.iter().map(|(content_type, body)| match content_type.as_str() {
        "application/json" => serde_json::from_slice(body).unwrap(),
        "application/x-ndjson" => lines(std::str::from_utf8(body).unwrap()),
        other => panic!("{other}"),
    });
    batches.flat_map(|batch: Vec<Value>| batch).collect()
}

fn lines(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is whole");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Sends so many requests, all of which are answered 200.
async fn send(harness: &Harness, number: usize) {
    let mut client = Client::connect(harness.address()).await;
    for index in 0..number {
        assert_eq!(client.get(&format!("/public/{index}")).await.status, 200);
    }
}

/// A value that must be escaped.
const TENANT: &str = "a\t\u{e4}\"b\\";

#[test]
fn each_request_has_one_entry_whoever_answered_it() {
    block_on(async {
        for format in ["json-array", "json-lines"] {
            let (backend, calls) = sink(204, b"", None);
            let config = format!(
                "upstream: sink, path: /in, format: {format}, batch: {{max_entries: 7, interval: 10ms}}, \
                 custom_fields: {{tenant: '{{request.header.x-tenant}}', answered: 'by {{route.name|nobody}}'}}"
            );
            let harness = Harness::start(&document("http-log", &config, &backend.address.to_string()));
            let mut clients = vec![];
            for _ in 0..4 {
                clients.push(Client::connect(harness.address()).await);
            }
            clients.push(Client::connect_http2(harness.address()).await);
            for index in 0..60 {
                let client = index % clients.len();
                let (path, status) = [("public", 200), ("private", 401), ("nowhere", 404)][index % 3];
                let request = Request::get(format!("/{path}/{index}?api_key=secret"))
                    .header("x-tenant", HeaderValue::from_bytes(TENANT.as_bytes()).unwrap())
                    .header("authorization", "Bearer secret")
                    .body(full(""));
                assert_eq!(clients[client].send(request.unwrap()).await.status, status);
            }
            until("all entries have arrived", || entries(&calls).len() >= 60).await;
            let entries = entries(&calls);
            let paths: BTreeSet<_> = entries.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
            assert_eq!((entries.len(), paths.len()), (60, 60));
            for entry in &entries {
                let (status, plugin, route) = match entry["path"].as_str().unwrap() {
                    path if path.starts_with("/public/") => (200, "", "public"),
                    path if path.starts_with("/private/") => (401, "key", "private"),
                    _ => (404, "", ""),
                };
                assert_eq!((&entry["status"], &entry["plugin"]), (&status.into(), &plugin.into()));
                assert_eq!((&entry["route"], &entry["host"]), (&route.into(), &"test.example".into()));
                assert_eq!(entry["client"], "127.0.0.1");
                assert_eq!(entry["tenant"], TENANT);
                let answered = if route.is_empty() { "by nobody".to_owned() } else { format!("by {route}") };
                assert_eq!(entry["answered"], answered);
                assert!(!entry.to_string().contains("secret"), "{entry}");
            }
            for (_, body) in &*calls.lock().unwrap() {
                assert!(body.iter().all(|byte| *byte >= b' ' || *byte == b'\n'));
            }
            // The last answer may still be on its way to the proxy.
            until("all entries are counted", || harness.outcome("log", "sent") == 60).await;
            assert_eq!(harness.outcome("log", "dropped") + harness.outcome("log", "failed"), 0);
        }
    });
}

#[test]
fn a_sink_that_fails_harms_no_request_and_its_losses_are_counted() {
    block_on(async {
        let (error, _) = sink(500, b"", None);
        let (refusing, _) = sink(400, b"", None);
        let silent = Backend::raw(|stream| async move {
            let _open = stream;
            std::future::pending::<()>().await;
        });
        for (what, address, timeout) in [
            ("down", nobody(), "1s"),
            ("error", error.address, "1s"),
            ("refusing", refusing.address, "1s"),
            ("slow", silent.address, "50ms"),
        ] {
            for type_name in ["http-log", "otel-log"] {
                let config = format!(
                    "upstream: sink, path: /in, timeout: {timeout}, retries: 1, \
                     batch: {{max_entries: 5, interval: 10ms}}, queue: {{max_entries: 10}}"
                );
                let harness = Harness::start(&document(type_name, &config, &address.to_string()));
                let count = |outcome| harness.outcome("log", outcome);
                send(&harness, 100).await;
                until("each entry is counted", || count("failed") + count("dropped") == 100).await;
                assert!(count("failed") > 0, "{what} {type_name}");
                assert_eq!(count("sent"), 0);
            }
        }
        // A sink that never answers: what the queue holds is all that waits, and the rest is dropped at once.
        let config = "upstream: sink, timeout: 1m, batch: {max_entries: 5}, queue: {max_entries: 10}";
        let harness = Harness::start(&document("http-log", config, &silent.address.to_string()));
        send(&harness, 100).await;
        until("the rest is dropped", || harness.outcome("log", "dropped") == 90).await;
        // The end of the proxy does not wait for it for longer than it may.
        let began = Instant::now();
        tokio::task::block_in_place(|| drop(harness));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    });
}

#[test]
fn the_queue_outlives_revisions_and_a_sink_that_comes_back_gets_what_waits() {
    block_on(async {
        let may_answer = Arc::new(Notify::new());
        let (backend, calls) = sink(200, b"", Some(Arc::clone(&may_answer)));
        let address = backend.address.to_string();
        let config = "upstream: sink, path: /in, timeout: 1m, batch: {max_entries: 4, interval: 10ms}";
        let mut harness = Harness::start(&document("http-log", config, &address));
        send(&harness, 10).await;
        // The fields are no part of the identity, and neither are other resources.
        let config = format!("{config}, fields: [path, revision]");
        harness.apply(&document("http-log", &config, &address)).unwrap();
        send(&harness, 10).await;
        let answering = tokio::spawn(async move {
            loop {
                may_answer.notify_one();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        until("all entries have arrived", || entries(&calls).len() >= 20).await;
        answering.abort();
        let entries = entries(&calls);
        let revision = |number: u64| entries.iter().filter(|entry| entry["revision"] == number).count();
        assert_eq!((entries.len(), revision(1), revision(2)), (20, 10, 10));
        until("they are counted", || harness.outcome("log", "sent") == 20).await;
    });
}

#[test]
fn what_waits_is_sent_when_the_plugin_goes_and_when_the_proxy_ends() {
    block_on(async {
        for type_name in ["http-log", "otel-log"] {
            let (backend, calls) = sink(200, b"", None);
            let address = backend.address.to_string();
            let config = "upstream: sink, path: /in, batch: {interval: 1m}";
            let mut harness = Harness::start(&document(type_name, config, &address));
            send(&harness, 3).await;
            harness.apply(&document(type_name, &format!("{config}, retries: 1"), &address)).unwrap();
            tokio::task::block_in_place(|| harness.proxy.drop_retired());
            until("the old queue is sent", || {
                tokio::task::block_in_place(|| harness.proxy.drop_retired());
                calls.lock().unwrap().len() == 1
            })
            .await;
            send(&harness, 3).await;
            tokio::task::block_in_place(|| drop(harness));
            until("the last queue is sent", || calls.lock().unwrap().len() == 2).await;
        }
    });
}

/// The parts of an OTLP request that tell of records.
#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceLogs {
    #[prost(message, repeated, tag = "2")]
    scope_logs: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeLogs {
    #[prost(message, repeated, tag = "2")]
    log_records: Vec<Record>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(string, tag = "3")]
    severity: String,
}

#[test]
fn a_collector_gets_records_and_those_that_it_rejects_are_counted() {
    block_on(async {
        // ExportLogsServiceResponse{partial_success: {rejected_log_records: 1}}
        let (backend, calls) = sink(200, b"\x0a\x02\x08\x01", None);
        let config = "upstream: sink, path: /in, batch: {max_entries: 5, interval: 1m}";
        let harness = Harness::start(&document("otel-log", config, &backend.address.to_string()));
        let mut client = Client::connect(harness.address()).await;
        for path in ["/public", "/private", "/nowhere", "/public", "/public"] {
            client.get(path).await;
        }
        until("the batch was taken", || harness.outcome("log", "sent") == 4).await;
        until("one was rejected", || harness.outcome("log", "failed") == 1).await;
        let calls = calls.lock().unwrap();
        let [(content_type, body)] = &**calls else { panic!("{} calls", calls.len()) };
        assert_eq!(content_type, "application/x-protobuf");
        let export = Export::decode(&**body).unwrap();
        let records = &export.resource_logs[0].scope_logs[0].log_records;
        let severities: Vec<_> = records.iter().map(|record| record.severity.as_str()).collect();
        assert_eq!(severities, ["INFO", "WARN", "WARN", "INFO", "INFO"]);
    });
}

fn file_document(paths: &[&Path]) -> String {
    let plugins = paths.iter().enumerate().map(|(index, path)| {
        let path = path.display();
        format!(
            "- {{name: log{index}, type: file-log, config: {{path: '{path}', fields: [path, status]}}}}\n"
        )
    });
    let routes = (0..paths.len()).map(|index| {
        format!(
            "- {{name: r{index}, match: {{paths: [{{prefix: /{index}}}]}}, plugins: [log{index}], respond: {{body: ok}}}}\n"
        )
    });
    format!("plugins:\n{}routes:\n{}", plugins.collect::<String>(), routes.collect::<String>())
}

fn read(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).map(|text| lines(&text)).unwrap_or_default()
}

#[test]
fn lines_are_written_whole_and_go_to_the_new_file_after_rotation() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
        // Two plugins with one path share its writer.
        let harness = Harness::start(&file_document(&[&path, &path]));
        let (mut one, mut two) =
            (Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await);
        for index in 0..50 {
            assert_eq!(one.get(&format!("/0/{index}")).await.status, 200);
            assert_eq!(two.get(&format!("/1/{index}")).await.status, 200);
        }
        let sent = |log| harness.outcome(log, "sent");
        until("all is written", || sent("log0") == 50 && sent("log1") == 50).await;
        let paths: BTreeSet<_> =
            read(&path).iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect();
        assert_eq!((read(&path).len(), paths.len()), (100, 100));
        std::fs::rename(&path, &old).unwrap();
        one.get("/0/rotated").await;
        until("the new file is written", || sent("log0") == 51).await;
        assert_eq!((read(&old).len(), read(&path).len()), (100, 1));
        one.get("/0/last").await;
        // The end of the proxy waits for the last lines.
        tokio::task::block_in_place(|| drop(harness));
        assert_eq!(read(&path)[1]["path"], "/0/last");
    });
}

/// A limit on the size of files stands for a full disk: a write fails, perhaps after a part of it was written.
#[test]
fn a_full_disk_harms_no_request_and_the_log_goes_on_by_itself() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut process = Process::start(&file_document(&[&path]), &[]).await;
        let limit = |bytes: &str| {
            let id = process.id().to_string();
            let args = ["--pid", &id, &format!("--fsize={bytes}:unlimited")];
            assert!(Command::new("prlimit").args(args).status().unwrap().success());
        };
        let mut client = Client::connect(process.address).await;
        let mut admin = Client::connect(process.admin()).await;
        limit("1000");
        for index in 0..100 {
            assert_eq!(client.get(&format!("/0/{index}")).await.status, 200);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        let counted = loop {
            let metrics = admin.get("/metrics").await;
            let count = |outcome: &str| {
                let name =
                    format!("signalbox_plugin_outcomes_total{{plugin=\"log0\",outcome=\"{outcome}\"}} ");
                let line = metrics.text().lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("0");
                line.parse::<usize>().unwrap()
            };
            if count("sent") + count("failed") == 100 {
                break (count("sent"), count("failed"));
            }
            assert!(Instant::now() < deadline, "not all entries are counted");
        };
        assert!(counted.1 > 0, "{counted:?}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.ends_with('}')).count(), counted.0, "{text}");
        limit("unlimited");
        client.get("/0/after").await;
        process.terminate();
        assert!(process.ended().await.success());
        let text = std::fs::read_to_string(&path).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["path"], "/0/after");
        let whole = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
        assert_eq!(whole, counted.0 + 1);
    });
}
