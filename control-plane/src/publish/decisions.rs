//! New decisions about fleets, which are published together with the states of the revisions that they refer to.

use std::collections::HashSet;
use std::sync::Arc;

use imbl::OrdMap;
use signalbox_config::{Change, Relations, Resource, RevisionId};
use signalbox_rollout::FleetTarget;

use super::published::{Assigned, Published};
use crate::compute::compute;
use crate::metrics::Metrics;
use crate::store::{FleetTargets, Store, StoreError};

/// New decisions that are to be published as soon as the states of their revisions are known.
pub(super) struct Pending {
    decisions: FleetTargets,
    states: OrdMap<u64, Arc<Published>>,
}

impl Pending {
    /// Loads what the new decisions refer to before `current`.
    pub(super) async fn load(
        decisions: FleetTargets,
        current: &Arc<Published>,
        store: &Arc<dyn Store>,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let mut pending = Self { decisions, states: current.assigned.states.clone() };
        pending.keep(current);
        let numbers: Vec<u64> = pending.decisions.targets.iter().flat_map(FleetTarget::revisions).collect();
        let last = current.snapshot.id().number;
        for number in numbers {
            if number < last && !pending.states.contains_key(&number) {
                let state = metrics.store_call("set_at", earlier(number, current, store)).await?;
                pending.states.insert(number, Arc::new(state));
            }
        }
        Ok(pending)
    }

    /// The store's version of the decisions.
    pub(super) fn version(&self) -> u64 {
        self.decisions.version
    }

    /// Keeps a state that a decision refers to.
    pub(super) fn keep(&mut self, state: &Published) {
        let number = state.snapshot.id().number;
        let needed = self.decisions.targets.iter().any(|target| target.revisions().any(|one| one == number));
        if needed && !self.states.contains_key(&number) {
            // Without this, each state would keep those before it.
            let state = Published { assigned: Assigned::default(), ..state.clone() };
            self.states.insert(number, Arc::new(state));
        }
    }

    /// Puts into `next` the decisions whose revisions are known. The others stay as they are; `true`: there are none.
    pub(super) fn apply(&self, next: &mut Published) -> bool {
        let mut targets = next.assigned.targets.clone();
        let mut complete = true;
        for target in &self.decisions.targets {
            if target.revisions().all(|revision| self.states.contains_key(&revision)) {
                targets.insert(target.fleet.clone(), Arc::new(target.clone()));
            } else {
                complete = false;
            }
        }
        let states = self.states.clone().union(std::mem::take(&mut next.assigned.states));
        next.assigned.states = states;
        next.assigned = std::mem::take(&mut next.assigned).with_targets(targets);
        if complete {
            next.assigned.version = self.decisions.version;
        }
        complete
    }
}

/// Reads the state of a revision before the current one, and shares what both have.
pub(super) async fn earlier(
    number: u64,
    current: &Arc<Published>,
    store: &Arc<dyn Store>,
) -> Result<Published, StoreError> {
    let missing =
        || StoreError::Broken(format!("its log lacks revision {number}, which a fleet is to serve"));
    let set = store.set_at(number).await?.ok_or_else(missing)?;
    let committed_at_us = match number {
        0 => 0,
        _ => {
            let summaries = store.revisions(Some(number + 1), 1).await?;
            let summary = summaries.into_iter().next().filter(|summary| summary.number == number);
            summary.ok_or_else(missing)?.committed_at_us
        }
    };
    let current = current.clone();
    let size = set.resources.len().max(current.snapshot.len());
    Ok(compute(size, move || {
        let mut state =
            Published { assigned: Assigned::default(), unreadable: OrdMap::new(), ..(*current).clone() };
        let mut changes = Vec::new();
        let mut kept = HashSet::with_capacity(set.resources.len());
        for stored in &set.resources {
            kept.insert(stored.key.clone());
            let same = current.snapshot.find(&stored.key).is_some_and(|known| *known.spec() == stored.spec);
            if same {
                continue;
            }
            match Resource::from_stored(stored.key.kind, &stored.spec, &current.types) {
                Ok(resource) => changes.push(Change::Put(Arc::new(resource))),
                Err(errors) => {
                    // The current version is another one.
                    kept.remove(&stored.key);
                    state.unreadable.insert(stored.key.clone(), errors.into());
                }
            }
        }
        let gone = current.snapshot.iter().filter(|resource| !kept.contains(resource.key()));
        changes.extend(gone.map(|resource| Change::Delete(resource.key().clone())));
        let id = RevisionId { epoch: current.snapshot.id().epoch.clone(), number };
        state.replace_bodies(&current.snapshot, &changes);
        state.snapshot = current.snapshot.with(id, committed_at_us, changes);
        state.relations = Relations::of(&state.snapshot);
        state
    }))
}
