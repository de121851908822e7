//! Questions for series.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::point::Point;
use super::ring::Ring;
use super::rings::Rings;
use super::series::{Dimension, SeriesKey};

/// A question for series.
#[derive(Debug, Clone)]
pub struct Query {
    /// The fleet; `None`: all fleets together.
    pub fleet: Option<Arc<str>>,
    /// The requests of the fleet.
    pub select: Select,
    /// The first second, since 1970.
    pub from: u64,
    /// The second after the last one.
    pub to: u64,
    /// The time between two points in seconds; `None`: as is usual for such a range.
    pub step: Option<u64>,
    /// The most series of the answer, those with the most requests.
    pub limit: usize,
}

/// The requests that a query is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Select {
    /// One series.
    One(Dimension),
    /// A series for each name of a kind: `route`, `upstream`, `consumer`, `proxy` or `revision`.
    Each(&'static str),
}

/// The answer to a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The time between two points in seconds.
    pub step: u64,
    /// The series, those with the most requests first.
    pub series: Vec<AnsweredSeries>,
}

/// A series of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredSeries {
    /// The requests that it has.
    pub dimension: Dimension,
    /// The start of each step in which there were requests, in seconds since 1970, and the requests that ended in it.
    pub points: Vec<(u64, Point)>,
}

/// The number of points that are usual.
const USUAL_POINTS: u64 = 90;

impl Select {
    fn matches(&self, dimension: &Dimension) -> bool {
        match self {
            Self::One(wanted) => wanted == dimension,
            Self::Each(kind) => dimension.kind() == Some(*kind),
        }
    }
}

impl Rings {
    /// Answers a query. `now` is the present second.
    pub(super) fn answer(&self, now: u64, query: &Query) -> Answer {
        let usual = query.to.saturating_sub(query.from).div_ceil(USUAL_POINTS);
        let wanted = query.step.unwrap_or(usual).max(1);
        let ring = self.ring_for(now, query.from, wanted);
        let step = wanted.div_ceil(ring.resolution) * ring.resolution;
        let range = query.from - query.from % step..query.to;
        let mut series: HashMap<&Dimension, BTreeMap<u64, Point>> = HashMap::new();
        for (at, SeriesKey { fleet, dimension }, point) in ring.points(range) {
            if query.fleet.as_ref().is_none_or(|wanted| wanted == fleet) && query.select.matches(dimension) {
                series.entry(dimension).or_default().entry(at - at % step).or_default().add(point);
            }
        }
        let mut series: Vec<(u64, AnsweredSeries)> = series
            .into_iter()
            .map(|(dimension, points)| {
                let requests = points.values().map(Point::requests).fold(0, u64::saturating_add);
                let points = points.into_iter().collect();
                (requests, AnsweredSeries { dimension: dimension.clone(), points })
            })
            .collect();
        series.sort_unstable_by(|(a_requests, a), (b_requests, b)| {
            b_requests.cmp(a_requests).then_with(|| a.dimension.cmp(&b.dimension))
        });
        series.truncate(query.limit);
        Answer { step, series: series.into_iter().map(|(_, series)| series).collect() }
    }

    /// The requests of each series from the second `from` to before `to`, in slots of at most `step` seconds. Latencies take longer, and are
    /// those of the series that are `timed`.
    pub(super) fn counts(
        &self,
        now: u64,
        (from, to): (u64, u64),
        step: u64,
        timed: fn(&Dimension) -> bool,
    ) -> HashMap<SeriesKey, Point> {
        let mut counts = HashMap::<SeriesKey, Point>::new();
        for (_, key, point) in self.ring_for(now, from, step).points(from..to) {
            let add = if timed(&key.dimension) { Point::add } else { Point::add_counts };
            match counts.get_mut(key) {
                Some(sum) => add(sum, point),
                None => add(counts.entry(key.clone()).or_default(), point),
            }
        }
        counts
    }

    /// The coarsest resolution that is not coarser than `step`, among those that go back to `from`. If only coarser ones do, the finest of them.
    fn ring_for(&self, now: u64, from: u64, step: u64) -> &Ring {
        let [finest, .., coarsest] = &self.rings;
        let mut reaching = self.rings.iter().filter(|ring| ring.begin(now) <= from);
        let first = reaching.next().unwrap_or(if finest.begin(now) <= from { finest } else { coarsest });
        reaching
            .take_while(|ring| ring.resolution <= step && step.is_multiple_of(ring.resolution))
            .last()
            .unwrap_or(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_200;

    fn filled() -> Rings {
        let mut rings = Rings::new(0);
        let point = |succeeded| Point { succeeded, ..Point::default() };
        for ago in (0..7200).step_by(10) {
            for (fleet, requests) in [("core", 1), ("edge", 2)] {
                let mut add = |dimension, requests| {
                    let key = SeriesKey { fleet: fleet.into(), dimension };
                    rings.add(NOW, NOW - ago, &key, &point(requests));
                };
                add(Dimension::All, requests);
                add(Dimension::Route("a".into()), requests);
                add(Dimension::Route("b".into()), 3 * requests);
            }
        }
        rings
    }

    fn query(from: u64, step: Option<u64>) -> Query {
        let select = Select::One(Dimension::All);
        Query { fleet: None, select, from: NOW - from, to: NOW + 10, step, limit: 10 }
    }

    #[test]
    fn the_resolution_follows_from_the_range_and_the_step() {
        let rings = filled();
        for (from, step, expected) in [
            (900, None, 20),
            (900, Some(10), 10),
            (900, Some(15), 20),
            (900, Some(60), 60),
            (900, Some(90), 90),
            (3600, None, 50),
            (7000, None, 120),
            (7000, Some(10), 60),
            (86_000, None, 960),
            (7 * 86_400 - 700, None, 7200),
            (30 * 86_400, Some(10), 600),
        ] {
            let answer = rings.answer(NOW, &query(from, step));
            assert_eq!(answer.step, expected, "{from} {step:?}");
            let requests: u64 = answer.series[0].points.iter().map(|(_, point)| point.requests()).sum();
            let covered = (from.min(7200).div_ceil(10)) * 3;
            assert!(
                (covered..=covered + 3 * answer.step / 5 + 6).contains(&requests),
                "{from} {step:?}: {requests}"
            );
            assert!(answer.series[0].points.iter().all(|(at, _)| at % answer.step == 0));
        }
    }

    #[test]
    fn series_are_selected_by_fleet_and_dimension_those_with_the_most_requests_first() {
        let rings = filled();
        let names = |query: Query| -> Vec<(Dimension, u64)> {
            let series = rings.answer(NOW, &query).series;
            series.into_iter().map(|one| (one.dimension, one.points[0].1.requests())).collect()
        };
        let route = |name: &str| Dimension::Route(name.into());
        let each = Query { select: Select::Each("route"), from: NOW, ..query(0, Some(10)) };
        assert_eq!(names(each.clone()), [(route("b"), 9), (route("a"), 3)]);
        assert_eq!(names(Query { limit: 1, ..each.clone() }), [(route("b"), 9)]);
        assert_eq!(
            names(Query { fleet: Some("edge".into()), ..each.clone() }),
            [(route("b"), 6), (route("a"), 2)]
        );
        assert_eq!(names(Query { select: Select::One(route("a")), ..each.clone() }), [(route("a"), 3)]);
        assert_eq!(names(Query { select: Select::Each("proxy"), ..each.clone() }), []);
        assert_eq!(names(Query { fleet: Some("none".into()), ..each }), []);
    }
}
