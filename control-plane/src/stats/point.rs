//! The traffic of one series in one slot of time.

use signalbox_proto::signalbox::report::v1::TrafficSeries;
use signalbox_rollout::gate::histogram::Histogram;

use super::tally::Tally;

/// The requests of a series that ended in a slot of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Point {
    /// Responses with a status below 400.
    pub succeeded: u64,
    /// Responses with a status from 400 to 499, but for `no_route`.
    pub client_errors: u64,
    /// Requests that matched no route.
    pub no_route: u64,
    /// Responses with a status of 500 and above.
    pub server_errors: u64,
    /// Bytes of the requests' bodies.
    pub bytes_in: u64,
    /// Bytes of the responses' bodies.
    pub bytes_out: u64,
    /// Latencies in microseconds.
    pub latency: Histogram,
    /// Requests that went wrong, by flag.
    pub flags: Tally,
    /// Attempts of an upstream that failed, by target.
    pub failed_targets: Tally,
}

impl Point {
    /// The number of requests.
    pub fn requests(&self) -> u64 {
        [self.succeeded, self.client_errors, self.no_route, self.server_errors]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Adds the requests of another point, but not their latencies.
    pub fn add_counts(&mut self, other: &Self) {
        let add = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count);
        add(&mut self.succeeded, other.succeeded);
        add(&mut self.client_errors, other.client_errors);
        add(&mut self.no_route, other.no_route);
        add(&mut self.server_errors, other.server_errors);
        add(&mut self.bytes_in, other.bytes_in);
        add(&mut self.bytes_out, other.bytes_out);
        self.flags.add(&other.flags);
        self.failed_targets.add(&other.failed_targets);
    }

    /// Adds the requests of another point.
    pub fn add(&mut self, other: &Self) {
        self.add_counts(other);
        self.latency.merge(&other.latency);
    }

    /// The same without the failures of targets, if it has any: they are for what is judged now.
    pub fn without_targets(&self) -> Option<Self> {
        let has_some = !self.failed_targets.is_empty();
        has_some.then(|| Self { failed_targets: Tally::default(), ..self.clone() })
    }

    /// Splits it into `parts` points that add up to it, as equal as they can be.
    pub fn split(&self, parts: u64) -> Vec<Self> {
        let parts = parts.max(1);
        let share = |count: u64, part: u64| {
            let upto = |part: u64| u128::from(count) * u128::from(part) / u128::from(parts);
            u64::try_from(upto(part + 1) - upto(part)).unwrap_or(u64::MAX)
        };
        let buckets = Vec::<(i32, u64)>::from(self.latency.clone());
        (0..parts)
            .map(|part| Self {
                succeeded: share(self.succeeded, part),
                client_errors: share(self.client_errors, part),
                no_route: share(self.no_route, part),
                server_errors: share(self.server_errors, part),
                bytes_in: share(self.bytes_in, part),
                bytes_out: share(self.bytes_out, part),
                flags: self.flags.map(|count| share(count, part)),
                failed_targets: self.failed_targets.map(|count| share(count, part)),
                latency: buckets
                    .iter()
                    .map(|(bucket, count)| (*bucket, share(*count, part)))
                    .collect::<Vec<_>>()
                    .into(),
            })
            .collect()
    }
}

impl From<&TrafficSeries> for Point {
    fn from(series: &TrafficSeries) -> Self {
        let index = |bucket: &u32| i32::try_from(*bucket).unwrap_or(i32::MAX);
        let buckets = series.buckets.iter().map(index).zip(series.bucket_counts.iter().copied());
        Self {
            succeeded: series.succeeded,
            client_errors: series.client_errors,
            no_route: series.no_route,
            server_errors: series.server_errors,
            bytes_in: series.bytes_in,
            bytes_out: series.bytes_out,
            latency: buckets.collect::<Vec<_>>().into(),
            flags: Tally::of_flags(&series.flags),
            failed_targets: Tally::from(&series.failed_targets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(succeeded: u64, buckets: &[(i32, u64)]) -> Point {
        Point { succeeded, bytes_out: succeeded / 7, latency: buckets.to_vec().into(), ..Point::default() }
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        for (count, parts) in [(0, 3), (1, 3), (7, 3), (9, 3), (1000, 1), (5, 0), (u64::MAX, 7)] {
            let flags = Tally::from(&[("UT".to_owned(), count / 2), ("UH".to_owned(), 1)].into());
            let whole = Point { no_route: count / 2, flags, ..point(count, &[(3, count), (200, count / 3)]) };
            let split = whole.split(parts);
            assert_eq!(split.len() as u64, parts.max(1));
            let mut sum = Point::default();
            split.iter().for_each(|part| sum.add(part));
            assert_eq!(sum, whole, "{count} in {parts}");
            let counts = split.iter().map(|part| part.succeeded);
            assert!(counts.clone().max().unwrap() - counts.min().unwrap() <= 1);
        }
    }

    #[test]
    fn points_add_up_in_any_order() {
        let parts: Vec<Point> =
            (1..20_u64).map(|n| point(n, &[((n * 37 % 256) as i32, n), (7, 1)])).collect();
        let sum = |parts: &mut dyn Iterator<Item = &Point>| {
            let mut sum = Point::default();
            parts.for_each(|part| sum.add(part));
            sum
        };
        assert_eq!(sum(&mut parts.iter()), sum(&mut parts.iter().rev()));
        assert_eq!(sum(&mut parts.iter()).requests(), (1..20).sum::<u64>());
        assert_eq!(sum(&mut [Point::default(), parts[0].clone()].iter()), parts[0]);
    }
}
