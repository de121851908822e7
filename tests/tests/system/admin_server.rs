//! The admin server of a proxy: who may use it, and where it is.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::{Client, Method};
use signalbox_tests::{ControlPlane, Daemon, Proxy, eventually, free_port, program};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const TOKEN: &str = "the-token-of-the-admin-server";
const NEXT: &str = "the-next-token-of-the-admin-server";
const DEADLINE: Duration = Duration::from_secs(30);

async fn status(proxy: &Proxy, method: Method, path: &str, token: Option<&str>) -> u16 {
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
    let mut request = client.request(method, format!("http://{}{path}", proxy.admin()));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn with_a_token_everything_but_health_and_metrics_needs_it() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let mut proxy = Proxy::builder()
        .control_plane(&control_plane)
        .arg(format!("--admin-token={TOKEN},{NEXT}"))
        .start()
        .await
        .unwrap();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(status(&proxy, Method::GET, path, None).await, 200, "{path}");
    }
    for path in ["/config", "/revision", "/debug/upstreams", "/drain"] {
        for wrong in [None, Some("another-token-of-16")] {
            assert_eq!(status(&proxy, Method::GET, path, wrong).await, 401, "{path}");
        }
        for right in [TOKEN, NEXT] {
            assert_eq!(status(&proxy, Method::GET, path, Some(right)).await, 200, "{path}");
        }
    }
    for path in ["/drain", "/revision/retry"] {
        assert_eq!(status(&proxy, Method::POST, path, None).await, 401, "{path}");
    }
    assert_eq!(status(&proxy, Method::GET, "/readyz", None).await, 200, "it does not drain");
    assert!(!proxy.log().contains(TOKEN));
    assert_eq!(status(&proxy, Method::POST, "/drain", Some(TOKEN)).await, 202);
    assert_eq!(proxy.wait_exit(DEADLINE).unwrap(), Some(0));

    let guarded = Proxy::builder().control_plane(&control_plane).arg("--guard-metrics");
    let guarded = guarded.arg(format!("--admin-token={TOKEN}")).start().await.unwrap();
    assert_eq!(status(&guarded, Method::GET, "/metrics", None).await, 401);
    assert_eq!(status(&guarded, Method::GET, "/metrics", Some(TOKEN)).await, 200);
}

/// Sends a request to a Unix socket; the response as text.
async fn ask(socket: &Path, request: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_admin_server_can_have_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, config) = (dir.path().join("admin.sock"), dir.path().join("config.yaml"));
    let listener = format!("listeners: [{{name: http, address: '127.0.0.1:{}'}}]\n", free_port());
    std::fs::write(&config, listener).unwrap();
    let address = format!("--admin-address=unix:{}", socket.display());
    let start = || {
        let mut command = Command::new(program("signalbox-proxy").unwrap());
        command.arg(&address).arg("--config").arg(&config).args(["--access-log=off", "--workers=1"]);
        Daemon::spawn("signalbox-proxy", &command, &dir.path().join("log")).unwrap()
    };
    let is_ready =
        async || ask(&socket, "GET /readyz").await.is_ok_and(|said| said.starts_with("HTTP/1.1 200"));
    // The second one finds the socket that the first has left.
    for _ in 0..2 {
        let mut daemon = start();
        assert!(eventually(DEADLINE, is_ready).await, "{}", daemon.log());
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let mut check = Command::new(program("signalbox-proxy").unwrap());
        assert!(check.arg("--check-health").arg(&address).status().unwrap().success());
        assert!(ask(&socket, "GET /config").await.unwrap().contains("\"listeners\""));
        daemon.kill9();
    }
    let daemon = start();
    assert!(eventually(DEADLINE, is_ready).await, "{}", daemon.log());
    assert!(ask(&socket, "POST /drain").await.unwrap().starts_with("HTTP/1.1 202"));
}
