//! Revisions as a fleet sees them, and what differs between two of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use signalbox_config::{Kind, ResourceKey};
use signalbox_process::ErrorChain;
use signalbox_rollout::Scope;
use signalbox_rollout::machine::Revision;

use super::service::Rollouts;
use crate::compute::compute;
use crate::publish::Published;
use crate::store::StoreError;

/// The most scopes that are judged by themselves. The requests of further ones only count in the fleet's.
const MAX_SCOPES: usize = 1000;

/// How many references are followed from a resource that differs: a plugin that an upstream's route uses is one step away.
const MAX_STEPS: usize = 3;

/// The routes and upstreams of a fleet that differ between two states, and those that refer to something that differs.
fn changed_scopes(stable: &Published, candidate: &Published, fleet: &str) -> BTreeSet<Scope> {
    let is_visible = |key: &ResourceKey| {
        let of = |state: &Published| state.snapshot.find(key).is_some_and(|found| found.visible_to(fleet));
        of(stable) || of(candidate)
    };
    let mut scopes = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut next: Vec<ResourceKey> = stable.snapshot.differences(&candidate.snapshot);
    for _ in 0..=MAX_STEPS {
        let mut referrers = Vec::new();
        for key in next {
            if scopes.len() >= MAX_SCOPES || !is_visible(&key) || !seen.insert(key.clone()) {
                continue;
            }
            let name = || key.name.as_str().into();
            if key.kind == Kind::Route {
                scopes.insert(Scope::Route(name()));
            } else if key.kind == Kind::Upstream {
                scopes.insert(Scope::Upstream(name()));
            }
            referrers.extend(candidate.relations.referrers(&key));
        }
        next = referrers;
    }
    scopes
}

impl Rollouts {
    /// The scopes that differ between two revisions for a fleet; `None`: they are not known yet. Kept, because the answer is asked for once
    /// a second.
    pub(super) async fn scopes_between(
        &self,
        fleet: &Arc<str>,
        stable: u64,
        candidate: u64,
    ) -> Option<BTreeSet<Scope>> {
        let epoch = Arc::clone(&self.publisher.current().snapshot.id().epoch);
        let key = (epoch, Arc::clone(fleet), stable, candidate);
        if let Some(scopes) = self.known_scopes(&key) {
            return Some(scopes);
        }
        let states = async {
            let before = self.publisher.state_of(stable).await?;
            Ok::<_, StoreError>((before, self.publisher.state_of(candidate).await?))
        };
        match states.await {
            Ok((before, after)) => {
                let scopes = compute(after.snapshot.len(), || changed_scopes(&before, &after, fleet));
                self.keep_scopes(key, &scopes);
                Some(scopes)
            }
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(%error, "the routes that a rollout changes are not known yet");
                None
            }
        }
    }

    /// A revision as a fleet sees it.
    pub(super) async fn revision(&self, fleet: &str, number: u64) -> Result<Revision, StoreError> {
        let state = self.publisher.state_of(number).await?;
        Ok(revision_in(&state, fleet))
    }
}

/// The revision of a state as a fleet sees it.
pub(super) fn revision_in(state: &Published, fleet: &str) -> Revision {
    let view = state.view(fleet);
    Revision { number: view.id().number, content: view.digest().to_string().into() }
}
