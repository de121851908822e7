//! WebSockets and other protocol switches.

use std::sync::mpsc::sync_channel;

use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use signalbox_proxy::telemetry::access_log;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::harness::{
    Backend, Client, Harness, Wire, block_on, forward_over, forward_to, full, raw, read_head, until,
};
use crate::telling::lines;

/// A WebSocket server that echoes messages.
fn echo() -> Backend {
    Backend::raw(|stream| async move {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    })
}

/// Exchanges messages for longer than a request may take, and closes.
async fn chat(mut socket: WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>) {
    let began = std::time::Instant::now();
    for size in [0, 5, 70_000, 1_000_000] {
        let said = Message::binary(vec![b'x'; size]);
        socket.send(said.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), said);
    }
    until("the request's time would be over", || began.elapsed().as_millis() > 3300).await;
    socket.send(Message::text("late")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("late"));
    if socket.close(None).await.is_err() {
        // The other side has answered the close before this side saw that it was sent.
        return;
    }
    while let Some(message) = socket.next().await {
        assert!(message.is_ok_and(|message| message.is_close()));
    }
}

#[test]
fn web_sockets_pass() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let backend = echo();
        // The request's timeout does not apply to the bytes that follow it.
        let document = forward_to(backend.address).replace("{upstreams", "{timeout: 3s, upstreams");
        let harness = Harness::with_log(&document, Some(sender));
        let stream = TcpStream::connect(harness.address()).await.unwrap();
        let request = "ws://test.example/chat".into_client_request().unwrap();
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(response.status(), 101);
        chat(socket).await;
        // It is logged once it is over.
        let line = &lines(&receiver, 1).await[0];
        assert_eq!(
            (&line["status"], &line["path"], &line["flags"]),
            (&101.into(), &"/chat".into(), &"".into())
        );
        assert!(
            line["bytes_in"].as_u64().unwrap() > 1_000_000 && line["bytes_out"].as_u64().unwrap() > 1_000_000
        );
        assert!(line["duration_ms"].as_f64().unwrap() > 3300.0);
    });
}

pub(crate) const ASK: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
pub(crate) const AGREE: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

#[test]
fn each_side_may_end_first_and_still_hear() {
    block_on(async {
        // Bytes behind the response head are not lost; the client's bytes before its end arrive; then they are
        // answered.
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(&[AGREE, b"welcome"].concat()).await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            stream.write_all(&heard).await.unwrap();
        });
        let harness = Harness::start(&forward_to(backend.address));
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        // An eager client sends bytes together with the head.
        stream.write_all(&[ASK.as_bytes(), b"eager "].concat()).await.unwrap();
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket\r\n"), "{head}");
        stream.write_all(b"words").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "welcomeeager words");
    });
}

#[test]
fn a_tunnel_where_nothing_moves_ends() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(AGREE).await.unwrap();
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard).await;
        });
        let document = forward_to(backend.address).replace("{upstreams", "{idle_timeout: 3s, upstreams");
        let harness = Harness::start(&document);
        let answer = raw(harness.address(), ASK.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    });
}

#[test]
fn only_what_both_want_is_switched_to() {
    block_on(async {
        let plain = ASK.replace("connection: upgrade", "connection: upgrade, close");
        let h2c = plain.replace("upgrade: websocket", "upgrade: h2c");
        let unasked = plain.replace("upgrade: websocket\r\n", "");
        let other = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
        let both = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nupgrade: h2c\r\n\r\n";
        let refuses: &[u8] = b"HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno";
        for (ask, answer, status, asked) in [
            (&plain, refuses, 403, true),
            (&plain, &other[..], 502, true),
            (&plain, &both[..], 502, true),
            (&h2c, AGREE, 502, false),
            (&unasked, AGREE, 502, false),
            (&h2c, refuses, 403, false),
        ] {
            let (sender, receiver) = sync_channel(1);
            let backend = Backend::raw(move |mut stream| {
                let (sender, answer) = (sender.clone(), answer.to_vec());
                async move {
                    let _ = sender.send(read_head(&mut stream).await.unwrap());
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.read_u8().await;
                }
            });
            let harness = Harness::start(&forward_to(backend.address));
            let told = raw(harness.address(), ask.as_bytes()).await;
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{ask} {told}");
            let head = receiver.recv().unwrap();
            assert_eq!(head.contains("upgrade: websocket\r\n"), asked, "{head}");
            assert_eq!(head.contains("connection: upgrade\r\n"), asked, "{head}");
        }
        // A target of HTTP/2 has to announce that it supports other protocols.
        let backend = Backend::speaking(Wire::Http2, |_| async { Response::new(full("")) });
        let harness = Harness::start(&forward_over(Wire::Http2, backend.address));
        let stream = TcpStream::connect(harness.address()).await.unwrap();
        let refused = tokio_tungstenite::client_async("ws://test.example/", stream).await.unwrap_err();
        assert!(matches!(refused, Error::Http(response) if response.status() == 501));
    });
}

#[test]
fn a_target_that_switches_unasked_is_at_fault() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            let _ = stream.write_all(AGREE).await;
            let _ = stream.read_u8().await;
        });
        let passive = "{name: u, health_check: {passive: {consecutive_failures: 5}}, targets";
        let harness = Harness::start(&forward_to(backend.address).replace("{name: u, targets", passive));
        let failures = || {
            harness.proxy.counted(|_, compiled, _, _| {
                let targets = compiled.active.upstreams.iter().map(|upstream| upstream.members.view());
                targets.flat_map(|view| view.targets.to_vec()).map(|target| target.failures()).sum::<u32>()
            })
        };
        assert_eq!(failures(), 0);
        let plain =
            ASK.replace("connection: upgrade", "connection: close").replace("upgrade: websocket\r\n", "");
        let told = raw(harness.address(), plain.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 502 "), "{told}");
        until("the failure counts against the target", || failures() == 1).await;
    });
}

/// Opens a stream by CONNECT over HTTP/2; `protocol` makes it an extended one.
async fn connect_http2(
    harness: &Harness,
    uri: &str,
    protocol: Option<&'static str>,
) -> Result<TokioIo<Upgraded>, http::response::Parts> {
    let Client::Http2(mut sender) = Client::connect_http2(harness.address()).await else { unreachable!() };
    let mut request = Request::connect(uri).body(full("")).unwrap();
    if let Some(protocol) = protocol {
        request.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("13"));
        request.extensions_mut().insert(Protocol::from_static(protocol));
    }
    let mut response = sender.send_request(request).await.unwrap();
    if response.status() != 200 {
        return Err(response.into_parts().0);
    }
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    Ok(TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap()))
}

#[test]
fn web_sockets_of_http2_go_to_targets_of_http1() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let document = forward_to(echo().address).replace("{upstreams", "{timeout: 3s, upstreams");
        // A route for GET matches, because the handshake is a GET.
        let document = document.replace("match: {", "match: {methods: [GET], ");
        let harness = Harness::with_log(&document, Some(sender));
        let stream = connect_http2(&harness, "http://test.example/chat", Some("websocket")).await.unwrap();
        let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        chat(socket).await;
        let line = &lines(&receiver, 1).await[0];
        assert_eq!(
            (&line["method"], &line["status"], &line["flags"]),
            (&"CONNECT".into(), &200.into(), &"".into())
        );
        assert!(line["bytes_in"].as_u64().unwrap() > 1_000_000);
    });
}

/// The same over HTTP/2 (RFC 8441), only below `/chat`.
fn echo_http2() -> Backend {
    Backend::raw(|stream| async move {
        let service = hyper::service::service_fn(|mut request: Request<hyper::body::Incoming>| async move {
            let asked = request.extensions().get::<Protocol>().is_some_and(|it| it.as_str() == "websocket");
            assert!(asked && request.method() == "CONNECT" && request.uri().scheme_str() == Some("http"));
            assert_eq!(request.headers().get("sec-websocket-version").unwrap(), "13");
            for absent in ["sec-websocket-key", "connection", "upgrade"] {
                assert!(!request.headers().contains_key(absent), "{absent}");
            }
            if request.uri().path() != "/chat" {
                return Ok(Response::builder().status(403).body(full("not here")).unwrap());
            }
            tokio::spawn(async move {
                let stream = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        socket.send(message).await.unwrap();
                    }
                }
            });
            Ok::<_, std::convert::Infallible>(Response::new(full("")))
        });
        let mut builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let _ = builder.enable_connect_protocol().serve_connection(TokioIo::new(stream), service).await;
    })
}

#[test]
fn web_sockets_go_to_targets_of_http2() {
    block_on(async {
        let plain =
            forward_over(Wire::Http2, echo_http2().address).replace("{upstreams", "{timeout: 3s, upstreams");
        let retried = plain.replace("{timeout", "{retry: {attempts: 1}, timeout");
        let speak = async |document: String| {
            let (sender, receiver) = access_log::channel(100);
            let harness = Harness::with_log(&document, Some(sender));
            // Both use one connection to the target, the second when the target's settings are known.
            let stream = TcpStream::connect(harness.address()).await.unwrap();
            let asked = tokio_tungstenite::client_async("ws://test.example/chat", stream).await;
            let (socket, response) = asked.unwrap();
            assert_eq!(response.status(), 101);
            chat(socket).await;
            let stream =
                connect_http2(&harness, "http://test.example/chat", Some("websocket")).await.unwrap();
            chat(WebSocketStream::from_raw_socket(stream, Role::Client, None).await).await;
            // A target that declines answers by itself.
            let stream = TcpStream::connect(harness.address()).await.unwrap();
            let refused = tokio_tungstenite::client_async("ws://test.example/no", stream).await.unwrap_err();
            assert!(matches!(refused, Error::Http(answer) if answer.status() == 403));
            let refused = connect_http2(&harness, "http://test.example/no", Some("websocket")).await;
            assert_eq!(refused.unwrap_err().status, 403);
            let told = lines(&receiver, 4).await;
            for (line, status) in told.iter().zip([101, 200, 403, 403]) {
                assert_eq!((&line["status"], &line["flags"]), (&status.into(), &"".into()), "{line}");
                assert!(status == 403 || line["bytes_in"].as_u64().unwrap() > 1_000_000, "{line}");
            }
        };
        tokio::join!(speak(plain), speak(retried));
    });
}

#[test]
fn a_target_that_has_not_read_the_proxys_key_does_not_switch() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            let wrong = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            let answer = [&AGREE[..AGREE.len() - 2], wrong.as_bytes()].concat();
            stream.write_all(&answer).await.unwrap();
            let _ = stream.read_u8().await;
        });
        let harness = Harness::start(&forward_to(backend.address));
        let refused = connect_http2(&harness, "http://test.example/", Some("websocket")).await.unwrap_err();
        assert_eq!(refused.status, 502);
    });
}

#[test]
fn only_what_is_through_is_said_to_be_through() {
    block_on(async {
        // One target does not know upgrades, and one announces a length for the bytes that follow.
        let ignores: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        let says_length = [&AGREE[..AGREE.len() - 2], b"content-length: 0\r\n"].concat();
        for (answer, status) in [(ignores.to_vec(), 502), (says_length, 200)] {
            let backend = Backend::raw(move |mut stream| {
                let mut answer = answer.clone();
                async move {
                    let head = read_head(&mut stream).await.unwrap();
                    if answer.starts_with(b"HTTP/1.1 101") {
                        let (_, key) = head.split_once("sec-websocket-key: ").unwrap();
                        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(
                            key.lines().next().unwrap().as_bytes(),
                        );
                        answer.extend_from_slice(
                            format!("sec-websocket-accept: {accept}\r\n\r\nhi").as_bytes(),
                        );
                    }
                    stream.write_all(&answer).await.unwrap();
                    let _ = stream.read_u8().await;
                }
            });
            let harness = Harness::start(&forward_to(backend.address));
            match connect_http2(&harness, "http://test.example/", Some("websocket")).await {
                Ok(mut stream) => {
                    let mut heard = [0; 2];
                    stream.read_exact(&mut heard).await.unwrap();
                    assert_eq!((status, &heard), (200, b"hi"));
                }
                Err(refused) => assert_eq!(refused.status, status),
            }
        }
        // The response of an open breaker is no agreement to switch either.
        let document = allowing("connect", crate::harness::nobody()).replace(
            "{name: u, ",
            "{name: u, circuit_breaker: {error_rate: {min_requests: 1, fallback: {body: no}}}, ",
        );
        let harness = Harness::start(&document);
        assert_eq!(connect_http2(&harness, "a:443", None).await.unwrap_err().status, 503);
        let opened = connect_http2(&harness, "a:443", None).await.unwrap_err();
        assert_eq!(opened.status, 502, "the breaker is open");
    });
}

#[test]
fn a_client_that_breaks_its_stream_off_is_noticed_though_nobody_speaks() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let ended = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let seen = std::sync::Arc::clone(&ended);
        let backend = Backend::raw(move |mut stream| {
            let seen = std::sync::Arc::clone(&seen);
            async move {
                // The target reads to the end, and sends nothing.
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).await.unwrap();
                seen.store(true, std::sync::atomic::Ordering::Relaxed);
                std::future::pending::<()>().await;
            }
        });
        let harness = Harness::with_log(&allowing("connect", backend.address), Some(sender));
        let mut stream = connect_http2(&harness, "a:443", None).await.unwrap();
        stream.write_all(b"said").await.unwrap();
        stream.shutdown().await.unwrap();
        until("the target has heard the end", || ended.load(std::sync::atomic::Ordering::Relaxed)).await;
        drop(stream);
        let line = &lines(&receiver, 1).await[0];
        assert_eq!((&line["flags"], &line["bytes_in"]), (&"DC".into(), &4.into()));
    });
}

/// A target that echoes everything until the end.
fn parrot() -> Backend {
    Backend::raw(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
}

fn allowing(upgrades: &str, backend: std::net::SocketAddr) -> String {
    forward_to(backend).replace("{upstreams", &format!("{{upgrades: [{upgrades}], upstreams"))
}

#[test]
fn a_connect_leads_to_a_target_where_the_route_says_so() {
    block_on(async {
        let backend = parrot();
        let (sender, receiver) = access_log::channel(100);
        let harness = Harness::with_log(&allowing("connect", backend.address), Some(sender));
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        // It accepts any authority; bytes behind the head are not lost.
        stream
            .write_all(b"CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\neager ")
            .await
            .unwrap();
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        for absent in ["content-length", "transfer-encoding", "connection"] {
            assert!(!head.contains(absent), "{head}");
        }
        stream.write_all(b"words").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "eager words");

        let mut stream = connect_http2(&harness, "db.example:5432", None).await.unwrap();
        stream.write_all(&vec![b'x'; 300_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len(), 300_000);
        let mut lines = lines(&receiver, 2).await;
        lines.sort_by_key(|line| line["bytes_in"].as_u64());
        for (line, bytes) in lines.iter().zip([11, 300_000]) {
            assert_eq!(
                (&line["method"], &line["host"], &line["status"]),
                (&"CONNECT".into(), &"db.example:5432".into(), &200.into())
            );
            assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&bytes.into(), &bytes.into()));
        }
    });
}

#[test]
fn a_connect_that_is_refused_leaves_nothing_to_be_read() {
    block_on(async {
        let backend = Backend::echo();
        let nobody = crate::harness::nobody();
        for (document, status) in [
            (forward_to(backend.address), 501),
            (allowing("websocket", backend.address), 501),
            ("routes: [{name: r, respond: {body: ok}}]".to_owned(), 501),
            ("routes: [{name: r, match: {hosts: [other]}, respond: {body: ok}}]".to_owned(), 404),
            (allowing("connect", nobody), 503),
        ] {
            let harness = Harness::start(&document);
            let head =
                b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\nGET /behind HTTP/1.1\r\nhost: a\r\n\r\n";
            let answer = raw(harness.address(), head).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{document} {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
            let refused = connect_http2(&harness, "a:443", None).await.unwrap_err();
            assert_eq!(refused.status, status, "{document}");
        }
        for head in ["content-length: 3", "transfer-encoding: chunked"] {
            let harness = Harness::start(&allowing("connect", backend.address));
            let head = format!("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n{head}\r\n\r\nabc");
            assert!(raw(harness.address(), head.as_bytes()).await.starts_with("HTTP/1.1 400 "), "{head}");
        }
        assert_eq!(backend.connections(), 0);
    });
}

#[test]
fn other_protocols_pass_where_the_route_names_them() {
    block_on(async {
        let agree = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: Speech/1\r\n\r\n";
        let backend = Backend::raw(move |mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            if head.contains("upgrade: speech/1\r\n") {
                stream.write_all(agree).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            } else {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
            }
        });
        // The first protocol of the client's list that is allowed is chosen.
        let ask = ASK.replace("upgrade: websocket", "upgrade: h2c, websocket, SPEECH/1");
        let harness = Harness::start(&allowing("speech/1", backend.address));
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        stream.write_all(ask.as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 101 "));
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
        let mut stream = connect_http2(&harness, "http://test.example/", Some("speech/1")).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");

        for upgrades in ["", "connect"] {
            let harness = Harness::start(&allowing(upgrades, backend.address));
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            stream.write_all(ask.as_bytes()).await.unwrap();
            assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 200 "), "{upgrades}");
            let refused =
                connect_http2(&harness, "http://test.example/", Some("speech/1")).await.unwrap_err();
            assert_eq!(refused.status, 501);
        }
    });
}
