//! The programs and their process: arguments, the environment, limits.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::authority::{Authority, PemFiles, Until};
use signalbox_tests::{ControlPlane, Daemon, Proxy, eventually, find_program, program, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a command that is to fail at its start, in a directory of its own; what it says on standard error.
fn failure(mut command: Command) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = std::fs::File::create(dir.path().join("err")).unwrap();
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(out);
    let mut child = command.spawn().unwrap();
    let mut status = None;
    let ended = wait_until(DEADLINE, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let _ = child.kill();
    let said = std::fs::read_to_string(dir.path().join("err")).unwrap();
    ended.unwrap_or_else(|error| panic!("{error}: {said}"));
    let code = status.and_then(|status| status.code());
    assert!(matches!(code, Some(1 | 2)), "{status:?}: {said}");
    assert!(said.lines().any(|line| line.starts_with("error: ")), "{said}");
    assert!(!said.contains("panicked") && !said.contains("backtrace"), "{said}");
    said
}

fn command(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program(name).unwrap());
    command.args(arguments).env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    command
}

/// `command` with at most so many open files.
fn with_open_files(files: u32, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(find_program("prlimit").expect("prlimit of util-linux"));
    command.arg(format!("--nofile={files}:{files}")).arg(program(name).unwrap()).args(arguments);
    command
}

const PROGRAMS: [&str; 2] = ["signalbox-control-plane", "signalbox-proxy"];

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn empty_tokens_in_the_environment_are_as_if_absent() {
    let dir = tempfile::tempdir().unwrap();
    let port = signalbox_tests::free_port();
    let arguments = [
        format!("--admin-address=127.0.0.1:{port}"),
        "--xds-address=127.0.0.1:0".to_owned(),
        "--secrets-key=".to_owned(),
        "--proxy-token".to_owned(),
        String::new(),
    ];
    let mut command = command("signalbox-control-plane", &arguments.each_ref().map(String::as_str));
    command.env("SIGNALBOX_ADMIN_TOKEN", "").env("SIGNALBOX_XDS_TLS_CERT", " ").current_dir(dir.path());
    let daemon = Daemon::spawn("control-plane", &command, &dir.path().join("log")).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ready = format!("http://127.0.0.1:{port}/readyz");
    let is_ready = eventually(DEADLINE, async || {
        http.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success())
    });
    assert!(is_ready.await, "{}", daemon.log());
    // The first start makes both tokens, as it does when none is given.
    let log = daemon.log();
    let made: Vec<_> = log.lines().filter(|line| line.contains(" token: ")).collect();
    assert_eq!(made.len(), 2, "{log}");
    for path in ["session", "apply"] {
        let url = format!("http://127.0.0.1:{port}/api/v1/{path}");
        let answer =
            http.post(url).bearer_auth("").json(&serde_json::json!({"token": ""})).send().await.unwrap();
        assert!(answer.status().is_client_error(), "{path}: {}", answer.status());
    }
}

#[test]
fn flags_are_read_from_a_file_and_unknown_ones_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flags");
    for name in PROGRAMS {
        std::fs::write(&file, "log-level = warn\nno-such-flag = 1\n").unwrap();
        let said = failure(command(name, &["--flags-file", file.to_str().unwrap()]));
        assert!(said.contains("line 2") && said.contains("no-such-flag"), "{said}");
        std::fs::write(&file, "log-level = everything\n").unwrap();
        let mut from_environment = command(name, &[]);
        from_environment.env("SIGNALBOX_FLAGS_FILE", &file);
        let said = failure(from_environment);
        assert!(said.contains("everything") && said.contains("line 1"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_level_is_taken_from_flag_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flags");
    std::fs::write(&file, "log-level = \"error\" # nothing else\n").unwrap();
    let from_file = format!("--flags-file={}", file.display());
    let quiet = ControlPlane::builder().arg(from_file.as_str()).start().await.unwrap();
    assert_eq!(quiet.log(), "");
    let flag_wins = ControlPlane::builder().arg(from_file).arg("--log-level=debug").start().await.unwrap();
    assert!(flag_wins.log().contains("INFO"), "{}", flag_wins.log());
}

#[test]
fn with_too_few_open_files_no_program_starts() {
    for name in PROGRAMS {
        let said = failure(with_open_files(100, name, &[]));
        assert!(said.contains("limit on open files is 100; at least"), "{said}");
        assert!(said.contains("LimitNOFILE"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn with_few_open_files_programs_warn_with_the_number_to_set_and_serve() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str| limited_script(dir.path(), name, "prlimit --nofile=256:256");
    let control_plane = ControlPlane::builder().program(script(PROGRAMS[0])).start().await.unwrap();
    let log = control_plane.log();
    assert!(log.contains("WARN") && log.contains("256, which allows 192 proxies"), "{log}");
    assert!(log.contains("set it to 4160 or more"), "{log}");
    let proxy =
        Proxy::builder().control_plane(&control_plane).program(script(PROGRAMS[1])).start().await.unwrap();
    let log = proxy.log();
    // Two workers: 128 and 2 × 16 files for other things; a client's connection may need one to a target, and of 32 pairs of
    // files one is for a pipe.
    assert!(log.contains("256, which allows 47 client connections"), "{log}");
    let connections = 2 * 2048;
    assert!(
        log.contains(&format!("set it to {} or more", 160 + 2 * (connections + connections / 31))),
        "{log}"
    );
}

#[test]
fn with_too_little_address_space_no_program_starts_and_none_panics() {
    for name in PROGRAMS {
        let mut command = Command::new(find_program("prlimit").expect("prlimit of util-linux"));
        let bytes = 150_000_u64 << 10;
        command.arg(format!("--as={bytes}:{bytes}")).arg(program(name).unwrap());
        let said = failure(command);
        assert!(said.contains("limit on address space is 150000 KiB; at least"), "{said}");
    }
}

#[test]
fn contradictory_flags_refuse_the_start() {
    for (name, arguments, named) in [
        (PROGRAMS[1], &["--tls-ca=ca.pem"][..], "--tls-ca"),
        (PROGRAMS[1], &["--tls-cert=a.pem", "--tls-key=a.key", "--control-plane=http://a:1"], "--tls-cert"),
        (PROGRAMS[1], &["--control-plane=https://a:1"], "--tls-ca"),
        (PROGRAMS[1], &["--config=a.yaml", "--control-plane=http://a:1"], "--control-plane"),
        (PROGRAMS[0], &["--xds-tls-client-ca=ca.pem"], "--xds-tls-cert"),
        (PROGRAMS[0], &["--admin-tls-cert=a.pem"], "--admin-tls-key"),
    ] {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--admin-address=127.0.0.1:0"]).collect();
        let said = failure(command(name, &arguments));
        assert!(said.contains(named), "{arguments:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn check_health_ends_with_success_where_the_program_is_ready() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let proxy = Proxy::of(&control_plane, "p").await.unwrap();
    let port = control_plane.admin_url().rsplit_once(':').unwrap().1.to_owned();
    // As in an image, where the programs listen on all addresses.
    let running = [format!("0.0.0.0:{port}"), proxy.admin().to_string()];
    for (name, address) in PROGRAMS.into_iter().zip(running) {
        let check = || command(name, &["--check-health", &format!("--admin-address={address}")]);
        assert!(check().status().unwrap().success(), "{name} at {address}");
    }
    let nobody = format!("--admin-address=127.0.0.1:{}", signalbox_tests::free_port());
    for name in PROGRAMS {
        let said = failure(command(name, &["--check-health", &nobody]));
        assert!(said.contains("nothing answers"), "{said}");
    }
    drop(proxy);
    let mut unready = Proxy::builder().control_plane_url("http://127.0.0.1:9").prepare().unwrap();
    unready.start_unready().unwrap();
    let address = format!("--admin-address={}", unready.admin());
    let listens =
        eventually(DEADLINE, async || tokio::net::TcpStream::connect(unready.admin()).await.is_ok());
    assert!(listens.await, "{}", unready.log());
    let said = failure(command(PROGRAMS[1], &["--check-health", &address]));
    assert!(said.contains("not ready") && said.contains("no revision yet"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn check_health_works_where_the_admin_address_has_tls() {
    let (files, ca) = (PemFiles::new(), Authority::new("ca"));
    files.put("admin", &ca.issue(&Until::Year(2080)));
    let tls = [files.flag("admin-tls-cert", "admin.pem"), files.flag("admin-tls-key", "admin.key")];
    let [cert, key] = &tls;
    let mut control_plane = ControlPlane::builder().arg(cert).arg(key).prepare().unwrap();
    control_plane.start_unready().unwrap();
    let address = control_plane.admin_url().replace("http://", "--admin-address=");
    let ready = eventually(DEADLINE, async || {
        let mut check = command(PROGRAMS[0], &["--check-health", &address, cert, key]);
        check.stderr(Stdio::null()).status().unwrap().success()
    });
    assert!(ready.await, "{}", control_plane.log());
}

/// A program that runs `name` under `limits`.
fn limited_script(dir: &Path, name: &str, limits: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join(name);
    let text = format!("#!/bin/sh\nexec {limits} {} \"$@\"\n", program(name).unwrap().display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
