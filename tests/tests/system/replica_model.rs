//! A model test of several control planes on a PostgreSQL pair: replicas are killed and paused, the database fails over, the
//! proxies' token is rotated, disks are full, and whatever happens, a wait that said yes was right, and at rest every proxy serves what a direct read of the
//! database has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_tests::{ControlPlane, Postgres, Proxy, eventually, get};

use crate::fixture::respond;

const REPLICAS: usize = 2;
const PROXIES: usize = 3;
const ROUTES: usize = 4;

/// A fault of the system; each comes once in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Kill,
    Pause,
    FailOver,
    RotateTokens,
    FillDisks,
}

struct World {
    random: Rng,
    /// The server that takes writes, and its standby.
    databases: [Postgres; 2],
    replicas: Vec<ControlPlane>,
    proxies: Vec<Proxy>,
    /// The name of the proxies' token, which is stored, and its text.
    token: (String, String),
    /// How many waits said yes while all proxies were connected.
    confirmed: usize,
    log: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wait_that_said_yes_was_right_whatever_became_of_replicas_and_database() {
    let seed = std::env::var("SIGNALBOX_MODEL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SIGNALBOX_MODEL_SEED={seed}");
    let mut world = World::start(seed).await;
    let mut moves = [Move::Kill, Move::Pause, Move::FailOver, Move::RotateTokens, Move::FillDisks];
    world.random.shuffle(&mut moves);
    for what in moves {
        world.log.push(format!("{what:?}"));
        let replica = world.random.usize(..REPLICAS);
        match what {
            Move::Kill => world.replicas[replica].kill9(),
            Move::Pause => world.replicas[replica].pause(),
            Move::FailOver => world.fail_over(),
            Move::RotateTokens => world.rotate_tokens().await,
            Move::FillDisks => world.fill_disks(replica),
        }
        let down = matches!(what, Move::Kill | Move::Pause).then_some(replica);
        for _ in 0..6 {
            world.write_and_wait(down).await;
        }
        match what {
            Move::Kill => world.replicas[replica].start().await.unwrap(),
            Move::Pause => world.replicas[replica].resume(),
            Move::FailOver => world.rejoin(),
            Move::RotateTokens => {}
            Move::FillDisks => world.empty_disks(replica).await,
        }
        for _ in 0..4 {
            world.write_and_wait(None).await;
        }
        world.come_to_rest().await;
    }
    assert!(world.confirmed >= 5, "hardly any wait said yes: {:#?}", world.log);
}

impl World {
    async fn start(seed: u64) -> Self {
        let primary = Postgres::new().unwrap();
        let standby = primary.standby().unwrap();
        let url = format!("postgres://postgres@{},{}/postgres", primary.address(), standby.address());
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            replicas.push(ControlPlane::builder().database(&url).start().await.unwrap());
        }
        let token = (String::from("proxies-0"), make_token(&replicas[0], "proxies-0").await);
        let mut proxies = Vec::new();
        for index in 0..PROXIES {
            let mut builder = Proxy::builder().node_id(&format!("p{index}")).token(&token.1);
            for replica in &replicas {
                builder = builder.control_plane(replica);
            }
            proxies.push(builder.start().await.unwrap());
        }
        replicas[0].api().wait_in_sync(PROXIES).await.unwrap();
        Self {
            random: Rng::with_seed(seed),
            databases: [primary, standby],
            replicas,
            proxies,
            token,
            confirmed: 0,
            log: Vec::new(),
        }
    }

    fn fail_over(&mut self) {
        self.databases[0].kill9();
        self.databases[1].promote().unwrap();
        self.databases.swap(0, 1);
    }

    fn rejoin(&mut self) {
        let [primary, standby] = &mut self.databases;
        standby.rejoin(primary).unwrap();
    }

    /// Replaces the stored token of the proxies while their streams are open. One proxy is forgotten: it loses its stream
    /// with the old token, serves on, and comes back with the new one.
    async fn rotate_tokens(&mut self) {
        let refused = self.refused().await;
        let (old, old_text) = self.token.clone();
        let new = format!("{old}-next");
        let text = make_token(&self.replicas[0], &new).await;
        for replica in &self.replicas {
            let known = async || status_of(replica, &text).await == Some(StatusCode::FORBIDDEN);
            assert!(eventually(DEADLINE, known).await, "{}", replica.log());
        }
        let forgotten = self.random.usize(..PROXIES);
        for index in (0..PROXIES).filter(|index| *index != forgotten) {
            self.restart_with(index, &text).await;
            self.write_and_wait(None).await;
        }
        self.replicas[0].api().wait_in_sync(PROXIES).await.unwrap();
        assert_eq!(self.refused().await, refused, "a proxy was refused before a token was revoked");
        let revoker = self.random.usize(..REPLICAS);
        let path = format!("/tokens/{old}");
        self.replicas[revoker].api().call(Method::DELETE, &path, None).await.unwrap().success().unwrap();
        for replica in &self.replicas {
            let unknown = async || status_of(replica, &old_text).await == Some(StatusCode::UNAUTHORIZED);
            assert!(eventually(DEADLINE, unknown).await, "{}", replica.log());
            let id = self.proxies[forgotten].id();
            let is_gone = |proxy: &Value| proxy["connected"] == false;
            replica.api().wait_proxy(id, "without a stream", is_gone).await.unwrap();
        }
        assert!(self.refused().await > refused, "nobody counted the proxy with the revoked token");
        for (index, proxy) in self.proxies.iter().enumerate().filter(|(index, _)| *index != forgotten) {
            let shown = self.replicas[revoker].api().proxy(proxy.id()).await.unwrap();
            assert_eq!(shown["connected"], true, "p{index} lost its stream with another's token: {shown}");
        }
        assert!(self.proxies[forgotten].revision().await.unwrap()["serving"].is_object());
        self.restart_with(forgotten, &text).await;
        self.token = (new, text);
    }

    async fn restart_with(&mut self, index: usize, token: &str) {
        let proxy = &mut self.proxies[index];
        proxy.terminate();
        proxy.wait_exit(DEADLINE).unwrap();
        proxy.set_arg(&format!("--token={token}"));
        proxy.start().await.unwrap();
        let id = proxy.id().to_owned();
        let is_connected = |proxy: &Value| proxy["connected"] == true;
        self.replicas[0].api().wait_proxy(&id, "connected", is_connected).await.unwrap();
    }

    /// How often proxies were refused for their token, by all replicas.
    async fn refused(&self) -> f64 {
        let mut sum = 0.0;
        for replica in &self.replicas {
            sum += replica
                .api()
                .metrics()
                .await
                .unwrap()
                .sum("signalbox_xds_refused_total", &["reason=\"token_"]);
        }
        sum
    }

    /// No file of a replica and of a proxy can be written any more: logs, and what the proxy keeps.
    fn fill_disks(&mut self, replica: usize) {
        self.replicas[replica].limit_file_size(Some(0)).unwrap();
        self.proxies[replica].limit_file_size(Some(0)).unwrap();
    }

    /// They told of it, and catch up with what they could not keep.
    async fn empty_disks(&mut self, replica: usize) {
        self.replicas[0].api().wait_in_sync(PROXIES).await.unwrap();
        let failing =
            async |proxy: &Proxy| proxy.metrics().await.unwrap().sum("signalbox_proxy_persist_failing", &[]);
        let proxy = &mut self.proxies[replica];
        assert!(eventually(DEADLINE, async || failing(proxy).await == 1.0).await, "{}", proxy.log());
        assert!(proxy.metrics().await.unwrap().sum("signalbox_log_lines_lost_total", &[]) >= 1.0);
        proxy.limit_file_size(None).unwrap();
        self.replicas[replica].limit_file_size(None).unwrap();
        assert!(eventually(DEADLINE, async || failing(proxy).await == 0.0).await, "{}", proxy.log());
    }

    /// Writes at one replica, and waits at one; neither is the one that is `down`. What comes of it may be anything but
    /// wrong.
    async fn write_and_wait(&mut self, down: Option<usize>) {
        let up: Vec<usize> = (0..REPLICAS).filter(|replica| Some(*replica) != down).collect();
        let (writer, waiter) = (*self.random.choice(&up).unwrap(), *self.random.choice(&up).unwrap());
        let name = format!("r{}", self.random.usize(..ROUTES));
        let body = self.random.u32(..).to_string();
        let path = format!("/routes/{name}");
        let spec = respond(&format!("/{name}"), &body);
        let api = self.replicas[writer].api().clone();
        let written = match self.random.u8(..5) {
            0 => api.call(Method::DELETE, &path, None).await,
            _ => api.call(Method::PUT, &path, Some(&spec)).await,
        };
        let revision = written.and_then(|answer| answer.success()?.revision());
        self.log.push(format!("{name}={body} at {writer}: {revision:?}, waits at {waiter}"));
        let Ok(revision) = revision else { return };
        let api = self.replicas[waiter].api();
        let call = format!("/revisions/{revision}/wait?timeout=2s");
        let answer = api.call(Method::GET, &call, None).await.unwrap();
        self.log.push(format!("{revision} at {waiter}: {}", answer.status));
        if answer.status != StatusCode::OK {
            return;
        }
        let rollouts = answer.body["rollouts"].as_array().cloned().unwrap_or_default();
        let sum = |count: &str| -> u64 {
            rollouts.iter().filter_map(|rollout| rollout["counts"][count].as_u64()).sum()
        };
        // A proxy that is on its way from one replica to another has no stream, and is not waited for.
        if sum("disconnected") > 0 || sum("total") != PROXIES as u64 {
            return;
        }
        self.confirmed += 1;
        for proxy in &self.proxies {
            let serving = proxy.revision().await.unwrap()["serving"].clone();
            let serves = serving["revision"].as_u64();
            assert!(
                serves.is_some_and(|serves| serves >= revision),
                "a wait for {revision} said yes, but {} serves {serving}: {answer}\n{:#?}",
                proxy.id(),
                self.log
            );
        }
    }

    /// Waits until nothing moves, and compares.
    async fn come_to_rest(&mut self) {
        // Also of a database that failed over a moment ago.
        let mut expected = None;
        let read = eventually(Duration::from_secs(60), async || {
            expected = self.read_database().ok();
            expected.is_some()
        });
        assert!(read.await);
        let (head, bodies) = expected.unwrap();
        let started = Instant::now();
        loop {
            let wrong = self.wrong(head, &bodies).await;
            if wrong.is_empty() {
                return;
            }
            let logs: Vec<String> = self.replicas.iter().map(ControlPlane::log).collect();
            assert!(
                started.elapsed() < Duration::from_secs(90),
                "not at rest at {head}: {wrong:#?}\n{:#?}\n{}",
                self.log,
                logs.join("\n---\n")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last revision, and what each route answers, as the database has it.
    fn read_database(&self) -> anyhow::Result<(u64, BTreeMap<String, String>)> {
        let [primary, _] = &self.databases;
        let head = primary.sql("SELECT revision FROM head")?.parse()?;
        let rows = primary.sql(
            "SELECT name || ' ' || (convert_from(spec, 'UTF8')::jsonb -> 'respond' ->> 'body') FROM resources
             WHERE kind = 'route' ORDER BY name",
        )?;
        let pairs = rows.lines().filter_map(|line| line.split_once(' '));
        Ok((head, pairs.map(|(name, body)| (name.to_owned(), body.to_owned())).collect()))
    }

    async fn wrong(&self, head: u64, bodies: &BTreeMap<String, String>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (index, replica) in self.replicas.iter().enumerate() {
            let shown = replica.api().proxies().await.unwrap_or_default();
            let in_sync =
                |shown: &&Value| shown["state"] == "in_sync" && shown["revision"]["applied"] == head;
            if shown.iter().filter(in_sync).count() != PROXIES {
                wrong.push(format!("replica {index} shows {shown:?}"));
            }
        }
        for proxy in &self.proxies {
            for index in 0..ROUTES {
                let name = format!("r{index}");
                let answer = get(proxy.http(), "a", &format!("/{name}")).await.unwrap();
                let body = (answer.status == StatusCode::OK).then(|| answer.text());
                if body.as_ref() != bodies.get(&name) {
                    wrong.push(format!("{} answers {body:?} for {name}", proxy.id()));
                }
            }
        }
        wrong
    }
}

const DEADLINE: Duration = Duration::from_secs(60);

/// Stores a token for proxies; its text.
async fn make_token(replica: &ControlPlane, name: &str) -> String {
    let token = json!({"name": name, "role": "proxy"});
    let made = replica.api().call(Method::POST, "/tokens", Some(&token)).await.unwrap().success().unwrap();
    made.body["token"].as_str().unwrap().to_owned()
}

/// How a replica answers a call with a token: 403 for a proxies' one, 401 for one that it does not know.
async fn status_of(replica: &ControlPlane, token: &str) -> Option<StatusCode> {
    let answer = replica.api().with_token(token).call(Method::GET, "/routes", None).await;
    answer.ok().map(|answer| answer.status)
}
