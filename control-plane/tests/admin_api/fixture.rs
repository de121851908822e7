//! The control plane under test, in this process, and calls to it.

use std::path::PathBuf;
use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};
use signalbox_control_plane::auth::{Credentials, TokenFlags, TokenText};
use signalbox_control_plane::board::{Board, Sharing};
use signalbox_control_plane::health_report::HealthReports;
use signalbox_control_plane::metrics::Metrics;
use signalbox_control_plane::publish::Publisher;
use signalbox_control_plane::rest::Services;
use signalbox_control_plane::rollout::Rollouts;
use signalbox_control_plane::serve::Site;
use signalbox_control_plane::spans::Spans;
use signalbox_control_plane::stats::Stats;
use signalbox_control_plane::store::{KeySource, Role, Store};
use signalbox_control_plane::webhook::Webhooks;
use signalbox_control_plane::xds::{Limits, Xds};
use signalbox_control_plane::{rest, serve, store};
use signalbox_plugin::Registry;
use signalbox_plugins::builtin;
use signalbox_tests::control_plane::send;
use signalbox_tests::{Api, ApiAnswer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A control plane in this process.
pub(crate) struct Admin {
    pub(crate) api: Api,
    pub(crate) url: String,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) board: Arc<Board>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) database: PathBuf,
    pub(crate) _dir: Arc<TempDir>,
}

pub(crate) const ADMIN: &str = "the-token-of-the-admin";

pub(crate) const EDITOR: &str = "the-token-of-an-editor";

pub(crate) const VIEWER: &str = "the-token-of-a-viewer";

pub(crate) const PROXY: &str = "the-token-of-the-proxies";

impl Drop for Admin {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Admin {
    pub(crate) async fn start() -> Self {
        Self::start_knowing(builtin()).await
    }

    /// Starts one that knows these plugin types.
    pub(crate) async fn start_knowing(types: &Registry) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("signalbox.db");
        let url = format!("sqlite://{}", database.display());
        let store = store::open(&url).await.unwrap();
        let store = store::seal(store, KeySource::Made(store::key_beside(&url).unwrap())).await.unwrap();
        Self::start_with(types, store, database, Arc::new(dir)).await
    }

    pub(crate) async fn start_on(store: Arc<dyn Store>, database: PathBuf, dir: Arc<TempDir>) -> Self {
        Self::start_with(builtin(), store, database, dir).await
    }

    async fn start_with(
        types: &Registry,
        store: Arc<dyn Store>,
        database: PathBuf,
        dir: Arc<TempDir>,
    ) -> Self {
        let metrics = Arc::new(Metrics::default());
        let flags = TokenFlags::default();
        let credentials = Credentials::load(Arc::clone(&store), Arc::clone(&metrics), flags).await.unwrap();
        for (name, role, text) in [
            ("admin", Role::Admin, ADMIN),
            ("editor", Role::Editor, EDITOR),
            ("viewer", Role::Viewer, VIEWER),
            ("proxy", Role::Proxy, PROXY),
        ] {
            credentials.create(name, role, &TokenText(text.to_owned())).await.unwrap();
        }
        let publisher = Publisher::start(Arc::clone(&store), Arc::clone(&metrics), types).await.unwrap();
        let board = Board::open(Arc::clone(&store), "here", Sharing::Alone).await.unwrap();
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (serves, tells) = (Arc::clone(&publisher), Arc::clone(&board));
        let rollouts = Rollouts::new(
            Arc::clone(&store),
            Arc::clone(&publisher),
            Arc::clone(&board),
            Arc::clone(&metrics),
        );
        let stats = Stats::new(Arc::clone(&store), Arc::clone(board.instance()), Sharing::Alone);
        let xds = Xds::new(
            serves,
            tells,
            Arc::clone(&credentials),
            Arc::clone(&rollouts),
            Arc::clone(&stats),
            Arc::clone(&metrics),
            Limits::default(),
        );
        let proxies = TcpListener::bind("127.0.0.1:0").await.unwrap();
        tokio::spawn(xds.serve(proxies, None, shutdown.clone()));
        let health = HealthReports::new(
            Arc::clone(&store),
            Arc::clone(&publisher),
            Arc::clone(&board),
            Arc::clone(&stats),
        );
        let webhooks = Webhooks::new(
            Arc::clone(&publisher),
            Arc::clone(&board),
            Arc::clone(&rollouts),
            Arc::clone(&health),
            "here".to_owned(),
            database.with_file_name("webhooks"),
            shutdown.clone(),
        );
        tokio::spawn(Arc::clone(&webhooks).run());
        let site = Site::default();
        let (router, feed) = rest::router(Services {
            publisher: Arc::clone(&publisher),
            store: Arc::clone(&store),
            credentials: Arc::clone(&credentials),
            board: Arc::clone(&board),
            rollouts: Arc::clone(&rollouts),
            stats: Arc::clone(&stats),
            health,
            webhooks,
            spans: Spans::new(None, "here").0,
            metrics,
            replica: "here".to_owned(),
            tls: false,
            profiling: false,
            shutdown: shutdown.clone(),
        });
        site.open(router);
        tokio::spawn(feed);
        tokio::spawn(Arc::clone(&publisher).follow(shutdown.clone()));
        tokio::spawn(credentials.follow(shutdown.clone()));
        tokio::spawn(Arc::clone(&board).run(shutdown.clone()));
        tokio::spawn(rollouts.run(shutdown.clone()));
        tokio::spawn(serve::serve(listener, None, site, shutdown.clone()));
        let api = Api::new(url.clone(), ADMIN).unwrap();
        Self { api, url, publisher, board, stats, store, shutdown, database, _dir: dir }
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> ApiAnswer {
        self.api.call(method, path, body.as_ref()).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> ApiAnswer {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> ApiAnswer {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> ApiAnswer {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> ApiAnswer {
        self.call(Method::DELETE, path, None).await
    }

    pub(crate) async fn with_header(
        &self,
        method: Method,
        path: &str,
        header: (&str, &str),
        body: Option<Value>,
    ) -> ApiAnswer {
        let mut request = self.api.request(method, path).header(header.0, header.1);
        if let Some(body) = body {
            request = request.json(&body);
        }
        send(request).await.unwrap()
    }

    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Vec<u8>>,
    ) -> ApiAnswer {
        let request = self.api.request(method, path).header("content-type", content_type).body(body.into());
        send(request).await.unwrap()
    }

    pub(crate) fn head(&self) -> u64 {
        self.publisher.current().snapshot.id().number
    }

    /// An upstream `u` and a route `r` to it: revisions 1 and 2.
    pub(crate) async fn with_route() -> Self {
        let admin = Self::start().await;
        expect(&admin.put("/upstreams/u", upstream()).await, 201);
        expect(&admin.put("/routes/r", route("u")).await, 201);
        admin
    }
}

pub(crate) fn upstream() -> Value {
    json!({"targets": [{"address": "10.0.0.1:80"}]})
}

pub(crate) fn route(upstream: &str) -> Value {
    json!({"match": {"hosts": ["a.example.com"]}, "forward": {"upstreams": [{"name": upstream}]}})
}

#[track_caller]
pub(crate) fn expect(answer: &ApiAnswer, status: u16) {
    assert_eq!(answer.status.as_u16(), status, "{answer}");
    if status >= 400 {
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer}");
        assert_eq!(answer.body["status"], status, "{answer}");
        assert!(!answer.body["detail"].as_str().unwrap_or_default().is_empty(), "{answer}");
    }
}

/// Logs in; the `Cookie` header of the session.
pub(crate) async fn log_in(admin: &Admin, token: &str) -> String {
    admin.api.log_in(token).await.unwrap()
}

#[track_caller]
pub(crate) fn expect_status(answer: &ApiAnswer, status: u16) {
    assert_eq!(answer.status.as_u16(), status, "{answer}");
}

/// A request without a token.
pub(crate) fn raw_request(method: &Method, url: &str) -> reqwest::RequestBuilder {
    reqwest::Client::new().request(method.clone(), url)
}

/// A certificate for `name`, which is good until a time given in years from 1970, and its key.
pub(crate) fn certificate(name: &str, until: i32) -> Value {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let made = params.self_signed(&key).unwrap();
    json!({"certificate": made.pem(), "private_key": key.serialize_pem()})
}
