//! A model test: random writes and commands while control planes, proxies and the database are killed and paused. At rest every proxy serves
//! what its fleet's row says, the log has no gap, and every acknowledged write is there.

use std::collections::BTreeMap;
use std::time::Instant;

use fastrand::Rng;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_tests::{ControlPlane, Postgres, Proxy, get};

use super::fleet::{DEADLINE, policy};
use crate::fixture::{respond, with};

const PROXIES: usize = 4;
const ROUTES: usize = 3;
const COMMANDS: [&str; 7] = ["pause", "resume", "promote", "skip", "abort", "revert", "retry"];

/// A fault of the system; each comes once.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillReplica,
    PauseReplica,
    KillProxy,
    KillDatabase,
}

struct World {
    random: Rng,
    database: Postgres,
    replicas: Vec<ControlPlane>,
    proxies: Vec<Proxy>,
    /// The acknowledged writes: the route and its text, by revision.
    acknowledged: BTreeMap<u64, (String, String)>,
    log: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn at_rest_every_proxy_serves_what_its_fleets_row_says() {
    let seed = std::env::var("SIGNALBOX_MODEL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SIGNALBOX_MODEL_SEED={seed}");
    let mut world = World::start(seed).await;
    let mut faults = [Fault::KillReplica, Fault::PauseReplica, Fault::KillProxy, Fault::KillDatabase];
    world.random.shuffle(&mut faults);
    for fault in faults {
        world.log.push(format!("{fault:?}"));
        let replica = world.random.usize(..world.replicas.len());
        let proxy = world.random.usize(..PROXIES);
        match fault {
            Fault::KillReplica => world.replicas[replica].kill9(),
            Fault::PauseReplica => world.replicas[replica].pause(),
            Fault::KillProxy => world.proxies[proxy].kill9(),
            Fault::KillDatabase => world.database.kill9(),
        }
        let down = matches!(fault, Fault::KillReplica | Fault::PauseReplica).then_some(replica);
        world.act(5, down).await;
        match fault {
            Fault::KillReplica => world.replicas[replica].start().await.unwrap(),
            Fault::PauseReplica => world.replicas[replica].resume(),
            Fault::KillProxy => world.proxies[proxy].start().await.unwrap(),
            Fault::KillDatabase => world.database.start().unwrap(),
        }
        world.act(6, None).await;
        world.come_to_rest().await;
    }
    assert!(world.acknowledged.len() >= 5, "{:#?}", world.log);
}

impl World {
    async fn start(seed: u64) -> Self {
        let database = Postgres::new().unwrap();
        let mut replicas = Vec::new();
        for _ in 0..2 {
            replicas.push(ControlPlane::builder().database(database.url()).start().await.unwrap());
        }
        let mut proxies = Vec::new();
        for index in 0..PROXIES {
            let mut builder = Proxy::builder().fleet("edge").node_id(&format!("edge-{index}"));
            for replica in &replicas {
                builder = builder.control_plane(replica);
            }
            proxies.push(builder.start().await.unwrap());
        }
        let api = replicas[0].api();
        api.wait_in_sync(PROXIES).await.unwrap();
        // Steps end by commands only, for nothing sends requests.
        let policy = with(policy("1h"), &json!({"step_deadline": "2h", "gates": {"lost": 4}}));
        api.put("fleets", "edge", &json!({"rollout": policy})).await.unwrap();
        let (random, acknowledged) = (Rng::with_seed(seed), BTreeMap::new());
        Self { random, database, replicas, proxies, acknowledged, log: Vec::new() }
    }

    /// Writes and gives commands at random control planes that are not `down`. What comes of it may be anything but wrong.
    async fn act(&mut self, times: usize, down: Option<usize>) {
        let up: Vec<usize> = (0..self.replicas.len()).filter(|replica| Some(*replica) != down).collect();
        for _ in 0..times {
            let replica = *self.random.choice(&up).unwrap();
            let api = self.replicas[replica].api().clone();
            if self.random.bool() {
                let name = format!("r{}", self.random.usize(..ROUTES));
                let body = self.random.u32(..).to_string();
                let urgent = if self.random.u8(..8) == 0 { "?rollout=break-glass" } else { "" };
                let request = api.request(Method::PUT, &format!("/routes/{name}{urgent}"));
                let request = request
                    .header("x-signalbox-reason", "the model")
                    .json(&respond(&format!("/{name}"), &body));
                let written = signalbox_tests::control_plane::send(request).await;
                let revision = written.and_then(|answer| answer.success()?.revision());
                self.log.push(format!("{name}={body} {urgent} at {replica}: {revision:?}"));
                if let Ok(revision) = revision {
                    self.acknowledged.insert(revision, (name, body));
                }
                continue;
            }
            let rollouts = api.get("/rollouts?fleet=edge&limit=3").await.unwrap_or_default();
            let ids: Vec<&str> = rollouts["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| one["id"].as_str())
                .collect();
            let Some(id) = self.random.choice(&ids) else { continue };
            let action = COMMANDS[self.random.usize(..COMMANDS.len())];
            let body = json!({"reason": "the model"});
            let path = format!("/rollouts/{id}/{action}");
            let answer = api.call(Method::POST, &path, Some(&body)).await.map(|answer| answer.status);
            self.log.push(format!("{action} {id} at {replica}: {answer:?}"));
        }
    }

    async fn come_to_rest(&mut self) {
        let started = Instant::now();
        let mut wrong = vec![String::from("nothing was looked at")];
        while !wrong.is_empty() && started.elapsed() < DEADLINE {
            wrong = self.wrong().await.unwrap_or_else(|error| vec![error.to_string()]);
        }
        let logs: Vec<String> = self.replicas.iter().map(ControlPlane::log).collect();
        assert!(wrong.is_empty(), "not at rest: {wrong:#?}\n{:#?}\n{}", self.log, logs.join("\n---\n"));
    }

    /// Says everything that is not as it has to be at rest.
    async fn wrong(&self) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        let plan: Value =
            serde_json::from_str(&self.database.sql("SELECT plan FROM fleet_targets WHERE fleet = 'edge'")?)?;
        let numbers = self.database.sql("SELECT count(*), min(number), max(number) FROM revisions")?;
        let head: u64 = self.database.sql("SELECT revision FROM head")?.parse()?;
        if numbers.replace('|', " ").split_whitespace().collect::<Vec<_>>()
            != [&*head.to_string(), "1", &*head.to_string()]
        {
            wrong.push(format!("the log of {head} revisions has gaps: {numbers}"));
        }
        let stable = plan["stable"].as_u64().or(plan["revision"].as_u64()).unwrap_or(head);
        let members = plan["candidate"]["members"].as_array().cloned().unwrap_or_default();
        for (index, replica) in self.replicas.iter().enumerate() {
            let shown = replica.api().proxies().await?;
            let in_sync = shown.iter().filter(|shown| shown["state"] == "in_sync").count();
            if in_sync != PROXIES {
                wrong.push(format!("replica {index} shows {in_sync} proxies in sync"));
            }
        }
        let api = self.replicas[0].api();
        for (revision, (name, body)) in &self.acknowledged {
            let found = api.get(&format!("/revisions/{revision}")).await?;
            let changes = found["changes"].as_array().cloned().unwrap_or_default();
            if !changes
                .iter()
                .any(|change| change["name"] == **name && change["after"]["respond"]["body"] == **body)
            {
                wrong.push(format!("the acknowledged revision {revision} is not {name}={body}"));
            }
        }
        for proxy in &self.proxies {
            let is_member = members.iter().any(|member| member == proxy.id());
            let revision =
                if is_member { plan["candidate"]["revision"].as_u64().unwrap_or(0) } else { stable };
            let set = api.get(&format!("/revisions/{revision}/diff?from=0")).await?;
            let resources = set["changes"].as_array().cloned().unwrap_or_default();
            for index in 0..ROUTES {
                let name = format!("r{index}");
                let route = resources.iter().find(|one| one["kind"] == "route" && one["name"] == *name);
                let expected =
                    route.and_then(|one| one["after"]["respond"]["body"].as_str().map(str::to_owned));
                let answer = get(proxy.http(), "a", &format!("/{name}")).await?;
                let served = (answer.status == StatusCode::OK).then(|| answer.text());
                if served != expected {
                    wrong.push(format!(
                        "{} serves {served:?} for {name}, not {expected:?} of {revision}",
                        proxy.id()
                    ));
                }
            }
        }
        Ok(wrong)
    }
}
