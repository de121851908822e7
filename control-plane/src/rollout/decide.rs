//! Puts decisions in force.

use super::service::Rollouts;
use crate::store::{Decided, Decisions, StoreError, Term};

/// Ends a turn early.
pub(super) enum Stopped {
    /// The store did not answer, or not as it should.
    Store(StoreError),
    /// Somebody made a decision about the fleet meanwhile: its state is read again.
    Outdated,
    /// Another control plane leads.
    NotLeader,
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Rollouts {
    /// Puts decisions in force, all or none.
    pub(super) async fn decide(&self, term: Term, decisions: &Decisions) -> Result<(), Stopped> {
        let decided = self.store.decide(self.board.instance(), term, decisions);
        match self.metrics.store_call("decide", decided).await? {
            Decided::Done => Ok(()),
            Decided::NotLeader => Err(Stopped::NotLeader),
            Decided::Outdated => Err(Stopped::Outdated),
        }
    }
}
