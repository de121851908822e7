//! HTTP/2 with clients (RFC 9113): a connection, and a task for each of its streams.

mod state;

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

use self::state::Http2State;
use super::downstream::Downstream;
use super::handle::handle;
use super::response_body::ResponseBody;
use super::tunnel::Tunnel;
use crate::core::fields::expects_continue;
use crate::wire::body::ClientBody;
use crate::wire::client_io::ClientIo;
use crate::wire::http2::{Chunk, Incoming, Meter, Raw, Sending, Stopped};

type Connection = server::Connection<ClientIo, Chunk>;

/// The stream of a request and its response.
struct Stream {
    respond: SendResponse<Chunk>,
    /// The bytes behind a CONNECT.
    raw: Option<Box<Incoming>>,
    meter: Rc<Meter>,
    /// Set when the body of a client that expects 100 (Continue) is waited for (RFC 9110, section 10.1.1).
    awaited: Option<Rc<Cell<bool>>>,
}

/// The next step after the head of a response was sent.
enum AfterHead {
    Body(ResponseBody, Sending),
    Tunnel(Box<Tunnel>, Raw),
}

const MAX_STREAMS: u32 = 256;

/// The number of bytes of one stream that may wait to be sent.
const SEND_BUFFER: usize = 64 << 10;

/// The flow-control windows in bytes, of one stream and of a whole connection, so that a target that does not read an
/// upload does not hold up the others.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The factor by which a head may exceed its limit and still be read, so that the response names the problem, and the
/// access log and the metrics include it. Beyond it, h2 answers by itself.
const HEAD_SLACK: usize = 2;

/// The maximum number of streams that are reset for client errors; a connection with more is closed.
const MAX_ERROR_RESETS: usize = 16 << 10;

/// The number of reset streams that are remembered, and for how long: frames that were in transit when a stream was
/// reset are not the client's error.
const RESET_STREAMS: usize = 2048;
const RESET_FOR: Duration = Duration::from_secs(30);

/// Serves a connection to its end.
pub(super) async fn serve(downstream: Rc<Downstream>, io: ClientIo) {
    let state = Rc::<Http2State>::default();
    downstream.set_protocol(Rc::clone(&state) as _);
    let header_size = downstream.limits().header_size;
    let mut opening = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(HEAD_SLACK * header_size).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_FOR)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol()
        .handshake(io);
    let mut open: Option<Connection> = None;
    let meter = Rc::default();
    let mut goaway_sent = false;
    poll_fn(|cx| {
        downstream.deadline.register(cx.waker());
        loop {
            match &mut open {
                None => match Pin::new(&mut opening).poll(cx) {
                    Poll::Ready(Ok(mut connection)) => {
                        if goaway_sent {
                            connection.graceful_shutdown();
                        }
                        open = Some(connection);
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                },
                Some(connection) => {
                    if poll_streams(&downstream, &state, connection, &meter, cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
            }
            let silent = state.is_silent(&downstream);
            if silent && goaway_sent {
                return Poll::Ready(());
            }
            if goaway_sent || !(silent || downstream.is_ending()) {
                return Poll::Pending;
            }
            // GOAWAY is sent; the running streams are finished. A client that does not close after that is
            // disconnected.
            goaway_sent = true;
            state.goaway_sent(&downstream);
            if let Some(connection) = &mut open {
                connection.graceful_shutdown();
            }
        }
    })
    .await;
}

/// Starts to answer incoming requests, and reads and writes for all streams. Ready when the connection is over.
fn poll_streams(
    downstream: &Rc<Downstream>,
    state: &Rc<Http2State>,
    connection: &mut Connection,
    meter: &Rc<Meter>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    // The streams learn how the connection ended.
    while let Some(Ok((request, respond))) = ready!(connection.poll_accept(cx)) {
        if !state.admit_request(downstream) {
            break;
        }
        let (head, stream) = request.into_parts();
        let mut incoming = Incoming::new(stream, &head.headers);
        let awaited =
            (!incoming.is_end() && expects_continue(&head.headers)).then(|| incoming.track_waiting());
        // The bytes behind a CONNECT are no body.
        let (body, raw) = match head.method {
            Method::CONNECT => (ClientBody::None, Some(Box::new(incoming))),
            _ => (ClientBody::Http2(incoming), None),
        };
        let stream = Stream { respond, raw, meter: Rc::clone(meter), awaited };
        // Boxed, because it is large, and moves several times on its way to the runtime.
        tokio::task::spawn_local(Box::pin(answer(
            Rc::clone(downstream),
            Rc::clone(state),
            head,
            body,
            stream,
        )));
    }
    Poll::Ready(())
}

/// Answers a request.
#[expect(clippy::manual_async_fn, reason = "the future of an `async fn` has its arguments twice")]
fn answer(
    downstream: Rc<Downstream>,
    state: Rc<Http2State>,
    mut head: request::Parts,
    body: ClientBody,
    mut stream: Stream,
) -> impl Future<Output = ()> {
    async move {
        let answered = {
            let mut answering = pin!(handle(Rc::clone(&downstream), &mut head, body));
            poll_fn(|cx| match answering.as_mut().poll(cx) {
                Poll::Ready((mut response, notes)) => {
                    if let Some(mut notes) = notes {
                        notes.write_response_headers(response.headers_mut());
                    }
                    Poll::Ready(stream.begin(response, &downstream))
                }
                Poll::Pending if stream.respond.poll_reset(cx).is_ready() => {
                    state.count_client_reset();
                    Poll::Ready(None)
                }
                Poll::Pending => {
                    stream.send_continue();
                    Poll::Pending
                }
            })
            .await
        };
        match answered {
            None => {}
            Some(AfterHead::Body(body, sending)) => send(&downstream, body, sending).await,
            Some(AfterHead::Tunnel(tunnel, raw)) => Box::pin(tunnel.run(raw, b"")).await,
        }
    }
}

impl Stream {
    /// Sends 100 (Continue) to a client that expects it, once the body is waited for.
    fn send_continue(&mut self) {
        if self.awaited.as_ref().is_some_and(|awaited| awaited.get()) {
            self.awaited = None;
            let mut interim = Response::new(());
            *interim.status_mut() = StatusCode::CONTINUE;
            // If the client has gone, the stream itself reports it.
            let _ = self.respond.send_informational(interim);
        }
    }

    /// Sends the head of a response. Returns `None` if the response is complete.
    fn begin(&mut self, answer: Response<ResponseBody>, downstream: &Downstream) -> Option<AfterHead> {
        let (mut head, mut body) = answer.into_parts();
        if !head.headers.contains_key(header::DATE) {
            let date = downstream.worker.identifier.borrow_mut().date(Instant::now());
            head.headers.insert(header::DATE, date);
        }
        if let Some(tunnel) = body.take_tunnel() {
            // If the client has gone meanwhile, dropping the tunnel reports it.
            let stream = self.respond.send_response(Response::from_parts(head, ()), false).ok()?;
            let raw = Raw::new(*self.raw.take()?, stream, Some(Rc::clone(&self.meter)));
            return Some(AfterHead::Tunnel(tunnel, raw));
        }
        // Bytes behind a refused CONNECT are not waited for.
        self.raw = None;
        let end = body.is_end_stream();
        match self.respond.send_response(Response::from_parts(head, ()), end) {
            Ok(stream) => {
                (!end).then(|| AfterHead::Body(body, Sending::new(stream, Some(Rc::clone(&self.meter)))))
            }
            Err(_) => {
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }
}

/// Sends the body of a response until the deadline of its exchange.
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
        // The received part of an incomplete response is sent before the reset.
        if broken && sending.poll_written(cx).is_ready() {
            sending.reset(Reason::INTERNAL_ERROR);
            return Poll::Ready(());
        }
        if sending.is_reset(cx) {
            return Poll::Ready(());
        }
        let Some(deadline) = &deadline else { return Poll::Pending };
        if !over && body.is_end_stream() {
            // The exchange is over; the end of its response still waits for the client.
            over = true;
            deadline.set_no_later_than(Instant::now() + downstream.limits().idle_timeout);
        }
        deadline.register(cx.waker());
        // If the stream is dropped unfinished, it is reset.
        if deadline.passed() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
