//! Which control plane a proxy has its stream to: one that says nothing is left for one that answers.

use std::io::Read as _;
use std::net::TcpListener;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use signalbox_tests::{ControlPlane, Postgres, Proxy, eventually};

use crate::authority::{Authority, PemFiles};
use crate::fixture::respond;

const DEADLINE: Duration = Duration::from_secs(60);

/// A listener that accepts connections, reads, and never says a word. Its address.
fn silent() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {});
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn control_planes_that_accept_and_say_nothing_are_named_and_the_next_one_is_tried() {
    let files = PemFiles::new();
    files.write("ca.pem", &Authority::new("ca").pem());
    let silent = [format!("http://{}", silent()), format!("https://{}", silent())];
    let mut control_plane = ControlPlane::builder().prepare().unwrap();
    let mut proxy = Proxy::builder()
        .control_plane_url(silent[0].clone())
        .control_plane_url(silent[1].clone())
        .control_plane(&control_plane)
        .arg(files.flag("tls-ca", "ca.pem"))
        .prepare()
        .unwrap();
    proxy.start_unready().unwrap();
    // Until the real one is there, each of the others gets its turn.
    for (url, reason) in
        [(&silent[0], "but does not answer"), (&silent[1], "does not answer the TLS handshake")]
    {
        let said = eventually(DEADLINE, async || {
            let log = proxy.log();
            log.lines().any(|line| {
                line.contains("WARN")
                    && line.contains(url)
                    && line.contains("no answer within 5 s")
                    && line.contains(reason)
            })
        });
        assert!(said.await, "{url}: {}", proxy.log());
    }
    control_plane.start().await.unwrap();
    proxy.wait_ready().await.unwrap();
    // The next time as well: what has failed lately comes last.
    control_plane.kill9();
    control_plane.start().await.unwrap();
    let revision = control_plane.api().put("routes", "r", &respond("/r", "r")).await.unwrap();
    let served = eventually(DEADLINE, async || {
        let served = proxy.revision().await.unwrap();
        served["serving"]["revision"] == revision && served["connected"] == true
    });
    assert!(served.await, "{}", proxy.log());
}

fn signal(control_plane: &ControlPlane, signal: Signal) {
    let pid = i32::try_from(control_plane.pid().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Waits until `control_plane` says that the proxy has its stream to it.
async fn until_connected_to(control_plane: &ControlPlane, replica: &str, proxy: &Proxy) {
    let here = |shown: &serde_json::Value| shown["connected"] == true && shown["connected_to"] == replica;
    control_plane
        .api()
        .wait_proxy("p", replica, here)
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", proxy.log()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_paused_control_plane_is_left_and_one_that_is_back_is_found_again() {
    let postgres = Postgres::new().unwrap();
    let start = async |name: &str| {
        let builder = ControlPlane::builder().database(postgres.url()).arg(format!("--replica-name={name}"));
        builder.start().await.unwrap()
    };
    let (mut first, second) = (start("first").await, start("second").await);
    let mut proxy =
        Proxy::builder().control_plane(&first).control_plane(&second).node_id("p").prepare().unwrap();

    // Both are listed, and only one answers: whichever is tried first, the other one is found.
    signal(&second, Signal::STOP);
    proxy.start().await.unwrap();
    until_connected_to(&first, "first", &proxy).await;
    // It goes away, and what is left does not answer.
    first.kill9();
    let url = second.xds_url();
    let said = eventually(DEADLINE, async || {
        proxy.log().lines().any(|line| line.contains(&url) && line.contains("no answer within 5 s"))
    });
    assert!(said.await, "{}", proxy.log());
    first.start().await.unwrap();
    until_connected_to(&first, "first", &proxy).await;
    // A stream that is open ends when its control plane stands still.
    signal(&second, Signal::CONT);
    signal(&first, Signal::STOP);
    until_connected_to(&second, "second", &proxy).await;
    let revision = second.api().put("routes", "r", &respond("/r", "r")).await.unwrap();
    let served =
        eventually(DEADLINE, async || proxy.revision().await.unwrap()["serving"]["revision"] == revision);
    assert!(served.await, "{}", proxy.log());
    signal(&first, Signal::CONT);
}
