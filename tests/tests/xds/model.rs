//! The model test: whatever admins write, however streams break, replicas change and processes restart, at rest every
//! proxy has exactly what a direct read of the store has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use signalbox_config::{Fingerprint, Resource, ResourceKey};
use signalbox_control_plane::auth::TokenText;
use signalbox_control_plane::board::{Sharing, WaitResult};
use signalbox_control_plane::store::Role;
use signalbox_plugins::builtin;
use signalbox_tests::free_port;
use tempfile::TempDir;

use crate::harness::*;

/// How long it goes on, and for three rounds at least; each of them ends at rest.
const LENGTH: Duration = Duration::from_secs(15);

const REPLICAS: usize = 2;
const PROXIES: usize = 4;

struct World {
    database: Database,
    random: Rng,
    planes: Vec<Option<Plane>>,
    /// Where each replica listens, whenever it runs.
    addresses: Vec<std::net::SocketAddr>,
    proxies: Vec<(TempDir, Option<Proxy>)>,
    log: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_every_proxy_has_what_the_store_has() {
    let seed = std::env::var("SIGNALBOX_MODEL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SIGNALBOX_MODEL_SEED={seed}");
    let mut world = World {
        database: Database::postgres(),
        random: Rng::with_seed(seed),
        planes: Vec::new(),
        addresses: Vec::new(),
        proxies: (0..PROXIES).map(|_| (tempfile::tempdir().unwrap(), None)).collect(),
        log: Vec::new(),
    };
    for replica in 0..REPLICAS {
        world.planes.push(None);
        world.addresses.push(([127, 0, 0, 1], free_port()).into());
        world.start_plane(replica).await;
        world.addresses[replica] = world.planes[replica].as_ref().unwrap().address;
    }
    let started = Instant::now();
    let mut rounds = 0;
    while started.elapsed() < LENGTH || rounds < 3 {
        for _ in 0..world.random.usize(1..25) {
            world.step().await;
        }
        world.come_to_rest().await;
        rounds += 1;
    }
}

impl World {
    async fn step(&mut self) {
        let replica = self.random.usize(..REPLICAS);
        let proxy = self.random.usize(..PROXIES);
        let what = self.random.u8(..104);
        self.log.push(format!("{what} replica {replica} proxy {proxy}"));
        match what {
            0..60 => self.write(replica).await,
            60..70 => self.wait(replica).await,
            70..78 => self.start_proxy(proxy),
            78..83 => {
                if let Some(proxy) = self.proxies[proxy].1.take() {
                    proxy.stop().await.unwrap();
                }
            }
            83..88 => {
                if let Some(proxy) = self.proxies[proxy].1.take() {
                    proxy.kill().await;
                }
            }
            88..90 => {
                // It refuses everything for a while.
                if let (_, Some(proxy)) = &self.proxies[proxy] {
                    proxy.recorder.refuse(Some("not now"));
                }
            }
            90..94 => self.start_plane(replica).await,
            94..96 => {
                if let Some(plane) = self.planes[replica].take() {
                    plane.stop().await;
                }
            }
            96..98 => {
                if let Some(plane) = self.planes[replica].take() {
                    plane.kill();
                }
            }
            98 => {
                if let Some(plane) = &self.planes[replica] {
                    // It may have been started again a moment ago.
                    let _ = plane.store.new_epoch().await;
                }
            }
            // The database is started again.
            99 if self.random.bool() => {
                self.database.server().kill9();
                self.database.server().start().unwrap();
            }
            100..102 => self.revoke_token(replica).await,
            102..104 => self.give_token(replica).await,
            // The data of a proxy are lost.
            _ => {
                if let Some(proxy) = self.proxies[proxy].1.take() {
                    proxy.stop().await.unwrap();
                }
                self.proxies[proxy].0 = tempfile::tempdir().unwrap();
            }
        }
    }

    async fn write(&mut self, replica: usize) {
        let names = ["a", "b", "c", "d", "e", "f"];
        let name = *self.random.choice(names.iter()).unwrap();
        let body = self.random.u8(..3).to_string();
        let many = self.random.u8(..10) == 0;
        let fleets = match self.random.u8(..6) {
            0 => Some(json!(["elsewhere"])),
            1 => Some(json!(["default", "elsewhere"])),
            _ => None,
        };
        let delete = self.random.bool();
        let Some(plane) = &self.planes[replica] else { return };
        if many {
            let document = (0..50).map(|index| {
                let mut spec = route(&body);
                spec["name"] = format!("many-{index}").into();
                spec["kind"] = "route".into();
                spec
            });
            plane.try_apply(&serde_json::to_string(&document.collect::<Vec<_>>()).unwrap()).await;
            return;
        }
        let mut spec = route(&body);
        if let Some(fleets) = fleets {
            spec["fleets"] = fleets;
        }
        let key = format!("route/{name}");
        if delete { plane.try_delete(&key).await } else { plane.try_put(&key, spec).await }
    }

    /// A wait that says that every proxy serves a revision is right.
    async fn wait(&mut self, replica: usize) {
        let Some(plane) = &self.planes[replica] else { return };
        let head = plane.publisher.current().snapshot.id().clone();
        let deadline = Instant::now() + Duration::from_secs(3);
        let outcome = plane.board.wait(head.number, None, deadline).await;
        let counts = outcome.rollouts.iter().map(|rollout| rollout.counts);
        let (total, away) =
            counts.fold((0, 0), |(total, away), counts| (total + counts.total, away + counts.disconnected));
        // Nothing else moves meanwhile. Proxies without a stream are not waited for.
        if outcome.result != WaitResult::Done || total as usize != PROXIES || away > 0 {
            return;
        }
        if self.proxies.iter().any(|(_, proxy)| proxy.is_none()) {
            // One has gone this very moment, with what it had acknowledged. That it left is seen soon.
            return self.sees_one_leave(replica, head.number).await;
        }
        for (index, (_, proxy)) in self.proxies.iter().enumerate() {
            let Some(proxy) = proxy else { continue };
            let status = proxy.status.borrow();
            let serves = status.serving.as_ref().map(|serving| serving.revision.clone());
            let right = serves
                .as_ref()
                .is_some_and(|serves| serves.epoch != head.epoch || serves.number >= head.number);
            assert!(
                right,
                "a wait for {head} said yes, but p{index} serves {serves:?}\n{}",
                self.log.join("\n")
            );
        }
    }

    /// A proxy that is not there does not stay among those that are.
    async fn sees_one_leave(&self, replica: usize, revision: u64) {
        let Some(plane) = &self.planes[replica] else { return };
        let started = Instant::now();
        loop {
            let deadline = Instant::now() + Duration::from_secs(1);
            let outcome = plane.board.wait(revision, None, deadline).await;
            let counts = outcome.rollouts.iter().map(|rollout| rollout.counts);
            let present: u32 = counts.map(|counts| counts.total - counts.disconnected).sum();
            if (present as usize) < PROXIES {
                return;
            }
            assert!(
                started.elapsed() < DEADLINE,
                "a proxy is not there, and was not seen to leave: {outcome:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The proxies' token is revoked: no replica keeps a stream that was opened with it.
    async fn revoke_token(&mut self, replica: usize) {
        let Some(plane) = &self.planes[replica] else { return };
        // The database may have been started again a moment ago.
        if !plane.credentials.revoke("proxy").await.unwrap_or(false) {
            return;
        }
        let started = Instant::now();
        while let Some(open) =
            self.planes.iter().flatten().map(|plane| (plane.open_streams)()).find(|open| *open > 0)
        {
            assert!(started.elapsed() < DEADLINE, "{open} streams go on with a revoked token");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The proxies' token is there, again or still.
    async fn give_token(&mut self, replica: usize) {
        let Some(plane) = &self.planes[replica] else { return };
        let _ = plane.credentials.create("proxy", Role::Proxy, &TokenText(TOKEN.into())).await;
    }

    async fn start_plane(&mut self, replica: usize) {
        if self.planes[replica].is_none() {
            let settings = Settings {
                address: self.addresses[replica],
                sharing: Sharing::Shared,
                replica: ["one", "two"][replica],
                ..Settings::default()
            };
            self.planes[replica] = Some(Plane::start_with(&self.database, settings).await);
        }
    }

    fn start_proxy(&mut self, index: usize) {
        let urls: Vec<_> = self.addresses.iter().map(|address| format!("http://{address}")).collect();
        let (dir, proxy) = &mut self.proxies[index];
        if proxy.is_none() {
            *proxy = Some(Proxy::start(&urls, dir.path(), &format!("p{index}")));
        }
    }

    /// Has everything run, waits until nothing moves, and compares.
    async fn come_to_rest(&mut self) {
        for replica in 0..REPLICAS {
            self.start_plane(replica).await;
        }
        for index in 0..PROXIES {
            self.start_proxy(index);
        }
        for (_, proxy) in &self.proxies {
            proxy.as_ref().unwrap().recorder.refuse(None);
        }
        let plane = self.planes[0].as_ref().unwrap();
        let started = Instant::now();
        while let Err(error) = plane.credentials.create("proxy", Role::Proxy, &TokenText(TOKEN.into())).await
        {
            assert!(started.elapsed() < DEADLINE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let loaded = loop {
            match plane.store.load().await {
                Ok(loaded) => break loaded,
                // The server was started again a moment ago.
                Err(error) => assert!(started.elapsed() < DEADLINE, "{error}"),
            }
        };
        let expected: BTreeMap<ResourceKey, Fingerprint> = loaded
            .resources
            .iter()
            .map(|stored| Resource::from_stored(stored.key.kind, &stored.spec, builtin()).unwrap())
            .filter(|resource| resource.visible_to("default"))
            .map(|resource| (resource.key().clone(), *resource.fingerprint()))
            .collect();
        let wrong = || -> Vec<String> {
            let mut wrong = Vec::new();
            for (index, (_, proxy)) in self.proxies.iter().enumerate() {
                let proxy = proxy.as_ref().unwrap();
                let status = proxy.status.borrow();
                let serving = status.serving.as_ref().map(|serving| serving.revision.clone());
                let same = proxy.recorder.with(|recorded| content(recorded.resources.values()) == expected);
                // Drift would be healed before it is seen here; but nothing may drift.
                let refused = proxy.recorder.with(|recorded| recorded.refused as u64);
                if status.rejected_total != refused {
                    wrong.push(format!("p{index} rejected what its data plane did not refuse: {status:?}"));
                }
                if serving.as_ref() != Some(&loaded.head) || !same {
                    wrong.push(format!("p{index} serves {serving:?}, same content: {same}; {status:?}"));
                }
                for plane in self.planes.iter().flatten() {
                    let shown = plane.board.proxy(&format!("p{index}"));
                    if !shown.as_ref().is_some_and(|shown| {
                        shown.state == signalbox_control_plane::board::ProxyState::InSync
                            && shown.revision.applied == loaded.head.number
                    }) {
                        wrong.push(format!("p{index} is shown as {shown:?}"));
                    }
                }
            }
            wrong
        };
        let started = Instant::now();
        loop {
            let found = wrong();
            if found.is_empty() {
                break;
            }
            assert!(
                started.elapsed() < DEADLINE,
                "not at rest at {:?}:\n{}\nafter\n{}",
                loaded.head,
                found.join("\n"),
                self.log.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
