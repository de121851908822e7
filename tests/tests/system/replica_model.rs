//! A model test of several control planes on a PostgreSQL pair: replicas are killed and paused, the database fails over,
//! and whatever happens, a wait that said yes was right, and at rest every proxy serves what a direct read of the
//! database has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use http::{Method, StatusCode};
use serde_json::Value;
use signalbox_tests::{ControlPlane, Postgres, Proxy, eventually, get};

use crate::fixture::respond;

const REPLICAS: usize = 2;
const PROXIES: usize = 3;
const ROUTES: usize = 4;

/// What happens to the system, once each in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Kill,
    Pause,
    FailOver,
}

struct World {
    random: Rng,
    /// The server that takes writes, and its standby.
    databases: [Postgres; 2],
    replicas: Vec<ControlPlane>,
    proxies: Vec<Proxy>,
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
    let mut moves = [Move::Kill, Move::Pause, Move::FailOver];
    world.random.shuffle(&mut moves);
    for what in moves {
        world.log.push(format!("{what:?}"));
        let replica = world.random.usize(..REPLICAS);
        match what {
            Move::Kill => world.replicas[replica].kill9(),
            Move::Pause => world.replicas[replica].pause(),
            Move::FailOver => world.fail_over(),
        }
        let down = (what != Move::FailOver).then_some(replica);
        for _ in 0..6 {
            world.write_and_wait(down).await;
        }
        match what {
            Move::Kill => world.replicas[replica].start().await.unwrap(),
            Move::Pause => world.replicas[replica].resume(),
            Move::FailOver => world.rejoin(),
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
        let mut proxies = Vec::new();
        for index in 0..PROXIES {
            let mut builder = Proxy::builder().node_id(&format!("p{index}"));
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
