//! Leaders that are killed or paused, and databases that restart or fail over, in the middle of rollouts.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use signalbox_tests::{Api, ControlPlane, Postgres, Proxy, eventually, get};

use super::fleet::{DEADLINE, Fleets, command, policy, until_rollout};
use crate::fixture::{respond, with};

/// A policy whose steps nobody ends but a person: there is no traffic.
fn by_hand() -> Value {
    with(policy("1h"), &json!({"step_deadline": "2h"}))
}

/// Two control planes on one database, and proxies of the fleet `edge` that know both.
struct Pair {
    planes: [ControlPlane; 2],
    proxies: Vec<Proxy>,
}

impl Pair {
    async fn start(database: &str, proxies: usize) -> Self {
        let start = async || ControlPlane::builder().database(database).start().await.unwrap();
        let planes = [start().await, start().await];
        let mut started = Vec::new();
        for index in 0..proxies {
            let builder =
                Proxy::builder().control_plane(&planes[index % 2]).control_plane(&planes[1 - index % 2]);
            started.push(builder.fleet("edge").node_id(&format!("edge-{index}")).start().await.unwrap());
        }
        planes[0].api().wait_in_sync(proxies).await.unwrap();
        let pinned = planes[0].api().put("fleets", "edge", &json!({"rollout": by_hand()})).await.unwrap();
        until_rollout(planes[0].api(), &format!("{pinned}-edge"), "succeeded").await;
        for plane in &planes {
            plane.api().wait_in_sync(proxies).await.unwrap();
        }
        Self { planes, proxies: started }
    }

    /// The index of the control plane that decides.
    async fn leader(&self) -> usize {
        let mut leader = 0;
        let found = eventually(DEADLINE, async || {
            for (index, plane) in self.planes.iter().enumerate() {
                let metrics = plane.api().metrics().await;
                if metrics.is_ok_and(|metrics| metrics.sum("signalbox_leads_rollouts", &[]) == 1.0) {
                    leader = index;
                    return true;
                }
            }
            false
        });
        assert!(found.await, "nobody leads");
        leader
    }

    /// Waits until so many proxies answer `/r` with `body`.
    async fn until_answering(&self, body: &str, count: usize) {
        let mut last = Vec::new();
        let found = eventually(DEADLINE, async || {
            last.clear();
            for proxy in &self.proxies {
                last.push(get(proxy.http(), "a", "/r").await.unwrap().text());
            }
            last.iter().filter(|answer| *answer == body).count() == count
        });
        assert!(found.await, "{count} proxies were to answer {body}: {last:?}");
    }
}

/// Gives a command until a leader takes it.
async fn command_eventually(api: &Api, id: &str, action: &str) -> Value {
    let mut last = String::new();
    let mut body = Value::Null;
    let done = eventually(DEADLINE, async || {
        let answer = command(api, id, action).await;
        last = answer.to_string();
        body = answer.body.clone();
        answer.status.is_success()
    });
    assert!(done.await, "{action} of {id}: {last}");
    body
}

async fn generation(api: &Api) -> u64 {
    let found = api.get("/fleets/edge/status").await.unwrap();
    found["generation"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_control_plane_that_is_killed_between_any_two_steps_goes_on_where_it_was() {
    let mut fleets = Fleets::start(3, 0, &by_hand()).await;
    let revision = fleets.api().put("routes", "r", &respond("/r", "new")).await.unwrap();
    for serving in [1, 2, 3] {
        fleets.until_serving(revision, serving).await;
        let before = fleets.until_rollout(revision, "running").await;
        let members = fleets.serving(revision).await;
        fleets.control_plane.kill9();
        fleets.control_plane.start().await.unwrap();
        fleets.until_in_sync().await;
        let after = fleets.until_rollout(revision, "running").await;
        assert_eq!((&after["step"], &after["steps"]), (&before["step"], &before["steps"]));
        assert_eq!(fleets.serving(revision).await, members, "nobody moves because of it");
        let events = |rollout: &Value| rollout["events"].as_array().map_or(0, Vec::len);
        assert!(events(&after) >= events(&before), "{after:#}");
        command_eventually(fleets.api(), &format!("{revision}-edge"), "promote").await;
    }
    fleets.until_rollout(revision, "baking").await;
    fleets.control_plane.kill9();
    fleets.control_plane.start().await.unwrap();
    command_eventually(fleets.api(), &format!("{revision}-edge"), "promote").await;
    fleets.until_rollout(revision, "succeeded").await;
    // A revision that was taken back stays so over a restart.
    let failed = fleets.api().put("routes", "r", &respond("/r", "bad")).await.unwrap();
    fleets.until_serving(failed, 1).await;
    fleets.command(failed, "abort").await.success().unwrap();
    fleets.control_plane.kill9();
    fleets.control_plane.start().await.unwrap();
    fleets.until_in_sync().await;
    assert_eq!(fleets.bodies("/r").await, ["new"; 3]);
    fleets.until_rollout(failed, "aborted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_leader_that_is_killed_or_paused_is_followed_and_decides_nothing_any_more() {
    let postgres = Postgres::new().unwrap();
    let mut pair = Pair::start(&postgres.url(), 4).await;
    let first = pair.planes[0].api().put("routes", "r", &respond("/r", "first")).await.unwrap();
    pair.until_answering("first", 1).await;
    let id = format!("{first}-edge");

    // Paused past its lease, in the middle of a step. The other takes commands.
    let paused = pair.leader().await;
    let other = 1 - paused;
    pair.planes[paused].pause();
    command_eventually(pair.planes[other].api(), &id, "promote").await;
    pair.until_answering("first", 2).await;
    pair.planes[paused].resume();
    command_eventually(pair.planes[paused].api(), &id, "promote").await;
    pair.until_answering("first", 4).await;
    command_eventually(pair.planes[other].api(), &id, "promote").await;
    command_eventually(pair.planes[paused].api(), &id, "promote").await;
    for plane in &pair.planes {
        until_rollout(plane.api(), &id, "succeeded").await;
    }

    // Killed in the middle of a step: the other aborts it.
    let second = pair.planes[0].api().put("routes", "r", &respond("/r", "second")).await.unwrap();
    pair.until_answering("second", 1).await;
    let killed = pair.leader().await;
    let other = 1 - killed;
    let before = generation(pair.planes[other].api()).await;
    pair.planes[killed].kill9();
    let aborted = command_eventually(pair.planes[other].api(), &format!("{second}-edge"), "abort").await;
    assert_eq!(aborted["state"], "aborted", "{aborted:#}");
    pair.until_answering("first", 4).await;
    assert_eq!(generation(pair.planes[other].api()).await, before + 1, "one decision was made");
    pair.planes[killed].start().await.unwrap();
    pair.planes[killed].api().wait_in_sync(4).await.unwrap();
    pair.until_answering("first", 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_database_that_restarts_in_the_middle_changes_nothing() {
    let mut postgres = Postgres::new().unwrap();
    let pair = Pair::start(&postgres.url(), 3).await;
    let api = pair.planes[0].api();
    let revision = api.put("routes", "r", &respond("/r", "new")).await.unwrap();
    pair.until_answering("new", 1).await;
    let id = format!("{revision}-edge");
    let before = generation(api).await;
    postgres.kill9();
    pair.until_answering("new", 1).await;
    postgres.start().unwrap();
    let after = command_eventually(api, &id, "promote").await;
    assert_eq!(after["step"], 1, "{after:#}");
    // Whoever did not decide it reads it a moment later.
    assert!(eventually(DEADLINE, async || generation(api).await > before).await, "{after:#}");
    pair.until_answering("new", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_failover_in_the_middle_of_a_rollout_mixes_no_decisions() {
    let mut primary = Postgres::new().unwrap();
    let standby = primary.standby().unwrap();
    let url = format!(
        "postgres://postgres@{},{}/postgres?target_session_attrs=read-write",
        primary.address(),
        standby.address()
    );
    let pair = Pair::start(&url, 3).await;
    let api = pair.planes[0].api();
    let revision = api.put("routes", "r", &respond("/r", "new")).await.unwrap();
    pair.until_answering("new", 1).await;
    let generation_is = |server: &Postgres| server.sql("SELECT generation FROM fleet_targets").unwrap();
    let decided = generation_is(&primary);
    let caught_up = eventually(Duration::from_secs(30), async || {
        standby.sql("SELECT generation FROM fleet_targets").is_ok_and(|found| found == decided)
    });
    assert!(caught_up.await);

    primary.kill9();
    standby.promote().unwrap();
    let id = format!("{revision}-edge");
    command_eventually(api, &id, "promote").await;
    pair.until_answering("new", 2).await;
    command_eventually(pair.planes[1].api(), &id, "abort").await;
    pair.until_answering("new", 0).await;
    for plane in &pair.planes {
        until_rollout(plane.api(), &id, "aborted").await;
        plane.api().wait_in_sync(3).await.unwrap();
    }
    // Everything acknowledged is there: the route with its text, though no proxy serves it.
    let route = api.call(Method::GET, "/routes/r", None).await.unwrap().success().unwrap();
    assert_eq!(route.body["respond"]["body"], "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_decision_that_a_failover_lost_is_made_again_and_all_agree() {
    let mut primary = Postgres::new().unwrap();
    let standby = primary.standby().unwrap();
    let url = format!(
        "postgres://postgres@{},{}/postgres?target_session_attrs=read-write",
        primary.address(),
        standby.address()
    );
    let pair = Pair::start(&url, 3).await;
    let api = pair.planes[0].api();
    let revision = api.put("routes", "r", &respond("/r", "new")).await.unwrap();
    pair.until_answering("new", 1).await;
    let generation_of = |server: &Postgres| server.sql("SELECT generation FROM fleet_targets");
    let decided = generation_of(&primary).unwrap();
    let caught_up =
        eventually(DEADLINE, async || generation_of(&standby).is_ok_and(|found| found == decided));
    assert!(caught_up.await);

    // The standby receives nothing any more: it never learns of the promotion.
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    standby.sql("SELECT pg_reload_conf()").unwrap();
    let receives_nothing = eventually(DEADLINE, async || {
        standby.sql("SELECT count(*) FROM pg_stat_wal_receiver").is_ok_and(|count| count == "0")
    });
    assert!(receives_nothing.await);
    let id = format!("{revision}-edge");
    command_eventually(api, &id, "promote").await;
    pair.until_answering("new", 2).await;
    primary.kill9();
    standby.promote().unwrap();

    // The decisions that the new primary knows hold, in an epoch of their own; then the promotion is given again.
    pair.until_answering("new", 1).await;
    assert_eq!(generation_of(&standby).unwrap(), decided);
    command_eventually(pair.planes[1].api(), &id, "promote").await;
    pair.until_answering("new", 2).await;
    for plane in &pair.planes {
        until_rollout(plane.api(), &id, "running").await;
        plane.api().wait_in_sync(3).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_was_away_takes_nothing_back_and_sees_the_next_fault() {
    let policy = with(policy("60s"), &json!({"steps": [{"count": 2, "soak": "60s"}]}));
    let mut fleets = Fleets::start(4, 0, &policy).await;
    let load = fleets.load(&fleets.edge, "/shop/a").await;
    load.wait_for(200).await.unwrap();
    let stable = fleets.api().head().await.unwrap();
    let revision = fleets.api().put("routes", "r", &respond("/r", "r")).await.unwrap();
    fleets.until_serving(revision, 2).await;
    fleets.control_plane.kill9();
    // The proxies try for so long to find it that each of them waits between two tries.
    load.wait_for(4 * 20 * 8).await.unwrap();
    fleets.control_plane.start().await.unwrap();
    fleets.until_in_sync().await;
    load.wait_for(4 * 20 * 5).await.unwrap();
    let rollout = fleets.until_rollout(revision, "running|failed").await;
    assert_eq!(rollout["state"], "running", "{rollout:#}");
    fleets.command(revision, "abort").await.success().unwrap();
    fleets.until_serving(stable, 4).await;
    assert_eq!(load.failed(), 0);

    // The same leader compares canaries with the rest from now on.
    let broken =
        json!({"match": {"paths": [{"prefix": "/shop"}]}, "respond": {"status": 503, "body": "gone"}});
    let bad = fleets.api().put("routes", "shop", &broken).await.unwrap();
    let rollout = fleets.until_rollout(bad, "failed").await;
    assert_eq!(rollout["reason"]["code"], "gate_failed", "{rollout:#}");
    fleets.until_serving(stable, 4).await;
    drop(load);
}
