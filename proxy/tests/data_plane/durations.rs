//! Durations by route in the metrics, and the traces beside them.

use signalbox_process::prometheus::{Exposition, Format};
use signalbox_proxy::metrics::{ProcessState, write};
use signalbox_proxy::source::Status;

use crate::harness::{Backend, Client, Harness, block_on, forward_to};
use crate::tracing::{Collector, traced};

fn page(harness: &Harness, format: Format) -> String {
    let page = write(Exposition::new(format), &harness.proxy, &Status::default(), ProcessState::default());
    String::from_utf8_lossy(&page).into_owned()
}

/// The value of a series that is there.
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(&format!("{series} ")));
    let line = line.unwrap_or_else(|| panic!("{series} is missing\n{page}"));
    line[series.len()..].split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn each_route_has_durations_and_times_to_the_first_byte() {
    block_on(async {
        let backend = Backend::echo();
        let document = forward_to(backend.address).replace(
            "routes: [",
            "routes: [{name: gone, match: {paths: [{exact: /gone}]}, respond: {status: 410}}, ",
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        for path in ["/a", "/b", "/gone"] {
            client.get(path).await;
        }
        let text = page(&harness, Format::Text);
        for (route, count) in [("all", 2.0), ("gone", 1.0)] {
            let [all, first] = ["duration", "time_to_first_byte"].map(|name| {
                let name = format!("signalbox_route_{name}_seconds");
                for series in ["count", "bucket"] {
                    let end = if series == "bucket" { ",le=\"+Inf\"" } else { "" };
                    let series = format!("{name}_{series}{{route=\"{route}\"{end}}}");
                    assert_eq!(value(&text, &series), count, "{series}");
                }
                value(&text, &format!("{name}_sum{{route=\"{route}\"}}"))
            });
            assert!(0.0 < first && first <= all, "{route}: {first} of {all}");
        }
        // Buckets are in seconds, by powers of four.
        let bounds: Vec<_> = (text.lines())
            .filter(|line| line.starts_with("signalbox_route_duration_seconds_bucket{route=\"all\""))
            .map(|line| line.split('"').nth(3).unwrap().to_owned())
            .collect();
        assert_eq!(bounds[3..], ["0.015625", "0.0625", "0.25", "1", "4", "16", "+Inf"]);
    });
}

#[test]
fn a_duration_names_a_trace_that_is_exported() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        let document = traced(collector.address, "", "") + &forward_to(backend.address);
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        client.get("/a").await;
        let spans = collector.wait(2).await;
        let open = page(&harness, Format::OpenMetrics);
        assert!(open.ends_with("# EOF\n"));
        let exemplar = format!(" # {{trace_id=\"{}\"}} ", spans[0].trace_id);
        for family in ["signalbox_request_duration_seconds", "signalbox_route_duration_seconds"] {
            let lines: Vec<_> = (open.lines())
                .filter(|line| line.starts_with(&format!("{family}_bucket")) && line.contains(&exemplar))
                .collect();
            let [line] = *lines else { panic!("{family}: {lines:?}\n{open}") };
            let bound = line.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
            let seconds = line.split(&exemplar).nth(1).unwrap().split(' ').next().unwrap();
            let [bound, seconds] = [bound, seconds].map(|text| text.parse::<f64>().unwrap());
            assert!(0.0 < seconds && seconds <= bound, "{line}");
        }
        assert!(!page(&harness, Format::Text).contains("trace_id"));
        // In protobuf it is a label.
        assert!(page(&harness, Format::Protobuf).contains(&spans[0].trace_id));
    });
}

#[test]
fn a_trace_that_is_not_sampled_is_no_exemplar() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::echo();
        let document = traced(collector.address, "", ", sampling: {ratio: 0}") + &forward_to(backend.address);
        let harness = Harness::start(&document);
        Client::connect(harness.address()).await.get("/a").await;
        let open = page(&harness, Format::OpenMetrics);
        assert_eq!(value(&open, "signalbox_route_duration_seconds_count{route=\"all\"}"), 1.0);
        assert!(!open.contains("trace_id"));
    });
}
