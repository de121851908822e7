//! Bodies that pass from socket to socket without a copy, as long as there are pipes, and copied beyond.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use signalbox_proxy::telemetry::access_log;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Backend, Client, Harness, Wire, block_on, forward_to, full, read_head};
use crate::telling::lines;

/// Bytes of which no two parts are alike.
fn noise(size: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(size as u64);
    std::iter::repeat_with(|| random.u8(..)).take(size).collect::<Vec<_>>().into()
}

/// Answers a GET with so many bytes as its path says, and anything else with the body that came.
fn store() -> Backend {
    Backend::start(|request| async move {
        let size = request.uri().path().trim_start_matches('/').parse::<usize>();
        match size {
            Ok(size) => Response::new(full(noise(size))),
            Err(_) => Response::new(full(request.into_body().collect().await.unwrap().to_bytes())),
        }
    })
}

#[test]
fn large_bodies_arrive_as_they_were_sent_whether_they_are_spliced_or_copied() {
    block_on(async {
        let backend = store();
        for pipes in [0, 1, 16] {
            let harness = Harness::with(&forward_to(backend.address), |settings| settings.pipes = pipes);
            for wire in Wire::BOTH {
                let mut client = Client::speaking(wire, harness.address()).await;
                for size in [1 << 10, (32 << 10) - 1, (64 << 10) + 1, (1 << 20) + 7, 5 << 20] {
                    let answer = client.get(&format!("/{size}")).await;
                    assert!(answer.body == noise(size), "{pipes} {wire:?}: {size} down");
                    for method in ["POST", "PUT"] {
                        let request = Request::builder().method(method).uri("/echo");
                        let answer = client.send(request.body(full(noise(size))).unwrap()).await;
                        assert!(answer.body == noise(size), "{pipes} {wire:?}: {size} by {method}");
                    }
                }
            }
        }
        // One connection for each of the workers at most, for each harness: all of them went on being used.
        assert!(backend.connections() <= 6, "{}", backend.connections());
    });
}

#[test]
fn more_clients_that_do_not_read_than_there_are_pipes_get_all_of_their_answers() {
    block_on(async {
        const SIZE: usize = 12 << 20;
        let backend = store();
        let harness = Harness::with(&forward_to(backend.address), |settings| {
            settings.pipes = 2;
            settings.workers = 1;
        });
        let mut clients = Vec::new();
        for _ in 0..6 {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            let request = format!("GET /{SIZE} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            assert!(read_head(&mut stream).await.unwrap().contains(" 200 "));
            clients.push(stream);
        }
        // Another client is served meanwhile.
        assert!(harness.get("/100000").await.body == noise(100_000));
        for mut stream in clients.into_iter().rev() {
            let mut body = Vec::new();
            stream.read_to_end(&mut body).await.unwrap();
            assert!(body == noise(SIZE), "{} bytes", body.len());
        }
    });
}

#[test]
fn the_part_that_came_of_a_large_answer_is_delivered_and_then_the_connection_is_closed() {
    block_on(async {
        const CAME: usize = 700_000;
        for (route, stalls) in
            [("", false), ("timeout: 1s, ", true), ("idle_timeout: 1s, timeout: 0s, ", true)]
        {
            let backend = Backend::raw(move |mut stream| async move {
                while read_head(&mut stream).await.is_some() {
                    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
                    stream.write_all(head).await.unwrap();
                    stream.write_all(&noise(CAME)).await.unwrap();
                    if !stalls {
                        return;
                    }
                }
            });
            let document = forward_to(backend.address).replace("forward: {", &format!("forward: {{{route}"));
            let (sender, receiver) = access_log::channel(10);
            let harness = Harness::with_log(&document, Some(sender));
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            assert!(read_head(&mut stream).await.unwrap().contains("content-length: 1000000\r\n"));
            let mut body = Vec::new();
            let _ = stream.read_to_end(&mut body).await;
            assert!(body == noise(CAME), "{route}: {} bytes", body.len());
            let line = lines(&receiver, 1).await.remove(0);
            assert_eq!(line["bytes_out"], CAME, "{route}");
            assert_ne!(line["flags"], "", "{route}");
        }
    });
}

#[test]
fn a_large_upload_that_breaks_off_breaks_off_at_the_target() {
    block_on(async {
        const CAME: usize = 700_000;
        let (taken, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let backend = Backend::raw(move |mut stream| {
            let taken = taken.clone();
            async move {
                read_head(&mut stream).await.unwrap();
                let mut body = Vec::new();
                let _ = stream.read_to_end(&mut body).await;
                taken.send(body).unwrap();
            }
        });
        let (sender, receiver) = access_log::channel(10);
        let harness = Harness::with_log(&forward_to(backend.address), Some(sender));
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
        stream.write_all(&noise(CAME)).await.unwrap();
        drop(stream);
        let body = seen.recv().await.unwrap();
        assert!(noise(CAME).starts_with(&body), "{} bytes", body.len());
        let line = lines(&receiver, 1).await.remove(0);
        assert_eq!((&line["flags"], &line["bytes_in"]), (&"DPE".into(), &CAME.into()), "{line}");
    });
}

#[test]
fn a_target_that_answers_before_it_has_taken_a_large_upload_is_heard() {
    block_on(async {
        let refused = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&refused);
        let backend = Backend::raw(move |mut stream| {
            let told = Arc::clone(&told);
            async move {
                read_head(&mut stream).await.unwrap();
                let mut some = vec![0; 100_000];
                stream.read_exact(&mut some).await.unwrap();
                let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";
                stream.write_all(answer).await.unwrap();
                told.store(true, Ordering::Relaxed);
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        let request = Request::post("/").body(full(vec![0; 64 << 20])).unwrap();
        let answer = Client::connect(harness.address()).await.send(request).await;
        assert_eq!((answer.status, answer.text()), (403, "no"));
        assert!(refused.load(Ordering::Relaxed));
    });
}

#[test]
fn the_access_log_tells_the_size_of_spliced_bodies() {
    block_on(async {
        const SIZE: usize = 3 << 20;
        let backend = store();
        let (sender, receiver) = access_log::channel(10);
        let harness = Harness::with_log(&forward_to(backend.address), Some(sender));
        let request = Request::post("/echo").header("expect", "100-continue");
        let answer =
            Client::connect(harness.address()).await.send(request.body(full(noise(SIZE))).unwrap()).await;
        assert!(answer.body == noise(SIZE));
        let line = lines(&receiver, 1).await.remove(0);
        assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&SIZE.into(), &SIZE.into()), "{line}");
    });
}
