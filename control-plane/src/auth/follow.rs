//! Keeps the tokens and sessions in step with the store and the files of tokens.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::credentials::{Credentials, check_against_stored};
use crate::clock::now_us;
use crate::store::StoreError;

/// How soon a token that another replica made or revoked is known here, when no hint comes.
const REFRESH: Duration = Duration::from_secs(1);

/// How often the files of tokens are looked at.
const REREAD: Duration = Duration::from_millis(400);

/// How far the stored time of a session's last use may be behind: the database is not written for each request.
const SAVE_AFTER: Duration = Duration::from_secs(60);

/// How often expired sessions are deleted.
const SWEEP: Duration = Duration::from_secs(60);

impl Credentials {
    /// Follows what other replicas do and what the files of tokens have, until `shutdown`. While the database is
    /// away, what was known stays.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.follow_store() => {}
            () = self.follow_files() => {}
        }
        // The uses of the last minute.
        if tokio::time::timeout(REFRESH, self.save_uses(Duration::ZERO)).await.is_err() {
            tracing::debug!("the last uses of sessions were not stored in time");
        }
    }

    async fn follow_store(&self) {
        let hint = self.store.access_hint();
        let mut sweep_at = tokio::time::Instant::now();
        loop {
            // Made before the store is read: what is hinted at meanwhile is not lost.
            let hinted = hint.notified();
            if let Err(error) = self.synchronize(&mut sweep_at).await {
                tracing::debug!(%error, "tokens and sessions were not refreshed");
            }
            tokio::select! {
                () = hinted => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    }

    async fn synchronize(&self, sweep_at: &mut tokio::time::Instant) -> Result<(), StoreError> {
        self.delete_ended().await?;
        self.refresh().await?;
        self.save_uses(SAVE_AFTER).await?;
        if tokio::time::Instant::now() >= *sweep_at {
            *sweep_at = tokio::time::Instant::now() + SWEEP;
            let now = now_us();
            let state = self.state.load_full();
            let over = state.sessions.values().filter(|session| session.is_over(now));
            let ids: Vec<String> = over.map(|session| session.row().id.clone()).collect();
            if !ids.is_empty() {
                self.end_sessions(ids).await?;
            }
        }
        Ok(())
    }

    /// Stores the last uses of sessions of which the database has one that is older by more than `behind`.
    async fn save_uses(&self, behind: Duration) -> Result<(), StoreError> {
        let state = self.state.load_full();
        let uses: Vec<(String, i64)> = state
            .sessions
            .values()
            .filter_map(|session| Some((session.row().id.clone(), session.unsaved_us(behind)?)))
            .collect();
        if uses.is_empty() {
            return Ok(());
        }
        self.metrics.store_call("touch_sessions", self.store.touch_sessions(&uses)).await?;
        for session in state.sessions.values() {
            if let Some((_, at_us)) = uses.iter().find(|(id, _)| *id == session.row().id) {
                session.set_saved(*at_us);
            }
        }
        Ok(())
    }

    /// Takes over what the files of tokens have. Only what was read twice is believed: a file may be looked at while
    /// it is written.
    async fn follow_files(&self) {
        if !self.flags.has_files() {
            return std::future::pending().await;
        }
        let mut last = Ok(self.given());
        let mut complained_of = String::new();
        loop {
            tokio::time::sleep(REREAD).await;
            let flags = self.flags.clone();
            let read = tokio::task::spawn_blocking(move || flags.read()).await;
            let read = read.unwrap_or_else(|error| Err(error.to_string()));
            if read != last {
                last = read;
                continue;
            }
            let state = self.state.load_full();
            let checked = match &last {
                Ok(given) if *given == state.given => {
                    if !std::mem::take(&mut complained_of).is_empty() {
                        tracing::info!(
                            tokens = given.len(),
                            "the tokens that are given can be read again, and are those in force"
                        );
                    }
                    continue;
                }
                Ok(given) => check_against_stored(given, &state.stored).map(|()| given.clone()),
                Err(reason) => Err(reason.clone()),
            };
            match checked {
                Ok(given) => {
                    tracing::info!(tokens = given.len(), "the tokens that are given have changed");
                    self.replace(|state| state.given = given);
                    complained_of.clear();
                }
                Err(reason) if reason == complained_of => {}
                Err(reason) => {
                    tracing::error!(
                        reason,
                        "the tokens that are given cannot be used; those of before stay in force"
                    );
                    complained_of = reason;
                }
            }
        }
    }
}
