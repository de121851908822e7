//! The spans of rollouts: one for the whole, and one for each step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use signalbox_plugin::otlp::span::{Attributes, Kind, Parent, SpanHead, Status, encode};
use signalbox_plugin::otlp::{Buffer, nanoseconds};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::queue::{Spans, context};
use crate::board::{Rollout, RolloutState, RolloutStep};
use crate::publish::Publisher;
use crate::rollout::Rollouts;

/// The ids of the last rollouts whose spans were taken.
const KNOWN: usize = 256;

/// Takes the spans of progressive rollouts that end while this control plane leads, until `shutdown`.
pub async fn follow_rollouts(
    spans: Arc<Spans>,
    publisher: Arc<Publisher>,
    rollouts: Arc<Rollouts>,
    shutdown: CancellationToken,
) {
    let mut changes = rollouts.subscribe();
    let mut known = VecDeque::new();
    loop {
        let change = tokio::select! {
            () = shutdown.cancelled() => return,
            change = changes.recv() => change,
        };
        let rollout = match change {
            Ok(rollout) => rollout,
            Err(RecvError::Lagged(_)) => continue,
            // The control plane ends.
            Err(RecvError::Closed) => return shutdown.cancelled().await,
        };
        if rollout.finished_at.is_none() || !rollouts.leads() || known.contains(&rollout.id) {
            continue;
        }
        if known.len() >= KNOWN {
            known.pop_front();
        }
        known.push_back(rollout.id.clone());
        let current = publisher.current();
        spans_of(&current.snapshot.id().epoch, &rollout).into_iter().for_each(|span| spans.put(span));
    }
}

/// The spans of a rollout that has ended. Their ids follow from its id and the epoch, so a control plane that takes over sends no others, and
/// another installation has others.
fn spans_of(epoch: &str, rollout: &Rollout) -> Vec<Buffer> {
    let hashed_id = |part: &str| hashed::<8>(&[epoch, &rollout.id, part]);
    let Some(end) = rollout.finished_at.as_deref().and_then(since_1970) else { return Vec::new() };
    let Some(start) = since_1970(&rollout.started_at) else { return Vec::new() };
    let trace_id: [u8; 16] = hashed(&[epoch, &rollout.id, "trace"]);
    let root = hashed_id("rollout");
    let has_failed = matches!(rollout.state, RolloutState::Failed | RolloutState::Aborted);
    let whole = SpanHead {
        context: context(trace_id, root),
        parent: Parent::None,
        state: &[],
        name: ["rollout", "", "", ""],
        kind: Kind::Internal,
        start: nanoseconds(start),
        end: nanoseconds(end.max(start)),
        status: if has_failed { Status::Error } else { Status::Unset },
    };
    let mut spans = vec![encoded(&whole, |attributes| {
        put_rollout(attributes, rollout);
        attributes.text("signalbox.rollout.strategy", &rollout.strategy);
        if let Ok(state) = serde_json::to_value(rollout.state) {
            attributes.text("signalbox.rollout.state", state.as_str().unwrap_or_default());
        }
        if let Some(reason) = &rollout.reason {
            attributes.text("signalbox.rollout.reason", &reason.text);
        }
    })];
    let began: Vec<_> =
        rollout.steps.iter().map(|step| step.started_at.as_deref().and_then(since_1970)).collect();
    for (index, (step, start)) in rollout.steps.iter().zip(&began).enumerate() {
        let Some(start) = *start else { continue };
        let next = began.iter().skip(index + 1).flatten().next();
        let step_end = next.copied().unwrap_or(end).clamp(start, end.max(start));
        let head = SpanHead {
            context: context(trace_id, hashed_id(&format!("step {index}"))),
            parent: Parent::Local(root),
            state: &[],
            name: ["rollout step", "", "", ""],
            kind: Kind::Internal,
            start: nanoseconds(start),
            end: nanoseconds(step_end),
            status: Status::Unset,
        };
        spans.push(encoded(&head, |attributes| put_step(attributes, rollout, index, step)));
    }
    spans
}

fn encoded(span: &SpanHead<'_>, attributes: impl FnOnce(&mut Attributes<'_>)) -> Buffer {
    let mut out = Buffer::new();
    encode(&mut out, &mut Buffer::new(), span, attributes);
    out
}

fn put_rollout(attributes: &mut Attributes<'_>, rollout: &Rollout) {
    attributes.text("signalbox.rollout", &rollout.id);
    attributes.text("signalbox.fleet", &rollout.fleet);
    attributes.number("signalbox.revision", rollout.revision);
}

fn put_step(attributes: &mut Attributes<'_>, rollout: &Rollout, index: usize, step: &RolloutStep) {
    put_rollout(attributes, rollout);
    attributes.number("signalbox.rollout.step", index as u64);
    attributes.number("signalbox.rollout.step.proxies", step.proxies.into());
    attributes.text("signalbox.rollout.step.state", &step.state);
}

/// An id that follows from these texts. All zeros, which no id may be, do not come out of a hash.
fn hashed<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut id = [0; N];
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part.as_bytes()).update(b"\0");
    }
    hasher.finalize_xof().fill(&mut id);
    id
}

/// A time in RFC 3339, since 1970.
fn since_1970(text: &str) -> Option<Duration> {
    let nanoseconds = text.parse::<jiff::Timestamp>().ok()?.as_nanosecond();
    u64::try_from(nanoseconds).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rollout_has_a_span_and_one_for_each_step_that_began() {
        let step = |started_at: Option<&str>, state: &str| {
            json!({
                "percent": 10.0, "count": null, "labels": null, "proxies": 4, "healthy_ms": 0, "soak_ms": 0,
                "started_at": started_at, "state": state,
            })
        };
        let rollout = |finished_at: Option<&str>, state: &str| -> Rollout {
            serde_json::from_value(json!({
                "id": "41-edge", "revision": 41, "base_revision": 40, "fleet": "edge", "stable_revision": 40, "generation": 3,
                "state": state, "strategy": "progressive", "step": 1,
                "steps": [
                    step(Some("2026-12-01T10:00:00Z"), "passed"),
                    step(Some("2026-12-01T10:05:00Z"), "running"),
                    step(None, "pending"),
                ],
                "bake": null, "gates": [], "counts": {"total": 4, "applied": 4, "pending": 0, "rejected": 0, "disconnected": 0},
                "proxies_url": "", "started_at": "2026-12-01T10:00:00Z", "finished_at": finished_at,
                "propagation_ms": null, "reason": null, "superseded_by": null, "revert": null, "events": [], "fault": null,
            }))
            .unwrap()
        };
        assert!(spans_of("epoch", &rollout(None, "running")).is_empty());
        let failed = spans_of("epoch", &rollout(Some("2026-12-01T10:06:00Z"), "failed"));
        let has = |span: &Buffer, part: &[u8]| span.windows(part.len()).any(|window| window == part);
        let [whole, first, second] = &failed[..] else { panic!("{}", failed.len()) };
        let nanoseconds = |text: &str| nanoseconds(since_1970(text).unwrap()).to_le_bytes();
        for (span, name, start, end) in [
            (whole, "rollout", "2026-12-01T10:00:00Z", "2026-12-01T10:06:00Z"),
            (first, "rollout step", "2026-12-01T10:00:00Z", "2026-12-01T10:05:00Z"),
            (second, "rollout step", "2026-12-01T10:05:00Z", "2026-12-01T10:06:00Z"),
        ] {
            assert!(has(span, name.as_bytes()) && has(span, b"signalbox.revision"), "{name}");
            assert!(has(span, &hashed::<16>(&["epoch", "41-edge", "trace"])), "all are of one trace");
            assert!(has(span, &nanoseconds(start)) && has(span, &nanoseconds(end)), "{name}");
        }
        let root = hashed::<8>(&["epoch", "41-edge", "rollout"]);
        assert!(has(first, &root) && has(second, &root), "the whole is their parent");
        assert!(has(whole, b"failed"));
        let again = spans_of("epoch", &rollout(Some("2026-12-01T10:06:00Z"), "failed"));
        assert_eq!(again, failed, "whoever takes over sends the same");
    }
}
