//! A target's response body, over HTTP/1.1 or HTTP/2.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::connection::{Connection, Shared};
use super::error::ExchangeError;
use super::http2::response::ResponseStream;
use super::switched::Switched;
use crate::wire::splice::{Pipes, Transfer};

/// A response body, with the connection that it is read from.
pub enum TargetBody {
    Own(Box<Connection>),
    Shared(Shared),
    Http2(Box<ResponseStream>),
}

impl TargetBody {
    #[inline]
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match self {
            Self::Own(connection) => connection.poll_body(cx),
            Self::Shared(shared) => {
                shared.with(|connection| connection.poll_body(cx)).unwrap_or(Poll::Ready(None))
            }
            Self::Http2(answer) => answer.poll(cx),
        }
    }

    /// Splices the next part, up to `most` bytes. `None`: it has to be copied.
    pub fn poll_splice(
        &mut self,
        pipes: &Rc<Pipes>,
        transfer: &mut Transfer,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, ExchangeError>> {
        match self {
            Self::Own(connection) => connection.poll_splice(pipes, transfer, most, cx),
            Self::Shared(shared) => shared
                .with(|connection| connection.poll_splice(pipes, transfer, most, cx))
                .unwrap_or(Poll::Ready(Ok(None))),
            Self::Http2(_) => Poll::Ready(Ok(None)),
        }
    }

    #[inline]
    pub fn is_end(&self) -> bool {
        match self {
            Self::Own(connection) => connection.is_end(),
            Self::Shared(shared) => shared.with(|connection| connection.is_end()).unwrap_or(true),
            Self::Http2(answer) => answer.is_end(),
        }
    }

    /// The connection, if it can carry another request once the response has been read.
    #[inline]
    pub fn into_connection(self) -> Option<Box<Connection>> {
        match self {
            Self::Own(connection) => Some(connection),
            Self::Shared(shared) => shared.into_connection(),
            Self::Http2(_) => None,
        }
    }

    /// The raw byte stream, after both sides have switched protocols.
    pub fn into_switched(self) -> Option<Switched> {
        match self {
            Self::Http2(answer) => answer.into_switched(),
            Self::Own(_) | Self::Shared(_) => self.into_connection().map(Connection::into_switched),
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(connection) => connection.size_hint(),
            Self::Shared(shared) => shared.with(|connection| connection.size_hint()).unwrap_or_default(),
            Self::Http2(answer) => answer.size_hint(),
        }
    }
}
