//! The endpoint that says what is wrong, in plain words.

use axum::response::Response;
use futures_util::FutureExt as _;
use http::Method;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::call::{Call, ok};
use super::endpoint::Endpoint;
use super::problem::Problem;
use crate::clock::rfc3339;
use crate::health_report::{Incident, Resource, Rule};

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::GET, "/health-report", "getHealthReport", |call| {
            async move { health_report(&call) }.boxed()
        })
        .text("proxies", "Read how healthy the whole is, and what is wrong, in plain words")
        .answer::<HealthReport>(200, "The report"),
    ]
}

/// The state of the whole.
#[derive(Debug, Serialize, JsonSchema)]
struct HealthReport {
    /// From 0 to 100: 100 minus the penalty of the worst incident. Null: there is nothing to judge by.
    score: Option<u32>,
    /// The worst incident, or that all is well.
    sentence: String,
    /// The open incidents, the worst first.
    incidents: Vec<IncidentView>,
}

/// Something that is wrong.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Incident")]
struct IncidentView {
    /// The rule that found it.
    rule: Rule,
    /// The resource, proxy or fleet that it is about.
    resource: Resource,
    /// The fleet whose requests it is about; null: it is about something else.
    fleet: Option<String>,
    /// A sentence that says what is wrong.
    sentence: String,
    /// The time since when it goes on, RFC 3339.
    since: String,
    /// The numbers that the rule looked at.
    evidence: Value,
    /// Calls of the admin API that may help: method and path.
    actions: Vec<String>,
}

impl From<Incident> for IncidentView {
    fn from(incident: Incident) -> Self {
        let Incident { rule, resource, fleet, sentence, since, evidence, actions, penalty: _ } = incident;
        let fleet = fleet.map(|fleet| fleet.to_string());
        let since = rfc3339(i64::try_from(since).unwrap_or(0).saturating_mul(1_000_000));
        Self { rule, resource, fleet, sentence, since, evidence, actions }
    }
}

fn health_report(call: &Call) -> Result<Response, Problem> {
    let report = call.app.health.report();
    ok(&HealthReport {
        score: report.score,
        sentence: report.sentence,
        incidents: report.incidents.into_iter().map(IncidentView::from).collect(),
    })
}
