//! The admin UI in a real browser, on a real system: two control planes on one PostgreSQL, three proxies, traffic.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use signalbox_tests::control_plane::ADMIN_TOKEN;
use signalbox_tests::{Backend, ControlPlane, Daemon, Load, Postgres, Proxy};

/// For `npm ci`, and for all tests in the browser.
const DEADLINE: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_admin_ui_works_in_a_browser() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
    let ui = directory.join("../../admin-ui/dist/index.html");
    assert!(
        ui.is_file(),
        "the admin UI is not built: run `make ui` and `cargo build --bins` first, as `make test` does"
    );
    install(&directory);

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

    let mut npm = npm(&directory, &["test", "--silent"]);
    npm.env("SIGNALBOX_URL", one.admin_url()).env("SIGNALBOX_TOKEN", ADMIN_TOKEN);
    if let Some(browser) = browser() {
        npm.env("CHROMIUM", browser);
    }
    let mut tests = Daemon::spawn("the tests in the browser", &npm, &one.dir().join("browser.log")).unwrap();
    let status = tests.wait_exit(DEADLINE).unwrap();
    assert!(status.success(), "{}", tests.log());
    load.finish().assert_flawless(100);
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
