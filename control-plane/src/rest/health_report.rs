//! The endpoint that says what is wrong, in plain words.

use axum::response::Response;
use futures_util::FutureExt as _;
use http::Method;
use schemars::JsonSchema;
use serde::Serialize;

use super::call::{Call, ok};
use super::endpoint::Endpoint;
use super::problem::Problem;
use crate::health_report::IncidentView;

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

fn health_report(call: &Call) -> Result<Response, Problem> {
    let report = call.app.health.report();
    ok(&HealthReport {
        score: report.score,
        sentence: report.sentence,
        incidents: report.incidents.into_iter().map(|it| IncidentView::at(report.at, it)).collect(),
    })
}
