//! A connection that has switched to another protocol: bytes in both directions, until both sides have ended.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::exchange::Exchange;
use crate::core::failure::Failure;
use crate::upstream::Switched;

/// The rest of an exchange whose target has agreed to switch.
pub(super) struct Tunnel {
    exchange: Box<Exchange>,
    target: Switched,
    idle_timeout: Option<Duration>,
}

/// One direction of a tunnel.
struct Direction {
    buffer: BytesMut,
    /// True at the end of the input; buffered bytes may still have to be written.
    ended: bool,
    /// True once the end was passed on to the other side.
    end_sent: bool,
    passed: u64,
}

/// The buffer size in bytes. A tunnel has two.
const READ: usize = 16 << 10;

impl Tunnel {
    pub(super) fn new(exchange: Box<Exchange>, target: Switched, idle_timeout: Option<Duration>) -> Self {
        Self { exchange, target, idle_timeout }
    }

    /// Moves bytes until both sides have ended, one of them breaks, or nothing arrives for too long. `read` are the
    /// client's bytes that were read already.
    pub(super) async fn run(self, mut client: impl AsyncRead + AsyncWrite + Unpin, read: &[u8]) {
        let Self { mut exchange, target: Switched { mut stream, buffer, stats, .. }, idle_timeout } = self;
        let deadline = Rc::clone(exchange.request.deadline());
        let set = || deadline.set(idle_timeout.map(|timeout| Instant::now() + timeout));
        let mut up = Direction::new(BytesMut::from(read));
        let mut down = Direction::new(buffer);
        exchange.continues_later();
        set();
        let ended = poll_fn(|cx| {
            deadline.register(cx.waker());
            let before = up.passed + down.passed;
            let both = [up.poll(&mut client, &mut stream, cx), down.poll(&mut stream, &mut client, cx)];
            if up.passed + down.passed > before {
                set();
            }
            match both {
                [Poll::Ready(Ok(())), Poll::Ready(Ok(()))] => Poll::Ready(None),
                // The target has sent everything, and no longer reads.
                [Poll::Ready(Err(Side::To)), Poll::Ready(Ok(()))] => Poll::Ready(None),
                [Poll::Ready(Err(Side::To)), _] | [_, Poll::Ready(Err(Side::From))] => {
                    Poll::Ready(Some(Failure::Reset))
                }
                [Poll::Ready(Err(Side::From)), _] | [_, Poll::Ready(Err(Side::To))] => {
                    Poll::Ready(Some(Failure::ClientGone))
                }
                _ if deadline.passed() => Poll::Ready(Some(Failure::StreamIdle)),
                _ => Poll::Pending,
            }
        })
        .await;
        if let Some(stats) = stats {
            stats.upstream_in.add(down.passed);
            stats.upstream_out.add(up.passed);
        }
        exchange.tunnelled(up.passed, down.passed);
        match ended {
            None => exchange.complete(),
            Some(failure) => exchange.fail(failure),
        }
    }
}

/// The side that broke.
enum Side {
    From,
    To,
}

impl Direction {
    fn new(buffer: BytesMut) -> Self {
        Self { buffer, ended: false, end_sent: false, passed: 0 }
    }

    /// Ready when one side has ended, and the end was passed on to the other.
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
                if !self.end_sent {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Side::To)?;
                    self.end_sent = true;
                }
                return Poll::Ready(Ok(()));
            }
            self.buffer.reserve(READ);
            match poll_read_buf(Pin::new(&mut *from), cx, &mut self.buffer) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::From)),
                Poll::Pending => {
                    // With TLS, written bytes may still be buffered.
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Side::To)?;
                    return Poll::Pending;
                }
            }
        }
    }
}
