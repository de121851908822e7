use std::hash::{DefaultHasher, Hash, Hasher};

use signalbox_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

use super::*;

/// Sets whose resources' bytes are their names' lengths of padding; every revision ever made can be asked for.
#[derive(Clone)]
struct Resources {
    revision: RevisionId,
    items: BTreeMap<Arc<str>, Arc<str>>,
    /// The names that each revision changed, by number.
    log: BTreeMap<u64, Vec<Arc<str>>>,
    bytes: usize,
    generation: u64,
}

impl Resources {
    fn empty() -> Self {
        let revision = RevisionId { epoch: "e".into(), number: 0 };
        Self { revision, items: BTreeMap::new(), log: BTreeMap::new(), bytes: 8, generation: 0 }
    }

    /// The same set, assigned under `generation` while `head` is the last revision.
    fn assigned(&self, generation: u64, head: &Self) -> Self {
        Self { log: head.log.clone(), generation, ..self.clone() }
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

    fn generation(&self) -> u64 {
        self.generation
    }

    fn digest(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.items.hash(&mut hasher);
        format!("{:064x}", hasher.finish())
    }

    fn is_small(&self) -> bool {
        true
    }

    fn find(&self, name: &str) -> Option<Item> {
        self.item(name)
    }

    fn all(&self) -> Diff {
        Diff::new(self.items.keys().filter_map(|name| self.item(name)).collect(), Arc::default())
    }

    fn since(&self, number: u64) -> Option<Diff> {
        let (from, to) = (number.min(self.revision.number), number.max(self.revision.number));
        let names: BTreeSet<_> = self.log.range(from + 1..=to).flat_map(|(_, names)| names).collect();
        let oldest = self.log.keys().next().copied().unwrap_or(1);
        let newest = self.log.keys().last().copied().unwrap_or(0);
        (from + 1 >= oldest && to <= newest).then(|| {
            let items = names.iter().filter_map(|name| self.item(name)).collect();
            let removed =
                names.iter().filter(|name| self.item(name).is_none()).map(|name| (**name).clone()).collect();
            Diff::new(items, removed)
        })
    }

    fn marker(&self, full: bool) -> Option<Item> {
        let generation = if self.generation == 0 { String::new() } else { format!(":{}", self.generation) };
        let (revision, digest) = (&self.revision, self.digest());
        let version = format!("{}:{}:{digest}{generation}", revision.epoch, revision.number);
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

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Acknowledgement {
        self.subscription.on_request(request).unwrap()
    }

    fn subscribe(&mut self, names: &[&str], unsubscribe: &[&str]) {
        self.request(DeltaDiscoveryRequest {
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
            ..Default::default()
        });
    }

    /// The next response, written short: `+a=v1 -b !full`; `nothing` when there is none.
    fn next(&mut self, set: &Resources) -> String {
        self.subscription.begin(set);
        match self.subscription.next_chunk() {
            None => "nothing".to_owned(),
            Some(chunk) => {
                self.nonce = chunk.response().nonce;
                short(&chunk.response())
            }
        }
    }

    fn ack(&mut self) -> Acknowledgement {
        let response_nonce = self.nonce.clone();
        self.request(DeltaDiscoveryRequest { response_nonce, ..Default::default() })
    }

    fn nack(&mut self) -> Acknowledgement {
        let response_nonce = self.nonce.clone();
        let error_detail = Some(Status::default());
        self.request(DeltaDiscoveryRequest { response_nonce, error_detail, ..Default::default() })
    }
}

impl Chunk {
    fn response(&self) -> DeltaDiscoveryResponse {
        prost::Message::decode(Bytes::from([&self.frame.bytes()[..], &self.end].concat())).unwrap()
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
    assert_eq!(peer.subscription.wants(&sample()), Want::Ahead);
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
        assert!(matches!(peer.request(request), Acknowledgement::None));
    }
    assert!(matches!(peer.ack(), Acknowledgement::Acked(_)));
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
    assert!(matches!(peer.nack(), Acknowledgement::Rejected(..)));
    assert_eq!(peer.next(&bad), "nothing");
    let fixed = bad.with(&[("a", "3")]);
    assert_eq!(peer.next(&fixed), "+a=3 +b=2 !diff");
    assert!(matches!(
        peer.ack(),
        Acknowledgement::Acked(AssignedRevision { revision: RevisionId { number: 3, .. }, .. })
    ));
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
    assert!(matches!(peer.nack(), Acknowledgement::Rejected(..)));
}

#[test]
fn a_late_ack_of_a_rejected_revision_counts() {
    let mut peer = Peer::new();
    peer.subscribe(&["*"], &[]);
    peer.next(&sample());
    peer.nack();
    assert!(matches!(
        peer.ack(),
        Acknowledgement::Acked(AssignedRevision { revision: RevisionId { number: 1, .. }, .. })
    ));
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
    assert!(matches!(
        peer.request(request),
        Acknowledgement::Acked(AssignedRevision { revision: RevisionId { number: 2, .. }, .. })
    ));
    assert!(matches!(
        peer.ack(),
        Acknowledgement::Acked(AssignedRevision { revision: RevisionId { number: 3, .. }, .. })
    ));
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
    let rest = peer.subscription.next_chunk().map(|chunk| short(&chunk.response()));
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
        assert!(prost::Message::encoded_len(&chunk.response()) <= Subscription::CHUNK + 256);
        seen.extend(chunk.response().resources.iter().map(|resource| resource.name.clone()));
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
            response_nonce: chunk.response().nonce,
            ..Default::default()
        });
        assert_eq!(matches!(answer.unwrap(), Acknowledgement::Acked(_)), chunk.completes.is_some());
    }
}

#[test]
fn rejecting_one_part_rejects_the_revision_and_stops_the_rest() {
    let mut set = sample();
    set.bytes = Subscription::CHUNK;
    let mut peer = Peer::new();
    peer.subscribe(&["*"], &[]);
    assert_eq!(peer.next(&set), "+a=1");
    assert!(matches!(peer.nack(), Acknowledgement::Rejected(..)));
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
        assert!(prost::Message::encoded_len(&chunk.response()) <= Subscription::CHUNK + 256);
        removed += chunk.response().removed_resources.len();
    }
    assert_eq!(removed, names.len());
}

#[test]
fn names_are_bounded() {
    let mut subscription = Subscription::new("t".into(), "s".into());
    let request =
        |names: Vec<String>| DeltaDiscoveryRequest { resource_names_subscribe: names, ..Default::default() };
    let long = request(vec!["x".repeat(Subscription::MAX_NAME + 1)]);
    assert_eq!(subscription.on_request(long).unwrap_err(), Violation::NameTooLong);
    let many = request((0..=Subscription::MAX_NAMES).map(|index| index.to_string()).collect());
    assert_eq!(subscription.on_request(many).unwrap_err(), Violation::TooManyNames);
}

#[test]
fn going_back_is_a_later_decision_and_never_an_accident() {
    let stable = sample();
    let candidate = stable.clone().with(&[("a", "2"), ("c", "1")]);
    let canary = candidate.assigned(1, &candidate);
    let mut peer = Peer::new();
    peer.subscribe(&["*"], &[]);
    assert_eq!(peer.next(&canary), "+a=2 +b=1 +c=1 !full");
    peer.ack();
    // A replica that does not know of the decision yet sends nothing, whether its number is lower or higher.
    assert_eq!(peer.subscription.wants(&stable), Want::Ahead);
    let later = candidate.clone().with(&[("d", "1")]);
    assert_eq!(peer.subscription.wants(&later), Want::Ahead);
    assert_eq!(peer.next(&later), "nothing");
    // The canary is taken back by the next decision, at the cost of the difference.
    let back = stable.assigned(2, &candidate);
    assert_eq!(peer.next(&back), "-c +a=1 !diff");
    let Acknowledgement::Acked(acked) = peer.ack() else { panic!() };
    assert_eq!((acked.revision.number, acked.generation), (1, 2));
    assert_eq!(peer.next(&back), "nothing");
}

#[test]
fn the_same_revision_under_another_decision_is_the_marker_alone() {
    let set = sample();
    let first = set.assigned(4, &set);
    let mut peer = Peer::presenting(&first);
    assert_eq!(peer.next(&first), "!diff", "the first request of the wildcard is answered");
    peer.ack();
    assert_eq!(peer.next(&set.assigned(5, &set)), "!diff");
    peer.ack();
    assert_eq!(peer.next(&set.assigned(5, &set)), "nothing");
}

#[test]
fn a_rejected_revision_is_sent_again_by_a_new_decision_only() {
    let set = sample();
    let mut peer = Peer::new();
    peer.subscribe(&["*"], &[]);
    peer.next(&set.assigned(1, &set));
    peer.nack();
    assert_eq!(peer.next(&set.assigned(1, &set)), "nothing");
    assert_eq!(peer.next(&set.assigned(2, &set)), "+a=1 +b=1 !full");
}

#[test]
fn a_proxy_that_was_at_the_head_goes_back_when_its_fleet_is_pinned() {
    let stable = sample();
    let head = stable.clone().with(&[("b", "")]);
    let mut peer = Peer::presenting(&head);
    assert_eq!(peer.next(&stable.assigned(1, &head)), "+b=1 !diff");
}

#[test]
fn a_revision_that_is_not_known_yet_is_left_for_everything() {
    let head = sample().with(&[("c", "1")]);
    let mut peer = Peer::presenting(&head);
    // The decision is later, but this replica does not know the revision that the proxy has.
    let stable = sample();
    assert_eq!(peer.next(&stable.assigned(3, &stable)), "+a=1 +b=1 !full");
}
