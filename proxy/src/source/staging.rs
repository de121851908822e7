//! Staging of xDS responses until the commit marker completes a candidate: a state machine over values.
//!
//! Nothing of a revision counts before its marker; with the marker, either all of it counts or none.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use signalbox_config::wire::{self, Payload};
use signalbox_config::{Assignment, Change, Kind, Resource, ResourceKey, RevisionId, Snapshot};
use signalbox_plugin::Registry;
use signalbox_proto::MARKER_NAME;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as WireResource};
use signalbox_proto::signalbox::config::v1::{Rejection, ResourceError, Revision};

use super::data_plane::{Candidate, Rejected};

/// The served revision, and the resources received since.
#[derive(Debug, Default)]
pub(super) struct Staging {
    /// The plugin types that this proxy knows.
    types: Registry,
    served: Option<Snapshot>,
    /// The resources since the last marker; `None`: removed.
    staged: BTreeMap<ResourceKey, Option<Arc<Resource>>>,
    staged_bytes: usize,
    errors: Vec<ResourceError>,
}

/// The consequence of a response.
#[derive(Debug)]
pub(super) enum Step {
    /// A part of a revision; more parts follow.
    More,
    /// The revision is served already, so there is nothing to apply.
    Served,
    /// A complete revision. If it can be applied, [`Staging::serve`] it.
    Ready(Box<Candidate>),
    /// It cannot be served, for the given reason. With [`Rejection::drift`], the served revision and the received
    /// changes do not add up to the announced revision, and only a full resend helps.
    Rejected(Rejection),
}

impl Staging {
    /// The maximum size in bytes of a revision that is staged before its marker.
    const MAX_STAGED: usize = 1 << 30;

    /// The maximum number of errors that are reported per revision.
    const MAX_ERRORS: usize = 100;

    /// Creates a state with nothing staged, on top of the served revision.
    pub(super) fn on(served: Option<Snapshot>, types: &Registry) -> Self {
        Self { served, types: types.clone(), ..Self::default() }
    }

    /// The served revision.
    pub(super) fn served(&self) -> Option<&Snapshot> {
        self.served.as_ref()
    }

    /// Records that a candidate is served.
    pub(super) fn serve(&mut self, snapshot: Snapshot) {
        self.served = Some(snapshot);
    }

    /// Processes a response.
    pub(super) fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Step {
        self.find_duplicates(&response);
        for name in response.removed_resources {
            // A name that this version cannot parse cannot belong to a known resource.
            if let Ok(key) = name.parse() {
                self.stage(key, None);
            }
        }
        let mut marker = None;
        for resource in response.resources {
            if marker.is_some() {
                self.error(&resource.name, "", "comes after the revision's commit marker");
            }
            marker = marker.or(self.on_resource(resource));
        }
        match marker {
            None => Step::More,
            Some(marker) => self.on_marker(&marker),
        }
    }

    fn find_duplicates(&mut self, response: &DeltaDiscoveryResponse) {
        let mut seen = HashSet::new();
        let names =
            response.resources.iter().map(|resource| &resource.name).chain(&response.removed_resources);
        let twice: Vec<_> = names.filter(|name| !seen.insert(*name)).collect();
        for name in twice {
            self.error(name, "", "is twice in one response");
        }
    }

    fn on_resource(&mut self, resource: WireResource) -> Option<Revision> {
        let name = resource.name;
        let Some(any) = resource.resource.filter(|any| any.type_url == wire::type_url()) else {
            self.error(&name, "", format!("is not a {}", wire::type_url()));
            return None;
        };
        self.staged_bytes += any.value.len();
        if self.staged_bytes > Self::MAX_STAGED {
            self.error("", "", format!("the revision is larger than {} bytes", Self::MAX_STAGED));
            self.staged.clear();
            return None;
        }
        match wire::decode(&name, any.value.clone()) {
            Ok(Payload::Marker(marker)) => return Some(marker),
            Ok(Payload::Spec(kind, _)) => self.on_spec(&name, kind, &any.value),
            Err(message) => self.error(&name, "", message),
        }
        None
    }

    fn on_spec(&mut self, name: &str, kind: Kind, encoded: &[u8]) {
        // The bytes are copied; otherwise one resource that stays would keep its whole response in memory.
        match Resource::from_wire(kind, Bytes::copy_from_slice(encoded), &self.types) {
            Ok(resource) if resource.key().to_string() == name => {
                self.stage(resource.key().clone(), Some(Arc::new(resource)));
            }
            Ok(resource) => self.error(name, "name", format!("is {}'s", resource.key())),
            Err(errors) => {
                for error in errors {
                    self.error(name, &error.field, error.message);
                }
            }
        }
    }

    fn stage(&mut self, key: ResourceKey, resource: Option<Arc<Resource>>) {
        self.staged.insert(key, resource);
    }

    fn on_marker(&mut self, marker: &Revision) -> Step {
        let staged = std::mem::take(&mut self.staged);
        let errors = std::mem::take(&mut self.errors);
        self.staged_bytes = 0;
        if !errors.is_empty() {
            return Step::Rejected(Rejection { revision: marker.number, errors, drift: false });
        }
        let id = RevisionId { epoch: marker.epoch.as_str().into(), number: marker.number };
        let assignment = Assignment { fleet: marker.fleet.as_str().into(), generation: marker.generation };
        if let Some(served) = &self.served
            && let Some(message) = is_older(served, &id, &assignment)
        {
            return rejected(marker, message, false);
        }
        let base = match &self.served {
            Some(served) if marker.full || served.id().epoch == id.epoch => served.clone(),
            Some(served) => {
                let message = format!(
                    "changes a revision of epoch {}, but one of {} is served",
                    id.epoch,
                    served.id().epoch
                );
                return rejected(marker, message, true);
            }
            None => Snapshot::empty(id.epoch.clone()),
        };
        let changes = if marker.full { replace(&base, staged) } else { differences(&base, staged) };
        let snapshot = base.with(id, marker.committed_at_us, changes.iter().cloned()).assigned_by(assignment);
        if snapshot.len() as u64 != marker.resource_count
            || snapshot.digest().to_bytes()[..] != marker.digest[..]
        {
            let message = format!(
                "has {} resources here, and {} as it was made; their digests {}",
                snapshot.len(),
                marker.resource_count,
                if snapshot.len() as u64 == marker.resource_count { "differ" } else { "differ, too" }
            );
            return rejected(marker, message, true);
        }
        match &self.served {
            Some(served)
                if changes.is_empty()
                    && served.id() == snapshot.id()
                    && served.assignment() == snapshot.assignment() =>
            {
                Step::Served
            }
            _ => Step::Ready(Box::new(Candidate { snapshot, changes })),
        }
    }

    fn error(&mut self, xds_name: &str, field: &str, message: impl Into<String>) {
        if self.errors.len() < Self::MAX_ERRORS {
            let (kind, name) = xds_name.split_once('/').unwrap_or(("", xds_name));
            self.errors.push(ResourceError {
                kind: kind.to_owned(),
                name: name.to_owned(),
                field: field.to_owned(),
                message: message.into(),
            });
        }
    }
}

/// Says why a revision may not take the place of the served one, if it may not: within an epoch a fleet's decisions are ordered by
/// generation, and under the same decision by number.
fn is_older(served: &Snapshot, id: &RevisionId, assignment: &Assignment) -> Option<String> {
    let before = served.assignment();
    // A proxy that has moved to another fleet takes what that has; and a control plane without generations names no fleet.
    let moved = before.fleet != assignment.fleet && !before.fleet.is_empty() && !assignment.fleet.is_empty();
    if served.id().epoch != id.epoch || moved {
        return None;
    }
    if assignment.generation < before.generation {
        return Some(format!(
            "is assigned under generation {}, but revision {} is served under generation {}",
            assignment.generation,
            served.id(),
            before.generation
        ));
    }
    let older = assignment.generation == before.generation && id.number < served.id().number;
    older.then(|| format!("is older than revision {}, which is served", served.id()))
}

fn rejected(marker: &Revision, message: impl fmt::Display, drift: bool) -> Step {
    let error =
        ResourceError { message: format!("revision {} {message}", marker.number), ..Default::default() };
    Step::Rejected(Rejection { revision: marker.number, errors: vec![error], drift })
}

/// The entries of `staged` that differ from `base`.
fn differences(base: &Snapshot, staged: BTreeMap<ResourceKey, Option<Arc<Resource>>>) -> Vec<Change> {
    let differs = |(key, resource): (ResourceKey, Option<Arc<Resource>>)| match (base.find(&key), resource) {
        (Some(old), Some(new)) if old.fingerprint() == new.fingerprint() => None,
        (_, Some(new)) => Some(Change::Put(new)),
        (Some(_), None) => Some(Change::Delete(key)),
        (None, None) => None,
    };
    staged.into_iter().filter_map(differs).collect()
}

/// The differences between `base` and `staged` as the complete new set. An unchanged resource is no change, so that
/// everything built from it is kept.
fn replace(base: &Snapshot, staged: BTreeMap<ResourceKey, Option<Arc<Resource>>>) -> Vec<Change> {
    let gone = |resource: &&Arc<Resource>| staged.get(resource.key()).is_none_or(Option::is_none);
    let gone: Vec<_> =
        base.iter().filter(gone).map(|resource| Change::Delete(resource.key().clone())).collect();
    let mut changes = differences(base, staged);
    let known: HashSet<_> = changes.iter().map(|change| change.key().clone()).collect();
    changes.extend(gone.into_iter().filter(|change| !known.contains(change.key())));
    changes
}

/// Converts a rejection by the data plane into its message to the control plane.
pub(super) fn rejection(revision: u64, rejected: &[Rejected]) -> Rejection {
    let error = |rejected: &Rejected| ResourceError {
        kind: rejected.key.as_ref().map(|key| key.kind.to_string()).unwrap_or_default(),
        name: rejected.key.as_ref().map(|key| key.name.to_string()).unwrap_or_default(),
        field: rejected.field.clone(),
        message: rejected.message.clone(),
    };
    let errors = rejected.iter().take(Staging::MAX_ERRORS).map(error).collect();
    Rejection { revision, errors, drift: false }
}

/// Converts a rejection into the proxy's own form.
pub(super) fn reasons(rejection: &Rejection) -> Vec<Rejected> {
    let reason = |error: &ResourceError| {
        let key = format!("{}/{}", error.kind, error.name).parse().ok();
        let message = match (&key, error.kind.as_str()) {
            // The name is not a key that this version knows.
            (None, kind) if !kind.is_empty() => format!("{kind}/{}: {}", error.name, error.message),
            _ => error.message.clone(),
        };
        Rejected { key, field: error.field.clone(), message }
    };
    rejection.errors.iter().map(reason).collect()
}

/// Encodes a revision as responses from which [`Staging::on_response`] rebuilds it: either the whole revision, or its
/// changes. The responses have no nonces, and are of about `size` bytes each.
pub(super) fn responses<'a>(
    snapshot: &'a Snapshot,
    changes: Option<&'a [Change]>,
    size: usize,
) -> impl Iterator<Item = DeltaDiscoveryResponse> + 'a {
    let all = changes.is_none().then(|| snapshot.iter());
    let puts = changes.unwrap_or_default().iter().filter_map(|change| match change {
        Change::Put(resource) => Some(resource),
        Change::Delete(_) => None,
    });
    let mut resources = all.into_iter().flatten().chain(puts).peekable();
    let mut removed: Vec<String> = changes
        .unwrap_or_default()
        .iter()
        .filter(|change| matches!(change, Change::Delete(_)))
        .map(|change| change.key().to_string())
        .collect();
    let full = changes.is_none();
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut response = DeltaDiscoveryResponse {
            removed_resources: std::mem::take(&mut removed),
            ..DeltaDiscoveryResponse::default()
        };
        let mut bytes = 0;
        while bytes < size
            && let Some(resource) = resources.next()
        {
            let encoded = resource.encoded();
            bytes += encoded.len();
            response.resources.push(wire_resource(resource.key().to_string(), encoded));
        }
        done = resources.peek().is_none();
        if done {
            let marker = wire::encode_marker(snapshot, full);
            response.resources.push(wire_resource(MARKER_NAME.to_owned(), marker));
        }
        Some(response)
    })
}

fn wire_resource(name: String, value: Bytes) -> WireResource {
    let any = signalbox_proto::google::protobuf::Any { type_url: wire::type_url().to_owned(), value };
    WireResource { name, resource: Some(any), ..WireResource::default() }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::source) fn route(name: &str, body: &str) -> Change {
        let spec = json!({"name": name, "match": {}, "respond": {"status": 200, "body": body}});
        Change::Put(Arc::new(Resource::parse(Kind::Route, spec, &Registry::default()).unwrap()))
    }

    pub(in crate::source) fn gone(name: &str) -> Change {
        Change::Delete(format!("route/{name}").parse().unwrap())
    }

    pub(in crate::source) fn next(before: &Snapshot, changes: &[Change]) -> Snapshot {
        let id = RevisionId { epoch: before.id().epoch.clone(), number: before.id().number + 1 };
        before.with(id, 7, changes.iter().cloned())
    }

    /// Feeds responses, serving every candidate, and returns the last step.
    fn feed(staging: &mut Staging, responses: impl IntoIterator<Item = DeltaDiscoveryResponse>) -> Step {
        let mut last = Step::More;
        for response in responses {
            last = staging.on_response(response);
            if let Step::Ready(candidate) = &last {
                staging.serve(candidate.snapshot.clone());
            }
        }
        last
    }

    fn assert_same(a: &Snapshot, b: &Snapshot) {
        assert_eq!((a.id(), a.digest(), a.committed_at_us()), (b.id(), b.digest(), b.committed_at_us()));
        let versions =
            |set: &Snapshot| set.iter().map(|one| (one.key().clone(), one.version())).collect::<Vec<_>>();
        assert_eq!(versions(a), versions(b));
    }

    #[test]
    fn whatever_changes_the_responses_lead_to_the_same_snapshot() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut theirs = Snapshot::empty("e");
        let mut ours = Staging::default();
        for step in 0..300 {
            let mut changes = Vec::new();
            for index in 0..random.usize(..8) {
                let name = format!("r{index}{}", random.u8(..4));
                changes.push(match random.bool() {
                    true => route(&name, &random.u8(..3).to_string()),
                    false => gone(&name),
                });
            }
            theirs = next(&theirs, &changes);
            let full = step == 0 || random.u8(..5) == 0;
            let size = *random.choice([1, 200, 1 << 20].iter()).unwrap();
            let sent: Vec<_> = responses(&theirs, (!full).then_some(&changes), size).collect();
            match feed(&mut ours, sent) {
                Step::Ready(candidate) => assert_same(&candidate.snapshot, &theirs),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_full_answer_keeps_what_did_not_change_as_it_is() {
        let before = next(&Snapshot::empty("e"), &[route("a", "1"), route("b", "1"), route("c", "1")]);
        let mut staging = Staging::default();
        feed(&mut staging, responses(&before, None, 1 << 20));
        let kept = staging.served().unwrap().find(&"route/a".parse().unwrap()).unwrap().clone();
        let after = next(&before, &[route("b", "2"), gone("c")]);
        let Step::Ready(candidate) = feed(&mut staging, responses(&after, None, 1 << 20)) else { panic!() };
        let mut keys: Vec<_> = candidate.changes.iter().map(|change| change.key().to_string()).collect();
        keys.sort();
        assert_eq!(keys, ["route/b", "route/c"]);
        let still = candidate.snapshot.find(&"route/a".parse().unwrap()).unwrap();
        assert!(Arc::ptr_eq(still, &kept), "what was built of it can be kept");
    }

    #[test]
    fn a_rejected_revision_leaves_nothing_staged() {
        let one = next(&Snapshot::empty("e"), &[route("a", "1")]);
        let mut staging = Staging::default();
        feed(&mut staging, responses(&one, None, 1 << 20));
        let two = next(&one, &[route("b", "1")]);
        let mut bad: Vec<_> = responses(&two, Some(&[route("b", "1")]), 1 << 20).collect();
        bad[0].resources.insert(0, wire_resource("route/x".into(), Bytes::from_static(b"\x12\x01{")));
        assert!(matches!(feed(&mut staging, bad), Step::Rejected(_)));
        // The next changes start from the acknowledged revision.
        let three = next(&two, &[gone("b"), route("c", "1")]);
        let Step::Ready(candidate) =
            feed(&mut staging, responses(&three, Some(&[gone("b"), route("c", "1")]), 1 << 20))
        else {
            panic!()
        };
        assert_same(&candidate.snapshot, &three);
        assert_eq!(candidate.changes.len(), 1, "b was never there");
    }

    #[test]
    fn a_difference_from_another_epoch_is_drift() {
        let one = next(&Snapshot::empty("e"), &[route("a", "1")]);
        let mut staging = Staging::default();
        feed(&mut staging, responses(&one, None, 1 << 20));
        let other = next(&Snapshot::empty("f"), &[route("a", "1")]);
        match feed(&mut staging, responses(&other, Some(&[]), 1 << 20)) {
            Step::Rejected(rejection) => assert!(rejection.drift),
            step => panic!("{step:?}"),
        }
    }

    fn assigned(snapshot: &Snapshot, fleet: &str, generation: u64) -> Snapshot {
        snapshot.clone().assigned_by(Assignment { fleet: fleet.into(), generation })
    }

    #[test]
    fn a_lower_number_is_taken_only_under_a_higher_generation() {
        let one = next(&Snapshot::empty("e"), &[route("a", "1")]);
        let two = next(&one, &[route("b", "1")]);
        for (fleet, generation, taken) in [
            ("edge", 2, false),
            ("edge", 3, false),
            ("edge", 4, true),
            // Generations of two fleets never compare.
            ("core", 1, true),
            // A control plane without generations.
            ("", 0, false),
        ] {
            let mut staging = Staging::default();
            feed(&mut staging, responses(&assigned(&two, "edge", 3), None, 1 << 20));
            let back = assigned(&one, fleet, generation);
            match feed(&mut staging, responses(&back, Some(&[gone("b")]), 1 << 20)) {
                Step::Ready(candidate) => {
                    assert!(taken, "{fleet} {generation}");
                    assert_same(&candidate.snapshot, &one);
                    assert_eq!(candidate.snapshot.assignment(), back.assignment());
                }
                Step::Rejected(rejection) => assert!(!taken && !rejection.drift, "{fleet} {generation}"),
                step => panic!("{step:?}"),
            }
        }
    }

    #[test]
    fn a_higher_number_under_a_lower_generation_is_rejected() {
        let one = next(&Snapshot::empty("e"), &[route("a", "1")]);
        let mut staging = Staging::default();
        feed(&mut staging, responses(&assigned(&one, "edge", 3), None, 1 << 20));
        let two = assigned(&next(&one, &[route("b", "1")]), "edge", 2);
        match feed(&mut staging, responses(&two, Some(&[route("b", "1")]), 1 << 20)) {
            Step::Rejected(rejection) => {
                assert!(rejection.errors[0].message.contains("generation 2"), "{rejection:?}");
            }
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn the_same_revision_by_another_decision_is_applied_without_changes() {
        let one = next(&Snapshot::empty("e"), &[route("a", "1")]);
        let mut staging = Staging::default();
        feed(&mut staging, responses(&assigned(&one, "edge", 3), None, 1 << 20));
        let again = assigned(&one, "edge", 4);
        let Step::Ready(candidate) = feed(&mut staging, responses(&again, Some(&[]), 1 << 20)) else {
            panic!()
        };
        assert!(candidate.changes.is_empty());
        assert_eq!(candidate.snapshot.assignment().generation, 4);
        let served = feed(&mut staging, responses(&again, Some(&[]), 1 << 20));
        assert!(matches!(served, Step::Served), "{served:?}");
    }

    #[test]
    fn a_resource_under_another_name_or_of_another_type_is_rejected_by_name() {
        let one = next(&Snapshot::empty("e"), &[route("a", "1")]);
        let (Some(found), marker) = (one.iter().next(), wire::encode_marker(&one, true)) else { panic!() };
        type Spoil = fn(&mut WireResource);
        let cases: [(&str, Spoil, &str); 4] = [
            ("b", |resource| resource.name = "route/b".into(), "is route/a's"),
            ("a", |resource| resource.name = "plugin/a".into(), "holds a resource of kind route"),
            ("a", |resource| resource.resource = None, "is not a type.googleapis.com/signalbox"),
            (
                "a",
                |resource| {
                    if let Some(any) = &mut resource.resource {
                        any.type_url = "x".into();
                    }
                },
                "is not a type.googleapis.com/signalbox",
            ),
        ];
        for (name, spoil, message) in cases {
            let mut resource = wire_resource("route/a".into(), found.encoded());
            spoil(&mut resource);
            let response = DeltaDiscoveryResponse {
                resources: vec![resource, wire_resource(MARKER_NAME.into(), marker.clone())],
                ..Default::default()
            };
            match Staging::default().on_response(response) {
                Step::Rejected(rejection) => {
                    assert_eq!(rejection.errors[0].name, name);
                    assert!(rejection.errors[0].message.contains(message), "{rejection:?}");
                }
                step => panic!("{step:?}"),
            }
        }
    }

    #[test]
    fn nothing_may_come_after_the_marker() {
        let one = next(&Snapshot::empty("e"), &[route("a", "1")]);
        let mut sent: Vec<_> = responses(&one, None, 1 << 20).collect();
        sent[0].resources.reverse();
        match feed(&mut Staging::default(), sent) {
            Step::Rejected(rejection) => assert!(rejection.errors[0].message.contains("after")),
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn errors_are_bounded() {
        let one = next(&Snapshot::empty("e"), &[]);
        let bad = (0..500).map(|index| wire_resource(format!("route/{index}"), Bytes::new()));
        let mut resources: Vec<_> = bad.collect();
        resources.push(wire_resource(MARKER_NAME.into(), wire::encode_marker(&one, true)));
        match Staging::default().on_response(DeltaDiscoveryResponse { resources, ..Default::default() }) {
            Step::Rejected(rejection) => assert_eq!(rejection.errors.len(), Staging::MAX_ERRORS),
            step => panic!("{step:?}"),
        }
    }
}
