//! History: revisions, what they changed, the way back, and waiting until one is served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Method;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use signalbox_config::{Kind, Resource, ResourceKey};
use signalbox_plugin::Registry;

use super::access::while_permitted;
use super::call::{Call, ok};
use super::endpoint::{Access, CURSOR, Endpoint, FLEET, LIMIT, Parameter, Place, TIMEOUT, WAIT_FOR, WRITE};
use super::problem::Problem;
use super::resources::{Action, ChangeView, Revised, outcome_problem, set_revision, wait_for_fleet, write};
use super::rollouts::wait_for_rollouts;
use super::whole_set::{gave_up, no_revision, set_at};
use crate::board::Rollout;
use crate::clock::rfc3339;
use crate::compute::compute;
use crate::publish::named_fleets;
use crate::store::{RevisionSummary, Role, UnknownKey};
use crate::writer::{Mode, Operation};

pub(super) fn endpoints() -> Vec<Endpoint> {
    let tag = "revisions";
    vec![
        Endpoint::new(Method::GET, "/revisions", "listRevisions", |call| list(call).boxed())
            .text(tag, "List revisions, newest first")
            .parameters(&[LIMIT, CURSOR])
            .answer::<RevisionPage>(200, "One page of the list")
            .problems(&[503]),
        Endpoint::new(Method::GET, "/revisions/{number}", "getRevision", |call| get(call).boxed())
            .text(tag, "Read a revision with all its changes, before and after")
            .answer::<RevisionView>(200, "The revision")
            .problems(&[404, 503]),
        Endpoint::new(Method::GET, "/revisions/{number}/diff", "diffRevisions", |call| diff(call).boxed())
            .text(tag, "Compare two revisions")
            .parameters(&[FROM])
            .answer::<Diff>(200, "The differences")
            .problems(&[404, 503]),
        Endpoint::new(Method::POST, "/revisions/{number}/rollback", "rollback", |call| {
            rollback(call).boxed()
        })
        .text(tag, "Roll back: make a new revision with the resources of this one")
        .access(Access::Role(Role::Editor))
        .parameters(&WRITE)
        .answer::<Revised>(200, "The changes. With `dry_run`: the changes that would be made")
        .problems(&[404, 409, 422, 503, 504]),
        Endpoint::new(Method::GET, "/revisions/{number}/wait", "waitForRevision", |call| wait(call).boxed())
            .text(tag, "Wait until every connected proxy serves the revision or a later one")
            .parameters(&[FLEET, WAIT_FOR, TIMEOUT])
            .answer::<Waited>(200, "Every connected proxy serves the revision or a later one")
            .problems(&[404, 409, 504]),
    ]
}

const FROM: Parameter = Parameter {
    name: "from",
    place: Place::Query,
    schema: || json!({"type": "integer", "minimum": 0}),
    text: "The revision to compare with. Absent: the one before",
};

/// A revision.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RevisionSummary")]
pub(super) struct SummaryView {
    /// Counts up without gaps.
    pub(super) number: u64,
    /// The name of the token, or of who else made it.
    pub(super) author: String,
    /// For people; may be empty.
    pub(super) message: String,
    /// RFC 3339.
    pub(super) committed_at: String,
    /// How many resources it changed.
    pub(super) change_count: u32,
}

impl From<&RevisionSummary> for SummaryView {
    fn from(summary: &RevisionSummary) -> Self {
        Self {
            number: summary.number,
            author: summary.author.to_string(),
            message: summary.message.clone(),
            committed_at: rfc3339(summary.committed_at_us),
            change_count: summary.change_count,
        }
    }
}

/// Revisions, newest first.
#[derive(Debug, Serialize, JsonSchema)]
struct RevisionPage {
    items: Vec<SummaryView>,
    /// For the next page; null: there is none.
    next_cursor: Option<String>,
}

/// A revision with all that it changed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Revision")]
struct RevisionView {
    #[serde(flatten)]
    summary: SummaryView,
    /// By kind and name.
    changes: Vec<ChangeView>,
    /// Those of resources of kinds that this version does not know, by kind and name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    unknown: Vec<UnknownChangeView>,
}

/// A change of a resource of a kind that this version does not know.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UnknownChange")]
struct UnknownChangeView {
    kind: String,
    name: String,
    action: Action,
}

impl UnknownChangeView {
    fn of(key: &UnknownKey, before: Option<&Bytes>, after: Option<&Bytes>) -> Self {
        let action = Action::of(before.is_some(), after.is_some());
        Self { kind: key.kind.to_string(), name: key.name.to_string(), action }
    }
}

/// The differences between two revisions.
#[derive(Debug, Serialize, JsonSchema)]
struct Diff {
    /// Before.
    from: u64,
    /// After.
    to: u64,
    /// By kind and name.
    changes: Vec<ChangeView>,
    /// Those of resources of kinds that this version does not know, by kind and name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    unknown: Vec<UnknownChangeView>,
}

/// Every connected proxy serves it.
#[derive(Debug, Serialize, JsonSchema)]
struct Waited {
    /// Which.
    revision: u64,
    /// Its rollouts, one for each fleet that was waited for and has one.
    rollouts: Vec<Rollout>,
}

async fn list(call: Call) -> Result<Response, Problem> {
    let limit = call.limit()?;
    let before = call.parsed::<u64>("cursor")?;
    let store = &call.app.store;
    let mut found =
        call.app.metrics.store_call("revisions", store.revisions(before, limit as u32 + 1)).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|last| last.number.to_string());
    ok(&RevisionPage { items: found.iter().map(SummaryView::from).collect(), next_cursor })
}

async fn get(call: Call) -> Result<Response, Problem> {
    let number = call.number("number")?;
    let found = call.app.metrics.store_call("revision", call.app.store.revision(number)).await?;
    let revision = found.ok_or_else(|| no_revision(number))?;
    let types = call.app.publisher.current().types.clone();
    compute(revision.changes.len(), || {
        let changes = revision
            .changes
            .iter()
            .map(|change| change_view(&types, &change.key, change.before.as_ref(), change.after.as_ref()))
            .collect();
        let unknown = revision
            .unknown
            .iter()
            .map(|change| UnknownChangeView::of(&change.key, change.before.as_ref(), change.after.as_ref()))
            .collect();
        ok(&RevisionView { summary: (&revision.summary).into(), changes, unknown })
    })
}

async fn diff(call: Call) -> Result<Response, Problem> {
    let to = call.number("number")?;
    let from = call.parsed::<u64>("from")?.unwrap_or_else(|| to.saturating_sub(1));
    let Differences { changed, unknown } = differences(&call, from.min(to), from.max(to)).await?;
    let types = call.app.publisher.current().types.clone();
    compute(changed.len(), || {
        let forwards = from <= to;
        let changes = changed
            .iter()
            .map(|(key, (older, newer))| {
                let (before, after) = if forwards { (older, newer) } else { (newer, older) };
                change_view(&types, key, before.as_ref(), after.as_ref())
            })
            .collect();
        let unknown = unknown
            .iter()
            .map(|(key, (older, newer))| {
                let (before, after) = if forwards { (older, newer) } else { (newer, older) };
                UnknownChangeView::of(key, before.as_ref(), after.as_ref())
            })
            .collect();
        ok(&Diff { from, to, changes, unknown })
    })
}

async fn rollback(call: Call) -> Result<Response, Problem> {
    let number = call.number("number")?;
    let _whole = call.app.whole_set().await?;
    let set = set_at(&call, number).await?;
    let current = call.app.publisher.current();
    let operation = tokio::task::spawn_blocking(move || Operation::restore(&set, &current))
        .await
        .map_err(|error| gave_up(&error))??;
    let written = write(&call, operation).await?;
    let mode = call.mode()?;
    if mode == Mode::Store {
        wait_for_fleet(&call, &written).await?;
    }
    let mut response = ok(&Revised::of(&written, mode))?;
    set_revision(&call, &mut response, &written);
    Ok(response)
}

const DEFAULT_FLEET: &str = "default";

async fn wait(call: Call) -> Result<Response, Problem> {
    while_permitted(&call, wait_until_served(&call)).await?
}

async fn wait_until_served(call: &Call) -> Result<Response, Problem> {
    let revision = call.number("number")?;
    let deadline = call.deadline("timeout")?.unwrap_or_else(|| Instant::now() + Duration::from_secs(10));
    let mut published = call.app.publisher.subscribe();
    if revision > published.borrow_and_update().snapshot.id().number {
        // Another control plane may have made it a moment ago.
        let head = call.app.metrics.store_call("head", call.app.store.head()).await?;
        if revision > head.number {
            return Err(no_revision(revision));
        }
        let arrives = published.wait_for(|published| published.snapshot.id().number >= revision);
        // A revision that has not come by the deadline is not served by then either, which is answered below.
        let _ = tokio::time::timeout_at(deadline.into(), arrives).await;
    }
    let fleet = call.text("fleet")?;
    // The fleet of those that name none may be waited for before there is one.
    if let Some(fleet) = fleet
        && fleet != DEFAULT_FLEET
        && !call.app.board.fleets().iter().any(|known| known.name == fleet)
        && !named_fleets(&call.app.publisher.current()).contains(fleet)
    {
        return Err(Problem::not_found(format!("there is no fleet {fleet}")));
    }
    let outcome = call.app.board.wait(revision, fleet, deadline).await;
    if let Some(problem) = outcome_problem(revision, &outcome) {
        return Err(problem);
    }
    let mut rollouts = outcome.rollouts;
    let is_wanted = |name: &str| fleet.is_none_or(|fleet| fleet == name);
    rollouts.extend(wait_for_rollouts(call, revision, &is_wanted, deadline).await?);
    ok(&Waited { revision, rollouts })
}

/// The resources that differ, each as it was before and after.
#[derive(Default)]
struct Differences {
    changed: BTreeMap<ResourceKey, (Option<Bytes>, Option<Bytes>)>,
    unknown: BTreeMap<UnknownKey, (Option<Bytes>, Option<Bytes>)>,
}

/// Beyond this many revisions the two sets are compared, instead of what happened between them.
const MAX_REPLAYED: u64 = 1000;

/// The resources that differ between an older and a newer revision, as they were before and after.
async fn differences(call: &Call, older: u64, newer: u64) -> Result<Differences, Problem> {
    let head = call.app.metrics.store_call("head", call.app.store.head()).await?;
    if newer > head.number {
        return Err(no_revision(newer));
    }
    let mut differences = Differences::default();
    let Differences { changed, unknown } = &mut differences;
    if newer - older > MAX_REPLAYED {
        let _whole = call.app.whole_set().await?;
        let (before, after) = tokio::try_join!(set_at(call, older), set_at(call, newer))?;
        changed.extend(before.resources.into_iter().map(|stored| (stored.key, (Some(stored.spec), None))));
        unknown.extend(before.unknown.into_iter().map(|stored| (stored.key, (Some(stored.spec), None))));
        for stored in after.resources {
            changed.entry(stored.key).or_default().1 = Some(stored.spec);
        }
        for stored in after.unknown {
            unknown.entry(stored.key).or_default().1 = Some(stored.spec);
        }
    } else {
        let mut known = older;
        while known < newer {
            let limit = (newer - known).min(100) as u32;
            let store = &call.app.store;
            let revisions =
                call.app.metrics.store_call("revisions_after", store.revisions_after(known, limit)).await?;
            let Some(last) = revisions.last() else { return Err(no_revision(known + 1)) };
            known = last.summary.number;
            for revision in revisions {
                for change in revision.changes {
                    changed.entry(change.key).or_insert((change.before, None)).1 = change.after;
                }
                for change in revision.unknown {
                    unknown.entry(change.key).or_insert((change.before, None)).1 = change.after;
                }
            }
        }
    }
    changed.retain(|_, (before, after)| before != after);
    unknown.retain(|_, (before, after)| before != after);
    Ok(differences)
}

fn change_view(
    types: &Registry,
    key: &ResourceKey,
    before: Option<&Bytes>,
    after: Option<&Bytes>,
) -> ChangeView {
    ChangeView {
        kind: key.kind,
        name: key.name.to_string(),
        action: Action::of(before.is_some(), after.is_some()),
        before: before.map(|spec| readable(types, key.kind, spec)),
        after: after.map(|spec| readable(types, key.kind, spec)),
    }
}

/// A stored specification without what is secret.
fn readable(types: &Registry, kind: Kind, spec: &[u8]) -> Value {
    match Resource::from_stored(kind, spec, types) {
        Ok(resource) => resource.redacted(),
        // A specification that this version cannot read may have secrets that it does not know.
        Err(_) => json!({"unreadable": true}),
    }
}

/// A revision, as `GET /events` tells of it.
pub(super) fn event_data(summary: &Arc<RevisionSummary>) -> String {
    serde_json::to_string(&SummaryView::from(&**summary)).unwrap_or_default()
}
