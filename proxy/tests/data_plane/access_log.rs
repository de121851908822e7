//! The access log of listeners with settings of their own, and its destinations.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use signalbox_proxy::telemetry::access_log;

use crate::harness::{
    AnyBody, Backend, Client, Harness, Wire, block_on, forward_over, forward_to, full, nobody, raw, until,
};
use crate::process::{PROGRAM, Process};
use crate::telling::{lines, metrics};

/// A document with a listener that has this section, and routes.
fn logged(section: &str, routes: &str) -> String {
    format!("listeners: [{{name: http, address: '127.0.0.1:8080', access_log: {section}}}]\n{routes}")
}

const ROUTES: &str = "routes:
- {name: ok, match: {paths: [{prefix: /ok}]}, respond: {body: ok}}
- {name: gone, match: {paths: [{prefix: /gone}]}, respond: {status: 410}}
";

fn get(path: &str, headers: &[(&str, &str)]) -> Request<AnyBody> {
    let request =
        headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    request.body(full("")).unwrap()
}

/// All lines: those that workers have not handed over come when the data plane has ended.
fn all_lines(harness: Harness, receiver: &Receiver<Vec<u8>>) -> String {
    drop(harness);
    let bytes = tokio::task::block_in_place(|| receiver.iter().flatten().collect());
    String::from_utf8(bytes).unwrap()
}

fn parsed(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn the_weights_of_a_sample_add_up_to_the_counters() {
    block_on(async {
        const EVERY: u64 = 10;
        const CLIENTS: u64 = 8;
        const REQUESTS: u64 = 203;
        let (sender, receiver) = access_log::channel(1000);
        let document = logged("{sample: {every: 10, slow: 1h}}", ROUTES);
        let harness = Harness::with_log(&document, Some(sender));
        for _ in 0..CLIENTS {
            let mut client = Client::connect(harness.address()).await;
            for _ in 0..REQUESTS {
                assert_eq!(client.get("/ok").await.status, 200);
            }
            assert_eq!(client.get("/gone").await.status, 410);
            assert_eq!(client.get("/nowhere").await.status, 404);
        }
        raw(harness.address(), b"nonsense\r\n\r\n").await;
        until("all are counted", || metrics(&harness).contains("signalbox_active_connections 0\n")).await;
        let total = REQUESTS * CLIENTS;
        let counted = format!(
            r#"signalbox_requests_total{{listener="http",route="ok",code_class="2xx",flags=""}} {total}"#
        );
        assert!(metrics(&harness).contains(&counted), "{}", metrics(&harness));
        let lines = parsed(&all_lines(harness, &receiver));
        let of = |status: u16| lines.iter().filter(move |line| line["status"] == status);
        assert!(of(200).all(|line| line["weight"] == EVERY));
        let weights: u64 = of(200).map(|line| line["weight"].as_u64().unwrap()).sum();
        // Each of the two workers may be amid a run.
        assert!(weights.abs_diff(total) < 2 * EVERY, "{weights} of {total}");
        for (status, count) in [(410, CLIENTS), (404, CLIENTS), (400, 1)] {
            assert_eq!(of(status).count() as u64, count, "{status}");
            assert!(of(status).all(|line| line["weight"] == 1));
        }
    });
}

#[test]
fn slow_requests_are_kept() {
    block_on(async {
        let (sender, receiver) = access_log::channel(1000);
        let backend = Backend::start(|_| async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            Response::new(full("late"))
        });
        let document = logged("{sample: {every: 1000000, slow: 1ms}}", &forward_to(backend.address));
        let harness = Harness::with_log(&document, Some(sender));
        assert_eq!(harness.get("/slow").await.status, 200);
        let lines = lines(&receiver, 1).await;
        assert_eq!((&lines[0]["path"], &lines[0]["weight"]), (&"/slow".into(), &1.into()));
    });
}

#[test]
fn chosen_headers_are_logged_and_credentials_never() {
    block_on(async {
        let (sender, receiver) = access_log::channel(1000);
        let backend = Backend::start(|_| async {
            let response = Response::builder()
                .header("content-type", "text/x")
                .header("set-cookie", "session=SECRET-4")
                .header("x-replaced", "by the target")
                .header("location", "https://u:SECRET-5@a.example/?code=SECRET-6&a=1");
            response.body(full("hi")).unwrap()
        });
        let section = "{query: true, redact: {query: [mine]}, request_headers: [X-Tenant, referer, x-none, x-long], \
                       response_headers: [content-type, location, x-added, x-replaced, access-control-allow-origin]}";
        let plugins = "plugins: [{name: add, type: response-transform, config: {set: {headers: {x-added: plugin, x-replaced: plugin}}}}, \
                       {name: cors, type: cors, config: {origins: ['*']}}]";
        let document = logged(section, &forward_to(backend.address)) + plugins;
        let document = document.replace("{name: all,", "{name: all, plugins: [add, cors],");
        let harness = Harness::with_log(&document, Some(sender));
        let long = "\u{e4}\t".repeat(1000);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let mut request = get(
                "/a?b=1&token=SECRET-1&mine=SECRET-2",
                &[
                    ("authorization", "Bearer SECRET-3"),
                    ("cookie", "a=SECRET-7"),
                    ("proxy-authorization", "Basic SECRET-8"),
                    ("x-tenant", "one\"\\"),
                    ("x-tenant", "two"),
                    ("origin", "https://a.example"),
                    ("referer", "/?sig=SECRET-9&q=2"),
                ],
            );
            request.headers_mut().insert("x-long", http::HeaderValue::from_bytes(long.as_bytes()).unwrap());
            assert_eq!(client.send(request).await.status, 200);
        }
        let text = all_lines(harness, &receiver);
        assert!(!text.contains("SECRET"), "{text}");
        let lines = parsed(&text);
        assert_eq!(lines.len(), 2);
        for line in lines {
            assert_eq!(line["path"], "/a?b=1&token=REDACTED&mine=REDACTED");
            let request = &line["request_headers"];
            assert_eq!(request["x-tenant"], "one\"\\, two");
            assert_eq!(request["referer"], "/?sig=REDACTED&q=2");
            assert!(request.get("x-none").is_none());
            let shown = request["x-long"].as_str().unwrap();
            assert!(shown.len() <= 256 && long.starts_with(shown) && shown.len() > 250, "{shown:?}");
            let response = serde_json::json!({
                "content-type": "text/x", "x-added": "plugin", "x-replaced": "plugin",
                "access-control-allow-origin": "*",
                "location": "https://REDACTED@a.example/?code=REDACTED&a=1",
            });
            assert_eq!(line["response_headers"], response);
            assert!(line.get("weight").is_none(), "without sampling");
        }
    });
}

#[test]
fn passwords_of_hosts_and_urls_are_not_logged() {
    block_on(async {
        let section = "{query: true, request_headers: [referer, destination, link]}";
        for document in [ROUTES.to_owned(), logged(section, ROUTES)] {
            let (sender, receiver) = access_log::channel(1000);
            let harness = Harness::with_log(&document, Some(sender));
            for head in [
                "GET /ok HTTP/1.1\r\nhost: alice:SECRET@api.example\r\n",
                "GET http://alice:SECRET@api.example/ok HTTP/1.1\r\nhost: api.example\r\n",
            ] {
                let urls = "referer: /first\r\nreferer: https://alice:SECRET@a.example/?authToken=SECRET\r\n\
                            destination: https://alice:SECRET@a.example/x\r\n\
                            link: <https://alice:SECRET@a.example/?sid=SECRET>; rel=next\r\n";
                raw(harness.address(), format!("{head}{urls}connection: close\r\n\r\n").as_bytes()).await;
            }
            raw(harness.address(), b"GET //admin;x@y/z HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                .await;
            let text = all_lines(harness, &receiver);
            assert!(!text.contains("SECRET") && !text.contains("alice"), "{text}");
            let lines = parsed(&text);
            let (own, others): (Vec<_>, Vec<_>) =
                lines.iter().partition(|line| line["host"] == "api.example");
            assert_eq!((own.len(), others.len()), (2, 1), "{text}");
            assert_eq!(others[0]["path"], "//admin;x@y/z");
            for line in own.iter().filter(|_| document != ROUTES) {
                let expected = serde_json::json!({
                    "referer": "/first, https://REDACTED@a.example/?authToken=REDACTED",
                    "destination": "https://REDACTED@a.example/x",
                    "link": "<https://REDACTED@a.example/?sid=REDACTED>; rel=next",
                });
                assert_eq!(line["request_headers"], expected);
            }
        }
    });
}

/// The access log decides nothing for plugins that log.
#[test]
fn plugins_log_the_same_whatever_the_access_log_does() {
    block_on(async {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        const KEY: &str = "0123456789abcdef0123456789abcdef";
        let dir = tempfile::tempdir().unwrap();
        for (index, section) in [None, Some("{}"), Some("{enabled: false}")].into_iter().enumerate() {
            let path = dir.path().join(index.to_string());
            let plugins = format!(
                "plugins: [{{name: log, type: file-log, config: {{path: '{}', fields: [path, trace_id, consumer]}}}}, \
                 {{name: key, type: key-auth}}]\n\
                 consumers: [{{name: alice, plugins: [log], credentials: [{{key_auth: {{key: {KEY}}}}}]}}]\n",
                path.display()
            );
            let routes = ROUTES.replace("{name: ok,", "{name: ok, plugins: [log],")
                + "- {name: own, match: {paths: [{prefix: /own}]}, plugins: [key], respond: {body: ok}}\n";
            let document = plugins + &section.map_or(routes.clone(), |section| logged(section, &routes));
            // Without a section there is no access log at all.
            let (sender, _receiver) = access_log::channel(1000);
            let harness = Harness::with_log(&document, section.map(|_| sender));
            let mut client = Client::connect(harness.address()).await;
            let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
            client.send(get("/ok/traced", &[("traceparent", &traceparent)])).await;
            client.get("/ok/untraced").await;
            let headers = [("traceparent", &*traceparent), ("apikey", KEY)];
            assert_eq!(client.send(get("/own", &headers)).await.status, 200);
            drop(client);
            tokio::task::block_in_place(|| drop(harness));
            let text = std::fs::read_to_string(&path).unwrap();
            let entries = parsed(&text);
            for (path, trace, consumer) in
                [("/ok/traced", TRACE, ""), ("/ok/untraced", "", ""), ("/own", TRACE, "alice")]
            {
                let mut found = entries.iter().filter(|entry| entry["path"] == path);
                let (Some(entry), None) = (found.next(), found.next()) else { panic!("{path}: {text}") };
                assert_eq!(
                    (&entry["trace_id"], &entry["consumer"]),
                    (&trace.into(), &consumer.into()),
                    "{path}"
                );
            }
        }
    });
}

#[test]
fn lines_have_the_format_that_the_listener_gives() {
    block_on(async {
        let (sender, receiver) = access_log::channel(1000);
        let combined = logged("{format: combined}", ROUTES);
        let mut harness = Harness::with_log(&combined, Some(sender));
        let mut client = Client::connect(harness.address()).await;
        let evil = [("user-agent", "a\" 200 \\"), ("referer", "https://b.example/?token=x")];
        client.send(get("/ok?secret=1", &evil)).await;
        let template = "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %ROUTE_NAME% %BYTES_SENT% \
                        %RESP(CONTENT-TYPE?X-NONE)% %REQ(X-A):2% %PROTOCOL% %REVISION%";
        harness.apply(&logged(&format!("{{format: {{template: '{template}'}}}}"), ROUTES)).unwrap();
        client.send(get("/ok?secret=1", &[("x-a", "abc")])).await;
        client.get("/nowhere").await;
        raw(harness.address(), b"nonsense\r\n\r\n").await;
        drop(client);
        let text = all_lines(harness, &receiver);
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        let [refused, first, missing, second] = *lines else { panic!("{text}") };
        assert!(first.starts_with("127.0.0.1 - - ["), "{first}");
        let expected = r#" +0000] "GET /ok HTTP/1.1" 200 2 "https://b.example/" "a\x22 200 \x5C""#;
        assert!(first.ends_with(expected), "{first}");
        assert_eq!(second, "GET /ok 200 - ok 2 text/plain; charset=utf-8 ab HTTP/1.1 2");
        assert!(missing.starts_with("GET /nowhere 404 NR - "), "{missing}");
        assert!(refused.starts_with("- - 400 DPE - "), "{refused}");
    });
}

#[test]
fn a_revision_changes_the_log_without_a_restart() {
    block_on(async {
        let (sender, receiver) = access_log::channel(1000);
        let mut harness = Harness::with_log(&logged("{enabled: false}", ROUTES), Some(sender));
        let mut client = Client::connect(harness.address()).await;
        for (section, path, count) in [
            (None, "/ok/never", 50),
            (Some("{sample: {every: 1000000, slow: 1h}}"), "/ok/hardly", 50),
            (Some("{sample: {every: 2, slow: 1h}}"), "/ok/half", 50),
            (Some("{}"), "/ok/all", 50),
        ] {
            if let Some(section) = section {
                harness.apply(&logged(section, ROUTES)).unwrap();
            }
            for _ in 0..count {
                assert_eq!(client.get(path).await.status, 200, "the same connection");
            }
        }
        harness.apply(ROUTES).unwrap();
        client.get("/ok/plain").await;
        drop(client);
        let text = all_lines(harness, &receiver);
        let count = |path: &str| text.matches(&format!("\"path\":\"{path}\"")).count();
        assert_eq!((count("/ok/never"), count("/ok/half"), count("/ok/all")), (0, 25, 50));
        assert!(count("/ok/hardly") <= 1 && count("/ok/plain") == 1, "{text}");
        assert_eq!(text.matches("\"weight\":2").count(), 25);
        assert!(!text.contains("\"weight\":1,"), "{text}");
    });
}

#[test]
fn the_status_of_a_grpc_call_is_logged_wherever_it_stands() {
    block_on(async {
        let backend = Backend::speaking(Wire::Http2, |request| async move {
            let response = Response::builder().header("content-type", "application/grpc");
            if request.uri().path() == "/head" {
                return response.header("grpc-status", "5").body(full("")).unwrap();
            }
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "14".parse().unwrap())]);
            let body =
                Full::new(Bytes::from_static(b"x")).with_trailers(std::future::ready(Some(Ok(trailers))));
            response.body(body.map_err(|never| match never {}).boxed()).unwrap()
        });
        let (sender, receiver) = access_log::channel(1000);
        let section = "{sample: {every: 1000000, slow: 1h}}";
        let routes =
            forward_over(Wire::Http2, backend.address).replace("prefix: /}", "regex: '/(head|trailers)'}");
        let harness = Harness::with_log(&logged(section, &routes), Some(sender));
        let mut client = Client::connect_http2(harness.address()).await;
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        for path in ["/head", "/trailers", "/nowhere"] {
            assert_eq!(client.send(get(path, &headers)).await.status, 200);
        }
        drop(client);
        let lines = parsed(&all_lines(harness, &receiver));
        for (path, status) in [("/head", 5), ("/trailers", 14), ("/nowhere", 12)] {
            let line =
                lines.iter().find(|line| line["path"] == path).unwrap_or_else(|| panic!("{path}: {lines:?}"));
            assert_eq!((&line["status"], &line["grpc_status"]), (&200.into(), &status.into()), "{path}");
        }
    });
}

/// Sends a request with a path of its own until the collector has a message of it.
async fn arrives(process: &Process, mut receive: impl FnMut() -> Vec<u8>) -> String {
    let mut client = Client::connect(process.address).await;
    let mut received = Vec::new();
    client.get("/ok/syslog").await;
    until("the message arrives", || {
        received.extend(receive());
        String::from_utf8_lossy(&received).contains("/ok/syslog")
    })
    .await;
    String::from_utf8(received).unwrap()
}

fn check_message(message: &str) {
    let fields: Vec<_> = message.splitn(8, ' ').collect();
    assert_eq!((fields[0], fields[3], fields[5], fields[6]), ("<134>1", "signalbox-proxy", "access", "-"));
    let line: Value = serde_json::from_str(fields[7]).unwrap();
    assert_eq!(line["path"], "/ok/syslog");
}

/// Checks a message as journald and rsyslog's imuxsock read it.
fn check_local_message(message: &str, process: u32) {
    let (head, line) = message.split_once(&format!(" signalbox-proxy[{process}]: ")).unwrap();
    assert_eq!((head.len(), &head[..5]), ("<134>Jan  2 03:04:05".len(), "<134>"), "{message}");
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["path"], "/ok/syslog");
}

#[test]
fn lines_go_to_a_collector_of_syslog() {
    block_on(async {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_nonblocking(true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let unix = UnixDatagram::bind(&path).unwrap();
        unix.set_nonblocking(true).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let datagram = |received: std::io::Result<usize>, mut bytes: Vec<u8>| {
            bytes.truncate(received.unwrap_or(0));
            bytes
        };
        let to = format!("syslog:udp://{}", udp.local_addr().unwrap());
        let process = Process::start(ROUTES, &["--access-log", &to]).await;
        let message = arrives(&process, || {
            let mut bytes = vec![0; 9000];
            datagram(udp.recv(&mut bytes), bytes)
        });
        check_message(&message.await);
        let to = format!("syslog:unix:{}", path.display());
        let process = Process::start(ROUTES, &["--access-log", &to]).await;
        let message = arrives(&process, || {
            let mut bytes = vec![0; 9000];
            datagram(unix.recv(&mut bytes), bytes)
        });
        check_local_message(&message.await, process.id());
        let to = format!("syslog:tcp://{}", tcp.local_addr().unwrap());
        let process = Process::start(ROUTES, &["--access-log", &to]).await;
        let mut stream = None;
        let message = arrives(&process, || {
            if stream.is_none() {
                stream = tcp.accept().ok().map(|(stream, _)| {
                    stream.set_nonblocking(true).unwrap();
                    stream
                });
            }
            let mut bytes = vec![0; 9000];
            let received = stream.as_mut().map_or(Ok(0), |stream| stream.read(&mut bytes));
            datagram(received, bytes)
        });
        let counted = message.await;
        let (length, message) = counted.split_once(' ').unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), message.len());
        check_message(message);
    });
}

/// The lines that the proxy counts as dropped.
async fn dropped(admin: SocketAddr) -> f64 {
    let metrics = Client::connect(admin).await.get("/metrics").await;
    let name = "signalbox_access_log_dropped_total ";
    metrics.text().lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

/// Sends requests until at least `count` lines are counted as dropped.
async fn lose(process: &Process, count: f64) {
    let mut client = Client::connect(process.address).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while dropped(process.admin()).await < count {
        assert!(std::time::Instant::now() < deadline, "no lost line is counted");
        assert_eq!(client.get("/ok").await.status, 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_collector_that_is_away_harms_no_request_and_gets_lines_once_it_is_back() {
    block_on(async {
        let address = nobody();
        let to = format!("syslog:tcp://{address}");
        let process = Process::start(ROUTES, &["--access-log", &to]).await;
        lose(&process, 10.0).await;
        let tcp = TcpListener::bind(address).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let mut client = Client::connect(process.address).await;
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let mut stream = loop {
            assert!(std::time::Instant::now() < deadline, "it is not connected to again");
            assert_eq!(client.get("/ok").await.status, 200);
            if let Ok((stream, _)) = tcp.accept() {
                break stream;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut begin = [0; 11];
        tokio::task::block_in_place(|| stream.read_exact(&mut begin)).unwrap();
        assert!(std::str::from_utf8(&begin).unwrap().contains(" <134>1 "), "{begin:?}");
    });
}

#[test]
fn a_collector_that_never_reads_slows_no_request_and_takes_no_memory() {
    block_on(async {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = format!("syslog:tcp://{}", tcp.local_addr().unwrap());
        let listener = ", limits: {header_size: 128KiB}";
        let mut process = Process::listening_with(listener, ROUTES, &["--access-log", &to]).await;
        // Lines of 60 KiB fill the sockets' buffers, the queue and all that may be kept, several times over.
        let agent = "x".repeat(60 << 10);
        let mut client = Client::connect(process.address).await;
        client.send(get("/ok", &[("user-agent", &agent)])).await;
        let before = process.peak_memory();
        for _ in 0..2000 {
            assert_eq!(client.send(get("/ok", &[("user-agent", &agent)])).await.status, 200);
        }
        let grown = process.peak_memory() - before;
        assert!(grown < 64 << 20, "{grown} bytes");
        // The writer has given up meanwhile, or does soon.
        lose(&process, 1.0).await;
        process.terminate();
        assert!(process.ended().await.success());
        drop(tcp);
    });
}

#[test]
fn a_standard_output_that_is_full_or_closed_harms_no_request() {
    block_on(async {
        for output in ["exec \"$0\" \"$@\" >/dev/full", "exec \"$0\" \"$@\" > >(exit 0)"] {
            let mut command = Command::new("bash");
            command.args(["-c", output, PROGRAM]);
            let mut process = Process::start_by(command, ROUTES, &["--access-log", "stdout"]).await;
            lose(&process, 5.0).await;
            // Log rotation reaches a log that cannot be rotated.
            let id = process.id().to_string();
            assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
            let before = dropped(process.admin()).await;
            lose(&process, before + 5.0).await;
            process.terminate();
            assert!(process.ended().await.success());
        }
    });
}
