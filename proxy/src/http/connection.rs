//! A client's connection from its first byte: PROXY protocol, TLS, protocol detection.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::HandshakeKind;
use signalbox_config::{ClientCertificate, ProxyProtocol};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::downstream::Downstream;
use super::http1::{self, Http1State};
use super::http2;
use super::proxy_protocol;
use super::refusal::refuse;
use super::worker_context::WorkerContext;
use crate::active::ActiveListener;
use crate::core::failure::Failure;
use crate::telemetry::HandshakeFailure;
use crate::wire::client_io::{ClientIo, LINGER, Sniffed, linger};
use crate::wire::stream::Stream;
use crate::wire::tls::{self, ListenerTls};

/// Creates a client's connection on the listening socket number `socket`, and the task that serves it to its end.
pub fn open(
    worker: Rc<WorkerContext>,
    stream: TcpStream,
    peer: SocketAddr,
    socket: u16,
    settings: Arc<ActiveListener>,
) -> (Rc<Downstream>, impl Future<Output = ()>) {
    let state = Rc::<Http1State>::default();
    let protocol = Rc::clone(&state);
    let downstream = Rc::new(Downstream::new(worker, peer, socket, settings, protocol));
    let serving = serve(Rc::clone(&downstream), state, stream);
    (downstream, serving)
}

/// Serves a connection to its end.
async fn serve(downstream: Rc<Downstream>, state: Rc<Http1State>, stream: TcpStream) {
    let settings = downstream.settings();
    let proxied = settings.edge.proxy_protocol != ProxyProtocol::Off;
    // Boxed, because few connections need it and all would have its size.
    let begun = match proxied {
        false => Some(Vec::new()),
        true => Box::pin(read_proxied(&downstream, &stream)).await,
    };
    let Some(begun) = begun else { return };
    let (stream, mut known) = match &settings.tls {
        None => {
            downstream.deadline.set_no_later_than(Instant::now() + settings.limits.idle_timeout);
            (Stream::Plain(stream), None)
        }
        Some(tls) => match Box::pin(tls_handshake(&downstream, tls, stream, &begun)).await {
            Some(shaken) => shaken,
            None => return,
        },
    };
    drop(settings);
    let worker = &downstream.worker;
    // With TLS, the bytes read so far belong to the handshake.
    let begun = if downstream.https { &[][..] } else { &begun };
    let (stats, activity) = (Arc::clone(&worker.stats), Rc::clone(&downstream.activity));
    let (scratch, pipes) = (Rc::clone(&worker.scratch), Rc::clone(&worker.pipes));
    let mut io = ClientIo::new(stream, begun, stats, activity, scratch, pipes);
    let mut rested = false;
    loop {
        // Boxed, so that they take no memory while the connection is idle.
        let protocol = match known.take() {
            Some(protocol) => protocol,
            None => io.sniff(&downstream.deadline, || state.head_begins(&downstream)).await,
        };
        match protocol {
            Sniffed::Http2 if !rested => return Box::pin(http2::serve(downstream, io)).await,
            Sniffed::Http1 | Sniffed::Http2 => match Box::pin(http1::serve(&downstream, &state, io)).await {
                Some(resting) => io = resting,
                None => return,
            },
            Sniffed::Slow => return Box::pin(refuse_slow(&downstream, io)).await,
            Sniffed::Closed => return,
        }
        rested = true;
    }
}

/// Reads the PROXY protocol header, and returns the client's own bytes behind it. Returns `None` if the connection is
/// not to be served.
async fn read_proxied(downstream: &Downstream, stream: &TcpStream) -> Option<Vec<u8>> {
    let settings = downstream.settings();
    let edge = &settings.edge;
    let required = edge.proxy_protocol == ProxyProtocol::Require;
    if !edge.trusted_proxies.is_empty() && !downstream.trusts_peer() {
        // A header of an untrusted peer is not read.
        return (!required).then(Vec::new);
    }
    downstream.deadline.set_no_later_than(Instant::now() + settings.limits.header_timeout);
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
        downstream.set_proxied_peer(source);
    }
    Some(begun.read_ahead)
}

/// Runs the TLS handshake, and returns the protocol if ALPN chose one.
async fn tls_handshake(
    downstream: &Rc<Downstream>,
    tls: &ListenerTls,
    stream: TcpStream,
    begun: &[u8],
) -> Option<(Stream, Option<Sniffed>)> {
    let worker = &downstream.worker;
    let limits = downstream.limits();
    downstream.deadline.set_no_later_than(Instant::now() + limits.header_timeout);
    let is_revoked = Cell::new(false);
    // A client that has sent nothing yet takes no handshake permit.
    let mut accepting = pin!(async {
        let hello = tls::receive_hello(stream, begun).await?;
        let permit = worker.handshakes.begin(&downstream.deadline);
        let mut accepting = pin!(tls::accept(tls, hello));
        poll_fn(|cx| {
            is_revoked.set(permit.is_revoked());
            accepting.as_mut().poll(cx)
        })
        .await
    });
    let shaken = poll_fn(|cx| {
        downstream.deadline.register(cx.waker());
        match accepting.as_mut().poll(cx) {
            Poll::Pending if is_revoked.get() => Poll::Ready(Err(HandshakeFailure::Overload)),
            Poll::Pending if downstream.deadline.passed() => Poll::Ready(Err(HandshakeFailure::Timeout)),
            shaken => shaken,
        }
    })
    .await;
    let shown = shaken.as_ref().ok().and_then(|stream| stream.get_ref().1.peer_certificates());
    let certificate = shown.and_then(ClientCertificate::read);
    // The certificate was verified when the session began, which may be long ago.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    let has_expired = certificate.as_ref().is_some_and(|certificate| certificate.not_after < now);
    let shaken = if has_expired { Err(HandshakeFailure::ClientCertificate) } else { shaken };
    let stream = match shaken {
        Ok(stream) => stream,
        Err(failure) => {
            tracing::debug!(client = %downstream.peer().address, reason = failure.as_str(), "no handshake");
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
        // The cell is empty, so this cannot fail.
        let _ = downstream.certificate.set(certificate);
    }
    let protocol = match session.alpn_protocol() {
        Some(tls::HTTP2) => Some(Sniffed::Http2),
        Some(_) => Some(Sniffed::Http1),
        None => None,
    };
    let patience = if downstream.is_ending() { Duration::from_secs(1) } else { limits.idle_timeout };
    downstream.deadline.set(Some(Instant::now() + patience));
    Some((Stream::Tls(stream), protocol))
}

/// Answers a client whose request head is late.
async fn refuse_slow(downstream: &Rc<Downstream>, mut io: ClientIo) {
    let raw = refuse(downstream, Failure::HeadTimeout);
    if matches!(tokio::time::timeout(LINGER, io.write_all(&raw)).await, Ok(Ok(()))) {
        linger(io).await;
    }
}
