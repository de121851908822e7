//! Proxies, fleets and traffic, as the board has them.

use std::collections::{BTreeMap, BTreeSet};

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::call::{Call, no_content, ok};
use super::endpoint::{Access, CURSOR, Endpoint, FLEET, LIMIT};
use super::problem::Problem;
use crate::board::{FleetStatus, ForgetError, ProxyStatus, ProxyTraffic, TrafficClasses};
use crate::publish::named_fleets;
use crate::store::Role;

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::GET, "/proxies", "listProxies", |call| {
            async move { list_proxies(&call) }.boxed()
        })
        .text("proxies", "List proxies, sorted by id")
        .parameters(&[LIMIT, CURSOR, FLEET])
        .answer::<ProxyPage>(200, "One page of the list"),
        Endpoint::new(Method::GET, "/proxies/{id}", "getProxy", |call| {
            async move { get_proxy(&call) }.boxed()
        })
        .text("proxies", "Read the state of a proxy")
        .answer::<ProxyStatus>(200, "The proxy")
        .problems(&[404]),
        Endpoint::new(Method::DELETE, "/proxies/{id}", "forgetProxy", |call| forget_proxy(call).boxed())
            .text("proxies", "Forget a proxy that is lost")
            .access(Access::Role(Role::Editor))
            .empty(204, "The proxy is forgotten")
            .problems(&[404, 409, 503]),
        Endpoint::new(Method::GET, "/fleet-statuses", "listFleetStatuses", |call| {
            async move { list_fleet_statuses(&call) }.boxed()
        })
        .text("fleets", "List the state of the fleets that have or had a proxy, or that a resource names")
        .answer::<FleetStatusList>(200, "The fleets"),
        Endpoint::new(Method::GET, "/summary", "getSummary", |call| async move { summary(&call) }.boxed())
            .text(
                "proxies",
                "Read the traffic that the connected proxies report, and the number of resources of each kind",
            )
            .answer::<Summary>(200, "The figures"),
    ]
}

/// Proxies, by id.
#[derive(Debug, Serialize, JsonSchema)]
struct ProxyPage {
    items: Vec<ProxyStatus>,
    /// For the next page; null: there is none.
    next_cursor: Option<String>,
}

/// Fleets, by name.
#[derive(Debug, Serialize, JsonSchema)]
struct FleetStatusList {
    items: Vec<FleetStatus>,
}

/// Traffic as the connected proxies reported it last.
#[derive(Debug, Serialize, JsonSchema)]
struct Traffic {
    /// The sum over all proxies.
    requests_per_second: f64,
    /// The share of answers with a status of 500 and above.
    error_ratio: f64,
    /// The worst proxy's, milliseconds.
    p99_ms: f64,
    /// The requests that failed, by kind; null: a proxy has traffic whose version does not count them apart.
    classes: Option<TrafficClasses>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            requests_per_second: 0.0,
            error_ratio: 0.0,
            p99_ms: 0.0,
            classes: Some(TrafficClasses::default()),
        }
    }
}

impl Traffic {
    /// Adds a proxy's traffic; ratios are weighted by requests.
    fn add(&mut self, report: &ProxyTraffic) {
        self.p99_ms = self.p99_ms.max(report.p99_ms);
        if report.requests_per_second <= 0.0 {
            return;
        }
        let sum = self.requests_per_second + report.requests_per_second;
        let mean = |mine: f64, other: f64| {
            (mine * self.requests_per_second + other * report.requests_per_second) / sum
        };
        self.error_ratio = mean(self.error_ratio, report.error_ratio);
        self.classes = self.classes.zip(report.classes).map(|(mine, other)| TrafficClasses {
            no_route: mean(mine.no_route, other.no_route),
            client_errors: mean(mine.client_errors, other.client_errors),
            server_errors: mean(mine.server_errors, other.server_errors),
        });
        self.requests_per_second = sum;
    }
}

/// Where it all stands.
#[derive(Debug, Serialize, JsonSchema)]
struct Summary {
    /// The revision that is published.
    revision: u64,
    /// Plural kind to number.
    resources: BTreeMap<&'static str, usize>,
    /// Known proxies.
    proxies: usize,
    /// Those with a stream.
    connected_proxies: usize,
    traffic: Traffic,
    /// By fleet.
    fleets: BTreeMap<String, Traffic>,
}

fn list_proxies(call: &Call) -> Result<Response, Problem> {
    let (limit, after, fleet) = (call.limit()?, call.text("cursor")?, call.text("fleet")?);
    let mut items: Vec<ProxyStatus> = call.app.board.proxies();
    items.retain(|proxy| {
        after.is_none_or(|after| proxy.id.as_str() > after) && fleet.is_none_or(|fleet| proxy.fleet == fleet)
    });
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|last| last.id.clone());
    ok(&ProxyPage { items, next_cursor })
}

fn get_proxy(call: &Call) -> Result<Response, Problem> {
    let id = call.path("id");
    let found = call.app.board.proxy(id);
    ok(&found.ok_or_else(|| Problem::not_found(format!("there is no proxy {id:?}")))?)
}

async fn forget_proxy(call: Call) -> Result<Response, Problem> {
    let id = call.path("id");
    match call.app.board.forget(id).await {
        Ok(()) => {}
        Err(ForgetError::Unknown) => return Err(Problem::not_found(format!("there is no proxy {id:?}"))),
        Err(ForgetError::Connected) => {
            let detail = format!("the proxy {id:?} is connected, and would be back at once");
            return Err(Problem::new(StatusCode::CONFLICT, detail));
        }
        Err(ForgetError::Store(error)) => return Err(error.into()),
    }
    call.audit(&format!("forget proxy {id}")).await;
    Ok(no_content())
}

fn list_fleet_statuses(call: &Call) -> Result<Response, Problem> {
    let published = call.app.publisher.current();
    let mut items = call.app.board.fleets();
    let known: BTreeSet<String> = items.iter().map(|fleet| fleet.name.clone()).collect();
    for name in named_fleets(&published) {
        if !known.contains(&*name) {
            let assigned = published.assigned.targets.get(&*name);
            let assigned = assigned.and_then(|target| target.revisions().next());
            items.push(FleetStatus {
                name: name.into(),
                proxies: 0,
                connected: 0,
                unknown: 0,
                assigned: assigned.unwrap_or(published.snapshot.id().number),
                served: None,
            });
        }
    }
    items.sort_by(|a, b| a.name.cmp(&b.name));
    ok(&FleetStatusList { items })
}

fn summary(call: &Call) -> Result<Response, Problem> {
    let published = call.app.publisher.current();
    let mut resources: BTreeMap<&'static str, usize> =
        signalbox_config::Kind::ALL.iter().map(|kind| (kind.plural(), 0)).collect();
    for resource in published.snapshot.iter() {
        *resources.entry(resource.key().kind.plural()).or_default() += 1;
    }
    let proxies = call.app.board.proxies();
    let mut traffic = Traffic::default();
    let mut fleets: BTreeMap<String, Traffic> = BTreeMap::new();
    let mut connected_proxies = 0;
    for proxy in proxies.iter().filter(|proxy| proxy.connected) {
        connected_proxies += 1;
        let fleet = fleets.entry(proxy.fleet.clone()).or_default();
        let Some(report) = &proxy.traffic else { continue };
        traffic.add(report);
        fleet.add(report);
    }
    ok(&Summary {
        revision: published.snapshot.id().number,
        resources,
        proxies: proxies.len(),
        connected_proxies,
        traffic,
        fleets,
    })
}

/// The data of `GET /events` for a proxy that was forgotten.
pub(super) fn forgotten_data(id: &str) -> Value {
    json!({"id": id})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(requests_per_second: f64, classes: Option<TrafficClasses>) -> ProxyTraffic {
        let error_ratio = classes.map_or(0.5, |classes| classes.server_errors);
        ProxyTraffic { requests_per_second, error_ratio, p99_ms: 2.0, classes }
    }

    #[test]
    fn shares_of_several_proxies_are_weighted_by_their_requests() {
        let classes = |no_route, client_errors, server_errors| {
            Some(TrafficClasses { no_route, client_errors, server_errors })
        };
        let mut traffic = Traffic::default();
        traffic.add(&report(30.0, classes(0.5, 0.25, 0.0)));
        traffic.add(&report(10.0, classes(0.0, 0.25, 0.5)));
        // A proxy without requests has no share.
        traffic.add(&report(0.0, None));
        assert_eq!(traffic.requests_per_second, 40.0);
        assert_eq!(traffic.classes, classes(0.375, 0.25, 0.125));
        assert_eq!(traffic.error_ratio, 0.125);
        // A figure that one proxy does not report is not known of all.
        traffic.add(&report(40.0, None));
        assert_eq!((traffic.classes, traffic.error_ratio), (None, 0.3125));
    }
}
