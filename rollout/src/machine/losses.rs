//! The proxies that are lost, and what follows for the rollout.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Machine;
use super::event::Context;
use super::reason::{Code, Reason};
use super::state::{Phase, Rollout};
use crate::members::{Members, Proxy};
use crate::reading::{Counts, GateKind, Reading, Scope, Verdict};

/// More canaries than the policy allows must be lost this many times as often as the other proxies to fail the rollout.
const TOLERATED_RATIO: u64 = 2;

impl Machine<'_> {
    /// Counts the proxies that are lost since the look before, and notes the canaries that have returned.
    pub(super) fn count_losses(&mut self, rollout: &mut Rollout) {
        let silent = silent(self.context.proxies, &rollout.members);
        let is_canary = |id: &&Arc<str>| rollout.members.contains(*id);
        let returned: Vec<_> = rollout.lost.difference(&silent).filter(is_canary).cloned().collect();
        let (canaries, rest): (Vec<_>, Vec<_>) = silent.difference(&rollout.lost).partition(is_canary);
        let count = |lost: Vec<_>| u32::try_from(lost.len()).unwrap_or(u32::MAX);
        rollout.losses = rollout.losses.saturating_add(count(canaries));
        rollout.rest_losses = rollout.rest_losses.saturating_add(count(rest));
        rollout.lost = silent;
        for id in returned {
            self.note(rollout, Reason::new(Code::MemberReturned, format!("{id} is there again")));
        }
    }

    /// Lets other proxies take the part of lost canaries, and of proxies that could not take the revision when the step began: after a
    /// failover of the database, none is known to serve the stable revision until it has acknowledged it anew.
    pub(super) fn fill_step(&mut self, rollout: &mut Rollout) {
        let Phase::Step(index) = rollout.phase else { return };
        if rollout.has_whole_fleet() {
            return;
        }
        let Some(step) = rollout.steps.get(index) else { return };
        let members = rollout.choose(&step.size, self.context.proxies);
        if members.len() > rollout.members.len() {
            let new: Vec<&str> = members.difference(&rollout.members).map(|id| &**id).collect();
            let new = new.join(", ");
            let (code, text) = if rollout.members.is_disjoint(&rollout.lost) {
                (Code::MemberJoined, format!("{new} can take the revision now"))
            } else {
                (Code::MemberReplaced, format!("{new} took the part of a canary that is lost"))
            };
            rollout.members = Arc::new(members);
            self.begin_round(rollout);
            self.note(rollout, Reason::new(code, text));
        }
    }
}

impl Rollout {
    /// The reading of the gate [`Lost`](GateKind::Lost), which the machine judges by itself; `None` if the whole fleet has the
    /// revision.
    ///
    /// It fails if more canaries were lost than the policy allows, and more than twice as often as the other proxies. It is inconclusive
    /// if no canary is left, or if all proxies of a control plane are silent.
    pub fn read_lost(&self, context: &Context<'_>) -> Option<Reading> {
        if self.has_whole_fleet() {
            return None;
        }
        let rest = context.proxies.iter().filter(|proxy| !self.members.contains(proxy.id)).count();
        let canary = Counts { requests: self.members.len() as u64, failures: self.losses.into() };
        let rest = Counts { requests: rest as u64, failures: self.rest_losses.into() };
        let most = context.policy.gates.lost;
        let is_worse = rest.requests == 0
            || canary.failures.saturating_mul(rest.requests)
                > rest.failures.saturating_mul(canary.requests).saturating_mul(TOLERATED_RATIO);
        let too_many = self.losses > most;
        let verdict = if is_partitioned(self, context.proxies) {
            Verdict::Inconclusive
        } else if too_many && is_worse {
            Verdict::Failing
        } else if too_many || self.members.is_subset(&self.lost) {
            Verdict::Inconclusive
        } else {
            Verdict::Passing
        };
        Some(Reading {
            gate: GateKind::Lost,
            scope: Scope::Fleet,
            verdict,
            evidence: f64::from(self.losses),
            limit: f64::from(most) + 1.0,
            canary,
            rest,
        })
    }
}

/// The proxies that are silent, and the members that nothing is known of.
pub(super) fn silent(proxies: &[Proxy<'_>], members: &Members) -> Members {
    let (silent, present): (Vec<&Proxy<'_>>, Vec<_>) = proxies.iter().partition(|proxy| proxy.silent);
    let present: Members = present.into_iter().map(|proxy| Arc::clone(proxy.id)).collect();
    let unknown = members.difference(&present).cloned();
    silent.into_iter().map(|proxy| Arc::clone(proxy.id)).chain(unknown).collect()
}

/// True if all proxies of a control plane are silent, so that the cause is more likely the control plane or its network than the candidate. If
/// only canaries are silent, the cause is more likely the candidate.
pub(super) fn is_partitioned(rollout: &Rollout, proxies: &[Proxy<'_>]) -> bool {
    if proxies.iter().all(|proxy| !proxy.silent) {
        return false;
    }
    let mut replicas: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for proxy in proxies {
        let (all_silent, all_canaries) = replicas.entry(proxy.replica).or_insert((true, true));
        *all_silent &= proxy.silent;
        *all_canaries &= rollout.members.contains(proxy.id);
    }
    let whole_fleet = rollout.has_whole_fleet();
    replicas.values().any(|(all_silent, all_canaries)| *all_silent && (whole_fleet || !all_canaries))
}
