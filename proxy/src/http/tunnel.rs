//! A connection that has switched to another protocol: bytes both ways, until both sides have ended.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::exchange::Exchange;
use crate::telemetry::Flag;
use crate::upstream::Switched;

/// What remains of an exchange whose target has agreed to switch.
pub(super) struct Tunnel {
    exchange: Box<Exchange>,
    target: Switched,
    idle_timeout: Option<Duration>,
}

/// Bytes on their way from one side to the other.
struct Lane {
    buffer: BytesMut,
    /// Nothing more comes; what came is still to be written.
    ended: bool,
    /// The other side was told so.
    told: bool,
    passed: u64,
}

/// What is read at once, bytes. Twice of it is what a tunnel takes.
const READ: usize = 16 << 10;

impl Tunnel {
    pub(super) fn new(exchange: Box<Exchange>, target: Switched, idle_timeout: Option<Duration>) -> Self {
        Self { exchange, target, idle_timeout }
    }

    /// Moves bytes until both sides have ended, one of them breaks, or nothing comes for too long. `read` is what was read
    /// of the client already.
    pub(super) async fn run(self, mut client: impl AsyncRead + AsyncWrite + Unpin, read: &[u8]) {
        let Self { mut exchange, target: Switched { mut stream, buffer, stats, .. }, idle_timeout } = self;
        // That of HTTP/2 is its connection's.
        let downstream = Rc::clone(&exchange.downstream);
        let own = downstream.http2.get().then(|| downstream.worker.deadlines.add());
        let deadline = own.as_ref().unwrap_or(&downstream.deadline);
        let set = || deadline.set(idle_timeout.map(|timeout| Instant::now() + timeout));
        let mut up = Lane::new(BytesMut::from(read));
        let mut down = Lane::new(buffer);
        exchange.goes_on();
        set();
        let flag = poll_fn(|cx| {
            deadline.register(cx.waker());
            let before = up.passed + down.passed;
            let both = [up.poll(&mut client, &mut stream, cx), down.poll(&mut stream, &mut client, cx)];
            if up.passed + down.passed > before {
                set();
            }
            match both {
                [Poll::Ready(Ok(())), Poll::Ready(Ok(()))] => Poll::Ready(Flag::None),
                // The target has said all, and does not listen any more.
                [Poll::Ready(Err(Side::To)), Poll::Ready(Ok(()))] => Poll::Ready(Flag::None),
                [Poll::Ready(Err(Side::To)), _] | [_, Poll::Ready(Err(Side::From))] => {
                    Poll::Ready(Flag::UpstreamReset)
                }
                [Poll::Ready(Err(Side::From)), _] | [_, Poll::Ready(Err(Side::To))] => {
                    Poll::Ready(Flag::DownstreamClosed)
                }
                _ if deadline.passed() => Poll::Ready(Flag::StreamIdle),
                _ => Poll::Pending,
            }
        })
        .await;
        if let Some(stats) = stats {
            stats.upstream_in.add(down.passed);
            stats.upstream_out.add(up.passed);
        }
        exchange.bytes_out += down.passed;
        exchange.tunnelled(up.passed);
        exchange.fail(flag);
    }
}

/// Which side broke.
enum Side {
    From,
    To,
}

impl Lane {
    fn new(buffer: BytesMut) -> Self {
        Self { buffer, ended: false, told: false, passed: 0 }
    }

    /// Ready when one side has ended, and the other knows.
    fn poll(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Side>> {
        loop {
            while !self.buffer.is_empty() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer)).map_err(|_| Side::To)? {
                    0 => return Poll::Ready(Err(Side::To)),
                    written => {
                        self.buffer.advance(written);
                        self.passed += written as u64;
                    }
                }
            }
            if self.ended {
                if !self.told {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Side::To)?;
                    self.told = true;
                }
                return Poll::Ready(Ok(()));
            }
            self.buffer.reserve(READ);
            match poll_read_buf(Pin::new(&mut *from), cx, &mut self.buffer) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::From)),
                Poll::Pending => {
                    // Through TLS, what was written may not have gone.
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Side::To)?;
                    return Poll::Pending;
                }
            }
        }
    }
}
