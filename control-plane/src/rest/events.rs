//! `GET /events`: what happens, as server-sent events, with resumption from a bounded ring.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use http::{HeaderValue, Method, header};
use serde::Serialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Interval;

use super::App;
use super::access::{Presented, presented, suffices};
use super::call::Call;
use super::endpoint::{Endpoint, Parameter, Place};
use super::fleet::forgotten_data;
use super::revisions::event_data;
use crate::auth::Use;
use crate::board::BoardEvent;
use crate::store::Role;

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::GET, "/events", "events", |call| async move { Ok(listen(&call)) }.boxed())
            .text("events", "What happens from now on: `revision`, `rollout`, `proxy`, `forgotten`; `reset`: events were missed, read everything again; `heartbeat`: nothing but a sign of life")
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
    text: "Go on after this event",
};

/// What happened lately, and what happens. Every event has an id that counts up, within one run of the program.
pub(super) struct Events {
    /// Tells this run's ids from others'.
    instance: String,
    ring: Mutex<Ring>,
    live: broadcast::Sender<Frame>,
}

#[derive(Default)]
struct Ring {
    /// Of the last event; the first has 1.
    last: u64,
    frames: VecDeque<Frame>,
}

/// One event as it is sent; shared by all who listen.
#[derive(Debug, Clone)]
struct Frame {
    number: u64,
    text: Bytes,
}

/// How many events back one can resume.
const RING: usize = 4096;

/// How far a client may be behind before it is dropped; it comes back and resumes from the ring.
const BEHIND: usize = 1024;

/// How often a stream is shown to be alive. The admin UI takes silence of several intervals for a lost connection.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A comment for clients that only need bytes to arrive, and an event because scripts in a browser see no comments. It
/// has no id, so the id to resume from stays that of the last real event.
const HEARTBEAT_FRAME: &[u8] = b": heartbeat\nevent: heartbeat\ndata: {}\n\n";

impl Events {
    pub(super) fn new() -> Self {
        Self {
            instance: format!("{:08x}", fastrand::u32(..)),
            ring: Mutex::default(),
            live: broadcast::Sender::new(BEHIND),
        }
    }

    fn tell(&self, name: &str, data: &str) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let number = ring.last;
        let text = format!("id: {}-{number}\nevent: {name}\ndata: {data}\n\n", self.instance);
        let frame = Frame { number, text: text.into() };
        if ring.frames.len() == RING {
            ring.frames.pop_front();
        }
        ring.frames.push_back(frame.clone());
        // Sent under the lock, so that who subscribes gets each event either from the ring or live, never twice.
        let _ = self.live.send(frame);
    }

    fn tell_of(&self, name: &str, value: &impl Serialize) {
        if let Ok(data) = serde_json::to_string(value) {
            self.tell(name, &data);
        }
    }

    /// What came after the event `last`, and what comes.
    fn subscribe(&self, last: Option<&str>) -> (VecDeque<Bytes>, broadcast::Receiver<Frame>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        let mut backlog = VecDeque::new();
        if let Some(last) = last {
            let known = last
                .strip_prefix(&self.instance)
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|number| number.parse::<u64>().ok())
                .filter(|number| *number <= ring.last)
                .filter(|number| ring.frames.front().is_none_or(|first| first.number <= number + 1));
            match known {
                Some(number) => {
                    let missed = ring.frames.iter().filter(|frame| frame.number > number);
                    backlog.extend(missed.map(|frame| frame.text.clone()));
                }
                None => {
                    let id = format!("{}-{}", self.instance, ring.last);
                    backlog.push_back(format!("id: {id}\nevent: reset\ndata: {{}}\n\n").into());
                }
            }
        }
        (backlog, live)
    }
}

/// Tells of what the publisher and the board do, until the control plane stops.
pub(super) async fn feed(app: Arc<App>) {
    let mut revisions = app.publisher.revisions();
    let mut board = app.board.subscribe();
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            revision = revisions.recv() => match revision {
                Ok(summary) => app.events.tell("revision", &event_data(&summary)),
                Err(RecvError::Lagged(_)) => app.events.tell("reset", "{}"),
                Err(RecvError::Closed) => return,
            },
            event = board.recv() => match event {
                Ok(BoardEvent::Proxy(proxy)) => app.events.tell_of("proxy", &*proxy),
                Ok(BoardEvent::Forgotten(id)) => app.events.tell_of("forgotten", &forgotten_data(&id)),
                Ok(BoardEvent::Rollout(rollout)) => app.events.tell_of("rollout", &*rollout),
                Err(RecvError::Lagged(_)) => app.events.tell("reset", "{}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(backlog: &VecDeque<Bytes>) -> Vec<String> {
        backlog.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    #[test]
    fn who_comes_back_gets_what_it_missed() {
        let events = Events::new();
        for number in 1..=3 {
            events.tell("revision", &number.to_string());
        }
        let (backlog, _) = events.subscribe(Some(&format!("{}-1", events.instance)));
        let texts = texts(&backlog);
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("data: 2\n") && texts[1].contains("data: 3\n"), "{texts:?}");
        let (backlog, _) = events.subscribe(Some(&format!("{}-3", events.instance)));
        assert!(backlog.is_empty());
        let (backlog, _) = events.subscribe(None);
        assert!(backlog.is_empty());
    }

    #[test]
    fn who_missed_too_much_or_comes_from_another_run_is_reset() {
        let events = Events::new();
        for number in 0..RING + 2 {
            events.tell("revision", &number.to_string());
        }
        let id = |number: u64| format!("{}-{number}", events.instance);
        for last in ["00-1", "nonsense", &id(1), &id(u64::MAX)] {
            let (backlog, _) = events.subscribe(Some(last));
            let texts = texts(&backlog);
            assert_eq!(texts.len(), 1, "{last}");
            assert!(texts[0].contains("event: reset"), "{texts:?}");
        }
        let (backlog, _) = events.subscribe(Some(&id(2)));
        assert_eq!(backlog.len(), RING);
    }
}
