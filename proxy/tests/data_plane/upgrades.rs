//! WebSockets, and what else a client may want to switch to.

use std::sync::mpsc::sync_channel;

use futures_util::{SinkExt, StreamExt};
use http::Response;
use signalbox_proxy::telemetry::access_log;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::harness::{
    Backend, Harness, Wire, block_on, forward_over, forward_to, full, raw, read_head, until,
};
use crate::telling::lines;

/// A server of WebSockets that answers with what it is told.
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

#[test]
fn web_sockets_pass() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let backend = echo();
        // The time for the request does not count for what follows it.
        let document = forward_to(backend.address).replace("{upstreams", "{timeout: 500ms, upstreams");
        let harness = Harness::with_log(&document, Some(sender));
        let stream = TcpStream::connect(harness.address()).await.unwrap();
        let request = "ws://test.example/chat".into_client_request().unwrap();
        let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(response.status(), 101);
        let began = std::time::Instant::now();
        for size in [0, 5, 70_000, 1_000_000] {
            let said = Message::binary(vec![b'x'; size]);
            socket.send(said.clone()).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), said);
        }
        until("the request's time would be over", || began.elapsed().as_millis() > 700).await;
        socket.send(Message::text("late")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("late"));
        socket.close(None).await.unwrap();
        while let Some(message) = socket.next().await {
            assert!(message.is_ok_and(|message| message.is_close()));
        }
        drop(socket);
        // It is told of once it is over.
        let line = &lines(&receiver, 1).await[0];
        assert_eq!(
            (&line["status"], &line["path"], &line["flags"]),
            (&101.into(), &"/chat".into(), &"".into())
        );
        assert!(
            line["bytes_in"].as_u64().unwrap() > 1_000_000 && line["bytes_out"].as_u64().unwrap() > 1_000_000
        );
        assert!(line["duration_ms"].as_f64().unwrap() > 700.0);
    });
}

const ASK: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

#[test]
fn each_side_may_end_first_and_still_hear() {
    block_on(async {
        // What came with the answer's head is not lost; what the client says before its end comes; then it is answered.
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(&[AGREE, b"welcome"].concat()).await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            stream.write_all(&heard).await.unwrap();
        });
        let harness = Harness::start(&forward_to(backend.address));
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        // With the head, as an eager client does.
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
        let document = forward_to(backend.address).replace("{upstreams", "{idle_timeout: 300ms, upstreams");
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
        // Over HTTP/2 a target would have to know of it.
        let backend = Backend::speaking(Wire::Http2, |_| async { Response::new(full("")) });
        let harness = Harness::start(&forward_over(Wire::Http2, backend.address));
        let stream = TcpStream::connect(harness.address()).await.unwrap();
        let refused = tokio_tungstenite::client_async("ws://test.example/", stream).await.unwrap_err();
        assert!(matches!(refused, Error::Http(response) if response.status() == 501));
    });
}
