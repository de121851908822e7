use super::*;

fn report(boot: u64, sequence: u64, requests: u64) -> Report {
    let sample = Sample { requests, errors: requests / 10, ..Sample::default() };
    Report {
        node: "a".into(),
        boot,
        sequence,
        uptime_ms: sequence * 1000,
        series: vec![Series { generation: 7, scope: Scope::Fleet, sample }],
    }
}

/// Requests and lengths in milliseconds that the reports lead to; `None` for a report that is ignored.
fn check(reports: &[(u64, u64, u64)], expected: &[Option<(u64, u64)>]) {
    let mut counters = Counters::default();
    let found: Vec<_> = reports
        .iter()
        .map(|&(boot, sequence, requests)| {
            let delta = counters.accept(report(boot, sequence, requests))?;
            let text = serde_json::to_string(&counters).unwrap();
            assert_eq!(serde_json::from_str::<Counters>(&text).unwrap(), counters);
            Some((delta.series.iter().map(|series| series.sample.requests).sum(), delta.length_ms))
        })
        .collect();
    assert_eq!(found, expected, "{reports:?}");
}

#[test]
fn reports_in_order_give_differences() {
    check(&[(1, 5, 100), (1, 6, 110), (1, 7, 110)], &[None, Some((10, 1000)), Some((0, 1000))]);
}

#[test]
fn the_first_report_of_a_process_counts_if_it_is_seen() {
    check(&[(1, 0, 30), (1, 1, 40)], &[Some((30, 0)), Some((10, 1000))]);
    check(&[(1, 1, 30), (1, 2, 40)], &[None, Some((10, 1000))]);
}

#[test]
fn a_duplicate_is_ignored() {
    check(
        &[(1, 1, 100), (1, 2, 110), (1, 2, 110), (1, 3, 115)],
        &[None, Some((10, 1000)), None, Some((5, 1000))],
    );
}

#[test]
fn a_lost_report_is_part_of_the_next() {
    check(&[(1, 1, 100), (1, 4, 160)], &[None, Some((60, 3000))]);
}

#[test]
fn a_late_report_is_ignored() {
    check(
        &[(1, 1, 100), (1, 3, 120), (1, 2, 110), (1, 4, 130)],
        &[None, Some((20, 2000)), None, Some((10, 1000))],
    );
}

#[test]
fn a_restart_begins_at_zero() {
    check(&[(1, 8, 100), (2, 0, 7), (2, 1, 9)], &[None, Some((7, 0)), Some((2, 1000))]);
    check(&[(1, 8, 100), (2, 3, 7), (2, 4, 9)], &[None, None, Some((2, 1000))]);
}

#[test]
fn a_late_report_of_an_earlier_process_is_ignored() {
    check(&[(1, 8, 100), (2, 0, 7), (1, 9, 130), (2, 1, 9)], &[None, Some((7, 0)), None, Some((2, 1000))]);
}

#[test]
fn counts_that_go_down_set_a_new_base() {
    check(&[(1, 1, 100), (1, 2, 90), (1, 3, 95)], &[None, Some((0, 1000)), Some((5, 1000))]);
}

#[test]
fn a_series_that_is_left_out_keeps_its_base() {
    let mut counters = Counters::default();
    counters.accept(report(1, 1, 100));
    counters.accept(Report { series: Vec::new(), ..report(1, 2, 0) });
    let delta = counters.accept(report(1, 3, 105)).unwrap();
    assert_eq!(delta.series[0].sample.requests, 5);
}

#[test]
fn any_order_of_any_reports_counts_each_request_at_most_once() {
    let mut random = crate::gate::random::Random::new(3);
    for _ in 0..200 {
        let mut counters = Counters::default();
        let mut counted = 0;
        for _ in 0..50 {
            let boot = (random.unit() * 3.0) as u64;
            let sequence = (random.unit() * 10.0) as u64;
            if let Some(delta) = counters.accept(report(boot, sequence, 10 + sequence * 10)) {
                counted += delta.series.iter().map(|series| series.sample.requests).sum::<u64>();
            }
        }
        assert!(counted <= 300, "{counted}");
    }
}

#[test]
fn the_state_is_bounded() {
    let mut counters = Counters::default();
    let series = |generation| {
        (0..1000).map(move |route| Series {
            generation,
            scope: Scope::Route(format!("r{route}").into()),
            sample: Sample { requests: 5, ..Sample::default() },
        })
    };
    counters.accept(report(1, 0, 1));
    let many = Report { series: (0..20).flat_map(series).collect(), ..report(1, 1, 0) };
    counters.accept(many.clone());
    assert!(counters.nodes["a"].series.len() <= MAX_SERIES);
    // The dropped ones do not come back as new.
    let again = counters.accept(Report { sequence: 2, ..many }).unwrap();
    assert_eq!(again.series, Vec::new());

    for node in 0..MAX_NODES + 10 {
        counters.accept(Report { node: format!("n{node}").into(), ..report(1, 0, 1) });
    }
    assert_eq!(counters.nodes.len(), MAX_NODES);
}

#[test]
fn a_new_proxy_takes_the_place_of_the_one_that_is_silent_for_longest() {
    let mut counters = Counters::default();
    let of = |node: &str, sequence: u64| Report { node: node.into(), ..report(1, sequence, sequence) };
    for node in 0..MAX_NODES {
        counters.accept(of(&format!("n{node}"), 0));
    }
    // All but these fall silent.
    let live = ["n0", "n7", "n9000"];
    for sequence in 1..2 * MAX_NODES as u64 {
        live.iter().for_each(|node| assert!(counters.accept(of(node, sequence)).is_some()));
    }
    for new in ["a", "b", "c"] {
        assert!(counters.accept(of(new, 0)).is_some(), "{new}");
        assert!(counters.accept(of(new, 1)).is_some(), "{new}");
    }
    assert_eq!(counters.nodes.len(), MAX_NODES);
    assert!(["n1", "n2", "n3"].iter().all(|node| !counters.nodes.contains_key(*node)));
    assert!(live.iter().all(|node| counters.nodes.contains_key(*node)));
}

#[test]
fn proxies_that_report_are_not_forgotten_for_more() {
    let mut counters = Counters::default();
    for sequence in 0..4 {
        for node in 0..MAX_NODES + 500 {
            let found = counters.accept(Report { node: format!("n{node}").into(), ..report(1, sequence, 1) });
            assert_eq!(found.is_some(), node < MAX_NODES, "{node} at {sequence}");
        }
    }
}

#[test]
fn a_generation_with_too_many_series_keeps_the_first() {
    let route = |number: usize| Scope::Route(format!("r{number:05}").into());
    let all = || (0..MAX_SERIES + 900).map(route).chain([Scope::Fleet, Scope::Upstream("u".into())]);
    let of = |sequence: u64, generation: u64| Report {
        series: all()
            .map(|scope| {
                let sample = Sample { requests: sequence * 5, ..Sample::default() };
                Series { generation, scope, sample }
            })
            .collect(),
        ..report(1, sequence, 0)
    };
    let mut counters = Counters::default();
    counters.accept(report(1, 1, 0));
    for generation in [7, 8] {
        let mut counted = BTreeMap::<Scope, u64>::new();
        for step in 1..5 {
            let sequence = generation * 10 + step;
            for series in counters.accept(of(sequence, generation)).unwrap().series {
                *counted.entry(series.scope).or_default() += series.sample.requests;
            }
            assert!(counters.nodes["a"].series.len() <= MAX_SERIES);
        }
        let requests = (generation * 10 + 4) * 5;
        assert!(counted.values().all(|counted| *counted <= requests), "nothing counts twice");
        for scope in [Scope::Fleet, route(0), route(MAX_SERIES - 2)] {
            assert_eq!(counted[&scope], requests, "{scope:?}");
        }
    }
}
