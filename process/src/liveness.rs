//! Noticing a peer that is gone without a word. A connection is dead when no byte came over it for long enough, although
//! its peer was asked to say something.
//!
//! The layers above send the question, an HTTP/2 ping. They are not asked to time the answer: under load it waits behind
//! everything that the peer has to read first, and its delay says nothing about the connection.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A connection whose reads fail when nothing came for too long.
#[derive(Debug)]
pub struct Liveness<S> {
    stream: S,
    silence: Silence,
    timer: Pin<Box<Sleep>>,
}

impl<S> Liveness<S> {
    /// Watches `stream` from now on. `limit` is how long the peer may be silent; it has to be longer than the time after which a
    /// layer above asks the peer for a sign of life.
    pub fn new(stream: S, limit: Duration) -> Self {
        let now = Instant::now();
        Self {
            stream,
            silence: Silence { limit, heard_at: now, suspected: false },
            timer: Box::pin(tokio::time::sleep_until(now + limit)),
        }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

/// Has the kernel end a connection when the peer's host does not acknowledge what was sent for `limit`. A failure is logged only,
/// because silence is noticed without it.
pub fn set_unacknowledged_limit(socket: impl AsFd, limit: Duration) {
    let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(socket, millis) {
        tracing::debug!(%error, "TCP_USER_TIMEOUT could not be set");
    }
}

/// How long a peer has been silent.
#[derive(Debug)]
struct Silence {
    limit: Duration,
    heard_at: Instant,
    /// The limit has passed, and only the second look is to come.
    suspected: bool,
}

impl Silence {
    fn on_bytes(&mut self, now: Instant) {
        self.heard_at = now;
        self.suspected = false;
    }

    /// When to look again; `None`: the connection is dead.
    ///
    /// One look does not suffice: after this process stood still, its timers fire before it has read what came meanwhile.
    fn on_timer(&mut self, now: Instant) -> Option<Instant> {
        let limit = self.heard_at + self.limit;
        if now < limit {
            return Some(limit);
        }
        (!std::mem::replace(&mut self.suspected, true)).then(|| now + SECOND_LOOK)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Liveness<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            if buf.filled().len() > before {
                this.silence.on_bytes(Instant::now());
            }
            return read;
        }
        while this.timer.as_mut().poll(cx).is_ready() {
            match this.silence.on_timer(Instant::now()) {
                Some(next) => this.timer.as_mut().reset(next),
                None => {
                    let text = format!("it sent nothing for {:?}", this.silence.limit);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
                }
            }
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Liveness<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// How long a process that stood still may take to read what came meanwhile.
const SECOND_LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[test]
    fn only_silence_until_the_second_look_ends_a_connection() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence { limit: Duration::from_secs(10), heard_at: start, suspected: false };
        silence.on_bytes(at(8));
        assert_eq!(silence.on_timer(at(10)), Some(at(18)), "it said something meanwhile");
        assert_eq!(silence.on_timer(at(18)), Some(at(18) + SECOND_LOOK));
        silence.on_bytes(at(18));
        assert_eq!(silence.on_timer(at(19)), Some(at(28)), "what had come was read late");
        assert_eq!(silence.on_timer(at(28)), Some(at(28) + SECOND_LOOK));
        assert_eq!(silence.on_timer(at(29)), None);
    }

    #[tokio::test]
    async fn a_read_fails_when_the_peer_stays_silent() {
        let (stream, mut peer) = tokio::io::duplex(16);
        let mut stream = Liveness::new(stream, Duration::from_millis(50));
        peer.write_all(b"a").await.unwrap();
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut byte)).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn bytes_that_came_before_the_timer_was_looked_at_are_read() {
        let (stream, mut peer) = tokio::io::duplex(16);
        // The limit has passed when it is read first.
        let mut stream = Liveness::new(stream, Duration::ZERO);
        peer.write_all(b"a").await.unwrap();
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_no_silence() {
        let (stream, peer) = tokio::io::duplex(16);
        let mut stream = Liveness::new(stream, DEADLINE);
        drop(peer);
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
}
