//! The last purges of cached responses, in memory, kept in step with the store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use signalbox_config::Purge;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::now_us;
use crate::store::{MAX_PURGES, PurgeRow, Store, StoreError};

/// The last purges, for all who read them.
pub struct StoredPurges {
    store: Arc<dyn Store>,
    log: watch::Sender<Arc<PurgeLog>>,
    /// The greatest number that was seen.
    highest: AtomicU64,
}

/// The last purges, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PurgeLog(VecDeque<PurgeRow>);

/// The purges that a proxy has yet to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// None.
    Nothing,
    /// Those up to this number, which are perhaps not all.
    Some(Vec<Arc<str>>, u64),
    /// Everything is to be removed, for purges up to this number, which are perhaps not known any more.
    All(u64),
}

/// How soon a purge is known here that another control plane took, when no hint comes.
const REFRESH: Duration = Duration::from_secs(1);

/// Microseconds.
const DAY_US: u64 = 24 * 3600 * 1_000_000;

/// The most purges that a proxy gets at once.
const BATCH: usize = 100;

impl StoredPurges {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, log: watch::Sender::default(), highest: AtomicU64::new(0) }
    }

    /// The purges as they are, and as they change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<PurgeLog>> {
        self.log.subscribe()
    }

    /// Notes a number that a proxy has carried out. One of the far future is ignored.
    pub(crate) fn note(&self, number: u64) {
        let latest = u64::try_from(now_us()).unwrap_or(0).saturating_add(DAY_US);
        if number <= latest {
            self.highest.fetch_max(number, Ordering::Relaxed);
        }
    }

    /// Stores a purge, for all proxies. Returns its number.
    pub async fn add(&self, purge: &Purge, created_by: &str) -> Result<u64, StoreError> {
        let text = serde_json::to_string(purge).map_err(|error| StoreError::Broken(error.to_string()))?;
        // Numbers never fall below one that a proxy has carried out, also if the database has lost it.
        let highest = i64::try_from(self.highest.load(Ordering::Relaxed)).unwrap_or(0);
        let number = self.store.add_purge(now_us().max(highest + 1), &text, created_by).await?;
        // It is stored. If this fails, it is read a moment later.
        if let Err(error) = self.refresh().await {
            tracing::debug!(%error, "a new purge was not read");
        }
        Ok(number)
    }

    /// Follows what other control planes store, until `shutdown`.
    pub(super) async fn follow(&self, shutdown: &CancellationToken) {
        let hint = self.store.purge_hint();
        loop {
            // Made before the store is read: what is hinted at meanwhile is not lost.
            let hinted = hint.notified();
            if let Err(error) = self.refresh().await {
                tracing::debug!(%error, "the purges were not read");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = hinted => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        let known = self.log.borrow().last();
        let last = self.store.last_purge().await?;
        self.note(last);
        if last == known {
            return Ok(());
        }
        // A restored database may have fewer.
        let after = if last < known { 0 } else { known };
        let rows = self.store.purges_after(after).await?;
        self.log.send_if_modified(|log| {
            let next = if last < known { PurgeLog::default().with(rows) } else { log.with(rows) };
            let is_new = next != **log;
            if is_new {
                *log = Arc::new(next);
            }
            is_new
        });
        Ok(())
    }
}

impl PurgeLog {
    /// The number of the last purge; 0: there is none.
    pub fn last(&self) -> u64 {
        self.0.back().map_or(0, |row| row.number)
    }

    /// The log with further purges, of which it may have some already.
    fn with(&self, rows: Vec<PurgeRow>) -> Self {
        let last = self.last();
        let mut log = self.0.clone();
        log.extend(rows.into_iter().filter(|row| row.number > last));
        let surplus = log.len().saturating_sub(MAX_PURGES);
        log.drain(..surplus);
        Self(log)
    }

    /// The purges for a proxy that has carried out those up to `carried_out`; 0: none since it was started.
    pub fn due(&self, carried_out: u64) -> Due {
        let last = self.last();
        if carried_out >= last {
            return Due::Nothing;
        }
        let first = self.0.front().map_or(0, |row| row.number);
        // There may have been others before the first one.
        if self.0.len() == MAX_PURGES && carried_out < first {
            return Due::All(last);
        }
        let mut number = carried_out;
        let purges = self.0.iter().filter(|row| row.number > carried_out).take(BATCH);
        let purges = purges.map(|row| {
            number = row.number;
            Arc::clone(&row.purge)
        });
        let purges = purges.collect();
        Due::Some(purges, number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(numbers: impl IntoIterator<Item = u64>) -> Vec<PurgeRow> {
        let row = |number: u64| PurgeRow { number, purge: number.to_string().into() };
        numbers.into_iter().map(row).collect()
    }

    fn some(numbers: impl IntoIterator<Item = u64>, last: u64) -> Due {
        Due::Some(numbers.into_iter().map(|number| number.to_string().into()).collect(), last)
    }

    #[test]
    fn a_proxy_gets_what_it_has_not_carried_out() {
        let log = PurgeLog::default();
        assert_eq!(log.due(0), Due::Nothing);
        let log = log.with(rows([5, 7, 9])).with(rows([9, 12]));
        assert_eq!(log.due(0), some([5, 7, 9, 12], 12), "its caches may be older than the purges");
        assert_eq!(log.due(3), some([5, 7, 9, 12], 12));
        assert_eq!(log.due(7), some([9, 12], 12));
        assert_eq!(log.due(8), some([9, 12], 12), "a purge that a restored database lost");
        assert_eq!(log.due(12), Due::Nothing);
        assert_eq!(log.due(20), Due::Nothing, "another control plane knows more");
    }

    #[test]
    fn a_proxy_that_was_away_for_long_empties_its_caches() {
        let log = PurgeLog::default().with(rows(1..=MAX_PURGES as u64 + 10));
        assert_eq!(log.0.len(), MAX_PURGES);
        assert_eq!(log.due(5), Due::All(MAX_PURGES as u64 + 10));
        assert_eq!(
            log.due(10),
            Due::All(MAX_PURGES as u64 + 10),
            "number 11 is there, but who knows what came after 10"
        );
        assert_eq!(log.due(11), some(12..112, 111), "the rest comes when these are carried out");
    }
}
