//! One proxy's stream: moves messages between the transport and its [`Subscription`]s. It holds no more than what is
//! being written, and ends with the transport: every wait here is one arm of one `select!`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use signalbox_proto::RESOURCE_TYPE_URL;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use signalbox_proto::google::rpc;
use signalbox_proto::signalbox::config::v1::Rejection;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use super::delta::{Answer, Chunk, Set, Subscription, Want};
use super::refusal::{Refusal, Refusals};
use super::set::{Empty, View, Views};
use super::{TokenHash, may_stream, node};
use crate::auth::Credentials;
use crate::board::{Board, EndedBy, Event, Link, Node, Presented, ProxyResourceError, now_us};
use crate::metrics::Metrics;
use crate::publish::Publisher;

/// What all streams share.
pub(super) struct Shared {
    pub(super) publisher: Arc<Publisher>,
    pub(super) board: Arc<Board>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) refusals: Refusals,
    views: Views,
    streams: Streams,
    /// How many streams may be sent everything at once. Else thousands that connect together would all get a little
    /// of it, and none all of it before its deadline.
    admission: Arc<Semaphore>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        publisher: Arc<Publisher>,
        board: Arc<Board>,
        credentials: Arc<Credentials>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            views: Views::new(publisher.clone()),
            publisher,
            board,
            credentials,
            metrics,
            refusals: Refusals::default(),
            streams: Streams::default(),
            admission: Arc::new(Semaphore::new(FULL_SENDS)),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }
    }
}

/// The present stream of each proxy.
#[derive(Default)]
struct Streams {
    by_node: Mutex<HashMap<Arc<str>, (u64, CancellationToken)>>,
}

impl Streams {
    /// Makes `stream` the proxy's present one; the one before, if there is one, is told to end.
    fn open(&self, id: &Arc<str>, stream: u64) -> CancellationToken {
        let replaced = CancellationToken::new();
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, before)) = by_node.insert(id.clone(), (stream, replaced.clone())) {
            before.cancel();
        }
        replaced
    }

    fn close(&self, id: &Arc<str>, stream: u64) {
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        if by_node.get(id).is_some_and(|(present, _)| *present == stream) {
            by_node.remove(id);
        }
    }
}

/// Who opened a stream.
pub(super) struct Peer {
    /// Where it comes from.
    pub(super) address: Option<SocketAddr>,
    /// What it presented.
    pub(super) token: TokenHash,
    /// Its process, as it says.
    pub(super) process: Arc<str>,
}

/// Runs one stream to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    inbound: Streaming<DeltaDiscoveryRequest>,
    outbound: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    peer: Peer,
) {
    if let Err(status) = run(&shared, inbound, &outbound, peer).await {
        tracing::info!(%status, "stream closed");
        // Without room for it the peer does not read, and learns of the end from the transport.
        let _ = outbound.try_send(Err(status));
    }
}

async fn run(
    shared: &Arc<Shared>,
    mut inbound: Streaming<DeltaDiscoveryRequest>,
    outbound: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    peer: Peer,
) -> Result<(), Status> {
    // Subscribed to before the token is looked at again below, so that no change is missed.
    let mut access = shared.credentials.token_changes();
    let first = tokio::select! {
        () = shared.shutdown.cancelled() => return Err(Status::unavailable("this control plane shuts down")),
        first = tokio::time::timeout(FIRST_REQUEST, inbound.message()) => first,
    };
    let first = first.map_err(|_| Status::deadline_exceeded("no request came"))??;
    let Some(mut first) = first else { return Ok(()) };
    let node = first.node.take().ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
    let node = node::parse(node, peer.address).map_err(Status::invalid_argument)?;
    if !shared.board.has_room(&node) {
        return Err(Status::resource_exhausted(
            "this control plane knows all the proxies and fleets that it can",
        ));
    }
    let mut published = shared.publisher.subscribe();
    let mut reloaded = shared.publisher.reloaded();
    let link = Link { process: peer.process, ..Link::default() };
    let (address, token) = (peer.address, peer.token);
    let mut session = Session::open(shared.clone(), node, link, first)?;
    loop {
        access.mark_unchanged();
        if !may_stream(&shared.credentials, &token) {
            shared.refusals.note(&shared.metrics, address, &Refusal::RevokedToken);
            return Err(Status::unauthenticated(Refusal::RevokedToken.to_string()));
        }
        published.mark_unchanged();
        session.plan();
        let deadline = session.deadline();
        // Before the database knows of the stream, others could say that every proxy serves what this one does not.
        let may_answer = session.link.answer.is_cancelled();
        let has_chunk = may_answer && session.has_chunk();
        tokio::select! {
            () = shared.shutdown.cancelled() => return Err(Status::unavailable("this control plane shuts down")),
            () = session.replaced.cancelled() => return Err(Status::aborted("the node has a newer stream")),
            () = session.link.replaced.cancelled() => {
                return Err(Status::aborted("the node has a newer stream to another control plane"));
            }
            () = session.link.answer.cancelled(), if !may_answer => {}
            _ = reloaded.changed() => {
                return Err(Status::unavailable("the database was restored; what the node serves is to be compared"));
            }
            () = outbound.closed() => return Ok(()),
            message = inbound.message() => match message {
                Ok(Some(request)) => session.on_request(request)?,
                Ok(None) => return Ok(()),
                Err(status) => {
                    tracing::info!(%status, "the proxy's side of the stream ended");
                    return Ok(());
                }
            },
            changed = access.changed() => changed.map_err(|_| Status::unavailable("no token is known"))?,
            changed = published.changed() => changed.map_err(|_| Status::unavailable("nothing is published"))?,
            permit = outbound.reserve(), if has_chunk => match permit {
                Ok(permit) => if let Some(response) = session.next_response() {
                    permit.send(Ok(response));
                },
                Err(_) => return Ok(()),
            },
            permit = admitted(&mut session.admission) => session.admit(permit),
            () = sleep_until(deadline) => session.on_deadline()?,
        }
    }
}

/// Sleeps until there is something to do, if there is.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A turn to be sent everything.
enum Admission {
    NotNeeded,
    /// Kept over wake-ups, for they must not cost the place in the queue.
    Waiting(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>),
    Admitted(#[expect(dead_code, reason = "given back when dropped")] Option<OwnedSemaphorePermit>),
}

async fn admitted(admission: &mut Admission) -> Option<OwnedSemaphorePermit> {
    match admission {
        // The semaphore is never closed; were it, everyone would be admitted.
        Admission::Waiting(turn) => turn.await.ok(),
        Admission::NotNeeded | Admission::Admitted(_) => std::future::pending().await,
    }
}

struct Session {
    shared: Arc<Shared>,
    node: Node,
    link: Link,
    /// Unique among the streams to this control plane.
    stream: u64,
    replaced: CancellationToken,
    opened_at_us: i64,
    /// By type URL.
    subscriptions: BTreeMap<Arc<str>, Subscription>,
    admission: Admission,
    /// The commit time of what is in flight, microseconds.
    committed_at_us: i64,
    /// Since when the proxy is ahead of what is published here, and whether that was told.
    ahead: Option<(Instant, bool)>,
    /// Until when what is ready must have been written.
    write_by: Option<Instant>,
    /// Until when what was written must have been answered.
    answer_by: Option<Instant>,
}

impl Session {
    fn open(
        shared: Arc<Shared>,
        node: Node,
        link: Link,
        first: DeltaDiscoveryRequest,
    ) -> Result<Self, Status> {
        static STREAMS: AtomicU64 = AtomicU64::new(1);
        let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
        let replaced = shared.streams.open(&node.id, stream);
        let mut session = Self {
            shared,
            node: node.clone(),
            link,
            stream,
            replaced,
            opened_at_us: now_us(),
            subscriptions: BTreeMap::new(),
            admission: Admission::NotNeeded,
            committed_at_us: 0,
            ahead: None,
            write_by: None,
            answer_by: None,
        };
        session.on_request(first)?;
        let view = session.view();
        let presented = session.subscriptions.get(RESOURCE_TYPE_URL).and_then(|subscription| {
            let revision = subscription.serves()?.clone();
            // Of what it has of an earlier revision the digest is compared when it is to apply the next.
            let verified = revision == *view.revision() && subscription.wants(&*view) != Want::Everything;
            Some(Presented { revision, verified })
        });
        tracing::info!(
            node = %node.id, fleet = %node.fleet, version = node.version,
            revision = presented.as_ref().map(|presented| tracing::field::display(&presented.revision)),
            "proxy connected"
        );
        let link = session.link.clone();
        session.shared.board.fold(Event::Opened { stream, node, presented, link });
        Ok(session)
    }

    fn view(&self) -> Arc<View> {
        self.shared.views.of(&self.node.fleet)
    }

    fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if request.type_url.is_empty() || request.type_url.len() > MAX_TYPE_URL {
            return Err(Status::invalid_argument("a request must have a type_url"));
        }
        if !self.subscriptions.contains_key(request.type_url.as_str()) {
            if self.subscriptions.len() >= MAX_TYPES {
                return Err(Status::invalid_argument("too many types on one stream"));
            }
            let type_url: Arc<str> = request.type_url.as_str().into();
            // Random, for a nonce must not be valid on a stream to another control plane either.
            let prefix = format!("{:016x}", fastrand::u64(..));
            self.subscriptions.insert(type_url.clone(), Subscription::new(type_url, prefix));
        }
        let Some(subscription) = self.subscriptions.get_mut(request.type_url.as_str()) else { return Ok(()) };
        let ours = request.type_url == RESOURCE_TYPE_URL;
        let answer = subscription
            .on_request(request)
            .map_err(|violation| Status::invalid_argument(violation.to_string()))?;
        if ours {
            self.on_answer(answer);
        }
        Ok(())
    }

    fn on_answer(&mut self, answer: Answer) {
        let (stream, id) = (self.stream, self.node.id.clone());
        let board = &self.shared.board;
        match answer {
            Answer::None => return,
            Answer::Acked(revision) => {
                // A proxy that came later than the revision says nothing of how fast that travels.
                if self.committed_at_us > self.opened_at_us {
                    let took = now_us().saturating_sub(self.committed_at_us).max(0);
                    self.shared.metrics.propagation.observe(Duration::from_micros(took.unsigned_abs()));
                }
                board.fold(Event::Acked { stream, id, revision });
            }
            Answer::Rejected(revision, status) => {
                self.shared.metrics.xds_nacks.increment();
                let (mut resources, drift) = reasons(&status);
                for resource in &mut resources {
                    resource.changed_in = self.shared.publisher.current().changed_in(
                        &resource.kind,
                        &resource.name,
                        revision.number,
                    );
                }
                tracing::warn!(node = %id, %revision, message = truncated(&status.message, 1024), "revision rejected");
                if drift {
                    let message =
                        resources.into_iter().next().map_or_else(String::new, |first| first.message);
                    board.fold(Event::Drifted { stream, id, revision: revision.number, message });
                } else {
                    board.fold(Event::Rejected { stream, id, revision: revision.number, resources });
                }
            }
        }
        self.answer_by = None;
        self.committed_at_us = 0;
    }

    /// Begins what there is to send.
    fn plan(&mut self) {
        let view = self.view();
        let empty = Empty::new();
        for (type_url, subscription) in &mut self.subscriptions {
            let ours = **type_url == *RESOURCE_TYPE_URL;
            let set: &dyn Set = if ours { &*view } else { &empty };
            let want = subscription.wants(set);
            if ours && !matches!(want, Want::Ahead(_)) {
                self.ahead = None;
            }
            match want {
                Want::Nothing => continue,
                Want::Ahead(_) => {
                    self.ahead.get_or_insert((Instant::now(), false));
                    continue;
                }
                Want::Changes => {}
                Want::Everything if set.is_small() => {}
                Want::Everything => match &self.admission {
                    Admission::Admitted(_) => {}
                    Admission::Waiting(_) => continue,
                    Admission::NotNeeded => {
                        self.admission =
                            Admission::Waiting(Box::pin(self.shared.admission.clone().acquire_owned()));
                        continue;
                    }
                },
            }
            subscription.begin(set);
            self.write_by = Some(Instant::now() + WRITE_DEADLINE);
            if ours {
                self.committed_at_us = view.committed_at_us();
            }
        }
    }

    fn admit(&mut self, permit: Option<OwnedSemaphorePermit>) {
        self.admission = Admission::Admitted(permit);
    }

    fn has_chunk(&self) -> bool {
        self.subscriptions.values().any(Subscription::has_chunk)
    }

    fn next_response(&mut self) -> Option<DeltaDiscoveryResponse> {
        let (type_url, chunk) = self.subscriptions.iter_mut().find_map(|(type_url, subscription)| {
            subscription.has_chunk().then(|| (type_url.clone(), subscription.next_chunk()))
        })?;
        self.write_by = self.has_chunk().then(|| Instant::now() + WRITE_DEADLINE);
        let Chunk { response, completes } = chunk?;
        if let Some(revision) = completes {
            self.admission = Admission::NotNeeded;
            if *type_url == *RESOURCE_TYPE_URL {
                self.answer_by = Some(Instant::now() + ANSWER_DEADLINE);
                self.shared.board.fold(Event::Sent {
                    stream: self.stream,
                    id: self.node.id.clone(),
                    revision: revision.number,
                });
            }
        }
        Some(response)
    }

    fn deadline(&self) -> Option<Instant> {
        let ahead = self.ahead.filter(|(_, told)| !told).map(|(since, _)| since + CATCH_UP);
        [ahead, self.write_by, self.answer_by].into_iter().flatten().min()
    }

    fn on_deadline(&mut self) -> Result<(), Status> {
        let now = Instant::now();
        if self.write_by.is_some_and(|by| now >= by) {
            return Err(Status::aborted("the proxy does not read what it is sent"));
        }
        if self.answer_by.is_some_and(|by| now >= by) {
            return Err(Status::aborted("the proxy does not answer what it was sent"));
        }
        if let Some((since, told @ false)) = &mut self.ahead
            && now >= *since + CATCH_UP
        {
            *told = true;
            self.tell_ahead();
        }
        Ok(())
    }

    /// This control plane had time to catch up, and the proxy is still ahead of it.
    fn tell_ahead(&self) {
        let head = self.shared.publisher.current().snapshot.id().clone();
        let serves = self.subscriptions.get(RESOURCE_TYPE_URL).and_then(Subscription::serves);
        let Some(serves) = serves else { return };
        let message = format!(
            "it serves revision {serves}, but this control plane has no more than {head} of the same epoch: the \
             database is behind, or was restored without a new epoch; nothing is sent until revision {serves} is passed"
        );
        tracing::error!(node = %self.node.id, message, "a proxy is ahead");
        self.shared.board.fold(Event::Drifted {
            stream: self.stream,
            id: self.node.id.clone(),
            revision: head.number,
            message,
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        tracing::info!(node = %self.node.id, "proxy disconnected");
        self.shared.streams.close(&self.node.id, self.stream);
        let by = if self.shared.shutdown.is_cancelled() { EndedBy::Shutdown } else { EndedBy::Proxy };
        self.shared.board.fold(Event::Closed { stream: self.stream, id: self.node.id.clone(), by });
    }
}

/// Why a revision was rejected, and whether that is drift.
fn reasons(status: &rpc::Status) -> (Vec<ProxyResourceError>, bool) {
    let rejection = status
        .details
        .iter()
        .filter(|any| any.type_url.ends_with("/signalbox.config.v1.Rejection"))
        .find_map(|any| Rejection::decode(any.value.clone()).ok())
        .unwrap_or_default();
    let mut resources: Vec<_> = rejection
        .errors
        .into_iter()
        .take(MAX_REASONS)
        .map(|error| ProxyResourceError {
            kind: truncated(&error.kind, 64).to_owned(),
            name: truncated(&error.name, 128).to_owned(),
            field: truncated(&error.field, 512).to_owned(),
            message: truncated(&error.message, 2048).to_owned(),
            changed_in: None,
        })
        .collect();
    if resources.is_empty() {
        resources.push(ProxyResourceError {
            kind: String::new(),
            name: String::new(),
            field: String::new(),
            message: truncated(&status.message, 2048).to_owned(),
            changed_in: None,
        });
    }
    (resources, rejection.drift)
}

/// The start of `text`, of at most `max` bytes.
fn truncated(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How long what is ready may wait for the proxy to read.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// How long a proxy may take to apply a revision: 100,000 resources take it seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

/// How long a replica that a proxy is ahead of may take to catch up before that is an error.
const CATCH_UP: Duration = Duration::from_secs(3);

const FULL_SENDS: usize = 64;

/// Types of resources on one stream.
const MAX_TYPES: usize = 16;

const MAX_TYPE_URL: usize = 256;

/// Reasons of one rejection that are kept.
const MAX_REASONS: usize = 100;
