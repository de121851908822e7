//! Incidents: what rules find again and again about the same resource.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::finding::{Finding, Resource, Rule};

/// An incident.
#[derive(Debug, Clone, PartialEq)]
pub struct Incident {
    /// The rule that found it.
    pub rule: Rule,
    /// The resource, proxy or fleet that it is about.
    pub resource: Resource,
    /// The fleet whose requests it is about; `None`: it is about something else.
    pub fleet: Option<Arc<str>>,
    /// A sentence that says what is wrong, as it was seen last.
    pub sentence: String,
    /// When it was seen first, in seconds since 1970.
    pub since: u64,
    /// When it was seen last.
    pub last: u64,
    /// The numbers that the rule looked at.
    pub evidence: Value,
    /// The calls that may help: method and path.
    pub actions: Vec<String>,
    /// The part of the score that it takes away.
    pub penalty: u32,
}

/// Without a finding for this time, in seconds, it is quiet.
const QUIET_AFTER: u64 = 30;

impl Incident {
    /// When it was seen last, if that was some time ago. It closes if it stays so.
    pub fn quiet_since(&self, now: u64) -> Option<u64> {
        (now.saturating_sub(self.last) >= QUIET_AFTER).then_some(self.last)
    }
}

/// The state of the whole, at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// 100 minus the largest penalty; `None`: there is nothing to judge by.
    pub score: Option<u32>,
    /// A sentence about the worst incident, or that all is well.
    pub sentence: String,
    /// The open incidents, the worst first.
    pub incidents: Vec<Incident>,
    /// The moment, in seconds since 1970.
    pub at: u64,
}

/// The incidents that are open, or may become so.
#[derive(Debug, Default)]
pub(super) struct Incidents(BTreeMap<(Rule, Resource, Option<Arc<str>>), Seen>);

#[derive(Debug)]
struct Seen {
    incident: Incident,
    /// How often it was seen in a row, until it was open.
    times: u32,
}

/// An incident opens when it was seen so often in a row.
const OPENS_AFTER: u32 = 2;

/// It ends when it was not seen for this time, in seconds.
const CLOSES_AFTER: u64 = 300;

/// The most incidents.
const MOST: usize = 200;

/// The opening or the end of an incident.
#[derive(Debug, Clone, PartialEq)]
pub enum IncidentChange {
    /// It opened.
    Opened(Incident),
    /// It has not been seen for some minutes.
    Closed(Incident),
}

impl Incidents {
    /// Takes in what the rules have found at a moment. Returns what opened and closed.
    pub(super) fn fold(&mut self, now: u64, findings: Vec<Finding>) -> Vec<IncidentChange> {
        let mut changes = Vec::new();
        for Finding { rule, resource, fleet, sentence, evidence, actions, penalty } in findings {
            let key = (rule, resource.clone(), fleet.clone());
            if self.0.len() >= MOST && !self.0.contains_key(&key) {
                continue;
            }
            let seen = self.0.entry(key).or_insert_with(|| {
                let incident = Incident {
                    rule,
                    resource,
                    fleet,
                    sentence: String::new(),
                    since: now,
                    last: now,
                    evidence: Value::Null,
                    actions: Vec::new(),
                    penalty,
                };
                Seen { incident, times: 0 }
            });
            let incident = &mut seen.incident;
            (incident.sentence, incident.evidence) = (sentence, evidence);
            (incident.actions, incident.penalty) = (actions, penalty);
            incident.last = now;
            seen.times += 1;
            if seen.times == OPENS_AFTER {
                changes.push(IncidentChange::Opened(seen.incident.clone()));
            }
        }
        self.0.retain(|_, seen| {
            let is_open = seen.times >= OPENS_AFTER;
            let last = seen.incident.last;
            let stays = last == now || is_open && now.saturating_sub(last) < CLOSES_AFTER;
            if is_open && !stays {
                changes.push(IncidentChange::Closed(seen.incident.clone()));
            }
            stays
        });
        changes
    }

    /// The open ones, the worst first.
    pub(super) fn open(&self) -> Vec<Incident> {
        let open = self.0.values().filter(|seen| seen.times >= OPENS_AFTER);
        let mut open: Vec<Incident> = open.map(|seen| seen.incident.clone()).collect();
        open.sort_by_key(|incident| std::cmp::Reverse(incident.penalty));
        open
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn finding(name: &str, penalty: u32) -> Finding {
        Finding {
            rule: Rule::Route,
            resource: Resource { kind: "route".into(), name: name.into() },
            fleet: None,
            sentence: format!("{name} fails at {penalty}"),
            evidence: json!(penalty),
            actions: Vec::new(),
            penalty,
        }
    }

    #[test]
    fn an_incident_opens_when_it_is_seen_twice_and_ends_when_it_is_quiet() {
        let mut incidents = Incidents::default();
        assert_eq!(incidents.fold(0, vec![finding("a", 20)]), []);
        assert_eq!(incidents.fold(10, Vec::new()), [], "it was seen once");
        assert_eq!(incidents.fold(20, vec![finding("a", 20)]), []);
        assert!(incidents.open().is_empty());
        let changes = incidents.fold(30, vec![finding("a", 30), finding("b", 50)]);
        assert!(matches!(&changes[..], [IncidentChange::Opened(incident)] if incident.since == 20));
        assert_eq!(incidents.fold(40, vec![finding("a", 40), finding("b", 50)]).len(), 1);
        let open: Vec<_> =
            incidents.open().into_iter().map(|incident| (incident.sentence, incident.since)).collect();
        assert_eq!(open, [("b fails at 50".to_owned(), 30), ("a fails at 40".to_owned(), 20)]);
        assert_eq!(incidents.fold(339, vec![finding("b", 50)]), [], "it flaps");
        let changes = incidents.fold(340, vec![finding("b", 50)]);
        assert!(matches!(&changes[..], [IncidentChange::Closed(incident)] if incident.resource.name == "a"));
        assert_eq!(incidents.open().len(), 1);
    }

    #[test]
    fn there_is_one_incident_for_each_rule_and_resource_and_not_too_many() {
        let mut incidents = Incidents::default();
        for now in 0..5 {
            incidents.fold(now, (0..500).map(|number| finding(&number.to_string(), 20)).collect());
        }
        assert_eq!(incidents.open().len(), MOST);
    }
}
