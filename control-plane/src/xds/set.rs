//! What the publisher has, as sets that [`Subscription`](super::delta::Subscription) can send: one [`View`] for each
//! fleet and revision, shared by all the streams that send it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use signalbox_config::{Digest, Resource, ResourceKey, RevisionId, Snapshot, wire};
use signalbox_proto::MARKER_NAME;

use super::delta::{Diff, Item, Set};
use crate::publish::{Published, Publisher};

/// The current view of each fleet.
pub(super) struct Views {
    publisher: Arc<Publisher>,
    current: Mutex<HashMap<Arc<str>, Arc<View>>>,
}

/// What one fleet gets of one revision. What a stream computes of it is kept for the others.
pub(super) struct View {
    published: Arc<Published>,
    snapshot: Snapshot,
    all: OnceLock<Arc<[Item]>>,
    /// By the revision they start from. A thousand proxies ask for the same few.
    diffs: Mutex<HashMap<u64, Option<Diff>>>,
    markers: [OnceLock<Item>; 2],
}

impl Views {
    pub(super) fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher, current: Mutex::default() }
    }

    /// What `fleet` gets of what is published now.
    pub(super) fn of(&self, fleet: &Arc<str>) -> Arc<View> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that no earlier state replaces a later one.
        let published = self.publisher.current();
        if let Some(view) = current.get(fleet).filter(|view| Arc::ptr_eq(&view.published, &published)) {
            return view.clone();
        }
        if current.len() >= MAX_FLEETS {
            current.clear();
        }
        let view = Arc::new(View {
            snapshot: self.publisher.view(&published, fleet),
            published,
            all: OnceLock::new(),
            diffs: Mutex::default(),
            markers: [OnceLock::new(), OnceLock::new()],
        });
        current.insert(fleet.clone(), view.clone());
        view
    }
}

impl View {
    /// Microseconds since 1970.
    pub(super) fn committed_at_us(&self) -> i64 {
        self.snapshot.committed_at_us()
    }
}

impl Set for View {
    fn revision(&self) -> &RevisionId {
        self.snapshot.id()
    }

    fn digest(&self) -> String {
        self.snapshot.digest().to_string()
    }

    fn is_small(&self) -> bool {
        self.snapshot.len() <= SMALL
    }

    fn find(&self, name: &str) -> Option<Item> {
        if name == MARKER_NAME {
            return self.marker(false);
        }
        let key: ResourceKey = name.parse().ok()?;
        self.snapshot.find(&key).map(|resource| item(resource))
    }

    fn all(&self) -> Arc<[Item]> {
        self.all.get_or_init(|| self.snapshot.iter().map(|resource| item(resource)).collect()).clone()
    }

    fn since(&self, number: u64) -> Option<Diff> {
        let mut diffs = self.diffs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(diff) = diffs.get(&number) {
            return diff.clone();
        }
        let changed = self.published.history.changed_between(number, self.snapshot.id().number);
        let diff = changed.map(|keys| {
            let (mut items, mut removed) = (Vec::new(), Vec::new());
            for key in keys {
                match self.snapshot.find(&key) {
                    Some(resource) => items.push(item(resource)),
                    None => removed.push(Arc::from(key.to_string())),
                }
            }
            Diff { items: items.into(), removed: removed.into() }
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
            version: wire::marker_version(self.snapshot.id(), &self.snapshot.digest()).into(),
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

    fn digest(&self) -> String {
        Digest::default().to_string()
    }

    fn is_small(&self) -> bool {
        true
    }

    fn find(&self, _name: &str) -> Option<Item> {
        None
    }

    fn all(&self) -> Arc<[Item]> {
        Arc::default()
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

/// Fleets whose views are kept; beyond, they are made anew.
const MAX_FLEETS: usize = 1024;

/// Differences that are kept of one view; beyond, they are computed anew.
const MAX_DIFFS: usize = 256;
