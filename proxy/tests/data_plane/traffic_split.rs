//! `traffic-split` over a running proxy.

use std::collections::BTreeSet;

use crate::harness::{Backend, Harness, Wire, block_on, full};
use crate::shaping::{ask, example};

/// Backends of these names, which answer with their names, and the document that has them as upstreams.
fn upstreams(names: &[&'static str]) -> (Vec<Backend>, String) {
    let backends: Vec<Backend> = names.iter().map(|name| Backend::text(name)).collect();
    let list: String = names
        .iter()
        .zip(&backends)
        .map(|(name, backend)| {
            let address = backend.address;
            format!("- {{name: {name}, targets: [{{address: '{address}'}}], plugins: [by-{name}]}}\n")
        })
        .collect();
    let marks: String = names
        .iter()
        .map(|name| {
            format!("- {{name: by-{name}, type: response-transform, config: {{append: {{headers: {{x-by: {name}}}}}}}}}\n")
        })
        .collect();
    (backends, format!("upstreams:\n{list}plugins:\n{marks}"))
}

#[test]
fn conditions_choose_the_upstream_and_its_plugins() {
    block_on(async {
        let (_backends, resources) = upstreams(&["stable", "beta"]);
        let harness = Harness::start(&format!(
            "{resources}- {{name: split, type: traffic-split, config: {}}}
routes:
- {{name: split, match: {{paths: [{{prefix: /split}}]}}, plugins: [split], forward: {{upstreams: [{{name: stable}}]}}}}
- {{name: own, match: {{paths: [{{prefix: /own}}]}}, plugins: [split], respond: {{body: own}}}}
",
            serde_json::json!({"splits": [
                {"when": "request.headers[\"x-beta\"] == \"1\"",
                 "upstreams": [{"name": "beta"}, {"name": "stable", "weight": 0}]},
            ]})
        ));
        for wire in Wire::BOTH {
            for (path, headers, expected) in [
                ("/split", &[("x-beta", "1")][..], "beta"),
                ("/split", &[("x-beta", "0")], "stable"),
                ("/split", &[], "stable"),
                ("/own", &[("x-beta", "1")], "own"),
            ] {
                let answer = ask(&harness, wire, "GET", path, headers, full("")).await;
                assert_eq!(answer.text(), expected, "{wire:?} {path} {headers:?}");
                let by: Vec<_> = answer.headers.get_all("x-by").iter().collect();
                let plugins = if path == "/own" { &[][..] } else { &[expected] };
                assert_eq!(by, plugins, "the plugins of the upstream that it went to: {wire:?} {headers:?}");
            }
        }
    });
}

#[test]
fn a_client_stays_at_its_upstream_by_a_cookie() {
    block_on(async {
        let (_backends, resources) = upstreams(&["stable", "beta"]);
        let mut config = example("traffic-split", 0);
        config["splits"][1]["upstreams"][1]["weight"] = 95.into();
        let harness = Harness::start(&format!(
            "{resources}- {{name: split, type: traffic-split, config: {config}}}
routes:
- {{name: split, match: {{paths: [{{prefix: /}}]}}, plugins: [split], forward: {{upstreams: [{{name: stable}}]}}}}
"
        ));
        let mut seen = BTreeSet::new();
        // Until both were seen: by chance, once in 10^30 runs, 100 clients do not do.
        for round in 0..100 {
            let wire = Wire::BOTH[round % 2];
            let first = ask(&harness, wire, "GET", "/", &[], full("")).await;
            let cookie = first.headers["set-cookie"].to_str().unwrap();
            let (pair, _) = cookie.split_once(';').unwrap();
            for _ in 0..2 {
                let again = ask(&harness, wire, "GET", "/", &[("cookie", pair)], full("")).await;
                assert_eq!(again.text(), first.text());
                assert!(!again.headers.contains_key("set-cookie"));
            }
            seen.insert(first.text().to_owned());
            if seen.len() == 2 {
                return;
            }
        }
        panic!("only {seen:?} was chosen");
    });
}
