use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::http::body::RequestBody;
use crate::telemetry::WorkerStats;

/// A connection to a target, which carries one request after another.
///
/// It has no task of its own: whoever waits for an answer drives it, in the same task that serves the client. That saves
/// two wake-ups and two passes through the scheduler for each request, and dropping the waiting future is all there is
/// to cancelling a request. While it is idle nobody drives it; [`Connection::is_alive`] looks after it.
pub struct Connection {
    pub address: SocketAddr,
    /// How many requests it carried.
    pub requests: u32,
    sender: http1::SendRequest<RequestBody>,
    /// `None`: closed.
    driver: Option<http1::Connection<TokioIo<TargetIo>, RequestBody>>,
    relay: Arc<Relay>,
    /// Wakes `relay`.
    waker: Waker,
    seen: Rc<Seen>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the target does not accept connections")]
    Refused(#[source] io::Error),
    #[error("the target did not accept the connection in time")]
    Timeout,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("the target did not answer")]
pub struct SendError {
    #[source]
    pub error: hyper::Error,
    /// The request, when none of it was written.
    pub unsent: Option<Request<RequestBody>>,
    /// The head as it was written, when it was to be kept, and when nothing came back and the connection broke: the
    /// target had closed it while the request was on its way.
    pub lost: Option<Vec<u8>>,
}

/// Most of what is read from a target before the client has taken it, bytes.
const BUFFER: usize = 64 << 10;

impl Connection {
    pub async fn open(
        address: SocketAddr,
        timeout: Duration,
        stats: Arc<WorkerStats>,
    ) -> Result<Box<Self>, ConnectError> {
        let stream = match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(ConnectError::Refused)?,
            Err(_) => return Err(ConnectError::Timeout),
        };
        stream.set_nodelay(true).map_err(ConnectError::Refused)?;
        stats.upstream_connections.add(1);
        let seen = Rc::new(Seen::default());
        let io = TargetIo { stream, seen: Rc::clone(&seen), stats };
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| ConnectError::Refused(io::Error::other(error)))?;
        let relay = Arc::new(Relay::default());
        let waker = Waker::from(Arc::clone(&relay));
        let driver = Some(driver);
        Ok(Box::new(Self { address, requests: 0, sender, driver, relay, waker, seen }))
    }

    /// Sends a request, and waits for the head of its answer. `keep_head`: the head is kept for [`SendError::lost`].
    ///
    /// Dropping the future leaves the connection useless.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
        keep_head: bool,
    ) -> Result<Response<Incoming>, SendError> {
        self.requests += 1;
        self.seen.begin(keep_head);
        let mut response = pin!(self.sender.try_send_request(request));
        let (driver, relay, waker) = (&mut self.driver, &*self.relay, &self.waker);
        let result = poll_fn(|cx| {
            relay.wakes(cx, || {
                drive(driver, waker);
                response.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            })
        })
        .await;
        result.map_err(|mut failed| {
            let unsent = failed.take_message();
            let error = failed.into_error();
            let lost = (keep_head && unsent.is_none() && !self.seen.answered.get() && was_closed(&error))
                .then(|| self.seen.head.take());
            SendError { error, unsent, lost }
        })
    }

    /// Reads on in the answer's body.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Incoming,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (driver, relay, waker) = (&mut self.driver, &*self.relay, &self.waker);
        relay.wakes(cx, || {
            drive(driver, waker);
            Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop()))
        })
    }

    /// Whether it can take another request: the last exchange is over, and the target has not closed it, as far as is
    /// known without a system call when nothing has arrived.
    pub fn is_alive(&mut self) -> bool {
        self.relay.idle();
        drive(&mut self.driver, &self.waker);
        self.relay.loud();
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Lets the exchange go on in a task of its own, after which the connection is closed.
    pub fn detach(self) {
        if let Some(driver) = self.driver {
            let sender = self.sender;
            tokio::task::spawn_local(async move {
                // An error shows in the bodies of the exchange.
                let _ = driver.await;
                drop(sender);
            });
        }
    }
}

fn drive(driver: &mut Option<http1::Connection<TokioIo<TargetIo>, RequestBody>>, waker: &Waker) {
    if let Some(connection) = driver
        && Pin::new(connection).poll(&mut Context::from_waker(waker)).is_ready()
    {
        // Dropping it tells those who still wait; an error reaches them through the answer or its body.
        *driver = None;
    }
}

/// Whether a connection broke, rather than that something wrong came over it.
fn was_closed(error: &hyper::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return matches!(
                io.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
            );
        }
        source = cause.source();
    }
    error.is_incomplete_message() || error.is_canceled() || error.is_closed()
}

/// Passes the wake-ups of a connection on to the task that drives it now, except for those that arise while it does:
/// they would only have it run once more for nothing.
#[derive(Default)]
struct Relay {
    task: AtomicWaker,
    quiet: AtomicBool,
    woken: AtomicBool,
}

impl Relay {
    /// Calls `poll` on behalf of the task of `cx`, again when it was woken meanwhile.
    fn wakes<T>(&self, cx: &Context<'_>, mut poll: impl FnMut() -> Poll<T>) -> Poll<T> {
        self.task.register(cx.waker());
        self.quiet.store(true, Ordering::Relaxed);
        let mut result = Poll::Pending;
        // Twice at most: a task that has used up its share of time is woken at once to go on later.
        for _ in 0..2 {
            self.woken.store(false, Ordering::Relaxed);
            result = poll();
            if result.is_ready() || !self.woken.load(Ordering::Relaxed) {
                break;
            }
        }
        self.quiet.store(false, Ordering::Relaxed);
        if result.is_pending() && self.woken.load(Ordering::Relaxed) {
            self.task.wake();
        }
        result
    }

    /// No task waits for it any more.
    fn idle(&self) {
        drop(self.task.take());
        self.quiet.store(true, Ordering::Relaxed);
    }

    fn loud(&self) {
        self.quiet.store(false, Ordering::Relaxed);
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.quiet.load(Ordering::Relaxed) {
            self.woken.store(true, Ordering::Relaxed);
        } else {
            self.task.wake();
        }
    }
}

/// What went over a connection since a request began.
#[derive(Default)]
struct Seen {
    answered: Cell<bool>,
    keep_head: Cell<bool>,
    head: RefCell<Vec<u8>>,
}

impl Seen {
    fn begin(&self, keep_head: bool) {
        self.answered.set(false);
        self.keep_head.set(keep_head);
        self.head.borrow_mut().clear();
    }

    fn written<'a>(&self, n: usize, buffers: impl IntoIterator<Item = &'a [u8]>) {
        if !self.keep_head.get() {
            return;
        }
        let mut head = self.head.borrow_mut();
        let mut left = n;
        for buffer in buffers {
            let (part, _) = buffer.split_at(left.min(buffer.len()));
            head.extend_from_slice(part);
            left -= part.len();
        }
    }
}

struct TargetIo {
    stream: TcpStream,
    seen: Rc<Seen>,
    stats: Arc<WorkerStats>,
}

impl AsyncRead for TargetIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.seen.answered.set(true);
            self.stats.upstream_in.add(read as u64);
        }
        result
    }
}

impl AsyncWrite for TargetIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = result {
            self.seen.written(n, [buf]);
            self.stats.upstream_out.add(n as u64);
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // One buffer is the rule (a head without a body), and `write` is cheaper than `writev`.
        let result = match bufs {
            [only] => Pin::new(&mut self.stream).poll_write(cx, only),
            several => Pin::new(&mut self.stream).poll_write_vectored(cx, several),
        };
        if let Poll::Ready(Ok(n)) = result {
            self.seen.written(n, bufs.iter().map(|buf| &**buf));
            self.stats.upstream_out.add(n as u64);
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
