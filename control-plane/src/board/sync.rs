//! Between the board and the store, and from the board to its subscribers: off the path of the streams.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::fold::{Dirty, Proxy, State, Way};
use super::{Board, BoardEvent, EVENT_INTERVAL, Sharing, now_us};
use crate::store::{ProxyRow, RolloutRow, Store, StoreError};

impl Board {
    /// Writes what changed to the store and tells the subscribers, until `shutdown`; then writes the rest.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let tell = self.tell_changes(&shutdown);
        let write = self.write_changes(&shutdown);
        let follow = self.follow_others(&shutdown);
        tokio::join!(tell, write, follow);
    }

    async fn tell_changes(&self, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
            }
            self.tell();
            tokio::time::sleep(EVENT_INTERVAL).await;
        }
    }

    fn tell(&self) {
        let mut state = self.state();
        let untold = std::mem::take(&mut state.untold);
        if self.events.receiver_count() == 0 {
            return;
        }
        let proxies: Vec<_> = untold.proxies.iter().filter_map(|id| state.proxy(id)).collect();
        let rollouts: Vec<_> =
            untold.rollouts.iter().filter_map(|(number, fleet)| state.way(*number, fleet)).collect();
        drop(state);
        let events = (untold.forgotten.into_iter().map(BoardEvent::Forgotten))
            .chain(proxies.into_iter().map(|proxy| BoardEvent::Proxy(Arc::new(proxy))))
            .chain(rollouts.into_iter().map(|rollout| BoardEvent::Rollout(Arc::new(rollout))));
        for event in events {
            // An error says that the last subscriber left meanwhile.
            let _ = self.events.send(event);
        }
    }

    async fn write_changes(&self, shutdown: &CancellationToken) {
        let mut interval = tokio::time::interval(WRITE_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heartbeat = Instant::now();
        let mut away = false;
        loop {
            let last = tokio::select! {
                () = shutdown.cancelled() => true,
                _ = interval.tick() => false,
            };
            if heartbeat.elapsed() >= HEARTBEAT {
                heartbeat = Instant::now();
                let mut state = self.state();
                // Other control planes take for gone what is not written anew.
                let alive = state.take_alive(self.sharing == Sharing::Shared);
                state.unsaved.proxies.extend(alive);
            }
            match self.write().await {
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

    /// Writes what changed. After an error it is still to be written.
    async fn write(&self) -> Result<(), StoreError> {
        let (unsaved, proxies, rollouts) = {
            let mut state = self.state();
            if state.unsaved.is_empty() {
                return Ok(());
            }
            let unsaved = std::mem::take(&mut state.unsaved);
            let proxies: Vec<_> =
                unsaved.proxies.iter().filter_map(|id| state.stored_proxy(id).cloned()).collect();
            let rollouts: Vec<_> = unsaved
                .rollouts
                .iter()
                .filter_map(|(number, fleet)| {
                    Some((*number, fleet.clone(), state.stored_way(*number, fleet)?))
                })
                .collect();
            (unsaved, proxies, rollouts)
        };
        let proxies: Vec<_> = proxies.iter().filter_map(proxy_row).collect();
        let rollouts: Vec<_> =
            rollouts.iter().filter_map(|(number, fleet, way)| rollout_row(*number, fleet, way)).collect();
        let written = async {
            if !proxies.is_empty() {
                self.store.save_proxies(&proxies).await?;
            }
            if !rollouts.is_empty() {
                self.store.save_rollouts(&rollouts).await?;
            }
            Ok(())
        };
        let written = written.await;
        if written.is_err() {
            let Dirty { proxies, rollouts, .. } = unsaved;
            let mut state = self.state();
            state.unsaved.proxies.extend(proxies);
            state.unsaved.rollouts.extend(rollouts);
        }
        written
    }

    async fn follow_others(&self, shutdown: &CancellationToken) {
        let mut interval = tokio::time::interval(FOLLOW_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = interval.tick() => {}
            }
            let rows = match self.sharing {
                Sharing::Alone => None,
                Sharing::Shared => match self.store.proxies().await {
                    Ok(rows) => Some(rows),
                    // `write_changes` says so.
                    Err(_) => continue,
                },
            };
            let mut state = self.state();
            if let Some(rows) = rows {
                let ids: HashSet<_> = rows.iter().map(|row| row.id.as_str()).collect();
                state.keep_rows(now_us(), &ids);
                for row in rows.iter().filter(|row| *row.replica != *self.replica) {
                    if let Some(proxy) = parse_proxy(row) {
                        state.read_row(now_us(), proxy, row.updated_at_us);
                    }
                }
            }
            state.expire(now_us(), PATIENCE.as_micros() as i64);
            let progress = std::mem::take(&mut state.progress);
            let changed = !state.untold.is_empty();
            drop(state);
            if progress {
                self.progress.send_modify(|count| *count += 1);
            }
            if changed {
                self.changed.notify_one();
            }
        }
    }
}

/// What the store had at the start.
pub(super) async fn load(store: &dyn Store, state: &mut State) -> Result<(), StoreError> {
    let now_us = now_us();
    for row in store.proxies().await? {
        let Some(mut proxy) = parse_proxy(&row) else { continue };
        let recent = now_us.saturating_sub(row.updated_at_us) < PATIENCE.as_micros() as i64;
        // It has a stream to another control plane that is alive, as far as one can tell yet, or is about to come back to this one: who
        // waits for a revision waits for it.
        proxy.connected &= recent;
        state.read_row(now_us, proxy, row.updated_at_us);
    }
    for row in store.rollouts(LOADED_ROLLOUTS).await? {
        if let Ok(way) = serde_json::from_str::<Way>(&row.state) {
            state.read_way(row.revision, row.fleet.as_str().into(), way);
        }
    }
    Ok(())
}

fn parse_proxy(row: &ProxyRow) -> Option<Proxy> {
    let parsed = serde_json::from_str::<Proxy>(&row.state);
    if let Err(error) = &parsed {
        // Of another version, perhaps. The proxy writes it anew when it connects.
        tracing::debug!(proxy = row.id, %error, "a stored state of a proxy cannot be read");
    }
    parsed.ok()
}

fn proxy_row(proxy: &Proxy) -> Option<ProxyRow> {
    Some(ProxyRow {
        id: proxy.node.id.to_string(),
        fleet: proxy.node.fleet.to_string(),
        replica: proxy.replica.to_string(),
        updated_at_us: now_us(),
        state: serde_json::to_string(proxy).ok()?,
    })
}

fn rollout_row(revision: u64, fleet: &str, way: &Way) -> Option<RolloutRow> {
    Some(RolloutRow {
        id: format!("{revision}-{fleet}"),
        revision,
        fleet: fleet.to_owned(),
        state: serde_json::to_string(way).ok()?,
    })
}

const WRITE_INTERVAL: Duration = Duration::from_millis(200);

/// How often what has a stream here is written even when nothing about it changed.
const HEARTBEAT: Duration = Duration::from_secs(10);

const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// After how long without a word from its control plane a proxy is taken for disconnected: three heartbeats.
const PATIENCE: Duration = Duration::from_secs(30);

const LOADED_ROLLOUTS: u32 = 400;

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, SqliteConnection, raw_sql};

    use super::*;
    use crate::board::{Event, Node};
    use crate::store;

    fn opened(id: &str) -> Event {
        let node = Node {
            id: id.into(),
            fleet: "default".into(),
            labels: Default::default(),
            version: String::new(),
            address: String::new(),
        };
        Event::Opened { stream: 1, node, presented: None }
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
        assert!(matches!(board.write().await, Err(StoreError::Unavailable(_))));
        // Folding and reading go on.
        board.fold(opened("b"));
        assert_eq!(board.proxies().len(), 2);
        raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
        board.write().await.unwrap();
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
        running.await.unwrap();
        assert_eq!(store.proxies().await.unwrap().len(), 1);
    }
}
