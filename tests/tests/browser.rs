//! The admin UI in a real browser, on real systems: two control planes on one PostgreSQL, three proxies, traffic;
//! one control plane with a fleet of scripted proxies; and one with a fleet that gets revisions step by step. And the login of a user at
//! a real provider of identities, through a proxy.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use serde_json::json;
use signalbox_proto::envoy::config::core::v3::Node;
use signalbox_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use signalbox_proto::google::protobuf::Any;
use signalbox_proto::google::rpc;
use signalbox_proto::signalbox::config::v1::{Rejection, ResourceError};
use signalbox_proto::{MARKER_NAME, RESOURCE_TYPE_URL};
use signalbox_tests::control_plane::{ADMIN_TOKEN, PROXY_TOKEN};
use signalbox_tests::{Backend, ControlPlane, Daemon, Load, Postgres, Proxy};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// For `npm ci`, and for all tests in the browser.
const DEADLINE: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_admin_ui_works_in_a_browser() {
    let directory = prepare();
    let postgres = Postgres::new().unwrap();
    let one = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let two = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let mut proxies = Vec::new();
    for (id, control_plane) in [("proxy-1", &one), ("proxy-2", &one), ("proxy-3", &two)] {
        proxies.push(Proxy::of(control_plane, id).await.unwrap());
    }
    let backend = Backend::echo("backend").unwrap();
    let document = json!({
        "upstreams": [{"name": "traffic", "targets": [{"address": backend.address().to_string()}]}],
        "routes": [{
            "name": "traffic",
            "match": {"hosts": ["example.com"]},
            "priority": 1000,
            "forward": {"upstreams": [{"name": "traffic"}]},
        }],
    });
    let revision = one.api().apply(&document).await.unwrap();
    one.api().wait_default(revision).await.unwrap();
    one.api().wait_in_sync(3).await.unwrap();
    let load = Load::on(proxies.iter().map(Proxy::http))
        .connections(3)
        .pace(Duration::from_millis(50))
        .start()
        .await
        .unwrap();

    run(&directory, "test", &one);
    load.finish().assert_flawless(100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_admin_ui_shows_and_drives_a_rollout() {
    let directory = prepare();
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let mut proxies = Vec::new();
    for id in ["edge-1", "edge-2", "edge-3"] {
        let proxy = Proxy::builder().control_plane(&control_plane).node_id(id).fleet("edge");
        proxies.push(proxy.start().await.unwrap());
    }
    control_plane.api().wait_in_sync(proxies.len()).await.unwrap();
    run(&directory, "test:rollout", &control_plane);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_user_logs_in_at_a_provider_by_a_browser() {
    let directory = prepare();
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let proxy = Proxy::of(&control_plane, "edge").await.unwrap();
    control_plane.api().wait_in_sync(1).await.unwrap();
    let address = proxy.url("");
    run_with(&directory, "test:login", &control_plane, &[("SIGNALBOX_PROXY", &address)]);
}

/// How many proxies the large fleet has.
const MANY: usize = 300;

/// No more than a control plane allows.
const STREAMS_OF_A_CONNECTION: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_admin_ui_stays_readable_when_a_large_fleet_rejects_a_revision() {
    let directory = prepare();
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let mut fleet = JoinSet::new();
    for first in (0..MANY).step_by(STREAMS_OF_A_CONNECTION) {
        let channel = Endpoint::from_shared(control_plane.xds_url()).unwrap().connect().await.unwrap();
        for number in first..(first + STREAMS_OF_A_CONNECTION).min(MANY) {
            fleet.spawn(reject_taken(channel.clone(), number));
        }
    }
    control_plane.api().wait_in_sync(MANY).await.unwrap();
    run(&directory, "test:many", &control_plane);
    let ended = fleet.try_join_next();
    assert!(ended.is_none(), "a stream ended early: {ended:?}");
}

/// A proxy without a data path. It rejects every revision that has a listener whose name begins with `taken`, each proxy
/// in its own words.
async fn reject_taken(channel: Channel, number: usize) -> Result<()> {
    let (requests, outbound) = mpsc::channel(4);
    let first = DeltaDiscoveryRequest {
        node: Some(Node { id: format!("proxy-{number}"), ..Node::default() }),
        type_url: RESOURCE_TYPE_URL.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await?;
    let mut request = Request::new(ReceiverStream::new(outbound));
    let token = format!("Bearer {PROXY_TOKEN}").parse()?;
    request.metadata_mut().insert("authorization", token);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
    let mut taken: Option<String> = None;
    while let Some(response) = responses.message().await? {
        let put = response.resources.iter().find_map(|resource| resource.name.strip_prefix("listener/taken"));
        if let Some(rest) = put {
            taken = Some(format!("taken{rest}"));
        }
        if response.removed_resources.iter().any(|name| name.starts_with("listener/taken")) {
            taken = None;
        }
        let Some(marker) = response.resources.iter().find(|resource| resource.name == MARKER_NAME) else {
            continue;
        };
        let revision =
            marker.version.rsplit(':').nth(1).context("a marker's version has a number")?.parse()?;
        let answer = DeltaDiscoveryRequest {
            type_url: RESOURCE_TYPE_URL.to_owned(),
            response_nonce: response.nonce,
            error_detail: taken.as_ref().map(|name| rejection(name, number, revision)),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(answer).await?;
    }
    bail!("the control plane ended the stream");
}

fn rejection(listener: &str, number: usize, revision: u64) -> rpc::Status {
    let message = format!("cannot listen on 10.0.{}.{}:443: permission denied", number / 250, number % 250);
    let error = ResourceError {
        kind: "listener".to_owned(),
        name: listener.to_owned(),
        field: "address".to_owned(),
        message: message.clone(),
    };
    let rejection = Rejection { revision, errors: vec![error], drift: false };
    let detail = Any {
        type_url: "type.googleapis.com/signalbox.config.v1.Rejection".to_owned(),
        value: rejection.encode_to_vec().into(),
    };
    rpc::Status { code: 3, message, details: vec![detail] }
}

/// The directory of the tests, with all that they need.
fn prepare() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
    let ui = directory.join("../../admin-ui/dist/index.html");
    assert!(
        ui.is_file(),
        "the admin UI is not built: run `make ui` and `cargo build --bins` first, as `make test` does"
    );
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| install(&directory));
    directory
}

/// Runs a script of the tests' package against a control plane.
fn run(directory: &Path, script: &str, control_plane: &ControlPlane) {
    run_with(directory, script, control_plane, &[]);
}

/// The same with further variables of the environment.
fn run_with(directory: &Path, script: &str, control_plane: &ControlPlane, variables: &[(&str, &str)]) {
    let mut npm = npm(directory, &["run", "--silent", script]);
    npm.env("SIGNALBOX_URL", control_plane.admin_url()).env("SIGNALBOX_TOKEN", ADMIN_TOKEN);
    npm.envs(variables.iter().copied());
    if let Some(browser) = browser() {
        npm.env("CHROMIUM", browser);
    }
    let log = control_plane.dir().join("browser.log");
    let mut tests = Daemon::spawn("the tests in the browser", &npm, &log).expect("npm can be started");
    let status = tests.wait_exit(DEADLINE).expect("the tests take too long");
    assert!(status.success(), "{}", tests.log());
}

/// Brings what the tests need, unless it is there already.
fn install(directory: &Path) {
    let modified = |file: &str| directory.join(file).metadata().and_then(|data| data.modified()).ok();
    if modified("node_modules/.package-lock.json") >= modified("package-lock.json") {
        return;
    }
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("npm-ci.log");
    let mut npm = Daemon::spawn("npm ci", &npm(directory, &["ci", "--no-audit", "--no-fund"]), &log)
        .expect("Node.js is not installed. On Debian and Ubuntu: apt-get install nodejs npm");
    let status = npm.wait_exit(DEADLINE).expect("npm ci takes too long");
    assert!(status.success(), "npm ci failed: {}", npm.log());
}

fn npm(directory: &Path, arguments: &[&str]) -> Command {
    let mut npm = Command::new("npm");
    npm.args(arguments).current_dir(directory);
    npm
}

/// Distributions have it under several names.
fn browser() -> Option<PathBuf> {
    ["chromium", "chromium-browser", "google-chrome"]
        .iter()
        .find_map(|name| signalbox_tests::process::find_program(name))
}
