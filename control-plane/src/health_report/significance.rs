//! When a difference between two shares counts.

/// Requests, and those of them that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) requests: u64,
    pub(super) failures: u64,
}

/// The fewest requests that say something.
pub(super) const MIN_REQUESTS: u64 = 50;

/// The fewest failures that say something.
pub(super) const MIN_FAILURES: u64 = 5;

/// The least difference of the shares.
const MIN_DIFFERENCE: f64 = 0.005;

/// The least quotient of the shares.
const MIN_QUOTIENT: f64 = 2.0;

/// The least distance in standard deviations.
const MIN_Z: f64 = 3.0;

impl Share {
    /// The share of failures; 0 without requests.
    pub(super) fn ratio(self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.failures as f64 / self.requests as f64 }
    }

    /// True if more fail than in `other`, by a difference that counts. Where `other` has too few requests to say anything, it counts as one of
    /// which none failed.
    pub(super) fn is_worse_than(self, other: Self) -> bool {
        if self.requests < MIN_REQUESTS || self.failures < MIN_FAILURES {
            return false;
        }
        let other = match other.requests {
            ..MIN_REQUESTS => Self { requests: self.requests, failures: 0 },
            _ => other,
        };
        let (mine, theirs) = (self.ratio(), other.ratio());
        let (my_count, their_count) = (self.requests as f64, other.requests as f64);
        let pooled = (self.failures + other.failures) as f64 / (my_count + their_count);
        let deviation = (pooled * (1.0 - pooled) * (1.0 / my_count + 1.0 / their_count)).sqrt();
        let difference = mine - theirs;
        difference >= MIN_DIFFERENCE && mine >= MIN_QUOTIENT * theirs && difference >= MIN_Z * deviation
    }

    /// The sum of both.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            failures: self.failures.saturating_add(other.failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_only_if_it_is_large_and_certain() {
        let table = [
            ((1000, 100), (1000, 1), true),
            ((49, 49), (1000, 0), false),
            ((50, 25), (1000, 0), true),
            ((100, 1), (1000, 0), false),
            ((100_000, 400), (100_000, 100), false),
            ((100_000, 700), (100_000, 100), true),
            ((1000, 150), (1000, 100), false),
            ((10, 1), (10, 0), false),
            ((1000, 0), (1000, 0), false),
            ((1000, 1000), (1000, 1000), false),
            ((1000, 100), (0, 0), true),
            ((1000, 100), (10, 10), true),
        ];
        for (mine, theirs, expected) in table {
            let share = |(requests, failures)| Share { requests, failures };
            assert_eq!(share(mine).is_worse_than(share(theirs)), expected, "{mine:?} {theirs:?}");
        }
    }
}
