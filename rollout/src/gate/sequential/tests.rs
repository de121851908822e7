use super::*;
use crate::gate::random::Random;

const USUAL: Allowance = Allowance { ratio: 1.25, floor: 0.001 };

fn counts(requests: u64, failures: u64) -> Counts {
    Counts { requests, failures }
}

fn window(canary: Counts, rest: Counts, allowance: Allowance) -> Increment {
    let mut increment = Increment::default();
    increment.against_rest(canary, rest, allowance);
    increment
}

fn evidence(windows: impl IntoIterator<Item = (Counts, Counts)>, allowance: Allowance) -> f64 {
    let mut test = SequentialTest::default();
    for (canary, rest) in windows {
        test.observe(&window(canary, rest, allowance), 1.0, 1000);
    }
    test.log_evidence()
}

#[test]
fn nothing_is_no_evidence() {
    let zero = counts(0, 0);
    for (canary, rest) in [(zero, zero), (counts(100, 50), zero), (zero, counts(100, 50))] {
        let log = evidence(vec![(canary, rest); 1000], USUAL);
        assert!(log.abs() < 1e-9, "{canary:?} {rest:?}: {log}");
    }
}

#[test]
fn failing_canaries_of_a_rest_without_failures_are_noticed() {
    assert!(evidence(vec![(counts(10, 10), counts(90, 0)); 1], USUAL) > 7.0);
    assert!(evidence(vec![(counts(1, 1), counts(9, 0)); 6], USUAL) > 7.0);
}

#[test]
fn failures_below_the_floor_are_no_evidence() {
    // The rest never fails. The canaries fail at exactly the floor.
    let windows = (0..3600).map(|second| (counts(200, u64::from(second % 5 == 0)), counts(1800, 0)));
    assert!(evidence(windows, USUAL) < 1.0);
}

#[test]
fn an_outage_of_everybody_is_no_evidence() {
    let windows = (0..600).map(|second| match second {
        100..160 => (counts(200, 40), counts(1800, 360)),
        _ => (counts(200, 1), counts(1800, 9)),
    });
    assert!(evidence(windows, USUAL) < 1.0);
}

#[test]
fn a_fault_after_an_hour_is_noticed_within_seconds() {
    let healthy = vec![(counts(200, 1), counts(1800, 9)); 3600];
    let faulty = vec![(counts(200, 10), counts(1800, 9)); 5];
    let log = evidence(healthy.into_iter().chain(faulty), USUAL);
    assert!(log > 10.0, "{log}");
}

#[test]
fn the_expectation_is_at_most_one_for_any_rate_of_the_rest() {
    for (n, rest_n) in [(10.0, 90.0), (50.0, 50.0), (99.0, 1.0), (1.0, 9999.0)] {
        for r in [0.0, 1e-4, 0.01, 0.2, 0.7] {
            for (i, multiplier) in MULTIPLIERS.iter().enumerate() {
                let one = |canary, rest| window(canary, rest, USUAL).logs[i];
                let requests = |n: f64| n as u64;
                // The factors of one failure on either side, from which the expectation over Poisson counts follows.
                let base = one(counts(requests(n), 0), counts(requests(rest_n), 0));
                let x = one(counts(requests(n), 1), counts(requests(rest_n), 0)) - base;
                let y = one(counts(requests(n), 0), counts(requests(rest_n), 1)) - base;
                let log = n * (1.25 * r + 0.001) * (x.exp() - 1.0) + rest_n * r * (y.exp() - 1.0) + base;
                assert!(log < 1e-9, "{n} {rest_n} {r} {multiplier}: {log}");
            }
        }
    }
}

#[test]
fn failures_that_come_together_count_as_one() {
    let mut together = SequentialTest::default();
    together.observe(&window(counts(2000, 1000), counts(18000, 900), USUAL), 100.0, 1000);
    let mut one_by_one = SequentialTest::default();
    one_by_one.observe(&window(counts(20, 10), counts(180, 9), USUAL), 1.0, 1000);
    assert!((together.log_evidence() - one_by_one.log_evidence()).abs() < 1e-9);
}

#[test]
fn a_rate_of_the_past_is_a_reference() {
    let run = |failures, rate| {
        let mut test = SequentialTest::default();
        for _ in 0..60 {
            let mut increment = Increment::default();
            increment.against_rate(counts(100, failures), rate, USUAL);
            test.observe(&increment, 1.0, 1000);
        }
        test.log_evidence()
    };
    assert!(run(1, 0.01) < 1.0);
    assert!(run(10, 0.01) > 20.0);
    assert!(run(10, f64::NAN).abs() < 1e-9);
    assert!(run(100, 1.0) < 1.0, "a past that always failed allows everything");
}

#[test]
fn every_input_has_a_finite_result() {
    let numbers = [0, 1, 1000, u64::MAX];
    let floats = [0.0, -1.0, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let mut test = SequentialTest::default();
    for n in numbers {
        for f in numbers {
            for rest in [counts(f, n), counts(n, n), counts(u64::MAX, f)] {
                for float in floats {
                    let allowance = Allowance { ratio: float, floor: float };
                    let mut increment = window(counts(n, f), rest, allowance);
                    increment.against_rate(counts(n, f), float, allowance);
                    for length in [0, 1000, u64::MAX] {
                        test.observe(&increment, float, length);
                        assert!(test.log_evidence().is_finite(), "{n} {f} {rest:?} {float}");
                        let text = serde_json::to_string(&test).unwrap();
                        test = serde_json::from_str(&text).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn equal_groups_rarely_reach_a_thousand() {
    let mut random = Random::new(1);
    let alarms = (0..200)
        .filter(|_| {
            let mut test = SequentialTest::default();
            (0..600).any(|_| {
                let canary = counts(200, random.failures(200, 0.005));
                let rest = counts(1800, random.failures(1800, 0.005));
                test.observe(&window(canary, rest, USUAL), 1.0, 1000);
                test.log_evidence() >= 1000_f64.ln()
            })
        })
        .count();
    assert_eq!(alarms, 0);
}
