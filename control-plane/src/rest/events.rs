//! `GET /events`: what happens, as server-sent events, with resumption from a bounded ring.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use http::{HeaderValue, Method, header};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Interval;

use super::app::App;
use super::call::Call;
use super::endpoint::{Endpoint, Parameter, Place};
use super::event_ring::Frame;
use super::fleet::forgotten_data;
use super::presented::{Presented, presented};
use super::revisions::event_data;
use super::roles::suffices;
use crate::auth::Use;
use crate::board::BoardEvent;
use crate::health_report::IncidentEvent;
use crate::store::Role;

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::GET, "/events", "events", |call| async move { Ok(listen(&call)) }.boxed())
            .text("events", "Follow events: `revision`, `rollout`, `incident`, `proxy` and `forgotten`. `incident` is one of the health report with `change`, which is `opened` or `closed`; each control plane tells of those that it finds itself. `reset`: events were missed, so the client reads everything again. `heartbeat`: the stream is alive")
            .parameters(&[LAST_EVENT_ID])
            .answer_as(200, "Server-sent events, with a heartbeat every 5 seconds", "text/event-stream", |_| {
                schemars::json_schema!({"type": "string"})
            }),
    ]
}

const LAST_EVENT_ID: Parameter = Parameter {
    name: "Last-Event-ID",
    place: Place::Header,
    schema: || json!({"type": "string"}),
    text: "The last event that the client has. The stream goes on after it",
};

/// How often a stream is shown to be alive. The admin UI takes silence of several intervals for a lost connection.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A comment for clients that only need bytes to arrive, and an event because scripts in a browser see no comments. It
/// has no id, so the id to resume from stays that of the last real event.
const HEARTBEAT_FRAME: &[u8] = b": heartbeat\nevent: heartbeat\ndata: {}\n\n";

/// Tells of what the publisher and the board do, until the control plane stops.
pub(super) async fn feed(app: Arc<App>) {
    let mut revisions = app.publisher.revisions();
    let mut board = app.board.subscribe();
    let mut rollouts = app.rollouts.subscribe();
    let mut incidents = app.health.subscribe();
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            revision = revisions.recv() => match revision {
                Ok(summary) => app.events.push("revision", &event_data(&summary)),
                Err(RecvError::Lagged(_)) => app.events.push("reset", "{}"),
                Err(RecvError::Closed) => return,
            },
            rollout = rollouts.recv() => match rollout {
                Ok(rollout) => app.events.push_json("rollout", &*rollout),
                Err(RecvError::Lagged(_)) => app.events.push("reset", "{}"),
                Err(RecvError::Closed) => return,
            },
            change = incidents.recv() => match change {
                Ok(change) => app.events.push_json("incident", &IncidentEvent::from((*change).clone())),
                Err(RecvError::Lagged(_)) => app.events.push("reset", "{}"),
                Err(RecvError::Closed) => return,
            },
            event = board.recv() => match event {
                Ok(BoardEvent::Proxy(proxy)) => app.events.push_json("proxy", &*proxy),
                Ok(BoardEvent::Forgotten(id)) => app.events.push_json("forgotten", &forgotten_data(&id)),
                Ok(BoardEvent::Rollout(rollout)) => app.events.push_json("rollout", &*rollout),
                Err(RecvError::Lagged(_)) => app.events.push("reset", "{}"),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

struct Listener {
    app: Arc<App>,
    backlog: VecDeque<Bytes>,
    live: broadcast::Receiver<Frame>,
    heartbeat: Interval,
    access: watch::Receiver<()>,
    presented: Option<Presented>,
}

fn listen(call: &Call) -> Response {
    let last = call.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let (mut backlog, live) = call.app.events.subscribe(last);
    // Something at once, so that the client knows the stream is open; and how soon to come back.
    backlog.push_front(Bytes::from_static(HEARTBEAT_FRAME));
    backlog.push_front(Bytes::from_static(b"retry: 1000\n\n"));
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.reset();
    let listener = Listener {
        access: call.app.credentials.changes(),
        app: Arc::clone(&call.app),
        backlog,
        live,
        heartbeat,
        presented: presented(&call.headers),
    };
    let frames = stream::unfold(listener, |mut listener| async {
        let frame = listener.next().await?;
        Some((Ok::<_, Infallible>(frame), listener))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // Proxies in between must not hold it back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Listener {
    /// The next piece of the stream; `None` ends it: the control plane stops, the token was revoked, the session has
    /// ended, or the client is too far behind.
    async fn next(&mut self) -> Option<Bytes> {
        // Before the backlog as well: it may be long, and read slowly.
        if self.access.has_changed().unwrap_or(true) {
            self.access.mark_unchanged();
            self.check_access()?;
        }
        if let Some(frame) = self.backlog.pop_front() {
            return Some(frame);
        }
        loop {
            tokio::select! {
                () = self.app.shutdown.cancelled() => return None,
                changed = self.access.changed() => {
                    changed.ok()?;
                    self.check_access()?;
                }
                frame = self.live.recv() => return frame.ok().map(|frame| frame.text),
                _ = self.heartbeat.tick() => {
                    // A session may have run out.
                    self.check_access()?;
                    return Some(Bytes::from_static(HEARTBEAT_FRAME));
                }
            }
        }
    }

    /// `None` when whoever opened the stream may not read any more.
    fn check_access(&self) -> Option<()> {
        let caller = self.presented.as_ref()?.caller(&self.app.credentials, Use::Silent)?;
        suffices(&caller.principal.role, Role::Viewer).then_some(())
    }
}
