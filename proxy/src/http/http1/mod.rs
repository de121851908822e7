//! HTTP/1.1 as clients speak it (RFC 9112): one request of a connection after the other.
//!
//! [`request`] and [`response`] read and write heads, as functions over values. [`link`] is the socket, which a connection and
//! the body of its current request share. This module drives it.

mod link;
mod request;
mod response;

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::HeaderMap;
use signalbox_config::HalfClose;
use tokio::io::AsyncWriteExt as _;

use self::link::{Input, Link, Raw};
use self::response::{Answer, Asked, Length, Sent, encode_head};
use super::body::ClientBody;
use super::connection::{ClientIo, Downstream, LINGER, Overdue, linger};
use super::handle::handle;
use super::problem::Failure;
use super::tunnel::Tunnel;

pub use self::link::{Incoming, IncomingError};

/// The reason why the driver leaves a connection.
enum End {
    /// The client has gone, or does not take what is sent.
    Gone,
    /// It is closed behind an answer.
    Closed,
    /// The same, and the client may still be sending what nobody reads.
    Unread,
    /// It is no HTTP, or more than is taken.
    Refused(Failure),
    /// It is left alone until something comes.
    Rest,
    /// Both sides speak something else from now on.
    Switched(Box<Tunnel>),
}

/// Serves a connection. Returns when it has ended, or the socket when it rests.
pub(super) async fn serve(downstream: &Rc<Downstream>, io: ClientIo) -> Option<ClientIo> {
    let mut link = Link::new(io);
    loop {
        let end = serve_requests(downstream, &link).await;
        if !matches!(end, End::Switched(_)) {
            // It holds on to the connection.
            drop(downstream.take_tunnel());
        }
        return match end {
            End::Gone => None,
            End::Switched(tunnel) => {
                let read = link.take_read_ahead();
                Box::pin(tunnel.run(Raw(link), &read)).await;
                None
            }
            End::Refused(failure) => {
                let raw = link.refuse(failure);
                let mut raw_link = Raw(link);
                let written = tokio::time::timeout(LINGER, raw_link.write_all(&raw)).await;
                if matches!(written, Ok(Ok(()))) {
                    linger(raw_link).await;
                }
                None
            }
            End::Unread => {
                linger(Raw(link)).await;
                None
            }
            End::Closed => {
                // However it ends, it is closed.
                let _ = tokio::time::timeout(LINGER, Raw(link).shutdown()).await;
                None
            }
            End::Rest => match link.into_io() {
                Ok(mut io) => {
                    io.rest();
                    Some(io)
                }
                // The body of the last request is still held by somebody.
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
async fn serve_requests(downstream: &Rc<Downstream>, link: &Rc<Link>) -> End {
    let (limits, half_close) = (downstream.limits(), downstream.half_close());
    let mut headers = HeaderMap::new();
    loop {
        let head = poll_fn(|cx| {
            downstream.deadline.register(cx.waker());
            let begins = || downstream.head_begins();
            match link.poll_head(&limits, &mut headers, begins, cx) {
                Poll::Ready(Ok(Some(head))) => Poll::Ready(Ok(head)),
                Poll::Ready(Ok(None)) => Poll::Ready(Err(End::Closed)),
                Poll::Ready(Err(failure)) => Poll::Ready(Err(End::Refused(failure))),
                Poll::Pending => match downstream.overdue() {
                    None => Poll::Pending,
                    Some(Overdue::Connection) => Poll::Ready(Err(End::Gone)),
                    Some(Overdue::Head) => Poll::Ready(Err(End::Refused(Failure::HeadTimeout))),
                    Some(Overdue::Memory) => Poll::Ready(Err(End::Rest)),
                },
            }
        })
        .await;
        let mut head = match head {
            Ok(head) => head,
            Err(end) => return end,
        };
        let asked = Asked {
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
                // A request that is late and could be told so has been by now.
                if is_gone(downstream, link, half_close, cx) || downstream.overdue().is_some() {
                    return Poll::Ready(None);
                }
                Poll::Pending
            })
            .await
        };
        let Some(response) = response else { return End::Gone };
        let (head, body) = response.into_parts();
        let mut out = downstream.worker.buffer();
        out.clear();
        link.begin_answer(&mut out);
        let date = || downstream.worker.identifier.borrow_mut().date(Instant::now());
        let (framing, keep_alive) = encode_head(&mut out, &head, Length::of(&body), &asked, date);
        headers = head.headers;
        // Its values hold on to the buffer of the target's connection.
        headers.clear();
        let mut answer = Answer::new(out, framing, body);
        let sent = poll_fn(|cx| {
            downstream.deadline.register(cx.waker());
            if let Poll::Ready(sent) = answer.poll(link, cx) {
                return Poll::Ready(sent.ok());
            }
            // A client that sends no more may take the rest of an answer that is all there.
            let gone = is_gone(downstream, link, half_close, cx) && answer.is_streaming();
            if gone || downstream.overdue().is_some() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        let Some(sent) = sent else { return End::Gone };
        downstream.worker.keep_buffer(answer.into_buffer());
        downstream.answer_written();
        if let Some(tunnel) = downstream.take_tunnel() {
            return End::Switched(tunnel);
        }
        let over = link.drain_body();
        if keep_alive && sent == Sent::Whole && over {
            continue;
        }
        let unread = !over || sent == Sent::Broken || link.has_read_ahead() || downstream.has_unread();
        return if unread && link.input() == Input::Open { End::Unread } else { End::Closed };
    }
}

/// Tells if the client does not wait for its answer any more, as far as is known. A client that has closed its sending half may
/// still wait: it gets an answer that is ready, but no target works for it, unless the listener says so.
fn is_gone(downstream: &Downstream, link: &Link, half_close: HalfClose, cx: &mut Context<'_>) -> bool {
    match link.poll_input(cx) {
        Input::Open => false,
        Input::Ended => half_close == HalfClose::Abort && downstream.is_forwarding(),
        Input::Broken => true,
    }
}
