//! A histogram of latencies.

use serde::{Deserialize, Serialize};

/// Number of buckets that a histogram can have.
const BUCKETS: usize = 256;

/// Buckets per octave, a power of two.
const PER_OCTAVE: usize = 8;

/// Upper bounds of the first seven buckets of the octave that begins at 1: 2^(1/8), 2^(2/8), … 2^(7/8).
const WITHIN_OCTAVE: [f64; PER_OCTAVE - 1] = [
    1.090_507_732_665_257_7,
    1.189_207_115_002_721,
    1.296_839_554_651_009_6,
    std::f64::consts::SQRT_2,
    1.542_210_825_407_940_8,
    1.681_792_830_507_429,
    1.834_008_086_409_342_4,
];

/// A tick, the unit of the buckets' bounds, in microseconds: 2^-20 seconds. So a bound is one of Prometheus' native histograms of
/// seconds, too.
const TICK: f64 = 1e6 / 1_048_576.0;

/// Counts of latencies: the exponential histogram of OpenTelemetry at scale 3, so a bucket is 9 % wide.
///
/// Bucket `i` counts the ticks in (2^(i/8), 2^((i+1)/8)]; a tick is 2^-20 seconds. There are 256 buckets: values of a tick and below are in
/// the first, values above 68 minutes in the last. Only buckets that are not empty are stored, sorted by their index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(i32, u64)>", into = "Vec<(i32, u64)>")]
pub struct Histogram {
    buckets: Vec<(u8, u64)>,
}

impl Histogram {
    /// Counts one latency in microseconds. What is not a number is not counted.
    pub fn record(&mut self, micros: f64) {
        if !micros.is_nan() {
            self.add(bucket_of(micros), 1);
        }
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        for &(bucket, count) in &other.buckets {
            self.add(bucket, count);
        }
    }

    /// The values that were counted since an earlier state of the same histogram; `None` if a count went down.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut before = earlier.buckets.iter().copied().peekable();
        let mut buckets = Vec::with_capacity(self.buckets.len());
        for &(bucket, count) in &self.buckets {
            let old = match before.peek() {
                Some(&(old, count)) if old == bucket => {
                    before.next();
                    count
                }
                Some(&(old, _)) if old < bucket => return None,
                _ => 0,
            };
            let new = count.checked_sub(old)?;
            if new > 0 {
                buckets.push((bucket, new));
            }
        }
        before.next().is_none().then_some(Self { buckets })
    }

    /// The number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, &(_, count)| sum.saturating_add(count))
    }

    /// The bucket that holds the quantile `q` (0 to 1); `None` without values, or if `q` is not a number.
    #[must_use]
    pub fn quantile_bucket(&self, q: f64) -> Option<u8> {
        if q.is_nan() {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rank that is off by 2^-53 is in the same place")]
        let rank = (q.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0);
        let mut below = 0.0;
        for &(bucket, count) in &self.buckets {
            #[expect(clippy::cast_precision_loss, reason = "as above")]
            let count = count as f64;
            below += count;
            if below >= rank {
                return Some(bucket);
            }
        }
        self.buckets.last().map(|&(bucket, _)| bucket)
    }

    /// The bucket above which the share of the values is nearest to `1 - q`, as the quantile lies somewhere within its bucket. Of two that
    /// are about as near, it is the lower one, which more values exceed. `None` as for [`quantile_bucket`](Self::quantile_bucket).
    #[must_use]
    pub fn boundary(&self, q: f64) -> Option<u8> {
        let bucket = self.quantile_bucket(q)?;
        let Some(lower) = bucket.checked_sub(1) else { return Some(bucket) };
        let (all, above) = self.count_above([lower, bucket]);
        #[expect(clippy::cast_precision_loss, reason = "as above")]
        let [too_many, too_few] = above.map(|above| (above as f64 - (1.0 - q) * all as f64).abs());
        Some(if too_many <= 1.1 * too_few { lower } else { bucket })
    }

    /// The bucket of the values that are higher by `micros` than the upper bound of a bucket.
    #[must_use]
    pub fn above(bucket: u8, micros: f64) -> u8 {
        bucket_of(upper_bound(bucket) + micros)
    }

    /// The upper bound of a bucket, in microseconds.
    #[must_use]
    pub fn bound(bucket: u8) -> f64 {
        upper_bound(bucket)
    }

    /// The quantile `q` (0 to 1) in microseconds, as the upper bound of its bucket: at most 9 % too high. `None` without values.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.quantile_bucket(q).map(upper_bound)
    }

    /// The number of all values, and of those in the buckets above each of some buckets, which are sorted.
    #[must_use]
    pub fn count_above<const N: usize>(&self, buckets: [u8; N]) -> (u64, [u64; N]) {
        let (mut all, mut above, mut rest) = (0_u64, [0; N], N);
        for &(bucket, count) in self.buckets.iter().rev() {
            while let Some(last) = rest.checked_sub(1).filter(|last| buckets[*last] >= bucket) {
                above[last] = all;
                rest = last;
            }
            all = all.saturating_add(count);
        }
        above[..rest].fill(all);
        (all, above)
    }

    fn add(&mut self, bucket: u8, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |&(index, _)| index) {
            Ok(place) => self.buckets[place].1 = self.buckets[place].1.saturating_add(count),
            Err(place) if count > 0 => self.buckets.insert(place, (bucket, count)),
            Err(_) => {}
        }
    }
}

/// Reads pairs of index and count in any order. Indices outside the range count in the first or the last bucket, and equal
/// indices are added, so no input makes more than 256 buckets.
impl From<Vec<(i32, u64)>> for Histogram {
    fn from(pairs: Vec<(i32, u64)>) -> Self {
        let mut histogram = Self::default();
        for (index, count) in pairs {
            let bucket = u8::try_from(index.clamp(0, BUCKETS as i32 - 1)).unwrap_or(u8::MAX);
            histogram.add(bucket, count);
        }
        histogram
    }
}

impl From<Histogram> for Vec<(i32, u64)> {
    fn from(histogram: Histogram) -> Self {
        histogram.buckets.into_iter().map(|(bucket, count)| (i32::from(bucket), count)).collect()
    }
}

fn bucket_of(micros: f64) -> u8 {
    let ticks = micros / TICK;
    if ticks <= 1.0 {
        return 0;
    }
    let bits = ticks.to_bits();
    let octave = usize::try_from((bits >> 52) & 0x7ff).unwrap_or(0).saturating_sub(1023);
    let significand = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    // A power of two is the upper bound of the octave below.
    let index = if significand <= 1.0 {
        octave * PER_OCTAVE - 1
    } else {
        octave * PER_OCTAVE + WITHIN_OCTAVE.partition_point(|bound| *bound < significand)
    };
    u8::try_from(index).unwrap_or(u8::MAX)
}

fn upper_bound(bucket: u8) -> f64 {
    f64::exp2((f64::from(bucket) + 1.0) / PER_OCTAVE as f64) * TICK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[f64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        histogram
    }

    #[test]
    fn a_value_lies_within_its_bucket() {
        for value in [1.5, 2.0, 2.1, 3.0, 4.0, 1000.0, 1024.0, 1_048_576.0, 123_456_789.0] {
            let bucket = bucket_of(value);
            let lower = f64::exp2(f64::from(bucket) / PER_OCTAVE as f64) * TICK;
            assert!(
                lower < value && value <= upper_bound(bucket),
                "{value} in {lower}..{}",
                upper_bound(bucket)
            );
        }
    }

    #[test]
    fn a_boundary_is_the_nearest_to_the_quantile() {
        for (counts, q, wanted) in [
            // The share above 79 is 1.5 %, above 80 0.5 %.
            (vec![(40, 985), (80, 10), (100, 5)], 0.99, Some(79)),
            (vec![(40, 989), (80, 10), (100, 1)], 0.99, Some(79)),
            (vec![(40, 970), (80, 21), (100, 9)], 0.99, Some(80)),
            (vec![(40, 1000)], 0.99, Some(40)),
            (vec![(0, 1000)], 0.5, Some(0)),
            (vec![], 0.5, None),
        ] {
            assert_eq!(Histogram::from(counts.clone()).boundary(q), wanted, "{counts:?}");
        }
    }

    #[test]
    fn extreme_values_have_a_bucket() {
        for (value, bucket) in [
            (0.0, 0),
            (-5.0, 0),
            (TICK, 0),
            (1.0, 0),
            (2.0 * TICK, 7),
            (1e6, 159),
            (f64::MIN_POSITIVE, 0),
            (f64::NEG_INFINITY, 0),
            (f64::INFINITY, 255),
            (f64::MAX, 255),
        ] {
            assert_eq!(bucket_of(value), bucket, "{value}");
        }
        assert_eq!(histogram(&[f64::NAN]).count(), 0);
    }

    #[test]
    fn quantiles_are_within_a_bucket_of_the_true_ones() {
        let values: Vec<f64> = (1..=10_000).map(f64::from).collect();
        let histogram = histogram(&values);
        for q in [0.0, 0.01, 0.5, 0.9, 0.99, 1.0] {
            let truth = (q * 10_000.0_f64).max(1.0);
            let measured = histogram.quantile(q).unwrap();
            assert!(truth <= measured && measured <= truth * 1.0906, "{q}: {truth} {measured}");
        }
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(histogram.quantile(f64::NAN), None);
        assert_eq!(histogram.quantile(7.0), histogram.quantile(1.0));
    }

    #[test]
    fn merging_adds_and_since_takes_away() {
        let (mut a, b) = (histogram(&[10.0, 10.0, 5000.0]), histogram(&[10.0, 3.0]));
        let before = a.clone();
        a.merge(&b);
        assert_eq!(a.count(), 5);
        assert_eq!(a.since(&before), Some(b.clone()));
        assert_eq!(a.since(&a), Some(Histogram::default()));
        assert_eq!(before.since(&a), None, "a count went down");
        assert_eq!(b.since(&histogram(&[7.0])), None, "a bucket vanished");
        assert_eq!(b.since(&histogram(&[1e6])), None, "the last bucket vanished");
    }

    #[test]
    fn counts_above_a_bucket_are_exact() {
        let histogram = histogram(&[1.0, 10.0, 100.0, 1000.0]);
        let bucket = histogram.quantile_bucket(0.5).unwrap();
        assert_eq!(histogram.count_above([bucket, bucket, 255]), (4, [2, 2, 0]));
        assert_eq!(histogram.count_above([0, bucket - 1, bucket]), (4, [3, 3, 2]));
        assert_eq!(Histogram::default().count_above([0, 7]), (0, [0, 0]));
        assert_eq!(self::histogram(&[50.0]).count_above([0, 1]), (1, [1, 1]));
    }

    #[test]
    fn hostile_input_stays_bounded() {
        let pairs: Vec<_> = (-5000..5000).map(|index| (index, u64::MAX)).collect();
        let histogram = Histogram::from(pairs);
        assert_eq!(histogram.buckets.len(), 256);
        assert_eq!(histogram.count(), u64::MAX);
        assert!(histogram.quantile(0.99).unwrap().is_finite());
    }

    #[test]
    fn serde_keeps_a_histogram() {
        let histogram = histogram(&[1.0, 10.0, 100.0]);
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
    }
}
