//! A connection's bytes, in the clear or through TLS.

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
    /// Its handshake is over.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// What both sides agreed to speak while TLS was set up.
    pub fn agreed(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// Whether the peer has sent nothing and not closed, as far as is known without a system call when nothing has
    /// happened. The task that used the connection is let go of.
    #[inline]
    pub fn is_quiet(&mut self) -> bool {
        let quiet = poll_fn(|cx| {
            Poll::Ready(match self {
                Self::Plain(stream) => match stream.poll_read_ready(cx) {
                    Poll::Pending => true,
                    Poll::Ready(Err(_)) => false,
                    // What comes without being asked is the end, or nonsense.
                    Poll::Ready(Ok(())) => {
                        let read = stream.try_read(&mut [0]);
                        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
                    }
                },
                // Session tickets may come at any time, and are taken here.
                Self::Tls(stream) => Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending(),
            })
        });
        // A task that has done much would be told of every connection that nothing has come.
        let cx = &mut Context::from_waker(Waker::noop());
        pin!(unconstrained(quiet)).poll(cx) == Poll::Ready(true)
    }

    /// Ends it both ways at once, without a farewell.
    pub fn abort(&self) {
        // It fails when it has ended already.
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

/// Through TLS, what is written may wait within for the kernel to take it: see [`AsyncWrite::poll_flush`].
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
            // There is nothing to flush.
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
