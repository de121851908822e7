//! Simulated fleets: how often the gates fail without a reason, and how soon they notice a fault.
//!
//! `cargo test --release -p signalbox-rollout -- --ignored --nocapture measured` prints the tables of `docs/ROLLOUTS-STATISTICS.md`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::histogram::Histogram;
use super::random::Random;
use super::*;
use crate::reading::{Scope, Verdict};

/// A fleet, its traffic, and the fault of its canaries. One window is a second.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    proxies: usize,
    canaries: usize,
    /// Requests per second and proxy.
    rps: f64,
    /// The failure rate of a usual proxy.
    base: f64,
    /// Each proxy's failure rate is the base times a log-normal number with this standard deviation of the logarithm.
    sigma: f64,
    /// Bursts per hour and proxy: it fails half of its requests for 10 s.
    bursts: f64,
    /// Seconds in which every proxy fails 40 times as often.
    outage: (u64, u64),
    /// Length of the past in units of 10 s.
    past: u64,
    /// The failure rate of the faulty canaries.
    fault: Option<f64>,
    /// The multiple of its own failure rate that a faulty canary has, unless `fault` says it.
    worse: f64,
    /// The number of faulty canaries.
    faulty: usize,
    /// The second in which the fault begins.
    fault_at: u64,
    /// The share of requests above the rest's p99, for faulty canaries; `None` leaves latencies out.
    slow: Option<f64>,
    /// Length in seconds.
    length: u64,
}

const USUAL: Scenario = Scenario {
    proxies: 100,
    canaries: 10,
    rps: 20.0,
    base: 0.005,
    sigma: 0.0,
    bursts: 0.0,
    outage: (0, 0),
    past: 60,
    fault: None,
    worse: 1.0,
    faulty: usize::MAX,
    fault_at: 0,
    slow: None,
    length: 600,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Nothing,
    /// The gates fail this many seconds after the fault.
    Fails(u64),
    /// A swap is advised this many seconds after the fault.
    Swap(u64),
}

/// One run of a scenario.
struct Run {
    scenario: Scenario,
    random: Random,
    names: Vec<Arc<str>>,
    rates: Vec<f64>,
    burst_until: Vec<u64>,
}

impl Run {
    fn new(scenario: Scenario, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let proxies = 0..scenario.proxies;
        Self {
            names: proxies.clone().map(|proxy| format!("p{proxy}").into()).collect(),
            rates: proxies
                .clone()
                .map(|_| scenario.base * (scenario.sigma * random.normal()).exp())
                .collect(),
            burst_until: proxies.map(|_| 0).collect(),
            random,
            scenario,
        }
    }

    /// The requests that one proxy serves in some seconds that begin at one.
    fn sample(&mut self, proxy: usize, at: u64, seconds: u64, faulty: bool) -> Sample {
        let scenario = self.scenario;
        if scenario.bursts > 0.0 && self.random.unit() < scenario.bursts / 3600.0 * seconds as f64 {
            self.burst_until[proxy] = at + 10;
        }
        let mut rate = self.rates[proxy];
        if at < self.burst_until[proxy] {
            rate = 0.5;
        }
        if (scenario.outage.0..scenario.outage.1).contains(&at) {
            rate *= 40.0;
        }
        if faulty {
            rate = scenario.fault.unwrap_or(rate * scenario.worse);
        }
        let requests = self.random.poisson(scenario.rps * seconds as f64);
        let mut sample =
            Sample { requests, errors: self.random.failures(requests, rate.min(1.0)), ..Sample::default() };
        if let Some(slow) = scenario.slow {
            let slow = if faulty { slow } else { 0.01 };
            // The rest's p99 lies within bucket 80.
            let half = slow / 2.0;
            let shares = [(40, 0.5), (60, 0.4), (75, 0.095 - slow), (80, 0.005 + half), (100, half)];
            let counts = shares.map(|(bucket, share)| (bucket, self.random.poisson(requests as f64 * share)));
            sample.latency = Histogram::from(counts.to_vec());
        }
        sample
    }

    fn window(&mut self, key: &StepKey, at: u64, seconds: u64, canaries: usize) -> Window {
        let proxies = (0..self.scenario.proxies).map(|proxy| {
            let canary = proxy < canaries;
            let faulty = canary && proxy < self.scenario.faulty && at >= self.scenario.fault_at;
            ProxyWindow {
                node: self.names[proxy].clone(),
                place: Place { group: if canary { Group::Canary } else { Group::Rest }, zone: "a".into() },
                scopes: vec![(Scope::Fleet, self.sample(proxy, at, seconds, faulty))],
            }
        });
        Window { step: *key, length_ms: seconds * 1000, proxies: proxies.collect() }
    }

    fn run(mut self) -> Outcome {
        let (scenario, policy) = (self.scenario, Policy::default());
        let key = StepKey { round: 1, generation: 2 };
        let mut history = History::default();
        for block in 0..scenario.past {
            // The past ends before the first second, in which outages and faults are counted.
            let at = 1_000_000 + block * 10;
            let window = self.window(&key, at, 10, 0);
            history.observe(&window);
        }
        self.burst_until.fill(0);
        let canaries = &self.names[..scenario.canaries];
        let past = history.past(|node| canaries.iter().any(|canary| &**canary == node));
        let mut judge = Judge::default();
        judge.begin(Step { key, changed: BTreeSet::new(), reference: Reference::Rest }, past);
        let count = |proxies: usize| proxies as u64;
        let members = Members { canaries: count(scenario.canaries), ..Members::default() };
        for at in 0..scenario.length {
            let window = self.window(&key, at, 1, scenario.canaries);
            judge.observe(&window, &policy);
            let judgement = judge.look(members, &policy);
            let after = (at + 1).saturating_sub(scenario.fault_at);
            if judgement.verdict == Verdict::Failing {
                return Outcome::Fails(after);
            }
            if judgement.swap.is_some() {
                return Outcome::Swap(after);
            }
        }
        Outcome::Nothing
    }
}

/// The number of failed runs, of runs with a swap, and the sorted times of both.
fn outcomes(scenario: Scenario, runs: u64) -> (usize, usize, Vec<u64>) {
    let outcomes: Vec<_> = (0..runs).map(|seed| Run::new(scenario, seed + 1).run()).collect();
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Fails(_))).count();
    let swapped = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Swap(_))).count();
    let mut times: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Nothing => None,
            Outcome::Fails(at) | Outcome::Swap(at) => Some(*at),
        })
        .collect();
    times.sort_unstable();
    (failed, swapped, times)
}

const FALSE_ALARMS: &[(&str, Scenario)] = &[
    ("equal proxies", USUAL),
    ("equal proxies, without a past", Scenario { past: 0, ..USUAL }),
    ("equal proxies, latencies too", Scenario { slow: Some(0.01), ..USUAL }),
    ("equal proxies, 50 of 100 canaries", Scenario { canaries: 50, ..USUAL }),
    ("equal proxies, 1 of 2 is canary, 1 rps", Scenario { proxies: 2, canaries: 1, rps: 1.0, ..USUAL }),
    ("no failures at all", Scenario { base: 0.0, ..USUAL }),
    ("unequal proxies, σ = 0.5", Scenario { sigma: 0.5, ..USUAL }),
    ("unequal proxies, σ = 1", Scenario { sigma: 1.0, ..USUAL }),
    ("unequal proxies, σ = 1, without a past", Scenario { sigma: 1.0, past: 0, ..USUAL }),
    ("outage ×40 everywhere, 60 s", Scenario { outage: (100, 160), ..USUAL }),
    ("outage ×40 everywhere, 60 s, 0.5 rps", Scenario { outage: (100, 160), rps: 0.5, ..USUAL }),
    ("bursts of single proxies, 1 an hour each", Scenario { bursts: 1.0, ..USUAL }),
    ("bursts of single proxies, 6 an hour each", Scenario { bursts: 6.0, ..USUAL }),
    ("bursts, 1 an hour each, without a past", Scenario { bursts: 1.0, past: 0, ..USUAL }),
];

const DETECTIONS: &[(&str, Scenario)] = &[
    ("all failing, 1 rps", Scenario { rps: 1.0, fault: Some(1.0), ..USUAL }),
    ("all failing, 0.05 rps", Scenario { rps: 0.05, fault: Some(1.0), ..USUAL }),
    (
        "all failing, 1 rps, a rest without failures",
        Scenario { rps: 1.0, base: 0.0, fault: Some(1.0), ..USUAL },
    ),
    ("0.5 → 5 %", Scenario { fault: Some(0.05), ..USUAL }),
    ("0.5 → 1.5 %", Scenario { fault: Some(0.015), ..USUAL }),
    ("0.5 → 1 %", Scenario { fault: Some(0.01), ..USUAL }),
    ("0 → 1 %", Scenario { base: 0.0, fault: Some(0.01), ..USUAL }),
    ("one of ten canaries bad: 50 %", Scenario { fault: Some(0.5), faulty: 1, ..USUAL }),
    ("one of ten canaries bad: 10 %", Scenario { fault: Some(0.1), faulty: 1, ..USUAL }),
    ("3 % over p99", Scenario { slow: Some(0.03), ..USUAL }),
    ("unequal proxies, σ = 1, each ×3", Scenario { sigma: 1.0, worse: 3.0, ..USUAL }),
    ("unequal proxies, σ = 1, each ×10", Scenario { sigma: 1.0, worse: 10.0, ..USUAL }),
    ("0.5 → 5 % after 10 minutes", Scenario { fault: Some(0.05), fault_at: 600, length: 1200, ..USUAL }),
    (
        "all failing, 1 rps, after 10 minutes without any failure",
        Scenario { rps: 1.0, base: 0.0, fault: Some(1.0), fault_at: 600, length: 1200, ..USUAL },
    ),
    (
        "0 → 1 % after 10 minutes",
        Scenario { base: 0.0, fault: Some(0.01), fault_at: 600, length: 1200, ..USUAL },
    ),
    ("0.5 → 5 %, bursts 6 an hour each", Scenario { bursts: 6.0, fault: Some(0.05), ..USUAL }),
    ("0.5 → 5 %, 50 of 100 canaries", Scenario { canaries: 50, fault: Some(0.05), ..USUAL }),
    ("0.5 → 5 %, 99 of 100 canaries", Scenario { canaries: 99, fault: Some(0.05), ..USUAL }),
];

/// A named one of the scenarios.
fn named(scenarios: &[(&str, Scenario)], name: &str) -> Scenario {
    scenarios
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, scenario)| *scenario)
        .expect("it is in the table")
}

#[test]
fn gates_rarely_fail_without_a_reason() {
    for name in [
        "equal proxies",
        "unequal proxies, σ = 0.5",
        "unequal proxies, σ = 1",
        "outage ×40 everywhere, 60 s",
        "bursts of single proxies, 6 an hour each",
    ] {
        let scenario = Scenario { length: 120, ..named(FALSE_ALARMS, name) };
        assert_eq!(outcomes(scenario, 4), (0, 0, Vec::new()), "{name}");
    }
}

#[test]
fn gates_notice_faults_in_time() {
    for (name, limit) in [
        ("all failing, 1 rps", 5),
        ("all failing, 0.05 rps", 60),
        ("all failing, 1 rps, a rest without failures", 5),
        ("0.5 → 5 %", 10),
        ("0.5 → 1.5 %", 120),
        ("one of ten canaries bad: 50 %", 10),
        ("3 % over p99", 60),
    ] {
        let (failed, swapped, times) = outcomes(named(DETECTIONS, name), 5);
        assert!(failed + swapped == 5 && times.iter().all(|at| *at <= limit), "{name}: {times:?}");
        let one = name.starts_with("one");
        assert_eq!((failed, swapped), if one { (0, 5) } else { (5, 0) }, "{name}");
    }
}

/// The seconds until the likelihood ratio of the canaries' share of the failures reaches 1000, if the share is computed from the rest's
/// failure rate in earlier windows: the alternative to [`sequential`] that this module was compared with.
fn share_of_an_estimate(scenario: Scenario, seed: u64) -> Option<u64> {
    let mut random = Random::new(seed);
    let (mut logs, mut past) = ([0.0_f64; 6], (0.5, 1.0));
    for at in 0..scenario.length {
        let rate =
            if at < scenario.fault_at { scenario.base } else { scenario.fault.unwrap_or(scenario.base) };
        let n = random.poisson(scenario.rps * scenario.canaries as f64);
        let rest_n = random.poisson(scenario.rps * (scenario.proxies - scenario.canaries) as f64);
        if n == 0 || rest_n == 0 {
            continue;
        }
        let (f, rest_f) = (random.failures(n, rate) as f64, random.failures(rest_n, scenario.base) as f64);
        let p = past.0 / past.1;
        let odds = n as f64 * (1.25 * p + 0.001) / (rest_n as f64 * p);
        for (log, m) in logs.iter_mut().zip([1.5, 2.0, 4.0, 10.0, 30.0, 100.0]) {
            *log += f * (m * (1.0 + odds) / (1.0 + m * odds)).ln()
                + rest_f * ((1.0 + odds) / (1.0 + m * odds)).ln();
        }
        past = (past.0 + rest_f, past.1 + rest_n as f64);
        if logs.iter().map(|log| log.exp()).sum::<f64>() / 6.0 >= 1000.0 {
            return Some((at + 1).saturating_sub(scenario.fault_at));
        }
    }
    None
}

#[test]
#[ignore = "it prints figures of the documentation"]
fn measured_share_of_an_estimate() {
    for (name, scenario) in
        DETECTIONS.iter().filter(|(_, scenario)| scenario.fault.is_some() && scenario.faulty > 1)
    {
        let mut times: Vec<_> = (1..=100).filter_map(|seed| share_of_an_estimate(*scenario, seed)).collect();
        times.sort_unstable();
        let at = |q: usize| times.get(times.len() * q / 100).copied();
        println!("| {name} | {} of 100 | {:?} | {:?} |", times.len(), at(50), at(95));
    }
}

#[test]
#[ignore = "it measures time, which needs a release build and a quiet machine"]
fn measured_time_of_500_scopes() {
    let mut random = Random::new(1);
    let key = StepKey { round: 1, generation: 2 };
    let proxy = |random: &mut Random, number: usize| ProxyWindow {
        node: format!("p{number}").into(),
        place: Place {
            group: if number < 10 { Group::Canary } else { Group::Rest },
            zone: ["a", "b", "c"][number % 3].into(),
        },
        scopes: (0..500)
            .map(|scope| {
                let latency =
                    (0..20).map(|bucket| (60 + 3 * bucket, random.poisson(1.0))).collect::<Vec<_>>();
                let sample = Sample {
                    requests: 20,
                    errors: random.poisson(0.1),
                    not_found: random.poisson(0.1),
                    cpu_us: 2000,
                    latency: Histogram::from(latency),
                };
                let scope = if scope == 0 { Scope::Fleet } else { Scope::Route(format!("r{scope}").into()) };
                (scope, sample)
            })
            .collect(),
    };
    let proxies = (0..20).map(|number| proxy(&mut random, number)).collect();
    let window = Window { step: key, length_ms: 1000, proxies };
    let mut history = History::default();
    let mut judge = Judge::default();
    judge.begin(Step { key, changed: BTreeSet::new(), reference: Reference::Rest }, Past::default());
    let (policy, members) = (Policy::default(), Members { canaries: 10, ..Members::default() });
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..200 {
        let begin = std::time::Instant::now();
        history.observe(&window);
        let observed = std::time::Instant::now();
        judge.observe(&window, &policy);
        let judged = std::time::Instant::now();
        std::hint::black_box(judge.look(members, &policy));
        for (times, time) in times.iter_mut().zip([observed - begin, judged - observed, judged.elapsed()]) {
            times.push(time);
        }
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    let fastest = times.each_ref().map(|times| times[0]);
    println!("history, observe, look; fastest of 200: {fastest:?}");
    println!("state: {} KiB", serde_json::to_string(&judge).expect("it can be stored").len() / 1024);
}

#[test]
#[ignore = "it takes minutes; it prints the tables of the documentation"]
fn measured_tables() {
    println!("| scenario | runs | failed | swap advised |");
    for (name, scenario) in FALSE_ALARMS {
        let (failed, swapped, _) = outcomes(*scenario, 200);
        println!("| {name} | 200 | {failed} | {swapped} |");
    }
    println!("| fault | noticed | of them swaps | median | p95 |");
    for (name, scenario) in DETECTIONS {
        let (failed, swapped, times) = outcomes(*scenario, 100);
        let at = |q: usize| times.get(times.len() * q / 100).map_or("-".to_owned(), |at| format!("{at} s"));
        println!("| {name} | {} of 100 | {swapped} | {} | {} |", failed + swapped, at(50), at(95));
    }
}
