//! A fleet with a progressive policy, beside one without, and what is asked about them.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use signalbox_tests::{Api, ApiAnswer, Backend, ControlPlane, Load, Proxy, eventually, get};

use crate::fixture::upstream;

/// The deadline of everything that is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// A control plane, proxies of the fleet `edge`, whose policy is progressive, and perhaps some of `core`, which has none.
pub(crate) struct Fleets {
    pub(crate) edge: Vec<Proxy>,
    pub(crate) core: Vec<Proxy>,
    pub(crate) control_plane: ControlPlane,
    pub(crate) backend: Backend,
}

/// A policy with one canary, then half of the fleet. Latencies are of no account: on a machine that is busy with other tests, any proxy may be slow
/// for a while.
pub(crate) fn policy(soak: &str) -> Value {
    json!({
        "strategy": "progressive",
        "steps": [{"count": 1, "soak": soak}, {"percent": 50, "soak": soak}],
        "bake": soak,
        "gates": {"coverage": {"min_requests": 10}, "latency": {"tolerated_ratio": 100}},
    })
}

impl Fleets {
    /// With so many proxies: `edge-0`, `edge-1` … and `core-0`, `core-1` …, all in sync, and the route `shop` on all of them, which
    /// forwards `/shop` to a backend.
    pub(crate) async fn start(edge: usize, core: usize, policy: &Value) -> Self {
        Self::on(ControlPlane::sqlite().await.unwrap(), edge, core, policy).await
    }

    /// Likewise, on this control plane.
    pub(crate) async fn on(control_plane: ControlPlane, edge: usize, core: usize, policy: &Value) -> Self {
        let backend = Backend::echo("shop").unwrap();
        let api = control_plane.api().clone();
        api.put("upstreams", "shop", &upstream(&[&backend])).await.unwrap();
        api.put("routes", "shop", &shop("shop")).await.unwrap();
        let start = async |fleet: &str, count: usize| {
            let mut proxies = Vec::new();
            for index in 0..count {
                let builder = Proxy::builder().control_plane(&control_plane).fleet(fleet);
                proxies.push(builder.node_id(&format!("{fleet}-{index}")).start().await.unwrap());
            }
            proxies
        };
        let (edge, core) = (start("edge", edge).await, start("core", core).await);
        api.put("fleets", "edge", &json!({"rollout": policy})).await.unwrap();
        let fleets = Self { edge, core, control_plane, backend };
        fleets.until_rollout(api.head().await.unwrap(), "succeeded").await;
        fleets.until_in_sync().await;
        fleets
    }

    pub(crate) fn api(&self) -> &Api {
        self.control_plane.api()
    }

    /// Waits until every proxy serves what it is to serve.
    pub(crate) async fn until_in_sync(&self) {
        self.api().wait_in_sync(self.edge.len() + self.core.len()).await.unwrap();
    }

    /// Waits until the rollout of a revision in `edge` is in one of these states, which are separated by `|`.
    pub(crate) async fn until_rollout(&self, revision: u64, states: &str) -> Value {
        until_rollout(self.api(), &format!("{revision}-edge"), states).await
    }

    /// Waits until so many proxies of `edge` serve `revision`, and the others do not.
    pub(crate) async fn until_serving(&self, revision: u64, count: usize) {
        let mut serving = Vec::new();
        let found = eventually(DEADLINE, async || {
            serving = self.serving(revision).await;
            serving.len() == count
        });
        assert!(found.await, "{count} proxies were to serve {revision}, but it is {serving:?}");
    }

    /// The proxies of `edge` that serve `revision`.
    pub(crate) async fn serving(&self, revision: u64) -> Vec<String> {
        let proxies = self.api().proxies().await.unwrap_or_default();
        let serves = |proxy: &&Value| proxy["fleet"] == "edge" && proxy["revision"]["applied"] == revision;
        let id = |proxy: &Value| proxy["id"].as_str().unwrap_or_default().to_owned();
        proxies.iter().filter(serves).map(id).collect()
    }

    /// Gives a command about the rollout of a revision in `edge`.
    pub(crate) async fn command(&self, revision: u64, action: &str) -> ApiAnswer {
        command(self.api(), &format!("{revision}-edge"), action).await
    }

    /// Gives the whole fleet a revision that nothing uses.
    pub(crate) async fn promote(&self, revision: u64) {
        self.until_rollout(revision, "running").await;
        for _ in 0..4 {
            self.command(revision, "promote").await.success().unwrap();
        }
        self.until_rollout(revision, "succeeded").await;
    }

    /// Requests for `path`, to each proxy of a fleet about twenty times a second.
    pub(crate) async fn load(&self, proxies: &[Proxy], path: &'static str) -> Load {
        let addresses: Vec<SocketAddr> = proxies.iter().map(Proxy::http).collect();
        let connections = addresses.len();
        Load::on(addresses)
            .connections(connections)
            .pace(Duration::from_millis(50))
            .request(move |_| request(path))
            .check(|answer| match answer.status.as_u16() {
                200..400 => Ok(()),
                status => Err(status.to_string()),
            })
            .start()
            .await
            .unwrap()
    }

    /// The answers of all proxies of `edge` to `path`.
    pub(crate) async fn bodies(&self, path: &str) -> Vec<String> {
        let mut bodies = Vec::new();
        for proxy in &self.edge {
            bodies.push(get(proxy.http(), "a", path).await.unwrap().text());
        }
        bodies
    }
}

pub(crate) async fn until_rollout(api: &Api, id: &str, states: &str) -> Value {
    let mut last = Value::Null;
    let found = eventually(DEADLINE, async || {
        last = api.get(&format!("/rollouts/{id}")).await.unwrap_or_default();
        last["state"].as_str().is_some_and(|state| states.split('|').any(|one| one == state))
    });
    assert!(found.await, "rollout {id} was to be {states}, but is {last:#}");
    last
}

pub(crate) async fn command(api: &Api, id: &str, action: &str) -> ApiAnswer {
    let body = json!({"reason": "a test wants it"});
    api.call(Method::POST, &format!("/rollouts/{id}/{action}"), Some(&body)).await.unwrap()
}

/// A route of `/shop` to an upstream.
pub(crate) fn shop(upstream: &str) -> Value {
    json!({"match": {"paths": [{"prefix": "/shop"}]}, "forward": {"upstreams": [{"name": upstream}]}})
}

fn request(path: &str) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    http::Request::get(path).header("host", "a").body(http_body_util::Full::default()).unwrap()
}
