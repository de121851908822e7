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
    /// The time at which it was seen last, RFC 3339, if that is half a minute ago: it may be over, and closes after five minutes. Null: it goes on.
    pub quiet_since: Option<String>,
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

impl IncidentView {
    /// The incident as it is seen at the second `now`, since 1970.
    pub fn at(now: u64, incident: Incident) -> Self {
        let time = |second: u64| rfc3339(i64::try_from(second).unwrap_or(0).saturating_mul(1_000_000));
        let quiet_since = incident.quiet_since(now).map(time);
        let Incident { rule, resource, fleet, sentence, since, evidence, actions, penalty, last: _ } =
            incident;
        let (fleet, since) = (fleet.map(|fleet| fleet.to_string()), time(since));
        Self { rule, resource, fleet, sentence, since, quiet_since, evidence, actions, penalty }
    }
}

impl From<IncidentChange> for IncidentEvent {
    fn from(change: IncidentChange) -> Self {
        let (change, incident, now) = match change {
            IncidentChange::Opened(incident) => ("opened", incident.clone(), incident.last),
            IncidentChange::Closed(incident) => ("closed", incident, u64::MAX),
        };
        Self { change, incident: IncidentView::at(now, incident) }
    }
}
