use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The number of buckets.
const BUCKETS: usize = 256;

/// Buckets per power of two.
const PER_OCTAVE: usize = 8;

/// Ticks in a second, as a power of two: the bounds of buckets are then those of Prometheus' native histograms of seconds.
const TICKS: i32 = 20;

/// The bits of the fraction with which ticks are computed.
const FRACTION: u32 = 16;

/// Ticks with their fraction per nanosecond, times 2^48, rounded up.
const PER_NANOSECOND: u128 = (1 << (TICKS as u32 + FRACTION + 48)) / 1_000_000_000 + 1;

/// The bounds within an octave, as 2^63 · 2^(j/8) for j from 0 to 7, rounded down. All but the first are irrational, so no
/// integer is equal to one.
const BOUNDS: [u64; PER_OCTAVE] = [
    0x8000_0000_0000_0000,
    0x8b95_c1e3_ea8b_d6e6,
    0x9837_f051_8db8_a96f,
    0xa5fe_d6a9_b151_38ea,
    0xb504_f333_f9de_6484,
    0xc567_2a11_5506_dadd,
    0xd744_fcca_d69d_6af4,
    0xeac0_c6e7_dd24_392e,
];

/// A latency with its bucket in [`Latencies`], which is looked for once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    us: u64,
    bucket: u8,
}

/// Latencies that one thread records and any thread reads: OpenTelemetry's exponential histogram at scale 3.
///
/// Bucket `i` has the ticks in (2^(i/8), 2^((i+1)/8)]; a tick is 2^-20 seconds. The first bucket also has those below, the last those
/// above 68 minutes.
#[derive(Debug)]
pub struct Latencies([AtomicU64; BUCKETS]);

impl Latency {
    #[inline]
    pub fn of(duration: Duration) -> Self {
        let bucket = bucket_of(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        Self { us: duration.as_micros() as u64, bucket }
    }

    /// Microseconds.
    #[inline]
    pub fn us(self) -> u64 {
        self.us
    }

    /// The octave of the bucket, from 0 to 31; see [`Latencies::OCTAVES`].
    #[inline]
    pub fn octave(self) -> usize {
        usize::from(self.bucket) / PER_OCTAVE
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Latencies {
    /// The number of buckets.
    pub const BUCKETS: usize = BUCKETS;

    /// The number of buckets between a power of two and the next.
    pub const PER_OCTAVE: usize = PER_OCTAVE;

    /// The number of octaves. The octave `o` has the latencies in (2^(o-20), 2^(o-19)] seconds.
    pub const OCTAVES: usize = BUCKETS / PER_OCTAVE;

    /// The greatest latency of a bucket, in microseconds.
    pub fn upper_bound(bucket: usize) -> f64 {
        ((bucket + 1) as f64 / PER_OCTAVE as f64 - f64::from(TICKS)).exp2() * 1e6
    }

    /// The greatest latency of an octave, in seconds.
    pub fn octave_bound(octave: usize) -> f64 {
        (octave as f64 + 1.0 - f64::from(TICKS)).exp2()
    }

    /// The index of a bucket in Prometheus' native histogram of seconds at the schema 3.
    pub fn native_index(bucket: u8) -> i32 {
        i32::from(bucket) + 1 - TICKS * PER_OCTAVE as i32
    }

    /// The index of an octave in the one at the schema 0.
    pub fn native_octave(octave: u8) -> i32 {
        i32::from(octave) + 1 - TICKS
    }

    /// Records a latency. Only the owning worker may call this.
    #[inline]
    pub fn record(&self, latency: Latency) {
        if let Some(bucket) = self.0.get(usize::from(latency.bucket)) {
            bucket.store(bucket.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// Yields the buckets that are not empty, with their counts.
    pub fn buckets(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        (0..=u8::MAX).zip(counts).filter(|(_, count)| *count > 0)
    }
}

#[inline]
fn bucket_of(nanoseconds: u64) -> u8 {
    let ticks = (u128::from(nanoseconds) * PER_NANOSECOND) >> 48;
    let ticks = u64::try_from(ticks).unwrap_or(u64::MAX).max(1 << FRACTION);
    let zeros = ticks.leading_zeros();
    let octave = 63 - (zeros + FRACTION) as usize;
    // A power of two is above no bound of its own octave: it is the upper bound of the octave below.
    let significand = ticks << zeros;
    let above = BOUNDS.iter().map(|bound| usize::from(significand > *bound)).sum::<usize>();
    (octave * PER_OCTAVE + above).saturating_sub(1).min(BUCKETS - 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bucket of a number of ticks.
    fn of_ticks(ticks: f64) -> u8 {
        bucket_of((ticks * 1e9 / 1_048_576.0).round() as u64)
    }

    #[test]
    fn each_latency_is_within_the_bounds_of_its_bucket() {
        let all = (1_000..2_000_000).step_by(37).chain([99_999_999, 1_000_000_001, 60_000_000_000]);
        for nanoseconds in all {
            let bucket = bucket_of(nanoseconds);
            let ticks = nanoseconds as f64 * 1_048_576.0 / 1e9;
            let (lower, upper) = (f64::from(bucket) / 8.0, (f64::from(bucket) + 1.0) / 8.0);
            assert!(lower.exp2() < ticks && ticks <= upper.exp2(), "{nanoseconds} ns in {bucket}");
        }
    }

    #[test]
    fn the_bounds_are_those_of_native_histograms_of_seconds() {
        for power in -9..12_i32 {
            let seconds = f64::from(power).exp2();
            let exact = bucket_of((seconds * 1e9) as u64);
            // 2^power seconds are the upper bound of the native bucket with the index 8 · power, and belong to it.
            assert_eq!(Latencies::native_index(exact), 8 * power, "2^{power} s");
            assert_eq!(Latencies::native_index(bucket_of((seconds * 1e9) as u64 + 1)), 8 * power + 1);
            let octave = exact / 8;
            assert_eq!(Latencies::native_octave(octave), power);
            assert_eq!(Latencies::octave_bound(usize::from(octave)), seconds);
            assert!((Latencies::upper_bound(usize::from(exact)) / 1e6 - seconds).abs() < seconds * 1e-12);
        }
    }

    #[test]
    fn extreme_latencies_are_in_the_first_and_the_last_bucket() {
        for (ticks, bucket) in
            [(0.0, 0), (0.5, 0), (1.0, 0), (3.0, 12), (2_f64.powi(31), 247), (2_f64.powi(32), 255)]
        {
            assert_eq!(of_ticks(ticks), bucket, "{ticks}");
        }
        assert_eq!(bucket_of(u64::MAX), 255);
        assert_eq!(Latency::of(Duration::MAX).octave(), 31);
    }

    #[test]
    fn only_buckets_with_latencies_are_read() {
        let latencies = Latencies::default();
        for nanoseconds in [1_900, 976_000, 1_900, u64::MAX] {
            latencies.record(Latency::of(Duration::from_nanos(nanoseconds)));
        }
        assert_eq!(latencies.buckets().collect::<Vec<_>>(), [(7, 2), (79, 1), (255, 1)]);
    }
}
