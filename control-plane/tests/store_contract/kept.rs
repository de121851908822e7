//! The contract for the parts of a store that are no resources: uploaded files, purges, traffic.

use signalbox_config::BlobId;
use signalbox_control_plane::store::{BlobRow, MAX_PURGES, StatsRow, Store};

use crate::places::Place;

pub(crate) async fn uploaded_files_are_kept_by_their_digest(place: &dyn Place) {
    let store = place.open().await;
    let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
    let contents: [&[u8]; 2] = [b"\0a module", &large];
    let rows = [0, 1].map(|at| BlobRow {
        id: BlobId::of(contents[at]),
        size: contents[at].len() as u64,
        created_at_us: 1_700_000_000_000_000 - at as i64,
        created_by: "e".into(),
    });
    for (row, content) in rows.iter().zip(contents) {
        assert!(store.save_blob(row, content).await.unwrap());
    }
    let again = BlobRow { created_by: "x".into(), ..rows[0].clone() };
    assert!(!store.save_blob(&again, contents[0]).await.unwrap(), "it is there already");
    let store = place.open().await;
    assert_eq!(store.blobs().await.unwrap(), rows, "the newest first, as it was stored first");
    for (row, content) in rows.iter().zip(contents) {
        assert_eq!(store.blob(row.id).await.unwrap().unwrap(), content);
    }
    for was_there in [true, false] {
        let held = store.hold().await.unwrap();
        assert_eq!(store.delete_blob(held, rows[0].id).await.unwrap(), was_there);
    }
    assert_eq!(store.blob(rows[0].id).await.unwrap(), None);
    assert_eq!(store.blobs().await.unwrap(), rows[1..]);
}

pub(crate) async fn purges_are_numbered_in_order_and_the_newest_are_kept(place: &dyn Place) {
    let store = place.open().await;
    assert_eq!(store.last_purge().await.unwrap(), 0);
    assert_eq!(store.purges_after(0).await.unwrap(), []);
    assert_eq!(store.add_purge(50, "a", "e").await.unwrap(), 50);
    assert_eq!(store.add_purge(40, "b", "e").await.unwrap(), 51, "the clock was set back");
    let store = place.open().await;
    assert_eq!(store.last_purge().await.unwrap(), 51);
    let rows: Vec<_> = store.purges_after(50).await.unwrap();
    assert_eq!(rows.iter().map(|row| (row.number, &*row.purge)).collect::<Vec<_>>(), [(51, "b")]);
    // Whoever sees a number sees all that are smaller.
    let other = place.open().await;
    let add = async |store: &dyn Store| {
        for _ in 0..MAX_PURGES / 2 {
            store.add_purge(0, "c", "e").await.unwrap();
        }
    };
    let look = async {
        let mut seen = Vec::new();
        while store.last_purge().await.unwrap() < 51 + MAX_PURGES as u64 {
            let last = seen.last().copied().unwrap_or(51);
            seen.extend(store.purges_after(last).await.unwrap().into_iter().map(|row| row.number));
        }
        seen
    };
    let (_, _, seen) = tokio::join!(add(&*store), add(&*other), look);
    assert_eq!(seen, (52..52 + seen.len() as u64).collect::<Vec<_>>());
    let kept: Vec<u64> = store.purges_after(0).await.unwrap().into_iter().map(|row| row.number).collect();
    assert_eq!(kept, (52..52 + MAX_PURGES as u64).collect::<Vec<_>>());
}

pub(crate) async fn rows_of_traffic_are_read_in_their_order_and_deleted_by_age(place: &dyn Place) {
    let store = place.open().await;
    let row = |instance: &str, resolution, part, at| StatsRow {
        id: 0,
        instance: instance.into(),
        resolution,
        first: part,
        last: part,
        at,
        content: vec![0, 255, part as u8].into(),
    };
    let rows = [row("a", 60, 1, 100), row("b", 60, 1, 110), row("a", 600, 2, 120), row("a", 60, 3, 130)];
    for row in &rows {
        store.save_stats_row(row).await.unwrap();
    }
    let store = place.open().await;
    let without_ids = |rows: Vec<StatsRow>| -> Vec<StatsRow> {
        assert!(rows.is_sorted_by_key(|row| row.id) && rows.iter().all(|row| row.id > 0), "{rows:?}");
        rows.into_iter().map(|row| StatsRow { id: 0, ..row }).collect()
    };
    let [a1, b1, a2, a3] = rows;
    let minutes = store.stats_rows_of(60, 0, 2).await.unwrap();
    let last = minutes[1].id;
    assert_eq!(without_ids(minutes), [a1.clone(), b1.clone()]);
    assert_eq!(without_ids(store.stats_rows_of(60, last, 10).await.unwrap()), std::slice::from_ref(&a3));
    assert_eq!(without_ids(store.stats_rows_after(0, "b", 2).await.unwrap()), [a1, a2.clone()]);
    assert_eq!(without_ids(store.stats_rows_after(0, "a", 10).await.unwrap()), [b1]);
    store.delete_stats_rows(60, 130).await.unwrap();
    assert_eq!(without_ids(store.stats_rows_after(0, "x", 10).await.unwrap()), [a2, a3]);
}
