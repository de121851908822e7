//! Proxies as far as a plugin that limits sees them: each has its own states, and so its own connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use serde_json::{Value, json};
use signalbox_config::{Name, PluginCatalog as _};
use signalbox_plugin::testing::{Client, Services};
use signalbox_plugin::{Flow, Origin, Outcomes, Plugin, Reply, States, host};
use signalbox_plugins::builtin;

/// A proxy with one plugin.
#[derive(Clone)]
pub(crate) struct Proxy {
    plugin: Arc<dyn Plugin>,
    epoch: Instant,
    _states: Arc<States>,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// 200: it would be forwarded.
    pub(crate) status: u16,
    /// The headers of the response.
    pub(crate) headers: HeaderMap,
}

impl Proxy {
    /// With `rate-limit` of this configuration.
    pub(crate) fn new(config: &Value) -> Self {
        Self::with("rate-limit", config)
    }

    /// With a plugin of this type and configuration.
    pub(crate) fn with(type_name: &str, config: &Value) -> Self {
        assert_eq!(builtin().check(type_name, config), [], "{config}");
        let (name, states): (Name, _) = ("limit".parse().unwrap(), States::default());
        let services = Services::default();
        let plugin_type = builtin().find(type_name).unwrap();
        let context = services.context(&name, &states);
        let plugin = plugin_type.build(config.to_string().as_bytes(), &context).unwrap();
        Self { plugin, epoch: Instant::now(), _states: Arc::new(states) }
    }

    /// So many proxies.
    pub(crate) fn fleet(size: usize, config: &Value) -> Vec<Self> {
        (0..size).map(|_| Self::new(config)).collect()
    }

    /// A request from this address.
    pub(crate) async fn request_of(&self, client: &str) -> End {
        self.exchange_of(client, None).await
    }

    /// A request, and its response with this body if it is forwarded.
    pub(crate) async fn exchange(&self, body: &'static str) -> End {
        self.exchange_of("192.0.2.1", Some(body)).await
    }

    async fn exchange_of(&self, client: &str, body: Option<&'static str>) -> End {
        let mut client = Client::new("GET", "/").from(client).at(self.epoch.elapsed());
        let outcomes = Outcomes::new(&[], 1);
        let mut request = client.request();
        host::enter(&mut request, &*self.plugin, &outcomes);
        let flow = match self.plugin.on_request(&mut request) {
            Flow::Wait(future) => future.await,
            Flow::Continue => Flow::Continue,
            Flow::Respond(reply) => Flow::Respond(reply),
        };
        let mut headers = HeaderMap::new();
        let status = match flow {
            Flow::Continue => 200,
            Flow::Respond(reply) => match *reply {
                Reply::Problem { status, headers: own, .. } => {
                    headers = own;
                    status.as_u16()
                }
                Reply::Response(_) => panic!("not a problem"),
            },
            Flow::Wait(_) => panic!("it waits twice"),
        };
        client.exchange.write_response_headers(&mut headers);
        if let Some(body) = body.filter(|_| status == 200) {
            let response = Response::builder().header("content-type", "application/json");
            let response = response.body(Bytes::from_static(body.as_bytes())).unwrap();
            let received = client.receives(&*self.plugin, Origin::Upstream, response);
            assert_eq!(received.body(), body);
        }
        End { status, headers }
    }

    pub(crate) async fn request(&self) -> End {
        self.request_of("192.0.2.1").await
    }

    pub(crate) async fn status(&self) -> u16 {
        self.request().await.status
    }

    /// Sends a request; true if it passes without waiting.
    pub(crate) fn decides_alone(&self) -> bool {
        futures_util::FutureExt::now_or_never(self.status()) == Some(200)
    }
}

/// Runs `test` as a worker does: on one thread, with futures that need not be `Send`.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(test));
}

/// `limit` requests in `window` of each address, with these fields.
#[expect(clippy::needless_pass_by_value, reason = "configurations are written in place")]
pub(crate) fn config(limit: u32, window: &str, redis: Value, fields: Value) -> Value {
    let mut config = json!({
        "limit": limit, "window": window, "by": "ip", "store": "redis", "redis": redis, "on_store_error": "deny",
    });
    // Machines that run tests are slow.
    if config["redis"]["timeout"].is_null() {
        config["redis"]["timeout"] = json!("5s");
    }
    if let (Some(config), Value::Object(fields)) = (config.as_object_mut(), fields) {
        config.extend(fields);
    }
    config
}

/// So many requests at once, spread over the proxies; the number that passed.
pub(crate) async fn at_once(proxies: &[Proxy], requests: usize) -> usize {
    let all = (0..requests).map(|number| proxies[number % proxies.len()].status());
    let statuses = futures_util::future::join_all(all).await;
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    statuses.into_iter().filter(|status| *status == 200).count()
}

/// Asks until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < end, "{what} did not come to pass");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap()
}
