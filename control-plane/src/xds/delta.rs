//! A proxy's subscription to one resource type, the state it has, and the changes it is to be sent next: the delta variant
//! of xDS as a state machine over values. It does no I/O; `stream` moves what it says.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds>

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use signalbox_config::RevisionId;
use signalbox_config::wire::{self, MarkerVersion};
use signalbox_proto::MARKER_NAME;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, Resource};
use signalbox_proto::google::protobuf::Any;
use signalbox_proto::google::rpc::Status;

use super::frames::{Frame, encode_end};

/// The resources of one type at one revision, as one proxy may see them.
pub trait Set {
    /// Which revision.
    fn revision(&self) -> &RevisionId;

    /// The generation of the proxy's fleet under which it is to serve the revision.
    fn generation(&self) -> u64;

    /// The text that stands for the whole, in the commit marker's version; of sets without a marker it is empty.
    fn digest(&self) -> String;

    /// True if the set is small enough to be sent without admission.
    fn is_small(&self) -> bool;

    /// About how many bytes all of it has.
    fn size(&self) -> usize {
        self.all().size()
    }

    /// The resource, or the marker, of this name.
    fn find(&self, name: &str) -> Option<Item>;

    /// The way from nothing to this set: all resources but the marker, by name.
    fn all(&self) -> Diff;

    /// How it differs from an earlier or later revision of the same epoch; `None` when that is not known.
    fn since(&self, number: u64) -> Option<Diff>;

    /// The marker, which is sent last of every revision, if the type has one.
    fn marker(&self, full: bool) -> Option<Item>;
}

/// A revision, and the generation of the fleet under which a proxy was told to serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedRevision {
    /// The revision.
    pub revision: RevisionId,
    /// See [`signalbox_config::Assignment`].
    pub generation: u64,
}

impl AssignedRevision {
    fn of(set: &dyn Set) -> Self {
        Self { revision: set.revision().clone(), generation: set.generation() }
    }
}

/// A resource as it is sent; cloning shares.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its xDS name.
    pub name: Arc<str>,
    /// Its content's hash.
    pub version: Arc<str>,
    /// The message, encoded.
    pub bytes: Bytes,
}

/// The way from one revision to another.
#[derive(Debug, Clone, Default)]
pub struct Diff {
    /// Resources that are new or changed.
    pub items: Arc<[Item]>,
    /// Names of resources that were removed.
    pub removed: Arc<[Arc<str>]>,
    /// The same in encoded form, for streams that are sent exactly this. The first of them fills it.
    frames: Arc<OnceLock<Box<[Frame]>>>,
}

/// One proxy's subscription to one type.
#[derive(Debug)]
pub struct Subscription {
    type_url: Arc<str>,
    /// Makes a nonce of this stream different from those of any other.
    nonce_prefix: String,
    nonces: u64,
    /// A request came.
    begun: bool,
    wildcard: bool,
    /// Counts how often the wildcard was taken back.
    wildcard_era: u64,
    /// The first answer to the wildcard was given, even if there was nothing to say.
    answered: bool,
    /// Names that were subscribed.
    names: BTreeSet<Arc<str>>,
    /// Names to be sent however current they look: they were subscribed, perhaps not for the first time.
    resend: BTreeSet<Arc<str>>,
    /// The state that the proxy has through the wildcard.
    client_state: ClientState,
    /// The version that the proxy has of each of `names`; `None` when it was told that there is no such resource.
    have: HashMap<Arc<str>, Option<Arc<str>>>,
    in_flight: Option<InFlight>,
    /// The revision that the proxy rejected: it is not sent again before something changes.
    rejected: Option<RejectedRevision>,
}

/// The state that a proxy has before the next response.
#[derive(Debug, Clone)]
enum ClientState {
    Nothing,
    /// All of a revision. With its digest when the proxy said so itself: then it is to be believed only if it fits.
    Revision(AssignedRevision, Option<String>),
    /// The versions that it listed, by name.
    Versions(BTreeMap<String, String>),
}

#[derive(Debug)]
struct InFlight {
    assigned: AssignedRevision,
    diff: Diff,
    /// Resources that are sent beside `diff`.
    extra: Vec<Item>,
    extra_removed: Vec<Arc<str>>,
    marker: Option<Item>,
    /// How much of each was sent.
    sent: Position,
    /// The era of the wildcard that this is sent for, if it is for the wildcard.
    wildcard: Option<u64>,
    nonces: Vec<String>,
    /// All of it was sent; the last nonce acknowledges it.
    complete: bool,
    /// Changes to `have` once the proxy has acknowledged this.
    on_ack: Vec<(Arc<str>, Option<Arc<str>>)>,
}

#[derive(Debug, Default)]
struct Position {
    frames: usize,
    items: usize,
    extra: usize,
    removed: usize,
    extra_removed: usize,
}

#[derive(Debug)]
struct RejectedRevision {
    assigned: AssignedRevision,
    /// Acknowledged after all when the cause of the rejection went away; only what was sent whole can be.
    nonce: Option<String>,
    wildcard: Option<u64>,
}

/// The acknowledgement that a request carries.
#[derive(Debug)]
pub enum Acknowledgement {
    /// Nothing.
    None,
    /// A revision was applied.
    Acked(AssignedRevision),
    /// A revision was rejected, and why.
    Rejected(RevisionId, Box<Status>),
}

/// The changes that there are to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// No, or not until the proxy has answered.
    Nothing,
    /// The proxy was told to serve something by a later decision of this epoch: it knows better, and is left alone.
    Ahead,
    /// The changes since the proxy's revision.
    Changes,
    /// Everything.
    Everything,
}

/// A part of a revision, to be written.
#[derive(Debug)]
pub struct Chunk {
    /// The part of the message that other streams may send, too.
    pub frame: Frame,
    /// The rest of the message, encoded.
    pub end: Bytes,
    /// With this part the revision is sent whole.
    pub completes: Option<RevisionId>,
}

/// A request that no client makes: the stream is closed with this text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// More than [`Subscription::MAX_NAMES`].
    #[error("more than {} names are subscribed", Subscription::MAX_NAMES)]
    TooManyNames,
    /// Longer than [`Subscription::MAX_NAME`].
    #[error("a name is longer than {} bytes", Subscription::MAX_NAME)]
    NameTooLong,
}

impl Subscription {
    /// The most names one proxy may subscribe to.
    pub const MAX_NAMES: usize = 10_000;
    /// The longest name, bytes.
    pub const MAX_NAME: usize = 256;
    /// How large a part of a revision is, bytes; one resource may be larger.
    pub const CHUNK: usize = 1 << 20;

    /// Nothing subscribed yet. `nonce_prefix` is this stream's alone.
    pub fn new(type_url: Arc<str>, nonce_prefix: String) -> Self {
        Self {
            type_url,
            nonce_prefix,
            nonces: 0,
            begun: false,
            wildcard: false,
            wildcard_era: 0,
            answered: false,
            names: BTreeSet::new(),
            resend: BTreeSet::new(),
            client_state: ClientState::Nothing,
            have: HashMap::new(),
            in_flight: None,
            rejected: None,
        }
    }

    /// The revision of the marker that the proxy presented, or that it was seen to apply.
    pub fn serves(&self) -> Option<&AssignedRevision> {
        match &self.client_state {
            ClientState::Revision(assigned, _) => Some(assigned),
            ClientState::Nothing | ClientState::Versions(_) => None,
        }
    }

    /// Takes a request in. Its changes of the subscription count whatever its nonce.
    pub fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Acknowledgement, Violation> {
        let names = request.resource_names_subscribe.iter().chain(&request.resource_names_unsubscribe);
        if names.clone().any(|name| name.len() > Self::MAX_NAME) {
            return Err(Violation::NameTooLong);
        }
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            self.wildcard = request.resource_names_subscribe.is_empty();
            self.client_state = ClientState::presented(request.initial_resource_versions, &mut self.have);
        }
        for name in request.resource_names_subscribe {
            self.subscribe(name, first);
        }
        for name in request.resource_names_unsubscribe {
            self.unsubscribe(&name);
        }
        if first {
            // The versions for the wildcard are in the client state.
            self.have.retain(|name, _| self.names.contains(name));
        }
        if self.names.len() > Self::MAX_NAMES {
            return Err(Violation::TooManyNames);
        }
        Ok(self.on_answer(&request.response_nonce, request.error_detail))
    }

    fn subscribe(&mut self, name: String, first: bool) {
        if name == WILDCARD {
            if !self.wildcard {
                self.wildcard = true;
                self.answered = false;
                if !first {
                    // The list from the beginning of the stream is outdated.
                    self.client_state = ClientState::Nothing;
                }
            }
            return;
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        // A listed version only suppresses the first answer; a name that is subscribed later is always sent.
        if !first || !self.have.contains_key(&name) {
            self.resend.insert(name);
            self.rejected = None;
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
            self.wildcard_era += 1;
            self.client_state = ClientState::Nothing;
            return;
        }
        self.resend.remove(name);
        self.have.remove(name);
        if let Some(name) = self.names.take(name)
            && self.wildcard
        {
            // The wildcard still covers it, and the proxy may have dropped it.
            self.resend.insert(name);
        }
    }

    fn on_answer(&mut self, nonce: &str, error: Option<Status>) -> Acknowledgement {
        if nonce.is_empty() {
            return Acknowledgement::None;
        }
        if let Some(in_flight) = &self.in_flight
            && let Some(index) = in_flight.nonces.iter().position(|sent| sent == nonce)
        {
            let last = in_flight.complete && index + 1 == in_flight.nonces.len();
            return match error {
                Some(error) => self.on_rejected(error),
                None if last => self.on_acked(),
                None => Acknowledgement::None,
            };
        }
        // A late ACK: the proxy went on trying what it had rejected.
        if error.is_none()
            && self.rejected.as_ref().is_some_and(|rejected| rejected.nonce.as_deref() == Some(nonce))
            && let Some(rejected) = self.rejected.take()
        {
            if self.in_flight.is_none() && self.covers(rejected.wildcard) {
                self.client_state = ClientState::Revision(rejected.assigned.clone(), None);
            }
            return Acknowledgement::Acked(rejected.assigned);
        }
        Acknowledgement::None
    }

    fn on_acked(&mut self) -> Acknowledgement {
        let Some(in_flight) = self.in_flight.take() else { return Acknowledgement::None };
        self.rejected = None;
        for (name, version) in in_flight.on_ack {
            if self.names.contains(&name) {
                self.have.insert(name, version);
            }
        }
        if self.covers(in_flight.wildcard) {
            self.client_state = ClientState::Revision(in_flight.assigned.clone(), None);
        }
        Acknowledgement::Acked(in_flight.assigned)
    }

    /// Nothing of the revision counts as delivered: what comes next starts from what was acknowledged last.
    fn on_rejected(&mut self, error: Status) -> Acknowledgement {
        let Some(in_flight) = self.in_flight.take() else { return Acknowledgement::None };
        self.rejected = Some(RejectedRevision {
            assigned: in_flight.assigned.clone(),
            nonce: in_flight.nonces.last().filter(|_| in_flight.complete).cloned(),
            wildcard: in_flight.wildcard,
        });
        Acknowledgement::Rejected(in_flight.assigned.revision, Box::new(error))
    }

    /// Compares the proxy's state with `set`, which it may see now.
    pub fn wants(&self, set: &dyn Set) -> Want {
        if !self.begun || self.in_flight.is_some() {
            return Want::Nothing;
        }
        if self.rejected.as_ref().is_some_and(|rejected| rejected.assigned == AssignedRevision::of(set)) {
            return Want::Nothing;
        }
        if self.wildcard {
            match self.client_state.compare(set) {
                Comparison::Same if self.answered && self.resend.is_empty() => Want::Nothing,
                Comparison::Same | Comparison::Changes(_) => Want::Changes,
                Comparison::Ahead => Want::Ahead,
                Comparison::Everything => Want::Everything,
            }
        } else if self.names.iter().any(|name| self.is_due(name, set)) {
            Want::Changes
        } else {
            Want::Nothing
        }
    }

    fn is_due(&self, name: &Arc<str>, set: &dyn Set) -> bool {
        let current = set.find(name).map(|item| item.version);
        self.resend.contains(name) || self.have.get(name) != Some(&current)
    }

    /// Begins to send what [`Self::wants`] says; [`Self::next_chunk`] then has it.
    pub fn begin(&mut self, set: &dyn Set) {
        if matches!(self.wants(set), Want::Nothing | Want::Ahead) {
            return;
        }
        let mut full = false;
        let mut diff = Diff::default();
        let mut named: Vec<Arc<str>> = Vec::new();
        if self.wildcard {
            match self.client_state.compare(set) {
                Comparison::Same | Comparison::Ahead => {}
                Comparison::Changes(changes) => diff = changes,
                Comparison::Everything => {
                    full = true;
                    diff = set.all();
                }
            }
            if full {
                named.extend(self.resend.iter().filter(|name| set.find(name).is_none()).cloned());
            } else {
                let sent: HashSet<&str> = diff
                    .items
                    .iter()
                    .map(|item| &*item.name)
                    .chain(diff.removed.iter().map(|name| &**name))
                    .collect();
                named.extend(self.resend.iter().filter(|name| !sent.contains(&***name)).cloned());
            }
        } else {
            named.extend(self.names.iter().filter(|name| self.is_due(name, set)).cloned());
        }
        let marker = match self.wildcard {
            true => set.marker(full),
            false => None,
        };
        let mut extra = Vec::new();
        let mut extra_removed = Vec::new();
        for name in named {
            match set.find(&name) {
                // The wildcard's own marker comes last anyway.
                Some(_) if marker.as_ref().is_some_and(|marker| marker.name == name) => {}
                Some(item) => extra.push(item),
                None => extra_removed.push(name),
            }
        }
        let on_ack = (extra.iter().map(|item| (item.name.clone(), Some(item.version.clone()))))
            .chain(extra_removed.iter().map(|name| (name.clone(), None)))
            .collect();
        self.resend.clear();
        self.answered |= self.wildcard;
        self.in_flight = Some(InFlight {
            assigned: AssignedRevision::of(set),
            diff,
            extra,
            extra_removed,
            marker,
            sent: Position::default(),
            wildcard: self.wildcard.then_some(self.wildcard_era),
            nonces: Vec::new(),
            complete: false,
            on_ack,
        });
    }

    /// The next part of what was begun. What is no longer subscribed is left out, however long it was waiting.
    pub fn next_chunk(&mut self) -> Option<Chunk> {
        let covered = self.in_flight.as_ref().is_some_and(|in_flight| self.covers(in_flight.wildcard));
        let in_flight = self.in_flight.as_mut().filter(|in_flight| !in_flight.complete)?;
        if in_flight.wildcard.is_some() && !covered {
            // The rest concerns a subscription that was taken back. What was subscribed by name since is new.
            let kept = |name: &Arc<str>| self.names.contains(name);
            in_flight.diff = Diff::default();
            in_flight.extra.retain(|item| kept(&item.name));
            in_flight.extra_removed.retain(kept);
            in_flight.marker = None;
            in_flight.sent = Position::default();
            if in_flight.extra.is_empty() && in_flight.extra_removed.is_empty() {
                self.in_flight = None;
                return None;
            }
            in_flight.wildcard = None;
        }
        let wildcard = in_flight.wildcard.is_some();
        let (frame, complete) =
            if wildcard && in_flight.extra.is_empty() && in_flight.extra_removed.is_empty() {
                in_flight.next_shared(&self.type_url)?
            } else {
                let (resources, removed) = in_flight.next_part(&self.names, &self.type_url);
                let complete = in_flight.exhausted();
                let is_empty = resources.is_empty() && removed.is_empty() && in_flight.marker.is_none();
                if complete && !wildcard && is_empty && in_flight.nonces.is_empty() {
                    self.in_flight = None;
                    return None;
                }
                (Frame::encode(&self.type_url, resources, removed), complete)
            };
        in_flight.complete = complete;
        let marker = in_flight.marker.as_ref().filter(|_| complete);
        let marker = marker.map(|marker| resource(marker, &self.type_url));
        self.nonces += 1;
        let nonce = format!("{}-{}", self.nonce_prefix, self.nonces);
        in_flight.nonces.push(nonce.clone());
        let end = encode_end(in_flight.assigned.revision.number, marker, nonce);
        Some(Chunk { frame, end, completes: complete.then(|| in_flight.assigned.revision.clone()) })
    }

    /// True if `era` is that of the present wildcard.
    fn covers(&self, era: Option<u64>) -> bool {
        self.wildcard && era == Some(self.wildcard_era)
    }

    /// True if [`Self::next_chunk`] has something.
    pub fn has_chunk(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|in_flight| !in_flight.complete)
    }
}

impl InFlight {
    /// The next of the frames that all streams share, and whether it is the last.
    fn next_shared(&mut self, type_url: &str) -> Option<(Frame, bool)> {
        let frames = self.diff.frames(type_url);
        let frame = frames.get(self.sent.frames).cloned()?;
        self.sent.frames += 1;
        Some((frame, self.sent.frames >= frames.len()))
    }

    /// The next resources, and names of removed ones, that fit into a response. Without the wildcard, they are those of
    /// `names` alone.
    fn next_part(&mut self, names: &BTreeSet<Arc<str>>, type_url: &str) -> (Vec<Resource>, Vec<String>) {
        let wildcard = self.wildcard.is_some();
        let mut part = Part::new(type_url, |name| wildcard || names.contains(name));
        let Self { diff, extra, extra_removed, sent, .. } = self;
        part.remove(&diff.removed, &mut sent.removed);
        part.remove(extra_removed, &mut sent.extra_removed);
        part.put(&diff.items, &mut sent.items);
        part.put(extra, &mut sent.extra);
        (part.resources, part.removed)
    }

    fn exhausted(&self) -> bool {
        self.sent.items >= self.diff.items.len()
            && self.sent.extra >= self.extra.len()
            && self.sent.removed >= self.diff.removed.len()
            && self.sent.extra_removed >= self.extra_removed.len()
    }
}

impl Diff {
    /// The way from one revision to another: resources that are new or changed, and names of removed ones.
    pub fn new(items: Arc<[Item]>, removed: Arc<[Arc<str>]>) -> Self {
        Self { items, removed, frames: Arc::default() }
    }

    /// About how many bytes it has in encoded form.
    pub(super) fn size(&self) -> usize {
        let items = self.items.iter().map(|item| item.bytes.len() + item.name.len() + PER_ITEM);
        items.chain(self.removed.iter().map(|name| name.len() + PER_NAME)).sum()
    }

    /// It in encoded form; at least one frame.
    fn frames(&self, type_url: &str) -> &[Frame] {
        self.frames.get_or_init(|| {
            let (mut removed, mut items) = (0, 0);
            let mut frames = Vec::new();
            loop {
                let mut part = Part::new(type_url, |_| true);
                part.remove(&self.removed, &mut removed);
                part.put(&self.items, &mut items);
                frames.push(Frame::encode(type_url, part.resources, part.removed));
                if removed >= self.removed.len() && items >= self.items.len() {
                    return frames.into();
                }
            }
        })
    }
}

/// The content of one response, filled up to its size.
struct Part<'a, F> {
    type_url: &'a str,
    includes: F,
    /// Bytes.
    room: usize,
    resources: Vec<Resource>,
    removed: Vec<String>,
}

impl<'a, F: Fn(&Arc<str>) -> bool> Part<'a, F> {
    /// An empty one for what `includes` is true of.
    fn new(type_url: &'a str, includes: F) -> Self {
        Self { type_url, includes, room: Subscription::CHUNK, resources: Vec::new(), removed: Vec::new() }
    }

    /// Adds names of removed resources from `position` on.
    fn remove(&mut self, names: &[Arc<str>], position: &mut usize) {
        while self.room > 0
            && let Some(name) = names.get(*position)
        {
            *position += 1;
            if (self.includes)(name) {
                self.room = self.room.saturating_sub(name.len() + PER_NAME);
                self.removed.push(name.to_string());
            }
        }
    }

    /// Adds resources from `position` on.
    fn put(&mut self, items: &[Item], position: &mut usize) {
        while let Some(item) = items.get(*position) {
            let size = item.bytes.len() + item.name.len() + PER_ITEM;
            if size > self.room && !(self.resources.is_empty() && self.removed.is_empty()) {
                self.room = 0;
                return;
            }
            *position += 1;
            if (self.includes)(&item.name) {
                self.room = self.room.saturating_sub(size);
                self.resources.push(resource(item, self.type_url));
            }
        }
    }
}

/// How a basis stands to a set.
enum Comparison {
    Same,
    Ahead,
    Changes(Diff),
    Everything,
}

impl ClientState {
    /// Reads the list of a proxy's first request. A marker stands for all of a revision; what else is listed counts
    /// for the names that are subscribed, and without a marker for the wildcard.
    fn presented(listed: HashMap<String, String>, have: &mut HashMap<Arc<str>, Option<Arc<str>>>) -> Self {
        if listed.is_empty() {
            return Self::Nothing;
        }
        if let Some(MarkerVersion { revision, digest, generation }) =
            listed.get(MARKER_NAME).and_then(|text| wire::parse_marker_version(text))
        {
            return Self::Revision(AssignedRevision { revision, generation }, Some(digest));
        }
        for (name, version) in &listed {
            have.insert(name.as_str().into(), Some(version.as_str().into()));
        }
        Self::Versions(listed.into_iter().filter(|(name, _)| name != MARKER_NAME).collect())
    }

    fn compare(&self, set: &dyn Set) -> Comparison {
        match self {
            Self::Nothing => Comparison::Everything,
            Self::Revision(known, digest) => Self::compare_revision(known, digest.as_deref(), set),
            Self::Versions(versions) => {
                let all = set.all();
                let items = all
                    .items
                    .iter()
                    .filter(|item| versions.get(&*item.name).map(String::as_str) != Some(&item.version));
                let removed = versions.keys().filter(|name| set.find(name).is_none());
                let removed = removed.map(|name| name.as_str().into()).collect();
                Comparison::Changes(Diff::new(items.cloned().collect(), removed))
            }
        }
    }
}

impl ClientState {
    /// Within an epoch the decisions about a fleet are ordered by generation, and under the same decision revisions by number.
    fn compare_revision(known: &AssignedRevision, digest: Option<&str>, set: &dyn Set) -> Comparison {
        let (to, generation) = (set.revision(), set.generation());
        let number = known.revision.number;
        if known.revision.epoch != to.epoch {
            return Comparison::Everything;
        }
        if (known.generation, number) > (generation, to.number) {
            return Comparison::Ahead;
        }
        if number != to.number {
            return set.since(number).map_or(Comparison::Everything, Comparison::Changes);
        }
        if digest.is_some_and(|digest| digest != set.digest()) {
            return Comparison::Everything;
        }
        // The proxy still has to learn of a new decision.
        if known.generation == generation { Comparison::Same } else { Comparison::Changes(Diff::default()) }
    }
}

fn resource(item: &Item, type_url: &str) -> Resource {
    Resource {
        version: item.version.to_string(),
        resource: Some(Any { type_url: type_url.to_owned(), value: item.bytes.clone() }),
        name: item.name.to_string(),
        aliases: Vec::new(),
    }
}

const WILDCARD: &str = "*";

/// Bytes that encoding adds to a removed name.
const PER_NAME: usize = 4;

/// Bytes that encoding adds to a resource: its version, the type's URL, tags and lengths.
const PER_ITEM: usize = 96;

#[cfg(test)]
mod tests;
