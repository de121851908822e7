//! Webhooks of real control planes, with a real receiver.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use signalbox_tests::control_plane::EventsAs;
use signalbox_tests::{Api, ControlPlane, Postgres, Proxy, Received, Receiver, Reply, eventually, free_port};

use crate::authority::{Authority, PemFiles, Until};
use crate::fixture::{Gateway, respond, with};
use crate::progressive::fleet::{Fleets, policy};

const DEADLINE: Duration = Duration::from_secs(90);

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3";
/// The same in hexadecimal digits.
const KEY: &str = "303132333435363738396162636465663031323334353637";

fn webhook(receiver: &Receiver, events: &[&str]) -> Value {
    json!({"url": receiver.url("/hook"), "events": events, "secret": SECRET})
}

/// Waits until the receiver has taken a request with a body that `is_wanted`.
async fn until_taken(receiver: &Receiver, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    let taken = eventually(DEADLINE, async || {
        found = receiver.taken().iter().map(|request| request.json().unwrap()).find(|body| is_wanted(body));
        found.is_some()
    });
    assert!(taken.await, "{what}: {:?}", bodies(receiver));
    found.unwrap()
}

/// Waits until the receiver has taken a revision.
async fn until_revision(receiver: &Receiver, number: u64) {
    until_taken(receiver, &format!("revision {number}"), |body| body["data"]["number"] == number).await;
}

fn bodies(receiver: &Receiver) -> Vec<String> {
    let body = |request: &Received| String::from_utf8_lossy(&request.body).into_owned();
    receiver.received().iter().map(body).collect()
}

/// The signature of a request, computed by openssl.
fn signature(request: &Received) -> String {
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-mac", "HMAC", "-macopt", &format!("hexkey:{KEY}"), "-r"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut signed = openssl.stdin.take().unwrap();
    let (id, time) = (request.header("webhook-id"), request.header("webhook-timestamp"));
    write!(signed, "{id}.{time}.").unwrap();
    signed.write_all(&request.body).unwrap();
    drop(signed);
    let output = openssl.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().to_owned()
}

/// The signature that a request has, in hexadecimal digits.
fn presented(request: &Received) -> String {
    let text = request.header("webhook-signature").strip_prefix("v1,").unwrap();
    let mut openssl = Command::new("openssl")
        .args(["base64", "-d", "-A"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = openssl.wait_with_output().unwrap();
    output.stdout.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two control planes on one database.
async fn pair(postgres: &Postgres) -> [ControlPlane; 2] {
    let start = async |name: &str| {
        let builder = ControlPlane::builder().database(postgres.url());
        builder.arg(format!("--replica-name={name}")).start().await.unwrap()
    };
    [start("one").await, start("two").await]
}

/// The index of the control plane that sends, as both say.
async fn sender(planes: &[ControlPlane; 2]) -> usize {
    let mut last = Vec::new();
    let agreed = eventually(DEADLINE, async || {
        last.clear();
        for plane in planes {
            last.push(plane.api().get("/webhooks/w/deliveries").await.unwrap_or_default());
        }
        let sending: Vec<_> = last.iter().filter(|answer| answer["sends"] == true).collect();
        sending.len() == 1 && last.iter().all(|answer| answer["sender"] == sending[0]["replica"])
    });
    assert!(agreed.await, "{last:?}");
    last.iter().position(|answer| answer["sends"] == true).unwrap()
}

async fn write(api: &Api, number: u64) -> u64 {
    api.put("routes", "r", &respond("/r", &number.to_string())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_of_two_control_planes_sends_each_event_once_and_signed() {
    let postgres = Postgres::new().unwrap();
    let planes = pair(&postgres).await;
    let script = [Reply::RetryAfter(503, 0), Reply::RetryAfter(503, 1), Reply::Status(500)];
    let receiver = Receiver::answering(Reply::Status(204), script).unwrap();
    write(planes[0].api(), 0).await;
    let first = planes[0].api().put("webhooks", "w", &webhook(&receiver, &["revision"])).await.unwrap();
    let mut last = first;
    for number in 1..=20 {
        last = write(planes[number as usize % 2].api(), number).await;
    }
    for number in first..=last {
        until_revision(&receiver, number).await;
    }
    let leading = sender(&planes).await;
    let mut taken: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for request in receiver.taken() {
        let body = request.json().unwrap();
        assert_eq!(body["type"], "revision.published", "{body}");
        assert_eq!(body["id"], request.header("webhook-id"), "{body}");
        let number = body["data"]["number"].as_u64().unwrap();
        taken.entry(number).or_default().push(request.header("webhook-id").to_owned());
    }
    assert!(taken.values().all(|ids| ids.len() == 1), "each came once: {taken:?}");
    assert!(taken.keys().copied().eq(first..=last), "and none of before: {taken:?}");
    let received = receiver.received();
    for request in &received {
        assert_eq!(presented(request), signature(request), "{request:?}");
        let is_sent = taken.values().flatten().any(|id| id == request.header("webhook-id"));
        assert!(is_sent, "an event has the same id at each attempt: {request:?}");
    }
    assert_eq!(received.len(), taken.len() + 3);
    // The metrics of the two say the same.
    let mut counts = Vec::new();
    for plane in &planes {
        let metrics = plane.api().metrics().await.unwrap();
        counts.push(["delivered", "retried", "dropped", "refused"].map(|result| {
            metrics.sum("signalbox_webhook_deliveries_total", &[&format!("result=\"{result}\"")])
        }));
    }
    assert_eq!(counts[leading], [taken.len() as f64, 3.0, 0.0, 0.0]);
    assert_eq!(counts[1 - leading], [0.0; 4]);
    // A person can test from either.
    for plane in &planes {
        let tested = plane.api().call(Method::POST, "/webhooks/w/test", None).await.unwrap();
        assert_eq!(tested.body["result"], "delivered", "{tested}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn when_the_sender_is_killed_the_other_one_goes_on_and_misses_nothing() {
    let postgres = Postgres::new().unwrap();
    let mut planes = pair(&postgres).await;
    let receiver = Receiver::start().unwrap();
    let first = planes[0].api().put("webhooks", "w", &webhook(&receiver, &["revision"])).await.unwrap();
    until_revision(&receiver, first).await;
    let killed = sender(&planes).await;
    let other = 1 - killed;
    write(planes[other].api(), 1).await;
    planes[killed].kill9();
    // Nobody has the lease now.
    let mut last = first;
    for number in 2..=5 {
        last = write(planes[other].api(), number).await;
    }
    for number in first..=last {
        until_revision(&receiver, number).await;
    }
    planes[killed].start().await.unwrap();
    assert_eq!(sender(&planes).await, other, "one that comes back takes nothing over");
    let last = write(planes[killed].api(), 6).await;
    until_revision(&receiver, last).await;
    // An event that came twice came under the same id.
    let mut ids: BTreeMap<u64, String> = BTreeMap::new();
    for request in receiver.taken() {
        let number = request.json().unwrap()["data"]["number"].as_u64().unwrap();
        let id = request.header("webhook-id");
        assert_eq!(ids.entry(number).or_insert_with(|| id.to_owned()), id, "revision {number}");
    }
    assert!(ids.keys().copied().eq(first..=last), "{ids:?}");
    // A restart of both, in order, announces nothing that is old. Before it, the second one may have taken over for a moment.
    for plane in &mut planes {
        plane.stop().unwrap();
    }
    let before = receiver.received().len();
    for plane in &mut planes {
        plane.start().await.unwrap();
    }
    let newest = write(planes[0].api(), 7).await;
    until_revision(&receiver, newest).await;
    assert_eq!(receiver.received().len(), before + 1, "{:?}", bodies(&receiver));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_receiver_that_never_answers_delays_no_write_and_its_queue_is_bounded() {
    /// The events that wait for a webhook at most.
    const CAPACITY: u64 = 1000;
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    let (silent, good) = (
        Receiver::answering(Reply::Never, []).unwrap(),
        Receiver::answering(Reply::Status(200), []).unwrap(),
    );
    let patient = with(webhook(&silent, &["revision"]), &json!({"timeout": "1m"}));
    let first = api.put("webhooks", "silent", &patient).await.unwrap();
    api.put("webhooks", "w", &webhook(&good, &["revision"])).await.unwrap();
    let mut last = first;
    for number in 0..CAPACITY {
        last = write(api, number).await;
    }
    until_revision(&good, last).await;
    // One attempt at a time: each but the last has ended.
    let received = silent.received().len();
    let deliveries = api.get("/webhooks/silent/deliveries").await.unwrap();
    let attempts = deliveries["attempts"].as_array().unwrap();
    assert!((1..=attempts.len() + 1).contains(&received), "{received}: {deliveries}");
    assert!(attempts.iter().all(|attempt| attempt["result"] == "retried"), "{deliveries}");
    let metrics = api.metrics().await.unwrap();
    let of = |name: &str, more: &str| metrics.sum(name, &["webhook=\"silent\"", more]);
    assert_eq!(of("signalbox_webhook_queue", ""), CAPACITY as f64);
    let dropped = of("signalbox_webhook_deliveries_total", "result=\"dropped\"");
    assert_eq!(dropped, (last + 1 - first - CAPACITY) as f64);
    assert_eq!(control_plane.log().matches("events wait for a webhook").count(), 1, "logged once");
    // Deleting it ends the attempt, and the program ends in order.
    api.delete("webhooks", "silent").await.unwrap();
    let gone = eventually(DEADLINE, async || !api.metrics().await.unwrap().0.contains("webhook=\"silent\""));
    assert!(gone.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_orderly_stop_tries_the_events_that_were_never_tried() {
    let mut control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api().clone();
    let receiver = Receiver::answering(Reply::Status(204), [Reply::Never]).unwrap();
    let patient = with(webhook(&receiver, &["revision"]), &json!({"timeout": "1m"}));
    api.put("webhooks", "w", &patient).await.unwrap();
    // The first attempt goes on, so the next event waits.
    let goes_on = eventually(DEADLINE, async || receiver.received().len() == 1);
    assert!(goes_on.await, "{:?}", bodies(&receiver));
    let last = write(&api, 1).await;
    control_plane.stop().unwrap();
    let numbers: Vec<Value> =
        receiver.taken().iter().map(|request| request.json().unwrap()["data"]["number"].clone()).collect();
    assert_eq!(numbers, [json!(last)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_outage_that_takes_the_sender_and_the_database_is_told_by_the_other_one() {
    let mut postgres = Postgres::new().unwrap();
    let mut planes = pair(&postgres).await;
    let receiver = Receiver::start().unwrap();
    planes[0].api().put("webhooks", "w", &webhook(&receiver, &["incident"])).await.unwrap();
    let killed = sender(&planes).await;
    postgres.kill9();
    planes[killed].kill9();
    // The other one finds the outage, and may not send: it cannot know that it is alone.
    let other = planes[1 - killed].api();
    let found = eventually(DEADLINE, async || {
        let report = other.get("/health-report").await.unwrap();
        report["incidents"].as_array().is_some_and(|all| all.iter().any(|one| one["rule"] == "database"))
    });
    assert!(found.await, "{}", planes[1 - killed].log());
    // The outage lasts longer than those for which another control plane that still leads would have sent the event.
    let began = Instant::now();
    assert!(eventually(DEADLINE, async || began.elapsed() > Duration::from_secs(15)).await);
    postgres.start().unwrap();
    let is_database = |body: &Value| body["type"] == "incident.opened" && body["data"]["rule"] == "database";
    until_taken(&receiver, "the outage", is_database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_incident_is_sent_to_webhooks_and_on_the_event_stream() {
    let mut gateway = Gateway::start(2).await;
    let api = gateway.control_plane.api().clone();
    let (json, slack) = (Receiver::start().unwrap(), Receiver::start().unwrap());
    api.put("webhooks", "json", &webhook(&json, &["incident"])).await.unwrap();
    let message = with(webhook(&slack, &["incident"]), &json!({"format": "slack", "fleets": ["default"]}));
    api.put("webhooks", "slack", &message).await.unwrap();
    let elsewhere = with(webhook(&json, &["incident"]), &json!({"fleets": ["other"]}));
    api.put("webhooks", "elsewhere", &elsewhere).await.unwrap();
    let mut events =
        api.event_stream(EventsAs::Token(signalbox_tests::control_plane::ADMIN_TOKEN)).await.unwrap();
    gateway.proxies[1].kill9();
    let opened = until_taken(&json, "the incident", |body| body["type"] == "incident.opened").await;
    let data = &opened["data"];
    assert_eq!((&data["rule"], &data["change"]), (&json!("lost"), &json!("opened")), "{opened}");
    assert_eq!(data["resource"], json!({"kind": "fleet", "name": "default"}), "{opened}");
    assert!(data["sentence"].as_str().unwrap().contains("proxy-1"), "{opened}");
    assert!(data["evidence"]["count"] == 1 && data["since"].is_string(), "{opened}");
    let told = until_taken(&slack, "the message", |body| body["text"].is_string()).await;
    assert!(
        told["text"].as_str().unwrap().starts_with("Incident: 1 of 2 proxies of fleet `default`"),
        "{told}"
    );
    assert_eq!(json.received().len(), 1, "{:?}", bodies(&json));
    let report = api.get("/health-report").await.unwrap();
    assert_eq!(report["incidents"][0]["since"], data["since"]);
    let mut stream = String::new();
    let read = tokio::time::timeout(DEADLINE, async {
        while !stream.contains("event: incident\n") || !stream.ends_with("\n\n") {
            stream.push_str(&String::from_utf8_lossy(&events.chunk().await.unwrap().unwrap()));
        }
    });
    read.await.unwrap_or_else(|_| panic!("{stream}"));
    let event = stream.split("event: incident\ndata: ").nth(1).unwrap().lines().next().unwrap();
    let event: Value = serde_json::from_str(event).unwrap();
    assert_eq!((&event["change"], &event["sentence"]), (&json!("opened"), &data["sentence"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_outage_of_the_database_is_told_by_the_last_sender_alone() {
    let mut postgres = Postgres::new().unwrap();
    let planes = pair(&postgres).await;
    let receiver = Receiver::start().unwrap();
    let all = webhook(&receiver, &["incident"]);
    planes[0].api().put("webhooks", "w", &all).await.unwrap();
    sender(&planes).await;
    postgres.kill9();
    let is_database = |body: &Value| body["data"]["rule"] == "database";
    until_taken(&receiver, "the outage", is_database).await;
    // The other one has found it, too, and has sent nothing.
    for plane in &planes {
        let found = eventually(DEADLINE, async || {
            let report = plane.api().get("/health-report").await.unwrap();
            report["incidents"][0]["rule"] == "database"
        });
        assert!(found.await, "{}", plane.log());
    }
    let mut counts = Vec::new();
    for plane in &planes {
        let metrics = plane.api().metrics().await.unwrap();
        counts.push(metrics.sum("signalbox_webhook_deliveries_total", &["result=\"delivered\""]));
    }
    counts.sort_by(f64::total_cmp);
    assert_eq!(counts, [0.0, 1.0], "{:?}", bodies(&receiver));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn receivers_are_verified_by_the_authorities_of_the_host_and_urls_may_be_its_secrets() {
    let (trusted, other, files) = (Authority::new("trusted"), Authority::new("other"), PemFiles::new());
    files.write("roots.pem", &trusted.pem());
    let port = free_port();
    let builder =
        ControlPlane::builder().env("SIGNALBOX_WEBHOOK_URL", format!("https://localhost:{port}/hook?key=1"));
    let roots = files.path("roots.pem").display().to_string();
    let control_plane = builder.env("SSL_CERT_FILE", roots).env("SSL_CERT_DIR", "").start().await.unwrap();
    let api = control_plane.api();
    let _proxy = Proxy::of(&control_plane, "p").await.unwrap();
    let document = json!({
        "listeners": [{"name": "https", "address": format!("127.0.0.1:{port}"), "protocol": "https"}],
        "routes": [{"name": "hook", "match": {"methods": ["POST"]}, "respond": {"body": "taken"}}],
        "webhooks": [{"name": "w", "url": {"env": "SIGNALBOX_WEBHOOK_URL"}, "events": ["incident"]}],
    });
    api.apply(&document).await.unwrap();
    for (authority, result) in [(&trusted, "delivered"), (&other, "failed")] {
        let issued = authority.issue(&Until::Year(2080));
        let spec = json!({"certificate": issued.certificate, "private_key": issued.key});
        let revision = api.put("certificates", "a", &spec).await.unwrap();
        api.wait_default(revision).await.unwrap();
        let tested = api.call(Method::POST, "/webhooks/w/test", None).await.unwrap();
        assert_eq!(tested.body["result"], result, "{tested}");
        let error = tested.body["error"].as_str().unwrap_or_default();
        assert_eq!(error.starts_with("TLS"), result == "failed", "{tested}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_happens_to_rollouts_is_sent() {
    let by_hand = with(policy("1h"), &json!({"step_deadline": "2h"}));
    let fleets = Fleets::start(3, 1, &by_hand).await;
    let api = fleets.api();
    let (all, urgent) = (Receiver::start().unwrap(), Receiver::start().unwrap());
    api.put("webhooks", "all", &webhook(&all, &["rollout"])).await.unwrap();
    let few = json!({"fleets": ["edge"], "rollout_events": ["held", "failed", "aborted"]});
    api.put("webhooks", "urgent", &with(webhook(&urgent, &["rollout"]), &few)).await.unwrap();
    let revision = api.put("routes", "r", &respond("/r", "new")).await.unwrap();
    fleets.until_serving(revision, 1).await;
    let is = |name: &'static str, fleet: &'static str| {
        move |body: &Value| {
            body["type"] == name && body["data"]["fleet"] == fleet && body["data"]["revision"] == revision
        }
    };
    until_taken(&all, "the start", is("rollout.started", "edge")).await;
    until_taken(&all, "the other fleet", is("rollout.succeeded", "core")).await;
    fleets.command(revision, "promote").await.success().unwrap();
    until_taken(&all, "the next step", is("rollout.step", "edge")).await;
    fleets.command(revision, "pause").await.success().unwrap();
    until_taken(&all, "the pause", is("rollout.paused", "edge")).await;
    fleets.command(revision, "abort").await.success().unwrap();
    let aborted = until_taken(&all, "the end", is("rollout.aborted", "edge")).await;
    assert_eq!(aborted["data"]["actor"], "admin", "{aborted}");
    assert_eq!(aborted["data"]["rollout"], format!("{revision}-edge"), "{aborted}");
    until_taken(&urgent, "the end", is("rollout.aborted", "edge")).await;
    assert_eq!(urgent.received().len(), 1, "{:?}", bodies(&urgent));
}
