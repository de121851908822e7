//! The series in all resolutions.

use std::collections::HashMap;
use std::sync::Arc;

use super::journal::Row;
use super::point::Point;
use super::resolutions::{KEPT, RESOLUTIONS};
use super::ring::Ring;
use super::series::SeriesKey;
use crate::store::StatsRow;

/// The series in all resolutions, the finest first.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) rings: [Ring; 3],
    /// For each resolution: the number of the last stored part of each control plane that it has.
    covered: [HashMap<Arc<str>, u64>; 3],
}

/// The part of a point that a ring keeps. Only those from which the present is read keep the failures of targets.
fn kept<'p>(ring: &Ring, point: &'p Point, coarse: Option<&'p Point>) -> &'p Point {
    coarse.filter(|_| ring.resolution > RESOLUTIONS[1]).unwrap_or(point)
}

impl Rings {
    /// `since`: from which second on the finest resolution is complete. The others are read from the database.
    pub(super) fn new(since: u64) -> Self {
        let [ten_seconds, minute, ten_minutes] = RESOLUTIONS;
        let [hour, day, week] = KEPT;
        Self {
            rings: [
                Ring::new(ten_seconds, hour, hour / 2).since(since),
                Ring::new(minute, day, 2 * hour),
                Ring::new(ten_minutes, week, day),
            ],
            covered: Default::default(),
        }
    }

    /// Adds a point in every resolution.
    pub(super) fn add(&mut self, now: u64, at: u64, key: &SeriesKey, point: &Point) {
        let coarse = point.without_targets();
        for ring in &mut self.rings {
            ring.add(now, at, key, kept(ring, point, coarse.as_ref()));
        }
    }

    /// Adds a stored part of a control plane, in each resolution that is not finer than the part is, and does not have it yet. Parts are to come
    /// from the coarsest to the finest, and in the order of their numbers.
    pub(super) fn add_row(&mut self, now: u64, row: &Row) {
        let rings = self.rings.iter_mut().zip(&mut self.covered);
        for (ring, covered) in rings.filter(|(ring, _)| ring.resolution >= row.resolution) {
            let covered = covered.entry(Arc::clone(&row.instance)).or_default();
            if row.first <= *covered {
                continue;
            }
            *covered = row.last;
            for cell in &row.cells {
                let coarse = cell.point.without_targets();
                ring.add(now, cell.at, &cell.key, kept(ring, &cell.point, coarse.as_ref()));
            }
        }
    }

    /// True if every resolution that could use a stored row has it.
    pub(super) fn has(&self, row: &StatsRow) -> bool {
        let rings = self.rings.iter().zip(&self.covered);
        rings
            .filter(|(ring, _)| ring.resolution >= row.resolution)
            .all(|(_, covered)| covered.get(&row.instance).is_some_and(|covered| row.first <= *covered))
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: u64) {
        self.rings.iter_mut().for_each(|ring| ring.expire(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::journal::Cell;
    use crate::stats::series::Dimension;

    fn row(resolution: u64, first: u64, last: u64, at: u64) -> Row {
        let key = SeriesKey { fleet: "default".into(), dimension: Dimension::All };
        let point = Point { succeeded: last - first + 1, ..Point::default() };
        Row { instance: "a".into(), resolution, first, last, cells: vec![Cell { at, key, point }] }
    }

    fn requests(rings: &Rings) -> [u64; 3] {
        rings
            .rings
            .each_ref()
            .map(|ring| ring.points(0..u64::MAX).map(|(_, _, point)| point.requests()).sum())
    }

    #[test]
    fn each_part_is_added_once_to_each_resolution() {
        let mut rings = Rings::new(0);
        let now = 100_000;
        // At the start, from the coarsest to the finest: parts 1 to 60 in one, 55 to 60 in another, 61 alone.
        rings.add_row(now, &row(600, 1, 60, 99_000));
        rings.add_row(now, &row(60, 55, 60, 99_540));
        rings.add_row(now, &row(10, 61, 61, 99_600));
        assert_eq!(requests(&rings), [1, 7, 61]);
        // Then they come one by one, and again as a part of longer ones.
        for number in 62..=66 {
            rings.add_row(now, &row(10, number, number, 99_610));
        }
        rings.add_row(now, &row(60, 61, 66, 99_600));
        rings.add_row(now, &row(600, 61, 66, 99_600));
        rings.add_row(now, &row(10, 64, 64, 99_610));
        assert_eq!(requests(&rings), [6, 12, 66]);
    }
}
