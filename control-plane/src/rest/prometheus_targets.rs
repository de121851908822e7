//! The proxies as targets for Prometheus' service discovery over HTTP.
//!
//! <https://prometheus.io/docs/prometheus/latest/http_sd/>

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::call::{Call, json_response};
use super::endpoint::{Endpoint, FLEET};
use super::problem::Problem;
use crate::board::ProxyStatus;

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::GET, "/prometheus-targets", "listPrometheusTargets", |call| {
            async move { list(&call) }.boxed()
        })
        .text(
            "proxies",
            "List the admin addresses of the proxies for Prometheus' service discovery (http_sd_configs)",
        )
        .parameters(&[FLEET])
        .answer::<Vec<TargetGroup>>(200, "The proxies that can be reached, connected or not"),
    ]
}

/// A proxy as Prometheus reads it.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct TargetGroup {
    /// The address of its admin server.
    targets: [String; 1],
    /// The proxy's id, fleet, version and labels, by names that begin with `__meta_signalbox_`.
    labels: BTreeMap<String, String>,
}

fn list(call: &Call) -> Result<Response, Problem> {
    let fleet = call.text("fleet")?;
    let proxies = call.app.board.proxies().into_iter();
    let wanted = proxies.filter(|proxy| fleet.is_none_or(|fleet| fleet == proxy.fleet));
    json_response(StatusCode::OK, &wanted.filter_map(target_group).collect::<Vec<_>>())
}

/// `None`: other hosts cannot reach its admin server, or it has not reported its address.
fn target_group(proxy: ProxyStatus) -> Option<TargetGroup> {
    let target = target(&proxy.admin_address, &proxy.address)?;
    let fixed = [
        ("proxy", proxy.id),
        ("fleet", proxy.fleet),
        ("version", proxy.version),
        ("connected", proxy.connected.to_string()),
    ];
    let fixed = fixed.map(|(name, value)| (format!("{META}{name}"), value));
    let own =
        proxy.labels.into_iter().map(|(key, value)| (format!("{META}label_{}", label_name(&key)), value));
    Some(TargetGroup { targets: [target.to_string()], labels: own.chain(fixed).collect() })
}

const META: &str = "__meta_signalbox_";

/// The address of an admin server, as others reach it. `stream` is the address that the proxy's stream comes from.
fn target(admin: &str, stream: &str) -> Option<SocketAddr> {
    let admin: SocketAddr = admin.parse().ok()?;
    let stream = stream.parse::<SocketAddr>().map(|address| address.ip().to_canonical()).ok();
    if admin.ip().is_unspecified() {
        return Some(SocketAddr::new(stream?, admin.port()));
    }
    // A server of this host alone can be reached where the proxy is on the same host as this control plane.
    let is_reachable = !admin.ip().is_loopback() || stream.is_some_and(|ip| ip.is_loopback());
    is_reachable.then_some(admin)
}

/// A key as part of a label's name, which has letters, digits and underscores.
fn label_name(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_that_others_reach() {
        for (admin, stream, expected) in [
            ("0.0.0.0:9082", "10.0.0.7:40000", Some("10.0.0.7:9082")),
            ("[::]:9082", "[::ffff:10.0.0.7]:40000", Some("10.0.0.7:9082")),
            ("[::]:9082", "[fd00::7]:40000", Some("[fd00::7]:9082")),
            ("10.1.0.7:9082", "10.0.0.7:40000", Some("10.1.0.7:9082")),
            ("127.0.0.1:9082", "10.0.0.7:40000", None),
            ("127.0.0.1:9082", "127.0.0.1:40000", Some("127.0.0.1:9082")),
            ("0.0.0.0:9082", "", None),
            ("unix:/run/proxy.sock", "127.0.0.1:40000", None),
            ("", "127.0.0.1:40000", None),
        ] {
            let found = target(admin, stream).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{admin} {stream}");
        }
    }

    #[test]
    fn keys_become_names_that_prometheus_accepts() {
        assert_eq!(label_name("topology.kubernetes.io/zone"), "topology_kubernetes_io_zone");
        assert_eq!(label_name("größe"), "gr__e");
    }
}
