//! What both sides of HTTP/2 have in common: bodies as they come and go, and a stream that carries anything.

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

use crate::http::head::OF_A_CONNECTION;

/// A body as the peer sends it. What is taken of it is what the peer may send more of.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    /// Bytes to come, where the peer said how many.
    left: Option<u64>,
    data_over: bool,
    over: bool,
    /// Told that it is waited for, where the peer wants to know before it sends any.
    awaited: Option<Rc<Cell<bool>>>,
}

/// A body on its way to the peer.
pub struct Sending {
    outlet: Outlet,
    /// Waits for the peer to take more; and whether it is the last.
    held: Option<(Bytes, bool)>,
    /// Dropped by the connection when it has written all that came before it.
    marker: Option<Weak<()>>,
}

/// Where bytes go to the peer, as many as it takes.
struct Outlet {
    stream: SendStream<Chunk>,
    /// Of the connection, where what it holds is limited.
    meter: Option<Rc<Meter>>,
    /// Its place there, once it had to wait.
    place: Option<usize>,
}

/// Why a body is not sent to its end.
#[derive(Debug)]
pub enum Stopped<E> {
    /// The peer takes no more, or has gone.
    ByPeer,
    /// It ended early. What becomes of the stream is up to who sends it.
    Body(E),
}

/// Bytes that wait in a connection to be written.
pub struct Chunk {
    bytes: Bytes,
    meter: Option<Rc<Meter>>,
    /// As it was counted.
    size: usize,
    /// Wakes the sender when the chunk is dropped.
    _marker: Option<Box<Marker>>,
}

/// Wakes a task when it is dropped: then all that was sent before it has been written, or is not going to be.
struct Marker {
    alive: Rc<()>,
    waker: Waker,
}

impl Drop for Marker {
    fn drop(&mut self) {
        self.waker.wake_by_ref();
    }
}

/// How much waits in a connection to be written, of all its streams together. Without a limit a client that opens many of
/// them, and then does not read, would make the proxy keep the beginning of each answer.
#[derive(Default)]
pub struct Meter {
    waiting: Cell<usize>,
    /// Those that have waited for room, and who is to be told of it.
    held_up: RefCell<Slab<Option<Waker>>>,
}

/// What may wait in a connection before more is taken of the bodies that go through it, bytes.
const MAX_WAITING: usize = 256 << 10;

/// What a part takes in h2 beside its bytes: so that many small ones count.
const PART: usize = 320;

/// Bytes both ways over a stream, once both sides have agreed that it is not for messages any more.
pub struct Raw {
    incoming: Incoming,
    /// What was read beyond what was asked for.
    read: Bytes,
    outlet: Outlet,
    /// The end was sent.
    ended: bool,
}

impl Incoming {
    /// The body behind `headers`.
    #[inline]
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let over = stream.is_end_stream();
        let length = if over { None } else { headers.get(header::CONTENT_LENGTH) };
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream, left, data_over: over, over, awaited: None }
    }

    /// Lets it be known when it is waited for.
    pub fn tell(&mut self) -> Rc<Cell<bool>> {
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
                    // It only fails when more is released than was taken.
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

    /// Sends as much of `body` as the peer takes. Ready when there is no more to send. `prepare` sees to its trailers.
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
                // They have no place in HTTP/2 (RFC 9113, section 8.2.2).
                for name in OF_A_CONNECTION.iter().chain(&[header::TE]) {
                    trailers.remove(name);
                }
                self.outlet.stream.send_trailers(trailers)
            }
        };
        if sent.is_err() {
            // Nobody is to wait for what does not come. Where it is the peer that has ended the stream, this does nothing.
            self.outlet.stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    /// Sends what is held, as far as the peer takes it: what h2 has is only waiting to be written. Ready when nothing is held any
    /// more; and whether that was the last.
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

    /// Whether the peer takes no more; else the task is woken when that is so.
    #[inline]
    pub fn is_reset(&mut self, cx: &mut Context<'_>) -> bool {
        self.outlet.stream.poll_reset(cx).is_ready()
    }

    /// Waits until the connection has written all that was sent. A reset would overtake it.
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

    /// Breaks off.
    pub fn reset(&mut self, reason: Reason) {
        self.outlet.stream.send_reset(reason);
    }
}

impl Outlet {
    fn new(stream: SendStream<Chunk>, meter: Option<Rc<Meter>>) -> Self {
        Self { stream, meter, place: None }
    }

    /// Whether enough waits in the connection; else the task is woken when that is over.
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

    /// How many of so many bytes the peer takes now, at least one.
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

    /// An empty chunk, which wakes the sender when all before it was written.
    fn marked(marker: Box<Marker>) -> Self {
        Self { bytes: Bytes::new(), meter: None, size: 0, _marker: Some(marker) }
    }

    /// Nothing, which the end of a stream goes with.
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
        // Not for each part that goes, but when there is room for several.
        if waiting < MAX_WAITING / 2 && waiting + self.size >= MAX_WAITING / 2 {
            meter.tell();
        }
    }
}

impl Meter {
    /// Wakes those who wait for room.
    fn tell(&self) {
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
                // Trailers mean nothing here.
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
        // A peer that takes no more is to be noticed although there is room.
        ready!(Pin::new(&mut *this).poll_flush(cx))?;
        let room = ready!(this.outlet.poll_room(buf.len(), cx))?;
        let part = Bytes::copy_from_slice(buf.get(..room).unwrap_or(buf));
        this.outlet.send(part, false).map_err(broken)?;
        Poll::Ready(Ok(room))
    }

    /// The connection's own task writes. A peer that takes no more is noticed here, for who has nothing to say to it.
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
            // A peer that has said all may have gone.
            Err(error) if !this.incoming.is_end() => Poll::Ready(Err(broken(error))),
            Ok(()) | Err(_) => Poll::Ready(Ok(())),
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}
