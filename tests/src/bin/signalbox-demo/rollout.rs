//! Shows a progressive rollout of a change that hurts: a canary gets it, and it is taken back by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signalbox_tests::control_plane::Api;

/// The requests that the client has made.
#[derive(Default)]
pub(crate) struct Seen {
    /// Set while failures count.
    pub(crate) counting: AtomicBool,
    /// The requests of that time.
    pub(crate) requests: AtomicU64,
    /// Those with a status of 500 and above.
    pub(crate) failures: AtomicU64,
}

/// The longest wait for any part of the show.
const DEADLINE: Duration = Duration::from_secs(180);

/// The traffic that the gates know before the change, in seconds.
const PAST: Duration = Duration::from_secs(12);

/// Runs the show, and returns when the fleet is whole again.
pub(crate) async fn show(api: &Api, seen: &Arc<Seen>, proxies: usize) -> Result<()> {
    let policy = json!({"rollout": {
        "strategy": "progressive",
        "steps": [{"count": 1, "soak": "20s"}, {"percent": 50, "soak": "20s"}],
        "bake": "20s",
        "gates": {"coverage": {"min_requests": 20}},
    }});
    let stable = api.put("fleets", "default", &policy).await?;
    until_served(api, stable, proxies).await?;
    println!("\n  The fleet has a progressive policy: one canary, then half of the proxies, then all.");
    println!("  The client sends requests for {} s, so that the gates know what is usual.", PAST.as_secs());
    tokio::time::sleep(PAST).await;

    let gone = json!({"targets": [{"address": "127.0.0.1:9"}]});
    let route = json!({
        "match": {"paths": [{"prefix": "/api/users"}]},
        "forward": {"upstreams": [{"name": "users-gone"}]},
    });
    let document =
        json!({"upstreams": [with_name(gone, "users-gone")], "routes": [with_name(route, "users")]});
    seen.counting.store(true, Ordering::Relaxed);
    let written = Instant::now();
    let revision = api.apply(&document).await?;
    println!("  Revision {revision} sends the route users to a target that does not exist.");
    let id = format!("{revision}-default");

    let mut first_failure = None;
    let mut shown = 0;
    let rollout = until(async || {
        if first_failure.is_none() && seen.failures.load(Ordering::Relaxed) > 0 {
            first_failure = Some(Instant::now());
        }
        let rollout = api.get(&format!("/rollouts/{id}")).await.unwrap_or_default();
        for event in rollout["events"].as_array().into_iter().flatten().skip(shown) {
            shown += 1;
            let at = written.elapsed().as_secs_f64();
            println!("  {at:6.1} s  {:9}  {}", text(&event["state"]), text(&event["text"]));
        }
        (!rollout["finished_at"].is_null()).then_some(rollout)
    })
    .await
    .context("the rollout did not end")?;
    ensure!(rollout["state"] == "failed", "it was to be taken back: {rollout:#}");
    until_served(api, stable, proxies).await?;
    let back = first_failure.map_or(0.0, |first| first.elapsed().as_secs_f64());
    seen.counting.store(false, Ordering::Relaxed);
    println!("  {:6.1} s  Every proxy serves revision {stable} again.", written.elapsed().as_secs_f64());
    println!(
        "\n  {} of {} requests failed. From the first failure to the last canary back: {back:.1} s.",
        seen.failures.load(Ordering::Relaxed),
        seen.requests.load(Ordering::Relaxed),
    );
    println!(
        "  Look at it in the UI: /rollouts/{id}. The fleet is held until you write another revision, or retry."
    );
    Ok(())
}

fn with_name(mut value: Value, name: &str) -> Value {
    value["name"] = name.into();
    value
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

async fn until_served(api: &Api, revision: u64, proxies: usize) -> Result<()> {
    let served = until(async || {
        let found = api.proxies().await.unwrap_or_default();
        let serving = found.iter().filter(|proxy| proxy["revision"]["applied"] == revision).count();
        (serving == proxies).then_some(())
    });
    served.await.with_context(|| format!("revision {revision} is not served by {proxies} proxies"))
}

async fn until<T>(mut condition: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(found) = condition().await {
            return Some(found);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}
