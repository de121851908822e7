//! The socket of a client's connection, with its counters.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::splice::{Filled, Pipes, Transfer};
use super::stream::Stream;
use crate::core::deadlines::Deadline;
use crate::telemetry::WorkerStats;

/// The socket of a client's connection, with its counters.
pub struct ClientIo {
    stream: Stream,
    stats: Arc<WorkerStats>,
    activity: Rc<WriteActivity>,
    /// The worker's buffer for writes of one piece.
    scratch: Rc<RefCell<Vec<u8>>>,
    /// The worker's pipes.
    pipes: Rc<Pipes>,
    /// Bytes that were read to detect the protocol, and that the protocol's reader gets again.
    begun: [u8; 24],
    begun_len: u8,
    replayed: u8,
}

/// Signs that the client reads the responses.
#[derive(Debug, Default)]
pub struct WriteActivity {
    wrote: Cell<bool>,
    requests: Cell<u32>,
}

/// The client's protocol, as detected from its first bytes.
pub enum Sniffed {
    Http1,
    Http2,
    Closed,
    /// Some bytes arrived, but not enough in time.
    Slow,
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a closing connection is still read, so that a client that is still sending receives the response: the
/// kernel resets a connection that is closed with unread data. The number of bytes has no limit: to read and drop them
/// costs less than to forward them.
pub const LINGER: Duration = Duration::from_secs(2);

/// Up to this total size in bytes, head and body are copied into one buffer, because one plain write is faster than a
/// vectored one.
const COPY: usize = 4 << 10;

impl WriteActivity {
    /// Returns true if something was written since the last call.
    pub fn take_written(&self) -> bool {
        self.wrote.replace(false)
    }

    /// Counts a request. Returns the number of requests since something was last written.
    pub fn count_request(&self) -> u32 {
        self.requests.set(self.requests.get().saturating_add(1));
        self.requests.get()
    }
}

impl ClientIo {
    /// Wraps a stream. `begun` are bytes that were read from the socket before, at most 24.
    pub fn new(
        stream: Stream,
        begun: &[u8],
        stats: Arc<WorkerStats>,
        activity: Rc<WriteActivity>,
        scratch: Rc<RefCell<Vec<u8>>>,
        pipes: Rc<Pipes>,
    ) -> Self {
        let mut io =
            Self { stream, stats, activity, scratch, pipes, begun: [0; 24], begun_len: 0, replayed: 0 };
        if let Some(room) = io.begun.get_mut(..begun.len()) {
            room.copy_from_slice(begun);
            io.begun_len = begun.len() as u8;
        }
        io
    }

    /// Reads as far as needed to tell HTTP/2 with prior knowledge (RFC 9113, section 3.3) from HTTP/1.1. `begins` is
    /// called on the first byte.
    pub async fn sniff(&mut self, deadline: &Deadline, begins: impl Fn()) -> Sniffed {
        poll_fn(|cx| {
            deadline.register(cx.waker());
            loop {
                let have = usize::from(self.begun_len);
                let (known, rest) = self.begun.split_at_mut(have);
                if !PREFACE.starts_with(known) {
                    return Poll::Ready(Sniffed::Http1);
                }
                if rest.is_empty() {
                    return Poll::Ready(Sniffed::Http2);
                }
                let mut buf = ReadBuf::new(rest);
                match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                        let read = buf.filled().len();
                        self.begun_len += read as u8;
                        self.stats.downstream_in.add(read as u64);
                        begins();
                    }
                    Poll::Ready(_) => return Poll::Ready(Sniffed::Closed),
                    Poll::Pending if !deadline.passed() => return Poll::Pending,
                    Poll::Pending if have > 0 => return Poll::Ready(Sniffed::Slow),
                    Poll::Pending => return Poll::Ready(Sniffed::Closed),
                }
            }
        })
        .await
    }

    /// Resets the detection: the next request is sniffed again.
    pub fn forget_sniffed(&mut self) {
        self.begun_len = 0;
        self.replayed = 0;
    }

    /// Returns true if bytes pass through the socket unchanged, so that they can be spliced.
    pub fn is_plain(&self) -> bool {
        matches!(self.stream, Stream::Plain(_)) && self.replayed == self.begun_len
    }

    /// Takes up to `most` bytes from the socket.
    pub fn poll_fill(
        &self,
        transfer: &mut Transfer,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Filled>> {
        let Stream::Plain(socket) = &self.stream else { return Poll::Ready(Ok(Filled::Unavailable)) };
        let filled = ready!(transfer.poll_fill(&self.pipes, socket, most, cx))?;
        if let Filled::Bytes(n) = filled {
            self.stats.downstream_in.add(n as u64);
        }
        Poll::Ready(Ok(filled))
    }

    /// Gives what `transfer` holds on to the socket.
    pub fn poll_drain(&self, transfer: &mut Transfer, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Stream::Plain(socket) = &self.stream else { return Poll::Ready(Ok(0)) };
        let result = transfer.poll_drain(socket, cx);
        self.count_written(&result);
        result
    }

    fn count_written(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = result {
            self.activity.wrote.set(true);
            self.activity.requests.set(0);
            self.stats.downstream_out.add(*n as u64);
        }
    }
}

/// Reads and drops what a client is still sending, and then closes (lingering close).
pub async fn linger(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let drained = async {
        io.shutdown().await?;
        tokio::io::copy(&mut io, &mut tokio::io::sink()).await
    };
    // However this ends, the connection is closed.
    let _ = tokio::time::timeout(LINGER, drained).await;
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.replayed < this.begun_len {
            let rest = this.begun.get(usize::from(this.replayed)..usize::from(this.begun_len));
            let rest = rest.unwrap_or_default();
            let part = rest.get(..buf.remaining()).unwrap_or(rest);
            buf.put_slice(part);
            this.replayed += part.len() as u8;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            this.stats.downstream_in.add(read as u64);
        }
        result
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.count_written(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let size: usize = bufs.iter().map(|buf| buf.len()).sum();
        let result = match bufs {
            [only] => Pin::new(&mut this.stream).poll_write(cx, only),
            several if size <= COPY => {
                let mut whole = this.scratch.borrow_mut();
                whole.clear();
                several.iter().for_each(|buf| whole.extend_from_slice(buf));
                Pin::new(&mut this.stream).poll_write(cx, &whole)
            }
            several => Pin::new(&mut this.stream).poll_write_vectored(cx, several),
        };
        this.count_written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
