//! Events that webhooks are sent.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use signalbox_config::{Name, Webhook, WebhookFormat, WebhookRolloutEvent, WebhookTopic};

use super::slack;
use crate::board::{Rollout, RolloutEvent, RolloutState};
use crate::clock::rfc3339;
use crate::health_report::{IncidentChange, IncidentEvent};
use crate::publish::Published;
use crate::store::RevisionSummary;

/// An event that webhooks may be sent.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// Identifies it, at every control plane of a database that tells of it.
    key: String,
    /// The time when it happened, in microseconds since 1970.
    at_us: i64,
    /// `incident.opened`
    name: String,
    /// `None`: it is a test.
    topic: Option<WebhookTopic>,
    fleet: Option<String>,
    /// The number of a revision that was published.
    revision: Option<u64>,
    rollout_event: Option<WebhookRolloutEvent>,
    /// The penalty of an incident.
    penalty: u32,
    /// For people.
    sentence: String,
    data: Value,
}

/// The kinds of the changes of larger revisions are not counted.
const COUNTED_CHANGES: u32 = 10_000;

/// The largest evidence of an incident that is sent, in bytes of JSON.
const MAX_EVIDENCE: usize = 64 << 10;

/// The longest sentence, in bytes.
const MAX_SENTENCE: usize = 8192;

impl Event {
    /// A revision that was published; `published` is the state of it or of a later one.
    pub(super) fn of_revision(published: &Published, summary: &RevisionSummary) -> Self {
        let RevisionSummary { number, author, message, committed_at_us, change_count } = summary;
        let kinds = changed_kinds(published, summary);
        let mut changes = counted(u64::from(*change_count), "change");
        if let Some(kinds) = &kinds {
            let kinds = kinds.iter().map(|(kind, count)| counted(*count, kind)).collect::<Vec<_>>();
            changes.push_str(&format!(" ({})", kinds.join(", ")));
        }
        let said = if message.is_empty() { String::new() } else { format!(": {message}") };
        let sentence = bounded(format!("Revision {number} of {author} has {changes}{said}"));
        Self {
            key: format!("{}/revision/{number}", published.snapshot.id().epoch),
            at_us: *committed_at_us,
            name: "revision.published".to_owned(),
            topic: Some(WebhookTopic::Revision),
            fleet: None,
            revision: Some(*number),
            rollout_event: None,
            penalty: 0,
            data: json!({
                "sentence": sentence,
                "number": number,
                "author": &**author,
                "message": message,
                "committed_at": rfc3339(*committed_at_us),
                "change_count": change_count,
                "changes_by_kind": kinds,
            }),
            sentence,
        }
    }

    /// The events of a rollout that are not known yet, the oldest first, and none that is older than `since_us`. `is_new` is asked with the key
    /// of an event, and notes it.
    pub(super) fn of_rollout(
        epoch: &str,
        rollout: &Rollout,
        since_us: i64,
        is_new: &mut dyn FnMut(&str) -> bool,
    ) -> Vec<Self> {
        if rollout.strategy == "immediate" {
            let key = format!("{epoch}/rollout/{}/{:?}", rollout.id, rollout.state);
            return match immediate_event(rollout.state) {
                Some(event) if is_new(&key) => {
                    let at_us = rollout.finished_at.as_deref().map_or_else(crate::clock::now_us, micros);
                    let reason = rollout.reason.as_ref().map_or("", |reason| &reason.text);
                    vec![Self::of_change(key, at_us, rollout, event, None, reason)]
                }
                _ => Vec::new(),
            };
        }
        let mut events = Vec::new();
        // From the newest back to the first one that is known: there are up to 200.
        for happened in rollout.events.iter().rev() {
            let at_us = micros(&happened.at);
            let RolloutEvent { at, state, reason, .. } = happened;
            let key = format!("{epoch}/rollout/{}/{at}/{state:?}/{}", rollout.id, reason.code);
            if at_us < since_us || !is_new(&key) {
                break;
            }
            if let Some(event) = progressive_event(*state, &reason.code) {
                let actor = happened.actor.as_deref();
                events.push(Self::of_change(key, at_us, rollout, event, actor, &reason.text));
            }
        }
        events.reverse();
        events
    }

    fn of_change(
        key: String,
        at_us: i64,
        rollout: &Rollout,
        event: WebhookRolloutEvent,
        actor: Option<&str>,
        reason: &str,
    ) -> Self {
        let Rollout { id, revision, fleet, strategy, step, .. } = rollout;
        let said = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let by = actor.map(|actor| format!(" (by {actor})")).unwrap_or_default();
        let happened = happened(event, strategy == "immediate");
        let (event_name, steps) = (json!(event), rollout.steps.len());
        let sentence =
            bounded(format!("The rollout of revision {revision} to fleet {fleet} {happened}{by}{said}"));
        Self {
            key,
            at_us,
            name: format!("rollout.{}", event_name.as_str().unwrap_or_default()),
            topic: Some(WebhookTopic::Rollout),
            fleet: Some(fleet.clone()),
            revision: None,
            rollout_event: Some(event),
            penalty: 0,
            data: json!({
                "sentence": sentence,
                "rollout": id,
                "fleet": fleet,
                "revision": revision,
                "stable_revision": rollout.stable_revision,
                "strategy": strategy,
                "event": event_name,
                "state": rollout.state,
                "step": step,
                "steps": steps,
                "actor": actor,
                "reason": reason,
            }),
            sentence,
        }
    }

    /// An incident that opened or closed, as this control plane sees it.
    pub(super) fn of_incident(change: &IncidentChange, now_us: i64) -> Self {
        let (IncidentChange::Opened(incident) | IncidentChange::Closed(incident)) = change;
        let mut view = IncidentEvent::from(change.clone());
        if view.incident.evidence.to_string().len() > MAX_EVIDENCE {
            view.incident.evidence = Value::Null;
        }
        let resource = &incident.resource;
        let is_fleet = resource.kind == "fleet";
        let fleet = incident.fleet.as_deref().or(is_fleet.then_some(resource.name.as_str()));
        let fleet = fleet.map(str::to_owned);
        let key = format!(
            "incident/{:?}/{}/{}/{}/{}/{}",
            incident.rule,
            resource.kind,
            resource.name,
            fleet.as_deref().unwrap_or_default(),
            incident.since,
            view.change
        );
        let sentence = match change {
            IncidentChange::Opened(incident) => format!("Incident: {}", incident.sentence),
            IncidentChange::Closed(incident) => format!("This has ended: {}", incident.sentence),
        };
        let name = format!("incident.{}", view.change);
        Self {
            key,
            at_us: now_us,
            name,
            topic: Some(WebhookTopic::Incident),
            fleet,
            revision: None,
            rollout_event: None,
            penalty: incident.penalty,
            sentence: bounded(sentence),
            data: serde_json::to_value(view).unwrap_or_default(),
        }
    }

    /// The event by which a person tests a webhook.
    pub(super) fn test(webhook: &str, now_us: i64) -> Self {
        let sentence = format!("This is a test of the webhook {webhook}");
        Self {
            key: format!("test/{webhook}/{now_us}/{}", fastrand::u64(..)),
            at_us: now_us,
            name: "test".to_owned(),
            topic: None,
            fleet: None,
            revision: None,
            rollout_event: None,
            penalty: 0,
            data: json!({"webhook": webhook, "sentence": sentence}),
            sentence,
        }
    }

    /// True if the webhook is to get it. Revisions before the one with the number `since` are older than the webhook.
    pub(super) fn is_wanted_by(&self, webhook: &Webhook, since: u64) -> bool {
        let Some(topic) = self.topic else { return false };
        let is_listed = |fleet: &String| {
            let fleets = webhook.fleets.as_deref();
            fleets.is_none_or(|fleets| fleets.iter().any(|listed| listed.as_str() == fleet))
        };
        let is_event = |event: &WebhookRolloutEvent| {
            webhook.rollout_events.as_ref().is_none_or(|events| events.contains(event))
        };
        webhook.enabled
            && self.revision.is_none_or(|number| number >= since)
            && webhook.topics.contains(&topic)
            && self.fleet.as_ref().is_none_or(is_listed)
            && self.rollout_event.as_ref().is_none_or(is_event)
            && (topic != WebhookTopic::Incident || self.penalty >= webhook.min_penalty)
    }

    /// The id of the event for a webhook. It is the same for every attempt, and at every control plane.
    pub(super) fn id_for(&self, webhook: &Name) -> String {
        let hash = blake3::hash(format!("{webhook}/{}", self.key).as_bytes()).to_hex();
        format!("evt_{}", hash.get(..32).unwrap_or_default())
    }

    /// The body of a request, in the format of the webhook.
    pub(super) fn body(&self, webhook: &Webhook) -> String {
        match webhook.format {
            WebhookFormat::Slack => slack::message(&self.sentence),
            WebhookFormat::Json => json!({
                "type": self.name,
                "id": self.id_for(&webhook.name),
                "timestamp": rfc3339(self.at_us),
                "data": self.data,
            })
            .to_string(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[cfg(test)]
    pub(super) fn key(&self) -> &str {
        &self.key
    }
}

/// The numbers of changes by kind; `None`: that is not known any more, or they are too many.
fn changed_kinds(published: &Published, summary: &RevisionSummary) -> Option<BTreeMap<&'static str, u64>> {
    if summary.change_count > COUNTED_CHANGES {
        return None;
    }
    let before = summary.number.checked_sub(1)?;
    let mut kinds = BTreeMap::new();
    for key in published.history.changed_between(before, summary.number)? {
        *kinds.entry(key.kind.as_str()).or_default() += 1;
    }
    (!kinds.is_empty()).then_some(kinds)
}

fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// The event of an immediate rollout. That it began, or was superseded by the next revision, its revisions tell.
fn immediate_event(state: RolloutState) -> Option<WebhookRolloutEvent> {
    match state {
        RolloutState::Succeeded => Some(WebhookRolloutEvent::Succeeded),
        RolloutState::Failed => Some(WebhookRolloutEvent::Failed),
        RolloutState::Aborted => Some(WebhookRolloutEvent::Aborted),
        RolloutState::Waiting
        | RolloutState::Running
        | RolloutState::Paused
        | RolloutState::Held
        | RolloutState::Baking
        | RolloutState::Superseded => None,
    }
}

/// The event of a progressive rollout that is in this state after something happened for a reason. `None`: it concerns only single
/// proxies, or that the revision was written.
fn progressive_event(state: RolloutState, code: &str) -> Option<WebhookRolloutEvent> {
    let by_state = match state {
        RolloutState::Succeeded => WebhookRolloutEvent::Succeeded,
        RolloutState::Failed => WebhookRolloutEvent::Failed,
        RolloutState::Aborted => WebhookRolloutEvent::Aborted,
        RolloutState::Superseded => WebhookRolloutEvent::Superseded,
        RolloutState::Paused => WebhookRolloutEvent::Paused,
        RolloutState::Held => WebhookRolloutEvent::Held,
        RolloutState::Waiting => WebhookRolloutEvent::Waiting,
        RolloutState::Running => WebhookRolloutEvent::Step,
        RolloutState::Baking => WebhookRolloutEvent::Baking,
    };
    match (state, code) {
        (_, "member_joined" | "member_replaced" | "member_swapped" | "member_returned" | "partition") => None,
        (RolloutState::Waiting, "written") => None,
        (RolloutState::Running, "started") => Some(WebhookRolloutEvent::Started),
        (RolloutState::Waiting | RolloutState::Running | RolloutState::Baking, "operator") => {
            Some(WebhookRolloutEvent::Command)
        }
        _ => Some(by_state),
    }
}

fn happened(event: WebhookRolloutEvent, is_immediate: bool) -> &'static str {
    match event {
        WebhookRolloutEvent::Waiting => "waits",
        WebhookRolloutEvent::Started => "has started",
        WebhookRolloutEvent::Step => "goes on",
        WebhookRolloutEvent::Baking => "has reached the whole fleet",
        WebhookRolloutEvent::Command => "was given a command",
        WebhookRolloutEvent::Paused => "is paused",
        WebhookRolloutEvent::Held => "is held and needs a decision",
        WebhookRolloutEvent::Succeeded => "has succeeded",
        WebhookRolloutEvent::Failed if is_immediate => "has failed",
        WebhookRolloutEvent::Failed => "has failed and is taken back",
        WebhookRolloutEvent::Aborted => "was aborted",
        WebhookRolloutEvent::Superseded => "was superseded",
    }
}

fn bounded(mut sentence: String) -> String {
    if sentence.len() > MAX_SENTENCE {
        sentence.truncate(sentence.floor_char_boundary(MAX_SENTENCE));
        sentence.push('…');
    }
    sentence
}

/// Microseconds since 1970 of a time in RFC 3339.
fn micros(time: &str) -> i64 {
    time.parse().map_or(0, jiff::Timestamp::as_microsecond)
}

#[cfg(test)]
mod tests;
