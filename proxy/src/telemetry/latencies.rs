use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The number of buckets.
const BUCKETS: usize = 256;

/// Buckets per power of two.
const PER_OCTAVE: usize = 8;

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
/// Bucket `i` has the microseconds in (2^(i/8), 2^((i+1)/8)]. The first bucket also has those below, the last those above.
#[derive(Debug)]
pub struct Latencies([AtomicU64; BUCKETS]);

impl Latency {
    #[inline]
    pub fn of(duration: Duration) -> Self {
        let us = duration.as_micros() as u64;
        Self { us, bucket: bucket_of(us) }
    }

    /// Microseconds.
    #[inline]
    pub fn us(self) -> u64 {
        self.us
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

    /// The greatest latency of a bucket, in microseconds.
    pub fn upper_bound(bucket: usize) -> f64 {
        ((bucket + 1) as f64 / PER_OCTAVE as f64).exp2()
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
fn bucket_of(us: u64) -> u8 {
    let us = us.max(1);
    let zeros = us.leading_zeros();
    let octave = 63 - zeros as usize;
    // A power of two is above no bound of its own octave: it is the upper bound of the octave below.
    let significand = us << zeros;
    let above = BOUNDS.iter().map(|bound| usize::from(significand > *bound)).sum::<usize>();
    (octave * PER_OCTAVE + above).saturating_sub(1).min(BUCKETS - 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_latency_is_within_the_bounds_of_its_bucket() {
        for us in (2..20_000).chain([99_999, 1_000_001, 60_000_000, 3_600_000_000]) {
            let (bucket, value) = (f64::from(bucket_of(us)), us as f64);
            let (lower, upper) = ((bucket / 8.0).exp2(), ((bucket + 1.0) / 8.0).exp2());
            if us.is_power_of_two() {
                assert_eq!(upper, value, "{us} in bucket {bucket}");
            } else {
                assert!(lower < value && value < upper, "{us} in bucket {bucket}");
            }
        }
    }

    #[test]
    fn extreme_latencies_are_in_the_first_and_the_last_bucket() {
        for (us, bucket) in [(0, 0), (1, 0), (2, 7), (3, 12), (1 << 31, 247), (1 << 32, 255), (u64::MAX, 255)]
        {
            assert_eq!(bucket_of(us), bucket, "{us}");
        }
    }

    #[test]
    fn only_buckets_with_latencies_are_read() {
        let latencies = Latencies::default();
        for us in [2, 1000, 2, u64::MAX] {
            latencies.record(Latency::of(Duration::from_micros(us)));
        }
        assert_eq!(latencies.buckets().collect::<Vec<_>>(), [(7, 2), (79, 1), (255, 1)]);
    }
}
