//! A client's connection: which protocol it speaks, how long it may take, and how it ends.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future as _, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::HandshakeKind;
use signalbox_config::{ClientCertificate, HalfClose, Limits, ProxyProtocol};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::exchange::Exchange;
use super::http1;
use super::http2;
use super::problem::{self, Failure};
use super::proxy_protocol;
use super::trust::Client;
use super::tunnel::Tunnel;
use crate::active::ActiveListener;
use crate::deadlines::Deadline;
use crate::stream::Stream;
use crate::tls::{self, HandshakeFailure, ListenerTls};
use crate::worker::Worker;

/// What a connection and its requests know of each other.
pub struct Downstream {
    pub worker: Rc<Worker>,
    /// The number of the socket it was accepted on.
    pub socket: u16,
    /// Of HTTP/1.1: of whatever it is doing. Of HTTP/2: of being idle.
    pub deadline: Deadline,
    pub http2: Cell<bool>,
    /// Who connected.
    peer: Client,
    /// Who connected before that, as a load balancer told.
    proxied: OnceCell<Client>,
    /// Whether what the peer says of a client is believed.
    trusts_peer: Cell<bool>,
    /// Whether it speaks TLS.
    pub https: bool,
    /// What the client proved to be with a certificate of its own.
    pub certificate: OnceCell<ClientCertificate>,
    /// The listener's settings as they were last known: a revision may take it away.
    settings: RefCell<Arc<ActiveListener>>,
    phase: Cell<Phase>,
    /// Requests under way.
    running: Cell<u32>,
    /// It is to end with its next answer.
    ending: Cell<bool>,
    /// The client may still be sending what nobody will read.
    unread: Cell<bool>,
    /// Its handshake has to give way to others.
    given_up: Cell<bool>,
    /// Something was written since that was last asked.
    wrote: Cell<bool>,
    /// Requests of HTTP/2 since something was written.
    asked: Cell<u32>,
    /// Requests of HTTP/2, and how many of them the client broke off before they were answered.
    begun: Cell<u64>,
    broken_off: Cell<u64>,
    /// Of HTTP/2: since when the client knows that it is to end.
    leaving: Cell<Option<Instant>>,
    /// How long it may stay without a request.
    idle_until: Cell<Instant>,
    /// A target works for the current request of HTTP/1.1.
    forwarding: Cell<bool>,
    /// Its last answer lets it switch to another protocol.
    tunnel: RefCell<Option<Box<Tunnel>>>,
}

/// What an HTTP/1.1 connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for a request.
    Idle,
    /// A head is on its way, and its time is running.
    Head,
    /// A request is being answered.
    Request,
    /// The answer is complete, but not yet written.
    Flushing,
}

/// The part of an HTTP/1.1 connection whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The connection: nothing came for too long, or the client does not take what was sent.
    Connection,
    /// The head of a request, which did not come in time.
    Head,
    /// The memory for requests: the connection is left alone until something comes.
    Memory,
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is read ahead of those who take it, bytes; more when the listener allows larger heads.
pub(super) const BUFFER: usize = 64 << 10;

/// A closing connection is read for so long and so much, so that a client that is still sending gets to see the answer: the
/// kernel resets a connection that is closed with unread data.
pub(super) const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 16 << 20;

/// Handshakes of one worker at a time: one takes some 50 KB and up to a millisecond. Beyond, the oldest is given up: a client
/// needs milliseconds, so one that is still there after a thousand others have come does not mean to finish.
const MAX_HANDSHAKES: usize = 1024;

/// How long a connection that is to end waits for a client that takes nothing of its last answer.
const UNTAKEN: Duration = Duration::from_secs(10);

/// Requests of HTTP/2 that are taken while nothing is written: more than there may be at a time, for some may be given up.
const MAX_ASKED: u32 = 1024;

/// A client of HTTP/2 that has broken off so many requests, and half of all, makes targets work for nothing: its connection is
/// closed. Envoy draws the line there, too.
const MANY_BROKEN_OFF: u64 = 500;

/// What an HTTP/2 client asks for so long after it was told that the connection ends is not answered any more.
const LEAVING: Duration = Duration::from_secs(10);

/// An HTTP/1.1 connection without a request for so long gives up the memory for requests, about 20 KiB, until the next one,
/// which has to get it again. That takes a microsecond or two: nothing for one that comes so seldom.
const REST: Duration = Duration::from_secs(1);

/// A head and a body of up to this size together, bytes, are copied into one piece, for one plain write is faster than a
/// vectored one.
const COPY: usize = 4 << 10;

impl Downstream {
    pub fn new(worker: Rc<Worker>, peer: SocketAddr, socket: u16, settings: Arc<ActiveListener>) -> Self {
        let deadline = worker.deadlines.add();
        let peer = Client::new(peer.ip());
        Self {
            trusts_peer: Cell::new(settings.edge.trusts(peer.address)),
            peer,
            proxied: OnceCell::new(),
            socket,
            deadline,
            http2: Cell::new(false),
            https: settings.tls.is_some(),
            certificate: OnceCell::new(),
            settings: RefCell::new(settings),
            phase: Cell::new(Phase::Idle),
            running: Cell::new(0),
            ending: Cell::new(false),
            unread: Cell::new(false),
            given_up: Cell::new(false),
            wrote: Cell::new(false),
            asked: Cell::new(0),
            begun: Cell::new(0),
            broken_off: Cell::new(0),
            leaving: Cell::new(None),
            idle_until: Cell::new(Instant::now()),
            forwarding: Cell::new(false),
            tunnel: RefCell::default(),
            worker,
        }
    }

    /// The listener for a request of a revision that has `listener` at this socket.
    #[inline]
    pub fn settings(&self, listener: Option<&Arc<ActiveListener>>) -> Arc<ActiveListener> {
        let mut settings = self.settings.borrow_mut();
        if let Some(listener) = listener
            && !Arc::ptr_eq(listener, &settings)
        {
            if settings.admits_as(listener) {
                *settings = Arc::clone(listener);
                self.trusts_peer.set(listener.edge.trusts(self.peer().address));
            } else {
                // Who connected has not done what is asked now: it is served as before, and has to come anew.
                let before = Arc::clone(&settings);
                drop(settings);
                self.end_soon(Instant::now());
                return before;
            }
        }
        Arc::clone(&settings)
    }

    /// Who connected, as far as is known without a request.
    #[inline]
    pub fn peer(&self) -> &Client {
        self.proxied.get().unwrap_or(&self.peer)
    }

    /// Whether what the peer says of a client is believed.
    #[inline]
    pub fn trusts_peer(&self) -> bool {
        self.trusts_peer.get()
    }

    /// A load balancer told who connected to it.
    fn proxied(&self, source: SocketAddr) {
        let client = self.proxied.get_or_init(|| Client::new(source.ip()));
        self.trusts_peer.set(self.settings.borrow().edge.trusts(client.address));
    }

    /// Lets it end with its next answer, or at `at` when none is due.
    pub fn end_soon(&self, at: Instant) {
        self.ending.set(true);
        if self.http2.get() {
            self.deadline.wake();
        } else if matches!(self.phase.get(), Phase::Idle | Phase::Flushing) {
            self.deadline.hasten(at);
        }
    }

    /// Whether it is waiting for a request.
    pub fn is_idle(&self) -> bool {
        match self.http2.get() {
            true => self.running.get() == 0 && self.deadline.is_set(),
            false => self.phase.get() == Phase::Idle,
        }
    }

    /// Until when it may, if no request comes.
    pub fn idle_until(&self) -> Instant {
        self.idle_until.get()
    }

    /// What was sent can be read in two ways, or what comes behind it is no HTTP: of HTTP/1.1 no more is read.
    pub fn distrust(&self) {
        if !self.http2.get() {
            self.ending.set(true);
            self.unread.set(true);
        }
    }

    /// Lets it end with the answer to the request that has just begun, unless there may be others.
    pub fn end_after_this(&self) {
        if !self.http2.get() {
            self.ending.set(true);
        }
    }

    /// Whether answers must say that the connection ends.
    #[inline]
    pub fn says_close(&self) -> bool {
        self.ending.get() && !self.http2.get()
    }

    /// A request begins.
    #[inline]
    pub fn request_begins(&self) {
        self.worker.overload.begin();
        self.running.set(self.running.get() + 1);
        self.phase.set(Phase::Request);
        self.forwarding.set(false);
        self.deadline.set(None);
    }

    /// A target begins to work for the current request.
    #[inline]
    pub fn forwarding_begins(&self) {
        self.forwarding.set(true);
    }

    /// Tells if a target works for the current request of HTTP/1.1.
    pub(super) fn is_forwarding(&self) -> bool {
        self.forwarding.get()
    }

    /// The last byte of its answer was handed over.
    #[inline]
    pub fn request_ends(&self, now: Instant) {
        let running = self.running.get().saturating_sub(1);
        self.running.set(running);
        if running > 0 {
            return;
        }
        self.phase.set(Phase::Flushing);
        let patience = self.patience();
        self.idle_until.set(now + patience);
        self.wrote.set(false);
        // Of HTTP/2 nothing rests.
        let rest = if self.http2.get() { patience } else { REST };
        self.deadline.set(Some(now + patience.min(rest)));
    }

    /// How long it may stay without a request, or with an answer that the client does not take.
    fn patience(&self) -> Duration {
        if self.ending.get() { UNTAKEN } else { self.settings.borrow().limits.idle_timeout }
    }

    /// Some of the head of a request is there: its time is running.
    pub(super) fn head_begins(&self) {
        if self.phase.get() != Phase::Head {
            self.phase.set(Phase::Head);
            let time = self.settings.borrow().limits.header_timeout;
            self.deadline.set(Some(Instant::now() + time));
        }
    }

    /// The last answer of an HTTP/1.1 connection was written.
    #[inline]
    pub(super) fn answer_written(&self) {
        if self.phase.get() == Phase::Flushing {
            self.phase.set(Phase::Idle);
        }
    }

    /// Returns the part of an HTTP/1.1 connection whose time is over, if its deadline has passed.
    pub(super) fn overdue(&self) -> Option<Overdue> {
        if !self.deadline.passed() {
            return None;
        }
        let now = Instant::now();
        match self.phase.get() {
            // A request that is late and could be told so has been by now; one that is late in its body cannot be helped.
            Phase::Request => return Some(Overdue::Connection),
            Phase::Head => return Some(Overdue::Head),
            Phase::Idle if self.ending.get() || now >= self.idle_until.get() => {
                return Some(Overdue::Connection);
            }
            Phase::Idle => return Some(Overdue::Memory),
            // The last answer is on its way as long as the client takes some of it.
            Phase::Flushing if self.wrote.replace(false) => self.idle_until.set(now + self.patience()),
            Phase::Flushing if now >= self.idle_until.get() => return Some(Overdue::Connection),
            Phase::Flushing => {}
        }
        self.deadline.set(Some(self.idle_until.get()));
        None
    }

    /// Whether an HTTP/2 connection has had no request for so long, and has written nothing of old ones, that it may go.
    pub(super) fn is_silent(&self) -> bool {
        if self.running.get() > 0 || !self.deadline.passed() {
            return false;
        }
        let now = Instant::now();
        let moved = self.wrote.replace(false);
        let patience = match self.leaving.get() {
            None => self.patience(),
            // The end of an old answer may still be on its way; but the farewell was written, too.
            Some(since) if now < since + self.patience() => LINGER,
            Some(_) => return true,
        };
        if moved {
            self.deadline.set(Some(now + patience));
        }
        !moved
    }

    /// A request has come on an HTTP/2 connection. `false`: so many have while the client took nothing of what was to be
    /// written that it does not read, and what is left of them adds up.
    pub(super) fn may_ask(&self) -> bool {
        let asked = self.asked.get() + 1;
        self.asked.set(asked);
        self.begun.set(self.begun.get() + 1);
        let broken_off = self.broken_off.get();
        asked <= MAX_ASKED && (broken_off < MANY_BROKEN_OFF || broken_off * 2 < self.begun.get())
    }

    /// A client of HTTP/2 has broken off a request before it was answered.
    pub(super) fn breaks_off(&self) {
        self.broken_off.set(self.broken_off.get() + 1);
    }

    /// Whether it is to end with its next answer.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// An HTTP/2 client is told that the connection ends. One that asks nothing has little time to close it.
    pub(super) fn leaves(&self) {
        let now = Instant::now();
        self.leaving.set(Some(now));
        if self.running.get() == 0 {
            self.deadline.set(Some(now + LINGER));
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.settings.borrow().limits.clone()
    }

    pub(super) fn half_close(&self) -> HalfClose {
        self.settings.borrow().edge.half_close
    }

    /// Whether it is an HTTP/2 client that goes on asking although it knows that it is to leave. It has as much time to learn
    /// that as a round trip may take.
    pub fn has_left(&self) -> bool {
        self.leaving.get().is_some_and(|since| since.elapsed() > LEAVING)
    }

    /// With its last answer it becomes a tunnel.
    pub(super) fn switches(&self, tunnel: Box<Tunnel>) {
        *self.tunnel.borrow_mut() = Some(tunnel);
    }

    /// Takes the tunnel that the connection becomes with its last answer.
    pub(super) fn take_tunnel(&self) -> Option<Box<Tunnel>> {
        self.tunnel.borrow_mut().take()
    }

    /// The client was told to close while it may still be sending.
    pub fn leaves_unread(&self) {
        self.unread.set(true);
    }

    /// Tells if the client may still be sending bytes that nobody will read.
    pub(super) fn has_unread(&self) -> bool {
        self.unread.get()
    }
}

/// Serves a connection to its end.
pub async fn serve(downstream: Rc<Downstream>, stream: TcpStream) {
    let (idle, tls) = {
        let settings = downstream.settings.borrow();
        (settings.limits.idle_timeout, settings.tls.clone())
    };
    let proxied = downstream.settings.borrow().edge.proxy_protocol != ProxyProtocol::Off;
    // Boxed, for few need it and all would have its size.
    let begun = match proxied {
        false => Some(Vec::new()),
        true => Box::pin(read_proxied(&downstream, &stream)).await,
    };
    let Some(begun) = begun else { return };
    let (stream, known) = match tls {
        None => {
            downstream.deadline.hasten(Instant::now() + idle);
            (Stream::Plain(stream), None)
        }
        Some(tls) => match Box::pin(shake_hands(&downstream, &tls, stream, &begun)).await {
            Some(shaken) => shaken,
            None => return,
        },
    };
    let mut io =
        ClientIo { stream, downstream: Rc::clone(&downstream), begun: [0; 24], begun_len: 0, replayed: 0 };
    if !downstream.https
        && let Some(room) = io.begun.get_mut(..begun.len())
    {
        room.copy_from_slice(&begun);
        io.begun_len = begun.len() as u8;
    }
    let mut known = known;
    let mut rested = false;
    loop {
        // In boxes, so that they take no memory while it rests.
        let protocol = match known.take() {
            Some(protocol) => protocol,
            None => io.sniff().await,
        };
        match protocol {
            Sniffed::Http2 if !rested => return Box::pin(http2::serve(downstream, io)).await,
            Sniffed::Http1 | Sniffed::Http2 => match Box::pin(http1::serve(&downstream, io)).await {
                Some(resting) => io = resting,
                None => return,
            },
            Sniffed::Slow => return Box::pin(refuse_slow(io)).await,
            Sniffed::Closed => return,
        }
        rested = true;
    }
}

/// Reads who connected to the load balancer before us, and returns what came of the client itself. `None`: the connection is
/// not to be served.
async fn read_proxied(downstream: &Downstream, stream: &TcpStream) -> Option<Vec<u8>> {
    let settings = Arc::clone(&downstream.settings.borrow());
    let edge = &settings.edge;
    let required = edge.proxy_protocol == ProxyProtocol::Require;
    if !edge.trusted_proxies.is_empty() && !downstream.trusts_peer() {
        // Who is not trusted is not asked.
        return (!required).then(Vec::new);
    }
    downstream.deadline.hasten(Instant::now() + settings.limits.header_timeout);
    let mut read = pin!(proxy_protocol::read(stream, !required));
    let begun = poll_fn(|cx| {
        downstream.deadline.register(cx.waker());
        match read.as_mut().poll(cx) {
            Poll::Ready(read) => Poll::Ready(read.ok()),
            Poll::Pending if downstream.deadline.passed() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;
    if !downstream.is_ending() {
        downstream.deadline.set(None);
    }
    if let Some(source) = begun.source {
        downstream.proxied(source);
    }
    Some(begun.rest)
}

/// A place among the handshakes of a worker.
struct Handshake<'a>(&'a Rc<Downstream>);

impl<'a> Handshake<'a> {
    /// Takes one, if need be the oldest one's.
    fn begin(downstream: &'a Rc<Downstream>) -> Self {
        let mut handshakes = downstream.worker.handshakes.borrow_mut();
        if handshakes.len() >= MAX_HANDSHAKES
            && let Some(oldest) = handshakes.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.given_up.set(true);
            oldest.deadline.wake();
        }
        handshakes.push_back(Rc::downgrade(downstream));
        Self(downstream)
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        let mut handshakes = self.0.worker.handshakes.borrow_mut();
        if let Some(index) = handshakes.iter().position(|it| std::ptr::eq(it.as_ptr(), Rc::as_ptr(self.0))) {
            handshakes.remove(index);
        }
    }
}

/// Makes a connection one through TLS, and says what is spoken if that was agreed on.
async fn shake_hands(
    downstream: &Rc<Downstream>,
    tls: &ListenerTls,
    stream: TcpStream,
    begun: &[u8],
) -> Option<(Stream, Option<Sniffed>)> {
    let worker = &downstream.worker;
    let (idle, patience) = {
        let limits = &downstream.settings.borrow().limits;
        (limits.idle_timeout, limits.header_timeout)
    };
    downstream.deadline.hasten(Instant::now() + patience);
    // One that has said nothing yet is only a connection, and takes no place.
    let mut accepting = pin!(async {
        let greeted = tls::greeted(stream, begun).await?;
        let _place = Handshake::begin(downstream);
        tls::accept(tls, greeted).await
    });
    let shaken = poll_fn(|cx| {
        downstream.deadline.register(cx.waker());
        match accepting.as_mut().poll(cx) {
            Poll::Pending if downstream.given_up.get() => Poll::Ready(Err(HandshakeFailure::Overload)),
            Poll::Pending if downstream.deadline.passed() => Poll::Ready(Err(HandshakeFailure::Timeout)),
            shaken => shaken,
        }
    })
    .await;
    let certificate = shaken.as_ref().ok().and_then(|stream| {
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        certificate.and_then(|certificate| ClientCertificate::read(certificate))
    });
    // It was checked when the session began, and that may have been long ago.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    let has_expired = certificate.as_ref().is_some_and(|certificate| certificate.not_after < now);
    let shaken = if has_expired { Err(HandshakeFailure::ClientCertificate) } else { shaken };
    let stream = match shaken {
        Ok(stream) => stream,
        Err(failure) => {
            tracing::debug!(client = %downstream.peer.address, reason = failure.as_str(), "no handshake");
            if let Some(counter) = worker.stats.handshake_failures.get(failure as usize) {
                counter.add(1);
            }
            return None;
        }
    };
    let (_, session) = stream.get_ref();
    worker.stats.handshakes.add(1);
    if session.handshake_kind() == Some(HandshakeKind::Resumed) {
        worker.stats.handshakes_resumed.add(1);
    }
    if let Some(certificate) = certificate {
        // It is new.
        let _ = downstream.certificate.set(certificate);
    }
    let protocol = match session.alpn_protocol() {
        Some(tls::HTTP2) => Some(Sniffed::Http2),
        Some(_) => Some(Sniffed::Http1),
        None => None,
    };
    let patience = if downstream.ending.get() { Duration::from_secs(1) } else { idle };
    downstream.deadline.set(Some(Instant::now() + patience));
    Some((Stream::Tls(stream), protocol))
}

/// Answers a client whose head does not come.
async fn refuse_slow(mut io: ClientIo) {
    let raw = io.refuse(Failure::HeadTimeout);
    if matches!(tokio::time::timeout(LINGER, io.write_all(&raw)).await, Ok(Ok(()))) {
        linger(io).await;
    }
}

/// Reads what a client is still sending, and then closes.
pub(super) async fn linger(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let drained = async {
        io.shutdown().await?;
        tokio::io::copy(&mut (&mut io).take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // However it ends, it is closed.
    let _ = tokio::time::timeout(LINGER, drained).await;
}

/// The socket, and what passes through it.
pub(super) struct ClientIo {
    stream: Stream,
    downstream: Rc<Downstream>,
    /// What was read to find out the protocol, and is read again by who speaks it.
    begun: [u8; 24],
    begun_len: u8,
    replayed: u8,
}

enum Sniffed {
    Http1,
    Http2,
    Closed,
    /// Something came, but not enough in time.
    Slow,
}

impl ClientIo {
    /// Reads as far as needed to tell HTTP/2 with prior knowledge (RFC 9113, section 3.3) from HTTP/1.1.
    async fn sniff(&mut self) -> Sniffed {
        poll_fn(|cx| {
            let downstream = &self.downstream;
            downstream.deadline.register(cx.waker());
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
                        downstream.worker.stats.downstream_in.add(read as u64);
                        downstream.head_begins();
                    }
                    Poll::Ready(_) => return Poll::Ready(Sniffed::Closed),
                    Poll::Pending if !downstream.deadline.passed() => return Poll::Pending,
                    Poll::Pending if have > 0 => return Poll::Ready(Sniffed::Slow),
                    Poll::Pending => return Poll::Ready(Sniffed::Closed),
                }
            }
        })
        .await
    }

    /// Waits for more.
    pub(super) fn rest(&mut self) {
        self.begun_len = 0;
        self.replayed = 0;
        self.downstream.deadline.set(Some(self.downstream.idle_until.get()));
    }

    /// Notes a refusal, and returns the bytes of the answer.
    pub(super) fn refuse(&self, failure: Failure) -> Vec<u8> {
        let exchange = Exchange::begin_refused(Rc::clone(&self.downstream), failure);
        let raw = problem::raw(failure, exchange.request_id());
        exchange.complete();
        raw
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = result {
            self.downstream.wrote.set(true);
            self.downstream.asked.set(0);
            self.downstream.worker.stats.downstream_out.add(*n as u64);
        }
    }
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
            this.downstream.worker.stats.downstream_in.add(read as u64);
        }
        result
    }
}

impl AsyncWrite for ClientIo {
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
        let size: usize = bufs.iter().map(|buf| buf.len()).sum();
        let result = match bufs {
            [only] => Pin::new(&mut this.stream).poll_write(cx, only),
            several if size <= COPY => {
                let mut whole = this.downstream.worker.scratch.borrow_mut();
                whole.clear();
                several.iter().for_each(|buf| whole.extend_from_slice(buf));
                Pin::new(&mut this.stream).poll_write(cx, &whole)
            }
            several => Pin::new(&mut this.stream).poll_write_vectored(cx, several),
        };
        this.wrote(&result);
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
