//! The evidence about one kind of failure in one scope.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dispersion::Dispersion;
use super::sequential::{Allowance, Increment, SequentialTest};
use super::window::Group;
use crate::reading::Counts;

/// Canaries whose own failures are kept.
const MAX_SUSPECTS: usize = 64;

/// A sick canary has at least this share of the failures, and this multiple of the next canary's.
const SICK_SHARE: f64 = 0.4;
const SICK_MULTIPLE: f64 = 3.0;

/// The probability that one of equal canaries is taken for sick.
const SICK_CHANCE: f64 = 0.001;

/// The weight of the assumption that the canaries were as good as the rest, in failures.
const PRIOR: f64 = 5.0;

/// The highest ratio that canaries get for having been worse before.
const MAX_HANDICAP: f64 = 20.0;

/// With the past as the only reference, this multiple of the tolerated ratio is tolerated: times differ more than proxies do.
const PAST_TOLERANCE: f64 = 2.0;

/// The evidence about one kind of failure in one scope.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Track {
    test: SequentialTest,
    /// How much worse the step's canaries were before the step, at least 1.
    handicap: f64,
    /// The highest failure rate that the past is consistent with, if it is known.
    past_rate: Option<f64>,
    /// The failure rate that is tolerated if nothing is known of the past.
    #[serde(default)]
    absolute_rate: Option<f64>,
    pub(super) dispersion: Dispersion,
    pub(super) canary: Counts,
    pub(super) rest: Counts,
    suspects: Suspects,
}

/// The canaries that have failed requests, since there was last no evidence against the canaries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Suspects {
    windows: u64,
    all: Counts,
    canaries: BTreeMap<Arc<str>, Counts>,
}

/// The reference that the canaries are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The other proxies, in the same windows.
    Rest,
    /// The same proxies before the step, for a step after which no proxy is left. It is weaker: it takes an outage of everything for a fault
    /// of the candidate, so it tolerates twice as much.
    Past,
}

/// The counts of a zone in one window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Stratum {
    pub(super) canary: Counts,
    pub(super) rest: Counts,
}

impl Stratum {
    /// Adds the counts of a proxy.
    pub(super) fn add(&mut self, group: Group, counts: Counts) {
        match group {
            Group::Canary => add(&mut self.canary, counts),
            Group::Rest => add(&mut self.rest, counts),
        }
    }
}

impl Track {
    /// Begins with what the groups did before the step.
    pub(super) fn new(canary: Counts, rest: Counts, dispersion: Dispersion) -> Self {
        Self {
            handicap: handicap(canary, rest),
            past_rate: highest_rate(canary),
            dispersion,
            ..Self::default()
        }
    }

    /// Takes for granted that there were no failures before the step.
    pub(super) fn assume_past_without_failures(&mut self) {
        self.past_rate = Some(0.0);
    }

    /// Sets the failure rate that is tolerated if nothing is known of the past.
    pub(super) fn set_absolute_rate(&mut self, rate: Option<f64>) {
        self.absolute_rate = rate;
    }

    /// Adds what one canary served in the window that is observed next.
    pub(super) fn suspect(&mut self, node: &Arc<str>, counts: Counts) {
        self.suspects.add(node, counts);
    }

    /// Adds a window. Zones that lack canaries or rest are taken together.
    pub(super) fn observe(
        &mut self,
        strata: impl IntoIterator<Item = Stratum>,
        reference: Reference,
        allowance: Allowance,
        length_ms: u64,
    ) {
        let mut increment = Increment::default();
        let mut unmatched = Stratum::default();
        let mut compare = |stratum: Stratum| match reference {
            Reference::Rest => {
                let ratio = allowance.ratio * self.handicap.max(1.0);
                increment.against_rest(stratum.canary, stratum.rest, Allowance { ratio, ..allowance });
            }
            Reference::Past => {
                if let Some(rate) = self.past_rate {
                    let ratio = allowance.ratio * PAST_TOLERANCE;
                    increment.against_rate(stratum.canary, rate, Allowance { ratio, ..allowance });
                } else if let Some(rate) = self.absolute_rate {
                    increment.against_rate(stratum.canary, rate, Allowance { ratio: 1.0, floor: 0.0 });
                }
            }
        };
        for stratum in strata {
            add(&mut self.canary, stratum.canary);
            add(&mut self.rest, stratum.rest);
            if stratum.canary.requests > 0 && stratum.rest.requests > 0 {
                compare(stratum);
            } else {
                add(&mut unmatched.canary, stratum.canary);
                add(&mut unmatched.rest, stratum.rest);
            }
        }
        compare(unmatched);
        self.test.observe(&increment, self.dispersion.index(), length_ms);
        self.dispersion.end_window(length_ms);
        self.suspects.windows = self.suspects.windows.saturating_add(1);
        if self.test.log_evidence() <= 0.0 {
            self.suspects = Suspects::default();
        }
    }

    /// True if there is anything to compare the canaries with.
    pub(super) fn has_reference(&self, reference: Reference) -> bool {
        match reference {
            Reference::Rest => self.rest.requests > 0,
            Reference::Past => self.past_rate.or(self.absolute_rate).is_some(),
        }
    }

    /// Natural logarithm of the evidence against the canaries.
    pub(super) fn log_evidence(&self) -> f64 {
        self.test.log_evidence()
    }

    /// The one canary that the evidence comes from, if it has far more failures than chance gives to any of equal canaries.
    pub(super) fn sick(&self, canaries: u64) -> Option<&Arc<str>> {
        self.suspects.sick(canaries)
    }
}

impl Suspects {
    fn add(&mut self, node: &Arc<str>, counts: Counts) {
        add(&mut self.all, counts);
        if self.canaries.is_empty() && counts.failures == 0 {
            return;
        }
        if let Some(known) = self.canaries.get_mut(node) {
            add(known, counts);
        } else if counts.failures > 0 {
            if self.canaries.len() >= MAX_SUSPECTS {
                let least = self.canaries.iter().min_by_key(|(_, counts)| counts.failures);
                if let Some(least) = least.map(|(node, _)| node.clone()) {
                    self.canaries.remove(&least);
                }
            }
            // Its requests until now were not counted.
            let requests = counts.requests.saturating_mul(self.windows.saturating_add(1));
            self.canaries.insert(node.clone(), Counts { requests, ..counts });
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "shares need no more digits")]
    fn sick(&self, canaries: u64) -> Option<&Arc<str>> {
        let (node, worst) = self.canaries.iter().max_by_key(|(_, counts)| counts.failures)?;
        let others = self.canaries.iter().filter(|(other, _)| *other != node);
        let next = others.map(|(_, counts)| counts.failures).max().unwrap_or(0);
        let (failures, all) = (worst.failures as f64, self.all.failures as f64);
        let share = (failures / all).min(1.0);
        let fair = (worst.requests as f64 / self.all.requests as f64).min(1.0);
        if share < SICK_SHARE || share <= fair || failures < SICK_MULTIPLE * next as f64 {
            return None;
        }
        // Chernoff's bound on the probability that a canary gets this share of the failures, for any of the canaries.
        let rest = if share < 1.0 { (1.0 - share) * ((1.0 - share) / (1.0 - fair)).ln() } else { 0.0 };
        let log = (canaries as f64).ln() - all * (share * (share / fair).ln() + rest);
        (log < SICK_CHANCE.ln()).then_some(node)
    }
}

fn add(sum: &mut Counts, counts: Counts) {
    sum.requests = sum.requests.saturating_add(counts.requests);
    sum.failures = sum.failures.saturating_add(counts.failures);
}

/// How much worse the canaries were before the step. Few failures say little, so it is drawn to 1.
#[expect(clippy::cast_precision_loss, reason = "a ratio needs no more digits")]
fn handicap(canary: Counts, rest: Counts) -> f64 {
    if rest.requests == 0 {
        return 1.0;
    }
    let expected = canary.requests as f64 * (rest.failures as f64 / rest.requests as f64);
    ((canary.failures as f64 + PRIOR) / (expected + PRIOR)).clamp(1.0, MAX_HANDICAP)
}

/// The highest rate at which such a past is no surprise: two standard deviations above the observed.
#[expect(clippy::cast_precision_loss, reason = "a bound needs no more digits")]
fn highest_rate(past: Counts) -> Option<f64> {
    let failures = past.failures as f64;
    (past.requests > 0)
        .then(|| ((failures + 2.0 * (failures + 1.0).sqrt() + 1.0) / past.requests as f64).min(1.0))
}
