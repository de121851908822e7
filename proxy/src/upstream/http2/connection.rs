//! One HTTP/2 connection to a target, and the task that drives it.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::client::SendRequest;
use signalbox_config::{ResponseLimits, UpstreamProtocol};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::super::connect::connect;
use super::super::endpoint::Endpoint;
use super::super::error::ConnectError;
use super::super::failure::UpstreamError;
use super::super::load::{Load, Permit};
use super::super::transport::Transport;
use super::super::waiters::Waiters;
use super::keepalive::Keepalive;
use crate::telemetry::WorkerStats;
use crate::wire::http2::Chunk;
use crate::wire::stream::Stream;
use crate::wire::tls::{HTTP2, Offer, UpstreamTls};

/// A connection to a target.
pub struct Connection {
    endpoint: Endpoint,
    /// The limits for heads of answers that the target was told when the connection was opened.
    pub(super) limits: ResponseLimits,
    /// The load of the upstream that it was opened for.
    pub(super) load: Arc<Load>,
    /// `None` once the connection is closed.
    permit: Cell<Option<Permit>>,
    waiters: Rc<Waiters>,
    pub(super) phase: Cell<Phase>,
    /// `None`: it is not established yet, or takes no more requests.
    pub(super) sender: RefCell<Option<SendRequest<Chunk>>>,
    pub(super) error: RefCell<Option<ConnectError>>,
    /// The reason why it is closed, for requests that were not sent over it any more.
    pub(super) ended: Cell<UpstreamError>,
    /// Wakes the requests that wait until it is established, has failed, or has the target's settings.
    pub(super) established: Notify,
    /// The target's settings have come, which are what it sends first.
    pub(super) has_settings: Cell<bool>,
    /// Requests under way, including those that wait until it is established.
    pub(super) streams: Cell<u32>,
    /// The number of requests that were sent over it.
    sent: Cell<u32>,
    /// There was a request since the last sweep.
    pub(super) used: Cell<bool>,
    /// The number of sweeps without a request.
    unused: Cell<u32>,
    pub(super) idle_timeout: Cell<Duration>,
    /// An answer has come over it.
    pub(super) responded: Cell<bool>,
    /// Something was read since the last sweep.
    received: Rc<Cell<bool>>,
    keepalive: RefCell<Keepalive>,
    task: RefCell<Option<AbortHandle>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Connecting,
    Open,
    /// It accepts no more requests; those in flight are finished.
    Draining,
    Closed,
}

/// Bytes of an answer that a stream may hold while its client does not take them.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// The maximum number of concurrent requests per connection; fewer if the target says so.
pub const MAX_STREAMS: u32 = 100;
/// The maximum number of requests over a connection's life: half of the available stream numbers (RFC 9113, section
/// 5.1.1).
const MAX_SENT: u32 = 1 << 29;
/// A head of an answer is read up to so many times its limit, so that the error can say what is wrong with it.
const HEAD_SLACK: usize = 4;
/// Bytes of one stream that may wait to be sent.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that were reset are remembered, so many and for so long: clients that go away make many, and a target goes on
/// sending until it hears of it.
const RESET_STREAMS: usize = 4096;
const RESET_FOR: Duration = Duration::from_secs(30);
/// Bytes that h2 keeps for small frames that clients have not taken, before it closes the connection. Full windows of messages
/// of 40 bytes, of all streams at once, would be more.
const SMALL_FRAMES: usize = 32 << 20;

impl Connection {
    /// Begins to open a connection, in a task of its own.
    pub fn begin(
        endpoint: Endpoint,
        transport: &Transport,
        permit: Permit,
        waiters: &Rc<Waiters>,
        stats: &Arc<WorkerStats>,
    ) -> Rc<Self> {
        let connection = Rc::new(Self {
            endpoint,
            limits: transport.response_limits,
            load: Arc::clone(&transport.load),
            permit: Cell::new(Some(permit)),
            waiters: Rc::clone(waiters),
            phase: Cell::new(Phase::Connecting),
            sender: RefCell::default(),
            error: RefCell::default(),
            ended: Cell::new(UpstreamError::ConnectionClosed),
            established: Notify::new(),
            has_settings: Cell::default(),
            streams: Cell::new(0),
            sent: Cell::new(0),
            used: Cell::new(true),
            unused: Cell::new(0),
            idle_timeout: Cell::new(transport.idle_timeout),
            responded: Cell::new(false),
            received: Rc::default(),
            keepalive: RefCell::default(),
            task: RefCell::default(),
        });
        let to = Destination {
            endpoint,
            tls: transport.tls.clone(),
            auto: transport.protocol == UpstreamProtocol::Auto,
            timeout: transport.connect_timeout,
            limits: transport.response_limits,
        };
        let run = Rc::clone(&connection).run(to, Arc::clone(stats));
        *connection.task.borrow_mut() = Some(tokio::task::spawn_local(run).abort_handle());
        connection
    }

    /// Returns true if it accepts another stream. `max_streams` is the target's latest known limit, and is updated once
    /// the target has sent its settings: h2 would queue requests beyond the limit behind those that run.
    pub fn has_room(&self, max_streams: &mut u32) -> bool {
        match self.phase.get() {
            Phase::Connecting => {}
            Phase::Open => {
                if self.has_settings.get()
                    && let Some(sender) = &*self.sender.borrow()
                {
                    let max = u32::try_from(sender.current_max_send_streams()).unwrap_or(u32::MAX);
                    *max_streams = max.min(MAX_STREAMS);
                }
            }
            Phase::Draining | Phase::Closed => return false,
        }
        self.streams.get() < *max_streams
    }

    /// Opens it, and then drives it to its end.
    async fn run(self: Rc<Self>, to: Destination, stats: Arc<WorkerStats>) {
        let received = Rc::clone(&self.received);
        match open(&to, received, stats).await {
            Ok((sender, mut connection)) => {
                self.keepalive.borrow_mut().pings = connection.ping_pong();
                *self.sender.borrow_mut() = Some(sender);
                self.phase.set(Phase::Open);
                self.established.notify_waiters();
                // The request that it was opened for may have gone meanwhile.
                if self.streams.get() == 0 && self.load.is_awaited() {
                    self.offer_room();
                }
                poll_fn(|cx| {
                    let polled = Pin::new(&mut connection).poll(cx);
                    if !self.has_settings.get() && self.received.get() {
                        self.has_settings.set(true);
                        self.established.notify_waiters();
                    }
                    // Its requests learn how it ended.
                    polled.map(|ended| {
                        if let Err(error) = ended {
                            self.ended.set(UpstreamError::of_http2(&error));
                        }
                    })
                })
                .await;
            }
            Err(error) => *self.error.borrow_mut() = Some(error),
        }
        self.phase.set(Phase::Closed);
        self.sender.take();
        self.permit.take();
        self.established.notify_waiters();
    }

    /// Counts a request that was sent over it. Before the stream numbers run out, the connection starts to drain.
    pub(super) fn count_sent(&self) {
        self.sent.set(self.sent.get().saturating_add(1));
        if self.sent.get() >= MAX_SENT {
            self.drain();
        }
    }

    /// Takes no more requests.
    pub fn drain(&self) {
        if self.phase.get() == Phase::Open {
            self.phase.set(Phase::Draining);
            self.sender.take();
        }
    }

    pub fn is_idle(&self) -> bool {
        self.phase.get() == Phase::Open && self.streams.get() == 0
    }

    /// Closes an idle connection, and frees its permit for a request that waits. It makes no difference that the socket is closed a
    /// moment later.
    pub fn close_idle(&self) {
        self.drain();
        self.permit.take();
    }

    /// Stops accepting requests; closes the connection if it has none.
    pub fn retire(&self) {
        match self.is_idle() {
            true => self.close_idle(),
            false => self.drain(),
        }
    }

    /// Offers room to a request that waits. An idle connection goes to one that waits here or, by being closed, to one that waits on
    /// another worker, as connections of HTTP/1.1 do.
    pub(super) fn offer_room(&self) {
        if self.is_idle() {
            match self.waiters.win_draw(&self.load) {
                true => self.waiters.connection_returned(&self.load),
                false => self.close_idle(),
            }
        } else if matches!(self.phase.get(), Phase::Connecting | Phase::Open) {
            self.waiters.has_room(&self.load, self.endpoint);
        }
    }

    /// Counts idle time and checks the target. `false`: the connection is closed.
    pub fn sweep(&self) -> bool {
        if self.phase.get() == Phase::Closed {
            return false;
        }
        if self.streams.get() > 0 || self.used.replace(false) {
            self.unused.set(0);
        } else {
            self.unused.set(self.unused.get() + 1);
            if u64::from(self.unused.get()) >= self.idle_timeout.get().as_secs_f64().ceil() as u64 {
                self.drain();
            }
        }
        let received = self.received.replace(false);
        if self.keepalive.borrow_mut().is_dead(received, self.streams.get() > 0) {
            self.phase.set(Phase::Closed);
            self.established.notify_waiters();
            // Its requests see the end.
            if let Some(task) = &*self.task.borrow() {
                task.abort();
            }
            self.sender.take();
            self.permit.take();
            return false;
        }
        true
    }
}

/// An established connection, and the handle that sends requests over it.
type Opened = (SendRequest<Chunk>, h2::client::Connection<TargetIo, Chunk>);

/// The target of a connection, and how to reach it.
struct Destination {
    endpoint: Endpoint,
    tls: Option<Arc<UpstreamTls>>,
    /// True if the target may choose HTTP/1.1.
    auto: bool,
    timeout: Duration,
    limits: ResponseLimits,
}

async fn open(
    to: &Destination,
    received: Rc<Cell<bool>>,
    stats: Arc<WorkerStats>,
) -> Result<Opened, ConnectError> {
    let stream = connect(to.endpoint, to.tls.as_deref(), Offer::Any, to.timeout).await?;
    if to.auto && stream.agreed() != Some(HTTP2) {
        return Err(ConnectError::OtherProtocol);
    }
    stats.upstream_connections.add(1);
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * MAX_STREAMS)
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_header_list_size(u32::try_from(HEAD_SLACK * to.limits.header_size).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_FOR)
        .max_local_error_reset_streams(None)
        .data_frame_budget(SMALL_FRAMES);
    // The handshake writes as much as the socket takes at once, and does not wait for the target.
    let opened =
        tokio::time::timeout(to.timeout, builder.handshake(TargetIo { stream, received, stats })).await;
    let opened = opened.map_err(|_| ConnectError::Timeout)?;
    opened.map_err(|error| ConnectError::Http2(Arc::new(error)))
}

/// The socket, which notes when something is received.
struct TargetIo {
    stream: Stream,
    received: Rc<Cell<bool>>,
    stats: Arc<WorkerStats>,
}

impl AsyncRead for TargetIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            this.received.set(true);
            this.stats.upstream_in.add(read as u64);
        }
        result
    }
}

impl TargetIo {
    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = result {
            self.stats.upstream_out.add(*n as u64);
        }
    }
}

impl AsyncWrite for TargetIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(&result);
        result
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_left_before_its_streams_run_out_of_numbers() {
        let connection = Connection {
            endpoint: Endpoint { address: ([127, 0, 0, 1], 1).into(), settings: 0, only_of: 0 },
            limits: ResponseLimits::default(),
            load: Arc::default(),
            permit: Cell::default(),
            waiters: Rc::default(),
            phase: Cell::new(Phase::Open),
            sender: RefCell::default(),
            error: RefCell::default(),
            ended: Cell::new(UpstreamError::ConnectionClosed),
            established: Notify::new(),
            has_settings: Cell::default(),
            streams: Cell::new(0),
            sent: Cell::new(MAX_SENT - 2),
            used: Cell::new(false),
            unused: Cell::new(0),
            idle_timeout: Cell::default(),
            responded: Cell::new(false),
            received: Rc::default(),
            keepalive: RefCell::default(),
            task: RefCell::default(),
        };
        let mut max_streams = MAX_STREAMS;
        connection.count_sent();
        assert!(connection.has_room(&mut max_streams));
        connection.count_sent();
        assert!(!connection.has_room(&mut max_streams));
    }
}
