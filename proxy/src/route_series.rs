//! Bounds the number of routes with series of their own in the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::active::RouteStats;
use crate::telemetry::{Class, Counted, Flag, SeriesPlace, TrafficGroup, TrafficSums};

/// The routes that have series of their own in the metrics, up to a limit; others are counted together. A route keeps its place
/// as long as it exists, so no counter goes back, and the sum over all series is the number of requests.
#[derive(Debug)]
pub struct RouteSeries {
    limit: usize,
    /// The number of routes with series of their own.
    own: usize,
    /// The final counts of routes that were counted together and are gone.
    ended: BTreeMap<Labels, u64>,
    /// Likewise their traffic, without that of the group's others.
    ended_traffic: TrafficSums,
    /// Which routes' traffic is counted apart.
    group: Arc<TrafficGroup>,
}

/// The labels of a count, without the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    listener: u16,
    class: Class,
    flag: Flag,
}

/// The counts of routes, as the metrics show them.
#[derive(Debug, Default)]
pub struct ShownRoutes {
    /// The routes with series of their own.
    pub own: Vec<(Arc<RouteStats>, Vec<Counted>)>,
    /// All others together.
    pub others: Vec<Counted>,
    /// The traffic of all routes whose traffic is not shown apart.
    pub others_traffic: TrafficSums,
}

/// The name under which routes beyond the limit are counted. No route can have it.
pub const OTHERS: &str = "_other";

impl RouteSeries {
    /// At most `limit` routes of a group have series of their own.
    pub fn new(limit: usize, group: &Arc<TrafficGroup>) -> Self {
        let group = Arc::clone(group);
        Self { limit, own: 0, ended: BTreeMap::new(), ended_traffic: TrafficSums::default(), group }
    }

    /// Reads the counts of routes.
    pub fn read<'r>(&mut self, routes: impl Iterator<Item = &'r Arc<RouteStats>>) -> ShownRoutes {
        let mut shown = ShownRoutes::default();
        let mut others = self.ended.clone();
        let mut others_traffic = self.ended_traffic.clone();
        for route in routes {
            let place = route.series.place();
            if place == SeriesPlace::Ended {
                continue;
            }
            let counted = route.requests.read();
            if counted.is_empty() {
                continue;
            }
            if self.place(route) == SeriesPlace::Own {
                shown.own.push((Arc::clone(route), counted));
            } else {
                add(&mut others, &counted);
                route.traffic.read().into_iter().for_each(|sums| others_traffic.add(&sums));
            }
        }
        self.group.others().into_iter().for_each(|sums| others_traffic.add(&sums));
        shown.others_traffic = others_traffic;
        shown.others = others.into_iter().map(|(labels, count)| labels.with(count)).collect();
        shown
    }

    /// Forgets a route that is gone: another may have its place.
    pub fn forget(&mut self, route: &RouteStats) {
        match route.series.place() {
            SeriesPlace::Own => self.own = self.own.saturating_sub(1),
            SeriesPlace::Others | SeriesPlace::Undecided => {
                add(&mut self.ended, &route.requests.read());
                route.traffic.read().into_iter().for_each(|sums| self.ended_traffic.add(&sums));
            }
            SeriesPlace::Ended => {}
        }
        route.series.set(SeriesPlace::Ended);
    }

    /// The place of a route that has served requests.
    fn place(&mut self, route: &RouteStats) -> SeriesPlace {
        let place = route.series.place();
        if place != SeriesPlace::Undecided {
            return place;
        }
        let place = if self.own < self.limit {
            self.own += 1;
            SeriesPlace::Own
        } else {
            SeriesPlace::Others
        };
        route.series.set(place);
        place
    }
}

fn add(sums: &mut BTreeMap<Labels, u64>, counted: &[Counted]) {
    for one in counted {
        let labels = Labels { listener: one.listener, class: one.class, flag: one.flag };
        *sums.entry(labels).or_default() += one.count;
    }
}

impl Labels {
    fn with(self, count: u64) -> Counted {
        Counted { listener: self.listener, class: self.class, flag: self.flag, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::telemetry::{End, EndedRequest, Key, Latency};

    fn route(name: &str) -> Arc<RouteStats> {
        Arc::new(RouteStats::new(name.into(), 1, &TrafficGroup::new(1, 1)))
    }

    fn serve(route: &RouteStats, requests: u64) {
        for _ in 0..requests {
            route.requests.count(0, Key::new(0, 200, Flag::None));
            let latency = Latency::of(Duration::from_millis(1));
            let (end, flag) = (End::Success, Flag::None);
            let ended = EndedRequest { latency, first_byte: latency, end, flag, bytes_in: 0, bytes_out: 0 };
            route.traffic.count(0, ended);
        }
    }

    fn sum(counted: &[Counted]) -> u64 {
        counted.iter().map(|one| one.count).sum()
    }

    /// The names of the routes with series of their own, and the number of requests of all others.
    fn read(series: &mut RouteSeries, routes: &[Arc<RouteStats>]) -> (Vec<String>, u64, u64) {
        let shown = series.read(routes.iter());
        let names = shown.own.iter().map(|(route, _)| route.name.to_string()).collect();
        let own: u64 = shown.own.iter().map(|(_, counted)| sum(counted)).sum();
        let apart = shown.own.iter().filter_map(|(route, _)| route.traffic.read());
        let traffic = apart.map(|sums| sums.requests()).sum::<u64>() + shown.others_traffic.requests();
        assert_eq!(traffic, own + sum(&shown.others), "durations agree with requests");
        (names, sum(&shown.others), own + sum(&shown.others))
    }

    #[test]
    fn routes_beyond_the_limit_are_counted_together_and_sums_agree() {
        let mut series = RouteSeries::new(2, &TrafficGroup::new(1, 1));
        let routes: Vec<_> = ["a", "b", "c", "d"].map(route).into();
        serve(&routes[3], 5);
        assert_eq!(
            read(&mut series, &routes),
            (vec!["d".to_owned()], 0, 5),
            "an unused route takes no place"
        );
        for route in &routes {
            serve(route, 1);
        }
        assert_eq!(read(&mut series, &routes), (vec!["a".to_owned(), "d".to_owned()], 2, 9));
    }

    #[test]
    fn a_route_that_is_gone_frees_its_place_and_no_counter_goes_back() {
        let mut series = RouteSeries::new(1, &TrafficGroup::new(1, 1));
        let mut routes: Vec<_> = ["a", "b"].map(route).into();
        for route in &routes {
            serve(route, 3);
        }
        assert_eq!(read(&mut series, &routes), (vec!["a".to_owned()], 3, 6));
        let gone = routes.remove(1);
        series.forget(&gone);
        assert_eq!(
            read(&mut series, &routes),
            (vec!["a".to_owned()], 3, 6),
            "its counts stay among the others"
        );
        assert_eq!(read(&mut series, &[gone]), (vec![], 3, 3), "it is not counted twice");
        series.forget(&routes.remove(0));
        let next = route("next");
        serve(&next, 1);
        assert_eq!(read(&mut series, &[next]), (vec!["next".to_owned()], 3, 4));
    }
}
