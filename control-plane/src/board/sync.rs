//! Between the board and the store, and from the board to its subscribers: off the path of the streams.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::proxy::Proxy;
use super::replicas::LEASE;
use super::rollout::RolloutRecord;
use super::service::{Board, BoardEvent};
use super::state::{Dirty, Sharing};
use crate::clock::now_us;
use crate::store::{Hinted, ProxyRow, ProxyRows, ReplicaRow, RolloutRow, Stamp, Store, StoreError};

impl Board {
    /// The board as the store last had it. `replica` names this control plane among others. Where it shares the
    /// database, it is known to the others from here on.
    pub async fn open(
        store: Arc<dyn Store>,
        replica: &str,
        sharing: Sharing,
    ) -> Result<Arc<Self>, StoreError> {
        let board = Arc::new(Self::new(store, replica, sharing));
        board.load().await?;
        Ok(board)
    }

    /// Writes what changed to the store and tells the subscribers, until `shutdown` and the end of the streams; then
    /// writes the rest.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let written = CancellationToken::new();
        let write = async {
            self.write_changes(&shutdown).await;
            written.cancel();
        };
        tokio::join!(
            self.announce_changes(&shutdown),
            write,
            self.follow_others(&shutdown),
            self.hold_lease(&written)
        );
    }

    async fn announce_changes(&self, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
            }
            self.send_events();
            tokio::time::sleep(EVENT_INTERVAL).await;
        }
    }

    fn send_events(&self) {
        let mut state = self.state();
        let unannounced = std::mem::take(&mut state.unannounced);
        if self.events.receiver_count() == 0 {
            return;
        }
        let proxies: Vec<_> = unannounced.proxies.iter().filter_map(|id| state.proxy(id)).collect();
        let rollouts: Vec<_> = unannounced
            .rollouts
            .iter()
            .filter_map(|(number, fleet)| state.rollout_status(*number, fleet))
            .collect();
        drop(state);
        let events = (unannounced.forgotten.into_iter().map(BoardEvent::Forgotten))
            .chain(proxies.into_iter().map(|proxy| BoardEvent::Proxy(Arc::new(proxy))))
            .chain(rollouts.into_iter().map(|rollout| BoardEvent::Rollout(Arc::new(rollout))));
        for event in events {
            // An error says that the last subscriber left meanwhile.
            let _ = self.events.send(event);
        }
    }

    /// Writes what changed: at once where a stream or another control plane waits for it, else in batches. After `shutdown` it waits for the streams
    /// to end, and writes what became of them.
    async fn write_changes(&self, shutdown: &CancellationToken) {
        let mut interval = tokio::time::interval(WRITE_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heartbeats_at = Instant::now();
        let mut away = false;
        loop {
            let (last, rollouts) = tokio::select! {
                () = shutdown.cancelled() => (true, true),
                _ = interval.tick() => (false, true),
                () = self.unsaved.notified(), if !away => (false, false),
            };
            if !last && !rollouts && self.sharing == Sharing::Alone && !self.state().registering {
                continue;
            }
            if last {
                self.until_streams_ended().await;
            }
            if rollouts {
                self.state().write_advanced(if last { usize::MAX } else { ADVANCED_ROWS });
            }
            let written = async {
                self.write(rollouts).await?;
                if heartbeats_at.elapsed() >= HEARTBEAT_WRITE_INTERVAL {
                    heartbeats_at = Instant::now();
                    self.write_heartbeats().await?;
                }
                Ok::<(), StoreError>(())
            };
            let written = self.while_streams_wait(written).await;
            if self.sharing == Sharing::Alone {
                self.state().set_unwritable(written.is_err());
            }
            match written {
                Ok(()) => away = false,
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(%error, "the state of the proxies is not written; it is kept in memory until the store is back");
                }
                Err(_) => {}
            }
            if last {
                return;
            }
        }
    }

    /// Awaits a write, and answers the streams that wait for it when it takes too long.
    async fn while_streams_wait(
        &self,
        write: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let mut write = std::pin::pin!(write);
        match tokio::time::timeout(REGISTER_DEADLINE, &mut write).await {
            Ok(written) => written,
            Err(_) => {
                if self.sharing == Sharing::Alone {
                    self.state().set_unwritable(true);
                }
                write.await
            }
        }
    }

    async fn until_streams_ended(&self) {
        let ended = async {
            while self.state().has_streams() {
                tokio::time::sleep(STREAMS_POLL).await;
            }
        };
        // Those that are open after that are of unknown state to the next control plane anyway.
        let _ = tokio::time::timeout(STREAMS_DEADLINE, ended).await;
    }

    /// Writes what changed; rollouts only when that is asked for. After an error, or when this is dropped, it is still to
    /// be written.
    pub(super) async fn write(&self, with_rollouts: bool) -> Result<(), StoreError> {
        let _one = self.writing.lock().await;
        let (mut unsaved, rows, streams, rollouts) = {
            let mut state = self.state();
            state.registering = false;
            let mut unsaved = std::mem::take(&mut state.unsaved);
            if !with_rollouts {
                state.unsaved.rollouts = std::mem::take(&mut unsaved.rollouts);
            }
            if unsaved.is_empty() {
                return Ok(());
            }
            let mut rows = self.rows();
            let mut streams = Vec::new();
            for id in &unsaved.proxies {
                let Some((proxy, takes)) = state.row_to_write(id) else { continue };
                let Some(row) = proxy_row(&proxy) else { continue };
                if takes {
                    streams.push((id.clone(), state.stream_of(id)));
                    rows.taken.push(row);
                } else {
                    rows.changed.push(row);
                }
            }
            rows.changed
                .extend(unsaved.expired.iter().filter_map(|id| state.expired_row(id)).filter_map(proxy_row));
            let rollouts: Vec<_> = unsaved
                .rollouts
                .iter()
                .filter_map(|(number, fleet)| {
                    Some((*number, fleet.clone(), state.rollout_to_store(*number, fleet)?))
                })
                .collect();
            (Unwritten { board: self, dirty: unsaved }, rows, streams, rollouts)
        };
        let rollouts: Vec<_> = rollouts
            .iter()
            .filter_map(|(number, fleet, record)| rollout_row(*number, fleet, record))
            .collect();
        for id in &unsaved.dirty.forgotten {
            self.store.delete_proxy(id).await?;
        }
        if !rows.is_empty() {
            self.store.save_proxies(&rows).await?;
        }
        if !rollouts.is_empty() {
            self.store.save_rollouts(&rollouts).await?;
        }
        unsaved.dirty = Dirty::default();
        let mut state = self.state();
        for (id, stream) in streams {
            state.registered(&id, stream);
        }
        Ok(())
    }

    /// Writes the proxies that are connected here and of which nothing else changed than traffic and the last sign of life.
    async fn write_heartbeats(&self) -> Result<(), StoreError> {
        let _one = self.writing.lock().await;
        let mut rows = self.rows();
        rows.notify = false;
        {
            let mut state = self.state();
            for id in state.take_heartbeats(self.sharing == Sharing::Shared) {
                if let Some((row, _)) =
                    state.row_to_write(&id).and_then(|(proxy, takes)| Some((proxy_row(&proxy)?, takes)))
                {
                    match self.sharing {
                        Sharing::Alone => rows.taken.push(row),
                        Sharing::Shared => rows.changed.push(row),
                    }
                }
            }
        }
        if rows.is_empty() { Ok(()) } else { self.store.save_proxies(&rows).await }
    }

    fn rows(&self) -> ProxyRows {
        ProxyRows { writer: self.instance.to_string(), taken: Vec::new(), changed: Vec::new(), notify: true }
    }

    /// Keeps saying that this control plane is alive. While the database does not take that in, the others take it for
    /// dead after a while; before it says so again, it registers its streams anew. Ends once all is written.
    async fn hold_lease(&self, written: &CancellationToken) {
        if self.sharing == Sharing::Alone {
            return;
        }
        let mut interval = tokio::time::interval(HEARTBEAT);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut confirmed = Instant::now();
        loop {
            tokio::select! {
                () = written.cancelled() => break,
                _ = interval.tick() => {}
            }
            // Up to the moment at which the others take it for dead; after that, for as long as a call may take.
            let left = LEASE_LOST_AFTER.saturating_sub(confirmed.elapsed());
            let deadline = if left.is_zero() { HEARTBEAT_DEADLINE } else { left };
            match tokio::time::timeout(deadline, self.renew_lease()).await {
                Ok(Ok(())) => confirmed = Instant::now(),
                // `write_changes` and the publisher say that the database is away.
                Ok(Err(_)) | Err(_) if confirmed.elapsed() < LEASE_LOST_AFTER => {}
                Ok(Err(_)) | Err(_) => self.state().set_lease_lost(true),
            }
        }
        let _ = tokio::time::timeout(HEARTBEAT_DEADLINE, self.store.delete_replica(&self.instance)).await;
    }

    async fn renew_lease(&self) -> Result<(), StoreError> {
        if self.store.renew_replica(&self.instance, LEASE).await? {
            return Ok(());
        }
        {
            let mut state = self.state();
            // Streams that open from now on wait for their registration again.
            state.set_lease_lost(false);
            state.register_all();
        }
        let registered = async {
            self.write(false).await?;
            self.store.save_replica(&self.instance, &self.replica).await
        };
        let registered = registered.await;
        if registered.is_err() {
            self.state().set_lease_lost(true);
        }
        self.notify_waiters();
        registered
    }

    async fn follow_others(&self, shutdown: &CancellationToken) {
        let mut interval = tokio::time::interval(FOLLOW_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let hints = self.store.proxy_hints();
        loop {
            let hinted = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = interval.tick() => None,
                () = hints.notified(), if self.sharing == Sharing::Shared => Some(hints.take(&self.instance)),
            };
            // `write_changes` says that the database is away; what could not be read is read with the next tick.
            let _ = match (self.sharing, hinted) {
                (Sharing::Alone, _) => Ok(()),
                (Sharing::Shared, Some(Hinted::Some(ids))) if ids.is_empty() => continue,
                (Sharing::Shared, Some(Hinted::Some(ids))) => self.read_some(&ids).await,
                (Sharing::Shared, Some(Hinted::All) | None) => self.refresh().await,
            };
            let mut state = self.state();
            state.expire(now_us(), Instant::now());
            let unsaved = !state.unsaved.is_empty();
            drop(state);
            if unsaved {
                self.unsaved.notify_one();
            }
            self.notify_waiters();
        }
    }

    /// Wakes those who wait for what was read.
    fn notify_waiters(&self) {
        let mut state = self.state();
        let progress = std::mem::take(&mut state.progress);
        let changed = !state.unannounced.is_empty();
        drop(state);
        if progress {
            self.progress.send_modify(|count| *count += 1);
        }
        if changed {
            self.changed.notify_one();
        }
    }

    /// Reads what the other control planes wrote, all that changed since the last time. It begins after this was called.
    pub(super) async fn refresh(&self) -> Result<(), StoreError> {
        let ticket = self.reads_asked.fetch_add(1, Ordering::SeqCst);
        let mut served = self.reading.lock().await;
        if *served > ticket {
            // A read that began meanwhile has ended: it saw all that was written before this call.
            return Ok(());
        }
        let asked = self.reads_asked.load(Ordering::SeqCst);
        let read = self.state().begin_read();
        let stamps = self.store.proxy_stamps().await?;
        let changed: Vec<String> = {
            let state = self.state();
            let changed = stamps.iter().filter(|(id, stamp)| !state.has_read(id, stamp));
            changed.map(|(id, _)| id.clone()).collect()
        };
        let rows = if changed.is_empty() { Vec::new() } else { self.store.proxies_of(&changed).await? };
        // After the rows, so that no row is of a control plane that is not known yet.
        let replicas = self.store.replicas().await?;
        self.warn_of_name_conflict(&replicas);
        {
            let mut state = self.state();
            state.apply_replicas(now_us(), Instant::now(), &replicas);
            let ids: HashSet<_> = stamps.iter().map(|(id, _)| id.as_str()).collect();
            state.retain_rows(now_us(), read, &ids);
        }
        self.apply_rows(read, rows);
        *served = asked;
        drop(served);
        self.notify_waiters();
        Ok(())
    }

    /// Warns of another control plane with the same name: it is taken for an earlier process, which is wrong if it stays alive.
    fn warn_of_name_conflict(&self, replicas: &[ReplicaRow]) {
        let namesake = |row: &&ReplicaRow| {
            *row.name == *self.replica && *row.instance != *self.instance && row.age < LEASE
        };
        if self.started.elapsed() < NAME_CONFLICT_AFTER || !replicas.iter().any(|row| namesake(&row)) {
            return;
        }
        if !self.name_conflict_logged.swap(true, Ordering::Relaxed) {
            tracing::error!(
                replica = &*self.replica,
                "another control plane has the same name, and its proxies are of unknown state here: give each its own \
                 --replica-name"
            );
        }
    }

    /// Reads the rows of these proxies, which another control plane wrote.
    async fn read_some(&self, ids: &[String]) -> Result<(), StoreError> {
        let read = self.state().begin_read();
        let rows = self.store.proxies_of(ids).await?;
        let unknown = {
            let mut state = self.state();
            let found: HashSet<_> = rows.iter().map(|row| row.id.as_str()).collect();
            for id in ids.iter().filter(|id| !found.contains(id.as_str())) {
                state.on_missing_row(now_us(), read, &id.as_str().into());
            }
            rows.iter().any(|row| !state.knows_replica(&row.instance))
        };
        if unknown {
            let replicas = self.store.replicas().await?;
            self.state().apply_replicas(now_us(), Instant::now(), &replicas);
        }
        self.apply_rows(read, rows);
        Ok(())
    }

    fn apply_rows(&self, read: u64, rows: Vec<ProxyRow>) {
        for row in rows {
            let stamp = stamp_of(&row);
            if self.state().has_read(&row.id, &stamp) {
                continue;
            }
            let Some(proxy) = parse_proxy(&row) else { continue };
            self.state().apply_row(now_us(), read, proxy, stamp);
        }
    }

    /// Takes in what the store had at the start.
    async fn load(&self) -> Result<(), StoreError> {
        let store = &self.store;
        if self.sharing == Sharing::Shared {
            store.save_replica(&self.instance, &self.replica).await?;
        }
        let rows = store.proxies().await?;
        let replicas = store.replicas().await?;
        self.state().apply_replicas(now_us(), Instant::now(), &replicas);
        let read = self.state().begin_read();
        self.apply_rows(read, rows);
        for row in store.rollouts(LOADED_ROLLOUTS).await? {
            if let Ok(record) = serde_json::from_str::<RolloutRecord>(&row.state) {
                self.state().restore_rollout(row.revision, row.fleet.as_str().into(), record);
            }
        }
        Ok(())
    }
}

/// Changes that are being written; those still here when it is dropped are to be written again.
struct Unwritten<'a> {
    board: &'a Board,
    dirty: Dirty,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        let Dirty { proxies, rollouts, forgotten, expired } = std::mem::take(&mut self.dirty);
        let mut state = self.board.state();
        state.unsaved.proxies.extend(proxies);
        state.unsaved.rollouts.extend(rollouts);
        state.unsaved.forgotten.extend(forgotten);
        state.unsaved.expired.extend(expired);
    }
}

fn stamp_of(row: &ProxyRow) -> Stamp {
    Stamp { replica: row.replica.clone(), instance: row.instance.clone(), updated_at_us: row.updated_at_us }
}

fn parse_proxy(row: &ProxyRow) -> Option<Proxy> {
    let parsed = serde_json::from_str::<Proxy>(&row.state);
    if let Err(error) = &parsed {
        // Another version may have written it. It is written anew when the proxy connects.
        tracing::debug!(proxy = row.id, %error, "a stored state of a proxy cannot be read");
    }
    parsed.ok()
}

fn proxy_row(proxy: &Proxy) -> Option<ProxyRow> {
    Some(ProxyRow {
        id: proxy.node.id.to_string(),
        fleet: proxy.node.fleet.to_string(),
        replica: proxy.replica.to_string(),
        instance: proxy.instance.to_string(),
        updated_at_us: now_us(),
        state: serde_json::to_string(proxy).ok()?,
    })
}

fn rollout_row(revision: u64, fleet: &str, record: &RolloutRecord) -> Option<RolloutRow> {
    Some(RolloutRow {
        id: format!("{revision}-{fleet}"),
        revision,
        fleet: fleet.to_owned(),
        state: serde_json::to_string(record).ok()?,
    })
}

/// How often what changed is told to the subscribers.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);

const WRITE_INTERVAL: Duration = Duration::from_millis(200);

/// The rows of proxies that serve another revision, of which so many are written with one write: a thousand a second, however many proxies
/// there are and however often they change.
const ADVANCED_ROWS: usize = 200;

/// How long a stream waits for its registration where no other control plane shares the database. Proxies wait 5 s for
/// their first answer.
const REGISTER_DEADLINE: Duration = Duration::from_secs(1);

/// How often what has a stream here is written even when nothing about it changed.
const HEARTBEAT_WRITE_INTERVAL: Duration = Duration::from_secs(10);

/// How often a control plane says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// For that to be taken in.
const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(2);

/// After how long without that being taken in the others take this control plane for dead, whatever became of the last
/// attempt: what the database has counts from before the answer that confirmed it.
const LEASE_LOST_AFTER: Duration = Duration::from_millis(3_500);

/// How often all rows are looked at, beside those that others tell of.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// After so long an earlier process of the same name is no longer alive.
const NAME_CONFLICT_AFTER: Duration = Duration::from_secs(10);

/// How long the streams may take to end.
const STREAMS_DEADLINE: Duration = Duration::from_secs(3);
const STREAMS_POLL: Duration = Duration::from_millis(10);

const LOADED_ROLLOUTS: u32 = 400;

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, SqliteConnection, raw_sql};

    use super::*;
    use crate::board::{EndedBy, Event, Node};
    use crate::store;

    fn node(id: &str) -> Node {
        Node {
            plugin_types: None,
            id: id.into(),
            fleet: "default".into(),
            labels: Default::default(),
            version: String::new(),
            address: String::new(),
        }
    }

    fn opened(id: &str) -> Event {
        Event::Opened { stream: 1, node: node(id), presented: None, link: Default::default() }
    }

    #[test]
    fn the_row_of_an_earlier_version_is_read() {
        let state = r#"{"node":{"id":"a","fleet":"default","labels":{},"version":"","address":"","plugin_types":null},
            "replica":"","instance":"","connected":false,"lost":false,"connected_at_us":0,"first_seen_us":0,"last_seen_us":0,
            "sent":0,"epoch":"","applied":7,"verified":false,"acked_at_us":null,"reported":null,"error":null,
            "rejections":[],"drifted":false,"traffic":null,"listeners":{},"purged":0,"warnings":[],"process":"",
            "replaced":[],"duplicate":null}"#;
        let row = ProxyRow { state: state.to_owned(), ..proxy_row(&Proxy::new(&node("a"))).unwrap() };
        let proxy = parse_proxy(&row).expect("a row without the fields of later versions");
        assert_eq!((proxy.applied, proxy.admin_address.as_str()), (7, ""));
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_when_the_database_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/signalbox.db", dir.path().display());
        let store = store::open(&url).await.unwrap();
        let board = Board::open(store.clone(), "here", Sharing::Alone).await.unwrap();
        let mut other = SqliteConnection::connect(&url).await.unwrap();
        raw_sql("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
        board.fold(opened("a"));
        assert!(matches!(board.write(true).await, Err(StoreError::Unavailable(_))));
        // Folding and reading go on.
        board.fold(opened("b"));
        assert_eq!(board.proxies().len(), 2);
        raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
        board.write(true).await.unwrap();
        let ids: Vec<_> = store.proxies().await.unwrap().into_iter().map(|row| row.id).collect();
        assert_eq!(ids, ["a", "b"]);
        assert!(board.state().unsaved.is_empty());
    }

    #[tokio::test]
    async fn what_is_known_is_written_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&format!("sqlite://{}/signalbox.db", dir.path().display())).await.unwrap();
        let board = Board::open(store.clone(), "here", Sharing::Alone).await.unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(board.clone().run(shutdown.clone()));
        board.fold(opened("a"));
        shutdown.cancel();
        board.fold(Event::Closed { stream: 1, id: "a".into(), by: EndedBy::ControlPlane });
        running.await.unwrap();
        assert_eq!(store.proxies().await.unwrap().len(), 1);
    }
}
