//! What one proxy subscribed to of one resource type, what it has, and what it is to be sent next: the delta variant
//! of xDS as a state machine over values. It does no I/O; `stream` moves what it says.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds>

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use signalbox_config::{RevisionId, wire};
use signalbox_proto::MARKER_NAME;
use signalbox_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use signalbox_proto::google::protobuf::Any;
use signalbox_proto::google::rpc::Status;

/// The resources of one type at one revision, as one proxy may see them.
pub trait Set {
    /// Which revision.
    fn revision(&self) -> &RevisionId;

    /// The text that stands for the whole, in the commit marker's version; of sets without a marker it is empty.
    fn digest(&self) -> String;

    /// Whether all of it is little, so that sending it needs no admission.
    fn is_small(&self) -> bool;

    /// The resource, or the marker, of this name.
    fn find(&self, name: &str) -> Option<Item>;

    /// All resources but the marker, by name.
    fn all(&self) -> Arc<[Item]>;

    /// How it differs from an earlier revision of the same epoch; `None` when that is too long ago to tell.
    fn since(&self, number: u64) -> Option<Diff>;

    /// What is sent last of every revision, if the type has such.
    fn marker(&self, full: bool) -> Option<Item>;
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
    /// What is new or changed.
    pub items: Arc<[Item]>,
    /// What is no more.
    pub removed: Arc<[Arc<str>]>,
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
    /// What was subscribed by name.
    names: BTreeSet<Arc<str>>,
    /// What is to be sent however current it looks: a name was subscribed, perhaps not for the first time.
    again: BTreeSet<Arc<str>>,
    /// What the proxy has, through the wildcard.
    basis: Basis,
    /// What it has of `names`: the version, or `None` when it was told that there is no such resource.
    have: HashMap<Arc<str>, Option<Arc<str>>>,
    in_flight: Option<InFlight>,
    /// What it rejected: not sent again before something changes.
    refused: Option<Refused>,
}

/// What a proxy has before the next answer.
#[derive(Debug, Clone)]
enum Basis {
    Nothing,
    /// All of a revision. With its digest when the proxy said so itself: then it is to be believed only if it fits.
    Revision(RevisionId, Option<String>),
    /// What it listed, by name.
    Versions(BTreeMap<String, String>),
}

#[derive(Debug)]
struct InFlight {
    revision: RevisionId,
    diff: Diff,
    /// What is sent beside `diff`.
    extra: Vec<Item>,
    extra_removed: Vec<Arc<str>>,
    marker: Option<Item>,
    /// How much of each was sent.
    sent: Position,
    /// Of the wildcard, and of which era.
    wildcard: Option<u64>,
    nonces: Vec<String>,
    /// All of it was sent; the last nonce acknowledges it.
    complete: bool,
    /// What `have` becomes.
    then: Vec<(Arc<str>, Option<Arc<str>>)>,
}

#[derive(Debug, Default)]
struct Position {
    items: usize,
    extra: usize,
    removed: usize,
    extra_removed: usize,
}

#[derive(Debug)]
struct Refused {
    revision: RevisionId,
    /// Acknowledged after all when the cause of the rejection went away; only what was sent whole can be.
    nonce: Option<String>,
    wildcard: Option<u64>,
}

/// What a request said of the answers before it.
#[derive(Debug)]
pub enum Answer {
    /// Nothing.
    None,
    /// A revision was applied.
    Acked(RevisionId),
    /// A revision was rejected, and why.
    Rejected(RevisionId, Box<Status>),
}

/// Whether there is something to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// No, or not until the proxy has answered.
    Nothing,
    /// The proxy has a later revision of this epoch: it knows better, and is left alone.
    Ahead(u64),
    /// What changed.
    Changes,
    /// Everything.
    Everything,
}

/// A part of a revision, to be written.
#[derive(Debug)]
pub struct Chunk {
    /// The message.
    pub response: DeltaDiscoveryResponse,
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
            again: BTreeSet::new(),
            basis: Basis::Nothing,
            have: HashMap::new(),
            in_flight: None,
            refused: None,
        }
    }

    /// What the proxy said it has: the revision of the marker it presented, or was seen to apply.
    pub fn serves(&self) -> Option<&RevisionId> {
        match &self.basis {
            Basis::Revision(revision, _) => Some(revision),
            Basis::Nothing | Basis::Versions(_) => None,
        }
    }

    /// Takes a request in. Its changes of the subscription count whatever its nonce.
    pub fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Answer, Violation> {
        let names = request.resource_names_subscribe.iter().chain(&request.resource_names_unsubscribe);
        if names.clone().any(|name| name.len() > Self::MAX_NAME) {
            return Err(Violation::NameTooLong);
        }
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            self.wildcard = request.resource_names_subscribe.is_empty();
            self.basis = Basis::presented(request.initial_resource_versions, &mut self.have);
        }
        for name in request.resource_names_subscribe {
            self.subscribe(name, first);
        }
        for name in request.resource_names_unsubscribe {
            self.unsubscribe(&name);
        }
        if first {
            // What the wildcard is to be sent is in the basis.
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
                    // What it listed when the stream began is long ago.
                    self.basis = Basis::Nothing;
                }
            }
            return;
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        // A listed version only suppresses the first answer; a name that is subscribed later is always sent.
        if !first || !self.have.contains_key(&name) {
            self.again.insert(name);
            self.refused = None;
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
            self.wildcard_era += 1;
            self.basis = Basis::Nothing;
            return;
        }
        self.again.remove(name);
        self.have.remove(name);
        if let Some(name) = self.names.take(name)
            && self.wildcard
        {
            // The wildcard still covers it, and the proxy may have dropped it.
            self.again.insert(name);
        }
    }

    fn on_answer(&mut self, nonce: &str, error: Option<Status>) -> Answer {
        if nonce.is_empty() {
            return Answer::None;
        }
        if let Some(in_flight) = &self.in_flight
            && let Some(index) = in_flight.nonces.iter().position(|sent| sent == nonce)
        {
            let last = in_flight.complete && index + 1 == in_flight.nonces.len();
            return match error {
                Some(error) => self.on_rejected(error),
                None if last => self.on_acked(),
                None => Answer::None,
            };
        }
        // A late ACK: the proxy went on trying what it had rejected.
        if error.is_none()
            && self.refused.as_ref().is_some_and(|refused| refused.nonce.as_deref() == Some(nonce))
            && let Some(refused) = self.refused.take()
        {
            if self.in_flight.is_none() && self.covers(refused.wildcard) {
                self.basis = Basis::Revision(refused.revision.clone(), None);
            }
            return Answer::Acked(refused.revision);
        }
        Answer::None
    }

    fn on_acked(&mut self) -> Answer {
        let Some(in_flight) = self.in_flight.take() else { return Answer::None };
        self.refused = None;
        for (name, version) in in_flight.then {
            if self.names.contains(&name) {
                self.have.insert(name, version);
            }
        }
        if self.covers(in_flight.wildcard) {
            self.basis = Basis::Revision(in_flight.revision.clone(), None);
        }
        Answer::Acked(in_flight.revision)
    }

    /// Nothing of the revision counts as delivered: what comes next starts from what was acknowledged last.
    fn on_rejected(&mut self, error: Status) -> Answer {
        let Some(in_flight) = self.in_flight.take() else { return Answer::None };
        self.refused = Some(Refused {
            revision: in_flight.revision.clone(),
            nonce: in_flight.nonces.last().filter(|_| in_flight.complete).cloned(),
            wildcard: in_flight.wildcard,
        });
        Answer::Rejected(in_flight.revision, Box::new(error))
    }

    /// Whether there is something to send, now that the proxy may see `set`.
    pub fn wants(&self, set: &dyn Set) -> Want {
        if !self.begun || self.in_flight.is_some() {
            return Want::Nothing;
        }
        if self.refused.as_ref().is_some_and(|refused| refused.revision == *set.revision()) {
            return Want::Nothing;
        }
        if self.wildcard {
            match self.basis.against(set) {
                Against::Same if self.answered && self.again.is_empty() => Want::Nothing,
                Against::Same | Against::Changes(_) => Want::Changes,
                Against::Ahead(number) => Want::Ahead(number),
                Against::Everything => Want::Everything,
            }
        } else if self.names.iter().any(|name| self.is_due(name, set)) {
            Want::Changes
        } else {
            Want::Nothing
        }
    }

    fn is_due(&self, name: &Arc<str>, set: &dyn Set) -> bool {
        let current = set.find(name).map(|item| item.version);
        self.again.contains(name) || self.have.get(name) != Some(&current)
    }

    /// Begins to send what [`Self::wants`] says; [`Self::next_chunk`] then has it.
    pub fn begin(&mut self, set: &dyn Set) {
        if matches!(self.wants(set), Want::Nothing | Want::Ahead(_)) {
            return;
        }
        let mut full = false;
        let mut diff = Diff::default();
        let mut named: Vec<Arc<str>> = Vec::new();
        if self.wildcard {
            match self.basis.against(set) {
                Against::Same | Against::Ahead(_) => {}
                Against::Changes(changes) => diff = changes,
                Against::Everything => {
                    full = true;
                    diff.items = set.all();
                }
            }
            if full {
                named.extend(self.again.iter().filter(|name| set.find(name).is_none()).cloned());
            } else {
                let sent: HashSet<&str> = diff
                    .items
                    .iter()
                    .map(|item| &*item.name)
                    .chain(diff.removed.iter().map(|name| &**name))
                    .collect();
                named.extend(self.again.iter().filter(|name| !sent.contains(&***name)).cloned());
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
        let then = (extra.iter().map(|item| (item.name.clone(), Some(item.version.clone()))))
            .chain(extra_removed.iter().map(|name| (name.clone(), None)))
            .collect();
        self.again.clear();
        self.answered |= self.wildcard;
        self.in_flight = Some(InFlight {
            revision: set.revision().clone(),
            diff,
            extra,
            extra_removed,
            marker,
            sent: Position::default(),
            wildcard: self.wildcard.then_some(self.wildcard_era),
            nonces: Vec::new(),
            complete: false,
            then,
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
        let subscribed = |name: &Arc<str>| wildcard || self.names.contains(name);
        let mut room = Self::CHUNK;
        let mut resources = Vec::new();
        let mut removed_resources = Vec::new();
        let InFlight { diff, extra, extra_removed, sent, .. } = in_flight;
        for (names, position) in
            [(&diff.removed[..], &mut sent.removed), (&extra_removed[..], &mut sent.extra_removed)]
        {
            while room > 0
                && let Some(name) = names.get(*position)
            {
                *position += 1;
                if subscribed(name) {
                    room = room.saturating_sub(name.len() + PER_NAME);
                    removed_resources.push(name.to_string());
                }
            }
        }
        for (items, position) in [(&diff.items[..], &mut sent.items), (&extra[..], &mut sent.extra)] {
            while let Some(item) = items.get(*position) {
                let size = item.bytes.len() + item.name.len() + PER_ITEM;
                if size > room && !(resources.is_empty() && removed_resources.is_empty()) {
                    room = 0;
                    break;
                }
                *position += 1;
                if subscribed(&item.name) {
                    room = room.saturating_sub(size);
                    resources.push(resource(item, &self.type_url));
                }
            }
        }
        let complete = in_flight.exhausted();
        if complete {
            in_flight.complete = true;
            resources.extend(in_flight.marker.as_ref().map(|marker| resource(marker, &self.type_url)));
            if !wildcard
                && resources.is_empty()
                && removed_resources.is_empty()
                && in_flight.nonces.is_empty()
            {
                self.in_flight = None;
                return None;
            }
        }
        self.nonces += 1;
        let nonce = format!("{}-{}", self.nonce_prefix, self.nonces);
        in_flight.nonces.push(nonce.clone());
        let response = DeltaDiscoveryResponse {
            system_version_info: in_flight.revision.number.to_string(),
            resources,
            type_url: self.type_url.to_string(),
            nonce,
            removed_resources,
        };
        Some(Chunk { response, completes: complete.then(|| in_flight.revision.clone()) })
    }

    /// Whether what was begun for the wildcard of `era` is for the present one.
    fn covers(&self, era: Option<u64>) -> bool {
        self.wildcard && era == Some(self.wildcard_era)
    }

    /// Whether [`Self::next_chunk`] has something.
    pub fn has_chunk(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|in_flight| !in_flight.complete)
    }
}

impl InFlight {
    fn exhausted(&self) -> bool {
        self.sent.items >= self.diff.items.len()
            && self.sent.extra >= self.extra.len()
            && self.sent.removed >= self.diff.removed.len()
            && self.sent.extra_removed >= self.extra_removed.len()
    }
}

/// How a basis stands to a set.
enum Against {
    Same,
    Ahead(u64),
    Changes(Diff),
    Everything,
}

impl Basis {
    /// What a proxy lists in its first request. A marker stands for all of a revision; what else is listed counts
    /// for the names that are subscribed, and without a marker for the wildcard.
    fn presented(listed: HashMap<String, String>, have: &mut HashMap<Arc<str>, Option<Arc<str>>>) -> Self {
        if listed.is_empty() {
            return Self::Nothing;
        }
        if let Some((revision, digest)) =
            listed.get(MARKER_NAME).and_then(|text| wire::parse_marker_version(text))
        {
            return Self::Revision(revision, Some(digest));
        }
        for (name, version) in &listed {
            have.insert(name.as_str().into(), Some(version.as_str().into()));
        }
        Self::Versions(listed.into_iter().filter(|(name, _)| name != MARKER_NAME).collect())
    }

    fn against(&self, set: &dyn Set) -> Against {
        let head = set.revision();
        match self {
            Self::Nothing => Against::Everything,
            Self::Revision(known, _) if known.epoch != head.epoch => Against::Everything,
            Self::Revision(known, _) if known.number > head.number => Against::Ahead(known.number),
            Self::Revision(known, digest) if known.number == head.number => match digest {
                Some(digest) if *digest != set.digest() => Against::Everything,
                _ => Against::Same,
            },
            Self::Revision(known, _) => set.since(known.number).map_or(Against::Everything, Against::Changes),
            Self::Versions(versions) => {
                let all = set.all();
                let items = all
                    .iter()
                    .filter(|item| versions.get(&*item.name).map(String::as_str) != Some(&item.version));
                let removed = versions.keys().filter(|name| set.find(name).is_none());
                Against::Changes(Diff {
                    items: items.cloned().collect(),
                    removed: removed.map(|name| name.as_str().into()).collect(),
                })
            }
        }
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

/// What encoding adds to a removed name.
const PER_NAME: usize = 4;

/// What encoding adds to a resource: its version, the type's URL, tags and lengths.
const PER_ITEM: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets whose resources' bytes are their names' lengths of padding; every revision ever made can be asked for.
    #[derive(Clone)]
    struct Resources {
        revision: RevisionId,
        items: BTreeMap<Arc<str>, Arc<str>>,
        /// What each revision changed, by number.
        log: BTreeMap<u64, Vec<Arc<str>>>,
        bytes: usize,
    }

    impl Resources {
        fn empty() -> Self {
            let revision = RevisionId { epoch: "e".into(), number: 0 };
            Self { revision, items: BTreeMap::new(), log: BTreeMap::new(), bytes: 8 }
        }

        /// The next revision: `("a", "v1")` puts, `("a", "")` deletes.
        fn with(mut self, changes: &[(&str, &str)]) -> Self {
            self.revision.number += 1;
            for (name, version) in changes {
                let name: Arc<str> = (*name).into();
                match *version {
                    "" => self.items.remove(&name),
                    version => self.items.insert(name.clone(), version.into()),
                };
                self.log.entry(self.revision.number).or_default().push(name);
            }
            self
        }

        fn item(&self, name: &str) -> Option<Item> {
            let (name, version) = self.items.get_key_value(name)?;
            Some(Item { name: name.clone(), version: version.clone(), bytes: vec![0; self.bytes].into() })
        }
    }

    impl Set for Resources {
        fn revision(&self) -> &RevisionId {
            &self.revision
        }

        fn digest(&self) -> String {
            format!("{:?}", self.items).replace(':', "=")
        }

        fn is_small(&self) -> bool {
            true
        }

        fn find(&self, name: &str) -> Option<Item> {
            self.item(name)
        }

        fn all(&self) -> Arc<[Item]> {
            self.items.keys().filter_map(|name| self.item(name)).collect()
        }

        fn since(&self, number: u64) -> Option<Diff> {
            let names: BTreeSet<_> = self.log.range(number + 1..).flat_map(|(_, names)| names).collect();
            let oldest = self.log.keys().next().copied().unwrap_or(1);
            (number + 1 >= oldest).then(|| Diff {
                items: names.iter().filter_map(|name| self.item(name)).collect(),
                removed: names
                    .iter()
                    .filter(|name| self.item(name).is_none())
                    .map(|name| (**name).clone())
                    .collect(),
            })
        }

        fn marker(&self, full: bool) -> Option<Item> {
            let version = format!("{}:{}:{}", self.revision.epoch, self.revision.number, self.digest());
            let bytes = Bytes::from_static(if full { b"full" } else { b"diff" });
            Some(Item { name: MARKER_NAME.into(), version: version.into(), bytes })
        }
    }

    struct Peer {
        subscription: Subscription,
        nonce: String,
    }

    impl Peer {
        fn new() -> Self {
            Self { subscription: Subscription::new("t".into(), "s1".into()), nonce: String::new() }
        }

        fn presenting(set: &Resources) -> Self {
            let mut peer = Self::new();
            let versions = [(MARKER_NAME.to_owned(), set.marker(false).unwrap().version.to_string())];
            peer.request(DeltaDiscoveryRequest {
                resource_names_subscribe: vec!["*".into()],
                initial_resource_versions: versions.into(),
                ..Default::default()
            });
            peer
        }

        fn request(&mut self, request: DeltaDiscoveryRequest) -> Answer {
            self.subscription.on_request(request).unwrap()
        }

        fn subscribe(&mut self, names: &[&str], unsubscribe: &[&str]) {
            self.request(DeltaDiscoveryRequest {
                resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
                resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
                ..Default::default()
            });
        }

        /// What comes next, written short: `+a=v1 -b !full`; `nothing` when there is nothing.
        fn next(&mut self, set: &Resources) -> String {
            self.subscription.begin(set);
            match self.subscription.next_chunk() {
                None => "nothing".to_owned(),
                Some(chunk) => {
                    self.nonce = chunk.response.nonce.clone();
                    short(&chunk.response)
                }
            }
        }

        fn ack(&mut self) -> Answer {
            let response_nonce = self.nonce.clone();
            self.request(DeltaDiscoveryRequest { response_nonce, ..Default::default() })
        }

        fn nack(&mut self) -> Answer {
            let response_nonce = self.nonce.clone();
            let error_detail = Some(Status::default());
            self.request(DeltaDiscoveryRequest { response_nonce, error_detail, ..Default::default() })
        }
    }

    fn short(response: &DeltaDiscoveryResponse) -> String {
        let put = |resource: &Resource| match &*resource.name {
            MARKER_NAME => {
                format!("!{}", String::from_utf8_lossy(&resource.resource.as_ref().unwrap().value))
            }
            name => format!("+{name}={}", resource.version),
        };
        let mut parts: Vec<_> = response.removed_resources.iter().map(|name| format!("-{name}")).collect();
        parts.extend(response.resources.iter().map(put));
        if parts.is_empty() { "empty".to_owned() } else { parts.join(" ") }
    }

    fn sample() -> Resources {
        Resources::empty().with(&[("a", "1"), ("b", "1")])
    }

    #[test]
    fn an_empty_first_request_and_a_star_mean_all() {
        for names in [&[][..], &["*"][..]] {
            let mut peer = Peer::new();
            peer.subscribe(names, &[]);
            assert_eq!(peer.next(&sample()), "+a=1 +b=1 !full", "{names:?}");
        }
    }

    #[test]
    fn once_a_name_was_subscribed_empty_means_none() {
        let mut peer = Peer::new();
        peer.subscribe(&["a"], &[]);
        assert_eq!(peer.next(&sample()), "+a=1");
        peer.ack();
        peer.subscribe(&[], &["a"]);
        assert_eq!(peer.next(&sample().with(&[("a", "2"), ("b", "2")])), "nothing");
    }

    #[test]
    fn a_name_after_a_first_empty_request_keeps_the_wildcard() {
        let mut peer = Peer::new();
        peer.subscribe(&[], &[]);
        peer.next(&sample());
        peer.ack();
        peer.subscribe(&["a"], &[]);
        assert_eq!(peer.next(&sample()), "+a=1 !diff");
        peer.ack();
        assert_eq!(peer.next(&sample().with(&[("b", "2")])), "+b=2 !diff");
    }

    #[test]
    fn a_name_subscribed_again_is_sent_again() {
        let mut peer = Peer::new();
        peer.subscribe(&["a"], &[]);
        peer.next(&sample());
        peer.ack();
        assert_eq!(peer.next(&sample()), "nothing");
        peer.subscribe(&["a"], &[]);
        assert_eq!(peer.next(&sample()), "+a=1");
    }

    #[test]
    fn unsubscribing_what_was_not_subscribed_is_ignored() {
        let mut peer = Peer::new();
        peer.subscribe(&["a"], &["b"]);
        assert_eq!(peer.next(&sample()), "+a=1");
        peer.ack();
        peer.subscribe(&[], &["b", "*"]);
        assert_eq!(peer.next(&sample()), "nothing");
    }

    #[test]
    fn a_name_that_does_not_exist_is_reported_removed_and_sent_when_it_is_created() {
        let mut peer = Peer::new();
        peer.subscribe(&["c"], &[]);
        assert_eq!(peer.next(&sample()), "-c");
        peer.ack();
        assert_eq!(peer.next(&sample()), "nothing");
        assert_eq!(peer.next(&sample().with(&[("c", "1")])), "+c=1");
    }

    #[test]
    fn a_missing_name_under_the_wildcard_is_reported_removed_too() {
        let mut peer = Peer::new();
        peer.subscribe(&["*", "c"], &[]);
        assert_eq!(peer.next(&sample()), "-c +a=1 +b=1 !full");
    }

    #[test]
    fn initial_versions_suppress_only_what_the_client_has_and_lists() {
        let mut peer = Peer::new();
        peer.request(DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["a".into(), "b".into()],
            initial_resource_versions: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "0".to_owned())]
                .into(),
            ..Default::default()
        });
        assert_eq!(peer.next(&sample()), "+b=1");
    }

    /// Case 1, for a client that lists everything it has.
    #[test]
    fn what_was_deleted_while_a_listing_client_was_away_is_reported_removed() {
        let mut peer = Peer::new();
        peer.request(DeltaDiscoveryRequest {
            initial_resource_versions: [("a".to_owned(), "1".to_owned()), ("z".to_owned(), "1".to_owned())]
                .into(),
            ..Default::default()
        });
        assert_eq!(peer.next(&sample()), "-z +b=1 !diff");
    }

    /// Case 1, for a client that presents its marker.
    #[test]
    fn what_was_deleted_while_a_client_was_away_is_reported_removed() {
        let mut peer = Peer::presenting(&sample());
        assert_eq!(peer.next(&sample().with(&[("a", "")]).with(&[("b", "2")])), "-a +b=2 !diff");
    }

    #[test]
    fn the_first_answer_to_a_wildcard_is_sent_even_if_it_is_empty() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        assert_eq!(peer.next(&Resources::empty()), "!full");

        let mut peer = Peer::presenting(&sample());
        assert_eq!(peer.next(&sample()), "!diff");
        peer.ack();
        assert_eq!(peer.next(&sample()), "nothing");
    }

    /// Case 2.
    #[test]
    fn a_client_that_is_ahead_is_sent_nothing_until_the_head_passes_it() {
        let ahead = sample().with(&[("a", "2")]).with(&[("b", "")]);
        let mut peer = Peer::presenting(&ahead);
        assert_eq!(peer.subscription.wants(&sample()), Want::Ahead(3));
        assert_eq!(peer.next(&sample()), "nothing");
        assert_eq!(peer.next(&ahead), "!diff");
        peer.ack();
        assert_eq!(peer.next(&ahead.with(&[("c", "1")])), "+c=1 !diff");
    }

    #[test]
    fn another_epoch_a_digest_that_differs_and_a_revision_too_old_get_everything() {
        let set = sample().with(&[("a", "2")]);
        let mut other_epoch = sample();
        other_epoch.revision.epoch = "f".into();
        let mut other_content = set.clone();
        other_content.items.remove("a");
        let mut compacted = set.clone();
        compacted.log.remove(&1);
        let old = Resources::empty();
        for (presented, set) in [(&other_epoch, &set), (&other_content, &set), (&old, &compacted)] {
            let mut peer = Peer::presenting(presented);
            assert_eq!(peer.subscription.wants(set), Want::Everything);
            assert_eq!(peer.next(set), "+a=2 +b=1 !full");
        }
    }

    /// Case 3.
    #[test]
    fn a_nonce_of_another_stream_is_ignored() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        for nonce in ["s2-1", "s1-2", "1"] {
            let response_nonce = nonce.to_owned();
            let request = DeltaDiscoveryRequest { response_nonce, ..Default::default() };
            assert!(matches!(peer.request(request), Answer::None));
        }
        assert!(matches!(peer.ack(), Answer::Acked(_)));
    }

    #[test]
    fn a_stale_nonce_still_has_its_subscriptions_honoured() {
        let mut peer = Peer::new();
        peer.subscribe(&["a"], &[]);
        peer.next(&sample());
        peer.ack();
        peer.request(DeltaDiscoveryRequest {
            response_nonce: "long ago".into(),
            resource_names_subscribe: vec!["b".into()],
            ..Default::default()
        });
        assert_eq!(peer.next(&sample()), "+b=1");
    }

    #[test]
    fn nonces_are_unique_per_response() {
        let mut peer = Peer::new();
        let mut set = sample();
        peer.subscribe(&["*"], &[]);
        let mut nonces = HashSet::new();
        for _ in 0..5 {
            peer.next(&set);
            assert!(nonces.insert(peer.nonce.clone()));
            peer.ack();
            set = set.with(&[("a", "x")]);
        }
    }

    /// Case 4.
    #[test]
    fn what_was_removed_and_added_again_with_the_same_content_is_sent() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        peer.ack();
        let without = sample().with(&[("a", "")]);
        assert_eq!(peer.next(&without), "-a !diff");
        peer.ack();
        assert_eq!(peer.next(&without.with(&[("a", "1")])), "+a=1 !diff");
    }

    /// Cases 5 and 6.
    #[test]
    fn a_rejected_revision_is_not_resent_and_nothing_of_it_counts_as_delivered() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        peer.ack();
        let bad = sample().with(&[("a", "bad"), ("b", "2")]);
        assert_eq!(peer.next(&bad), "+a=bad +b=2 !diff");
        assert!(matches!(peer.nack(), Answer::Rejected(..)));
        assert_eq!(peer.next(&bad), "nothing");
        let fixed = bad.with(&[("a", "3")]);
        assert_eq!(peer.next(&fixed), "+a=3 +b=2 !diff");
        assert!(matches!(peer.ack(), Answer::Acked(RevisionId { number: 3, .. })));
    }

    #[test]
    fn a_rejected_first_answer_is_sent_whole_once_it_is_fixed() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        peer.nack();
        assert_eq!(peer.next(&sample()), "nothing");
        assert_eq!(peer.next(&sample().with(&[("a", "2")])), "+a=2 +b=1 !full");
    }

    #[test]
    fn a_nack_is_the_presence_of_error_detail_whatever_it_says() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        // Code 0, no text.
        assert!(matches!(peer.nack(), Answer::Rejected(..)));
    }

    #[test]
    fn a_late_ack_of_a_rejected_revision_counts() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        peer.nack();
        assert!(matches!(peer.ack(), Answer::Acked(RevisionId { number: 1, .. })));
        assert_eq!(peer.next(&sample().with(&[("b", "2")])), "+b=2 !diff");
    }

    #[test]
    fn a_late_ack_does_not_disturb_what_is_in_flight() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        peer.ack();
        let bad = sample().with(&[("a", "2")]);
        peer.next(&bad);
        let rejected = peer.nonce.clone();
        peer.nack();
        let next = bad.with(&[("b", "2")]);
        assert_eq!(peer.next(&next), "+a=2 +b=2 !diff");
        let request = DeltaDiscoveryRequest { response_nonce: rejected, ..Default::default() };
        assert!(matches!(peer.request(request), Answer::Acked(RevisionId { number: 2, .. })));
        assert!(matches!(peer.ack(), Answer::Acked(RevisionId { number: 3, .. })));
    }

    /// Case 7.
    #[test]
    fn what_is_queued_for_a_subscription_that_was_taken_back_is_dropped() {
        let mut set = sample();
        set.bytes = Subscription::CHUNK;
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        assert_eq!(peer.next(&set), "+a=1");
        peer.subscribe(&["b"], &["*"]);
        assert!(peer.subscription.next_chunk().is_none());
        assert_eq!(peer.next(&set), "+b=1");

        let mut peer = Peer::new();
        peer.subscribe(&["a", "b"], &[]);
        assert_eq!(peer.next(&set), "+a=1");
        peer.subscribe(&[], &["b"]);
        let rest = peer.subscription.next_chunk().map(|chunk| short(&chunk.response));
        assert_eq!(rest.as_deref(), Some("empty"));
    }

    #[test]
    fn a_wildcard_that_was_taken_back_and_given_again_starts_anew() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        peer.subscribe(&["*"], &["*"]);
        peer.subscribe(&[], &["*"]);
        peer.subscribe(&["*"], &[]);
        peer.ack();
        assert_eq!(peer.next(&sample()), "+a=1 +b=1 !full");
    }

    #[test]
    fn a_name_unsubscribed_under_the_wildcard_is_sent_again() {
        let mut peer = Peer::new();
        peer.subscribe(&["*", "a"], &[]);
        peer.next(&sample());
        peer.ack();
        peer.subscribe(&[], &["a"]);
        assert_eq!(peer.next(&sample()), "+a=1 !diff");
    }

    #[test]
    fn one_revision_is_in_flight_and_a_slow_client_skips_those_between() {
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        peer.next(&sample());
        let later = sample().with(&[("a", "2")]).with(&[("a", "3")]).with(&[("b", "4")]);
        assert_eq!(peer.next(&later), "nothing");
        peer.ack();
        assert_eq!(peer.next(&later), "+a=3 +b=4 !diff");
    }

    #[test]
    fn a_large_revision_comes_in_parts_with_the_marker_last() {
        let names: Vec<_> = (0..40).map(|index| format!("r{index:02}")).collect();
        let changes: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
        let mut set = Resources::empty().with(&changes);
        set.bytes = 100 << 10;
        let mut subscription = Subscription::new("t".into(), "s".into());
        subscription.on_request(DeltaDiscoveryRequest::default()).unwrap();
        subscription.begin(&set);
        let mut seen = Vec::new();
        let mut chunks = Vec::new();
        while let Some(chunk) = subscription.next_chunk() {
            assert!(prost::Message::encoded_len(&chunk.response) <= Subscription::CHUNK + 256);
            seen.extend(chunk.response.resources.iter().map(|resource| resource.name.clone()));
            chunks.push(chunk);
        }
        assert_eq!(seen.pop().as_deref(), Some(MARKER_NAME));
        assert_eq!(seen, names);
        assert!(chunks.len() > 3);
        let completes: Vec<_> = chunks.iter().map(|chunk| chunk.completes.is_some()).collect();
        assert_eq!(completes.iter().filter(|completes| **completes).count(), 1);
        assert_eq!(completes.last(), Some(&true));
        // Parts may be acknowledged each; only the last one is the revision.
        for chunk in &chunks {
            let answer = subscription.on_request(DeltaDiscoveryRequest {
                response_nonce: chunk.response.nonce.clone(),
                ..Default::default()
            });
            assert_eq!(matches!(answer.unwrap(), Answer::Acked(_)), chunk.completes.is_some());
        }
    }

    #[test]
    fn rejecting_one_part_rejects_the_revision_and_stops_the_rest() {
        let mut set = sample();
        set.bytes = Subscription::CHUNK;
        let mut peer = Peer::new();
        peer.subscribe(&["*"], &[]);
        assert_eq!(peer.next(&set), "+a=1");
        assert!(matches!(peer.nack(), Answer::Rejected(..)));
        assert_eq!(peer.next(&set), "nothing");
    }

    #[test]
    fn many_removed_names_come_in_parts() {
        let names: Vec<_> = (0..30_000).map(|index| format!("route/{index:0100}")).collect();
        let puts: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
        let deletes: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        let before = Resources::empty().with(&puts);
        let mut peer = Peer::presenting(&before);
        peer.subscription.begin(&before.with(&deletes));
        let mut removed = 0;
        while let Some(chunk) = peer.subscription.next_chunk() {
            assert!(prost::Message::encoded_len(&chunk.response) <= Subscription::CHUNK + 256);
            removed += chunk.response.removed_resources.len();
        }
        assert_eq!(removed, names.len());
    }

    #[test]
    fn names_are_bounded() {
        let mut subscription = Subscription::new("t".into(), "s".into());
        let request = |names: Vec<String>| DeltaDiscoveryRequest {
            resource_names_subscribe: names,
            ..Default::default()
        };
        let long = request(vec!["x".repeat(Subscription::MAX_NAME + 1)]);
        assert_eq!(subscription.on_request(long).unwrap_err(), Violation::NameTooLong);
        let many = request((0..=Subscription::MAX_NAMES).map(|index| index.to_string()).collect());
        assert_eq!(subscription.on_request(many).unwrap_err(), Violation::TooManyNames);
    }
}
