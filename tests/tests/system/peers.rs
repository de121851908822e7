//! Clients that nobody here wrote: curl and h2load, in the clear and through TLS, to an nginx.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use signalbox_tests::{Nginx, Proxy, free_port};

use crate::certificates::made;
use crate::fixture::Gateway;

/// The output of a program, which has to succeed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn curl_and_h2load_are_served_by_what_is_behind() {
    let gateway = Gateway::start(0).await;
    let https = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let builder = Proxy::builder().control_plane(&gateway.control_plane).node_id("p");
    let proxy = builder.listener("https", https).start().await.unwrap();
    let nginx = Nginx::start("from nginx").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = made(dir.path(), "a.example");
    let document = json!({
        // h2load asks for no name.
        "listeners": [{
            "name": "https", "address": "127.0.0.1:8443", "protocol": "https", "tls": {"default_certificate": "a"},
        }],
        "certificates": [{"name": "a", "certificate": certificate, "private_key": key}],
        "upstreams": [{"name": "nginx", "targets": [{"address": nginx.address().to_string()}]}],
        "routes": [{
            "name": "all", "match": {"hosts": ["a.example"]}, "forward": {"upstreams": [{"name": "nginx"}]},
        }],
    });
    let api = gateway.control_plane.api();
    let revision = api.apply(&document).await.unwrap();
    api.wait_default(revision).await.unwrap();

    let trusted = dir.path().join("cert.pem");
    let trusted = trusted.to_str().unwrap();
    let (clear, secure) = (proxy.http().port(), https.port());
    let urls = [format!("http://a.example:{clear}/x"), format!("https://a.example:{secure}/x")];
    for (url, port, http2) in [(&urls[0], clear, "--http2-prior-knowledge"), (&urls[1], secure, "--http2")] {
        let resolve = format!("a.example:{port}:127.0.0.1");
        for (version, expected) in [("--http1.1", "1.1"), (http2, "2")] {
            let got = run(
                "curl",
                &["-sS", "--cacert", trusted, "--resolve", &resolve, version, "-w", " %{http_version}", url],
            );
            assert_eq!(got, format!("from nginx {expected}"), "{url} {version}");
            if version != "--http1.1" {
                // This nginx answers before it has the body; then the stream is reset, which old curls take for a failure.
                continue;
            }
            let (data, expect) = (format!("@{trusted}"), "Expect: 100-continue");
            let mut arguments = vec!["-sS", "--cacert", trusted, "--resolve", &resolve, version];
            arguments.extend(["-H", expect, "--data-binary", &data, url]);
            let got = run("curl", &arguments);
            assert_eq!(got, "from nginx", "{url} {version}");
        }
    }
    let urls = [format!("http://127.0.0.1:{clear}/x"), format!("https://127.0.0.1:{secure}/x")];
    for (url, http1) in [(&urls[0], true), (&urls[0], false), (&urls[1], true), (&urls[1], false)] {
        let mut arguments = vec!["-n", "5000", "-c", "20", "-m", "10", "-H", ":authority: a.example"];
        if http1 {
            arguments.push("--h1");
        }
        arguments.push(url);
        let got = run("h2load", &arguments);
        assert!(got.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"), "{url} {http1}: {got}");
        assert!(got.contains("status codes: 5000 2xx"), "{url} {http1}: {got}");
    }
}
