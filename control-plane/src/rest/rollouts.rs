//! Rollouts: what they do, and the commands of people.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use signalbox_config::FieldError;
use signalbox_rollout::machine::Action;
use signalbox_rollout::{Because, Plan};

use super::access::while_permitted;
use super::call::{Call, json_response, ok};
use super::endpoint::{
    Access, Endpoint, FLEET, LIMIT, Media, Parameter, Place, RESOURCE_LIMIT, Run, TIMEOUT,
};
use super::problem::Problem;
use super::whole_set::gave_up;
use crate::board::{ProxyStatus, Rollout, RolloutReason, RolloutState};
use crate::publish::Published;
use crate::rollout::RolloutWait;
use crate::store::Role;
use crate::writer::{Changed, Written};

/// The commands: the name in the path, the name of the operation, the summary, and the function.
const COMMANDS: [(&str, &str, &str, Run); 8] = [
    ("/rollouts/{id}/approve", "approveRollout", "Let a rollout begin that needs approval", |call| {
        command(call, Action::Approve).boxed()
    }),
    (
        "/rollouts/{id}/pause",
        "pauseRollout",
        "Halt a rollout. The gates are still watched, and take the revision back if it hurts",
        |call| command(call, Action::Pause).boxed(),
    ),
    ("/rollouts/{id}/resume", "resumeRollout", "Let a rollout go on that is paused or held", |call| {
        command(call, Action::Resume).boxed()
    }),
    (
        "/rollouts/{id}/promote",
        "promoteRollout",
        "End the present step, or the bake time, without waiting for more evidence",
        |call| command(call, Action::Promote).boxed(),
    ),
    (
        "/rollouts/{id}/skip",
        "skipRollout",
        "Give the revision to the whole fleet without the steps that are left",
        |call| command(call, Action::Skip).boxed(),
    ),
    (
        "/rollouts/{id}/abort",
        "abortRollout",
        "Take the revision back from its proxies, and hold the fleet at the one before",
        |call| command(call, Action::Abort).boxed(),
    ),
    (
        "/rollouts/{id}/revert",
        "revertRollout",
        "Abort, and take the changes back by a new revision",
        |call| command(call, Action::Revert).boxed(),
    ),
    (
        "/rollouts/{id}/retry",
        "retryRollout",
        "Begin a rollout anew that failed or was aborted. Nothing of its evidence counts",
        |call| command(call, Action::Retry).boxed(),
    ),
];

pub(super) fn endpoints() -> Vec<Endpoint> {
    let mut endpoints = vec![
        Endpoint::new(Method::GET, "/rollouts", "listRollouts", |call| list(call).boxed())
            .text("rollouts", "List the last rollouts, newest revision first")
            .parameters(&[LIMIT, FLEET, STATE])
            .answer::<RolloutList>(200, "The rollouts")
            .problems(&[503]),
        Endpoint::new(Method::GET, "/rollouts/{id}", "getRollout", |call| get(call).boxed())
            .text("rollouts", "Read a rollout, by `REVISION-FLEET`")
            .answer::<Rollout>(200, "The rollout")
            .problems(&[404, 503]),
        Endpoint::new(Method::GET, "/rollouts/{id}/proxies", "listRolloutProxies", |call| {
            proxies(call).boxed()
        })
        .text("rollouts", "List the proxies of the rollout's fleet with their place in it, by id")
        .answer::<RolloutProxyList>(200, "The proxies")
        .problems(&[404, 503]),
        Endpoint::new(Method::GET, "/rollouts/{id}/wait", "waitForRollout", |call| wait(call).boxed())
            .text("rollouts", "Wait for a step of a rollout, or for its end")
            .parameters(&[WAIT_FOR, TIMEOUT])
            .answer::<Rollout>(200, "The rollout got there")
            .problems(&[404, 409, 503, 504]),
        Endpoint::new(Method::GET, "/fleets/{name}/status", "getFleetRollouts", |call| status(call).boxed())
            .text("fleets", "Read what a fleet serves, and what holds it")
            .answer::<FleetRollouts>(200, "The state of the fleet")
            .problems(&[404, 503]),
    ];
    endpoints.extend(COMMANDS.into_iter().map(|(path, id, summary, run)| {
        Endpoint::new(Method::POST, path, id, run)
            .text("rollouts", summary)
            .access(Access::Role(Role::Editor))
            .body(Media::Json, schemars::SchemaGenerator::subschema_for::<CommandBody>, RESOURCE_LIMIT)
            .answer::<Rollout>(200, "The rollout after the command")
            .problems(&[403, 404, 409, 415, 422, 503])
    }));
    endpoints
}

const STATE: Parameter = Parameter {
    name: "state",
    place: Place::Query,
    schema: || json!({"type": "string"}),
    text: "Lists only rollouts in this state",
};

const WAIT_FOR: Parameter = Parameter {
    name: "for",
    place: Place::Query,
    schema: || json!({"type": "string", "enum": ["step", "applied", "succeeded"], "default": "succeeded"}),
    text: "The end of the wait. `step`: the proxies of the present step serve the revision. `applied`: the whole fleet serves it. `succeeded`: the rollout has ended with success",
};

/// The longest reason of a command, in bytes.
const MAX_REASON: usize = 1024;

/// The body of a command.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "RolloutCommand", deny_unknown_fields)]
struct CommandBody {
    /// The reason, for the log of the rollout and the audit trail; up to 1024 bytes.
    reason: String,
    /// The present `step` of the rollout, as the caller has seen it. In another step the command is refused, so that two who promote at the same
    /// time do not leave one out.
    #[serde(default)]
    step: Option<u32>,
}

/// The last rollouts, newest revision first.
#[derive(Debug, Serialize, JsonSchema)]
struct RolloutList {
    items: Vec<Rollout>,
}

/// The proxies of a rollout's fleet, by id.
#[derive(Debug, Serialize, JsonSchema)]
struct RolloutProxyList {
    items: Vec<RolloutProxy>,
}

/// A proxy and its place in a rollout.
#[derive(Debug, Serialize, JsonSchema)]
struct RolloutProxy {
    /// The reason why the proxy should serve its revision.
    place: Because,
    /// The proxy.
    proxy: ProxyStatus,
}

/// The state of a fleet with regard to rollouts.
#[derive(Debug, Serialize, JsonSchema)]
struct FleetRollouts {
    /// The name of the fleet.
    fleet: String,
    /// Counts the decisions about the fleet; 0: it follows the head.
    generation: u64,
    /// The revision that the proxies serve that are no canaries.
    stable: u64,
    /// The revision that the canaries serve.
    candidate: Option<u64>,
    /// The ids of the canaries.
    members: Vec<String>,
    /// The rollout that is under way or waits.
    rollout: Option<Rollout>,
    /// The rollout because of which the newest revision is held back.
    held_by: Option<Rollout>,
    /// The reason why it is held back, and why the changes could not be taken back, if so.
    reason: Option<RolloutReason>,
}

async fn list(call: Call) -> Result<Response, Problem> {
    let (limit, fleet, state) = (call.limit()?, call.text("fleet")?, call.text("state")?);
    let is_wanted = |rollout: &Rollout| {
        fleet.is_none_or(|fleet| rollout.fleet == fleet)
            && state.is_none_or(|state| json!(rollout.state).as_str() == Some(state))
    };
    let most = if fleet.is_some() || state.is_some() { 1000 } else { limit };
    let mut items = call.app.rollouts.list(fleet, u32::try_from(most).unwrap_or(u32::MAX)).await?;
    let known: BTreeSet<String> = items.iter().map(|rollout| rollout.id.clone()).collect();
    let immediate = call.app.board.rollouts(most);
    items.extend(immediate.into_iter().filter(|rollout| !known.contains(&rollout.id)));
    items.retain(is_wanted);
    // The last attempt comes first.
    let attempt = |rollout: &Rollout| (rollout.id.len(), rollout.id.clone());
    items.sort_by(|a, b| {
        b.revision
            .cmp(&a.revision)
            .then_with(|| a.fleet.cmp(&b.fleet))
            .then_with(|| attempt(b).cmp(&attempt(a)))
    });
    items.truncate(limit);
    ok(&RolloutList { items })
}

/// The rollout that the path names.
async fn find(call: &Call) -> Result<Rollout, Problem> {
    let id = call.path("id");
    let found = match call.app.rollouts.get(id).await? {
        Some(rollout) => Some(rollout),
        None => call.app.board.rollout(id),
    };
    found.ok_or_else(|| Problem::not_found(format!("there is no rollout {id:?}")))
}

async fn get(call: Call) -> Result<Response, Problem> {
    ok(&find(&call).await?)
}

async fn proxies(call: Call) -> Result<Response, Problem> {
    let fleet = find(&call).await?.fleet;
    let mut proxies = call.app.board.proxies();
    proxies.retain(|proxy| proxy.fleet == fleet);
    let place = |proxy: ProxyStatus| RolloutProxy { place: proxy.revision.assigned_because, proxy };
    ok(&RolloutProxyList { items: proxies.into_iter().map(place).collect() })
}

/// Goes on when it is dropped: a client that hangs up must not leave a command that is in no audit trail.
async fn command(call: Call, action: Action) -> Result<Response, Problem> {
    tokio::spawn(carry_out(call, action)).await.map_err(|error| gave_up(&error))?
}

async fn carry_out(call: Call, action: Action) -> Result<Response, Problem> {
    let body: CommandBody = call.json_as()?;
    let reason = body.reason.trim();
    if reason.is_empty() || reason.len() > MAX_REASON || reason.chars().any(|c| c.is_control() && c != '\n') {
        let message = format!("must have from 1 to {MAX_REASON} bytes, without control characters");
        return Err(Problem::invalid(vec![FieldError::new("reason", message)]));
    }
    let actor = call.caller.as_ref().map_or("unknown", |caller| &*caller.principal.name);
    let rollout = obeying(&call, action, reason, actor, body.step).await?;
    call.audit(reason).await;
    if action == Action::Retry {
        // It has an id of its own.
        let rollouts = call.app.rollouts.list(Some(&rollout.fleet), 100).await?;
        let is_new = |one: &&Rollout| one.revision == rollout.revision && one.finished_at.is_none();
        if let Some(new) = rollouts.iter().find(is_new) {
            return ok(new);
        }
    }
    ok(&call.app.rollouts.get(&rollout.id).await?.unwrap_or(rollout))
}

/// Has the leader carry out a command about the rollout that the path names, or about the one that brings the same content in its place. Returns
/// the rollout that obeyed.
async fn obeying(
    call: &Call,
    action: Action,
    reason: &str,
    actor: &str,
    step: Option<u32>,
) -> Result<Rollout, Problem> {
    let mut tried = None;
    loop {
        let rollout = call.app.rollouts.successor(find(call).await?).await?;
        if rollout.strategy == "immediate" {
            let detail =
                format!("rollout {} is immediate, so there is nothing to decide about it", rollout.id);
            return Err(Problem::new(StatusCode::CONFLICT, detail).member("state", rollout.state));
        }
        if let Some(next) = &rollout.superseded_by {
            let detail = format!(
                "rollout {} took the place of {}, and brings other content: look at it first",
                next.id, rollout.id
            );
            let problem = Problem::new(StatusCode::CONFLICT, detail);
            return Err(problem.member("state", rollout.state).member("superseded_by", next));
        }
        if action == Action::Approve {
            refuse_author(call, &rollout, actor).await?;
        }
        let carried_out = call.app.rollouts.command(&rollout, action, reason, actor, step).await;
        let answer = carried_out.map_err(|error| Problem::from(error).member("carried_out", "unknown"))?;
        let Some(answer) = answer else {
            let detail = "no control plane decides about rollouts at the moment; nothing was done";
            return Err(Problem::unavailable(detail, 5));
        };
        let Some(refused) = answer.refused else { return Ok(rollout) };
        // Another rollout may have taken its place at this moment.
        let state = answer.state.unwrap_or(rollout.state);
        if answer.state.is_some() || tried.replace(rollout.id.clone()) == Some(rollout.id) {
            return Err(Problem::new(StatusCode::CONFLICT, refused).member("state", state));
        }
    }
}

/// Refuses the approval of a rollout by somebody who wrote one of its revisions, unless the policy allows that.
async fn refuse_author(call: &Call, rollout: &Rollout, actor: &str) -> Result<(), Problem> {
    let published = call.app.publisher.current();
    let needs_another = published
        .policy(&rollout.fleet)
        .is_some_and(|policy| policy.needs_approval && !policy.author_may_approve);
    if !needs_another || rollout.state != RolloutState::Waiting {
        return Ok(());
    }
    let revisions = call.app.store.revisions(Some(rollout.revision + 1), MAX_AUTHORS).await?;
    let mut written = revisions.iter().filter(|revision| revision.number > rollout.stable_revision);
    match written.find(|revision| *revision.author == *actor) {
        Some(revision) => {
            let detail = format!(
                "{actor} wrote revision {}, and another person is to approve it; `approval.author: true` in the policy of fleet {} would allow it",
                revision.number, rollout.fleet
            );
            Err(Problem::new(StatusCode::FORBIDDEN, detail).member("revision", revision.number))
        }
        None => Ok(()),
    }
}

/// The most revisions of a rollout whose authors may not approve it.
const MAX_AUTHORS: u32 = 1000;

async fn wait(call: Call) -> Result<Response, Problem> {
    let event = match call.text("for")? {
        None | Some("succeeded") => RolloutWait::Succeeded,
        Some("step") => RolloutWait::Step,
        Some("applied") => RolloutWait::Applied,
        Some(other) => {
            let message = format!("must be step, applied or succeeded, is {other:?}");
            return Err(Problem::parameter("for", message));
        }
    };
    let deadline = call.deadline("timeout")?.unwrap_or_else(|| Instant::now() + Duration::from_secs(10));
    let rollout = find(&call).await?;
    if rollout.strategy == "immediate" {
        let detail = format!("rollout {} is immediate; wait for revision {}", rollout.id, rollout.revision);
        return Err(Problem::new(StatusCode::CONFLICT, detail).member("state", rollout.state));
    }
    let (reached, is_reached) =
        while_permitted(&call, call.app.rollouts.wait(&rollout.id, event, deadline)).await??;
    let rollout = reached.unwrap_or(rollout);
    match rollout_problem(&rollout, is_reached) {
        Some(problem) => Err(problem),
        None => json_response(StatusCode::OK, &rollout),
    }
}

/// The problem of a wait that did not get there.
fn rollout_problem(rollout: &Rollout, is_reached: bool) -> Option<Problem> {
    if is_reached {
        return None;
    }
    let state = json!(rollout.state);
    let state = state.as_str().unwrap_or_default();
    let mut detail = format!("rollout {} is {state}", rollout.id);
    if let Some(reason) = &rollout.reason {
        detail.push_str(&format!(": {}", reason.text));
    }
    let status = match rollout.state {
        RolloutState::Waiting | RolloutState::Running | RolloutState::Baking => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::CONFLICT,
    };
    Some(Problem::new(status, detail).member("revision", rollout.revision).member("rollouts", [rollout]))
}

/// Waits until the rollouts of a revision in pinned fleets are where a write waits for; only those fleets are waited for that are pinned and `is_concerned`.
pub(super) async fn wait_for_rollouts(
    call: &Call,
    revision: u64,
    is_concerned: &(dyn Fn(&str) -> bool + Sync),
    deadline: Instant,
) -> Result<Vec<Rollout>, Problem> {
    let event = check_wait_for(call)?;
    let mut rollouts = Vec::new();
    let known = call.app.board.fleets();
    for name in pinned_fleets(&call.app.publisher.current()) {
        // A fleet without a proxy keeps nobody waiting.
        let is_empty = !known.iter().any(|known| known.name == name && known.connected + known.unknown > 0);
        if is_empty || !is_concerned(&name) {
            continue;
        }
        let waited = call.app.rollouts.wait_for_revision(&name, revision, event, deadline);
        match waited.await? {
            (None, _) => {
                let detail = format!("no rollout has brought revision {revision} to fleet {name} yet");
                return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail).member("revision", revision));
            }
            (Some(rollout), is_reached) => {
                if let Some(problem) = rollout_problem(&rollout, is_reached) {
                    return Err(problem);
                }
                rollouts.push(rollout);
            }
        }
    }
    Ok(rollouts)
}

/// The end of a wait for pinned fleets.
pub(super) fn check_wait_for(call: &Call) -> Result<RolloutWait, Problem> {
    match call.text("wait_for")? {
        None | Some("step") => Ok(RolloutWait::Step),
        Some("succeeded") => Ok(RolloutWait::Succeeded),
        Some(other) => {
            let message = format!("must be step or succeeded, is {other:?}");
            Err(Problem::parameter("wait_for", message))
        }
    }
}

/// The fleets whose proxies get revisions by decisions, by name.
pub(super) fn pinned_fleets(published: &Published) -> Vec<String> {
    let targets = published.assigned.targets.iter();
    targets.filter(|(_, target)| target.plan != Plan::Head).map(|(fleet, _)| fleet.to_string()).collect()
}

async fn status(call: Call) -> Result<Response, Problem> {
    let name = call.path("name");
    let published = call.app.publisher.current();
    let target = published.assigned.targets.get(name);
    let is_known =
        published.policy(name).is_some() || call.app.board.fleets().iter().any(|fleet| fleet.name == name);
    if target.is_none() && !is_known {
        return Err(Problem::not_found(format!("there is no fleet {name:?}")));
    }
    let head = published.snapshot.id().number;
    let (stable, candidate) = match target.map(|target| &target.plan) {
        None | Some(Plan::Head) => (head, None),
        Some(Plan::Stable { revision }) => (*revision, None),
        Some(Plan::Split { stable, candidate }) => (*stable, Some(candidate)),
    };
    let members = candidate.map(|candidate| candidate.members.iter().map(ToString::to_string).collect());
    let rollouts = call.app.rollouts.list(Some(name), 100).await?;
    let is_open = |rollout: &&Rollout| rollout.finished_at.is_none();
    let is_taken_back = |rollout: &&Rollout| {
        rollout.revision > stable && matches!(rollout.state, RolloutState::Failed | RolloutState::Aborted)
    };
    let under_way = rollouts.iter().filter(is_open).min_by_key(|rollout| rollout.revision);
    let held_by = rollouts.iter().find(is_taken_back).filter(|_| under_way.is_none());
    ok(&FleetRollouts {
        fleet: name.to_owned(),
        generation: target.map_or(0, |target| target.generation),
        stable,
        candidate: candidate.map(|candidate| candidate.revision),
        members: members.unwrap_or_default(),
        reason: held_by.and_then(|rollout| rollout.reason.clone()),
        held_by: held_by.cloned(),
        rollout: under_way.cloned(),
    })
}

/// True if a write changes something that proxies of a fleet get.
pub(super) fn concerns(written: &Written, fleet: &str) -> bool {
    let versions = |changed: &Changed| [changed.before.clone(), changed.after.clone()];
    written.changes.iter().flat_map(versions).flatten().any(|resource| resource.visible_to(fleet))
}

/// The ids of the rollouts that a write begins.
pub(super) fn rollout_ids(call: &Call, revision: u64, written: &Written) -> Vec<String> {
    let mut fleets: BTreeSet<String> = pinned_fleets(&written.published).into_iter().collect();
    fleets.extend(call.app.board.fleets().into_iter().map(|fleet| fleet.name));
    fleets.retain(|fleet| concerns(written, fleet));
    fleets.into_iter().take(MAX_IDS).map(|fleet| format!("{revision}-{fleet}")).collect()
}

/// The most ids in a header.
const MAX_IDS: usize = 50;
