//! The statistical test of every gate that counts requests.
//!
//! Failures of the canaries and of the rest arrive in windows. The null hypothesis is that a canary's request fails at most with the
//! probability `ratio · r + floor`, where `r` is the probability for a request to the rest *in the same window*. `r` is unknown and may be
//! another one in each window, so an outage that hits everybody is no evidence.
//!
//! For one window with `n` and `f` requests and failures of the canaries, `N` and `F` of the rest, and any `x > 1`,
//!
//! ```text
//! e = x^f · y^F · exp(-n · floor · (x - 1))   with   y = 1 - κ · (x - 1)   and   κ = ratio · n / N
//! ```
//!
//! has an expectation of at most 1 under the null hypothesis, whatever `r` is: `E[x^f] ≤ exp(n (ratio · r + floor) (x - 1))` and
//! `E[y^F] ≤ exp(N r (y - 1))` for Poisson and for binomial counts, and the exponents cancel. With `floor = 0` it is the likelihood ratio of
//! the canaries' share of all failures. No estimate of `r` enters.
//!
//! Products of such values over windows are an E-process: by Ville's inequality the probability that it ever reaches `1/α` is at most `α`,
//! so it can be looked at continuously (Lindon et al., arXiv 2205.14762; Turner et al., arXiv 2106.02693). The test mixes it over
//! multipliers of the failure rate, and over the window at which the fault begins, because a product that began an hour ago has sunk so far
//! that it would notice a new fault too late. The weight of a beginning at time `t` is fixed beforehand: one half for `t = 0`, the other half
//! spread with the density `½ T / (t + T)²`, `T` = 10 minutes.

use serde::{Deserialize, Serialize};

use crate::reading::Counts;

/// Number of multipliers.
const N: usize = 6;

/// The multiples of the tolerated failure rate that the test looks for.
const MULTIPLIERS: [f64; N] = [1.5, 2.0, 4.0, 10.0, 30.0, 100.0];

/// The time in which half of the weight of later beginnings is spent.
const BEGINNINGS_MS: f64 = 600_000.0;

/// Logarithms are kept within this bound, so that no sum of them is infinite.
const BOUND: f64 = 1e12;

/// The margin by which canaries may do worse than their reference: a failure rate of `ratio · r + floor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowance {
    /// At least 1; smaller values and NaN count as 1.
    pub ratio: f64,
    /// A probability; smaller values than 0 and NaN count as 0.
    pub floor: f64,
}

/// The evidence of one window, per multiplier.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Increment {
    logs: [f64; N],
}

impl Increment {
    /// Adds the counts of one stratum, compared with the rest of the same window. Without requests on either side, it adds nothing.
    pub fn against_rest(&mut self, canary: Counts, rest: Counts, allowance: Allowance) {
        let (n, f) = floats(canary);
        let (rest_n, rest_f) = floats(rest);
        if n == 0.0 || rest_n == 0.0 {
            return;
        }
        let (ratio, floor) = allowance.sane();
        let kappa = ratio * n / rest_n;
        let share = kappa / (1.0 + kappa);
        for (log, multiplier) in self.logs.iter_mut().zip(MULTIPLIERS) {
            // The share of the canaries under the multiplier, relative to that under the null hypothesis.
            let scale = 1.0 / (1.0 + (multiplier - 1.0) * share);
            // A share of almost 1 leaves nothing to look for.
            let x = (multiplier * scale).max(1.0);
            let up = if f > 0.0 { f * x.ln() } else { 0.0 };
            let down = if rest_f > 0.0 { rest_f * scale.ln() } else { 0.0 };
            *log += up + down - n * floor * (x - 1.0);
        }
    }

    /// Adds the counts of one stratum, compared with a known failure rate of the past. A rate that is not a number adds nothing.
    pub fn against_rate(&mut self, canary: Counts, rate: f64, allowance: Allowance) {
        let (n, f) = floats(canary);
        if n == 0.0 || rate.is_nan() {
            return;
        }
        let (ratio, floor) = allowance.sane();
        let expected = n * (ratio * rate.clamp(0.0, 1.0) + floor).min(1.0);
        for (log, x) in self.logs.iter_mut().zip(MULTIPLIERS) {
            *log += f * x.ln() - expected * (x - 1.0);
        }
    }
}

impl Allowance {
    fn sane(self) -> (f64, f64) {
        (within(self.ratio, 1.0, 1e6), within(self.floor, 0.0, 1.0))
    }
}

/// A test that can be looked at after every window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequentialTest {
    elapsed_ms: u64,
    /// Logarithm of the evidence, per multiplier, summed over the beginnings so far with their weights.
    logs: [f64; N],
}

impl Default for SequentialTest {
    fn default() -> Self {
        Self { elapsed_ms: 0, logs: [0.5_f64.ln(); N] }
    }
}

impl SequentialTest {
    /// Adds a window.
    ///
    /// `dispersion` is the number of failures that come together, at least 1: they count as one.
    pub fn observe(&mut self, increment: &Increment, dispersion: f64, length_ms: u64) {
        let dispersion = within(dispersion, 1.0, BOUND);
        let before = weight_of_beginnings(self.elapsed_ms);
        self.elapsed_ms = self.elapsed_ms.saturating_add(length_ms);
        let begins = weight_of_beginnings(self.elapsed_ms) - before;
        for (log, added) in self.logs.iter_mut().zip(increment.logs) {
            *log = (add_weight(*log, begins) + added / dispersion).clamp(-BOUND, BOUND);
        }
    }

    /// Natural logarithm of the evidence; 0 is none. It is always finite.
    #[must_use]
    pub fn log_evidence(&self) -> f64 {
        let highest = self.logs.iter().fold(0.0, |highest, log| f64::max(highest, *log));
        let mixture: f64 = self.logs.iter().map(|log| (log - highest).exp()).sum::<f64>() / N as f64;
        let not_begun = 0.5 - weight_of_beginnings(self.elapsed_ms);
        highest + (mixture + not_begun * (-highest).exp()).ln()
    }
}

/// The weight of the beginnings after 0 and until a time, at most ½.
fn weight_of_beginnings(elapsed_ms: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a weight needs no more digits")]
    let elapsed = elapsed_ms as f64;
    0.5 * elapsed / (elapsed + BEGINNINGS_MS)
}

/// The logarithm of `exp(log) + weight`.
fn add_weight(log: f64, weight: f64) -> f64 {
    if weight <= 0.0 {
        return log;
    }
    let added = weight.ln();
    let (high, low) = if added > log { (added, log) } else { (log, added) };
    // The smaller term is below the precision of the larger one.
    if high - low > 40.0 { high } else { high + (low - high).exp().ln_1p() }
}

/// A number within bounds; the lower bound for what is not a number.
fn within(value: f64, low: f64, high: f64) -> f64 {
    if value.is_nan() { low } else { value.clamp(low, high) }
}

/// Requests and failures; there are never more failures than requests.
#[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 need no more digits")]
fn floats(counts: Counts) -> (f64, f64) {
    (counts.requests as f64, counts.failures.min(counts.requests) as f64)
}

#[cfg(test)]
mod tests;
