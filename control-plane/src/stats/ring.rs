//! The series of one resolution.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::point::Point;
use super::series::{Dimension, SeriesKey};

/// The points of the last slots of time, each as long as the resolution.
#[derive(Debug)]
pub(super) struct Ring {
    /// The length of a slot in seconds.
    pub(super) resolution: u64,
    /// The number of full slots that are kept, beside the present one.
    length: u64,
    /// Likewise, in which single proxies are kept.
    proxies_length: u64,
    /// By their start, in seconds since 1970.
    slots: BTreeMap<u64, HashMap<SeriesKey, Point>>,
    /// The second from which on it is complete.
    since: u64,
}

/// The most series of a slot. Further ones are part of the series for all others of their kind.
const MAX_SERIES: usize = 5_000;

/// The most points of all slots, each of some 300 bytes. Beyond, the oldest slots go.
const MAX_POINTS: usize = 600_000;

impl Ring {
    /// Slots of `resolution` seconds for the last `length` seconds; of single proxies for the last `proxies` seconds.
    pub(super) fn new(resolution: u64, length: u64, proxies: u64) -> Self {
        let slots = BTreeMap::new();
        Self {
            resolution,
            length: length / resolution,
            proxies_length: proxies / resolution,
            slots,
            since: 0,
        }
    }

    /// The same, complete only from a second on.
    pub(super) fn since(self, since: u64) -> Self {
        Self { since, ..self }
    }

    /// Adds a point to the slot of the second `at`, if that is kept. `now` is the present second.
    pub(super) fn add(&mut self, now: u64, at: u64, key: &SeriesKey, point: &Point) {
        let slot = self.slot_of(at);
        if slot < self.oldest(now, self.length) || slot > self.slot_of(now) {
            return;
        }
        if matches!(key.dimension, Dimension::Proxy(_)) && slot < self.oldest(now, self.proxies_length) {
            return;
        }
        let series = self.slots.entry(slot).or_default();
        if let Some(sum) = series.get_mut(key) {
            return sum.add(point);
        }
        // Thousands of proxies must leave places for the rest.
        let most = if matches!(key.dimension, Dimension::Proxy(_)) { MAX_SERIES / 2 } else { MAX_SERIES };
        let key = match key.dimension.other().filter(|_| series.len() >= most) {
            Some(dimension) => SeriesKey { dimension, ..key.clone() },
            None => key.clone(),
        };
        series.entry(key).or_default().add(point);
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: u64) {
        let (oldest, oldest_of_proxies) =
            (self.oldest(now, self.length), self.oldest(now, self.proxies_length));
        self.slots = self.slots.split_off(&oldest);
        let mut points: usize = self.slots.values().map(HashMap::len).sum();
        while points > MAX_POINTS
            && let Some((at, series)) = self.slots.pop_first()
        {
            points -= series.len();
            self.since = self.since.max(at + self.resolution);
        }
        for (_, series) in self.slots.range_mut(..oldest_of_proxies) {
            series.retain(|key, _| !matches!(key.dimension, Dimension::Proxy(_)));
        }
    }

    /// The points of the slots that begin in `range`, from the oldest to the newest slot.
    pub(super) fn points(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &SeriesKey, &Point)> {
        let slots = self.slots.range(range.start..range.end.max(range.start));
        slots.flat_map(|(at, series)| series.iter().map(|(key, point)| (*at, key, point)))
    }

    /// The first second of which everything is kept.
    pub(super) fn begin(&self, now: u64) -> u64 {
        self.oldest(now, self.length).max(self.since)
    }

    fn oldest(&self, now: u64, length: u64) -> u64 {
        self.slot_of(now).saturating_sub(length * self.resolution)
    }

    fn slot_of(&self, at: u64) -> u64 {
        at - at % self.resolution
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(dimension: Dimension) -> SeriesKey {
        SeriesKey { fleet: "default".into(), dimension }
    }

    fn one() -> Point {
        Point { succeeded: 1, ..Point::default() }
    }

    fn counts(ring: &Ring, range: Range<u64>) -> Vec<(u64, u64)> {
        let mut sums = BTreeMap::<u64, u64>::new();
        for (at, _, point) in ring.points(range) {
            *sums.entry(at).or_default() += point.requests();
        }
        sums.into_iter().collect()
    }

    #[test]
    fn points_are_in_the_slot_of_their_time_and_go_when_they_are_old() {
        let mut ring = Ring::new(10, 60, 20);
        let (all, proxy) = (key(Dimension::All), key(Dimension::Proxy("p".into())));
        for at in [100, 109, 110, 159] {
            ring.add(160, at, &all, &one());
            ring.add(160, at, &proxy, &one());
        }
        assert_eq!(counts(&ring, 0..u64::MAX), [(100, 2), (110, 1), (150, 2)], "110 is too old for a proxy");
        ring.add(160, 170, &all, &one());
        assert_eq!(counts(&ring, 160..u64::MAX), [], "the future");
        ring.expire(175);
        assert_eq!(counts(&ring, 0..u64::MAX), [(110, 1), (150, 2)]);
        ring.expire(190);
        assert_eq!(counts(&ring, 0..u64::MAX), [(150, 1)]);
        ring.expire(10_000);
        assert!(ring.slots.is_empty());
        let mut ring = Ring::new(10, 3600, 3600);
        for (slot, number) in (0..200).flat_map(|slot| (0..MAX_SERIES).map(move |number| (slot, number))) {
            ring.add(3600, 1600 + 10 * slot, &key(Dimension::Route(number.to_string().into())), &one());
        }
        ring.expire(3600);
        assert_eq!(ring.slots.len(), MAX_POINTS / MAX_SERIES);
        assert_eq!(ring.slots.last_key_value().map(|(at, _)| *at), Some(3590));
        assert_eq!(counts(&ring, Range { start: 5, end: 1 }), []);
    }

    #[test]
    fn too_many_series_are_counted_together_and_the_sums_agree() {
        let mut ring = Ring::new(10, 60, 60);
        for number in 0..MAX_SERIES + 500 {
            ring.add(100, 100, &key(Dimension::Route(number.to_string().into())), &one());
        }
        ring.add(100, 100, &key(Dimension::Route("0".into())), &one());
        ring.add(100, 100, &key(Dimension::All), &one());
        assert_eq!(counts(&ring, 100..101), [(100, MAX_SERIES as u64 + 502)]);
        assert!(ring.slots[&100].len() <= MAX_SERIES + 2);
        assert_eq!(ring.slots[&100][&key(Dimension::Route("_other".into()))].requests(), 500);
    }
}
