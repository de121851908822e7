//! Incidents as the API and events show them.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::finding::{Resource, Rule};
use super::incidents::{Incident, IncidentChange};
use crate::clock::rfc3339;

/// Something that is wrong.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Incident")]
pub struct IncidentView {
    /// The rule that found it.
    pub rule: Rule,
    /// The resource, proxy or fleet that it is about.
    pub resource: Resource,
    /// The fleet whose requests it is about; null: it is about something else.
    pub fleet: Option<String>,
    /// A sentence that says what is wrong.
    pub sentence: String,
    /// The time since when it goes on, RFC 3339.
    pub since: String,
    /// The numbers that the rule looked at.
    pub evidence: Value,
    /// Calls of the admin API that may help: method and path.
    pub actions: Vec<String>,
    /// The part of the score that it takes away, from 0 to 100.
    pub penalty: u32,
}

/// An incident that opened or closed.
#[derive(Debug, Clone, Serialize)]
pub struct IncidentEvent {
    /// `opened` or `closed`.
    pub change: &'static str,
    /// The incident.
    #[serde(flatten)]
    pub incident: IncidentView,
}

impl From<Incident> for IncidentView {
    fn from(incident: Incident) -> Self {
        let Incident { rule, resource, fleet, sentence, since, evidence, actions, penalty } = incident;
        let fleet = fleet.map(|fleet| fleet.to_string());
        let since = rfc3339(i64::try_from(since).unwrap_or(0).saturating_mul(1_000_000));
        Self { rule, resource, fleet, sentence, since, evidence, actions, penalty }
    }
}

impl From<IncidentChange> for IncidentEvent {
    fn from(change: IncidentChange) -> Self {
        match change {
            IncidentChange::Opened(incident) => Self { change: "opened", incident: incident.into() },
            IncidentChange::Closed(incident) => Self { change: "closed", incident: incident.into() },
        }
    }
}
