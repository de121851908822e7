use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;

use signalbox_config::Name;

use super::period::{Mark, Period, RequestSums};

/// The counts of the last generations of the fleet's target: of all requests, and of the watched scopes.
///
/// A worker counts a request in the [`Period`] with which it began. A period that no request uses any more is added to the
/// sums of its generation.
#[derive(Debug)]
pub struct Generations {
    workers: usize,
    /// The oldest first; the current period belongs to the last.
    kept: VecDeque<Generation>,
    /// The period of the requests that begin now.
    current: Arc<Period>,
    watched: Arc<BTreeMap<Scope, Mark>>,
    /// The number of the next mark.
    next_mark: u32,
    /// The CPU time of the process that generations have by now, or that was spent before the first, in microseconds.
    attributed_us: u64,
}

/// A route or an upstream whose requests are counted apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The route of this name.
    Route(Name),
    /// The upstream of this name; a mirrored request does not count.
    Upstream(Name),
}

/// The counts of the requests of a scope that began under one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// The generation.
    pub generation: u64,
    /// The scope; `None`: all requests.
    pub scope: Option<Scope>,
    /// The counts.
    pub sums: RequestSums,
    /// The CPU time of the process while the generation was the newest, in microseconds; 0 for a scope.
    pub cpu_us: u64,
}

#[derive(Debug)]
struct Generation {
    number: u64,
    cpu_us: u64,
    /// The sums over the periods that have ended.
    all: RequestSums,
    /// Likewise, of watched scopes.
    scopes: BTreeMap<Scope, RequestSums>,
    /// The periods that requests may use.
    open: Vec<OpenPeriod>,
}

#[derive(Debug)]
struct OpenPeriod {
    period: Arc<Period>,
    watched: Arc<BTreeMap<Scope, Mark>>,
}

/// The maximum number of generations that are kept.
const MAX_GENERATIONS: usize = 8;

impl Generations {
    /// The maximum number of scopes that are watched.
    pub const MAX_SCOPES: usize = 1000;

    /// Begins with generation 0, and watches nothing.
    pub fn new(workers: usize) -> Self {
        let mut generations = Self {
            workers,
            kept: VecDeque::from([Generation::new(0)]),
            current: Arc::default(),
            watched: Arc::default(),
            next_mark: 0,
            attributed_us: 0,
        };
        generations.open_period();
        generations
    }

    /// Returns the period for the requests that begin under `generation` from now on; another generation than before has
    /// another period. `cpu_us` is the CPU time of the process.
    pub fn begin(&mut self, generation: u64, cpu_us: u64) -> Arc<Period> {
        self.attribute(cpu_us);
        if self.kept.back().is_some_and(|newest| newest.number == generation) {
            return Arc::clone(&self.current);
        }
        // Another epoch may repeat a number. The counts of that number go on, so that they only grow.
        let known = self.kept.iter().position(|kept| kept.number == generation);
        let known = known.and_then(|index| self.kept.remove(index));
        self.kept.push_back(known.unwrap_or_else(|| Generation::new(generation)));
        if self.kept.len() > MAX_GENERATIONS {
            self.kept.pop_front();
        }
        self.open_period()
    }

    /// Watches the first [`Generations::MAX_SCOPES`] of `scopes` and no others. Returns the period for the requests that begin
    /// from now on; `None`: the same are watched already.
    pub fn watch(&mut self, scopes: &[Scope]) -> Option<Arc<Period>> {
        let mut wanted = BTreeSet::new();
        for scope in scopes {
            if wanted.len() < Self::MAX_SCOPES {
                wanted.insert(scope);
            }
        }
        if wanted.iter().copied().eq(self.watched.keys()) {
            return None;
        }
        // A scope that stays keeps its mark, by which running requests find their counts.
        let mut watched = BTreeMap::clone(&self.watched);
        watched.retain(|scope, _| wanted.contains(scope));
        let used: BTreeSet<usize> = watched.values().map(|mark| mark.place()).collect();
        let mut free = (0..Mark::PLACES).filter(|place| !used.contains(place));
        for scope in wanted {
            if !watched.contains_key(scope)
                && let Some(place) = free.next()
            {
                watched.insert(scope.clone(), Mark::new(place, self.next_mark));
                self.next_mark = self.next_mark.wrapping_add(1);
            }
        }
        self.watched = Arc::new(watched);
        Some(self.open_period())
    }

    /// The watched scopes and their marks.
    pub fn watched(&self) -> impl Iterator<Item = (&Scope, Mark)> {
        self.watched.iter().map(|(scope, mark)| (scope, *mark))
    }

    /// Returns the counts until now, without those of no request: first those of all requests, then those of the watched
    /// scopes, each from the newest generation to the oldest. `cpu_us` is the CPU time of the process.
    pub fn read(&mut self, cpu_us: u64) -> Vec<Series> {
        self.attribute(cpu_us);
        self.close_periods();
        let newest_first = || self.kept.iter().rev();
        let all = newest_first().map(|kept| Series {
            generation: kept.number,
            scope: None,
            sums: kept.sums(),
            cpu_us: kept.cpu_us,
        });
        let scopes = newest_first().flat_map(|kept| {
            self.watched.keys().map(|scope| Series {
                generation: kept.number,
                scope: Some(scope.clone()),
                sums: kept.sums_of(scope),
                cpu_us: 0,
            })
        });
        all.chain(scopes).filter(|series| series.sums.requests() > 0).collect()
    }

    /// Attributes the CPU time that was spent since the last call to the newest generation.
    fn attribute(&mut self, cpu_us: u64) {
        let spent = cpu_us.saturating_sub(self.attributed_us);
        self.attributed_us += spent;
        if let Some(newest) = self.kept.back_mut() {
            newest.cpu_us += spent;
        }
    }

    fn open_period(&mut self) -> Arc<Period> {
        self.current = Arc::new(Period::new(self.workers, self.watched.values().copied()));
        let open = OpenPeriod { period: Arc::clone(&self.current), watched: Arc::clone(&self.watched) };
        if let Some(newest) = self.kept.back_mut() {
            newest.open.push(open);
        }
        self.close_periods();
        Arc::clone(&self.current)
    }

    /// Adds the periods that no request uses any more to the sums of their generations.
    fn close_periods(&mut self) {
        for kept in &mut self.kept {
            for open in mem::take(&mut kept.open) {
                match Arc::try_unwrap(open.period) {
                    Ok(ended) => kept.close(&ended, &open.watched),
                    Err(period) => kept.open.push(OpenPeriod { period, ..open }),
                }
            }
            // The sums of scopes that are watched no longer would add up without a bound.
            kept.scopes.retain(|scope, _| self.watched.contains_key(scope));
        }
    }
}

impl Generation {
    fn new(number: u64) -> Self {
        let (all, scopes) = (RequestSums::default(), BTreeMap::new());
        Self { number, cpu_us: 0, all, scopes, open: Vec::new() }
    }

    fn close(&mut self, period: &Period, watched: &BTreeMap<Scope, Mark>) {
        self.all.add(&period.sums());
        for (scope, mark) in watched {
            let sums = period.sums_of(*mark);
            if sums.requests() > 0 {
                self.scopes.entry(scope.clone()).or_default().add(&sums);
            }
        }
    }

    fn sums(&self) -> RequestSums {
        let mut sums = self.all.clone();
        for open in &self.open {
            sums.add(&open.period.sums());
        }
        sums
    }

    fn sums_of(&self, scope: &Scope) -> RequestSums {
        let mut sums = self.scopes.get(scope).cloned().unwrap_or_default();
        for open in &self.open {
            if let Some(mark) = open.watched.get(scope) {
                sums.add(&open.period.sums_of(*mark));
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Latency;

    fn ms() -> Latency {
        Latency::of(Duration::from_millis(1))
    }

    fn route(name: &str) -> Scope {
        Scope::Route(name.parse().unwrap())
    }

    fn upstream(name: &str) -> Scope {
        Scope::Upstream(name.parse().unwrap())
    }

    /// Counts a request that ends with `status` on worker 0.
    fn count(generations: &Generations, period: &Period, status: u16, scopes: &[&Scope]) {
        period.of_worker(0).count(ms(), status);
        for (_, mark) in generations.watched().filter(|(watched, _)| scopes.contains(watched)) {
            period.of_worker(0).count_watched(mark, ms(), status);
        }
    }

    /// Generation, scope, requests, errors and not found of each series.
    fn read(generations: &mut Generations) -> Vec<(u64, Option<Scope>, u64, u64, u64)> {
        let row =
            |it: Series| (it.generation, it.scope, it.sums.requests(), it.sums.errors, it.sums.not_found);
        generations.read(0).into_iter().map(row).collect()
    }

    #[test]
    fn a_request_counts_under_the_generation_with_which_it_began() {
        let mut generations = Generations::new(1);
        let first = generations.begin(1, 0);
        count(&generations, &first, 200, &[]);
        let second = generations.begin(2, 0);
        count(&generations, &second, 404, &[]);
        // It began under generation 1.
        count(&generations, &first, 500, &[]);
        let expected = [(2, None, 1, 0, 1), (1, None, 2, 1, 0)];
        assert_eq!(read(&mut generations), expected);
        drop(first);
        assert_eq!(read(&mut generations), expected, "the sums stay when no request uses the period");
        assert!(generations.kept[1].open.is_empty() && generations.kept[2].open.len() == 1);
    }

    #[test]
    fn revisions_under_the_same_generation_share_a_period() {
        let mut generations = Generations::new(1);
        let period = generations.begin(0, 0);
        assert!(Arc::ptr_eq(&period, &generations.begin(0, 0)), "a fleet without decisions");
        let other = generations.begin(5, 0);
        assert!(!Arc::ptr_eq(&period, &other));
        assert!(Arc::ptr_eq(&other, &generations.begin(5, 0)));
    }

    #[test]
    fn eight_generations_are_kept() {
        let mut generations = Generations::new(1);
        for number in 1..=12 {
            let period = generations.begin(number, 0);
            count(&generations, &period, 200, &[]);
        }
        let numbers: Vec<_> = read(&mut generations).into_iter().map(|series| series.0).collect();
        assert_eq!(numbers, [12, 11, 10, 9, 8, 7, 6, 5]);
    }

    #[test]
    fn a_generation_whose_number_comes_again_goes_on() {
        let mut generations = Generations::new(1);
        for number in [3, 1, 3] {
            let period = generations.begin(number, 0);
            count(&generations, &period, 200, &[]);
        }
        assert_eq!(read(&mut generations), [(3, None, 2, 0, 0), (1, None, 1, 0, 0)]);
    }

    #[test]
    fn watched_scopes_are_counted_apart_from_when_they_are_asked_for() {
        let mut generations = Generations::new(1);
        let (a, b, u) = (route("a"), route("b"), upstream("a"));
        let unwatched = generations.begin(1, 0);
        count(&generations, &unwatched, 200, &[]);
        let period = generations.watch(&[a.clone(), u.clone()]).unwrap();
        count(&generations, &period, 500, &[&a, &u]);
        count(&generations, &period, 404, &[&b]);
        count(&generations, &unwatched, 500, &[&a]);
        let of = |scope: &Scope, requests| (1, Some(scope.clone()), requests, requests, 0);
        assert_eq!(read(&mut generations), [(1, None, 4, 2, 1), of(&a, 1), of(&u, 1)]);

        assert!(generations.watch(&[u.clone(), a.clone(), u]).is_none(), "nothing changes");
        let next = generations.watch(&[b.clone(), a.clone()]).unwrap();
        // The first began while the upstream was watched and `b` was not.
        count(&generations, &period, 500, &[&a, &b]);
        count(&generations, &next, 500, &[&a, &b]);
        drop((unwatched, period));
        assert_eq!(read(&mut generations), [(1, None, 6, 4, 1), of(&a, 3), of(&b, 1)]);
        assert!(generations.watch(&[]).is_some());
        assert_eq!(read(&mut generations), [(1, None, 6, 4, 1)]);
    }

    #[test]
    fn scopes_of_each_generation_are_read_from_the_newest_to_the_oldest() {
        let mut generations = Generations::new(1);
        let scopes = [route("a"), route("b")];
        generations.watch(&scopes);
        for number in [1, 2] {
            let period = generations.begin(number, 0);
            count(&generations, &period, 200, &[&scopes[0], &scopes[1]]);
        }
        let read: Vec<_> = read(&mut generations).into_iter().map(|row| (row.0, row.1)).collect();
        let [a, b] = scopes.map(Some);
        assert_eq!(read, [(2, None), (1, None), (2, a.clone()), (2, b.clone()), (1, a), (1, b)]);
    }

    #[test]
    fn no_more_than_a_thousand_scopes_are_watched() {
        let mut generations = Generations::new(1);
        let scopes: Vec<_> = (0..1500).map(|number| route(&format!("r{number}"))).collect();
        for asked in [&scopes[..], &scopes[500..]] {
            let period = generations.watch(asked).unwrap();
            count(&generations, &period, 200, &asked.iter().collect::<Vec<_>>());
            let places: BTreeSet<_> = generations.watched().map(|(_, mark)| mark.place()).collect();
            assert_eq!(places.len(), 1000, "each has a place of its own");
            assert!(generations.watched().all(|(scope, _)| asked[..1000].contains(scope)));
        }
        let rows = read(&mut generations);
        assert_eq!(rows.len(), 1001);
        // The first 500 of them were watched twice.
        assert_eq!(rows[1..].iter().map(|row| row.2).sum::<u64>(), 1500);
    }

    #[test]
    fn cpu_time_is_that_of_the_generation_that_was_the_newest() {
        let mut generations = Generations::new(1);
        let period = generations.begin(1, 1000);
        count(&generations, &period, 200, &[]);
        let period = generations.begin(2, 1300);
        count(&generations, &period, 200, &[]);
        let cpu = |generations: &mut Generations, now| {
            generations
                .read(now)
                .into_iter()
                .map(|series| (series.generation, series.cpu_us))
                .collect::<Vec<_>>()
        };
        assert_eq!(cpu(&mut generations, 1350), [(2, 50), (1, 300)]);
        assert_eq!(cpu(&mut generations, 1400), [(2, 100), (1, 300)]);
    }
}
