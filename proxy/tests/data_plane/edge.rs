//! Trusted proxies, and the normalization of paths.

use std::time::{Duration, Instant};

use http::Request;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Answer, Backend, Client, Harness, block_on, forward_to, full, raw, until};
use crate::wire::Recorder;

/// `document` with a listener `http` that has the further `fields`.
fn with_listener(fields: &str, document: &str) -> String {
    format!("listeners: [{{name: http, address: '127.0.0.1:8080', {fields}}}]\n{document}")
}

/// The values of a header in the request that the backend got.
fn told(answer: &Answer, name: &str) -> Vec<String> {
    let told = answer.json();
    let headers = told["headers"].as_array().unwrap().iter();
    let values =
        headers.filter(|header| header[0] == name).map(|header| header[1].as_str().unwrap().to_owned());
    values.collect()
}

const SAID: [(&str, &str); 5] = [
    ("x-forwarded-for", "198.51.100.1, 203.0.113.7, 127.0.0.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "shop.example.com"),
    ("x-request-id", "from-the-edge-1"),
    ("forwarded", "for=198.51.100.1"),
];

fn saying(said: &[(&str, &str)]) -> Request<crate::harness::AnyBody> {
    let mut request = Request::get("/").header("host", "a.example");
    for (name, value) in said {
        request = request.header(*name, *value);
    }
    request.body(full("")).unwrap()
}

#[test]
fn who_the_client_is_is_believed_of_trusted_peers_only() {
    block_on(async {
        let backend = Backend::echo();
        for (trusted, expected, client, id) in [
            (
                "trusted_proxies: [127.0.0.0/8]",
                [
                    &["198.51.100.1, 203.0.113.7, 127.0.0.9, 127.0.0.1"][..],
                    &["https"],
                    &["shop.example.com"],
                    &["from-the-edge-1"],
                    &["for=198.51.100.1"],
                ],
                "203.0.113.7",
                true,
            ),
            (
                "trusted_proxies: [10.0.0.0/8, '::1']",
                [&["127.0.0.1"], &["http"], &["a.example"], &[], &[]],
                "127.0.0.1",
                false,
            ),
        ] {
            let (sender, receiver) = signalbox_proxy::telemetry::access_log::channel(100);
            let harness =
                Harness::with_log(&with_listener(trusted, &forward_to(backend.address)), Some(sender));
            for http2 in [false, true] {
                let mut connection = match http2 {
                    false => Client::connect(harness.address()).await,
                    true => Client::connect_http2(harness.address()).await,
                };
                // Each request is independent, even on a reused connection.
                let plain = connection.send(saying(&[])).await;
                assert_eq!(told(&plain, "x-forwarded-for"), ["127.0.0.1"]);
                assert_eq!(told(&plain, "x-request-id")[0].len(), 36);
                let answer = connection.send(saying(&SAID)).await;
                for ((name, said), expected) in SAID.iter().zip(expected) {
                    let told = told(&answer, name);
                    match (*name, id) {
                        ("x-request-id", false) => assert!(told.len() == 1 && told[0] != *said),
                        _ => assert_eq!(told, expected, "{name} {trusted} http2: {http2}"),
                    }
                }
                let mut log = String::new();
                until("both are logged", || {
                    receiver.try_iter().for_each(|bytes| log.push_str(std::str::from_utf8(&bytes).unwrap()));
                    log.lines().count() == 2
                })
                .await;
                let line: Value = serde_json::from_str(log.lines().nth(1).unwrap()).unwrap();
                assert_eq!((&line["client"], line["request_id"] == "from-the-edge-1"), (&client.into(), id));
            }
        }
    });
}

#[test]
fn a_limit_by_address_counts_the_client_behind_a_trusted_proxy() {
    block_on(async {
        let backend = Backend::text("ok");
        let document = forward_to(backend.address).replace("forward:", "plugins: [limit], forward:")
            + "plugins: [{name: limit, type: rate-limit, config: {limit: 1, window: 1h, by: ip}}]\n";
        let harness = Harness::start(&with_listener("trusted_proxies: [127.0.0.1]", &document));
        let mut client = Client::connect(harness.address()).await;
        for (address, expected) in [("203.0.113.1", 200), ("203.0.113.2", 200), ("203.0.113.1", 429)] {
            // Elements that the client itself put in front change nothing.
            for (chain, expected) in [(address.to_owned(), expected), (format!("192.0.2.9, {address}"), 429)]
            {
                assert_eq!(
                    client.send(saying(&[("x-forwarded-for", &chain)])).await.status,
                    expected,
                    "{chain}"
                );
            }
        }
    });
}

#[test]
fn a_load_balancer_tells_who_connected() {
    let version_2 = |command: u8, family: u8, addresses: &[u8]| {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, addresses].concat()
    };
    let v1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 80\r\n".to_vec();
    let v2 = version_2(0x21, 0x11, &[203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x67, 0, 80, 4, 0, 1, 9]);
    let probe = version_2(0x20, 0, &[]);
    let nonsense = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711\r\n".to_vec();
    let theirs = Some("203.0.113.7");
    let own = Some("127.0.0.1");
    block_on(async {
        let backend = Backend::echo();
        for (fields, begins, expected) in [
            ("proxy_protocol: require", &v1, theirs),
            ("proxy_protocol: require", &v2, theirs),
            ("proxy_protocol: require", &probe, own),
            ("proxy_protocol: require", &nonsense, None),
            ("proxy_protocol: require", &Vec::new(), None),
            ("proxy_protocol: require, trusted_proxies: [127.0.0.1]", &v1, theirs),
            ("proxy_protocol: require, trusted_proxies: [10.0.0.1]", &v1, None),
            ("proxy_protocol: accept, trusted_proxies: [127.0.0.1]", &v1, theirs),
            ("proxy_protocol: accept, trusted_proxies: [127.0.0.1]", &v2, theirs),
            ("proxy_protocol: accept, trusted_proxies: [127.0.0.1]", &Vec::new(), own),
            ("proxy_protocol: accept, trusted_proxies: [10.0.0.1]", &Vec::new(), own),
            // From a peer that is not to send the header, it is a bad request.
            ("proxy_protocol: accept, trusted_proxies: [10.0.0.1]", &v1, None),
            ("proxy_protocol: off", &v1, None),
        ] {
            let harness = Harness::start(&with_listener(fields, &forward_to(backend.address)));
            let get = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            let whole = [&begins[..], &get[..]].concat();
            // The header is sent in one piece, and byte by byte.
            for pieces in [whole.len(), 1] {
                let mut stream = TcpStream::connect(harness.address()).await.unwrap();
                stream.set_nodelay(true).unwrap();
                for piece in whole.chunks(pieces) {
                    let _ = stream.write_all(piece).await;
                    if pieces == 1 {
                        tokio::task::yield_now().await;
                    }
                }
                let mut answer = Vec::new();
                // A connection that is closed with unread bytes is reset.
                let _ = stream.read_to_end(&mut answer).await;
                let answer = String::from_utf8(answer).unwrap();
                assert_eq!(
                    answer.starts_with("HTTP/1.1 200"),
                    expected.is_some(),
                    "{fields} {begins:?} {answer}"
                );
                if let Some(expected) = expected {
                    assert!(answer.contains(&format!(r#"["x-forwarded-for","{expected}"]"#)), "{answer}");
                }
            }
        }
    });
}

#[test]
fn a_load_balancer_that_tells_nothing_is_closed_in_time() {
    block_on(async {
        let backend = Backend::echo();
        let fields = "proxy_protocol: require, limits: {header_timeout: 100ms}";
        let harness = Harness::start(&with_listener(fields, &forward_to(backend.address)));
        for begun in [&b""[..], b"PROXY TCP4", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"] {
            let began = Instant::now();
            assert_eq!(raw(harness.address(), begun).await, "");
            assert!((100..5000).contains(&began.elapsed().as_millis()));
        }
        until("all are closed", || harness.proxy.active_connections() == 0).await;
    });
}

#[test]
fn whatever_other_proxies_say_of_a_client_is_believed_of_those_who_are_trusted() {
    block_on(async {
        let backend = Backend::echo();
        for (fields, kept) in
            [("trusted_proxies: ['127.0.0.0/8']", true), ("trusted_proxies: ['192.0.2.1']", false)]
        {
            let harness = Harness::start(&with_listener(fields, &forward_to(backend.address)));
            let mut request = Request::get("/");
            let names =
                ["x-forwarded-port", "x-forwarded-prefix", "x-forwarded-server", "x-real-ip", "x_real_ip"];
            for name in names {
                request = request.header(name, "said");
            }
            let answer = Client::connect(harness.address()).await.send(request.body(full("")).unwrap()).await;
            for name in &names[..4] {
                assert_eq!(answer.text().contains(name), kept, "{name}: {}", answer.text());
            }
            assert!(!answer.text().contains("x_real_ip"), "{}", answer.text());
        }
    });
}

#[test]
fn who_has_not_said_where_it_comes_from_does_not_hold_up_a_drain() {
    block_on(async {
        let harness = Harness::start(&with_listener("proxy_protocol: require", "routes: []"));
        let _silent = tokio::net::TcpStream::connect(harness.address()).await.unwrap();
        until("it is there", || harness.proxy.active_connections() == 1).await;
        let drained = tokio::task::spawn_blocking({
            let proxy = std::sync::Arc::clone(&harness.proxy);
            let handle = tokio::runtime::Handle::current();
            move || handle.block_on(proxy.drain(Duration::ZERO, Duration::from_secs(60)))
        });
        assert!(tokio::time::timeout(Duration::from_secs(8), drained).await.expect("soon").unwrap());
    });
}

#[test]
fn a_path_is_brought_into_one_form_before_it_is_matched_and_sent_on() {
    block_on(async {
        let backend = Backend::echo();
        let document = format!(
            "
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes:
- {{name: all, match: {{paths: [{{prefix: /}}]}}, forward: {{upstreams: [{{name: u}}]}}}}
- {{name: admin, match: {{paths: [{{prefix: /admin}}]}}, respond: {{status: 403}}}}
",
            backend.address
        );
        let default = Harness::start(&document);
        let keep = Harness::start(&with_listener("escaped_slashes: keep", &document));
        let off = Harness::start(&with_listener("normalize_path: false", &document));
        for (harness, target, expected) in [
            (&default, "/a/b?x=%2e/../y", Ok("/a/b?x=%2e/../y")),
            (&default, "//a/./%62/../c%2d?q", Ok("/a/c-?q")),
            (&default, "/x/../admin", Err(403)),
            (&default, "//admin", Err(403)),
            (&default, "/%61dmin/x", Err(403)),
            (&default, "/admin/../x", Ok("/x")),
            (&default, "/..", Err(400)),
            (&default, "/a/%2e%2e/%2E%2E/etc", Err(400)),
            (&default, "/a%2fb", Err(400)),
            (&default, "/a\\b", Err(400)),
            (&default, "/a%00", Err(400)),
            (&default, "/a%", Err(400)),
            (&default, "http://b/x/../y?z", Ok("/y?z")),
            (&keep, "/a%2fb/..%5c", Ok("/a%2Fb/..%5C")),
            (&keep, "/a/../%61dmin", Err(403)),
            (&off, "//a/../%62", Ok("//a/../%62")),
            (&off, "/x/../admin", Ok("/x/../admin")),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n");
            let answer = raw(harness.address(), request.as_bytes()).await;
            let status: u16 = answer[9..12].parse().unwrap();
            match expected {
                Err(expected) => assert_eq!(status, expected, "{target}"),
                Ok(expected) => {
                    assert!(answer.contains(&format!(r#""target":"{expected}""#)), "{target} {answer}");
                }
            }
        }
        let mut client = Client::connect_http2(default.address()).await;
        assert_eq!(client.get("/x/..//admin").await.status, 403);
        assert_eq!(client.get("/./y").await.json()["target"], "/y");
        assert_eq!(client.get("/../y").await.status, 400);
    });
}

#[test]
fn a_body_that_does_not_go_on_is_answered_408() {
    block_on(async {
        let backend = Backend::echo();
        let document = forward_to(backend.address);
        let harness = Harness::start(&with_listener("limits: {body_timeout: 2s}", &document));
        // A client that sends slowly, but steadily, is not cut off.
        let slow = async {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            let head = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 8\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut interval = tokio::time::interval(Duration::from_millis(300));
            for byte in *b"slowly.." {
                interval.tick().await;
                stream.write_all(&[byte]).await.unwrap();
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("slowly.."), "{answer}");
        };
        let stalled = async |begun: &str| {
            let began = Instant::now();
            let answer =
                raw(harness.address(), format!("POST / HTTP/1.1\r\nhost: a\r\n{begun}").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
            assert!((2000..7000).contains(&began.elapsed().as_millis()));
        };
        let stalled_http2 = async {
            let mut client = Client::connect_http2(harness.address()).await;
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            sender.send(Ok(http_body::Frame::data("half".into()))).await.unwrap();
            let body = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
            let request = Request::post("/").body(http_body_util::BodyExt::boxed(body)).unwrap();
            assert_eq!(client.start(request).await.unwrap().status(), 408);
            assert_eq!(client.get("/").await.status, 200);
            drop(sender);
        };
        tokio::join!(
            slow,
            stalled("content-length: 8\r\n\r\nhalf"),
            stalled("content-length: 8\r\n\r\n"),
            stalled("transfer-encoding: chunked\r\n\r\n8\r\nhalf"),
            stalled_http2
        );
    });
}

#[test]
fn nobody_is_routed_by_what_only_the_proxy_may_say() {
    block_on(async {
        let backend = Backend::echo();
        let document = format!(
            "{}
routes:
- {{name: admin, match: {{headers: [{{name: x-client-cert-subject, exact: CN=admin}}]}}, respond: {{body: secret}}}}
- {{name: secure, match: {{headers: [{{name: x-forwarded-proto, exact: https}}]}}, respond: {{body: secret}}}}
- {{name: known, match: {{headers: [{{name: x-consumer-username, present: true}}]}}, respond: {{body: secret}}}}
- {{name: rest, forward: {{upstreams: [{{name: u}}]}}}}",
            forward_to(backend.address).lines().take(2).collect::<Vec<_>>().join("\n")
        );
        let harness = Harness::start(&document);
        for (name, value) in [
            ("x-client-cert-subject", "CN=admin"),
            ("x-forwarded-proto", "https"),
            ("x-consumer-username", "admin"),
            ("x_client-cert_subject", "CN=admin"),
            ("x_consumer_username", "admin"),
            ("x.consumer.id", "admin"),
            ("x-consumer_custom.id", "admin"),
            ("x_forwarded_for", "10.0.0.1"),
            // A target that takes `_` for `-` would see another end of the body.
            ("transfer_encoding", "chunked"),
            ("content_length", "4242"),
        ] {
            let mut client = Client::connect(harness.address()).await;
            let request = Request::get("/").header(name, value).body(full("")).unwrap();
            let answer = client.send(request).await;
            assert_ne!(answer.text(), "secret", "{name}");
            assert!(!answer.text().contains(value), "{name} reaches the target: {}", answer.text());
        }
    });
}

#[test]
fn trailers_say_nothing_of_a_client() {
    block_on(async {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let backend = Backend::raw(move |mut stream| {
            let sender = sender.clone();
            async move {
                let mut got = String::new();
                while !got.ends_with("x-sum: 1\r\n\r\n") {
                    let mut part = [0; 4096];
                    let read = stream.read(&mut part).await.unwrap();
                    got.push_str(std::str::from_utf8(&part[..read]).unwrap());
                }
                let _ = sender.send(got);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        let head = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        let trailers = "x-consumer-username: admin\r\nx-client-cert-subject: CN=a\r\nx-forwarded-for: 10.0.0.1\r\nx-sum: 1\r\n";
        raw(harness.address(), format!("{head}1\r\nx\r\n0\r\n{trailers}\r\n").as_bytes()).await;
        let got = receiver.recv().unwrap();
        assert!(!got.contains("admin") && !got.contains("CN=a") && !got.contains("10.0.0.1"), "{got}");
    });
}

#[test]
fn options_of_a_path_stays_one() {
    block_on(async {
        let recorder = Recorder::start();
        let harness = Harness::start(&forward_to(recorder.backend.address));
        let mut client = Client::connect_http2(harness.address()).await;
        client.send(Request::options("/").body(full("")).unwrap()).await;
        assert_eq!(recorder.take()[0].line, "OPTIONS /");
        for (target, expected) in [("http://a", "*"), ("/", "/")] {
            let request = format!("OPTIONS {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            raw(harness.address(), request.as_bytes()).await;
            assert_eq!(recorder.take()[0].line, format!("OPTIONS {expected}"), "{target}");
        }
    });
}

#[test]
fn the_host_that_a_target_names_counts_for_all() {
    block_on(async {
        let document = "routes:
- {name: a, match: {hosts: [a]}, respond: {body: a}}
- {name: b, match: {hosts: [b]}, respond: {body: b}}
- {name: h, priority: 1, match: {headers: [{name: host, exact: a}]}, respond: {body: by header a}}
- {name: i, priority: 1, match: {headers: [{name: host, exact: c}]}, respond: {body: by header c}}";
        let harness = Harness::start(document);
        for (target, host, expected) in [
            ("http://b/", "a", "b"),
            ("/", "a", "by header a"),
            ("http://a/", "b", "by header a"),
            ("/", "b", "b"),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            let answer = raw(harness.address(), request.as_bytes()).await;
            assert_eq!(answer.split("\r\n\r\n").nth(1), Some(expected), "{target} {host}");
        }
        // HTTP/2 has no Host header, but the same rules apply.
        let mut client = Client::connect_http2(harness.address()).await;
        let request = Request::get("/").header("host", "c").body(full("")).unwrap();
        assert_eq!(client.send(request).await.text(), "by header c");

        let recorder = Recorder::start();
        let harness = Harness::start(&forward_to(recorder.backend.address));
        raw(harness.address(), b"GET http://b/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let seen = &recorder.take()[0];
        assert!(
            seen.head.contains("host: b\r\n") && seen.head.contains("x-forwarded-host: b\r\n"),
            "{}",
            seen.head
        );
    });
}
