//! Sets of resources: snapshots with their digests, and the relations within them.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::parse;
use proptest::prelude::*;
use serde_json::{Value, json};
use signalbox_config::wire::{Payload, decode, encode_marker, marker_version, parse_marker_version};
use signalbox_config::{
    Change, Digest, Kind, Name, Problem, Relations, Resource, ResourceKey, RevisionId, Snapshot,
};

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn key(text: &str) -> ResourceKey {
    text.parse().expect("a key")
}

fn put(kind: Kind, spec: &Value) -> Change {
    Change::Put(Arc::new(parse(kind, spec.clone()).unwrap_or_else(|errors| panic!("{spec}: {errors:?}"))))
}

fn upstream(name: &str) -> Change {
    put(Kind::Upstream, &json!({"name": name, "targets": []}))
}

fn route_to(name: &str, upstreams: &[&str]) -> Change {
    let upstreams: Vec<Value> = upstreams.iter().map(|name| json!({"name": name})).collect();
    put(Kind::Route, &json!({"name": name, "forward": {"upstreams": upstreams}}))
}

fn in_fleets(change: &Change, fleets: &[&str]) -> Change {
    let Change::Put(resource) = change else { panic!("nothing is put") };
    let mut spec: Value = serde_json::from_slice(resource.spec()).expect("JSON");
    spec["fleets"] = json!(fleets);
    put(resource.key().kind, &spec)
}

fn delete(text: &str) -> Change {
    Change::Delete(key(text))
}

/// A set and its relations, changed together as the control plane does it.
struct Set {
    snapshot: Snapshot,
    relations: Relations,
}

impl Set {
    fn of(changes: &[Change]) -> Self {
        let mut set = Self { snapshot: Snapshot::empty("e"), relations: Relations::default() };
        assert_eq!(set.change(changes), [""; 0]);
        set
    }

    /// The problems as texts; without any, the change is made.
    fn change(&mut self, changes: &[Change]) -> Vec<String> {
        let id = RevisionId { epoch: "e".into(), number: self.snapshot.id().number + 1 };
        let after = self.snapshot.with(id, 0, changes.iter().cloned());
        match self.relations.with(&self.snapshot, &after, changes) {
            Ok(relations) => {
                (self.snapshot, self.relations) = (after, relations);
                Vec::new()
            }
            Err(problems) => problems
                .into_iter()
                .map(|problem| match problem {
                    Problem::Dangling { resource, error } => format!("{resource} {error}"),
                    Problem::Claimed { resource, error, holder } => format!("{resource} {error} ({holder})"),
                    Problem::StillReferenced { resource, by } => format!(
                        "{resource} by {by:?}",
                        by = by.iter().map(ToString::to_string).collect::<Vec<_>>()
                    ),
                })
                .collect(),
        }
    }
}

#[test]
fn a_reference_to_nothing_is_named_with_its_field() {
    let mut set = Set::of(&[upstream("a")]);
    let route = put(
        Kind::Route,
        &json!({
            "name": "r", "listeners": ["http"], "plugins": ["p", "q"],
            "forward": {
                "upstreams": [{"name": "z", "weight": 0}, {"name": "a"}, {"name": "b"}],
                "mirror": {"upstream": "shadow"},
            },
        }),
    );
    assert_eq!(
        set.change(&[route]),
        [
            "route/r plugins[0]: plugin \"p\" does not exist",
            "route/r plugins[1]: plugin \"q\" does not exist",
            "route/r listeners[0]: listener \"http\" does not exist",
            "route/r forward.upstreams[0].name: upstream \"z\" does not exist",
            "route/r forward.upstreams[2].name: upstream \"b\" does not exist",
            "route/r forward.mirror.upstream: upstream \"shadow\" does not exist",
        ]
    );
    assert_eq!(
        set.change(&[
            put(Kind::Consumer, &json!({"name": "c", "plugins": ["p"]})),
            put(
                Kind::Plugin,
                &json!({"name": "l", "type": "limit", "config": {"limit": 1, "anonymous": "nobody"}})
            ),
        ]),
        [
            "plugin/l config.anonymous: consumer \"nobody\" does not exist",
            "consumer/c plugins[0]: plugin \"p\" does not exist",
        ]
    );
    assert_eq!(set.snapshot.len(), 1);
}

#[test]
fn a_reference_within_the_same_change_is_fine_in_any_order() {
    let mut set = Set::of(&[route_to("r", &["a"]), upstream("a")]);
    assert_eq!(set.change(&[delete("upstream/a"), delete("route/r")]), [""; 0]);
    assert!(set.snapshot.is_empty());
}

#[test]
fn what_is_still_referenced_cannot_be_deleted_and_by_whom_is_said() {
    let mut set = Set::of(&[upstream("a"), upstream("b"), route_to("r", &["a", "b"]), route_to("s", &["a"])]);
    assert_eq!(set.change(&[delete("upstream/a")]), ["upstream/a by [\"route/r\", \"route/s\"]"]);
    // A referrer that lets go in the same change does not hold it.
    assert_eq!(set.change(&[delete("upstream/a"), route_to("r", &["b"])]), ["upstream/a by [\"route/s\"]"]);
    // One that is written anew with the reference is told of it itself, and once.
    assert_eq!(
        set.change(&[delete("upstream/a"), delete("route/r"), route_to("s", &["b", "a"])]),
        ["route/s forward.upstreams[1].name: upstream \"a\" does not exist"]
    );
    assert_eq!(set.change(&[delete("upstream/a"), delete("route/r"), delete("route/s")]), [""; 0]);

    let many: Vec<Change> =
        (10..40).map(|i| route_to(&format!("r{i}"), &["x"])).chain([upstream("x")]).collect();
    let mut set = Set::of(&many);
    let problems = set.change(&[delete("upstream/x")]);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].matches("route/").count(), Relations::MAX_NAMED);
    assert_eq!(set.relations.referrers(&key("upstream/x")).count(), 30);
}

#[test]
fn a_reference_must_hold_in_every_fleet() {
    let mut set = Set::of(&[upstream("a"), in_fleets(&upstream("b"), &["eu", "us"])]);
    assert_eq!(
        set.change(&[route_to("r", &["b"])]),
        ["route/r forward.upstreams[0].name: upstream \"b\" is not in every fleet, but this route is"]
    );
    assert_eq!(
        set.change(&[in_fleets(&route_to("r", &["b"]), &["eu", "asia"])]),
        ["route/r forward.upstreams[0].name: upstream \"b\" is not in fleet \"asia\", but this route is"]
    );
    assert_eq!(set.change(&[in_fleets(&route_to("r", &["a", "b"]), &["eu"])]), [""; 0]);
    // A target that leaves a fleet leaves its referrers dangling: each is told once.
    assert_eq!(
        set.change(&[in_fleets(&upstream("a"), &["us"]), in_fleets(&upstream("b"), &["us"])]),
        [
            "route/r forward.upstreams[0].name: upstream \"a\" is not in fleet \"eu\", but this route is",
            "route/r forward.upstreams[1].name: upstream \"b\" is not in fleet \"eu\", but this route is",
        ]
    );
}

#[test]
fn an_address_or_a_key_is_only_one_resources_in_a_fleet() {
    let listener =
        |name: &str, address: &str| put(Kind::Listener, &json!({"name": name, "address": address}));
    let consumer = |name: &str, api_key: &str| {
        put(Kind::Consumer, &json!({"name": name, "credentials": [{"key_auth": {"key": api_key}}]}))
    };
    let mut set = Set::of(&[listener("http", "0.0.0.0:80"), consumer("alice", "k")]);
    assert_eq!(
        set.change(&[listener("other", "0.0.0.0:80")]),
        ["listener/other address: address 0.0.0.0:80 is taken by listener/http (listener/http)"]
    );
    let problems = set.change(&[consumer("bob", "k")]);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("consumer/bob credentials[0].key_auth.key: API key with SHA-256 "),
        "{problems:?}"
    );
    // Both at once are refused too.
    assert_eq!(set.change(&[listener("a", "0.0.0.0:81"), listener("b", "0.0.0.0:81")]).len(), 1);
    // Writing it again, moving it, and swapping are fine.
    assert_eq!(set.change(&[listener("http", "0.0.0.0:80")]), [""; 0]);
    assert_eq!(set.change(&[listener("http", "0.0.0.0:81"), listener("other", "0.0.0.0:80")]), [""; 0]);
    assert_eq!(set.change(&[listener("http", "0.0.0.0:80"), listener("other", "0.0.0.0:81")]), [""; 0]);
    assert_eq!(set.change(&[consumer("alice", "l"), consumer("bob", "k")]), [""; 0]);
    assert_eq!(set.change(&[delete("listener/http"), listener("new", "0.0.0.0:80")]), [""; 0]);
}

#[test]
fn two_fleets_may_each_have_a_listener_at_one_address() {
    let listener = |name: &str, fleets: &[&str]| {
        in_fleets(&put(Kind::Listener, &json!({"name": name, "address": "0.0.0.0:80"})), fleets)
    };
    let mut set = Set::of(&[listener("a", &["eu"]), listener("b", &["us", "asia"])]);
    assert_eq!(
        set.change(&[listener("c", &["asia", "eu"])]),
        ["listener/c address: address 0.0.0.0:80 is taken by listener/a (listener/a)"]
    );
    // Taking one away leaves the other's claim.
    assert_eq!(set.change(&[delete("listener/a")]), [""; 0]);
    assert_eq!(
        set.change(&[listener("c", &["asia"])]),
        ["listener/c address: address 0.0.0.0:80 is taken by listener/b (listener/b)"]
    );
    assert_eq!(set.change(&[listener("c", &["eu"])]), [""; 0]);
}

#[test]
fn a_snapshot_lists_by_kind_and_name_and_from_any_place() {
    let mut set = Set::of(&[upstream("b"), upstream("a"), upstream("0"), route_to("z", &["a"])]);
    set.change(&[upstream("c"), delete("upstream/0")]);
    let names = |after: Option<&str>| -> Vec<String> {
        let after = after.map(name);
        set.snapshot
            .of_kind(Kind::Upstream, after.as_ref())
            .map(|found| found.key().name.to_string())
            .collect()
    };
    assert_eq!(names(None), ["a", "b", "c"]);
    assert_eq!(names(Some("a")), ["b", "c"]);
    assert_eq!(names(Some("aa")), ["b", "c"]);
    assert_eq!(names(Some("c")), [""; 0]);
    let all: Vec<String> = set.snapshot.iter().map(|resource| resource.key().to_string()).collect();
    assert_eq!(all, ["route/z", "upstream/a", "upstream/b", "upstream/c"]);
}

#[test]
fn a_fleet_sees_what_is_for_it_with_a_digest_of_its_own() {
    let all =
        Set::of(&[upstream("a"), in_fleets(&upstream("b"), &["eu"]), in_fleets(&upstream("c"), &["us"])]);
    let eu = all.snapshot.visible_to("eu");
    let names: Vec<&str> = eu.iter().map(|resource| resource.key().name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(eu.id(), all.snapshot.id());
    assert_eq!(eu.digest(), Set::of(&[in_fleets(&upstream("b"), &["eu"]), upstream("a")]).snapshot.digest());
    assert_ne!(eu.digest(), all.snapshot.digest());
    assert_eq!(all.snapshot.visible_to("asia").len(), 1);
}

#[test]
fn a_set_crosses_the_wire_and_comes_out_with_its_digest() {
    let set = Set::of(&[
        upstream("a"),
        route_to("r", &["a"]),
        put(Kind::Listener, &json!({"name": "l", "address": "0.0.0.0:80"})),
        put(
            Kind::Plugin,
            &json!({"name": "p", "type": "limit", "config": {"limit": 9_007_199_254_740_993_i64}}),
        ),
        put(Kind::Consumer, &json!({"name": "c", "credentials": [{"key_auth": {"key": "k"}}]})),
    ]);
    let mut digest = Digest::default();
    let mut received = Vec::new();
    for resource in set.snapshot.iter() {
        let Ok(Payload::Spec(kind, spec)) = decode(&resource.key().to_string(), resource.encoded()) else {
            panic!()
        };
        assert_eq!((kind, &spec[..]), (resource.key().kind, resource.spec()));
        let parsed = Resource::from_wire(kind, resource.encoded(), &common::Catalog).unwrap();
        digest.add(parsed.fingerprint());
        received.push(Change::Put(Arc::new(parsed)));
    }
    assert_eq!(digest, set.snapshot.digest());
    match decode("revision", encode_marker(&set.snapshot, true)) {
        Ok(Payload::Marker(marker)) => {
            assert_eq!((marker.number, marker.resource_count, marker.full), (1, 5, true));
            assert_eq!(marker.digest, digest.to_bytes().as_slice());
            assert_eq!(marker.epoch, "e");
        }
        other => panic!("{other:?}"),
    }
    let presented = parse_marker_version(&marker_version(&set.snapshot)).unwrap();
    assert_eq!((presented.revision, presented.digest), (set.snapshot.id().clone(), digest.to_string()));
    assert_eq!(Set::of(&received).snapshot.digest(), digest);
}

#[test]
fn what_is_wrong_on_the_wire_is_told() {
    let Change::Put(resource) = upstream("a") else { unreachable!() };
    let wrong = |name: &str| decode(name, resource.encoded()).unwrap_err();
    assert_eq!(wrong("route/a"), "route/a holds a resource of kind upstream");
    assert_eq!(wrong("upstream"), "\"upstream\" is not KIND/NAME");
    assert!(wrong("upstream/A").contains("is not a name"));
    let marker = encode_marker(&Snapshot::empty("e"), false);
    assert_eq!(decode("upstream/a", marker).unwrap_err(), "upstream/a is a commit marker under another name");
    assert!(
        decode("upstream/a", bytes::Bytes::from_static(b"\xff"))
            .unwrap_err()
            .starts_with("upstream/a cannot be decoded")
    );
    assert!(decode("upstream/a", bytes::Bytes::new()).is_err());
}

// ------------------------------------------------------------------------------------------------------------------

/// A change. There are few names, so that changes often concern the same resources.
fn some_change() -> impl Strategy<Value = Change> {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    const FLEETS: [&[&str]; 4] = [&[], &["eu"], &["us"], &["eu", "us"]];
    let fleets = prop::sample::select(&FLEETS[..]);
    let fleeted = |(change, fleets): (Change, &[&str])| {
        if fleets.is_empty() { change } else { in_fleets(&change, fleets) }
    };
    let pick = prop::sample::select(&NAMES[..]);
    prop_oneof![
        (pick.clone().prop_map(upstream), fleets.clone()).prop_map(fleeted),
        (
            (pick.clone(), prop::sample::subsequence(&NAMES[..], 1..3))
                .prop_map(|(name, to)| route_to(name, &to)),
            fleets.clone()
        )
            .prop_map(fleeted),
        (
            (pick.clone(), 80..82_u16).prop_map(|(name, port)| put(
                Kind::Listener,
                &json!({"name": name, "address": format!("0.0.0.0:{port}")})
            )),
            fleets
        )
            .prop_map(fleeted),
        (pick, prop::sample::select(&[Kind::Upstream, Kind::Route, Kind::Listener][..]))
            .prop_map(|(text, kind)| Change::Delete(ResourceKey::new(kind, name(text)))),
    ]
}

/// True if a set is sound; it is checked as a whole.
fn is_sound(set: &Snapshot) -> bool {
    let fleets = |resource: &Resource| resource.fleets().map(<[_]>::to_vec);
    let covers = |target: &Resource, of: &Resource| match (fleets(target), fleets(of)) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(has), Some(needs)) => needs.iter().all(|fleet| has.contains(fleet)),
    };
    let closed = set.iter().all(|resource| {
        resource
            .references()
            .iter()
            .all(|(target, _)| set.find(target).is_some_and(|found| covers(found, resource)))
    });
    let mut taken: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for resource in set.iter() {
        for (claim, _) in resource.claims() {
            for fleet in ["eu", "us", "any other"].into_iter().filter(|fleet| resource.visible_to(fleet)) {
                *taken.entry((claim.clone(), fleet)).or_default() += 1;
            }
        }
    }
    closed && taken.values().all(|count| *count == 1)
}

proptest! {
    #[test]
    fn random_changes_keep_digest_and_relations_as_if_made_from_scratch(
        batches in prop::collection::vec(prop::collection::vec(some_change(), 1..5), 1..30),
    ) {
        let mut set = Set::of(&[]);
        for batch in batches {
            // One change for each key, as a transaction has it.
            let batch: BTreeMap<ResourceKey, Change> = batch.into_iter().map(|change| (change.key().clone(), change)).collect();
            let batch: Vec<Change> = batch.into_values().collect();
            let id = RevisionId { epoch: "e".into(), number: set.snapshot.id().number + 1 };
            let after = set.snapshot.with(id, 0, batch.iter().cloned());
            let before = (set.snapshot.digest(), set.snapshot.len());
            let problems = set.change(&batch);
            prop_assert_eq!(problems.is_empty(), is_sound(&after), "{:?}", problems);
            if !problems.is_empty() {
                prop_assert_eq!((set.snapshot.digest(), set.snapshot.len()), before);
                continue;
            }
            let mut all: Vec<Change> = set.snapshot.iter().cloned().map(Change::Put).collect();
            all.reverse();
            let scratch = Snapshot::empty("e").with(set.snapshot.id().clone(), 0, all);
            prop_assert_eq!(set.snapshot.digest(), scratch.digest());
            let relations = Relations::of(&set.snapshot);
            for resource in set.snapshot.iter() {
                let referrers: Vec<_> = set.relations.referrers(resource.key()).collect();
                prop_assert_eq!(referrers, relations.referrers(resource.key()).collect::<Vec<_>>());
            }
        }
    }
}
