//! HTTP/2 as it is spoken to targets (RFC 9113): connections that many requests share.
//!
//! Each connection has a task, which reads and writes for all its requests; a request's own task sends and takes what is
//! its own. Memory: a stream holds at most [`STREAM_WINDOW`] that its client does not take, and a connection's window is
//! that of all its streams together, so that a client that takes nothing holds up nobody else.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{self, HeaderName};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, request, response};
use http_body::{Frame, SizeHint};
use signalbox_config::{ResponseLimits, UpstreamLimits, UpstreamProtocol};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{ConnectError, ExchangeError, Outgoing, Switched, connect};
use super::failure::UpstreamError;
use super::http1::{Head, Malformed};
use super::load::{Load, Permit};
use super::waiters::Waiters;
use super::{Endpoint, Pool, Upstream};
use crate::http::body::{RequestBody, RequestBodyError};
use crate::http::head::OF_A_CONNECTION;
use crate::http::switch::accept_of;
use crate::http1::remove_unfit_trailers;
use crate::http2::{Chunk, Incoming, Raw, Sending, Stopped};
use crate::stream::Stream;
use crate::telemetry::WorkerStats;
use crate::tls::{HTTP2, Offer, UpstreamTls};

/// One worker's HTTP/2 connections. They belong to an endpoint, so they outlive revisions.
pub struct Connections {
    groups: RefCell<HashMap<Endpoint, Group, RandomState>>,
    /// Who waits for one.
    waiters: Rc<Waiters>,
}

/// The connections to one endpoint.
struct Group {
    connections: Vec<Rc<Connection>>,
    /// How many streams the target takes over one connection, as it said last.
    max_streams: u32,
}

struct Connection {
    endpoint: Endpoint,
    /// What was agreed on for the heads of answers when it was made.
    limits: ResponseLimits,
    /// Of the upstream that it was made for.
    load: Arc<Load>,
    /// Until it is over, or was idle and given up.
    permit: Cell<Option<Permit>>,
    waiters: Rc<Waiters>,
    phase: Cell<Phase>,
    /// `None`: it is not there yet, or takes no more requests.
    sender: RefCell<Option<SendRequest<Chunk>>>,
    error: RefCell<Option<ConnectError>>,
    /// Why it is over, for requests that were not sent over it any more.
    ended: Cell<UpstreamError>,
    /// Tells those who wait for it that it is there, or will not be, and when it is settled.
    made: Notify,
    /// Whether the target has said what it takes: its settings are what it says first.
    settled: Cell<bool>,
    /// Requests under way, those included that wait for it.
    streams: Cell<u32>,
    /// Requests that were sent over it.
    sent: Cell<u32>,
    /// Whether there was a request since the last sweep.
    used: Cell<bool>,
    /// Sweeps without a request.
    unused: Cell<u32>,
    idle_timeout: Cell<Duration>,
    /// Whether an answer has come over it.
    proven: Cell<bool>,
    /// Whether anything was read since the last sweep.
    heard: Rc<Cell<bool>>,
    watch: RefCell<Watch>,
    task: RefCell<Option<AbortHandle>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    /// Takes no more requests; what runs is finished.
    Leaving,
    Over,
}

/// Finds out whether the target is still there.
#[derive(Default)]
struct Watch {
    pings: Option<PingPong>,
    state: Watching,
}

/// In sweeps, which are a second apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watching {
    Silent(u32),
    /// It was asked, and has not answered.
    Asked(u32),
    /// It answered, and has nothing else to say.
    Answered(u32),
}

/// A request's place on a connection.
pub(super) struct Place(Rc<Connection>);

/// Why there is no place.
enum Lack<'a> {
    /// One worker has no more connections to one endpoint.
    Connections,
    /// The upstream may have no more connections.
    Permit(&'a UpstreamLimits),
}

/// A request as it is sent, and what is needed to send it again.
pub(super) struct Sender {
    head: Request<()>,
    has_body: bool,
    sending: Option<Sending>,
    switching: Option<Box<Switching>>,
}

/// A request to switch to another protocol (RFC 8441).
struct Switching {
    protocol: HeaderValue,
    /// What proves to who asked as HTTP/1.1 does that the target has switched.
    accept: Option<HeaderValue>,
    /// The way to the target.
    stream: Option<SendStream<Chunk>>,
}

/// The body of an answer.
pub struct Answer {
    body: Incoming,
    /// Sends the rest of the request.
    writer: Option<Writer>,
    /// The way to the target, if it has switched to another protocol.
    switched: Option<SendStream<Chunk>>,
    place: Place,
}

/// A task that ends with its owner. Dropping what it sends with resets the stream, if it was not done.
struct Writer(AbortHandle);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a stream may hold that its client has not taken, bytes.
const STREAM_WINDOW: u32 = 256 << 10;
/// Requests over one connection at one time; fewer if the target says so.
const MAX_STREAMS: u32 = 100;
/// Requests over one connection from its beginning to its end: half of the streams that have numbers (RFC 9113, section
/// 5.1.1).
const MAX_SENT: u32 = 1 << 29;
/// Of one worker to one endpoint, those that take requests.
const MAX_CONNECTIONS: usize = 64;
/// Likewise, those that finish what runs on them: a target that lets each connection go after some requests has one of these
/// for each stream that outlives its connection.
const MAX_LEAVING: usize = 4096;
/// How often a request is sent at most when targets say that they have not looked at it.
const MAX_SENDS: u32 = 4;
/// How many times as large as it may be the head of an answer is still read, so that it can be told what is wrong with it.
const HEAD_SLACK: usize = 4;
/// What waits to be sent of one stream, bytes.
const SEND_BUFFER: usize = 64 << 10;
/// How many streams that were reset are remembered, and for how long: clients that go away make many, and a target goes on
/// sending until it hears of it.
const RESET_STREAMS: usize = 4096;
const RESET_FOR: Duration = Duration::from_secs(30);
/// What h2 keeps for small frames that clients have not taken, bytes, before it breaks the connection off. Full windows of messages
/// of 40 bytes, of all streams at once, would be more.
const SMALL_FRAMES: usize = 32 << 20;
/// A target that is silent for so many sweeps while it has requests is asked whether it is there.
const ASK_AFTER: u32 = 5;
/// One that does not answer in so many more is given up.
const GIVE_UP_AFTER: u32 = 5;
/// One that is there but has nothing to say is asked again after so many: gRPC servers close connections on which they are
/// asked more often (gRPC proposal A8).
const ASK_AGAIN_AFTER: u32 = 300;

impl Connections {
    /// None yet. `waiters` are those of the worker.
    pub fn new(waiters: Rc<Waiters>) -> Self {
        Self { groups: RefCell::default(), waiters }
    }

    /// A place for a request to `endpoint`, on a connection that may still be being made.
    fn take<'a>(
        &self,
        endpoint: Endpoint,
        upstream: &'a Upstream,
        avoid: Option<&Rc<Connection>>,
        stats: &Arc<WorkerStats>,
    ) -> Result<Place, Lack<'a>> {
        let place = self.find(endpoint, upstream, avoid, stats)?;
        // Where one finds room, others who wait may.
        if upstream.limits.is_some() && upstream.load.is_awaited() {
            self.waiters.has_room(&upstream.load, endpoint);
        }
        Ok(place)
    }

    fn find<'a>(
        &self,
        endpoint: Endpoint,
        upstream: &'a Upstream,
        avoid: Option<&Rc<Connection>>,
        stats: &Arc<WorkerStats>,
    ) -> Result<Place, Lack<'a>> {
        let mut groups = self.groups.borrow_mut();
        let group = groups.entry(endpoint).or_default();
        let avoided = |connection: &Rc<Connection>| avoid.is_some_and(|it| Rc::ptr_eq(it, connection));
        for connection in &group.connections {
            if endpoint.only_of == 0 && connection.load.limits_connections() {
                // It is of an upstream that has had limits since, which is not to lose it to others.
                connection.retire();
                continue;
            }
            if connection.limits == upstream.response_limits
                && !avoided(connection)
                && connection.has_room(&mut group.max_streams)
            {
                connection.idle_timeout.set(upstream.idle_timeout);
                return Ok(Place::on(connection));
            }
        }
        group.connections.retain(|connection| connection.phase.get() != Phase::Over);
        let leaving = group.connections.iter().filter(|it| it.phase.get() == Phase::Leaving).count();
        if group.connections.len() - leaving >= MAX_CONNECTIONS || leaving >= MAX_LEAVING {
            return Err(Lack::Connections);
        }
        let limit = upstream.limits.map_or(u32::MAX, |limits| limits.connections);
        let permit = match (upstream.load.connection(limit), &upstream.limits) {
            (Some(permit), _) => permit,
            (None, Some(limits)) => return Err(Lack::Permit(limits)),
            (None, None) => return Err(Lack::Connections),
        };
        let connection = Rc::new(Connection {
            endpoint,
            limits: upstream.response_limits,
            load: Arc::clone(&upstream.load),
            permit: Cell::new(Some(permit)),
            waiters: Rc::clone(&self.waiters),
            phase: Cell::new(Phase::Connecting),
            sender: RefCell::default(),
            error: RefCell::default(),
            ended: Cell::new(UpstreamError::ConnectionClosed),
            made: Notify::new(),
            settled: Cell::default(),
            streams: Cell::new(0),
            sent: Cell::new(0),
            used: Cell::new(true),
            unused: Cell::new(0),
            idle_timeout: Cell::new(upstream.idle_timeout),
            proven: Cell::new(false),
            heard: Rc::default(),
            watch: RefCell::default(),
            task: RefCell::default(),
        });
        let to = Destination {
            endpoint,
            tls: upstream.tls.clone(),
            auto: upstream.protocol == UpstreamProtocol::Auto,
            timeout: upstream.connect_timeout,
            limits: upstream.response_limits,
        };
        let run = Rc::clone(&connection).run(to, Arc::clone(stats));
        *connection.task.borrow_mut() = Some(tokio::task::spawn_local(run).abort_handle());
        // In front of those that take no requests any more, which each request would look at else.
        group.connections.insert(0, Rc::clone(&connection));
        Ok(Place::on(&connection))
    }

    /// Sends a request, and waits for the head of its answer. One that the target has surely not looked at goes over another
    /// connection. `pool` is the worker's, where it waits if the upstream has all the connections it may have.
    pub async fn send(
        &self,
        pool: &Pool,
        endpoint: Endpoint,
        upstream: &Upstream,
        request: &mut Outgoing,
        stats: &Arc<WorkerStats>,
    ) -> Result<(Head, Box<Answer>), SendError> {
        let mut avoid = None;
        for left in (0..MAX_SENDS).rev() {
            let place = match self.take(endpoint, upstream, avoid.as_ref(), stats) {
                Ok(place) => place,
                Err(Lack::Connections) => return Err(ConnectError::TooMany.into()),
                Err(Lack::Permit(limits)) => {
                    let look = || self.take(endpoint, upstream, avoid.as_ref(), stats).ok();
                    Box::pin(pool.wait(upstream, endpoint, limits, look)).await?
                }
            };
            if place.is_connecting() {
                Box::pin(place.made()).await?;
            }
            if request.switches && !Box::pin(place.takes_protocols()).await {
                return Err(SendError::Exchange(ExchangeError::NoProtocols));
            }
            let proven = place.is_proven();
            let error = match place.send(request).await {
                Ok((mut head, body)) => {
                    let switched = request.http2.as_mut().and_then(|sender| sender.switched(&mut head));
                    let mut answer = Box::new(place.answer(&head, body));
                    check_head(&head.headers, upstream.response_limits, &answer.body)
                        .map_err(|error| SendError::Exchange(error.into()))?;
                    answer.switched = switched;
                    return Ok((Head::over_http2(head), answer));
                }
                Err(error) => error,
            };
            request.begun = !matches!(error, NotAnswered::Unseen(_));
            let again = match &error {
                NotAnswered::Unseen(_) => request.restart(),
                // As for a connection that the target closes at the moment at which it is used again: RFC 9110, section
                // 9.2.2.
                NotAnswered::Closed(_) => proven && request.rewind(),
                NotAnswered::Stream(_) | NotAnswered::RequestBody(_) => false,
            };
            if left == 0 || !again {
                return Err(SendError::Exchange(error.into()));
            }
            avoid = Some(Rc::clone(&place.0));
        }
        Err(SendError::Connect(ConnectError::TooMany))
    }

    /// Once a second: closes what is idle for too long, and gives up targets that are gone.
    pub fn sweep(&self) {
        self.groups.borrow_mut().retain(|_, group| {
            group.connections.retain(|connection| connection.sweep());
            !group.connections.is_empty()
        });
    }

    /// Closes up to `most` idle ones of upstreams whose connections `is_wanted`; how many it were.
    pub fn give_up_idle(&self, mut is_wanted: impl FnMut(&Arc<Load>) -> bool, most: usize) -> usize {
        let groups = self.groups.borrow();
        let mut given_up = 0;
        for connection in groups.values().flat_map(|group| &group.connections) {
            if given_up < most && connection.is_idle() && is_wanted(&connection.load) {
                connection.give_up();
                given_up += 1;
            }
        }
        given_up
    }

    /// Lets all of them end with their last answer.
    pub fn clear(&self) {
        for (_, group) in self.groups.borrow_mut().drain() {
            group.connections.iter().for_each(|connection| connection.leave());
        }
    }
}

impl Default for Group {
    fn default() -> Self {
        Self { connections: Vec::new(), max_streams: MAX_STREAMS }
    }
}

impl Connection {
    /// `max_streams` is what the target said last; it may be known better now.
    fn has_room(&self, max_streams: &mut u32) -> bool {
        match self.phase.get() {
            Phase::Connecting => {}
            Phase::Open => {
                if let Some(sender) = &*self.sender.borrow() {
                    let max = u32::try_from(sender.current_max_send_streams()).unwrap_or(u32::MAX);
                    *max_streams = max.min(MAX_STREAMS);
                }
            }
            Phase::Leaving | Phase::Over => return false,
        }
        self.streams.get() < *max_streams
    }

    /// Makes it, and then drives it to its end.
    async fn run(self: Rc<Self>, to: Destination, stats: Arc<WorkerStats>) {
        let heard = Rc::clone(&self.heard);
        match open(&to, heard, stats).await {
            Ok((sender, mut connection)) => {
                self.watch.borrow_mut().pings = connection.ping_pong();
                *self.sender.borrow_mut() = Some(sender);
                self.phase.set(Phase::Open);
                self.made.notify_waiters();
                // Who had it made may have gone meanwhile.
                if self.streams.get() == 0 && self.load.is_awaited() {
                    self.pass_on();
                }
                poll_fn(|cx| {
                    let polled = Pin::new(&mut connection).poll(cx);
                    if !self.settled.get() && self.heard.get() {
                        self.settled.set(true);
                        self.made.notify_waiters();
                    }
                    // How it ended is told to its requests.
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
        self.phase.set(Phase::Over);
        self.sender.take();
        self.permit.take();
        self.made.notify_waiters();
    }

    /// A request was sent over it. Before the numbers of its streams run out it is left for another.
    fn count_sent(&self) {
        self.sent.set(self.sent.get().saturating_add(1));
        if self.sent.get() >= MAX_SENT {
            self.leave();
        }
    }

    fn leave(&self) {
        if self.phase.get() == Phase::Open {
            self.phase.set(Phase::Leaving);
            self.sender.take();
        }
    }

    fn is_idle(&self) -> bool {
        self.phase.get() == Phase::Open && self.streams.get() == 0
    }

    /// Closes it, when it is idle, for who waits for its permit. There is nothing under way on it, so that its socket is
    /// closed a moment later makes no difference.
    fn give_up(&self) {
        self.leave();
        self.permit.take();
    }

    /// Takes no more requests; closes it if it has none.
    fn retire(&self) {
        match self.is_idle() {
            true => self.give_up(),
            false => self.leave(),
        }
    }

    /// A request less: there is room for who waits. When it is idle it goes to who waits here or, by being closed, to who waits
    /// on another worker, as connections of HTTP/1.1 do.
    fn pass_on(&self) {
        if self.is_idle() {
            match self.waiters.are_drawn(&self.load) {
                true => self.waiters.came_back(&self.load),
                false => self.give_up(),
            }
        } else if matches!(self.phase.get(), Phase::Connecting | Phase::Open) {
            self.waiters.has_room(&self.load, self.endpoint);
        }
    }

    /// Looks after it; `false`: it is over.
    fn sweep(&self) -> bool {
        if self.phase.get() == Phase::Over {
            return false;
        }
        if self.streams.get() > 0 || self.used.replace(false) {
            self.unused.set(0);
        } else {
            self.unused.set(self.unused.get() + 1);
            if u64::from(self.unused.get()) >= self.idle_timeout.get().as_secs_f64().ceil() as u64 {
                self.leave();
            }
        }
        let heard = self.heard.replace(false);
        if self.watch.borrow_mut().is_gone(heard, self.streams.get() > 0) {
            self.phase.set(Phase::Over);
            self.made.notify_waiters();
            // Its requests see it end.
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

/// The connection to a target, and what sends requests over it.
type Opened = (SendRequest<Chunk>, h2::client::Connection<Io, Chunk>);

/// What a connection is made to, and how.
struct Destination {
    endpoint: Endpoint,
    tls: Option<Arc<UpstreamTls>>,
    /// The target may choose to speak HTTP/1.1.
    auto: bool,
    timeout: Duration,
    limits: ResponseLimits,
}

async fn open(
    to: &Destination,
    heard: Rc<Cell<bool>>,
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
    // It writes what the socket takes at once, and waits for nothing of the target.
    let opened = tokio::time::timeout(to.timeout, builder.handshake(Io { stream, heard, stats })).await;
    let opened = opened.map_err(|_| ConnectError::Timeout)?;
    opened.map_err(|error| ConnectError::Http2(Arc::new(error)))
}

impl Watch {
    /// One sweep on. `heard`: something was read since the last. `busy`: there are requests.
    fn is_gone(&mut self, heard: bool, busy: bool) -> bool {
        let Some(pings) = &mut self.pings else { return false };
        let mut ask = false;
        self.state = match self.state {
            Watching::Asked(_) if pings.poll_pong(&mut Context::from_waker(Waker::noop())).is_ready() => {
                Watching::Answered(0)
            }
            Watching::Asked(_) if heard => Watching::Asked(0),
            Watching::Asked(sweeps) if sweeps + 1 >= GIVE_UP_AFTER => return true,
            Watching::Asked(sweeps) => Watching::Asked(sweeps + 1),
            _ if heard || !busy => Watching::Silent(0),
            Watching::Silent(sweeps) if sweeps + 1 >= ASK_AFTER => {
                ask = true;
                Watching::Asked(0)
            }
            Watching::Silent(sweeps) => Watching::Silent(sweeps + 1),
            Watching::Answered(sweeps) if sweeps + 1 >= ASK_AGAIN_AFTER => {
                ask = true;
                Watching::Asked(0)
            }
            Watching::Answered(sweeps) => Watching::Answered(sweeps + 1),
        };
        if ask && pings.send_ping(Ping::opaque()).is_err() {
            // It is ending, or another ping is on its way.
            self.state = Watching::Silent(0);
        }
        false
    }
}

impl Default for Watching {
    fn default() -> Self {
        Self::Silent(0)
    }
}

impl Place {
    fn on(connection: &Rc<Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        connection.used.set(true);
        Self(Rc::clone(connection))
    }

    /// Whether the connection is still being made.
    #[inline]
    fn is_connecting(&self) -> bool {
        self.0.phase.get() == Phase::Connecting
    }

    /// Whether an answer has come over the connection before.
    fn is_proven(&self) -> bool {
        self.0.proven.get()
    }

    /// Waits until the connection is made.
    async fn made(&self) -> Result<(), ConnectError> {
        while self.is_connecting() {
            // Nothing comes between the check and this: there is one thread.
            self.0.made.notified().await;
        }
        self.0.error.borrow().clone().map_or(Ok(()), Err)
    }

    /// Whether the target switches to other protocols, as it says when the connection begins. One that is over does, for the
    /// request has yet to learn of that.
    async fn takes_protocols(&self) -> bool {
        while !self.0.settled.get() && self.0.phase.get() == Phase::Open {
            self.0.made.notified().await;
        }
        self.0.sender.borrow().as_ref().is_none_or(SendRequest::is_extended_connect_protocol_enabled)
    }

    /// Sends a request, and waits for the head of its answer. The request's body may still be on its way then.
    async fn send(
        &self,
        Outgoing { http2, body, begun, .. }: &mut Outgoing,
    ) -> Result<(response::Parts, RecvStream), NotAnswered> {
        let Some(sender) = http2 else {
            return Err(NotAnswered::Closed(UpstreamError::ConnectionClosed));
        };
        let mut answer = self.begin(sender)?;
        // Whoever stops waiting for the answer has to know that the target may have begun.
        *begun = true;
        poll_fn(|cx| {
            // A target that takes no more may have answered already, or still do so.
            if let Poll::Ready(Err(error)) = sender.poll_write(body, cx) {
                return Poll::Ready(Err(NotAnswered::RequestBody(error)));
            }
            match ready!(Pin::new(&mut answer).poll(cx)) {
                Ok(answer) => Poll::Ready(Ok(answer.into_parts())),
                Err(error) => Poll::Ready(Err(self.not_answered(error))),
            }
        })
        .await
    }

    fn begin(&self, sender: &mut Sender) -> Result<ResponseFuture, NotAnswered> {
        let mut open = self.0.sender.borrow_mut();
        let Some(requests) = &mut *open else { return Err(NotAnswered::Unseen(self.0.ended.get())) };
        let end = !sender.has_body && sender.switching.is_none();
        match requests.send_request(sender.head.clone(), end) {
            Ok((answer, stream)) => {
                match &mut sender.switching {
                    Some(switching) => switching.stream = Some(stream),
                    None => sender.sending = sender.has_body.then(|| Sending::new(stream, None)),
                }
                drop(open);
                self.0.count_sent();
                Ok(answer)
            }
            // It would be no other elsewhere.
            Err(error) if is_malformed(sender.head.headers()) => Err(NotAnswered::Stream(error)),
            Err(error) => {
                drop(open);
                if error.is_go_away() || error.is_io() {
                    self.0.leave();
                }
                // Whatever it was, nothing was sent.
                Err(NotAnswered::Unseen(UpstreamError::of_http2(&error)))
            }
        }
    }

    fn not_answered(&self, error: h2::Error) -> NotAnswered {
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        // Only streams that the target says it has not looked at end with its GOAWAY (RFC 9113, section 6.8).
        if error.is_remote() && (refused || error.is_go_away()) {
            if error.is_go_away() {
                self.0.leave();
            }
            return NotAnswered::Unseen(UpstreamError::of_http2(&error));
        }
        if error.is_io() {
            self.0.leave();
            return NotAnswered::Closed(UpstreamError::of_http2(&error));
        }
        NotAnswered::Stream(error)
    }

    /// The rest of the answer that `head` begins. It keeps the place.
    fn answer(self, head: &response::Parts, body: RecvStream) -> Answer {
        self.0.proven.set(true);
        Answer { body: Incoming::new(body, &head.headers), writer: None, switched: None, place: self }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        if self.0.load.is_awaited() {
            self.0.pass_on();
        }
    }
}

/// Refuses an answer whose head is beyond `limits`, or that announces a body of which no one can know the size.
fn check_head(headers: &HeaderMap, limits: ResponseLimits, body: &Incoming) -> Result<(), Malformed> {
    // As RFC 9113, section 6.5.2, counts them.
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
    if headers.len() > limits.header_count || headers.iter().map(size).sum::<usize>() > limits.header_size {
        return Err(Malformed::HeadTooLarge);
    }
    // Larger than anybody has; others on the way may read it with a sign.
    if body.size_hint().exact().is_some_and(|length| length > i64::MAX as u64) {
        return Err(Malformed::Length);
    }
    Ok(())
}

/// Whether these fields, of one connection of HTTP/1.1, have no place in HTTP/2 (RFC 9113, section 8.2.2). As h2 has it, which
/// does not say why it does not send a request.
fn is_malformed(fields: &HeaderMap) -> bool {
    OF_A_CONNECTION.iter().any(|name| fields.contains_key(name))
        || fields.get(header::TE).is_some_and(|value| value != "trailers")
}

/// Why a request was not answered, for who sends it.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Exchange(ExchangeError),
}

/// Why there is no answer.
#[derive(Debug)]
enum NotAnswered {
    /// The target has surely not looked at the request.
    Unseen(UpstreamError),
    /// The connection broke.
    Closed(UpstreamError),
    Stream(h2::Error),
    RequestBody(RequestBodyError),
}

impl From<NotAnswered> for ExchangeError {
    fn from(error: NotAnswered) -> Self {
        match error {
            NotAnswered::Unseen(reason) | NotAnswered::Closed(reason) => {
                Self::Closed { answered: false, reason }
            }
            NotAnswered::Stream(error) => Self::Http2(error),
            NotAnswered::RequestBody(error) => Self::RequestBody(error),
        }
    }
}

impl Sender {
    /// Takes what is in `head`, which is as an HTTP/1.1 target would get it. `None`: it has no form in HTTP/2.
    pub(super) fn new(head: &mut request::Parts, body: &RequestBody, scheme: &Scheme) -> Option<Self> {
        let mut request = Request::new(());
        *request.method_mut() = head.method.clone();
        *request.version_mut() = head.version;
        // Who has none says so by an empty one; to h2 it is then a request of HTTP/1.1.
        let host = head.headers.remove(header::HOST).filter(|host| !host.is_empty());
        *request.headers_mut() = std::mem::take(&mut head.headers);
        let uri = std::mem::take(&mut head.uri);
        *request.uri_mut() = match host {
            None => uri,
            Some(host) => {
                *request.version_mut() = Version::HTTP_2;
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(scheme.clone());
                parts.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
                parts.path_and_query = match uri.into_parts().path_and_query {
                    Some(path) => Some(path),
                    None => Some(PathAndQuery::from_static("/")),
                };
                Uri::from_parts(parts).ok()?
            }
        };
        Some(Self { head: request, has_body: !body.is_empty(), sending: None, switching: None })
    }

    /// Asks the target to switch to `protocol`: what HTTP/1.1 asks by `Upgrade`, HTTP/2 does by a CONNECT. `None`: the request
    /// has a body, or the protocol no name, with which it cannot.
    pub(super) fn switch_to(&mut self, protocol: &HeaderValue) -> Option<()> {
        if self.has_body {
            return None;
        }
        let name = Protocol::from(protocol.to_str().ok()?);
        *self.head.method_mut() = Method::CONNECT;
        self.head.extensions_mut().insert(name);
        let headers = self.head.headers_mut();
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
        let key = headers.remove(header::SEC_WEBSOCKET_KEY);
        let accept = key.and_then(|key| HeaderValue::try_from(accept_of(key.as_bytes())).ok());
        self.switching = Some(Box::new(Switching { protocol: protocol.clone(), accept, stream: None }));
        Some(())
    }

    /// Makes of the answer to such a request what a target of HTTP/1.1 would have said, and returns the way to it. `None`: it
    /// has not switched.
    fn switched(&mut self, head: &mut response::Parts) -> Option<SendStream<Chunk>> {
        let switching = self.switching.as_mut()?;
        let mut stream = switching.stream.take()?;
        if !head.status.is_success() {
            // There is nothing to be said to it.
            let _ = stream.send_data(Chunk::empty(), true);
            return None;
        }
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::UPGRADE, switching.protocol.clone());
        if let Some(accept) = &switching.accept {
            head.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.clone());
        }
        Some(stream)
    }

    /// Sends as much as the target takes. Ready when there is no more to send.
    #[inline]
    fn poll_write(
        &mut self,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), RequestBodyError>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let sent = match ready!(sending.poll(body, remove_unfit_trailers, cx)) {
            // The target may take no more. What it has to say of that is in the answer, or in the lack of one.
            Ok(()) | Err(Stopped::ByPeer) => Ok(()),
            Err(Stopped::Body(error)) => {
                sending.reset(Reason::CANCEL);
                Err(error)
            }
        };
        self.sending = None;
        Poll::Ready(sent)
    }

    /// Whether there is no more to send.
    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.sending.is_none()
    }

    /// Begins anew. The body has to, too.
    pub(super) fn restart(&mut self) {
        self.sending = None;
        if let Some(switching) = &mut self.switching {
            switching.stream = None;
        }
    }
}

impl Answer {
    /// Lets the rest of the request be sent by a task of its own, while the answer is read: the client may want to send all
    /// of it before it reads the answer.
    pub fn write_beside(&mut self, request: Outgoing) {
        let Outgoing { http2: Some(mut sender), mut body, .. } = request else { return };
        body.forget();
        let task = tokio::task::spawn_local(async move {
            // A body that breaks off resets the stream, which who reads the answer sees.
            let _ = poll_fn(|cx| sender.poll_write(&mut body, cx)).await;
        });
        self.writer = Some(Writer(task.abort_handle()));
    }

    /// Reads on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        self.body.poll(cx).map_err(ExchangeError::Http2)
    }

    #[inline]
    pub(super) fn is_end(&self) -> bool {
        self.body.is_end()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// The way to the target, if it has switched to another protocol.
    #[expect(clippy::boxed_local, reason = "it comes in a box")]
    pub(super) fn into_switched(self: Box<Self>) -> Option<Switched> {
        let Self { body, switched, place, .. } = *self;
        Some(Switched::stream(Raw::new(body, switched?, None), place))
    }
}

/// The socket, and whether anything is heard from it.
struct Io {
    stream: Stream,
    heard: Rc<Cell<bool>>,
    stats: Arc<WorkerStats>,
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            this.heard.set(true);
            this.stats.upstream_in.add(read as u64);
        }
        result
    }
}

impl Io {
    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = result {
            self.stats.upstream_out.add(*n as u64);
        }
    }
}

impl AsyncWrite for Io {
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
            made: Notify::new(),
            settled: Cell::default(),
            streams: Cell::new(0),
            sent: Cell::new(MAX_SENT - 2),
            used: Cell::new(false),
            unused: Cell::new(0),
            idle_timeout: Cell::default(),
            proven: Cell::new(false),
            heard: Rc::default(),
            watch: RefCell::default(),
            task: RefCell::default(),
        };
        let mut max_streams = MAX_STREAMS;
        connection.count_sent();
        assert!(connection.has_room(&mut max_streams));
        connection.count_sent();
        assert!(!connection.has_room(&mut max_streams));
    }

    #[tokio::test]
    async fn what_is_taken_for_malformed_is_what_h2_does_not_send() {
        let (ours, _theirs) = tokio::io::duplex(1 << 16);
        let (mut sender, _connection) = h2::client::handshake(ours).await.unwrap();
        for (name, value) in [
            ("connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "gzip"),
            ("te", "trailers"),
            ("x-other", "connection"),
        ] {
            let request = Request::get("http://a.example/").header(name, value).body(()).unwrap();
            let malformed = is_malformed(request.headers());
            assert_eq!(sender.send_request(request, true).is_err(), malformed, "{name}: {value}");
        }
    }
}
