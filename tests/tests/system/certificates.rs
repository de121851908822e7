//! A certificate's way from the admin API to a handshake, and who gets to see its key.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use signalbox_tests::{ControlPlane, Proxy, free_port, get};

/// A certificate that signs itself, and its key.
pub(crate) fn made(dir: &Path, name: &str) -> (String, String) {
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "30", "-subj", "/CN=test", "-addext", &format!("subjectAltName=DNS:{name}")])
        // As an authority's it would not do for a server, to some.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout".as_ref(), key.as_os_str(), "-out".as_ref(), certificate.as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    (std::fs::read_to_string(certificate).unwrap(), std::fs::read_to_string(key).unwrap())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_goes_from_the_api_to_a_handshake_and_its_key_to_nobody_else() {
    let mut control_plane = ControlPlane::sqlite().await.unwrap();
    let mut proxy = Proxy::of(&control_plane, "p").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = made(dir.path(), "a.example");
    let port = free_port();
    let document = json!({
        "listeners": [{"name": "https", "address": format!("127.0.0.1:{port}"), "protocol": "https"}],
        "certificates": [{"name": "a", "certificate": certificate, "private_key": key}],
        "routes": [{"name": "hello", "respond": {"body": "hello"}}],
    });
    let api = control_plane.api();
    let revision = api.apply(&document).await.unwrap();
    api.wait_default(revision).await.unwrap();

    let trusted = dir.path().join("cert.pem");
    let ask = || {
        let output = Command::new("curl")
            .args(["-sS", "--cacert"])
            .arg(&trusted)
            .args([
                "--resolve",
                &format!("a.example:{port}:127.0.0.1"),
                &format!("https://a.example:{port}/"),
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    assert_eq!(ask(), "hello");
    let (renewed, renewed_key) = made(dir.path(), "a.example");
    let spec = json!({"certificate": renewed, "private_key": renewed_key});
    let revision = api.put("certificates", "a", &spec).await.unwrap();
    api.wait_default(revision).await.unwrap();
    assert_eq!(ask(), "hello", "only the new one is trusted now");

    let line = renewed_key.lines().nth(1).unwrap();
    let told = get(proxy.admin(), "a", "/config").await.unwrap().text();
    assert!(told.contains("<redacted>") && !told.contains(line), "{told}");
    assert!(!proxy.log().contains(line) && !control_plane.log().contains(line));
    for file in files(control_plane.dir()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(line.len()).any(|it| it == line.as_bytes()), "{}", file.display());
    }
    // A proxy needs it to start without a control plane, and keeps it for itself.
    for file in proxy.wait_kept(line).await.unwrap() {
        // One that is being replaced may be gone.
        let Ok(metadata) = std::fs::metadata(&file) else { continue };
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    control_plane.stop().unwrap();
    proxy.kill9();
    proxy.start().await.unwrap();
    assert_eq!(ask(), "hello");
}
