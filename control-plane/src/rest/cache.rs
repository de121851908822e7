//! The endpoint that purges cached responses.

use std::time::{Duration, Instant};

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;
use signalbox_config::{FieldError, Kind, Purge, ResourceKey};

use super::access::while_permitted;
use super::call::{Call, ok};
use super::endpoint::{Access, Endpoint, Media, RESOURCE_LIMIT, TIMEOUT};
use super::problem::Problem;
use crate::board::PurgeProgress;
use crate::store::Role;

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/cache/purge", "purgeCache", |call| purge(call).boxed())
            .text("plugins", "Remove cached responses on every proxy. The answer comes when all connected proxies have removed them")
            .access(Access::Role(Role::Editor))
            .parameters(&[TIMEOUT])
            .body(Media::Json, schemars::SchemaGenerator::subschema_for::<Purge>, RESOURCE_LIMIT)
            .answer::<PurgeOutcome>(200, "Every connected proxy has removed the responses")
            .problems(&[415, 422, 503, 504]),
    ]
}

/// A purge that every connected proxy has carried out.
#[derive(Debug, Serialize, JsonSchema)]
struct PurgeOutcome {
    /// The number of the purge. Later purges have greater ones.
    number: u64,
    /// The number of proxies that have removed the responses.
    proxies: usize,
    /// The number of known proxies without a connection. They remove the responses as soon as they have one.
    disconnected: usize,
}

async fn purge(call: Call) -> Result<Response, Problem> {
    let deadline = call.deadline("timeout")?.unwrap_or_else(|| Instant::now() + Duration::from_secs(10));
    let purge: Purge = call.json_as()?;
    check(&call, &purge)?;
    let created_by = call.caller.as_ref().map_or("unknown", |caller| &*caller.principal.name);
    let purges = call.app.publisher.purges();
    let number = call.app.metrics.store_call("add_purge", purges.add(&purge, created_by)).await?;
    let text = serde_json::to_string(&purge).unwrap_or_default();
    call.audit(&format!("purge {number}: {text}")).await;
    let waited = while_permitted(&call, call.app.board.wait_purged(number, deadline)).await;
    // It is stored all the same.
    let (progress, unknown) = waited.map_err(|problem| problem.member("number", number))?;
    if progress.pending > 0 || unknown.is_some() {
        return Err(not_done(number, &progress, unknown));
    }
    ok(&PurgeOutcome { number, proxies: progress.done, disconnected: progress.disconnected })
}

fn check(call: &Call, purge: &Purge) -> Result<(), Problem> {
    let mut errors = purge.check();
    if let Some(route) = &purge.route
        && let Ok(name) = route.parse()
    {
        let key = ResourceKey { kind: Kind::Route, name };
        if call.app.publisher.current().snapshot.find(&key).is_none() {
            errors.push(FieldError::new("route", format!("there is no route {route}")));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(errors)) }
}

/// The problem of a purge that was stored, and that proxies have not carried out in time.
fn not_done(number: u64, progress: &PurgeProgress, unknown: Option<String>) -> Problem {
    let mut detail = match unknown {
        Some(reason) => format!("whether every proxy has removed the responses is not known: {reason}"),
        None => format!(
            "{} of {} proxies have not removed the responses yet, and do so as soon as they can",
            progress.pending,
            progress.pending + progress.done
        ),
    };
    let named = progress.waiting.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    if !named.is_empty() {
        detail.push_str(&format!("; waited for {named}"));
    }
    if progress.pending > 3 {
        detail.push_str(&format!(" and {} more", progress.pending - 3));
    }
    Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)
        .member("number", number)
        .member("waiting", &progress.waiting)
        .member("waiting_count", progress.pending)
}
