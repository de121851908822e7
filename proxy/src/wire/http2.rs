//! The parts of HTTP/2 that both sides share: receiving and sending bodies, and a stream as raw bytes.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::core::fields::CONNECTION_FIELDS;

/// A body that is received from the peer. Consumed bytes are released to the flow-control window.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    /// The number of bytes still to come, if the peer announced a length.
    left: Option<u64>,
    data_over: bool,
    over: bool,
    /// Set when the body is first waited for, if the peer expects 100 (Continue).
    awaited: Option<Rc<Cell<bool>>>,
}

/// A body that is sent to the peer.
pub struct Sending {
    outlet: Outlet,
    /// A part that waits for the peer's window, and whether it is the last.
    held: Option<(Bytes, bool)>,
    /// Dropped by the connection once everything before it was written.
    marker: Option<Weak<()>>,
}

/// The sending half of a stream, within the peer's window.
struct Outlet {
    stream: SendStream<Chunk>,
    /// The connection's limit on waiting bytes, if there is one.
    meter: Option<Rc<Meter>>,
    /// The entry in that limit's list of waiters, once the stream had to wait.
    place: Option<usize>,
}

/// The reason why a body was not sent completely.
#[derive(Debug)]
pub enum Stopped<E> {
    /// The peer has reset the stream, or has gone.
    ByPeer,
    /// The body ended early. The sender decides how to end the stream.
    Body(E),
}

/// Bytes that wait in a connection to be written.
pub struct Chunk {
    bytes: Bytes,
    meter: Option<Rc<Meter>>,
    /// The size as it was counted.
    size: usize,
    /// Wakes the sender when the chunk is dropped.
    _marker: Option<Box<Marker>>,
}

/// Wakes a task when it is dropped: everything that was sent before it has been written by then, or never will be.
struct Marker {
    alive: Rc<()>,
    waker: Waker,
}

impl Drop for Marker {
    fn drop(&mut self) {
        self.waker.wake_by_ref();
    }
}

/// The number of bytes that wait in a connection to be written, over all its streams. Without a limit, a client that
/// opens many streams and does not read would make the proxy keep the beginning of each response.
#[derive(Default)]
pub struct Meter {
    waiting: Cell<usize>,
    /// The streams that have waited for room, with their wakers.
    held_up: RefCell<Slab<Option<Waker>>>,
}

/// The limit in bytes above which no more is taken from the bodies of a connection.
const MAX_WAITING: usize = 256 << 10;

/// The memory in bytes that a part takes in h2 beside its data, so that many small ones count.
const PART: usize = 320;

/// A stream as raw bytes in both directions, after both sides have switched protocols.
pub struct Raw {
    incoming: Incoming,
    /// Bytes that were received beyond the last read.
    read: Bytes,
    outlet: Outlet,
    /// True once the end was sent.
    ended: bool,
}

impl Incoming {
    /// Creates the body behind `headers`.
    #[inline]
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let over = stream.is_end_stream();
        let length = if over { None } else { headers.get(header::CONTENT_LENGTH) };
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream, left, data_over: over, over, awaited: None }
    }

    /// Returns a flag that is set when the body is waited for.
    pub fn track_waiting(&mut self) -> Rc<Cell<bool>> {
        Rc::clone(self.awaited.get_or_insert_default())
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        while !self.data_over {
            let data = self.stream.poll_data(cx);
            if data.is_pending()
                && let Some(awaited) = &self.awaited
            {
                awaited.set(true);
            }
            match ready!(data) {
                None => self.data_over = true,
                Some(Ok(data)) => {
                    // This fails only if more is released than was received.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    self.over = self.stream.is_end_stream();
                    self.data_over = self.over;
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
        if self.over {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        self.over = true;
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
    }

    #[inline]
    pub fn is_end(&self) -> bool {
        self.over
    }

    pub fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.over => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

impl Sending {
    pub fn new(stream: SendStream<Chunk>, meter: Option<Rc<Meter>>) -> Self {
        Self { outlet: Outlet::new(stream, meter), held: None, marker: None }
    }

    /// Sends as much of `body` as the peer takes. Ready when everything was sent. `prepare` filters its trailers.
    #[inline]
    pub fn poll<B: Body<Data = Bytes> + Unpin>(
        &mut self,
        body: &mut B,
        prepare: impl FnOnce(&mut HeaderMap),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped<B::Error>>> {
        loop {
            if self.held.is_some() && ready!(self.poll_held(cx))? {
                return Poll::Ready(Ok(()));
            }
            if self.outlet.is_held_up(cx) {
                return Poll::Pending;
            }
            let part = ready!(Pin::new(&mut *body).poll_frame(cx));
            match part.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    let end = body.is_end_stream();
                    if !data.is_empty() {
                        self.held = Some((data, end));
                        continue;
                    }
                    if !end {
                        continue;
                    }
                    self.end(None);
                }
                Some(Ok(Err(frame))) => {
                    let mut trailers = frame.into_trailers().unwrap_or_default();
                    prepare(&mut trailers);
                    self.end(Some(trailers));
                }
                None => self.end(None),
                Some(Err(error)) => return Poll::Ready(Err(Stopped::Body(error))),
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        let sent = match trailers {
            None => self.outlet.stream.send_data(Chunk::empty(), true),
            Some(mut trailers) => {
                // These fields are forbidden in HTTP/2 (RFC 9113, section 8.2.2).
                for name in CONNECTION_FIELDS.iter().chain(&[header::TE]) {
                    trailers.remove(name);
                }
                self.outlet.stream.send_trailers(trailers)
            }
        };
        if sent.is_err() {
            // The reset tells the peer not to wait. If the peer itself has ended the stream, it does nothing.
            self.outlet.stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    /// Sends the held part within the peer's window, because h2 would only buffer it. Ready when nothing is held any
    /// more, with true if that was the last part.
    fn poll_held<E>(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Stopped<E>>> {
        while let Some((data, end)) = &mut self.held {
            let Ok(room) = ready!(self.outlet.poll_room(data.len(), cx)) else {
                return Poll::Ready(Err(Stopped::ByPeer));
            };
            let part = data.split_to(room);
            let end = *end && data.is_empty();
            if data.is_empty() {
                self.held = None;
            }
            if self.outlet.send(part, end).is_err() {
                return Poll::Ready(Err(Stopped::ByPeer));
            }
            if end {
                return Poll::Ready(Ok(true));
            }
        }
        Poll::Ready(Ok(false))
    }

    /// True if the peer has reset the stream; otherwise the task is woken when it does.
    #[inline]
    pub fn is_reset(&mut self, cx: &mut Context<'_>) -> bool {
        self.outlet.stream.poll_reset(cx).is_ready()
    }

    /// Waits until the connection has written everything that was sent. A reset would overtake it.
    pub fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let marker = match &self.marker {
            Some(marker) => Weak::clone(marker),
            None => {
                let marker = Box::new(Marker { alive: Rc::new(()), waker: cx.waker().clone() });
                let seen = Rc::downgrade(&marker.alive);
                if self.outlet.stream.send_data(Chunk::marked(marker), false).is_err() {
                    return Poll::Ready(());
                }
                self.marker = Some(Weak::clone(&seen));
                seen
            }
        };
        if marker.strong_count() == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: Reason) {
        self.outlet.stream.send_reset(reason);
    }
}

impl Outlet {
    fn new(stream: SendStream<Chunk>, meter: Option<Rc<Meter>>) -> Self {
        Self { stream, meter, place: None }
    }

    /// True if the limit of the connection is reached; the task is then woken when there is room.
    #[inline]
    fn is_held_up(&mut self, cx: &Context<'_>) -> bool {
        let Some(meter) = self.meter.as_ref().filter(|meter| meter.waiting.get() >= MAX_WAITING) else {
            return false;
        };
        let mut held_up = meter.held_up.borrow_mut();
        let place = *self.place.get_or_insert_with(|| held_up.insert(None));
        if let Some(waker) = held_up.get_mut(place) {
            *waker = Some(cx.waker().clone());
        }
        true
    }

    /// The number of bytes, of those wanted, that the peer takes now; at least one.
    fn poll_room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.is_held_up(cx) {
            return Poll::Pending;
        }
        self.stream.reserve_capacity(wanted);
        loop {
            match self.stream.capacity() {
                0 => match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                },
                room => return Poll::Ready(Ok(room.min(wanted))),
            }
        }
    }

    fn send(&mut self, bytes: Bytes, end: bool) -> Result<(), h2::Error> {
        self.stream.send_data(Chunk::new(bytes, self.meter.as_ref()), end)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        if let (Some(meter), Some(place)) = (&self.meter, self.place) {
            meter.held_up.borrow_mut().try_remove(place);
        }
    }
}

impl Chunk {
    #[inline]
    fn new(bytes: Bytes, meter: Option<&Rc<Meter>>) -> Self {
        let size = bytes.len() + PART;
        if let Some(meter) = meter {
            meter.waiting.set(meter.waiting.get() + size);
        }
        Self { bytes, meter: meter.cloned(), size, _marker: None }
    }

    /// An empty chunk, which wakes the sender when everything before it was written.
    fn marked(marker: Box<Marker>) -> Self {
        Self { bytes: Bytes::new(), meter: None, size: 0, _marker: Some(marker) }
    }

    /// An empty chunk, which carries the end of a stream.
    pub fn empty() -> Self {
        Self { bytes: Bytes::new(), meter: None, size: 0, _marker: None }
    }
}

impl Buf for Chunk {
    #[inline]
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    #[inline]
    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    #[inline]
    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Chunk {
    #[inline]
    fn drop(&mut self) {
        let Some(meter) = &self.meter else { return };
        let waiting = meter.waiting.get() - self.size;
        meter.waiting.set(waiting);
        // Waiters are woken when there is room for several parts, and not for each part.
        if waiting < MAX_WAITING / 2 && waiting + self.size >= MAX_WAITING / 2 {
            meter.wake_waiting();
        }
    }
}

impl Meter {
    /// Wakes the streams that wait for room.
    fn wake_waiting(&self) {
        for (_, waker) in self.held_up.borrow_mut().iter_mut() {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }
}

impl Raw {
    pub fn new(incoming: Incoming, stream: SendStream<Chunk>, meter: Option<Rc<Meter>>) -> Self {
        Self { incoming, read: Bytes::new(), outlet: Outlet::new(stream, meter), ended: false }
    }
}

impl AsyncRead for Raw {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read.is_empty() {
            match ready!(this.incoming.poll(cx)) {
                // Trailers have no meaning here.
                Some(Ok(frame)) => this.read = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let part = this.read.split_to(this.read.len().min(buf.remaining()));
        buf.put_slice(&part);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Raw {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // A reset by the peer has to be noticed although there is room.
        ready!(Pin::new(&mut *this).poll_flush(cx))?;
        let room = ready!(this.outlet.poll_room(buf.len(), cx))?;
        let part = Bytes::copy_from_slice(buf.get(..room).unwrap_or(buf));
        this.outlet.send(part, false).map_err(broken)?;
        Poll::Ready(Ok(room))
    }

    /// The connection's own task writes. A reset is noticed here, because a task without bytes to send would miss it.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().outlet.stream.poll_reset(cx) {
            Poll::Ready(reset) => Poll::Ready(Err(reset.map_or_else(broken, |reason| broken(reason.into())))),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::replace(&mut this.ended, true) {
            return Poll::Ready(Ok(()));
        }
        match this.outlet.stream.send_data(Chunk::empty(), true) {
            // After the end of its data, the peer may have gone.
            Err(error) if !this.incoming.is_end() => Poll::Ready(Err(broken(error))),
            Ok(()) | Err(_) => Poll::Ready(Ok(())),
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}
