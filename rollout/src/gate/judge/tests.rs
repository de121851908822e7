use super::*;
use crate::gate::history::History;
use crate::gate::window::Place;

type Scopes = fn(Group, usize) -> Vec<(Scope, Sample)>;
type Change = fn(&mut Sample);

const POLICY: fn() -> Policy = Policy::default;

fn key(generation: u64) -> StepKey {
    StepKey { round: 1, generation }
}

fn step(changed: &[Scope]) -> Step {
    Step { key: key(7), changed: changed.iter().cloned().collect(), reference: Reference::Rest }
}

fn route(name: &str) -> Scope {
    Scope::Route(name.into())
}

/// Requests of the fleet with some failures, usual latencies and 100 µs of CPU time each.
fn sample(requests: u64, errors: u64) -> Sample {
    let latency = vec![(40, requests / 2), (60, requests - requests / 2)];
    Sample { requests, errors, not_found: 0, cpu_us: requests * 100, latency: Histogram::from(latency) }
}

/// A fleet whose proxies are `c0`, `c1`, … and `r0`, `r1`, …, in one zone.
struct Fleet {
    canaries: usize,
    rest: usize,
    judge: Judge,
    policy: Policy,
}

impl Fleet {
    fn new(canaries: usize, rest: usize, step: Step) -> Self {
        let mut fleet = Self { canaries, rest, judge: Judge::default(), policy: POLICY() };
        fleet.judge.begin(step, Past::default());
        fleet
    }

    /// Begins the step with a past of 100 s, in which each proxy served a sample a second.
    fn with_past(mut self, step: Step, sample: impl Fn(Group) -> Vec<(Scope, Sample)>) -> Self {
        let mut history = History::default();
        for _ in 0..100 {
            let mut window = self.window(|group, _| sample(group));
            window.proxies.iter_mut().for_each(|proxy| proxy.place.group = Group::Rest);
            history.observe(&window);
        }
        self.judge.begin(step, history.past(|node| node.starts_with('c')));
        self
    }

    fn window(&self, scopes: impl Fn(Group, usize) -> Vec<(Scope, Sample)>) -> Window {
        let proxy = |group, name: &str, number: usize| ProxyWindow {
            node: format!("{name}{number}").into(),
            place: Place { group, zone: "a".into() },
            scopes: scopes(group, number),
        };
        let canaries = (0..self.canaries).map(|number| proxy(Group::Canary, "c", number));
        let rest = (0..self.rest).map(|number| proxy(Group::Rest, "r", number));
        Window { step: key(7), length_ms: 1000, proxies: canaries.chain(rest).collect() }
    }

    fn members(&self) -> Members {
        Members { canaries: self.canaries as u64, ..Members::default() }
    }

    /// Observes some seconds in which each proxy serves the same, and judges after them.
    fn serve(&mut self, seconds: u64, scopes: impl Fn(Group, usize) -> Vec<(Scope, Sample)>) -> Judgement {
        let window = self.window(scopes);
        for _ in 0..seconds {
            self.judge.observe(&window, &self.policy);
        }
        self.judge.look(self.members(), &self.policy)
    }

    /// The same for requests of the fleet alone.
    fn serve_fleet(&mut self, seconds: u64, sample: impl Fn(Group, usize) -> Sample) -> Judgement {
        self.serve(seconds, |group, number| vec![(Scope::Fleet, sample(group, number))])
    }
}

fn healthy(_: Group, number: usize) -> Sample {
    sample(20, u64::from(number.is_multiple_of(10)))
}

/// The failure of every second request of the canaries.
fn faulty(group: Group, _: usize) -> Sample {
    sample(20, if group == Group::Canary { 10 } else { 0 })
}

fn verdict_of(judgement: &Judgement, gate: GateKind, scope: &Scope) -> Option<Verdict> {
    let reading = judgement.readings.iter().find(|reading| reading.gate == gate && reading.scope == *scope);
    reading.map(|reading| reading.verdict)
}

fn failing(judgement: &Judgement) -> Vec<(GateKind, Scope)> {
    let failing = judgement.readings.iter().filter(|reading| reading.verdict == Verdict::Failing);
    failing.map(|reading| (reading.gate, reading.scope.clone())).collect()
}

#[test]
fn equal_proxies_pass() {
    let judgement = Fleet::new(10, 90, step(&[])).serve_fleet(60, healthy);
    assert_eq!(judgement.verdict, Verdict::Passing, "{judgement:#?}");
    assert_eq!(judgement.healthy_ms, 60_000);
}

#[test]
fn without_traffic_nothing_passes() {
    let mut fleet = Fleet::new(10, 90, step(&[route("a")]));
    let nothing: [Scopes; 2] = [|_, _| Vec::new(), |_, _| vec![(Scope::Fleet, Sample::default())]];
    for scopes in nothing {
        let judgement = fleet.serve(600, scopes);
        assert_eq!((judgement.verdict, judgement.healthy_ms), (Verdict::Inconclusive, 0));
    }
    fleet.policy.min_requests = 0;
    assert_eq!(fleet.serve(1, nothing[1]).verdict, Verdict::Inconclusive);
    assert_eq!(Judge::default().look(Members::default(), &POLICY()).verdict, Verdict::Inconclusive);
}

#[test]
fn traffic_of_one_side_only_is_inconclusive() {
    for silent in [Group::Canary, Group::Rest] {
        let mut fleet = Fleet::new(10, 90, step(&[]));
        let judgement = fleet.serve_fleet(60, |group, number| match group {
            group if group == silent => Sample::default(),
            _ => healthy(group, number),
        });
        assert_eq!(judgement.verdict, Verdict::Inconclusive, "{silent:?}");
    }
}

#[test]
fn failing_canaries_fail() {
    let judgement = Fleet::new(10, 90, step(&[])).serve_fleet(2, faulty);
    assert_eq!(failing(&judgement), [(GateKind::Errors, Scope::Fleet)]);
    assert_eq!((judgement.verdict, judgement.swap), (Verdict::Failing, None));
}

#[test]
fn each_gate_fails_by_its_own_failures() {
    let canary = |change: Change| {
        move |group, _| {
            let mut sample = sample(20, 0);
            if group == Group::Canary {
                change(&mut sample);
            }
            vec![(Scope::Fleet, sample)]
        }
    };
    let cases: [(GateKind, Change); 5] = [
        (GateKind::Errors, |sample| sample.errors = 2),
        (GateKind::NotFound, |sample| sample.not_found = 5),
        (GateKind::Latency, |sample| sample.latency = Histogram::from(vec![(90, 20)])),
        (GateKind::Cpu, |sample| sample.cpu_us *= 2),
        (GateKind::Volume, |sample| *sample = self::sample(5, 0)),
    ];
    for (gate, change) in cases {
        let mut fleet =
            Fleet::new(10, 90, step(&[])).with_past(step(&[]), |_| vec![(Scope::Fleet, sample(20, 0))]);
        let before = fleet.serve(60, canary(|_| {}));
        assert_eq!(before.verdict, Verdict::Passing, "{gate:?}: {before:#?}");
        let after = fleet.serve(60, canary(change));
        assert_eq!(failing(&after), [(gate, Scope::Fleet)], "{after:#?}");
    }
}

#[test]
fn tolerated_differences_pass() {
    let mut fleet =
        Fleet::new(10, 90, step(&[])).with_past(step(&[]), |_| vec![(Scope::Fleet, sample(20, 0))]);
    let judgement = fleet.serve_fleet(300, |group, number| {
        let mut sample = healthy(group, number);
        if group == Group::Canary {
            sample.requests -= 5;
            sample.cpu_us = sample.requests * 140;
        }
        sample
    });
    assert_eq!(judgement.verdict, Verdict::Passing, "{judgement:#?}");
}

#[test]
fn a_fall_of_volume_everywhere_is_no_fault() {
    let mut fleet =
        Fleet::new(10, 90, step(&[])).with_past(step(&[]), |_| vec![(Scope::Fleet, sample(20, 0))]);
    let judgement = fleet.serve_fleet(300, |_, _| sample(5, 0));
    assert_eq!(judgement.verdict, Verdict::Passing, "{judgement:#?}");
}

#[test]
fn a_fault_of_one_route_fails_that_route() {
    let mut fleet = Fleet::new(10, 90, step(&[route("a")]));
    // The route has a thousandth of the traffic.
    let judgement = fleet.serve(60, |group, number| {
        let errors = u64::from(group == Group::Canary && number < 2);
        vec![(Scope::Fleet, sample(1000, errors)), (route("a"), sample(u64::from(number < 2), errors))]
    });
    assert_eq!(failing(&judgement), [(GateKind::Errors, route("a"))]);
}

#[test]
fn changed_routes_with_traffic_must_be_covered() {
    let scopes = |group, number, requests| {
        let requests = if group == Group::Canary && number > 0 { 0 } else { requests };
        vec![(Scope::Fleet, sample(20, 0)), (route("a"), sample(requests, 0))]
    };
    let mut fleet = Fleet::new(10, 90, step(&[route("a"), route("b")]));
    let judgement = fleet.serve(49, |group, number| scopes(group, number, 1));
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
    assert_eq!(verdict_of(&judgement, GateKind::Coverage, &route("a")), Some(Verdict::Inconclusive));
    assert_eq!(verdict_of(&judgement, GateKind::Coverage, &route("b")), None, "it has no traffic");
    assert_eq!(judgement.healthy_ms, 0);
    let judgement = fleet.serve(1, |group, number| scopes(group, number, 1));
    assert_eq!(judgement.verdict, Verdict::Passing, "{judgement:#?}");
    assert_eq!(judgement.healthy_ms, 1000, "the time before the coverage does not count");
}

#[test]
fn a_changed_route_with_traffic_in_the_past_must_be_covered() {
    let changed = step(&[route("a")]);
    let mut fleet = Fleet::new(10, 90, changed.clone())
        .with_past(changed, |_| vec![(Scope::Fleet, sample(20, 0)), (route("a"), sample(1, 0))]);
    let judgement = fleet.serve_fleet(60, healthy);
    assert_eq!(verdict_of(&judgement, GateKind::Coverage, &route("a")), Some(Verdict::Inconclusive));
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
}

#[test]
fn evidence_of_an_earlier_step_never_counts() {
    let mut fleet = Fleet::new(10, 90, step(&[]));
    assert_eq!(fleet.serve_fleet(60, healthy).verdict, Verdict::Passing);
    fleet.judge.begin(Step { key: key(8), ..step(&[]) }, Past::default());
    // Windows of the earlier step are ignored, good and bad.
    assert_eq!(fleet.serve_fleet(60, healthy).verdict, Verdict::Inconclusive);
    let judgement = fleet.serve_fleet(60, faulty);
    assert_eq!((judgement.verdict, judgement.healthy_ms), (Verdict::Inconclusive, 0));
    fleet.judge.begin(step(&[]), Past::default());
    assert_eq!(fleet.serve_fleet(2, faulty).verdict, Verdict::Failing);
    let next = StepKey { round: 2, generation: 7 };
    fleet.judge.begin(Step { key: next, ..step(&[]) }, Past::default());
    assert_eq!(fleet.serve_fleet(2, faulty).verdict, Verdict::Inconclusive);
}

#[test]
fn silence_is_no_soak() {
    let mut fleet = Fleet::new(10, 90, step(&[]));
    assert_eq!(fleet.serve_fleet(60, healthy).healthy_ms, 60_000);
    assert_eq!(fleet.serve_fleet(0, healthy).healthy_ms, 0);
    let rest = |group, number| if group == Group::Rest { healthy(group, number) } else { Sample::default() };
    let mut window = fleet.window(|group, number| vec![(Scope::Fleet, rest(group, number))]);
    window.proxies.retain(|proxy| proxy.place.group == Group::Rest);
    fleet.judge.observe(&window, &fleet.policy);
    assert_eq!(fleet.judge.look(fleet.members(), &fleet.policy).healthy_ms, 0);
}

#[test]
fn doubt_stops_the_soak_before_the_gate_fails() {
    let mut fleet = Fleet::new(10, 90, step(&[]));
    fleet.serve_fleet(60, healthy);
    let doubtful = |group, number| {
        let healthy = healthy(group, number);
        if group == Group::Canary { sample(20, 1) } else { healthy }
    };
    let verdicts: Vec<_> = (0..30).map(|_| fleet.serve_fleet(1, doubtful)).collect();
    let first = |verdict| verdicts.iter().position(|judgement| judgement.verdict == verdict).unwrap();
    assert!(first(Verdict::Inconclusive) < first(Verdict::Failing));
    assert_eq!(verdicts[first(Verdict::Inconclusive)].healthy_ms, 0);
}

#[test]
fn one_sick_canary_is_swapped_once() {
    let sick = |group, number| {
        if group == Group::Canary && number == 3 { sample(20, 10) } else { healthy(group, number) }
    };
    let mut fleet = Fleet::new(10, 90, step(&[]));
    let judgement = fleet.serve_fleet(20, sick);
    let swap = Swap { node: "c3".into(), gate: GateKind::Errors, scope: Scope::Fleet };
    assert_eq!((judgement.verdict, judgement.swap), (Verdict::Inconclusive, Some(swap)));
    assert_eq!(judgement.healthy_ms, 0);

    let members = Members { swapped: 1, ..fleet.members() };
    let judgement = fleet.judge.look(members, &fleet.policy);
    assert_eq!((judgement.verdict, judgement.swap), (Verdict::Failing, None), "the second time");
}

#[test]
fn one_sick_canary_of_two_fails() {
    let sick =
        |group, number| if group == Group::Canary && number == 0 { sample(20, 10) } else { sample(20, 0) };
    let judgement = Fleet::new(2, 8, step(&[])).serve_fleet(20, sick);
    assert_eq!((judgement.verdict, judgement.swap), (Verdict::Failing, None));
}

#[test]
fn two_sick_canaries_fail() {
    let sick = |group, number| {
        if group == Group::Canary && number < 2 { sample(20, 10) } else { healthy(group, number) }
    };
    let judgement = Fleet::new(10, 90, step(&[])).serve_fleet(20, sick);
    assert_eq!((judgement.verdict, judgement.swap), (Verdict::Failing, None));
}

#[test]
fn rejections_are_counted() {
    for (rejected, allowed, expected) in [
        (0, 0, Verdict::Passing),
        (1, 0, Verdict::Failing),
        (1, 1, Verdict::Passing),
        (2, 1, Verdict::Failing),
    ] {
        let mut fleet = Fleet::new(10, 90, step(&[]));
        fleet.policy.rejected = allowed;
        fleet.serve_fleet(60, healthy);
        let judgement = fleet.judge.look(Members { rejected, ..fleet.members() }, &fleet.policy);
        assert_eq!(judgement.verdict, expected, "{rejected} of {allowed}");
    }
}

#[test]
fn a_fleet_without_a_rest_is_compared_with_its_past() {
    let alone = Step { reference: Reference::Past, ..step(&[]) };
    let past = |_| vec![(Scope::Fleet, sample(100, 1))];
    let mut fleet = Fleet::new(1, 0, alone.clone()).with_past(alone.clone(), past);
    let judgement = fleet.serve_fleet(600, |_, _| sample(100, 1));
    assert_eq!(judgement.verdict, Verdict::Passing, "{judgement:#?}");
    let judgement = fleet.serve_fleet(5, |_, _| sample(100, 20));
    assert_eq!(failing(&judgement), [(GateKind::Errors, Scope::Fleet)]);

    let mut fleet = Fleet::new(1, 0, alone.clone()).with_past(alone, past);
    let slow = |_, _| Sample { latency: Histogram::from(vec![(90, 100)]), ..sample(100, 1) };
    assert_eq!(failing(&fleet.serve_fleet(60, slow)), [(GateKind::Latency, Scope::Fleet)]);
}

#[test]
fn canaries_in_a_bad_zone_are_compared_with_that_zone() {
    let mut fleet = Fleet::new(10, 90, step(&[]));
    let mut window = fleet.window(|_, _| Vec::new());
    for (number, proxy) in window.proxies.iter_mut().enumerate() {
        // Nine of ten canaries are in the bad zone, but only a tenth of the rest.
        let bad = if proxy.place.group == Group::Canary { number < 9 } else { number.is_multiple_of(10) };
        proxy.place.zone = if bad { "bad" } else { "good" }.into();
        proxy.scopes = vec![(Scope::Fleet, sample(20, if bad { 2 } else { 0 }))];
    }
    for _ in 0..300 {
        fleet.judge.observe(&window, &fleet.policy);
    }
    let judgement = fleet.judge.look(fleet.members(), &fleet.policy);
    assert_eq!(judgement.verdict, Verdict::Passing, "{judgement:#?}");
}

#[test]
fn a_canary_that_was_worse_before_may_be_worse() {
    let worse = |group, _| sample(20, if group == Group::Canary { 2 } else { 1 });
    let judgement = Fleet::new(10, 90, step(&[])).serve_fleet(60, worse);
    assert_eq!(judgement.verdict, Verdict::Failing);
    let mut fleet =
        Fleet::new(10, 90, step(&[])).with_past(step(&[]), |group| vec![(Scope::Fleet, worse(group, 0))]);
    assert_eq!(fleet.serve_fleet(600, worse).verdict, Verdict::Passing);
}

#[test]
fn another_leader_goes_on_with_the_state() {
    let run = |hand_over: bool| {
        let mut fleet = Fleet::new(10, 90, step(&[route("a")])).with_past(step(&[route("a")]), |_| {
            vec![(Scope::Fleet, sample(20, 1)), (route("a"), sample(3, 0))]
        });
        let mut judgements = Vec::new();
        for second in 0..60 {
            judgements.push(fleet.serve(1, |group, number| {
                let errors = u64::from(group == Group::Canary && (number + second).is_multiple_of(4));
                vec![(Scope::Fleet, sample(20, errors)), (route("a"), sample(2, errors))]
            }));
            if hand_over {
                let text = serde_json::to_string(&fleet.judge).unwrap();
                fleet.judge = serde_json::from_str(&text).unwrap();
            }
        }
        judgements
    };
    for (handed_over, kept) in run(true).iter().zip(run(false)) {
        assert_eq!(handed_over.verdict, kept.verdict);
        assert_eq!(handed_over.healthy_ms, kept.healthy_ms);
        for (one, other) in handed_over.readings.iter().zip(&kept.readings) {
            let same = (one.evidence - other.evidence).abs() <= 1e-6 * other.evidence;
            assert!(same && one.canary == other.canary, "{one:?} {other:?}");
        }
    }
}

#[test]
fn hostile_counts_are_judged() {
    let numbers = [0, 1, u64::MAX];
    let mut fleet = Fleet::new(3, 3, step(&[]));
    for a in numbers {
        for b in numbers {
            for c in numbers {
                let judgement = fleet.serve_fleet(20, |group, _| match group {
                    Group::Canary => {
                        Sample { requests: a, errors: b, not_found: c, cpu_us: b, ..sample(0, 0) }
                    }
                    Group::Rest => Sample { requests: c, errors: a, not_found: b, cpu_us: a, ..sample(0, 0) },
                });
                for reading in &judgement.readings {
                    assert!(reading.evidence.is_finite() && reading.limit.is_finite(), "{reading:?}");
                }
            }
        }
    }
}

#[test]
fn an_outage_of_everybody_is_no_soak() {
    let mut fleet = Fleet::new(10, 90, step(&[]));
    let judgement = fleet.serve_fleet(60, |_, _| sample(20, 20));
    assert_eq!((judgement.verdict, judgement.healthy_ms), (Verdict::Inconclusive, 0), "{judgement:#?}");
    let judgement = fleet.serve_fleet(120, healthy);
    assert_eq!(judgement.verdict, Verdict::Passing, "{judgement:#?}");
}

#[test]
fn less_than_a_millisecond_is_not_slow() {
    let latency = |bucket| Sample { latency: Histogram::from(vec![(bucket, 20)]), ..sample(20, 0) };
    // These are 45, 500 and 2,000 microseconds.
    for (canary, verdict) in [(44, Verdict::Passing), (72, Verdict::Passing), (88, Verdict::Failing)] {
        let judgement = Fleet::new(10, 90, step(&[]))
            .serve_fleet(60, |group, _| latency(if group == Group::Canary { canary } else { 36 }));
        let found = verdict_of(&judgement, GateKind::Latency, &Scope::Fleet);
        assert_eq!(found, Some(verdict), "{canary}: {judgement:#?}");
    }
}

#[test]
fn scopes_are_bounded() {
    let mut fleet = Fleet::new(1, 1, step(&[]));
    let judgement = fleet.serve(1, |_, _| {
        let routes = (0..3000).map(|number| (route(&number.to_string()), sample(1, 0)));
        routes.chain([(Scope::Fleet, sample(20, 0))]).collect()
    });
    assert!(fleet.judge.scopes.len() <= MAX_SCOPES + 1);
    assert!(verdict_of(&judgement, GateKind::Errors, &Scope::Fleet).is_some());
}

#[test]
fn a_changed_route_has_room_among_many_others() {
    let mut fleet = Fleet::new(2, 2, step(&[route("z"), Scope::Upstream("z".into())]));
    let judgement = fleet.serve(60, |_, _| {
        let routes = (0..3000).map(|number| (route(&number.to_string()), sample(1, 0)));
        let changed = [(route("z"), sample(2, 0)), (Scope::Upstream("z".into()), sample(2, 0))];
        routes.chain(changed).chain([(Scope::Fleet, sample(20, 0))]).collect()
    });
    for scope in [route("z"), Scope::Upstream("z".into())] {
        assert_eq!(verdict_of(&judgement, GateKind::Coverage, &scope), Some(Verdict::Passing));
    }
    assert_eq!(judgement.verdict, Verdict::Passing);
}

#[test]
fn changed_scopes_are_bounded() {
    let routes = || (0..3000).map(|number| route(&number.to_string()));
    let mut fleet = Fleet::new(1, 1, step(&routes().collect::<Vec<_>>()));
    let judgement = fleet.serve(60, |_, _| {
        routes().map(|route| (route, sample(1, 0))).chain([(Scope::Fleet, sample(20, 0))]).collect()
    });
    assert!(fleet.judge.scopes.len() <= MAX_SCOPES + MAX_CHANGED + 1);
    assert_eq!(judgement.verdict, Verdict::Passing, "those without a state do not block it");
}

#[test]
fn readings_have_the_names_of_the_api() {
    let judgement = Fleet::new(10, 90, step(&[])).serve_fleet(60, healthy);
    let reading = judgement.readings.iter().find(|reading| reading.gate == GateKind::Errors).unwrap();
    let value = serde_json::to_value(reading).unwrap();
    assert_eq!(value["name"], "errors");
    assert_eq!(value["scope"], "fleet");
    assert_eq!(value["verdict"], "passing");
    assert_eq!(value["canary"], serde_json::json!({"requests": 12000, "failures": 60}));
}

#[test]
fn without_a_rest_and_a_past_absolute_limits_hold() {
    let alone = Step { reference: Reference::Past, ..step(&[]) };
    let verdict = |errors: u64, not_found: u64| {
        let mut fleet = Fleet::new(3, 0, alone.clone());
        let judgement = fleet.serve_fleet(60, |_, _| Sample { not_found, ..sample(100, errors) });
        (judgement.verdict, failing(&judgement))
    };
    assert_eq!(verdict(0, 0), (Verdict::Passing, vec![]));
    assert_eq!(verdict(2, 20), (Verdict::Passing, vec![]));
    assert_eq!(verdict(20, 0), (Verdict::Failing, vec![(GateKind::Errors, Scope::Fleet)]));
    assert_eq!(verdict(0, 95), (Verdict::Failing, vec![(GateKind::NotFound, Scope::Fleet)]));
}
