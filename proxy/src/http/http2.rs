//! HTTP/2 as clients speak it (RFC 9113): a connection, and a task for each of its streams.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use std::time::{Duration, Instant};

use h2::Reason;
use h2::server::{self, SendResponse};
use http::{Method, Response, StatusCode, header, request};
use http_body::Body as _;

use super::body::{ClientBody, ResponseBody};
use super::connection::{BUFFER, ClientIo, Downstream};
use super::handle::handle;
use super::head;
use super::tunnel::Tunnel;
use crate::http2::{Chunk, Incoming, Meter, Raw, Sending, Stopped};

type Connection = server::Connection<ClientIo, Chunk>;

/// Where a request came from, and its answer goes.
struct Stream {
    respond: SendResponse<Chunk>,
    /// What comes behind a CONNECT.
    raw: Option<Box<Incoming>>,
    meter: Rc<Meter>,
    /// Set when the body is waited for of a client that wants to be told (RFC 9110, section 10.1.1).
    awaited: Option<Rc<Cell<bool>>>,
}

/// What is to be done once the head of an answer was sent.
enum Begun {
    Body(ResponseBody, Sending),
    Tunnel(Box<Tunnel>, Raw),
}

const MAX_STREAMS: u32 = 256;

/// What clients may send of bodies before it is taken, bytes: of one stream, and of a whole connection, so that a target that
/// does not take an upload does not hold up the others.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How many times as large as it may be a head is still read, so that the answer says what is wrong with it, and the access
/// log and the metrics know of it. Beyond, h2 answers by itself.
const HEAD_SLACK: usize = 2;

/// Streams that are reset for what clients did wrong on them; a connection with more is closed.
const MAX_WRONG: usize = 16 << 10;

/// How many streams that were reset are remembered, and for how long: what was on its way to one when it was reset is not what
/// the client did wrong.
const RESET_STREAMS: usize = 2048;
const RESET_FOR: Duration = Duration::from_secs(30);

/// Serves a connection to its end.
pub(super) async fn serve(downstream: Rc<Downstream>, io: ClientIo) {
    downstream.http2.set(true);
    let header_size = downstream.limits().header_size;
    let mut opening = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(HEAD_SLACK * header_size).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .max_local_error_reset_streams(Some(MAX_WRONG))
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_FOR)
        .max_send_buffer_size(BUFFER)
        .enable_connect_protocol()
        .handshake(io);
    let mut open: Option<Connection> = None;
    let meter = Rc::default();
    let mut leaving = false;
    poll_fn(|cx| {
        downstream.deadline.register(cx.waker());
        loop {
            match &mut open {
                None => match Pin::new(&mut opening).poll(cx) {
                    Poll::Ready(Ok(mut connection)) => {
                        if leaving {
                            connection.graceful_shutdown();
                        }
                        open = Some(connection);
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                },
                Some(connection) => {
                    if poll_streams(&downstream, connection, &meter, cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
            }
            let silent = downstream.is_silent();
            if silent && leaving {
                return Poll::Ready(());
            }
            if leaving || !(silent || downstream.is_ending()) {
                return Poll::Pending;
            }
            // GOAWAY; the streams that run are finished. A client that does not close then is left.
            leaving = true;
            downstream.leaves();
            if let Some(connection) = &mut open {
                connection.graceful_shutdown();
            }
        }
    })
    .await;
}

/// Begins to answer what has come, and reads and writes for all streams. Ready when the connection is over.
fn poll_streams(
    downstream: &Rc<Downstream>,
    connection: &mut Connection,
    meter: &Rc<Meter>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    // Its streams are told how it ended.
    while let Some(Ok((request, respond))) = ready!(connection.poll_accept(cx)) {
        if !downstream.may_ask() {
            break;
        }
        let (head, stream) = request.into_parts();
        let mut incoming = Incoming::new(stream, &head.headers);
        let awaited = (!incoming.is_end() && head::expects_continue(&head.headers)).then(|| incoming.tell());
        // What comes behind a CONNECT is no body.
        let (body, raw) = match head.method {
            Method::CONNECT => (ClientBody::None, Some(Box::new(incoming))),
            _ => (ClientBody::Http2(incoming), None),
        };
        let stream = Stream { respond, raw, meter: Rc::clone(meter), awaited };
        // In a box, for it is large, and moves several times on its way to the runtime.
        tokio::task::spawn_local(Box::pin(answer(Rc::clone(downstream), head, body, stream)));
    }
    Poll::Ready(())
}

/// Answers a request.
#[expect(clippy::manual_async_fn, reason = "the future of an `async fn` has its arguments twice")]
fn answer(
    downstream: Rc<Downstream>,
    mut head: request::Parts,
    body: ClientBody,
    mut stream: Stream,
) -> impl Future<Output = ()> {
    async move {
        let answered = {
            let mut answering = pin!(handle(Rc::clone(&downstream), &mut head, body));
            poll_fn(|cx| match answering.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(stream.begin(answer, &downstream)),
                Poll::Pending if stream.respond.poll_reset(cx).is_ready() => {
                    downstream.breaks_off();
                    Poll::Ready(None)
                }
                Poll::Pending => {
                    stream.go_on();
                    Poll::Pending
                }
            })
            .await
        };
        match answered {
            None => {}
            Some(Begun::Body(body, sending)) => send(&downstream, body, sending).await,
            Some(Begun::Tunnel(tunnel, raw)) => Box::pin(tunnel.run(raw, b"")).await,
        }
    }
}

impl Stream {
    /// Tells a client that waits for it to send the body, once that is waited for.
    fn go_on(&mut self) {
        if self.awaited.as_ref().is_some_and(|awaited| awaited.get()) {
            self.awaited = None;
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            // Of a client that has gone the stream itself knows.
            let _ = self.respond.send_informational(go_on);
        }
    }

    /// Sends the head of an answer. `None`: that was all.
    fn begin(&mut self, answer: Response<ResponseBody>, downstream: &Downstream) -> Option<Begun> {
        let (mut head, mut body) = answer.into_parts();
        if !head.headers.contains_key(header::DATE) {
            let date = downstream.worker.identifier.borrow_mut().date(Instant::now());
            head.headers.insert(header::DATE, date);
        }
        if let Some(tunnel) = body.take_tunnel() {
            // A client that has gone meanwhile is told of when the tunnel is dropped.
            let stream = self.respond.send_response(Response::from_parts(head, ()), false).ok()?;
            let raw = Raw::new(*self.raw.take()?, stream, Some(Rc::clone(&self.meter)));
            return Some(Begun::Tunnel(tunnel, raw));
        }
        // What the client says behind a CONNECT that is refused is not waited for.
        self.raw = None;
        let end = body.is_end_stream();
        match self.respond.send_response(Response::from_parts(head, ()), end) {
            Ok(stream) => {
                (!end).then(|| Begun::Body(body, Sending::new(stream, Some(Rc::clone(&self.meter)))))
            }
            Err(_) => {
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }
}

/// Sends the body of an answer, as long as the time of its exchange is not over.
async fn send(downstream: &Downstream, mut body: ResponseBody, mut sending: Sending) {
    let deadline = body.deadline().cloned();
    let (mut over, mut broken) = (false, false);
    poll_fn(|cx| {
        if !broken {
            match sending.poll(&mut body, |_| {}, cx) {
                Poll::Ready(Ok(()) | Err(Stopped::ByPeer)) => return Poll::Ready(()),
                Poll::Ready(Err(Stopped::Body(_))) => broken = true,
                Poll::Pending => {}
            }
        }
        // What came of an answer that ends early goes before the reset.
        if broken && sending.poll_written(cx).is_ready() {
            sending.reset(Reason::INTERNAL_ERROR);
            return Poll::Ready(());
        }
        if sending.is_reset(cx) {
            return Poll::Ready(());
        }
        let Some(deadline) = &deadline else { return Poll::Pending };
        if !over && body.is_end_stream() {
            // The exchange is over; the end of its answer still waits for the client.
            over = true;
            deadline.hasten(Instant::now() + downstream.limits().idle_timeout);
        }
        deadline.register(cx.waker());
        // Left behind, the stream is reset.
        if deadline.passed() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
