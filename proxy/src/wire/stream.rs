//! A connection's bytes, in cleartext or over TLS.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio_rustls::TlsStream;

/// A connection to a client or to a target.
pub enum Stream {
    Plain(TcpStream),
    /// TLS, after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The underlying socket.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// The protocol agreed on by ALPN, if any.
    pub fn agreed(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// True if the peer has neither sent anything nor closed. This costs no system call if nothing has happened. The
    /// waker of the task that used the connection is dropped.
    #[inline]
    pub fn is_idle(&mut self) -> bool {
        let quiet = poll_fn(|cx| {
            Poll::Ready(match self {
                Self::Plain(stream) => match stream.poll_read_ready(cx) {
                    Poll::Pending => true,
                    Poll::Ready(Err(_)) => false,
                    // Unsolicited bytes are the end of the stream, or garbage.
                    Poll::Ready(Ok(())) => {
                        let read = stream.try_read(&mut [0]);
                        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
                    }
                },
                // TLS session tickets may arrive at any time, and are consumed here.
                Self::Tls(stream) => Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending(),
            })
        });
        // `unconstrained` ignores the cooperative budget: a task that has used it up would see every connection as pending.
        let cx = &mut Context::from_waker(Waker::noop());
        pin!(unconstrained(quiet)).poll(cx) == Poll::Ready(true)
    }

    /// Shuts down both directions at once, without a TLS close_notify.
    pub fn abort(&self) {
        // This fails if the connection has ended already.
        let _ = socket2::SockRef::from(self.socket()).shutdown(std::net::Shutdown::Both);
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

/// With TLS, written bytes may be buffered until the kernel takes them: see [`AsyncWrite::poll_flush`].
impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // Nothing is buffered.
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
