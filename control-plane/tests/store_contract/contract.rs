//! The contract.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use signalbox_config::ResourceKey;
use signalbox_control_plane::store::{
    KeySource, Meta, NewChange, NewRevision, ProxyRow, ProxyRows, Role, RolloutRow, SessionRow, Stamp, Store,
    StoreError, StoredResource, StoredSet, TokenRow, TokenSource, seal,
};

pub(crate) use crate::kept::*;
use crate::places::Place;
pub(crate) use crate::rollouts::*;

pub(crate) async fn a_new_store_is_empty(place: &dyn Place) {
    let store = place.open().await;
    let head = store.head().await.unwrap();
    assert_eq!(head.number, 0);
    assert!(head.epoch.len() >= 32 && !head.epoch.contains(':'), "{:?}", head.epoch);
    let loaded = store.load().await.unwrap();
    assert_eq!((&loaded.head, loaded.committed_at_us), (&head, 0));
    assert_eq!(loaded.resources, []);
    assert_eq!(store.set_at(0).await.unwrap(), Some(StoredSet::default()));
    assert_eq!(store.set_at(1).await.unwrap(), None);
    assert_eq!(store.set_at(u64::MAX).await.unwrap(), None);
    assert_eq!(store.revision(0).await.unwrap(), None);
    assert_eq!(store.revision(1).await.unwrap(), None);
    assert_eq!(store.revisions(None, 10).await.unwrap(), []);
    assert_eq!(store.revisions_after(0, 10).await.unwrap(), []);
    assert_eq!(store.proxies().await.unwrap(), []);
    assert_eq!(store.rollouts(10).await.unwrap(), []);
    assert_eq!(store.tokens().await.unwrap(), []);
    assert_eq!(store.sessions().await.unwrap(), []);
    assert_eq!(store.audit(None, 10).await.unwrap(), []);
}

pub(crate) async fn what_was_written_is_there_when_it_is_opened_again(place: &dyn Place) {
    let store = place.open().await;
    put(&*store, 0, &[("route/a", "1"), ("upstream/b", "2")]).await;
    let before = (store.head().await.unwrap(), store.load().await.unwrap().resources);
    drop(store);
    let store = place.open().await;
    assert_eq!((store.head().await.unwrap(), store.load().await.unwrap().resources), before);
    assert_eq!(put(&*store, 1, &[("route/c", "3")]).await, 2);
}

pub(crate) async fn a_new_epoch_keeps_the_number(place: &dyn Place) {
    let store = place.open().await;
    put(&*store, 0, &[("route/a", "1")]).await;
    let before = store.head().await.unwrap();
    let after = store.new_epoch().await.unwrap();
    assert_eq!(after.number, 1);
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(store.head().await.unwrap(), after);
    assert_eq!(store.load().await.unwrap().head, after);
    assert_eq!(place.open().await.head().await.unwrap(), after);
}

pub(crate) async fn concurrent_commits_make_a_log_without_gaps(place: &dyn Place) {
    // No more than there are connections, for who waits for one does so for two seconds only.
    const COMMITTERS: usize = 16;
    let stores = [place.open().await, place.open().await];
    let committers: Vec<_> = (0..COMMITTERS)
        .map(|number| {
            let store = stores[number % 2].clone();
            tokio::spawn(async move {
                let revision = revision(&[("route/shared", Some(&format!("{number}")))]);
                loop {
                    let base = store.head().await.unwrap().number;
                    match store.commit(base, revision.clone()).await {
                        Ok(committed) => break assert_eq!(committed.number, base + 1),
                        Err(StoreError::Stale) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            })
        })
        .collect();
    for committer in committers {
        committer.await.unwrap();
    }

    let log = stores[0].revisions_after(0, 1_000).await.unwrap();
    let numbers: Vec<_> = log.iter().map(|revision| revision.summary.number).collect();
    assert_eq!(numbers, (1..=COMMITTERS as u64).collect::<Vec<_>>());
    let mut last = None;
    for revision in &log {
        assert_eq!(revision.changes[0].before, last);
        last.clone_from(&revision.changes[0].after);
    }
    let mut written: Vec<_> = log.iter().filter_map(|revision| revision.changes[0].after.clone()).collect();
    written.sort_unstable();
    written.dedup();
    assert_eq!(written.len(), COMMITTERS, "each committed once");
}

pub(crate) async fn a_stale_commit_writes_nothing(place: &dyn Place) {
    let store = place.open().await;
    put(&*store, 0, &[("route/a", "1")]).await;
    put(&*store, 1, &[("route/a", "2")]).await;
    let before = everything(&*store).await;
    for base in [0, 1, 3, u64::MAX] {
        let error =
            store.commit(base, revision(&[("route/a", None), ("route/b", Some("3"))])).await.unwrap_err();
        assert!(matches!(error, StoreError::Stale), "base {base}: {error:?}");
    }
    assert_eq!(everything(&*store).await, before);
}

pub(crate) async fn who_holds_the_head_commits_next(place: &dyn Place) {
    let (one, other) = (place.open().await, place.open().await);
    put(&*one, 0, &[("route/a", "1")]).await;
    let held = one.hold().await.unwrap();
    let overtaking = {
        let other = other.clone();
        tokio::spawn(async move { other.commit(1, revision(&[("route/a", Some("other"))])).await })
    };
    // A head that is held can be read, here and there.
    assert_eq!(one.head().await.unwrap().number, 1);
    assert_eq!(other.revisions_after(0, 10).await.unwrap().len(), 1);
    let committed = one.commit_held(held, 1, revision(&[("route/a", Some("2"))])).await.unwrap();
    assert_eq!(committed.number, 2);
    assert!(matches!(overtaking.await.unwrap(), Err(StoreError::Stale)));

    // It is free again after that, after a commit that was wrong, and when it is given up.
    let held = other.hold().await.unwrap();
    let error = other.commit_held(held, 1, revision(&[("route/a", Some("3"))])).await.unwrap_err();
    assert!(matches!(error, StoreError::Stale), "{error:?}");
    drop(one.hold().await.unwrap());
    assert_eq!(put(&*other, 2, &[("route/a", "3")]).await, 3);
    assert_eq!(put(&*one, 3, &[("route/a", "4")]).await, 4);
}

pub(crate) async fn a_failed_commit_writes_nothing_and_leaves_no_gap(place: &dyn Place) {
    let store = place.open().await;
    put(&*store, 0, &[("route/a", "1")]).await;
    let before = everything(&*store).await;
    let absent = revision(&[("route/b", Some("2")), ("route/absent", None)]);
    let twice = revision(&[("route/b", Some("2")), ("route/b", Some("3"))]);
    for impossible in [absent, twice] {
        let error = store.commit(1, impossible).await.unwrap_err();
        assert!(matches!(error, StoreError::Broken(_)), "{error:?}");
    }
    assert_eq!(everything(&*store).await, before);
    assert_eq!(put(&*store, 1, &[("route/b", "2")]).await, 2);
}

pub(crate) async fn changes_hold_what_was_before_and_after(place: &dyn Place) {
    let store = place.open().await;
    let steps: [&[(&str, Option<&str>)]; 4] = [
        &[("route/a", Some("1")), ("listener/z", Some("l"))],
        &[("route/a", Some("2"))],
        &[("route/a", None), ("route/b", Some("b"))],
        &[("route/a", Some("3"))],
    ];
    for (base, step) in (0..).zip(steps) {
        store.commit(base, revision(step)).await.unwrap();
    }
    let changes: Vec<Vec<_>> = store
        .revisions_after(0, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|revision| {
            revision.changes.into_iter().map(|c| (c.key.to_string(), c.before, c.after)).collect()
        })
        .collect();
    let change = |key: &str, before: Option<&'static str>, after: Option<&'static str>| {
        (key.to_owned(), before.map(Bytes::from), after.map(Bytes::from))
    };
    assert_eq!(
        changes,
        [
            vec![change("listener/z", None, Some("l")), change("route/a", None, Some("1"))],
            vec![change("route/a", Some("1"), Some("2"))],
            vec![change("route/a", Some("2"), None), change("route/b", None, Some("b"))],
            vec![change("route/a", None, Some("3"))],
        ]
    );
    let third = store.revision(3).await.unwrap().unwrap();
    assert_eq!(third, store.revisions_after(2, 1).await.unwrap()[0]);
    assert_eq!(third.summary.change_count, 2);
    assert_eq!((&*third.summary.author, &*third.summary.message), ("ann", "why"));
}

pub(crate) async fn the_time_of_creation_lasts_until_deletion(place: &dyn Place) {
    let store = place.open().await;
    let mut times = Vec::new();
    let mut metas = Vec::new();
    for (base, (author, spec)) in
        (0..).zip([("ann", Some("1")), ("bob", Some("2")), ("ann", None), ("cy", Some("3"))])
    {
        let revision = NewRevision { author: author.into(), ..revision(&[("route/a", spec)]) };
        times.push(store.commit(base, revision).await.unwrap().committed_at_us);
        metas.push(store.load().await.unwrap().resources.pop().map(|resource| resource.meta));
    }
    let meta = |revision, created: usize, updated: usize, by: &str| {
        let (created_at_us, updated_at_us) = (times[created], times[updated]);
        Some(Meta { revision, created_at_us, updated_at_us, updated_by: by.into() })
    };
    assert_eq!(metas, [meta(1, 0, 0, "ann"), meta(2, 0, 1, "bob"), None, meta(4, 3, 3, "cy")]);
    assert!(times[0] > 0 && times[3] > times[0], "{times:?}");
    assert_eq!(store.load().await.unwrap().committed_at_us, times[3]);
}

pub(crate) async fn a_set_of_the_past_is_what_the_log_adds_up_to(place: &dyn Place) {
    let store = place.open().await;
    let mut random = fastrand::Rng::with_seed(7);
    let kinds = ["consumer", "listener", "plugin", "route", "upstream"];
    let keys: Vec<ResourceKey> =
        (0..25).map(|i| format!("{}/n{}.{}-x", kinds[i % 5], i % 3, i).parse().unwrap()).collect();
    let mut set: BTreeMap<ResourceKey, StoredResource> = BTreeMap::new();
    let mut sets = vec![Vec::new()];
    for base in 0..60 {
        let mut changes = Vec::new();
        for key in &keys {
            if random.u8(..) < 40 {
                let delete = set.contains_key(key) && random.bool();
                let spec = (!delete).then(|| Bytes::from(format!("{{\"{key}\":{base}}}")));
                changes.push(NewChange { key: key.clone(), spec });
            }
        }
        if changes.is_empty() {
            changes.push(NewChange { key: keys[0].clone(), spec: Some("{}".into()) });
        }
        random.shuffle(&mut changes);
        let author: Arc<str> = format!("author{}", random.u8(..3)).into();
        let new = NewRevision { author: author.clone(), changes: changes.clone(), ..revision(&[]) };
        let committed = store.commit(base, new).await.unwrap();
        for NewChange { key, spec } in changes {
            let Some(spec) = spec else {
                set.remove(&key);
                continue;
            };
            let created_at_us =
                set.get(&key).map_or(committed.committed_at_us, |resource| resource.meta.created_at_us);
            let meta = Meta {
                revision: committed.number,
                created_at_us,
                updated_at_us: committed.committed_at_us,
                updated_by: author.clone(),
            };
            set.insert(key.clone(), StoredResource { key, spec, meta });
        }
        sets.push(set.values().cloned().collect());
    }
    for (number, set) in sets.iter().enumerate() {
        let at = store.set_at(number as u64).await.unwrap().unwrap();
        assert_eq!(&at.resources, set, "revision {number}");
    }
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.head.number, Some(&loaded.resources)), (60, sets.last()));
}

pub(crate) async fn specifications_come_back_byte_for_byte(place: &dyn Place) {
    let store = place.open().await;
    let large = "x".repeat(512 << 10);
    let specs: [&[u8]; 7] = [
        b"",
        b" {\"b\": 1 , \"a\":1}\n",
        "\"ä\u{1F980}\\u0000\"".as_bytes(),
        b"\0\x01",
        b"\xff\xfe",
        b"1.0",
        large.as_bytes(),
    ];
    let changes: Vec<_> = specs
        .iter()
        .enumerate()
        .map(|(i, spec)| NewChange {
            key: format!("route/r{i}").parse().unwrap(),
            spec: Some(Bytes::copy_from_slice(spec)),
        })
        .collect();
    store.commit(0, NewRevision { changes: changes.clone(), ..revision(&[]) }).await.unwrap();
    store.commit(1, NewRevision { changes, ..revision(&[]) }).await.unwrap();
    let of = |set: Vec<StoredResource>| set.into_iter().map(|resource| resource.spec).collect::<Vec<_>>();
    assert_eq!(of(store.load().await.unwrap().resources), specs);
    assert_eq!(of(store.set_at(1).await.unwrap().unwrap().resources), specs);
    for change in store.revision(2).await.unwrap().unwrap().changes.iter().zip(specs) {
        assert_eq!((change.0.before.as_deref(), change.0.after.as_deref()), (Some(change.1), Some(change.1)));
    }
}

pub(crate) async fn revisions_come_in_pages(place: &dyn Place) {
    let store = place.open().await;
    for base in 0..5 {
        put(&*store, base, &[("route/a", &format!("{base}"))]).await;
    }
    let newest_first = async |before, limit| -> Vec<u64> {
        store.revisions(before, limit).await.unwrap().iter().map(|summary| summary.number).collect()
    };
    assert_eq!(newest_first(None, 2).await, [5, 4]);
    assert_eq!(newest_first(Some(4), 2).await, [3, 2]);
    assert_eq!(newest_first(Some(2), 2).await, [1]);
    assert_eq!(newest_first(Some(1), 2).await, [0; 0]);
    let oldest_first = async |after, limit| -> Vec<u64> {
        store.revisions_after(after, limit).await.unwrap().iter().map(|r| r.summary.number).collect()
    };
    assert_eq!(oldest_first(0, 2).await, [1, 2]);
    assert_eq!(oldest_first(2, 10).await, [3, 4, 5]);
    assert_eq!(oldest_first(5, 10).await, [0; 0]);
    assert_eq!(oldest_first(u64::MAX, 10).await, [0; 0]);
}

fn proxy_row(id: &str, instance: &str, state: &str) -> ProxyRow {
    ProxyRow {
        id: id.into(),
        fleet: "default".into(),
        replica: "cp".into(),
        instance: instance.into(),
        updated_at_us: 0,
        state: state.into(),
    }
}

fn taken(rows: &[ProxyRow]) -> ProxyRows {
    ProxyRows { writer: "w".into(), taken: rows.to_vec(), changed: Vec::new(), notify: true }
}

/// Without the times, which are the database's.
async fn proxies(store: &dyn Store) -> Vec<ProxyRow> {
    let rows = store.proxies().await.unwrap().into_iter();
    rows.map(|row| {
        assert!(row.updated_at_us > 1_700_000_000_000_000, "{row:?}");
        ProxyRow { updated_at_us: 0, ..row }
    })
    .collect()
}

pub(crate) async fn proxies_are_kept_by_id(place: &dyn Place) {
    let store = place.open().await;
    let row = |id: &str, state: &str| proxy_row(id, "1", state);
    store.save_proxies(&taken(&[])).await.unwrap();
    store.save_proxies(&taken(&[row("b", "{}"), row("a", "{\"x\":\"ä\"}"), row("b", "[1]")])).await.unwrap();
    assert_eq!(proxies(&*store).await, [row("a", "{\"x\":\"ä\"}"), row("b", "[1]")]);
    let moved = ProxyRow { fleet: "edge".into(), replica: "cp-2".into(), ..proxy_row("a", "2", "{}") };
    store.save_proxies(&taken(std::slice::from_ref(&moved))).await.unwrap();
    assert_eq!(proxies(&*place.open().await).await, [moved.clone(), row("b", "[1]")]);
    assert!(store.delete_proxy("b").await.unwrap());
    assert!(!store.delete_proxy("b").await.unwrap());
    assert_eq!(proxies(&*store).await, [moved]);

    let many: Vec<_> = (0..2_500).map(|i| row(&format!("p{i:04}"), "{}")).collect();
    store.save_proxies(&taken(&many)).await.unwrap();
    assert_eq!(proxies(&*store).await[1..], many);
    let ids = ["p0001".to_owned(), "absent".to_owned(), "p0003".to_owned()];
    let found: Vec<_> = store.proxies_of(&ids).await.unwrap().into_iter().map(|row| row.id).collect();
    assert_eq!(found, ["p0001", "p0003"]);
}

pub(crate) async fn a_proxy_is_changed_only_by_the_control_plane_that_has_it(place: &dyn Place) {
    let store = place.open().await;
    let change = async |row: ProxyRow| {
        let rows = ProxyRows { writer: "w".into(), taken: Vec::new(), changed: vec![row], notify: true };
        store.save_proxies(&rows).await.unwrap();
    };
    change(proxy_row("a", "1", "nobody has it")).await;
    assert_eq!(proxies(&*store).await, []);
    store.save_proxies(&taken(&[proxy_row("a", "1", "taken")])).await.unwrap();
    let stamps = store.proxy_stamps().await.unwrap();
    change(proxy_row("a", "2", "of another process")).await;
    change(ProxyRow { replica: "cp-2".into(), ..proxy_row("a", "1", "of another replica") }).await;
    assert_eq!(store.proxy_stamps().await.unwrap(), stamps);
    change(proxy_row("a", "1", "changed")).await;
    assert_eq!(proxies(&*store).await, [proxy_row("a", "1", "changed")]);
    let later = store.proxy_stamps().await.unwrap();
    assert_ne!(later, stamps);
    let Stamp { replica, instance, updated_at_us } = &later[0].1;
    assert_eq!((&*later[0].0, &**replica, &**instance), ("a", "cp", "1"));
    assert!(*updated_at_us > stamps[0].1.updated_at_us);
}

pub(crate) async fn a_control_plane_that_was_silent_for_long_is_dead_until_it_says_otherwise(
    place: &dyn Place,
) {
    let store = place.open().await;
    let lease = Duration::from_secs(60);
    assert_eq!(store.replicas().await.unwrap(), []);
    assert!(!store.renew_replica("1", lease).await.unwrap(), "it is not there");
    store.save_replica("1", "cp").await.unwrap();
    store.save_replica("2", "cp").await.unwrap();
    assert!(store.renew_replica("1", lease).await.unwrap());
    let replicas = place.open().await.replicas().await.unwrap();
    let names: Vec<_> = replicas.iter().map(|replica| (&*replica.instance, &*replica.name)).collect();
    assert_eq!(names, [("1", "cp"), ("2", "cp")]);
    assert!(replicas.iter().all(|replica| replica.age < lease), "{replicas:?}");
    // Silent for longer than that it always was.
    assert!(!store.renew_replica("1", Duration::ZERO).await.unwrap());
    store.save_replica("1", "cp").await.unwrap();
    assert!(store.renew_replica("1", lease).await.unwrap());
    store.delete_replica("1").await.unwrap();
    store.delete_replica("1").await.unwrap();
    assert!(!store.renew_replica("1", lease).await.unwrap());
    assert_eq!(store.replicas().await.unwrap().len(), 1);
}

pub(crate) async fn rollouts_are_kept_by_id(place: &dyn Place) {
    let store = place.open().await;
    let row = |revision: u64, fleet: &str, state: &str| RolloutRow {
        id: format!("{revision}-{fleet}"),
        revision,
        fleet: fleet.into(),
        state: state.into(),
    };
    store.save_rollouts(&[]).await.unwrap();
    store.save_rollouts(&[row(9, "a", "1"), row(10, "b", "1"), row(10, "a", "1")]).await.unwrap();
    store.save_rollouts(&[row(10, "a", "2"), row(11, "a", "1")]).await.unwrap();
    let all = [row(11, "a", "1"), row(10, "a", "2"), row(10, "b", "1"), row(9, "a", "1")];
    assert_eq!(store.rollouts(10).await.unwrap(), all);
    assert_eq!(store.rollouts(2).await.unwrap(), all[..2]);
}

pub(crate) async fn tokens_are_kept_by_name(place: &dyn Place) {
    let store = place.open().await;
    let token = |name: &str, role: Role, byte| TokenRow {
        name: name.into(),
        role: role.into(),
        hash: vec![byte; 32],
        created_at_us: 1_700_000_000_000_000,
    };
    let tokens = [
        token("a", Role::Admin, 0),
        token("e", Role::Editor, 0xff),
        token("p", Role::Proxy, 7),
        token("v", Role::Viewer, 8),
    ];
    for token in tokens.iter().rev() {
        assert!(store.create_token(token).await.unwrap());
    }
    assert!(!store.create_token(&token("a", Role::Viewer, 9)).await.unwrap(), "the name is in use");
    assert_eq!(store.tokens().await.unwrap(), tokens);
    assert!(store.delete_token("e").await.unwrap());
    assert!(!store.delete_token("e").await.unwrap());
    assert_eq!(place.open().await.tokens().await.unwrap().len(), 3);
}

pub(crate) async fn sessions_are_kept_and_end_with_their_token(place: &dyn Place) {
    let (store, other) = (place.open().await, place.open().await);
    let session = |id: &str, token: &str, token_source, byte: u8| SessionRow {
        id: id.into(),
        hash: [byte; 32],
        token: token.into(),
        token_source,
        binding: [byte + 1; 32],
        created_at_us: i64::from(byte),
        last_used_at_us: 100,
        expires_at_us: 1000,
    };
    let (stored, flag) = (TokenSource::Stored, TokenSource::Flag);
    let mut all = vec![
        session("s1", "ci", stored, 1),
        session("s2", "ci", flag, 2),
        session("s3", "ann", stored, 3),
        session("s4", "ann", TokenSource::File, 4),
    ];
    for session in all.iter().rev() {
        store.create_session(session).await.unwrap();
    }
    assert_eq!(other.sessions().await.unwrap(), all);
    let used = |id: &str, at_us| (id.to_owned(), at_us);
    store.touch_sessions(&[used("s1", 200), used("s2", 50), used("gone", 300)]).await.unwrap();
    store.touch_sessions(&[]).await.unwrap();
    all[0].last_used_at_us = 200;
    assert_eq!(other.sessions().await.unwrap(), all);

    let token = TokenRow { name: "ci".into(), role: Role::Admin.into(), hash: vec![9; 32], created_at_us: 0 };
    store.create_token(&token).await.unwrap();
    assert!(store.delete_token("ci").await.unwrap());
    all.remove(0);
    assert_eq!(other.sessions().await.unwrap(), all, "a token that is given by hand is another one");
    store.delete_sessions(&["s3".into(), "gone".into()]).await.unwrap();
    store.delete_sessions(&[]).await.unwrap();
    let left = other.sessions().await.unwrap();
    assert_eq!(left.iter().map(|session| &*session.id).collect::<Vec<_>>(), ["s2", "s4"]);
}

/// A newer version's revision 2: a resource of a kind that is not known, one with a name that is none here, one that
/// is; and a token with a role and a hash that are not known.
pub(crate) const OF_A_NEWER_VERSION: &str = "
    UPDATE head SET revision = 2;
    INSERT INTO revisions VALUES (2, 'ann', '', 7, 3);
    INSERT INTO resource_versions (kind, name, revision, created_at_us, before, after) VALUES
        ('policy', 'p', 2, 7, NULL, '{\"secret\":1}'), ('route', 'a/b', 2, 7, NULL, '{}'), ('route', 'c', 2, 7, NULL, '3');
    INSERT INTO resources (kind, name, spec, revision, created_at_us, updated_at_us, updated_by) VALUES
        ('policy', 'p', '{\"secret\":1}', 2, 7, 7, 'ann'), ('route', 'a/b', '{}', 2, 7, 7, 'ann'),
        ('route', 'c', '3', 2, 7, 7, 'ann');
    INSERT INTO tokens (name, role, hash, created_at_us) VALUES ('op', 'operator', '1234', 7);";

pub(crate) async fn what_a_newer_version_wrote_is_kept_as_unknown(place: &dyn Place) {
    let store = place.open().await;
    put(&*store, 0, &[("route/a", "1")]).await;
    // SQLite tells text from bytes.
    let bytes = |statement: &str| match place.url().starts_with("sqlite:") {
        true => statement
            .replace("'{\"secret\":1}'", "CAST('{\"secret\":1}' AS BLOB)")
            .replace("'{}'", "CAST('{}' AS BLOB)")
            .replace("'3'", "CAST('3' AS BLOB)")
            .replace("'1234'", "CAST('1234' AS BLOB)"),
        false => statement.to_owned(),
    };
    place.run(&bytes(OF_A_NEWER_VERSION)).await;

    let names = |unknown: &[signalbox_control_plane::store::UnknownResource]| {
        unknown.iter().map(|unknown| unknown.key.to_string()).collect::<Vec<_>>()
    };
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.head.number, loaded.resources.len()), (2, 2));
    assert_eq!(names(&loaded.unknown), ["policy/p", "route/a/b"]);
    let at = store.set_at(2).await.unwrap().unwrap();
    assert_eq!((at.resources.len(), names(&at.unknown)), (2, names(&loaded.unknown)));
    assert_eq!(store.set_at(1).await.unwrap().unwrap().unknown, []);
    let revision = store.revisions_after(1, 10).await.unwrap().remove(0);
    assert_eq!((revision.summary.change_count, revision.changes.len()), (3, 1));
    let changes: Vec<_> =
        revision.unknown.iter().map(|change| (change.key.to_string(), change.before.is_some())).collect();
    assert_eq!(changes, [("policy/p".to_owned(), false), ("route/a/b".to_owned(), false)]);
    let tokens = store.tokens().await.unwrap();
    assert_eq!((tokens[0].role.as_str(), tokens[0].role.known()), ("operator", None));

    // The next commit leaves them as they are.
    assert_eq!(put(&*store, 2, &[("route/a", "2")]).await, 3);
    assert_eq!(place.open().await.load().await.unwrap().unknown, loaded.unknown);
}

pub(crate) async fn the_audit_trail_has_commits_and_notes(place: &dyn Place) {
    let store = place.open().await;
    put(&*store, 0, &[("route/a", "1")]).await;
    store.append_audit("bob", "create token", "ci").await.unwrap();
    put(&*store, 1, &[("route/a", "2")]).await;
    let entries = store.audit(None, 10).await.unwrap();
    let seen: Vec<_> = entries.iter().map(|e| (&*e.actor, &*e.action, &*e.detail, e.revision)).collect();
    let commit = |revision| ("ann", "PUT /api/v1/routes/a", "why", Some(revision));
    assert_eq!(seen, [commit(2), ("bob", "create token", "ci", None), commit(1)]);
    assert!(entries[0].id > entries[1].id && entries[1].id > entries[2].id);
    assert_eq!(entries[0].at_us, store.load().await.unwrap().committed_at_us);
    assert_eq!(store.audit(None, 1).await.unwrap(), entries[..1]);
    assert_eq!(store.audit(Some(entries[0].id), 10).await.unwrap(), entries[1..]);
}

pub(crate) async fn a_dropped_commit_is_there_wholly_or_not_at_all(place: &dyn Place) {
    let store = place.open().await;
    let mut finished = 0;
    // Dropped at each place where it waits, from the first to none.
    for polls in 1.. {
        let base = store.head().await.unwrap().number;
        let spec = format!("{polls}");
        let new = revision(&[("route/a", Some(&spec)), ("route/b", Some(&spec)), ("route/c", Some(&spec))]);
        if let Some(committed) = dropped_after(polls, store.commit(base, new)).await {
            assert_eq!(committed.unwrap().number, base + 1);
            finished += 1;
            // The number of waits varies a little.
            if finished == 10 {
                break;
            }
        }
        // Nothing is left behind that would hinder the next; what was dropped may yet come to pass before it.
        loop {
            let base = store.head().await.unwrap().number;
            match store.commit(base, revision(&[("route/next", Some(&spec))])).await {
                Ok(_) => break,
                Err(StoreError::Stale) => {}
                Err(error) => panic!("after a commit dropped at wait {polls}: {error:?}"),
            }
        }
    }
    let log = store.revisions_after(0, 1_000).await.unwrap();
    for (revision, number) in log.iter().zip(1..) {
        assert_eq!(revision.summary.number, number);
        let keys: Vec<_> = revision.changes.iter().map(|change| change.key.to_string()).collect();
        assert!(keys == ["route/next"] || keys == ["route/a", "route/b", "route/c"], "{keys:?}");
    }
    let loaded = store.load().await.unwrap();
    assert_eq!(loaded.head.number, log.len() as u64);
    assert_eq!(store.set_at(loaded.head.number).await.unwrap().unwrap().resources, loaded.resources);
    let audited = store.audit(None, 1_000).await.unwrap();
    assert_eq!(audited.len(), log.len());
}

pub(crate) async fn a_hundred_thousand_resources_are_one_commit(place: &dyn Place) {
    const COUNT: usize = 100_000;
    let store = place.open().await;
    let all = |version: u32| {
        let spec = format!("{{\"version\":{version},\"description\":\"{}\"}}", "x".repeat(250));
        let changes = (0..COUNT)
            .map(|i| NewChange {
                key: format!("route/r{i:06}").parse().unwrap(),
                spec: Some(spec.clone().into()),
            })
            .collect();
        NewRevision { changes, ..revision(&[]) }
    };
    let mut times = Vec::new();
    for base in 0..2 {
        let new = all(base);
        let start = Instant::now();
        assert_eq!(store.commit(u64::from(base), new).await.unwrap().number, u64::from(base) + 1);
        times.push(start.elapsed());
    }
    let start = Instant::now();
    let loaded = store.load().await.unwrap();
    times.push(start.elapsed());
    assert_eq!((loaded.head.number, loaded.resources.len()), (2, COUNT));
    assert!(loaded.resources.is_sorted_by(|a, b| a.key < b.key));

    let start = Instant::now();
    let first = store.set_at(1).await.unwrap().unwrap().resources;
    times.push(start.elapsed());
    assert_eq!(first.len(), COUNT);
    assert!(first.iter().all(|resource| resource.spec.starts_with(b"{\"version\":0,")));

    // A page ends before it has too many changes, but is never empty.
    put(&*store, 2, &[("route/one", "1")]).await;
    let mut page_lengths = Vec::new();
    let mut after = 0;
    while after < 3 {
        let page = store.revisions_after(after, 100).await.unwrap();
        assert_eq!(page[0].summary.number, after + 1);
        after += page.len() as u64;
        page_lengths.push(page.len());
    }
    assert_eq!(page_lengths, [1, 1, 1]);
    println!(
        "created in {:?}, updated in {:?}, loaded in {:?}, set of the past in {:?}",
        times[0], times[1], times[2], times[3]
    );
}

/// Prints the time of commits of one change: to a new store, and to one that has just got 100,000 resources.
pub(crate) async fn the_latency_of_a_commit(place: &dyn Place) {
    let store = place.open().await;
    let median = async |of: &str| {
        let mut base = store.head().await.unwrap().number;
        let mut times = Vec::new();
        for i in 0..200 {
            let spec = format!("{{\"description\":\"{}{i}\"}}", "x".repeat(250));
            let start = Instant::now();
            base = put(&*store, base, &[("route/r000500", &spec)]).await;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        println!("{of}: median {:?}, 99th percentile {:?}", times[100], times[198]);
    };
    median("a new store").await;
    let changes = (0..100_000)
        .map(|i| NewChange {
            key: format!("route/r{i:06}").parse().unwrap(),
            spec: Some("x".repeat(280).into()),
        })
        .collect();
    store.commit(200, NewRevision { changes, ..revision(&[]) }).await.unwrap();
    median("100,000 resources").await;
}

/// A revision by ann of `KIND/NAME` and the specification, or none to delete it.
pub(crate) fn revision(changes: &[(&str, Option<&str>)]) -> NewRevision {
    let changes = changes
        .iter()
        .map(|(key, spec)| NewChange {
            key: key.parse().unwrap(),
            spec: spec.map(|spec| Bytes::copy_from_slice(spec.as_bytes())),
        })
        .collect();
    NewRevision {
        author: "ann".into(),
        message: "why".into(),
        action: "PUT /api/v1/routes/a".into(),
        changes,
        pinned: Vec::new(),
        urgent: None,
    }
}

/// Commits, and gives the number.
pub(crate) async fn put(store: &dyn Store, base: u64, resources: &[(&str, &str)]) -> u64 {
    let changes: Vec<_> = resources.iter().map(|(key, spec)| (*key, Some(*spec))).collect();
    store.commit(base, revision(&changes)).await.unwrap().number
}

/// A certificate with this key, as it is stored.
fn certificate(key: &str) -> String {
    let name = "a-name-that-can-be-found";
    serde_json::json!({"name": "c", "description": name, "certificate": "x", "private_key": key}).to_string()
}

pub(crate) async fn secrets_cannot_be_read_in_the_database(place: &dyn Place) {
    let found = |text: &str| place.raw().windows(text.len()).any(|window| window == text.as_bytes());
    let key = || KeySource::Given("ab".repeat(32));
    let store = seal(place.open().await, key()).await.unwrap();
    let (first, second) = (certificate("the-first-secret"), certificate("the-second-secret"));
    put(&*store, 0, &[("certificate/c", &first), ("certificate/d", &first), ("route/r", "as-it-is")]).await;
    put(&*store, 1, &[("certificate/c", &second)]).await;
    store.commit(2, revision(&[("certificate/c", None)])).await.unwrap();
    assert!(found("as-it-is"), "what is no secret is found where it is looked for");
    for hidden in ["the-first-secret", "the-second-secret", &"ab".repeat(32), "\u{ab}\u{ab}\u{ab}\u{ab}"] {
        assert!(!found(hidden), "{hidden}");
    }
    assert!(!found(&first));

    let store = seal(place.open().await, key()).await.unwrap();
    let loaded = store.load().await.unwrap().resources;
    assert_eq!(loaded[1].spec, first.as_bytes());
    let log = store.revisions_after(0, 10).await.unwrap();
    assert_eq!(log[1].changes[0].before.as_deref(), Some(first.as_bytes()));
    assert_eq!(log[1].changes[0].after.as_deref(), Some(second.as_bytes()));
    assert_eq!(store.revision(3).await.unwrap().unwrap(), log[2]);
    let past = store.set_at(2).await.unwrap().unwrap().resources;
    assert!(past.iter().any(|resource| resource.spec == second.as_bytes()));

    for (source, expected) in [
        (KeySource::Given("cd".repeat(32)), "encrypted with another key than that of --secrets-key"),
        (KeySource::None, "--secrets-key-file"),
        (KeySource::Given("short".to_owned()), "must be 64 hexadecimal digits"),
    ] {
        let error = seal(place.open().await, source).await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

pub(crate) async fn a_secret_is_not_stored_without_a_key(place: &dyn Place) {
    let store = seal(place.open().await, KeySource::None).await.unwrap();
    put(&*store, 0, &[("route/r", "{}")]).await;
    let error = store.commit(1, revision(&[("certificate/c", Some(&certificate("x")))])).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSecretsKey), "{error:?}");
    assert_eq!(store.head().await.unwrap().number, 1);
    // A reference is none.
    let reference = r#"{"name":"c","certificate":"x","private_key":{"file":"/key.pem"}}"#;
    put(&*store, 1, &[("certificate/c", reference)]).await;
}

/// All that a commit writes to, as text.
async fn everything(store: &dyn Store) -> String {
    let loaded = store.load().await.unwrap();
    let log = store.revisions_after(0, 1_000).await.unwrap();
    let audit = store.audit(None, 1_000).await.unwrap();
    format!("{loaded:#?} {log:#?} {audit:#?}")
}

/// Polls a future so many times, then drops it.
async fn dropped_after<T>(mut polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(move |context| {
        polls -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
