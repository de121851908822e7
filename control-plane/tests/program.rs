//! The program itself: what it prints and makes at its starts, and how it ends.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;
use signalbox_tests::control_plane::EventsAs;
use signalbox_tests::{Api, Daemon, eventually, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const PROGRAM: &str = env!("CARGO_BIN_EXE_signalbox-control-plane");

struct Program {
    daemon: Daemon,
    url: String,
}

impl Program {
    async fn start(dir: &Path, log: &str, arguments: &[&str]) -> Self {
        Self::start_by(Command::new(PROGRAM), dir, log, arguments).await
    }

    /// Whatever it makes is for everybody that `umask` lets.
    async fn start_with_umask(dir: &Path, log: &str, umask: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\""), PROGRAM]);
        Self::start_by(command, dir, log, &[]).await
    }

    async fn start_by(mut command: Command, dir: &Path, log: &str, arguments: &[&str]) -> Self {
        let (admin, xds) = (free_port(), free_port());
        command
            .arg(format!("--database-url=sqlite://{}/signalbox.db", dir.display()))
            .arg(format!("--admin-address=127.0.0.1:{admin}"))
            .arg(format!("--xds-address=127.0.0.1:{xds}"))
            .args(arguments);
        let daemon = Daemon::spawn("signalbox-control-plane", &command, &dir.join(log)).unwrap();
        let program = Self { daemon, url: format!("http://127.0.0.1:{admin}") };
        let ready = format!("{}/readyz", program.url);
        let is_ready = eventually(Duration::from_secs(30), async || {
            reqwest::get(&ready).await.is_ok_and(|answer| answer.status() == 200)
        });
        assert!(is_ready.await, "{}", program.daemon.log());
        program
    }

    /// The text of a token that was printed.
    fn printed(&self, name: &str) -> Option<String> {
        let prefix = format!("{name} token: ");
        self.daemon.log().lines().find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
    }

    fn api(&self, token: &str) -> Api {
        Api::new(self.url.clone(), token).unwrap()
    }

    fn stop(mut self) {
        self.daemon.terminate();
        let status = self.daemon.wait_exit(Duration::from_secs(15)).unwrap();
        assert!(status.success(), "{status}\n{}", self.daemon.log());
    }
}

#[tokio::test]
async fn the_first_start_makes_tokens_and_a_listener_and_later_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = Program::start(dir.path(), "first", &[]).await;
    let (admin, proxy) = (first.printed("admin").unwrap(), first.printed("proxy").unwrap());
    let api = first.api(&admin);
    let revision = api.get("/revisions/1").await.unwrap();
    assert_eq!((&revision["author"], &revision["changes"][0]["name"]), (&json!("signalbox"), &json!("http")));
    assert_eq!(api.get("/listeners/http").await.unwrap()["address"], "0.0.0.0:8080");
    assert_eq!(first.api(&proxy).call(Method::GET, "/routes", None).await.unwrap().status, 403);
    // A stream that is open does not hold up the end.
    let events = api.request(Method::GET, "/events").send().await.unwrap();
    first.stop();
    drop(events);

    let second = Program::start(dir.path(), "second", &[]).await;
    assert_eq!(second.printed("admin"), None);
    let api = second.api(&admin);
    assert_eq!(api.head().await.unwrap(), 1, "no second listener was made");
    api.delete("listeners", "http").await.unwrap();
    second.stop();

    // A token that is given by hand is valid beside the one that was made.
    let third = Program::start(dir.path(), "third", &["--admin-token=configured-for-the-third"]).await;
    assert_eq!(third.printed("proxy"), None);
    let api = third.api("configured-for-the-third");
    assert_eq!(api.get("/listeners").await.unwrap()["items"], json!([]), "what was deleted stays deleted");
    assert_eq!(third.api(&admin).call(Method::GET, "/routes", None).await.unwrap().status, 200);
    let log = third.daemon.log();
    assert!(log.contains("a stored token of this name is valid beside those that are given"), "{log}");
    assert!(!log.contains("configured-for-the-third") && !log.contains(&proxy), "{log}");
    // A stored token that has the name of a given one is another, and can be deleted.
    api.call(Method::DELETE, "/tokens/admin", None).await.unwrap().success().unwrap();
    assert_eq!(third.api(&admin).call(Method::GET, "/routes", None).await.unwrap().status, 401);
    third.stop();
}

#[tokio::test]
async fn a_token_that_is_given_holds_as_long_as_it_is_given_and_is_not_stored() {
    let (admin, second_admin, proxy) = ("given-admin-token-1", "given-admin-token-2", "given-proxy-token-1");
    let dir = tempfile::tempdir().unwrap();
    let both = format!("--admin-token={admin},{second_admin}");
    let first = Program::start(dir.path(), "first", &[&both, &format!("--proxy-token={proxy}")]).await;
    assert_eq!((first.printed("admin"), first.printed("proxy")), (None, None));
    let api = first.api(admin);
    let listed = api.get("/tokens").await.unwrap();
    let given =
        |name: &str, role: &str| json!({"name": name, "role": role, "source": "flag", "created_at": null});
    assert_eq!(
        listed["items"],
        json!([given("admin", "admin"), given("admin-2", "admin"), given("proxy", "proxy")])
    );
    for (name, flag) in [("admin", "--admin-token"), ("admin-2", "--admin-token"), ("proxy", "--proxy-token")]
    {
        let refused = api.call(Method::DELETE, &format!("/tokens/{name}"), None).await.unwrap();
        assert_eq!(refused.status, 409, "{refused}");
        assert!(refused.body["detail"].as_str().unwrap().contains(flag), "{refused}");
    }
    let cookie = api.log_in(second_admin).await.unwrap();
    let ask = async |program: &Program| {
        let request = program.api(admin).with_cookie(Method::GET, "/session", &cookie);
        signalbox_tests::control_plane::send(request).await.unwrap()
    };
    assert_eq!(ask(&first).await.body["name"], "admin-2");
    // A stored token of the same name would be the same author.
    for (name, flag) in [("admin-2", "--admin-token"), ("proxy", "--proxy-token")] {
        let token = json!({"name": name, "role": "viewer"});
        let refused = api.call(Method::POST, "/tokens", Some(&token)).await.unwrap();
        assert_eq!(refused.status, 409, "{refused}");
        assert!(
            refused.message("name").contains(&format!("is given to this control plane by {flag}")),
            "{refused}"
        );
    }
    let raw: Vec<u8> = ["signalbox.db", "signalbox.db-wal"]
        .iter()
        .flat_map(|file| std::fs::read(dir.path().join(file)).unwrap_or_default())
        .collect();
    for text in [admin, second_admin, proxy] {
        let hash = signalbox_config::sha256(text.as_bytes());
        assert!(!raw.windows(32).any(|part| part == hash), "the hash of {text} is stored");
    }
    first.stop();

    // The session goes on with its token, wherever that stands in the list, and ends with it.
    let second = Program::start(dir.path(), "second", &[&format!("--admin-token={second_admin}")]).await;
    assert_eq!(ask(&second).await.body["name"], "admin");
    assert_eq!(second.api(admin).call(Method::GET, "/routes", None).await.unwrap().status, 401);
    second.stop();
    let third = Program::start(dir.path(), "third", &["--admin-token=given-admin-token-3"]).await;
    assert_eq!(ask(&third).await.status, 401);
    third.stop();
    // Nobody would have a token, so one is made.
    let fourth = Program::start(dir.path(), "fourth", &[]).await;
    let made = fourth.printed("admin").unwrap();
    assert_eq!(fourth.api(&made).call(Method::GET, "/tokens", None).await.unwrap().status, 200);
    assert_eq!(fourth.api(second_admin).call(Method::GET, "/tokens", None).await.unwrap().status, 401);
    fourth.stop();
}

#[tokio::test]
async fn a_file_of_tokens_is_read_again_and_never_half() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens");
    let (one, two) = ("token-of-a-file-one", "token-of-a-file-two");
    std::fs::write(&path, format!("{one}\n")).unwrap();
    let flag = format!("--admin-token-file={}", path.display());
    let program = Program::start(dir.path(), "log", &[&flag]).await;
    let status =
        async |token: &str| program.api(token).call(Method::GET, "/tokens", None).await.unwrap().status;
    assert_eq!((status(one).await.as_u16(), status(two).await.as_u16()), (200, 401));
    std::fs::write(&path, format!("# both for a while\n{one}\n{two}\n")).unwrap();
    assert!(eventually(Duration::from_secs(10), async || status(two).await == 200).await);
    let listed = program.api(one).get("/tokens").await.unwrap();
    let sources: Vec<_> =
        listed["items"].as_array().unwrap().iter().filter(|item| item["role"] == "admin").collect();
    assert!(sources.len() == 2 && sources.iter().all(|item| item["source"] == "file"), "{listed}");
    let refused = program.api(one).call(Method::DELETE, "/tokens/admin-2", None).await.unwrap();
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.body["detail"].as_str().unwrap().contains("--admin-token-file"), "{refused}");

    // A file that cannot be used changes nothing, and is logged once.
    let told = || program.daemon.log().matches("those of before stay in force").count();
    for (index, content) in ["# none\n", &format!("{two}\nshort\n")].into_iter().enumerate() {
        std::fs::write(&path, content).unwrap();
        assert!(
            eventually(Duration::from_secs(10), async || told() == index + 1).await,
            "{}",
            program.daemon.log()
        );
        assert_eq!((status(one).await.as_u16(), status(two).await.as_u16()), (200, 200));
    }
    // The file is gone, and is put back as it was: both are told.
    std::fs::remove_file(&path).unwrap();
    assert!(eventually(Duration::from_secs(10), async || told() == 3).await, "{}", program.daemon.log());
    std::fs::write(&path, format!("# both for a while\n{one}\n{two}\n")).unwrap();
    let readable = || program.daemon.log().contains("the tokens that are given can be read again");
    assert!(eventually(Duration::from_secs(10), async || readable()).await, "{}", program.daemon.log());
    let mut stream = program.api(one).event_stream(EventsAs::Token(one)).await.unwrap();
    std::fs::write(&path, format!("{two}\n")).unwrap();
    let end = async { while stream.chunk().await.unwrap().is_some() {} };
    tokio::time::timeout(Duration::from_secs(10), end).await.expect("the stream of the old token goes on");
    assert_eq!((status(one).await.as_u16(), status(two).await.as_u16()), (401, 200));
    program.stop();
}

#[test]
fn tokens_that_anybody_could_guess_or_share_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    std::fs::write(&file, "\n").unwrap();
    let file = format!("--proxy-token-file={}", file.display());
    for (arguments, why) in [
        (&["--admin-token=short"][..], "has 5 characters; at least 16 are needed"),
        (
            &["--proxy-token=sixteen-symbols-,x"],
            "--proxy-token (SIGNALBOX_PROXY_TOKEN): token 2 has 1 characters",
        ),
        (&["--admin-token=sixteen symbols -"], "has a space"),
        (&["--admin-token=sixteen-symbols;-"], "has the character ';'"),
        (&["--proxy-token=sixteen-symbols-\n"], "has the control character 0x0a"),
        (
            &["--admin-token=sixteen-symbols-", "--proxy-token=sixteen-symbols-x,sixteen-symbols-"],
            "must differ",
        ),
        (&[&file], "has no token"),
        (&["--admin-token-file=/nonexistent/tokens"], "/nonexistent/tokens cannot be read"),
    ] {
        let output = Command::new(PROGRAM)
            .arg(format!("--database-url=sqlite://{}/signalbox.db", dir.path().display()))
            .args(["--admin-address=127.0.0.1:0", "--xds-address=127.0.0.1:0"])
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains("error: ") && stderr.contains(why),
            "{arguments:?}: {stderr}"
        );
        assert!(!stderr.contains("symbols"), "{stderr}");
        assert!(!dir.path().join("signalbox.db").exists(), "nothing was made");
    }
}

/// The version before stored what flags gave, even an empty text.
#[tokio::test]
async fn tokens_that_the_version_before_stored_stay_valid_unless_they_are_empty() {
    use sqlx::Connection as _;
    let dir = tempfile::tempdir().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(dir.path().join("signalbox.db"))
        .create_if_missing(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    for migration in [
        include_str!("../../migrations/sqlite/0001_store.sql"),
        include_str!("../../migrations/sqlite/0002_secrets.sql"),
        "PRAGMA application_id = 1399284344; PRAGMA user_version = 2; INSERT INTO head VALUES (1, 'e', 0)",
    ] {
        sqlx::raw_sql(migration).execute(&mut connection).await.unwrap();
    }
    for (name, role, text) in [("admin", "admin", ""), ("proxy", "proxy", "short"), ("ann", "admin", "ann's")]
    {
        sqlx::query("INSERT INTO tokens VALUES ($1, $2, $3, 7)")
            .bind(name)
            .bind(role)
            .bind(signalbox_config::sha256(text.as_bytes()).to_vec())
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();

    let given = "given-admin-token-1";
    let program = Program::start(dir.path(), "log", &[&format!("--admin-token={given}")]).await;
    let status = async |token: &str| {
        program.api(token).call(Method::GET, "/sessions", None).await.unwrap().status.as_u16()
    };
    let statuses = (status("").await, status("short").await, status("ann's").await, status(given).await);
    assert_eq!(statuses, (401, 403, 200, 200));
    assert!(program.api(given).log_in("").await.is_err());
    let log = program.daemon.log();
    assert!(log.contains("the stored text of a token is empty, so it opens nothing"), "{log}");
    // The token that is given can take the stored one of its name away, and not itself.
    for status in [204, 409] {
        let answer = program.api(given).call(Method::DELETE, "/tokens/admin", None).await.unwrap();
        assert_eq!(answer.status, status, "{answer}");
    }
    program.stop();
}

/// On SQLite a newer version is not beside this one, but it may have been there before, and a test may be.
#[tokio::test]
async fn what_a_newer_version_left_in_the_file_stops_neither_a_run_nor_a_start() {
    use sqlx::Connection as _;
    let dir = tempfile::tempdir().unwrap();
    let write = async |number: u64, spec: &str| {
        let url = format!("sqlite://{}/signalbox.db", dir.path().display());
        let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let statement = format!(
            "BEGIN IMMEDIATE;
             UPDATE head SET revision = {number};
             INSERT INTO revisions VALUES ({number}, 'newer', '', 7, 1);
             INSERT INTO resource_versions VALUES
                 ('policy', 'p', {number}, 7, (SELECT spec FROM resources WHERE kind = 'policy'), CAST('{spec}' AS BLOB));
             INSERT OR REPLACE INTO resources VALUES ('policy', 'p', CAST('{spec}' AS BLOB), {number}, 7, 7, 'newer');
             INSERT OR REPLACE INTO tokens VALUES ('op', 'operator', x'0102', 7);
             COMMIT;"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    };
    let ready = async |program: &Program| -> serde_json::Value {
        reqwest::get(format!("{}/readyz", program.url)).await.unwrap().json().await.unwrap()
    };
    let first = Program::start(dir.path(), "first", &[]).await;
    let admin = first.printed("admin").unwrap();
    write(2, "{\"a\":1}").await;
    let followed = async || {
        let ready = ready(&first).await;
        ready["revision"] == 2 && ready["unknown_resources"] == 1 && ready["tokens_with_unknown_roles"] == 1
    };
    assert!(eventually(Duration::from_secs(20), followed).await, "{}", ready(&first).await);
    let upstream = json!({"targets": []});
    assert_eq!(first.api(&admin).put("upstreams", "u", &upstream).await.unwrap(), 3);
    first.stop();

    write(4, "{\"a\":2}").await;
    let second = Program::start(dir.path(), "second", &[]).await;
    let seen = ready(&second).await;
    assert_eq!(
        (&seen["revision"], &seen["unknown_resources"], &seen["tokens_with_unknown_roles"]),
        (&json!(4), &json!(1), &json!(1))
    );
    let api = second.api(&admin);
    assert_eq!(api.get("/upstreams/u").await.unwrap()["targets"], json!([]));
    let back = api.call(Method::POST, "/revisions/1/rollback", None).await.unwrap().success().unwrap();
    assert_eq!((back.revision().unwrap(), &back.body["left_alone"]), (5, &json!(["policy/p"])));
    second.stop();
    let third = Program::start(dir.path(), "third", &[]).await;
    assert_eq!(ready(&third).await["unknown_resources"], 1);
    third.stop();
}

#[tokio::test]
async fn a_new_epoch_is_started_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    Program::start(dir.path(), "first", &[]).await.stop();
    let second = Program::start(dir.path(), "second", &["--new-epoch", "--log-format=json"]).await;
    let log = second.daemon.log();
    let line = log.lines().find(|line| line.contains("a new epoch was started")).expect(&log);
    let entry: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(entry["revision"], 1);
    second.stop();
}

#[tokio::test]
async fn the_admin_address_speaks_tls() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (admin, xds) = (free_port(), free_port());
    let mut command = Command::new(PROGRAM);
    command
        .arg(format!("--database-url=sqlite://{}/signalbox.db", dir.path().display()))
        .arg(format!("--admin-address=127.0.0.1:{admin}"))
        .arg(format!("--xds-address=127.0.0.1:{xds}"))
        .arg(format!("--admin-tls-cert={}", cert.display()))
        .arg(format!("--admin-tls-key={}", key.display()));
    let mut daemon = Daemon::spawn("signalbox-control-plane", &command, &dir.path().join("log")).unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let ask = async || -> std::io::Result<String> {
        let stream = TcpStream::connect(("127.0.0.1", admin)).await?;
        let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let is_ready = eventually(Duration::from_secs(30), async || {
        ask().await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    });
    assert!(is_ready.await, "{}", daemon.log());
    // A client without TLS gets no answer, and holds nothing up.
    assert!(reqwest::get(format!("http://127.0.0.1:{admin}/readyz")).await.is_err());
    daemon.terminate();
    assert!(daemon.wait_exit(Duration::from_secs(15)).unwrap().success());
}

#[test]
fn the_openapi_document_is_printed_without_starting() {
    let output = Command::new(PROGRAM).arg("--openapi").output().unwrap();
    assert!(output.status.success());
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn a_flag_that_is_wrong_is_told_and_nothing_is_started() {
    for arguments in
        [&["--admin-address=nowhere"][..], &["--admin-tls-cert=x.pem"], &["--database-url=mysql://x"]]
    {
        let output = Command::new(PROGRAM)
            .args(["--admin-address=127.0.0.1:0", "--xds-address=127.0.0.1:0"].iter().filter(|default| {
                !arguments.iter().any(|given| given.split('=').next() == default.split('=').next())
            }))
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_second_control_plane_on_one_sqlite_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Program::start(dir.path(), "first", &[]).await;
    // However the file is called.
    std::os::unix::fs::symlink(dir.path(), dir.path().join("alias")).unwrap();
    for path in ["signalbox.db", "./signalbox.db", "alias/signalbox.db"] {
        let second = Command::new(PROGRAM)
            .arg(format!("--database-url=sqlite://{path}"))
            .args(["--admin-address=127.0.0.1:0", "--xds-address=127.0.0.1:0"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&second.stderr);
        assert!(!second.status.success(), "{text}");
        let expected = format!("in use by another control plane, process {}", first.daemon.pid());
        assert!(text.contains(&expected), "{path}: {text}");
    }
    // The first goes on.
    let api = first.api(&first.printed("admin").unwrap());
    assert_eq!(api.head().await.unwrap(), 1);
    // The lock of a process that is gone holds nobody up, however it ended.
    first.daemon.kill9();
    Program::start(dir.path(), "third", &[]).await.stop();
    Program::start(dir.path(), "fourth", &[]).await.stop();
}

#[tokio::test]
async fn the_database_is_the_owners_alone_and_one_file_after_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let modes = || {
        let mut modes: Vec<(String, u32)> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("signalbox.db"))
            .map(|entry| {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                (entry.file_name().to_string_lossy().into_owned(), mode)
            })
            .collect();
        modes.sort();
        modes
    };
    let private = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 0o600)).collect::<Vec<_>>();
    let running = private(&[
        "signalbox.db",
        "signalbox.db-shm",
        "signalbox.db-wal",
        "signalbox.db.lock",
        "signalbox.db.secrets-key",
    ]);
    let ended = private(&["signalbox.db", "signalbox.db.lock", "signalbox.db.secrets-key"]);

    let first = Program::start_with_umask(dir.path(), "first", "000").await;
    let token = first.printed("admin").unwrap();
    assert_eq!(modes(), running);
    let api = first.api(&token);
    api.put("upstreams", "u", &json!({"targets": [{"address": "127.0.0.1:1"}]})).await.unwrap();
    first.stop();
    assert_eq!(modes(), ended);

    // Files of a version that left them to others, and of a process that was killed.
    let mut second = Program::start_with_umask(dir.path(), "second", "000").await;
    second.api(&token).delete("upstreams", "u").await.unwrap();
    second.daemon.kill9();
    for (name, _) in modes() {
        std::fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o644)).unwrap();
    }
    std::fs::set_permissions(dir.path().join("signalbox.db.secrets-key"), Permissions::from_mode(0o600))
        .unwrap();
    let third = Program::start_with_umask(dir.path(), "third", "000").await;
    let database = |(name, mode): &(String, u32)| name.ends_with(".lock") || *mode == 0o600;
    assert!(modes().iter().all(database), "{:?}", modes());
    assert_eq!(third.api(&token).head().await.unwrap(), 3, "what was committed is there");
    third.stop();
    assert_eq!(modes().len(), ended.len());
}
