use std::sync::mpsc::Receiver;

use http::Request;
use signalbox_process::prometheus::Exposition;
use signalbox_proxy::metrics::{ProcessState, write};
use signalbox_proxy::source::{DataPlane as _, Status, Traffic};
use signalbox_proxy::telemetry::access_log;

use crate::harness::{Backend, Client, Harness, block_on, forward_to, full, nobody, raw, until};

pub(crate) fn metrics(harness: &Harness) -> String {
    let page = write(Exposition::default(), &harness.proxy, &Status::default(), ProcessState::default());
    String::from_utf8(page).unwrap()
}

/// The access log's lines, once there are `count`.
pub(crate) async fn lines(receiver: &Receiver<Vec<u8>>, count: usize) -> Vec<serde_json::Value> {
    let mut text = String::new();
    until("the log is written", || {
        receiver.try_iter().for_each(|bytes| text.push_str(std::str::from_utf8(&bytes).unwrap()));
        text.lines().count() >= count
    })
    .await;
    let mut lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Each worker hands over its lines when it has time.
    lines.sort_by(|one, other| one["time"].as_str().cmp(&other["time"].as_str()));
    lines
}

#[test]
fn every_request_is_counted_under_its_route() {
    block_on(async {
        let backend = Backend::echo();
        let document = forward_to(backend.address).replace(
            "routes: [",
            "routes: [{name: gone, match: {paths: [{exact: /gone}]}, respond: {status: 410}}, ",
        );
        let harness = Harness::start(&document.replace("prefix: /}", "prefix: /a}"));
        let mut client = Client::connect(harness.address()).await;
        for path in ["/a", "/a", "/gone", "/nowhere"] {
            client.get(path).await;
        }
        raw(harness.address(), b"nonsense\r\n\r\n").await;
        until("only the client is left", || harness.proxy.active_connections() == 1).await;
        let metrics = metrics(&harness);
        for line in [
            r#"signalbox_requests_total{listener="http",route="all",code_class="2xx",flags=""} 2"#,
            r#"signalbox_requests_total{listener="http",route="gone",code_class="4xx",flags=""} 1"#,
            r#"signalbox_requests_total{listener="http",route="",code_class="4xx",flags="NR"} 1"#,
            r#"signalbox_requests_total{listener="http",route="",code_class="4xx",flags="DPE"} 1"#,
            r#"signalbox_upstream_requests_total{upstream="u",code_class="2xx",flags=""} 2"#,
            r#"signalbox_upstream_healthy_targets{upstream="u"} 1"#,
            "signalbox_request_duration_seconds_count 5",
            "signalbox_upstream_duration_seconds_count 2",
            "signalbox_active_connections 1",
            r#"signalbox_revision{epoch="test"} 1"#,
            r#"signalbox_resources{kind="route"} 2"#,
        ] {
            assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
        }
    });
}

#[test]
fn traffic_is_what_came_since_it_was_asked() {
    block_on(async {
        let document = forward_to(nobody()).replace("prefix: /}", "prefix: /refused}");
        let harness = Harness::start(&document);
        assert_eq!(harness.proxy.traffic(), Traffic::default());
        let mut client = Client::connect(harness.address()).await;
        for path in ["/refused", "/nowhere", "/nowhere"] {
            client.get(path).await;
        }
        let traffic = harness.proxy.traffic();
        assert_eq!((traffic.requests, traffic.errors, traffic.active_connections), (3, 1, 1));
        assert!(0 < traffic.p50_us && traffic.p50_us <= traffic.p99_us);
        assert_eq!(harness.proxy.traffic().requests, 0);
    });
}

#[test]
fn the_access_log_tells_of_every_request() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let backend = Backend::echo();
        let document = forward_to(backend.address).replace("prefix: /}", "prefix: /a}");
        let harness = Harness::with_log(&document, Some(sender));
        let mut client = Client::connect(harness.address()).await;
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let request = Request::post("/a?secret=1")
            .header("user-agent", "test/1")
            .header("traceparent", trace)
            .body(full("hello"))
            .unwrap();
        let answer = client.send(request).await;
        client.get("/nowhere").await;
        Client::connect_http2(harness.address()).await.get("/a").await;
        raw(harness.address(), b"nonsense\r\n\r\n").await;
        let lines = lines(&receiver, 4).await;
        let find = |path: &str, protocol: &str| {
            lines.iter().find(|line| line["path"] == path && line["protocol"] == protocol).expect("a line")
        };
        let first = find("/a", "HTTP/1.1");
        for (field, expected) in [
            ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
            ("client", "127.0.0.1"),
            ("method", "POST"),
            ("host", "test.example"),
            ("flags", ""),
            ("route", "all"),
            ("upstream", "u"),
            ("target", &backend.address.to_string()),
            ("user_agent", "test/1"),
        ] {
            assert_eq!(first[field], expected, "{field}");
        }
        for (field, expected) in [
            ("status", 200),
            ("attempts", 1),
            ("bytes_in", 5),
            ("bytes_out", answer.body.len()),
            ("revision", 1),
        ] {
            assert_eq!(first[field], expected, "{field}");
        }
        assert!(first["duration_ms"].as_f64() >= first["upstream_ms"].as_f64());
        let told = answer.json()["headers"].to_string();
        assert!(told.contains(first["request_id"].as_str().unwrap()));
        let missing = find("/nowhere", "HTTP/1.1");
        assert_eq!(
            (&missing["status"], &missing["flags"], &missing["route"]),
            (&404.into(), &"NR".into(), &"".into())
        );
        assert_eq!(find("/a", "HTTP/2")["host"], "test.example");
        let refused = find("", "");
        assert_eq!((&refused["status"], &refused["flags"]), (&400.into(), &"DPE".into()));
    });
}

#[test]
fn a_client_that_went_away_is_told_apart() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let backend = Backend::start(|_| std::future::pending());
        let harness = Harness::with_log(&forward_to(backend.address), Some(sender));
        let mut client = Client::connect(harness.address()).await;
        let request = client.start(Request::get("/").body(full("")).unwrap());
        tokio::select! {
            _ = request => panic!("there is no answer"),
            () = until("it has reached the backend", || backend.connections() == 1) => {}
        }
        drop(client);
        let lines = lines(&receiver, 1).await;
        assert_eq!((&lines[0]["status"], &lines[0]["flags"]), (&499.into(), &"DC".into()));
    });
}
