//! The judgement of the canaries.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::history::{Past, ProxyPast, ScopePast, cell_of};
use super::pairs;
use super::policy::{Policy, Tolerance};
use super::sample::Sample;
use super::sequential::Allowance;
pub use super::track::Reference;
use super::track::{Stratum, Track};
use super::usage::Usage;
use super::window::{Group, ProxyWindow, StepKey, Window};
use crate::reading::{Counts, GateKind, Reading, Scope, Verdict};

/// Scopes that are judged by themselves, beside the changed ones. Further ones only count in the fleet's.
const MAX_SCOPES: usize = 1000;

/// Changed scopes that are judged by themselves in any case, and must be covered. Further ones are like those that are not changed.
const MAX_CHANGED: usize = 1000;

/// The kinds of failure that a scope has a track for: errors, not found, and above the rest's p50, p90 and p99.
const TRACKS: usize = 5;
const ERRORS: usize = 0;
const NOT_FOUND: usize = 1;
const LATENCY: std::ops::Range<usize> = 2..TRACKS;

/// The quantiles of the latency gate.
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// A response is slow if it takes longer than the rest's by at least this, in microseconds: nobody notices less, and a busy machine makes as
/// much of a difference.
const SLACK_US: f64 = 1000.0;

/// The multiple of the tolerated ratio of latencies if canaries are compared with their own past: the load of the machines may have changed.
const PAST_LATENCY: f64 = 2.0;

/// The rates of errors, and of requests without a route or with a status from 400 to 499, that are tolerated if there is neither another proxy
/// nor a past to compare with. Nobody knows which latency is usual then.
const ABSOLUTE_ERRORS: f64 = 0.05;
const ABSOLUTE_NOT_FOUND: f64 = 0.5;

/// Requests of the rest after which its quantiles are taken, if the past has fewer.
const QUANTILES_FROM: u64 = 100;

/// Fewer canaries than these are never told apart: there is no majority of healthy ones.
const MANY: u64 = 3;

/// Swaps in a rollout before a sick canary counts as a failure.
const MAX_SWAPS: u64 = 1;

/// The tolerated ratio of looks at proxies that find them expensive or idle.
const LOOKS_RATIO: f64 = 1.25;

/// The highest value that a reading shows, which JSON and people can still read.
const MAX_EVIDENCE: f64 = 1e15;

/// A step of a rollout, as the gates see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The step that windows must belong to.
    pub key: StepKey,
    /// Routes and upstreams that the candidate changes.
    pub changed: BTreeSet<Scope>,
    /// The reference that the canaries are compared with.
    pub reference: Reference,
}

/// The canaries of a step, as they are when it is judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Members {
    /// Their number.
    pub canaries: u64,
    /// Those that rejected the candidate, crash on it or have another digest.
    pub rejected: u64,
    /// The number of canaries that were swapped in this rollout ([`Rollout::swapped`](crate::machine::Rollout::swapped)).
    pub swapped: u64,
}

/// The evidence about a step, which is all that one leader needs to go on where another stopped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    step: Option<Step>,
    past: Past,
    #[serde(with = "pairs")]
    scopes: BTreeMap<Scope, ScopeState>,
    usage: Usage,
    cpu: Track,
    volume: Track,
    /// Time with reports of canaries since the last look, in milliseconds.
    unseen_ms: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct ScopeState {
    tracks: [Track; TRACKS],
    /// Latencies of the rest in the past, or at the beginning of the step until they are enough for the quantiles.
    latency: Histogram,
    /// The buckets whose upper bounds are nearest to the rest's p50, p90 and p99.
    quantiles: Option<[u8; 3]>,
}

/// The readings of the gates at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Failing if one gate fails. Passing if the canaries have served enough and no gate has a reason for doubt. Else inconclusive.
    pub verdict: Verdict,
    /// The readings of all gates.
    pub readings: Vec<Reading>,
    /// A single sick canary that should be replaced.
    pub swap: Option<Swap>,
    /// Time since the last look that counts as soak: windows with reports of canaries, if the verdict is passing. In milliseconds.
    pub healthy_ms: u64,
}

/// The advice to give the stable revision back to one canary among many, and to make another proxy a canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// The canary.
    pub node: Arc<str>,
    /// The gate that would fail because of it.
    pub gate: GateKind,
    /// The scope of that gate.
    pub scope: Scope,
}

/// The part of a gate's judgement beyond its reading.
#[derive(Default)]
struct Findings {
    readings: Vec<Reading>,
    swap: Option<Swap>,
    /// A gate that must be conclusive is not, or a gate has a reason for doubt.
    doubt: bool,
}

/// The counts of one scope in a window, before they are compared.
struct Tally<'a> {
    scope: &'a Scope,
    samples: Vec<(usize, &'a Sample)>,
}

impl Judge {
    /// Begins a step without any evidence.
    pub fn begin(&mut self, mut step: Step, past: Past) {
        if let Some(first) = step.changed.iter().nth(MAX_CHANGED).cloned() {
            step.changed.split_off(&first);
        }
        *self = Self { step: Some(step), past, ..Self::default() };
    }

    /// Adds a window. One of another step is ignored.
    pub fn observe(&mut self, window: &Window, policy: &Policy) {
        let Some(step) = self.step.as_ref().filter(|step| step.key == window.step) else { return };
        let reference = step.reference;
        if window.proxies.iter().any(|proxy| proxy.place.group == Group::Canary) {
            self.unseen_ms = self.unseen_ms.saturating_add(window.length_ms);
        }
        let zones = zones(&window.proxies);
        let cells: Vec<u64> = window.proxies.iter().map(|proxy| cell_of(&proxy.node)).collect();
        for tally in tally(&window.proxies) {
            let is_reserved = *tally.scope == Scope::Fleet || step.changed.contains(tally.scope);
            let full = self.scopes.len() >= MAX_SCOPES && !is_reserved;
            if let Some(state) = scope_state(&mut self.scopes, full, &self.past, tally.scope) {
                state.observe(&tally, window, &zones, &cells, reference, policy);
            }
        }
        self.observe_usage(window, &zones, reference, policy);
    }

    /// Judges the step by all that was observed in it.
    #[must_use]
    pub fn look(&mut self, members: Members, policy: &Policy) -> Judgement {
        let mut findings = Findings::default();
        self.read_coverage(policy, &mut findings);
        read_rejected(members, policy, &mut findings);
        if let Some(step) = &self.step {
            let weights = Weights::new(step, self.scopes.keys());
            let reader = Reader { reference: step.reference, members };
            for (scope, state) in &self.scopes {
                let weight = weights.of(step, scope);
                let [errors, not_found, latency @ ..] = &state.tracks;
                reader.read(GateKind::Errors, scope, &[errors], (policy.errors, weight), &mut findings);
                reader.read(
                    GateKind::NotFound,
                    scope,
                    &[not_found],
                    (policy.not_found, weight),
                    &mut findings,
                );
                let latency = latency.each_ref();
                reader.read(GateKind::Latency, scope, &latency, (policy.latency, weight), &mut findings);
            }
            let fleet = Scope::Fleet;
            reader.read(GateKind::Cpu, &fleet, &[&self.cpu], (policy.cpu, 1.0), &mut findings);
            if step.reference == Reference::Rest {
                reader.read(GateKind::Volume, &fleet, &[&self.volume], (policy.volume, 1.0), &mut findings);
            }
        }
        let unseen_ms = std::mem::take(&mut self.unseen_ms);
        let failing = findings.readings.iter().any(|reading| reading.verdict == Verdict::Failing);
        let verdict = match (failing, findings.doubt) {
            (true, _) => Verdict::Failing,
            (false, true) => Verdict::Inconclusive,
            (false, false) => Verdict::Passing,
        };
        Judgement {
            verdict,
            readings: findings.readings,
            swap: findings.swap.filter(|_| !failing),
            healthy_ms: if verdict == Verdict::Passing { unseen_ms } else { 0 },
        }
    }

    /// Looks at the usage of each proxy.
    fn observe_usage(&mut self, window: &Window, zones: &[usize], reference: Reference, policy: &Policy) {
        let count = zones.iter().max().map_or(0, |zone| zone + 1);
        let mut strata = [vec![Stratum::default(); count], vec![Stratum::default(); count]];
        for (proxy, &zone) in window.proxies.iter().zip(zones) {
            let (requests, cpu_us) = match proxy.scopes.iter().find(|(scope, _)| *scope == Scope::Fleet) {
                Some((_, sample)) => (sample.requests, sample.cpu_us),
                None => (0, 0),
            };
            let past = self.past.proxies.get(&proxy.node).copied().unwrap_or(ProxyPast::default());
            let used = (window.length_ms, requests, cpu_us);
            let Some(look) = self.usage.observe(&proxy.node, used, past, policy) else { continue };
            let tracks = [&mut self.cpu, &mut self.volume];
            for ((found, track), strata) in
                [look.expensive, look.idle].into_iter().zip(tracks).zip(&mut strata)
            {
                let Some(found) = found else { continue };
                let counts = Counts { requests: 1, failures: u64::from(found) };
                strata[zone].add(proxy.place.group, counts);
                if proxy.place.group == Group::Canary {
                    track.suspect(&proxy.node, counts);
                }
            }
        }
        let tracks = [(&mut self.cpu, policy.cpu), (&mut self.volume, policy.volume)];
        for ((track, tolerance), strata) in tracks.into_iter().zip(strata) {
            let allowance = Allowance { ratio: LOOKS_RATIO, floor: tolerance.floor };
            track.assume_past_without_failures();
            track.observe(strata, reference, allowance, window.length_ms);
        }
    }

    /// The fleet and each changed scope with traffic need enough requests of canaries.
    fn read_coverage(&self, policy: &Policy, findings: &mut Findings) {
        let step = self.step.as_ref();
        let changed = step.into_iter().flat_map(|step| &step.changed).filter(|scope| **scope != Scope::Fleet);
        for scope in std::iter::once(&Scope::Fleet).chain(changed) {
            let counts = |side: fn(&Track) -> Counts| {
                self.scopes.get(scope).map_or(0, |state| side(&state.tracks[ERRORS]).requests)
            };
            let (canary, rest) = (counts(|track| track.canary), counts(|track| track.rest));
            let past = self.past.scopes.get(scope);
            let before = past.map_or(0, |past| past.canary.requests.saturating_add(past.rest.requests));
            if *scope != Scope::Fleet && canary == 0 && rest == 0 && before == 0 {
                continue;
            }
            let covered = canary > 0 && canary >= policy.min_requests;
            findings.doubt |= !covered;
            findings.readings.push(Reading {
                gate: GateKind::Coverage,
                scope: scope.clone(),
                verdict: if covered { Verdict::Passing } else { Verdict::Inconclusive },
                evidence: float(canary),
                limit: float(policy.min_requests.max(1)),
                canary: Counts { requests: canary, failures: 0 },
                rest: Counts { requests: rest, failures: 0 },
            });
        }
    }
}

impl ScopeState {
    fn new(past: Option<&ScopePast>) -> Self {
        let Some(past) = past else { return Self::default() };
        let latency = past.rest.latency.clone();
        // The canaries are the whole fleet when there is no rest.
        let latency = if latency.count() == 0 { past.canary.latency.clone() } else { latency };
        let mut state = Self { latency, ..Self::default() };
        state.take_quantiles();
        let canary = counts(&past.canary, state.quantiles);
        let rest = counts(&past.rest, state.quantiles);
        for (kind, track) in state.tracks.iter_mut().enumerate() {
            let dispersion = match kind {
                ERRORS => past.errors.clone(),
                NOT_FOUND => past.not_found.clone(),
                _ => Default::default(),
            };
            *track = Track::new(canary[kind], rest[kind], dispersion);
        }
        state
    }

    /// Adds the counts of a window.
    fn observe(
        &mut self,
        tally: &Tally<'_>,
        window: &Window,
        zones: &[usize],
        cells: &[u64],
        reference: Reference,
        policy: &Policy,
    ) {
        let count = zones.iter().max().map_or(0, |zone| zone + 1);
        let mut strata = vec![[Stratum::default(); TRACKS]; count];
        for &(place, sample) in &tally.samples {
            let (proxy, stratum) = (&window.proxies[place], &mut strata[zones[place]]);
            let counts = counts(sample, self.quantiles);
            for ((track, stratum), counts) in self.tracks.iter_mut().zip(stratum).zip(counts) {
                stratum.add(proxy.place.group, counts);
                match proxy.place.group {
                    Group::Canary => track.suspect(&proxy.node, counts),
                    Group::Rest => track.dispersion.add(cells[place], counts),
                }
            }
        }
        for (kind, track) in self.tracks.iter_mut().enumerate() {
            let tolerance = match kind {
                ERRORS => policy.errors,
                NOT_FOUND => policy.not_found,
                _ => policy.latency,
            };
            track.set_absolute_rate(match kind {
                ERRORS => Some(ABSOLUTE_ERRORS),
                NOT_FOUND => Some(ABSOLUTE_NOT_FOUND),
                _ => None,
            });
            let is_past_latency = reference == Reference::Past && LATENCY.contains(&kind);
            let ratio = if is_past_latency { tolerance.ratio * PAST_LATENCY } else { tolerance.ratio };
            let allowance = Allowance { ratio, floor: tolerance.floor };
            track.observe(strata.iter().map(|stratum| stratum[kind]), reference, allowance, window.length_ms);
        }
        if self.quantiles.is_none() {
            for &(place, sample) in &tally.samples {
                if window.proxies[place].place.group == Group::Rest {
                    self.latency.merge(&sample.latency);
                }
            }
            self.take_quantiles();
        }
    }

    /// Takes the quantiles that all later latencies are compared with, once enough requests of the rest are known.
    fn take_quantiles(&mut self) {
        if self.latency.count() < QUANTILES_FROM {
            return;
        }
        let [p50, p90, p99] = QUANTILES.map(|q| self.latency.boundary(q));
        if let (Some(p50), Some(p90), Some(p99)) = (p50, p90, p99) {
            self.quantiles = Some([p50, p90, p99].map(|bucket| Histogram::above(bucket, SLACK_US)));
            self.latency = Histogram::default();
        }
    }
}

/// The share of each scope in a gate's probability of a false alarm: a quarter for the changed scopes and a quarter for the others, if there
/// are any, and the rest for the fleet.
struct Weights {
    fleet: f64,
    changed: f64,
    others: f64,
}

impl Weights {
    fn new<'a>(step: &Step, scopes: impl Iterator<Item = &'a Scope>) -> Self {
        let (mut changed, mut others) = (0, 0);
        for scope in scopes.filter(|scope| **scope != Scope::Fleet) {
            *(if step.changed.contains(scope) { &mut changed } else { &mut others }) += 1;
        }
        let quarters = float(changed.min(1) + others.min(1));
        let each = |count: u64| 0.25 / float(count.max(1));
        Self { fleet: 1.0 - 0.25 * quarters, changed: each(changed), others: each(others) }
    }

    fn of(&self, step: &Step, scope: &Scope) -> f64 {
        match scope {
            Scope::Fleet => self.fleet,
            scope if step.changed.contains(scope) => self.changed,
            _ => self.others,
        }
    }
}

/// Reads the gates that have a statistical test.
struct Reader {
    reference: Reference,
    members: Members,
}

impl Reader {
    /// Reads a gate whose evidence is the average of some tracks.
    fn read(
        &self,
        gate: GateKind,
        scope: &Scope,
        tracks: &[&Track],
        (tolerance, weight): (Tolerance, f64),
        findings: &mut Findings,
    ) {
        let limit = 1.0 / (tolerance.false_alarms() * share(gate) * weight);
        let log = average(tracks.iter().map(|track| track.log_evidence()));
        let Some(strongest) = tracks.iter().max_by(|a, b| a.log_evidence().total_cmp(&b.log_evidence()))
        else {
            return;
        };
        let known = strongest.canary.requests > 0 && strongest.has_reference(self.reference);
        // While most requests fail everywhere, nobody can tell whether the candidate is any good.
        let is_outage = gate == GateKind::Errors
            && strongest.canary.failures.saturating_mul(2) > strongest.canary.requests;
        let doubtful = is_outage || log >= limit.ln() / 2.0;
        let canaries = self.members.canaries;
        let sick = if canaries >= MANY { strongest.sick(canaries) } else { None };
        let verdict = match sick {
            _ if log < limit.ln() => {
                if doubtful || !known {
                    Verdict::Inconclusive
                } else {
                    Verdict::Passing
                }
            }
            Some(node) if self.members.swapped < MAX_SWAPS => {
                let swap = || Swap { node: node.clone(), gate, scope: scope.clone() };
                findings.swap.get_or_insert_with(swap);
                Verdict::Inconclusive
            }
            _ => Verdict::Failing,
        };
        // A scope without a reference is judged as a part of the fleet, whose errors must be known.
        findings.doubt |= doubtful || (!known && gate == GateKind::Errors && *scope == Scope::Fleet);
        findings.readings.push(Reading {
            gate,
            scope: scope.clone(),
            verdict,
            evidence: log.exp().min(MAX_EVIDENCE),
            limit,
            canary: strongest.canary,
            rest: strongest.rest,
        });
    }
}

/// The share of each gate in the probability of a false alarm: together 1.
fn share(gate: GateKind) -> f64 {
    match gate {
        GateKind::Errors => 0.5,
        GateKind::Latency => 0.2,
        GateKind::NotFound | GateKind::Cpu | GateKind::Volume => 0.1,
        // They are counted, not tested.
        GateKind::Coverage | GateKind::Rejected | GateKind::Lost => 0.0,
    }
}

fn read_rejected(members: Members, policy: &Policy, findings: &mut Findings) {
    let failing = members.rejected > policy.rejected;
    findings.readings.push(Reading {
        gate: GateKind::Rejected,
        scope: Scope::Fleet,
        verdict: if failing { Verdict::Failing } else { Verdict::Passing },
        evidence: float(members.rejected),
        limit: float(policy.rejected) + 1.0,
        canary: Counts { requests: members.canaries, failures: members.rejected },
        rest: Counts::default(),
    });
}

/// The state of a scope, new if it is seen for the first time; `None` if there is no room for another one.
fn scope_state<'a>(
    scopes: &'a mut BTreeMap<Scope, ScopeState>,
    full: bool,
    past: &Past,
    scope: &Scope,
) -> Option<&'a mut ScopeState> {
    match scopes.entry(scope.clone()) {
        Entry::Occupied(entry) => Some(entry.into_mut()),
        Entry::Vacant(_) if full => None,
        Entry::Vacant(entry) => Some(entry.insert(ScopeState::new(past.scopes.get(scope)))),
    }
}

/// The number of each proxy's zone.
fn zones(proxies: &[ProxyWindow]) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    let mut number = |proxy: &ProxyWindow| {
        let next = numbers.len();
        *numbers.entry(proxy.place.zone.clone()).or_insert(next)
    };
    proxies.iter().map(&mut number).collect()
}

/// The samples of each scope.
fn tally(proxies: &[ProxyWindow]) -> Vec<Tally<'_>> {
    let mut places = HashMap::<&Scope, usize>::new();
    let mut tallies = Vec::<Tally<'_>>::new();
    for (place, proxy) in proxies.iter().enumerate() {
        for (index, (scope, sample)) in proxy.scopes.iter().enumerate() {
            // Proxies usually report the same scopes in the same order.
            if let Some(tally) = tallies.get_mut(index).filter(|tally| tally.scope == scope) {
                tally.samples.push((place, sample));
                continue;
            }
            let tally = *places.entry(scope).or_insert_with(|| {
                tallies.push(Tally { scope, samples: Vec::new() });
                tallies.len() - 1
            });
            tallies[tally].samples.push((place, sample));
        }
    }
    tallies
}

/// The counts of each kind of failure in a sample.
fn counts(sample: &Sample, quantiles: Option<[u8; 3]>) -> [Counts; TRACKS] {
    let requests = sample.requests;
    let mut counts = [Counts::default(); TRACKS];
    counts[ERRORS] = Counts { requests, failures: sample.errors.min(requests) };
    counts[NOT_FOUND] = Counts { requests, failures: sample.not_found.min(requests) };
    if let Some(quantiles) = quantiles {
        let (requests, above) = sample.latency.count_above(quantiles);
        for (counts, failures) in counts[LATENCY].iter_mut().zip(above) {
            *counts = Counts { requests, failures };
        }
    }
    counts
}

/// Logarithm of the average of numbers that are given as logarithms.
fn average(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let highest = logs.clone().fold(f64::MIN, f64::max);
    let (sum, count) = logs.fold((0.0, 0.0), |(sum, count), log| (sum + (log - highest).exp(), count + 1.0));
    highest + (sum / f64::max(count, 1.0)).ln()
}

#[expect(clippy::cast_precision_loss, reason = "a reading needs no more digits")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;
