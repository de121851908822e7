//! HTTP/1.1 with clients (RFC 9112): the requests of a connection, one after the other.
//!
//! [`response`] writes responses, and [`state`] is the part of the connection that requests and the worker use. This
//! module drives the [`Link`].

mod response;
mod state;

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::HeaderMap;
use signalbox_config::HalfClose;
use tokio::io::AsyncWriteExt as _;

use self::response::{Length, RequestFacts, ResponseWriter, Sent, encode_head};
use self::state::Overdue;
use super::downstream::Downstream;
use super::handle::handle;
use super::refusal::refuse;
use super::tunnel::Tunnel;
use crate::core::failure::Failure;
use crate::wire::body::ClientBody;
use crate::wire::client_io::{ClientIo, LINGER, linger};
use crate::wire::http1::link::{Input, Link, Raw};

pub(super) use self::state::Http1State;

/// The reason why the driver stops.
enum ConnectionEnd {
    /// The client has gone, or does not read.
    Gone,
    /// The connection closes after a response.
    Closed,
    /// The connection closes after a response, and the client may still be sending.
    Unread,
    /// The bytes are not HTTP, or exceed a limit.
    Refused(Failure),
    /// The connection is idle, and releases its memory until bytes arrive.
    Idle,
    /// Both sides have switched to another protocol.
    Switched(Box<Tunnel>),
}

/// Serves a connection. Returns when it has ended, or, with the socket, when it is idle.
pub(super) async fn serve(downstream: &Rc<Downstream>, state: &Http1State, io: ClientIo) -> Option<ClientIo> {
    let mut link = Link::new(io);
    loop {
        return match serve_requests(downstream, state, &link).await {
            ConnectionEnd::Gone => None,
            ConnectionEnd::Switched(tunnel) => {
                let read = link.take_read_ahead();
                Box::pin(tunnel.run(Raw(link), &read)).await;
                None
            }
            ConnectionEnd::Refused(failure) => {
                let raw = refuse(downstream, failure);
                let mut raw_link = Raw(link);
                let written = tokio::time::timeout(LINGER, raw_link.write_all(&raw)).await;
                if matches!(written, Ok(Ok(()))) {
                    linger(raw_link).await;
                }
                None
            }
            ConnectionEnd::Unread => {
                linger(Raw(link)).await;
                None
            }
            ConnectionEnd::Closed => {
                // However this ends, the connection is closed.
                let _ = tokio::time::timeout(LINGER, Raw(link).shutdown()).await;
                None
            }
            ConnectionEnd::Idle => match link.into_io() {
                Ok(mut io) => {
                    io.forget_sniffed();
                    downstream.deadline.set(Some(downstream.idle_until()));
                    Some(io)
                }
                // The body of the last request still holds the socket.
                Err(shared) => {
                    link = shared;
                    downstream.deadline.set(Some(downstream.idle_until()));
                    continue;
                }
            },
        };
    }
}

/// Answers one request after the other.
async fn serve_requests(downstream: &Rc<Downstream>, state: &Http1State, link: &Rc<Link>) -> ConnectionEnd {
    let (limits, half_close) = (downstream.limits(), downstream.half_close());
    let mut headers = HeaderMap::new();
    loop {
        let head = poll_fn(|cx| {
            downstream.deadline.register(cx.waker());
            let begins = || state.head_begins(downstream);
            match link.poll_head(&limits, &mut headers, begins, cx) {
                Poll::Ready(Ok(Some(head))) => Poll::Ready(Ok(head)),
                Poll::Ready(Ok(None)) => Poll::Ready(Err(ConnectionEnd::Closed)),
                Poll::Ready(Err(failure)) => Poll::Ready(Err(ConnectionEnd::Refused(failure))),
                Poll::Pending => match state.overdue(downstream) {
                    None => Poll::Pending,
                    Some(Overdue::Connection) => Poll::Ready(Err(ConnectionEnd::Gone)),
                    Some(Overdue::Head) => Poll::Ready(Err(ConnectionEnd::Refused(Failure::HeadTimeout))),
                    Some(Overdue::Memory) => Poll::Ready(Err(ConnectionEnd::Idle)),
                },
            }
        })
        .await;
        let mut head = match head {
            Ok(head) => head,
            Err(end) => return end,
        };
        let facts = RequestFacts {
            method: head.parts.method.clone(),
            version: head.parts.version,
            keep_alive: head.keep_alive,
            takes_trailers: head.takes_trailers,
        };
        let body = link
            .begin_request(head.framing, head.expects_continue)
            .map_or(ClientBody::None, ClientBody::Http1);
        let response = {
            let mut answering = pin!(handle(Rc::clone(downstream), &mut head.parts, body));
            poll_fn(|cx| {
                downstream.deadline.register(cx.waker());
                if let Poll::Ready(response) = answering.as_mut().poll(cx) {
                    return Poll::Ready(Some(response));
                }
                // A late request has got its response by now, if one was possible.
                if is_gone(state, link, half_close, cx) || state.overdue(downstream).is_some() {
                    return Poll::Ready(None);
                }
                Poll::Pending
            })
            .await
        };
        let Some((response, notes)) = response else { return ConnectionEnd::Gone };
        let (head, mut body) = response.into_parts();
        let tunnel = body.take_tunnel();
        let mut out = downstream.worker.buffer();
        out.clear();
        link.begin_answer(&mut out);
        let date = || downstream.worker.identifier.borrow_mut().date(Instant::now());
        let (framing, keep_alive) =
            encode_head(&mut out, &head, notes.as_deref(), Length::of(&body), &facts, date);
        drop(notes);
        headers = head.headers;
        // The header values hold the buffer of the target's connection.
        headers.clear();
        let mut answer = ResponseWriter::new(out, framing, body);
        let sent = poll_fn(|cx| {
            downstream.deadline.register(cx.waker());
            if let Poll::Ready(sent) = answer.poll(link, cx) {
                return Poll::Ready(sent.ok());
            }
            // A client that has closed its sending half may still read the rest of a complete response.
            let gone = is_gone(state, link, half_close, cx) && answer.is_streaming();
            if gone || state.overdue(downstream).is_some() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        let Some(sent) = sent else { return ConnectionEnd::Gone };
        downstream.worker.keep_buffer(answer.into_buffer());
        state.answer_written();
        if let Some(tunnel) = tunnel {
            return ConnectionEnd::Switched(tunnel);
        }
        let mut over = link.drain_body();
        if keep_alive && sent == Sent::Whole {
            if !over && drain_rest(link).await {
                over = true;
                state.rest_was_read();
            }
            if over {
                continue;
            }
        }
        let unread = !over || sent == Sent::Broken || link.has_read_ahead() || state.has_unread();
        return if unread && link.input() == Input::Open {
            ConnectionEnd::Unread
        } else {
            ConnectionEnd::Closed
        };
    }
}

/// Reads and drops the rest of a request's body after its response was sent without announcing the end of the
/// connection, for as long as a lingering close would. Returns true if the body has ended.
async fn drain_rest(link: &Link) -> bool {
    let ended = Box::pin(poll_fn(|cx| link.poll_discard(cx)));
    tokio::time::timeout(LINGER, ended).await.unwrap_or(false)
}

/// Returns true if the client no longer waits for its response, as far as is known. A client that has closed its
/// sending half may still wait: it gets a response that is ready, but no target works for it, unless the listener
/// allows that.
fn is_gone(state: &Http1State, link: &Link, half_close: HalfClose, cx: &mut Context<'_>) -> bool {
    match link.poll_input(cx) {
        Input::Open => false,
        Input::Ended => half_close == HalfClose::Abort && state.is_forwarding(),
        Input::Broken => true,
    }
}
