//! One proxy's stream: moves messages between the transport and its [`Subscription`]s. It holds no more than what is
//! being written, and ends with the transport: every wait here is one arm of one `select!`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use prost::Message as _;
use signalbox_proto::RESOURCE_TYPE_URL;
use signalbox_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use signalbox_proto::google::rpc;
use signalbox_proto::signalbox::config::v1::Rejection;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::admission::{Full, Turn, Waiting, exhausted};
use super::delta::{Acknowledgement, AssignedRevision, Chunk, Set, Subscription, Want};
use super::frames::stored;
use super::grpc::{Inbound, Message, Outbound};
use super::node;
use super::refusal::Refusal;
use super::set::{Empty, View};
use super::shared::{Shared, ToldToEnd};
use super::token::{TokenHash, may_stream};
use crate::board::{EndedBy, Event, Link, Node, Presented, ProxyResourceError};
use crate::clock::now_us;

/// The client that opened a stream.
pub(super) struct Peer {
    /// Where it comes from.
    pub(super) address: SocketAddr,
    /// The hash of the token that it presented.
    pub(super) token: TokenHash,
    /// Its process, as it says.
    pub(super) process: Arc<str>,
    /// It decompresses zstd.
    pub(super) takes_zstd: bool,
}

/// Runs one stream to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    inbound: Inbound<DeltaDiscoveryRequest>,
    mut outbound: Outbound,
    peer: Peer,
) {
    let ended = run(&shared, inbound, &mut outbound, peer).await;
    if let Err(status) = &ended {
        tracing::info!(%status, "stream closed");
    }
    outbound.end(&ended.err().unwrap_or_else(|| Status::ok("")));
}

async fn run(
    shared: &Arc<Shared>,
    mut inbound: Inbound<DeltaDiscoveryRequest>,
    outbound: &mut Outbound,
    peer: Peer,
) -> Result<(), Status> {
    // Subscribed to before the token is looked at again below, so that no change is missed.
    let access = shared.credentials.token_changes();
    let first = tokio::select! {
        () = shared.shutdown.cancelled() => return Err(Status::unavailable(SHUTS_DOWN)),
        first = tokio::time::timeout(FIRST_REQUEST, inbound.message()) => first,
    };
    let first = first.map_err(|_| Status::deadline_exceeded("no request came"))??;
    let Some(mut first) = first else { return Ok(()) };
    let node = first.node.take().ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
    let node = node::parse(node, peer.address).map_err(Status::invalid_argument)?;
    if !shared.board.has_room(&node) {
        return Err(exhausted("this control plane knows all the proxies and fleets that it can"));
    }
    let mut published = shared.publisher.subscribe();
    let reloaded = shared.publisher.reloaded();
    let link = Link { process: Arc::clone(&peer.process), ..Link::default() };
    let mut session = Session::open(shared.clone(), node, link, peer.takes_zstd, first)?;
    // Each of them has a wake-up of its own here. In the loop below, each turn would register, and forget, its interest in things that almost
    // never happen.
    let mut interruptions = FuturesUnordered::<BoxFuture<'_, Interruption>>::new();
    interruptions.push(Box::pin(until_ended(shared, session.link.clone(), session.told.clone())));
    interruptions.push(Box::pin(until_refused(shared, &peer, access, reloaded)));
    let (registered, balance) = (session.link.registered.clone(), session.told.for_balance.clone());
    interruptions.push(Box::pin(async move {
        registered.cancelled_owned().await;
        Interruption::Registered
    }));
    interruptions.push(Box::pin(async move {
        balance.cancelled_owned().await;
        Interruption::EndForBalance
    }));
    let mut alarm = Alarm::new();
    loop {
        published.mark_unchanged();
        session.plan()?;
        // Before the database knows of the stream, others could say that every proxy serves what this one does not.
        while session.may_answer
            && !outbound.is_busy()
            && let Some(message) = session.next_message()
        {
            outbound.begin(message)?;
            session.set_write_deadline(outbound.is_busy());
        }
        if session.ends_for_balance && session.is_at_rest() && !outbound.is_busy() {
            return Err(Status::unavailable(ENDED_FOR_BALANCE));
        }
        alarm.set(session.deadline());
        // A revision that is published meanwhile is part of the next plan. To be woken by each would cost more than to send it.
        let follows = !session.holds_change && session.answer_by.is_none();
        tokio::select! {
            Some(interruption) = interruptions.next() => match interruption {
                Interruption::End(status) => return Err(status),
                Interruption::Registered => session.may_answer = true,
                Interruption::EndForBalance => session.ends_for_balance = true,
            },
            message = inbound.message() => match message {
                Ok(Some(request)) => session.on_request(request)?,
                Ok(None) => return Ok(()),
                Err(status) => {
                    tracing::info!(%status, "the proxy's side of the stream ended");
                    return Ok(());
                }
            },
            changed = published.changed(), if follows => changed.map_err(|_| Status::unavailable("nothing is published"))?,
            written = outbound.written(), if outbound.is_busy() => {
                written?;
                session.set_write_deadline(false);
            }
            turn = turn(&mut session.admission) => session.admission = Admission::Admitted(turn),
            () = alarm.rings() => session.on_deadline()?,
        }
    }
}

/// Something that happens seldom.
enum Interruption {
    /// The stream is to end.
    End(Status),
    /// The database knows of the stream.
    Registered,
    /// The stream is to end when nothing is on its way.
    EndForBalance,
}

/// Waits until the server ends, or the node has a newer stream.
async fn until_ended(shared: &Shared, link: Link, told: ToldToEnd) -> Interruption {
    Interruption::End(tokio::select! {
        () = shared.shutdown.cancelled() => Status::unavailable(SHUTS_DOWN),
        () = told.replaced.cancelled() => Status::aborted("the node has a newer stream"),
        () = link.replaced.cancelled() => Status::aborted("the node has a newer stream to another control plane"),
    })
}

/// Waits until the token of the stream is revoked, or the database was restored.
async fn until_refused(
    shared: &Shared,
    peer: &Peer,
    mut access: watch::Receiver<()>,
    mut reloaded: watch::Receiver<u64>,
) -> Interruption {
    loop {
        access.mark_unchanged();
        if !may_stream(&shared.credentials, &peer.token) {
            shared.refusals.record(&shared.metrics, peer.address, &Refusal::RevokedToken);
            return Interruption::End(Status::unauthenticated(Refusal::RevokedToken.to_string()));
        }
        tokio::select! {
            changed = access.changed() => if changed.is_err() {
                return Interruption::End(Status::unavailable("no token is known"));
            },
            _ = reloaded.changed() => {
                let text = "the database was restored; what the node serves is to be compared";
                return Interruption::End(Status::unavailable(text));
            }
        }
    }
}

/// Rings at the earliest of the deadlines that it was set to. A deadline that is put off, as most are, costs nothing: the alarm rings
/// once too early.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    at: Option<Instant>,
}

impl Alarm {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), at: None }
    }

    fn set(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline
            && self.at.is_none_or(|at| deadline < at)
        {
            self.sleep.as_mut().reset(deadline);
            self.at = Some(deadline);
        }
    }

    /// Waits for the deadline, if one is set. Cancel safe.
    async fn rings(&mut self) {
        if self.at.is_none() {
            return std::future::pending().await;
        }
        self.sleep.as_mut().await;
        self.at = None;
    }
}

/// A turn to be sent everything.
enum Admission {
    NotNeeded,
    /// Kept over wake-ups, for they must not cost the place in the queue. No deadline runs meanwhile.
    Waiting(Waiting),
    Admitted(#[expect(dead_code, reason = "given back when dropped")] Turn),
}

async fn turn(admission: &mut Admission) -> Turn {
    match admission {
        Admission::Waiting(turn) => turn.await,
        Admission::NotNeeded | Admission::Admitted(_) => std::future::pending().await,
    }
}

struct Session {
    shared: Arc<Shared>,
    node: Node,
    link: Link,
    takes_zstd: bool,
    /// Unique among the streams to this control plane.
    stream: u64,
    told: ToldToEnd,
    opened_at_us: i64,
    /// By type URL.
    subscriptions: BTreeMap<Arc<str>, Subscription>,
    admission: Admission,
    /// The commit time of the revision in flight in microseconds; 0 if its propagation is not measured.
    committed_at_us: i64,
    /// Since when the proxy is ahead of what is published here, and whether that was told.
    ahead: Option<(Instant, bool)>,
    /// Until when what is ready must have been written.
    write_by: Option<Instant>,
    /// Until when what was written must have been answered.
    answer_by: Option<Instant>,
    /// When the next change may be sent.
    next_change_from: Option<Instant>,
    /// A change waits until then.
    holds_change: bool,
    /// The database knows of the stream, or need not.
    may_answer: bool,
    /// Another replica is to have the proxy.
    ends_for_balance: bool,
}

impl Session {
    fn open(
        shared: Arc<Shared>,
        node: Node,
        link: Link,
        takes_zstd: bool,
        first: DeltaDiscoveryRequest,
    ) -> Result<Self, Status> {
        static STREAMS: AtomicU64 = AtomicU64::new(1);
        let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
        let (youngest, oldest) = (*shared.limits.stream_age.start(), *shared.limits.stream_age.end());
        let age = youngest + oldest.saturating_sub(youngest).mul_f64(fastrand::f64());
        let told = shared.streams.open(&node.id, stream, Instant::now() + age);
        let mut session = Self {
            shared,
            node: node.clone(),
            link,
            takes_zstd,
            stream,
            told,
            opened_at_us: now_us(),
            subscriptions: BTreeMap::new(),
            admission: Admission::NotNeeded,
            committed_at_us: 0,
            ahead: None,
            write_by: None,
            answer_by: None,
            next_change_from: None,
            holds_change: false,
            may_answer: false,
            ends_for_balance: false,
        };
        session.on_request(first)?;
        let view = session.view();
        let presented = session.subscriptions.get(RESOURCE_TYPE_URL).and_then(|subscription| {
            let revision = subscription.serves()?.revision.clone();
            // The digest of an earlier revision is compared when the proxy is to apply the next.
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
        self.shared.views.of(&self.node.fleet, &self.node.id)
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

    fn on_answer(&mut self, answer: Acknowledgement) {
        let (stream, id) = (self.stream, self.node.id.clone());
        let board = &self.shared.board;
        match answer {
            Acknowledgement::None => return,
            Acknowledgement::Acked(AssignedRevision { revision, .. }) => {
                // A proxy that came later than the revision says nothing of how fast that travels.
                if self.committed_at_us > self.opened_at_us {
                    let took = now_us().saturating_sub(self.committed_at_us).max(0);
                    self.shared.metrics.propagation.observe(Duration::from_micros(took.unsigned_abs()));
                }
                board.fold(Event::Acked { stream, id, revision });
            }
            Acknowledgement::Rejected(revision, status) => {
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
    fn plan(&mut self) -> Result<(), Status> {
        let view = self.view();
        let empty = Empty::new();
        let mut needs_turn = false;
        self.holds_change = false;
        for (type_url, subscription) in &mut self.subscriptions {
            let ours = **type_url == *RESOURCE_TYPE_URL;
            let set: &dyn Set = if ours { &*view } else { &empty };
            let want = subscription.wants(set);
            if ours && !matches!(want, Want::Ahead) {
                self.ahead = None;
            }
            match want {
                Want::Nothing => continue,
                Want::Ahead => {
                    self.ahead.get_or_insert((Instant::now(), false));
                    continue;
                }
                Want::Changes if ours && self.next_change_from.is_some_and(|from| Instant::now() < from) => {
                    self.holds_change = true;
                    continue;
                }
                Want::Changes => {}
                Want::Everything if set.is_small() => {}
                Want::Everything => {
                    needs_turn = true;
                    match &self.admission {
                        Admission::Admitted(_) => {}
                        Admission::Waiting(_) => continue,
                        Admission::NotNeeded => {
                            let place = self.shared.admission.enter(set.size());
                            let full = |Full| exhausted("too many proxies wait to be sent everything");
                            self.admission = Admission::Waiting(place.map_err(full)?);
                            continue;
                        }
                    }
                }
            }
            subscription.begin(set);
            self.write_by = Some(Instant::now() + WRITE_DEADLINE);
            if ours {
                self.committed_at_us = view.propagates_from_us().unwrap_or(0);
                self.next_change_from = Some(Instant::now() + self.shared.limits.change_gap);
            }
        }
        if !needs_turn && !self.has_chunk() {
            // The client took back what it waited for.
            self.admission = Admission::NotNeeded;
        }
        Ok(())
    }

    /// True if nothing is on its way to the proxy, or waits for its answer.
    fn is_at_rest(&self) -> bool {
        !self.has_chunk() && self.answer_by.is_none() && matches!(self.admission, Admission::NotNeeded)
    }

    fn has_chunk(&self) -> bool {
        self.subscriptions.values().any(Subscription::has_chunk)
    }

    fn next_message(&mut self) -> Option<Message> {
        let (type_url, chunk) = self.subscriptions.iter_mut().find_map(|(type_url, subscription)| {
            subscription.has_chunk().then(|| (type_url.clone(), subscription.next_chunk()))
        })?;
        let Chunk { frame, end, completes } = chunk?;
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
        if self.takes_zstd
            && let (Some(shared), Some(end)) = (frame.compressed(), stored(&end))
        {
            return Some(Message { shared: shared.clone(), end, compressed: true });
        }
        Some(Message { shared: frame.bytes().clone(), end, compressed: false })
    }

    /// Sets until when the proxy must have read what there is to write, if there is anything.
    fn set_write_deadline(&mut self, is_busy: bool) {
        self.write_by = (is_busy || self.has_chunk()).then(|| Instant::now() + WRITE_DEADLINE);
    }

    fn deadline(&self) -> Option<Instant> {
        let ahead = self.ahead.filter(|(_, told)| !told).map(|(since, _)| since + CATCH_UP);
        let change = self.next_change_from.filter(|_| self.holds_change);
        [ahead, self.write_by, self.answer_by, change].into_iter().flatten().min()
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
            self.report_ahead();
        }
        Ok(())
    }

    /// This control plane had time to catch up, and the proxy is still ahead of it.
    fn report_ahead(&self) {
        let view = self.view();
        let head = view.revision().clone();
        let serves = self.subscriptions.get(RESOURCE_TYPE_URL).and_then(Subscription::serves);
        let Some(AssignedRevision { revision: serves, generation }) = serves else { return };
        let message = if *generation > view.generation() {
            format!(
                "it serves revision {serves} by decision {generation} about its fleet, but the last decision that this control \
                 plane knows is {}: the database is behind, or was restored without a new epoch; nothing is sent until \
                 decision {generation} is passed",
                view.generation()
            )
        } else {
            format!(
                "it serves revision {serves}, but this control plane has no more than {head} of the same epoch: the \
                 database is behind, or was restored without a new epoch; nothing is sent until revision {serves} is passed"
            )
        };
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
        let ours = self.shared.shutdown.is_cancelled() || self.told.for_balance.is_cancelled();
        let by = if ours { EndedBy::ControlPlane } else { EndedBy::Proxy };
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
        resources.push(ProxyResourceError::of_revision(truncated(&status.message, 2048).to_owned()));
    }
    (resources, rejection.drift)
}

/// The start of `text`, of at most `max` bytes.
fn truncated(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

const ENDED_FOR_BALANCE: &str =
    "this control plane has more than its share of the proxies; another one is to have this proxy";

const SHUTS_DOWN: &str = "this control plane shuts down";

const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How long what is ready may wait for the proxy to read.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// How long a proxy may take to apply a revision: 100,000 resources take it seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

/// How long a replica that a proxy is ahead of may take to catch up before that is an error.
const CATCH_UP: Duration = Duration::from_secs(3);

/// Types of resources on one stream.
const MAX_TYPES: usize = 16;

const MAX_TYPE_URL: usize = 256;

/// Reasons of one rejection that are kept.
const MAX_REASONS: usize = 100;
