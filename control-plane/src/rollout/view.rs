//! Rollouts as the API shows them.

use signalbox_config::StepSize;
use signalbox_rollout::machine::{self, Mode, Phase, Reason, StepProgress, StepState};
use signalbox_rollout::{Counts, GateKind, Reading, Scope, Verdict};

use super::run::{Revert, Run, RunEvent};
use crate::board::{
    Rollout, RolloutBake, RolloutCounts, RolloutEvent, RolloutGate, RolloutGateCounts, RolloutReason,
    RolloutRevert, RolloutState, RolloutStep, RolloutSuccessor,
};
use crate::clock::rfc3339;
use crate::store::RevisionSummary;

/// A rollout as the API shows it.
pub(super) fn view(run: &Run, counts: RolloutCounts) -> Rollout {
    let rollout = &run.rollout;
    Rollout {
        id: rollout.id.to_string(),
        revision: rollout.revision.number,
        base_revision: rollout.revision.number.saturating_sub(1),
        fleet: run.fleet.to_string(),
        stable_revision: run.stable,
        generation: rollout.generation,
        state: state(rollout.state()),
        strategy: strategy(rollout.mode).to_owned(),
        step: step(rollout),
        steps: steps(run),
        bake: Some(RolloutBake { healthy_ms: rollout.baked_ms, needed_ms: rollout.bake_ms }),
        gates: run.readings.iter().map(gate).collect(),
        counts: RolloutCounts { lost: rollout.losses, ..counts },
        proxies_url: proxies_url(&rollout.id),
        started_at: rfc3339(run.started_at_us),
        finished_at: run.finished_at_us.map(rfc3339),
        propagation_ms: run.propagation,
        reason: rollout.reason.as_ref().map(reason),
        superseded_by: rollout.superseded_by.as_ref().map(|successor| RolloutSuccessor {
            id: successor.rollout.to_string(),
            same_content: successor.same_content,
        }),
        revert: run.revert.as_ref().map(revert),
        events: run.events.iter().map(event).collect(),
        fault: None,
    }
}

/// The present step of a rollout, from 0; the number of steps from the bake time on.
pub(super) fn step(rollout: &machine::Rollout) -> u32 {
    let step = match rollout.phase {
        Phase::Waiting => 0,
        Phase::Step(index) => index,
        Phase::Baking => rollout.steps.len(),
        Phase::Ended(_) => {
            let is_begun = |step: &StepProgress| step.state != StepState::Pending;
            rollout.steps.iter().filter(|step| is_begun(step)).count().saturating_sub(1)
        }
    };
    u32::try_from(step).unwrap_or(u32::MAX)
}

/// A rollout about which the leader has decided nothing: it has not seen the revision yet, or a `newer` one came at once.
pub(super) fn undecided(
    id: &str,
    fleet: &str,
    stable: u64,
    revision: &RevisionSummary,
    newer: Option<RolloutSuccessor>,
    counts: RolloutCounts,
) -> Rollout {
    let (code, text) = match &newer {
        Some(newer) => ("newer_revision", format!("Rollout {} took its place", newer.id)),
        None => ("written", "The revision was written; nothing has been decided about it yet".to_owned()),
    };
    Rollout {
        id: id.to_owned(),
        revision: revision.number,
        base_revision: revision.number.saturating_sub(1),
        fleet: fleet.to_owned(),
        stable_revision: stable,
        generation: 0,
        state: if newer.is_some() { RolloutState::Superseded } else { RolloutState::Waiting },
        strategy: strategy(Mode::Steps).to_owned(),
        step: 0,
        steps: Vec::new(),
        bake: None,
        gates: Vec::new(),
        counts,
        proxies_url: proxies_url(id),
        started_at: rfc3339(revision.committed_at_us),
        finished_at: None,
        propagation_ms: None,
        reason: Some(RolloutReason { code: code.to_owned(), text, resource: None, route: None }),
        superseded_by: newer,
        revert: None,
        events: Vec::new(),
        fault: None,
    }
}

/// The path at which the proxies of a rollout's fleet are listed.
fn proxies_url(id: &str) -> String {
    format!("/api/v1/rollouts/{id}/proxies")
}

fn revert(revert: &Revert) -> RolloutRevert {
    let (state, reason) = match revert {
        Revert::Pending => ("pending", None),
        Revert::Done => ("done", None),
        Revert::Refused(reason) => ("refused", Some(reason.to_string())),
    };
    RolloutRevert { state: state.to_owned(), reason }
}

/// The name of a strategy.
pub(super) fn strategy(mode: Mode) -> &'static str {
    match mode {
        Mode::Steps => "progressive",
        Mode::Emergency => "emergency",
        Mode::BreakGlass => "break-glass",
    }
}

pub(super) fn state(state: machine::RolloutState) -> RolloutState {
    match state {
        machine::RolloutState::Waiting => RolloutState::Waiting,
        machine::RolloutState::Running => RolloutState::Running,
        machine::RolloutState::Paused => RolloutState::Paused,
        machine::RolloutState::Held => RolloutState::Held,
        machine::RolloutState::Baking => RolloutState::Baking,
        machine::RolloutState::Succeeded => RolloutState::Succeeded,
        machine::RolloutState::Failed => RolloutState::Failed,
        machine::RolloutState::Aborted => RolloutState::Aborted,
        machine::RolloutState::Superseded => RolloutState::Superseded,
    }
}

fn steps(run: &Run) -> Vec<RolloutStep> {
    let began = run.steps_began_us.iter().copied().chain(std::iter::repeat(None));
    run.rollout.steps.iter().zip(began).map(|(step, began)| step_view(step, began)).collect()
}

fn step_view(step: &StepProgress, began_us: Option<i64>) -> RolloutStep {
    let (mut percent, mut count, mut labels) = (None, None, None);
    match &step.size {
        StepSize::Share { millionths, .. } => percent = Some(f64::from(*millionths) / 1e4),
        StepSize::Count(number) => count = Some(*number),
        StepSize::Labels(wanted) => {
            let owned = wanted.iter().map(|(key, value)| (key.to_string(), value.to_string()));
            labels = Some(owned.collect());
        }
        StepSize::All => percent = Some(100.0),
    }
    let state = match step.state {
        StepState::Pending => "pending",
        StepState::Running => "running",
        StepState::Passed => "passed",
        StepState::Promoted => "promoted",
        StepState::Skipped => "skipped",
    };
    RolloutStep {
        percent,
        count,
        labels,
        proxies: step.proxies,
        healthy_ms: step.healthy_ms,
        soak_ms: step.soak_ms,
        started_at: began_us.map(rfc3339),
        state: state.to_owned(),
    }
}

fn gate(reading: &Reading) -> RolloutGate {
    let name = match reading.gate {
        GateKind::Errors => "errors",
        GateKind::Latency => "latency",
        GateKind::NotFound => "not_found",
        GateKind::Coverage => "coverage",
        GateKind::Rejected => "rejected",
        GateKind::Lost => "lost",
        GateKind::Cpu => "cpu",
        GateKind::Volume => "volume",
    };
    let (scope, route, upstream) = match &reading.scope {
        Scope::Fleet => ("fleet", None, None),
        Scope::Route(name) => ("route", Some(name.to_string()), None),
        Scope::Upstream(name) => ("upstream", None, Some(name.to_string())),
    };
    let verdict = match reading.verdict {
        Verdict::Passing => "passing",
        Verdict::Failing => "failing",
        Verdict::Inconclusive => "inconclusive",
    };
    let counts = |counts: Counts| RolloutGateCounts { requests: counts.requests, failures: counts.failures };
    RolloutGate {
        name: name.to_owned(),
        scope: scope.to_owned(),
        route,
        upstream,
        verdict: verdict.to_owned(),
        evidence: reading.evidence,
        limit: reading.limit,
        canary: counts(reading.canary),
        rest: counts(reading.rest),
    }
}

fn event(event: &RunEvent) -> RolloutEvent {
    RolloutEvent {
        at: rfc3339(event.at_us),
        state: state(event.state),
        actor: event.actor.clone(),
        reason: reason(&event.reason),
    }
}

pub(super) fn reason(reason: &Reason) -> RolloutReason {
    let code = serde_json::to_value(reason.code).ok();
    RolloutReason {
        code: code.and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_default(),
        text: reason.text.to_string(),
        resource: reason.resource.as_ref().map(ToString::to_string),
        route: reason.route.as_ref().map(ToString::to_string),
    }
}
