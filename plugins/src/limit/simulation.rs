//! Several proxies with leases on one count, in simulated time: partitions, crashes, late answers, leases that come back.

use proptest::prelude::*;

use super::budget::Budget;
use super::lease::{Lease, Spend};
use super::shared::{EXTRA_SHARE, Grant};
use super::usage::Usage;

const SECOND: u64 = 1_000_000_000;
const PROXIES: usize = 3;
const LIFE: u64 = SECOND / 10;

#[derive(Debug, Clone, Copy)]
enum Event {
    /// Time goes on.
    Pass(u64),
    /// A request comes to a proxy.
    Request(usize),
    /// The proxy's oldest open wish is answered.
    Answer(usize),
    /// The proxy gives back what it did not spend in time.
    Return(usize),
    /// The proxy loses sight of the store, or sees it again.
    Partition(usize, bool),
    /// The proxy forgets all.
    Crash(usize),
}

/// The store, as the scripts are.
struct Store {
    usage: Usage,
    budget: Budget,
}

impl Store {
    fn take(&mut self, now: u64, cost: u64, extra: u64) -> Grant {
        let mut verdict = self.usage.take(now, &self.budget, cost);
        let mut granted = 0;
        if verdict.refused_for.is_none() {
            let more = extra.min(verdict.remaining / EXTRA_SHARE);
            granted = cost + more;
            if more > 0 {
                verdict = self.usage.take(now, &self.budget, more);
            }
        }
        Grant { granted, verdict }
    }
}

#[derive(Default)]
struct Proxy {
    lease: Lease,
    /// Cost, and extra.
    open: Vec<(u64, u64)>,
    is_cut_off: bool,
}

struct Fleet {
    now: u64,
    store: Store,
    proxies: [Proxy; PROXIES],
    size: u64,
    /// The times of the requests that passed.
    passed: Vec<u64>,
    /// The units that all proxies held, at times.
    held: Vec<(u64, u64)>,
}

impl Fleet {
    fn new(budget: Budget, size: u64) -> Self {
        Self {
            now: SECOND,
            store: Store { usage: Usage::default(), budget },
            proxies: Default::default(),
            size,
            passed: Vec::new(),
            held: Vec::new(),
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Pass(time) => self.now += time,
            Event::Request(index) => match self.proxies[index].lease.spend(now, self.size) {
                Spend::Decided(verdict) => self.note(verdict.refused_for.is_none()),
                Spend::Renew(_, extra) => {
                    self.note(true);
                    self.proxies[index].open.push((0, extra));
                }
                Spend::Ask(extra) => self.proxies[index].open.push((1, extra)),
            },
            Event::Answer(index) => self.answer(index),
            Event::Return(index) => {
                let is_cut_off = self.proxies[index].is_cut_off;
                for returned in self.proxies[index].lease.expired(now) {
                    if !is_cut_off {
                        let budget = self.store.budget;
                        self.store.usage.give_back(now, &budget, returned.counted_at, returned.units);
                    }
                }
            }
            Event::Partition(index, is_cut_off) => self.proxies[index].is_cut_off = is_cut_off,
            Event::Crash(index) => self.proxies[index] = Proxy::default(),
        }
        let held = self.proxies.iter().map(|proxy| proxy.lease.held()).sum();
        self.held.push((self.now, held));
    }

    fn answer(&mut self, index: usize) {
        let proxy = &mut self.proxies[index];
        if proxy.open.is_empty() {
            return;
        }
        let (cost, extra) = proxy.open.remove(0);
        if proxy.is_cut_off {
            // The policy for an unavailable store is to deny.
            proxy.lease.failed(extra > 0);
            return;
        }
        let grant = self.store.take(self.now, cost, extra);
        proxy.lease.granted(self.now, &grant, cost, LIFE, extra > 0);
        if cost > 0 {
            self.note(grant.verdict.refused_for.is_none() && grant.granted >= cost);
        }
    }

    fn note(&mut self, passes: bool) {
        if passes {
            self.passed.push(self.now);
        }
    }

    /// The most that was held at any moment of a time.
    fn held_at(&self, time: u64) -> u64 {
        let until = self.held.partition_point(|(at, _)| *at <= time);
        let before = self.held[..until].iter().rev();
        let last = before.clone().next().map_or(0, |(_, held)| *held);
        before.take_while(|(at, _)| *at == time).map(|(_, held)| *held).max().unwrap_or(last)
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let proxy = 0..PROXIES;
    let event = prop_oneof![
        4 => prop_oneof![0..SECOND / 100, 0..SECOND / 4, Just(SECOND)].prop_map(Event::Pass),
        30 => proxy.clone().prop_map(Event::Request),
        20 => proxy.clone().prop_map(Event::Answer),
        6 => proxy.clone().prop_map(Event::Return),
        2 => (proxy.clone(), any::<bool>()).prop_map(|(proxy, cut)| Event::Partition(proxy, cut)),
        1 => proxy.prop_map(Event::Crash),
    ];
    prop::collection::vec(event, 1..400)
}

proptest! {
    /// In any window, no more pass than the limit and what all proxies held at its beginning, which is never more than a
    /// lease for each of them.
    #[test]
    fn a_fleet_admits_at_most_the_limit_and_its_leases(
        limit in 1_u64..120,
        size in 1_u64..12,
        bucket: bool,
        events in events(),
    ) {
        let budget = match bucket {
            true => Budget::bucket(limit, SECOND, limit),
            false => Budget::sliding_window(limit, SECOND),
        };
        let mut fleet = Fleet::new(budget, size);
        for event in events {
            fleet.step(event);
            for proxy in &fleet.proxies {
                prop_assert!(proxy.lease.held() <= size);
            }
        }
        for (index, last) in fleet.passed.iter().enumerate() {
            for (first_index, first) in fleet.passed[..=index].iter().enumerate() {
                let count = (index - first_index + 1) as u64;
                // The span begins just before the first of them.
                let held = fleet.held_at(first - 1).max(fleet.held_at(*first));
                let most = match bucket {
                    true => limit + (u128::from(last - first) * u128::from(limit)).div_ceil(u128::from(SECOND)) as u64,
                    false if last - first < SECOND => limit,
                    false => continue,
                };
                prop_assert!(count <= most + held, "{count} of {most} and {held} from {first} to {last}");
                prop_assert!(held <= PROXIES as u64 * size);
            }
        }
    }

    /// Without trouble nothing is lost: as soon as leases have come back, the whole limit can be used again.
    #[test]
    fn leases_that_are_not_spent_come_back(limit in 10_u64..120, size in 1_u64..12, requests in 1_usize..9) {
        let mut fleet = Fleet::new(Budget::sliding_window(limit, SECOND), size);
        for request in 0..requests {
            fleet.step(Event::Request(request % PROXIES));
            (0..PROXIES).for_each(|proxy| fleet.step(Event::Answer(proxy)));
        }
        fleet.step(Event::Pass(LIFE));
        (0..PROXIES).for_each(|proxy| fleet.step(Event::Return(proxy)));
        let now = fleet.now;
        let left = fleet.store.take(now, 0, 0).verdict.remaining;
        prop_assert_eq!(left, limit - fleet.passed.len() as u64);
    }
}
