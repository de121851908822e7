//! The published state as sets that [`Subscription`](super::delta::Subscription) can send: one [`View`] for each
//! fleet and revision, shared by all the streams that send it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use signalbox_config::{Digest, Resource, ResourceKey, RevisionId, Snapshot, wire};
use signalbox_proto::MARKER_NAME;

use super::delta::{Diff, Item, Set};
use crate::publish::{History, Published, Publisher};

/// The current views of each fleet.
pub(super) struct Views {
    publisher: Arc<Publisher>,
    current: Mutex<HashMap<ViewKey, Arc<View>>>,
}

/// A fleet, and the number of the revision that it is assigned; `None` while it follows the head.
type ViewKey = (Arc<str>, Option<u64>);

/// The set that one fleet gets of one revision. Results that a stream computes are kept for the others.
pub(super) struct View {
    /// The state of the revision.
    state: Arc<Published>,
    /// The last revisions, which are later than `state` where the fleet does not follow the head.
    history: History,
    head: RevisionId,
    follows_head: bool,
    snapshot: Snapshot,
    all: OnceLock<Diff>,
    size: OnceLock<usize>,
    /// By the revision they start from. A thousand proxies ask for the same few.
    diffs: Mutex<HashMap<u64, Option<Diff>>>,
    markers: [OnceLock<Item>; 2],
}

impl Views {
    pub(super) fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher, current: Mutex::default() }
    }

    /// The set that the proxy with this node id gets of the published state.
    pub(super) fn of(&self, fleet: &Arc<str>, node: &str) -> Arc<View> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that no earlier state replaces a later one.
        let published = self.publisher.current();
        let target = published.target(fleet, node);
        let number = target.state.snapshot.id().number;
        let key = (fleet.clone(), (!target.follows_head).then_some(number));
        let head = published.snapshot.id();
        let known = current.get(&key).filter(|view| Arc::ptr_eq(&view.state, &target.state));
        if let Some(view) = known
            && view.head == *head
            && *view.snapshot.assignment() == target.assignment
        {
            return view.clone();
        }
        let (snapshot, all) = match known {
            Some(view) => (view.snapshot.clone(), view.all.clone()),
            None => (self.publisher.view(&target.state, fleet), OnceLock::new()),
        };
        let view = Arc::new(View {
            snapshot: snapshot.assigned_by(target.assignment),
            state: target.state,
            history: published.history.clone(),
            head: head.clone(),
            follows_head: target.follows_head,
            all,
            size: OnceLock::new(),
            diffs: Mutex::default(),
            markers: [OnceLock::new(), OnceLock::new()],
        });
        if current.len() >= MAX_VIEWS {
            current.clear();
        }
        // A revision that the fleet is no longer assigned is not asked for again.
        let kept = |(other, number): &ViewKey| {
            other != fleet || number.is_none_or(|number| published.is_assigned(fleet, number))
        };
        current.retain(|key, _| kept(key));
        current.insert(key, view.clone());
        view
    }
}

impl View {
    /// The time from which the propagation of the revision counts, in microseconds since 1970; `None` if proxies get the revision
    /// by a decision that was made later than the commit.
    pub(super) fn propagates_from_us(&self) -> Option<i64> {
        self.follows_head.then(|| self.snapshot.committed_at_us())
    }
}

impl Set for View {
    fn revision(&self) -> &RevisionId {
        self.snapshot.id()
    }

    fn generation(&self) -> u64 {
        self.snapshot.assignment().generation
    }

    fn digest(&self) -> String {
        self.snapshot.digest().to_string()
    }

    fn is_small(&self) -> bool {
        self.snapshot.len() <= SMALL
    }

    fn size(&self) -> usize {
        *self.size.get_or_init(|| self.all().size())
    }

    fn find(&self, name: &str) -> Option<Item> {
        if name == MARKER_NAME {
            return self.marker(false);
        }
        let key: ResourceKey = name.parse().ok()?;
        self.snapshot.find(&key).map(|resource| item(resource))
    }

    fn all(&self) -> Diff {
        let all = || Diff::new(self.snapshot.iter().map(|resource| item(resource)).collect(), Arc::default());
        self.all.get_or_init(all).clone()
    }

    fn since(&self, number: u64) -> Option<Diff> {
        let mut diffs = self.diffs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(diff) = diffs.get(&number) {
            return diff.clone();
        }
        // The keys that differ are the same in both directions.
        let to = self.snapshot.id().number;
        let changed = self.history.changed_between(number.min(to), number.max(to));
        let diff = changed.map(|keys| {
            let (mut items, mut removed) = (Vec::new(), Vec::new());
            for key in keys {
                match self.snapshot.find(&key) {
                    Some(resource) => items.push(item(resource)),
                    None => removed.push(Arc::from(key.to_string())),
                }
            }
            Diff::new(items.into(), removed.into())
        });
        if diffs.len() < MAX_DIFFS {
            diffs.insert(number, diff.clone());
        }
        diff
    }

    fn marker(&self, full: bool) -> Option<Item> {
        let [partial, whole] = &self.markers;
        let marker = if full { whole } else { partial };
        let encode = || Item {
            name: MARKER_NAME.into(),
            version: wire::marker_version(&self.snapshot).into(),
            bytes: wire::encode_marker(&self.snapshot, full),
        };
        Some(marker.get_or_init(encode).clone())
    }
}

fn item(resource: &Resource) -> Item {
    Item {
        name: resource.key().to_string().into(),
        version: resource.version().into(),
        bytes: resource.encoded(),
    }
}

/// A type that has no resources: whatever is subscribed of it is answered, with nothing.
pub(super) struct Empty(RevisionId);

impl Empty {
    pub(super) fn new() -> Self {
        Self(RevisionId { epoch: "".into(), number: 0 })
    }
}

impl Set for Empty {
    fn revision(&self) -> &RevisionId {
        &self.0
    }

    fn generation(&self) -> u64 {
        0
    }

    fn digest(&self) -> String {
        Digest::default().to_string()
    }

    fn is_small(&self) -> bool {
        true
    }

    fn find(&self, _name: &str) -> Option<Item> {
        None
    }

    fn all(&self) -> Diff {
        Diff::default()
    }

    fn since(&self, _number: u64) -> Option<Diff> {
        Some(Diff::default())
    }

    fn marker(&self, _full: bool) -> Option<Item> {
        None
    }
}

/// Sets up to this size are sent without admission.
const SMALL: usize = 500;

/// Views that are kept; beyond, they are made anew.
const MAX_VIEWS: usize = 1024;

/// Differences that are kept of one view; beyond, they are computed anew.
const MAX_DIFFS: usize = 256;
