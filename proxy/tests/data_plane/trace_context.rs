//! The trace context that targets get from a proxy without tracing: the caller's own, or none.

use http::Request;
use serde_json::Value;

use crate::harness::{Backend, Client, Harness, Wire, block_on, forward_over, forward_to, full};

pub(crate) const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The values of a field that a backend got.
pub(crate) fn got<'a>(told: &'a Value, name: &str) -> Vec<&'a str> {
    let fields = told["headers"].as_array().unwrap().iter();
    fields.filter(|field| field[0] == name).map(|field| field[1].as_str().unwrap()).collect()
}

/// Sends a request with these fields, and returns what the backend says of it.
pub(crate) async fn ask(client: &mut Client, path: &str, fields: &[(&str, &str)]) -> Value {
    let mut request = Request::get(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    client.send(request.body(full("")).unwrap()).await.json()
}

#[test]
fn a_context_passes_unchanged_or_not_at_all() {
    block_on(async {
        let many = vec!["a=1"; 33].join(",");
        let broken = PARENT.replace("-01", "-1");
        for wire in Wire::BOTH {
            let backend = if wire == Wire::Http1 {
                Backend::echo()
            } else {
                Backend::speaking(wire, |request: Request<hyper::body::Incoming>| async move {
                    let fields: Vec<_> = request
                        .headers()
                        .iter()
                        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()))
                        .collect();
                    http::Response::new(full(serde_json::json!({ "headers": fields }).to_string()))
                })
            };
            let harness = Harness::start(&forward_over(wire, backend.address));
            for client in Wire::BOTH {
                let mut client = Client::speaking(client, harness.address()).await;
                for (fields, parents, states) in [
                    // None is made.
                    (&[][..], &[][..], &[][..]),
                    (&[("traceparent", PARENT)], &[PARENT], &[]),
                    (&[("traceparent", PARENT), ("tracestate", "a=1")], &[PARENT], &["a=1"]),
                    (
                        &[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")],
                        &[PARENT],
                        &["a=1", "b=2"],
                    ),
                    // A state alone, beside an invalid parent, or beside two parents.
                    (&[("tracestate", "a=1")], &[], &[]),
                    (&[("traceparent", &broken), ("tracestate", "a=1")], &[], &[]),
                    (&[("traceparent", PARENT), ("traceparent", PARENT), ("tracestate", "a=1")], &[], &[]),
                    (&[("traceparent", PARENT), ("tracestate", &many)], &[PARENT], &[]),
                    (&[("traceparent", PARENT), ("tracestate", "A=1")], &[PARENT], &[]),
                    // Contexts of other formats are not the proxy's concern.
                    (&[("b3", "0"), ("tracestate", "a=1")], &[], &[]),
                ] {
                    let told = ask(&mut client, "/", fields).await;
                    assert_eq!(got(&told, "traceparent"), parents, "{wire:?} {fields:?}");
                    assert_eq!(got(&told, "tracestate"), states, "{wire:?} {fields:?}");
                    assert_eq!(
                        got(&told, "b3").len(),
                        usize::from(fields.first().is_some_and(|it| it.0 == "b3"))
                    );
                }
            }
        }
    });
}

#[test]
fn a_plugin_may_give_a_context_of_its_own() {
    block_on(async {
        let backend = Backend::echo();
        let document = forward_to(backend.address).replace("{name: all,", "{name: all, plugins: [p],")
            + &format!(
                "plugins: [{{name: p, type: request-transform, config: {{set: {{headers: {{traceparent: '{PARENT}'}}}}}}}}]"
            );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        let told = ask(&mut client, "/", &[]).await;
        assert_eq!(got(&told, "traceparent"), [PARENT]);
    });
}
