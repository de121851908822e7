//! Facts that hold for every pairing of HTTP/1.1 and HTTP/2 on the client's and the target's side.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{Answer, AnyBody, Backend, Client, Harness, Wire, block_on, forward_over, full, until};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The backend's view of requests that end early.
#[derive(Default)]
struct Seen {
    /// The body of a request ended early.
    request_broke: AtomicBool,
    /// The body of a response was dropped before its end.
    answer_dropped: AtomicBool,
    bytes: AtomicU64,
    /// The client has received everything that was sent so far.
    taken: Notify,
}

struct NoteDrop(Arc<Seen>);

impl Drop for NoteDrop {
    fn drop(&mut self) {
        self.0.answer_dropped.store(true, Ordering::Relaxed);
    }
}

async fn serve(request: Request<Incoming>, seen: Arc<Seen>) -> Response<AnyBody> {
    let (head, mut body) = request.into_parts();
    match head.uri.path() {
        // The response is the received body, with its trailers.
        "/echo" => {
            let method = head.method.to_string();
            let large = head.headers.get("x-large").cloned();
            let length = head.headers.get("content-length").cloned();
            let host = head.uri.authority().map_or_else(
                || head.headers["host"].to_str().unwrap().to_owned(),
                |authority| authority.to_string(),
            );
            let mut response = Response::builder()
                .header("x-method", method)
                .header("x-host", host)
                .header("trailer", "x-sum, x-end")
                .header("x-fields", head.headers.len());
            if let Some(large) = large {
                response = response.header("x-large", large);
            }
            if let Some(length) = length {
                response = response.header("x-length", length);
            }
            for name in ["connection", "keep-alive", "transfer-encoding", "upgrade", "x-hop"] {
                if let Some(value) = head.headers.get(name).filter(|_| head.version == http::Version::HTTP_2)
                {
                    response = response.header("x-hop-by-hop", format!("{name}: {value:?}"));
                }
            }
            let end = HeaderMap::from_iter([("x-end".parse().unwrap(), "1".parse().unwrap())]);
            let frames =
                body.into_data_stream_with_trailers().chain(tokio_stream::once(Ok(Frame::trailers(end))));
            // Trailers are sent once: those of the request, if it has any.
            let mut trailed = false;
            let frames = frames.filter(move |frame: &Result<Frame<Bytes>, BoxError>| {
                let had = trailed;
                let is_trailers = frame.as_ref().is_ok_and(Frame::is_trailers);
                trailed |= is_trailers;
                !(had && is_trailers)
            });
            response.body(StreamBody::new(frames).boxed()).unwrap()
        }
        "/early" => Response::builder().status(403).body(full("no")).unwrap(),
        "/none" => Response::builder().status(204).body(full("")).unwrap(),
        "/unchanged" => Response::builder().status(304).header("content-length", "5").body(full("")).unwrap(),
        // hyper's HTTP/2 would send a body.
        "/length" if head.method == Method::HEAD => {
            Response::builder().header("content-length", "5").body(full("")).unwrap()
        }
        "/length" => Response::builder().header("content-length", "5").body(full("hello")).unwrap(),
        "/abort" => {
            let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, BoxError>>(1);
            tokio::spawn(async move {
                let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"part")))).await;
                seen.taken.notified().await;
                let _ = sender.send(Err("the backend gives up".into())).await;
            });
            Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed())
        }
        "/endless" => {
            let note = NoteDrop(seen);
            let frames = tokio_stream::once(Ok(Frame::data(Bytes::from_static(b"part"))))
                .chain(tokio_stream::pending::<Result<Frame<Bytes>, BoxError>>())
                .map(move |frame| {
                    let _ = &note;
                    frame
                });
            Response::new(StreamBody::new(frames).boxed())
        }
        "/swallow" => {
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => {
                        let size = frame.data_ref().map_or(0, Bytes::len) as u64;
                        seen.bytes.fetch_add(size, Ordering::Relaxed);
                    }
                    Err(_) => {
                        seen.request_broke.store(true, Ordering::Relaxed);
                        break;
                    }
                }
            }
            Response::new(full("swallowed"))
        }
        other => panic!("{other}"),
    }
}

trait Frames {
    fn into_data_stream_with_trailers(
        self,
    ) -> impl tokio_stream::Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + Sync;
}

impl Frames for Incoming {
    fn into_data_stream_with_trailers(
        self,
    ) -> impl tokio_stream::Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + Sync {
        http_body_util::BodyStream::new(self).map(|frame| frame.map_err(Into::into))
    }
}

struct Pair {
    from: Wire,
    to: Wire,
    harness: Harness,
    backend: Backend,
    seen: Arc<Seen>,
}

impl Pair {
    fn all() -> impl Iterator<Item = Self> {
        Wire::BOTH.into_iter().flat_map(|from| Wire::BOTH.map(|to| Self::new(from, to)))
    }

    fn new(from: Wire, to: Wire) -> Self {
        let seen = Arc::<Seen>::default();
        let given = Arc::clone(&seen);
        let backend = Backend::speaking(to, move |request| serve(request, Arc::clone(&given)));
        let harness = Harness::start(&forward_over(to, backend.address));
        Self { from, to, harness, backend, seen }
    }

    async fn client(&self) -> Client {
        Client::speaking(self.from, self.harness.address()).await
    }

    fn name(&self) -> String {
        format!("{:?} to {:?}", self.from, self.to)
    }
}

fn fed() -> (mpsc::Sender<Result<Frame<Bytes>, BoxError>>, AnyBody) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, StreamBody::new(ReceiverStream::new(receiver)).boxed())
}

#[test]
fn requests_and_answers_pass_whole() {
    block_on(async {
        for pair in Pair::all() {
            let mut client = pair.client().await;
            let large: Bytes = (0..1_500_001).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
            let sizes = [0, 1, 1000, 70_000, large.len()];
            let methods =
                [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
            for (method, size) in methods.iter().flat_map(|method| sizes.map(|size| (method, size))) {
                let case = format!("{} {method} {size}", pair.name());
                let request = Request::builder().method(method).uri("/echo?a=b").header("x-hop", "1");
                let request = match pair.from {
                    Wire::Http1 => request.header("connection", "keep-alive, x-hop"),
                    Wire::Http2 => request,
                };
                let answer = client.send(request.body(full(large.slice(..size))).unwrap()).await;
                assert_eq!((answer.status, answer.body.len()), (200, size), "{case}");
                assert!(answer.body == large[..size], "{case}");
                assert_eq!(answer.headers["x-method"], method.as_str(), "{case}");
                assert_eq!(answer.headers["x-host"], "test.example", "{case}");
                if pair.from == Wire::Http1 {
                    assert!(!answer.headers.contains_key("x-hop-by-hop"), "{case} {:?}", answer.headers);
                }
                if size > 0 {
                    assert_eq!(answer.headers["x-length"], size.to_string(), "{case}");
                }
            }
            let most = if pair.to == Wire::Http2 { 2 } else { 1 };
            assert!(pair.backend.connections() <= most, "{}: {}", pair.name(), pair.backend.connections());
        }
    });
}

#[test]
fn streamed_bodies_and_trailers_pass_both_ways() {
    block_on(async {
        for pair in Pair::all() {
            let mut client = pair.client().await;
            for trailed in [false, true] {
                let (sender, body) = fed();
                let request = Request::post("/echo")
                    .header("te", "trailers")
                    .header("trailer", "x-sum")
                    .body(body)
                    .unwrap();
                let (answer, ()) = tokio::join!(
                    async {
                        // The response begins before the request ends, and arrives part by part.
                        let answer = client.start(request).await.expect("an answer");
                        Answer::of(answer).await.expect("a whole answer")
                    },
                    async {
                        for part in ["one ", "two ", "three"] {
                            sender.send(Ok(Frame::data(part.into()))).await.unwrap();
                        }
                        if trailed {
                            let sum = ("x-sum".parse().unwrap(), "3".parse().unwrap());
                            sender.send(Ok(Frame::trailers(HeaderMap::from_iter([sum])))).await.unwrap();
                        }
                        drop(sender);
                    }
                );
                assert_eq!(answer.text(), "one two three", "{}", pair.name());
                let trailers = answer.trailers.expect("trailers");
                let expected = if trailed { ("x-sum", "3") } else { ("x-end", "1") };
                assert_eq!(trailers[expected.0], expected.1, "{} {trailed}", pair.name());
                assert_eq!(trailers.len(), 1);
            }
        }
    });
}

#[test]
fn both_sides_may_speak_in_turn() {
    block_on(async {
        for pair in Pair::all() {
            let mut client = pair.client().await;
            let (sender, body) = fed();
            let mut answer =
                client.start(Request::post("/echo").body(body).unwrap()).await.expect("an answer");
            for turn in 0..50 {
                let said = Bytes::from(format!("turn {turn}"));
                sender.send(Ok(Frame::data(said.clone()))).await.unwrap();
                let heard = answer.frame().await.expect("a part").expect("of the answer");
                assert_eq!(heard.into_data().unwrap(), said, "{}", pair.name());
            }
        }
    });
}

#[test]
fn answers_without_a_body_keep_their_length() {
    block_on(async {
        for pair in Pair::all() {
            let mut client = pair.client().await;
            for (method, path, status, length) in [
                ("HEAD", "/length", 200, Some("5")),
                // hyper omits the length here, and need not send one.
                ("GET", "/unchanged", 304, None),
                ("HEAD", "/unchanged", 304, None),
                ("GET", "/none", 204, None),
                ("HEAD", "/none", 204, None),
                ("GET", "/length", 200, Some("5")),
            ] {
                let case = format!("{} {method} {path}", pair.name());
                let request = Request::builder().method(method).uri(path).body(full("")).unwrap();
                let answer = client.send(request).await;
                assert_eq!(answer.status, status, "{case}");
                let told = answer.headers.get("content-length").map(|length| length.to_str().unwrap());
                assert!(status == 304 || told == length, "{case} {told:?}");
                let body = if (method, path) == ("GET", "/length") { "hello" } else { "" };
                assert_eq!(answer.text(), body, "{case}");
            }
        }
    });
}

#[test]
fn an_early_answer_passes_though_the_request_goes_on() {
    block_on(async {
        for pair in Pair::all() {
            let mut client = pair.client().await;
            let (sender, body) = fed();
            sender.send(Ok(Frame::data(Bytes::from_static(b"some")))).await.unwrap();
            let answer = client.start(Request::post("/early").body(body).unwrap()).await.expect("an answer");
            let answer = Answer::of(answer).await.expect("a whole answer");
            assert_eq!((answer.status, answer.text()), (403, "no"), "{}", pair.name());
            // Nothing is left hanging: the next request is answered.
            let answer = pair.client().await.get("/length").await;
            assert_eq!(answer.text(), "hello", "{}", pair.name());
        }
    });
}

#[test]
fn a_target_that_breaks_off_is_seen_by_the_client() {
    block_on(async {
        for pair in Pair::all() {
            let mut client = pair.client().await;
            let mut answer =
                client.start(Request::get("/abort").body(full("")).unwrap()).await.expect("a head");
            assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "part");
            pair.seen.taken.notify_one();
            let error = Answer::of(answer).await;
            assert!(error.is_err(), "{}: {error:?}", pair.name());
            let answer = pair.client().await.get("/length").await;
            assert_eq!(answer.text(), "hello", "{}", pair.name());
        }
    });
}

#[test]
fn a_client_that_breaks_off_is_seen_by_the_target() {
    block_on(async {
        for pair in Pair::all() {
            // The client leaves while it reads the response.
            let mut client = pair.client().await;
            let mut answer =
                client.start(Request::get("/endless").body(full("")).unwrap()).await.expect("a head");
            assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "part");
            drop(answer);
            drop(client);
            until("the target may stop answering", || pair.seen.answer_dropped.load(Ordering::Relaxed)).await;
            // The client leaves while it sends the request.
            let mut client = pair.client().await;
            let (sender, body) = fed();
            let request = Request::post("/swallow").body(body).unwrap();
            let started = client.start(request);
            sender.send(Ok(Frame::data(Bytes::from_static(b"some")))).await.unwrap();
            let mut started = pin!(started);
            let arrived = until("some has come", || pair.seen.bytes.load(Ordering::Relaxed) == 4);
            tokio::select! {
                _ = &mut started => panic!("there is no answer"),
                () = arrived => {}
            }
            sender.send(Err("the client gives up".into())).await.unwrap();
            let what = format!("the target sees the request break off, {}", pair.name());
            let broken = until(&what, || pair.seen.request_broke.load(Ordering::Relaxed));
            let (answer, ()) = tokio::join!(started, broken);
            assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 400));
        }
    });
}

#[test]
fn large_heads_pass_both_ways() {
    block_on(async {
        for pair in Pair::all() {
            let mut client = pair.client().await;
            let large = "x".repeat(12 << 10);
            let mut request = Request::get("/echo").header("x-large", &large);
            for number in 0..50 {
                request = request.header(format!("x-field-{number}"), "value");
            }
            let answer = client.send(request.body(full("")).unwrap()).await;
            assert_eq!(answer.status, 200, "{}", pair.name());
            assert_eq!(answer.headers["x-large"], large.as_str(), "{}", pair.name());
            let fields: usize = answer.headers["x-fields"].to_str().unwrap().parse().unwrap();
            assert!(fields > 50, "{}: {fields}", pair.name());
        }
    });
}
