//! Writes that wait for proxies, and event streams.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use signalbox_control_plane::board::{EndedBy, Event, Node, ProxyResourceError};
use signalbox_tests::eventually;

use crate::fixture::{Admin, expect, upstream};

/// A proxy as the board knows it, without a process.
struct Proxy<'a> {
    admin: &'a Admin,
    id: Arc<str>,
}

impl<'a> Proxy<'a> {
    fn connect(admin: &'a Admin, id: &str) -> Self {
        let node = Node {
            plugin_types: Some(["cors".into()].into()),
            id: id.into(),
            fleet: "default".into(),
            labels: Default::default(),
            version: "1".to_owned(),
            address: "127.0.0.1:1".to_owned(),
        };
        admin.board.fold(Event::Opened { stream: 1, node, presented: None, link: Default::default() });
        Self { admin, id: id.into() }
    }

    fn receive(&self) -> u64 {
        let number = self.admin.head();
        self.admin.board.fold(Event::Sent { stream: 1, id: self.id.clone(), revision: number });
        number
    }

    fn ack(&self) {
        self.receive();
        let revision = self.admin.publisher.current().snapshot.id().clone();
        self.admin.board.fold(Event::Acked { stream: 1, id: self.id.clone(), revision });
    }

    fn reject(&self) {
        let revision = self.receive();
        let resource = ProxyResourceError {
            kind: "listener".to_owned(),
            name: "http".to_owned(),
            field: "address".to_owned(),
            message: "the port is taken".to_owned(),
            changed_in: None,
        };
        let id = self.id.clone();
        self.admin.board.fold(Event::Rejected { stream: 1, id, revision, resources: vec![resource] });
    }
}

#[tokio::test]
async fn a_write_can_wait_until_it_is_served() {
    let admin = Admin::with_route().await;
    expect(&admin.put("/upstreams/w?wait=5s", upstream()).await, 201);
    let proxy = Proxy::connect(&admin, "p");
    proxy.ack();

    let timed_out = admin.put("/upstreams/w?wait=10ms", json!({"targets": []})).await;
    expect(&timed_out, 504);
    assert_eq!(timed_out.header("signalbox-revision"), Some("4"), "the revision stands");
    assert_eq!(admin.head(), 4);
    proxy.receive();
    expect(&admin.get("/revisions/4/wait?timeout=10ms").await, 504);
    proxy.reject();
    let rejected = admin.get("/revisions/4/wait?timeout=10s").await;
    expect(&rejected, 409);
    assert_eq!(rejected.body["rollouts"][0]["state"], "failed", "{rejected}");
    let shown = admin.get("/proxies/p").await;
    assert_eq!(shown.body["error"]["resources"][0]["message"], "the port is taken", "{shown}");

    // It waits, and answers once the proxy has it.
    let waiting = admin.put("/upstreams/w?wait=20s", upstream());
    let acknowledging = async {
        assert!(eventually(Duration::from_secs(10), async || admin.head() == 5).await);
        proxy.ack();
    };
    let (written, ()) = tokio::join!(waiting, acknowledging);
    expect(&written, 200);
    expect(&admin.get("/revisions/5/wait?fleet=typo").await, 404);
    let waited = admin.get("/revisions/5/wait?fleet=default").await;
    expect(&waited, 200);
    assert_eq!(waited.body["rollouts"][0]["state"], "succeeded", "{waited}");
    expect(&admin.get("/revisions/99/wait").await, 404);
    expect(&admin.put("/upstreams/w?wait=6m", upstream()).await, 400);
    expect(&admin.put("/upstreams/w?wait=soon", upstream()).await, 400);

    expect(&admin.delete("/proxies/p").await, 409);
    admin.board.fold(Event::Closed { stream: 1, id: "p".into(), by: EndedBy::Proxy });
    expect(&admin.delete("/proxies/p").await, 204);
    assert_eq!(admin.get("/proxies").await.body["items"], json!([]));
    let fleets = admin.get("/fleet-statuses").await;
    assert_eq!(fleets.body["items"][0]["name"], "default", "{fleets}");
    assert_eq!(admin.get("/summary").await.body["resources"]["upstreams"], 2);
}

/// The first `count` events of an event stream.
async fn events(
    admin: &Admin,
    last: Option<&str>,
    count: usize,
    then: impl AsyncFnOnce(),
) -> Vec<(String, String, Value)> {
    let mut request = admin.api.request(Method::GET, "/events");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    then().await;
    let mut text = String::new();
    let mut events = Vec::new();
    while events.len() < count {
        let chunk = answer.chunk().await.unwrap().expect("the stream goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        events = text
            .split_terminator("\n\n")
            .filter_map(|frame| {
                let field =
                    |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                Some((
                    field("id")?.to_owned(),
                    field("event")?.to_owned(),
                    serde_json::from_str(field("data")?).ok()?,
                ))
            })
            .collect();
    }
    events
}

#[tokio::test]
async fn events_tell_what_happens_and_what_was_missed() {
    let admin = Admin::start().await;
    let seen = events(&admin, None, 1, async || drop(admin.put("/upstreams/u", upstream()).await)).await;
    let (id, name, data) = &seen[0];
    assert_eq!((name.as_str(), &data["number"], &data["author"]), ("revision", &json!(1), &json!("admin")));

    expect(&admin.put("/upstreams/u", json!({"targets": []})).await, 200);
    expect(&admin.delete("/upstreams/u").await, 204);
    let missed = events(&admin, Some(id), 2, async || {}).await;
    let numbers: Vec<&Value> = missed.iter().map(|(.., data)| &data["number"]).collect();
    assert_eq!(numbers, [&json!(2), &json!(3)]);

    let reset = events(&admin, Some("another-1"), 1, async || {}).await;
    assert_eq!(reset[0].1, "reset");

    let seen = events(&admin, None, 2, async || Proxy::connect(&admin, "p").ack()).await;
    let kinds: BTreeSet<&str> = seen.iter().map(|(_, name, _)| name.as_str()).collect();
    assert!(kinds.contains("proxy"), "{seen:?}");
}

#[tokio::test]
async fn an_event_stream_tells_scripts_at_once_and_again_that_it_is_alive() {
    let admin = Admin::start().await;
    let mut answer = admin.api.request(Method::GET, "/events").send().await.unwrap();
    let mut text = String::new();
    let heartbeats = async {
        // A comment is not seen by a script in a browser, and a heartbeat with an id would be resumed from.
        while text.matches(": heartbeat\nevent: heartbeat\ndata: {}\n\n").count() < 2 {
            let chunk = answer.chunk().await.unwrap().expect("the stream goes on");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(30), heartbeats).await.expect("two heartbeats come");
    assert!(!text.contains("id:"), "{text}");
}

#[tokio::test]
async fn event_streams_end_when_the_control_plane_stops() {
    let admin = Admin::start().await;
    let mut answer = admin.api.request(Method::GET, "/events").send().await.unwrap();
    admin.shutdown.cancel();
    let end = async { while let Ok(Some(_)) = answer.chunk().await {} };
    tokio::time::timeout(Duration::from_secs(30), end).await.expect("the stream ends");
}

#[tokio::test]
async fn a_write_warns_of_a_plugin_type_that_a_connected_proxy_does_not_know() {
    let admin = Admin::start().await;
    let plugin = |type_name: &str| json!({"type": type_name});
    let warning = |answer: &signalbox_tests::ApiAnswer| {
        answer.headers.get("signalbox-warnings").map(|it| it.to_str().unwrap().to_owned())
    };
    assert_eq!(warning(&admin.put("/plugins/early", plugin("key-auth")).await), None);
    let _proxies = [Proxy::connect(&admin, "one"), Proxy::connect(&admin, "two")];
    assert_eq!(warning(&admin.put("/plugins/known", plugin("cors")).await), None);
    let answer = admin.put("/plugins/new", plugin("key-auth")).await;
    expect(&answer, 201);
    assert_eq!(
        warning(&answer).as_deref(),
        Some(
            "2 connected proxies do not know the plugin type key-auth and will reject this revision: upgrade proxies first"
        )
    );
    let elsewhere = json!({"type": "key-auth", "fleets": ["other"]});
    assert_eq!(warning(&admin.put("/plugins/other", elsewhere).await), None);
}
