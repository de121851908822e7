//! The runbooks, followed to the letter: the shell blocks of a procedure are run as they stand in `docs/runbooks`, against real
//! processes that are started as the systemd units in `examples/systemd` say. `ssh`, `scp` and `systemctl` are stand-ins: a host
//! is an address of 127.0.0.0/8 with files of its own, and `systemctl` asks this test to start and stop the programs.

mod failover;
mod tokens;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signalbox_tests::control_plane::{ADMIN_TOKEN, PROXY_TOKEN, SECRETS_KEY};
use signalbox_tests::{Api, Daemon, Load, Postgres, eventually, get, program};

use crate::authority::{Authority, PemFiles, Until};
use crate::fixture::{respond, with};

/// For a whole procedure.
const DEADLINE: Duration = Duration::from_secs(240);

/// Hosts, and what runs on them.
struct Site {
    dir: tempfile::TempDir,
    control_planes: Vec<String>,
    proxies: Vec<String>,
    /// By host and unit.
    running: BTreeMap<(String, String), Daemon>,
}

impl Site {
    /// Hosts with addresses that no other test has.
    fn new(control_planes: usize, proxies: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("signalbox-runbook-").tempdir().unwrap();
        let net = format!("127.{}.{}", fastrand::u8(64..=254), fastrand::u8(..));
        let hosts =
            |first: usize, count: usize| (first..first + count).map(|host| format!("{net}.{host}")).collect();
        let site = Self {
            dir,
            control_planes: hosts(11, control_planes),
            proxies: hosts(101, proxies),
            running: BTreeMap::new(),
        };
        for host in site.control_planes.iter().chain(&site.proxies) {
            std::fs::create_dir_all(site.file(host, "/etc/signalbox")).unwrap();
        }
        std::fs::create_dir_all(site.path("requests")).unwrap();
        std::fs::create_dir_all(site.path("bin")).unwrap();
        site.stand_in("ssh", SSH);
        site.stand_in("scp", SCP);
        site.stand_in("systemctl", SYSTEMCTL);
        site
    }

    fn stand_in(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An absolute path of a host, on this one.
    fn file(&self, host: &str, path: &str) -> PathBuf {
        self.path(host).join(path.trim_start_matches('/'))
    }

    /// Writes the flags of every control plane, with `more` lines.
    fn configure_control_planes(&self, database: &str, more: &str) {
        for (index, host) in self.control_planes.iter().enumerate() {
            let flags = format!(
                "database-url = {database}\nadmin-address = {host}:9080\nxds-address = {host}:9081\n\
                 admin-token = {ADMIN_TOKEN}\nproxy-token = {PROXY_TOKEN}\nsecrets-key = {SECRETS_KEY}\n\
                 replica-name = cp-{index}\nlog-format = text\n{more}"
            );
            std::fs::write(self.file(host, "/etc/signalbox/control-plane.flags"), flags).unwrap();
        }
    }

    /// Writes the flags of every proxy, with `more` lines.
    fn configure_proxies(&self, scheme: &str, more: &str) {
        let urls: Vec<_> =
            self.control_planes.iter().map(|host| format!("\"{scheme}://{host}:9081\"")).collect();
        for (index, host) in self.proxies.iter().enumerate() {
            let flags = format!(
                "control-plane = [{}]\ntoken = {PROXY_TOKEN}\nlistener = http={host}:8080\nadmin-address = {host}:9082\n\
                 access-log = off\nworkers = 1\nlog-format = text\nlabel = host={index}\n{more}",
                urls.join(", ")
            );
            std::fs::write(self.file(host, "/etc/signalbox/proxy.flags"), flags).unwrap();
        }
    }

    /// Starts all control planes, and `blue` on all proxies, and waits until the proxies are in sync.
    async fn start(&mut self) {
        for host in self.control_planes.clone() {
            self.systemctl(&host, &["start", "signalbox-control-plane"]);
        }
        for host in self.proxies.clone() {
            self.systemctl(&host, &["start", "signalbox-proxy@blue"]);
        }
        self.until_in_sync(self.proxies.len()).await;
    }

    async fn until_in_sync(&self, count: usize) {
        let api = self.api();
        let in_sync = eventually(DEADLINE, async || {
            let proxies = api.proxies().await.unwrap_or_default();
            proxies.iter().filter(|proxy| proxy["state"] == "in_sync").count() == count
        });
        assert!(in_sync.await, "{}", self.logs());
    }

    fn api(&self) -> Api {
        Api::new(format!("http://{}:9080", self.control_planes[0]), ADMIN_TOKEN).unwrap()
    }

    /// Acts on a unit as `systemctl` does with these arguments. Returns the exit code.
    fn systemctl(&mut self, host: &str, arguments: &[&str]) -> u8 {
        let Some((verb, rest)) = arguments.split_first() else { return 1 };
        let units = rest.iter().filter(|argument| !argument.starts_with("--"));
        let mut code = 0;
        for unit in units {
            let key = (host.to_owned(), (*unit).to_owned());
            let is_active = self.running.get_mut(&key).is_some_and(Daemon::is_running);
            match *verb {
                "is-active" => code = u8::from(!is_active) * 3,
                "enable" | "disable" => {}
                "start" if is_active => {}
                "start" => self.start_unit(host, unit),
                "stop" | "restart" => {
                    if let Some(mut daemon) = self.running.remove(&key) {
                        daemon.terminate();
                        daemon.wait_exit(Duration::from_secs(60)).unwrap();
                    }
                    if *verb == "restart" {
                        self.start_unit(host, unit);
                    }
                }
                _ => panic!("systemctl {arguments:?}"),
            }
        }
        code
    }

    /// Starts a program as the unit's file says.
    fn start_unit(&mut self, host: &str, unit: &str) {
        let (file, instance) = match unit.split_once('@') {
            Some((name, instance)) => (format!("{name}@.service"), instance),
            None => (format!("{unit}.service"), ""),
        };
        let text = std::fs::read_to_string(repository().join("examples/systemd").join(file)).unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|value| value.replace("%i", instance))
        };
        for (name, parent) in [("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")] {
            if let Some(dir) = value(name) {
                std::fs::create_dir_all(self.file(host, &format!("{parent}/{dir}"))).unwrap();
            }
        }
        let line = value("ExecStart").unwrap();
        let mut words = line.split_whitespace();
        let name = words.next().and_then(|path| path.strip_prefix("/usr/bin/")).unwrap();
        let mut command = Command::new(program(name).unwrap());
        // Every path but that of the program is one of the host.
        command.args(words.map(|word| match word.starts_with('/') {
            true => self.file(host, word).into_os_string(),
            false => word.into(),
        }));
        command.env_remove("RUST_LOG");
        command.current_dir(self.file(host, value("WorkingDirectory").as_deref().unwrap_or("/")));
        let daemon = Daemon::spawn(unit, &command, &self.path(host).join(format!("{unit}.log"))).unwrap();
        self.running.insert((host.to_owned(), unit.to_owned()), daemon);
    }

    /// Runs all shell blocks of a procedure, as one script, in the directory `work`.
    async fn follow(&mut self, page: &str, procedure: &str, variables: &[(&str, &str)]) {
        let script = blocks(page, procedure);
        let work = self.path("work");
        std::fs::create_dir_all(&work).unwrap();
        std::fs::write(work.join("script"), &script).unwrap();
        let output = std::fs::File::create(work.join("output")).unwrap();
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-x", "script"])
            .current_dir(&work)
            .env("PATH", path)
            .env("SITE", self.dir.path())
            .env("CONTROL_PLANES", self.control_planes.join(" "))
            .env("PROXIES", self.proxies.join(" "))
            .env("API", format!("http://{}:9080/api/v1", self.control_planes[0]))
            .env("TOKEN", ADMIN_TOKEN)
            .env("AUTH", format!("Authorization: Bearer {ADMIN_TOKEN}"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut child = command.spawn().unwrap();
        let began = Instant::now();
        let status = loop {
            self.serve_requests();
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > DEADLINE {
                let _ = child.kill();
                panic!("{page}, {procedure}: it does not end:\n{}\n{}", self.output(), self.logs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(status.success(), "{page}, {procedure}: {status}\n{}\n{}", self.output(), self.logs());
    }

    /// Does what the stand-in of `systemctl` asks for.
    fn serve_requests(&mut self) {
        let entries: Vec<_> =
            std::fs::read_dir(self.path("requests")).unwrap().flatten().map(|it| it.path()).collect();
        for path in entries.into_iter().filter(|path| path.extension().is_some_and(|it| it == "request")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut words = text.split_whitespace();
            let host = words.next().unwrap().to_owned();
            let code = self.systemctl(&host, &words.collect::<Vec<_>>());
            std::fs::remove_file(&path).unwrap();
            let answer = path.with_extension("answer");
            std::fs::write(answer.with_extension("new"), code.to_string()).unwrap();
            std::fs::rename(answer.with_extension("new"), answer).unwrap();
        }
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.path("work/output")).unwrap_or_default()
    }

    fn logs(&self) -> String {
        let logs = self.running.iter().map(|((host, unit), daemon)| {
            let log = daemon.log();
            let lines: Vec<_> = log.lines().collect();
            format!("--- {unit} on {host}\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
        });
        logs.collect::<Vec<_>>().join("\n")
    }

    fn http(&self, proxy: usize) -> std::net::SocketAddr {
        format!("{}:8080", self.proxies[proxy]).parse().unwrap()
    }
}

/// `ssh HOST COMMAND…`: runs it here, with the host's files for its absolute paths.
const SSH: &str = r##"#!/bin/bash
export RUNBOOK_HOST=$1; shift
exec bash -euo pipefail -c "$(sed -E "s#/(etc|var/lib)/signalbox#$SITE/$RUNBOOK_HOST&#g" <<<"$*")"
"##;

/// `scp FILE HOST:PATH`
const SCP: &str = r##"#!/bin/bash
exec cp "$1" "$SITE/${2%%:*}${2#*:}"
"##;

/// Asks the test, and waits for its answer.
const SYSTEMCTL: &str = r##"#!/bin/bash
request=$SITE/requests/$$
echo "$RUNBOOK_HOST $*" > "$request.tmp"
mv "$request.tmp" "$request.request"
until [ -e "$request.answer" ]; do sleep 0.02; done
code=$(cat "$request.answer"); rm "$request.answer"; exit "$code"
"##;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The shell blocks under a heading of a page, one after the other.
fn blocks(page: &str, procedure: &str) -> String {
    let text = std::fs::read_to_string(repository().join("docs/runbooks").join(page)).unwrap();
    let mut script = String::new();
    let (mut here, mut code) = (false, false);
    for line in text.lines() {
        match line {
            "```sh" => code = true,
            "```" => code = false,
            _ if code && here => script.extend([line, "\n"]),
            _ if !code && line.starts_with("## ") => here = line == format!("## {procedure}"),
            _ => {}
        }
    }
    assert!(!script.is_empty(), "{page} has no procedure {procedure:?} with commands");
    script
}

/// The answer of a proxy at a path.
async fn served(site: &Site, proxy: usize, path: &str) -> String {
    get(site.http(proxy), "a", path).await.map(|answer| answer.text()).unwrap_or_default()
}

/// Waits until a proxy answers this at a path: it may have its stream to another control plane than the one that was written to.
async fn until_served(site: &Site, proxy: usize, path: &str, expected: &str) {
    let answers = eventually(DEADLINE, async || served(site, proxy, path).await == expected);
    assert!(answers.await, "{path} is not {expected:?}:\n{}", site.logs());
}

async fn put(api: &Api, name: &str, spec: &Value) -> u64 {
    let revision = api.put("routes", name, spec).await.unwrap();
    // A proxy that ended in the same moment as its control plane is of unknown state, and waited for, for a minute.
    let path = format!("/revisions/{revision}/wait?timeout=20s");
    let served = eventually(Duration::from_secs(100), async || api.get(&path).await.is_ok()).await;
    assert!(served, "{:?}", api.get(&path).await);
    revision
}

async fn epoch(site: &Site, proxy: usize) -> String {
    let url = format!("http://{}:9082/revision", site.proxies[proxy]);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer: Value = http.get(url).send().await.unwrap().json().await.unwrap();
    answer["serving"]["epoch"].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_postgres_backup_is_restored_with_one_new_epoch() {
    let postgres = Postgres::new().unwrap();
    let database = postgres.url();
    let mut site = Site::new(2, 2);
    site.configure_control_planes(&database, "");
    site.configure_proxies("http", "");
    site.start().await;
    let api = site.api();
    put(&api, "kept", &respond("/kept", "kept")).await;
    let variables = [("DATABASE_URL", database.as_str())];
    site.follow("restore.md", "Back up Postgres", &variables).await;
    for number in 0..3 {
        put(&api, "lost", &respond("/lost", &number.to_string())).await;
    }
    let before = epoch(&site, 0).await;

    site.follow("restore.md", "Restore Postgres", &variables).await;
    for proxy in 0..2 {
        until_served(&site, proxy, "/kept", "kept").await;
        let answers = eventually(DEADLINE, async || served(&site, proxy, "/lost").await != "2");
        assert!(answers.await, "{}", site.logs());
    }
    let restored = epoch(&site, 0).await;
    assert_ne!(restored, before);
    // The flag was for that start only.
    for host in site.control_planes.clone() {
        site.systemctl(&host, &["restart", "signalbox-control-plane"]);
    }
    site.until_in_sync(2).await;
    put(&site.api(), "after", &respond("/after", "after")).await;
    until_served(&site, 1, "/after", "after").await;
    assert_eq!(epoch(&site, 0).await, restored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_sqlite_backup_is_restored_with_one_new_epoch() {
    let mut site = Site::new(1, 1);
    site.configure_control_planes("sqlite://signalbox-data/signalbox.db", "");
    site.configure_proxies("http", "");
    site.start().await;
    put(&site.api(), "kept", &respond("/kept", "kept")).await;
    site.follow("restore.md", "Back up SQLite", &[]).await;
    site.until_in_sync(1).await;
    put(&site.api(), "lost", &respond("/lost", "lost")).await;
    let before = epoch(&site, 0).await;
    site.follow("restore.md", "Restore SQLite", &[]).await;
    until_served(&site, 0, "/kept", "kept").await;
    let answers = eventually(DEADLINE, async || served(&site, 0, "/lost").await != "lost");
    assert!(answers.await, "{}", site.logs());
    assert_ne!(epoch(&site, 0).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_authority_between_the_planes_is_changed_without_a_refused_proxy() {
    let postgres = Postgres::new().unwrap();
    let mut site = Site::new(2, 2);
    let tls =
        |host: &str, name: &str| site.file(host, &format!("/etc/signalbox/{name}")).display().to_string();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    // The certificates are for 127.0.0.1; those of the hosts have their addresses as names.
    let hosts: Vec<_> = site.control_planes.iter().chain(&site.proxies).cloned().collect();
    let names: Vec<_> = hosts.iter().map(String::as_str).collect();
    let put_files = |by: &Authority, dir: &PemFiles| {
        dir.put("cp", &by.issue_for(&names, &Until::Year(2080)));
        dir.put("proxy", &by.issue_for(&names, &Until::Year(2080)));
        dir.write("ca.pem", &by.pem());
    };
    let files = PemFiles::new();
    put_files(&old, &files);
    for host in &names {
        for name in ["cp.pem", "cp.key", "proxy.pem", "proxy.key", "ca.pem"] {
            std::fs::copy(files.path(name), tls(host, name)).unwrap();
        }
    }
    // Paths are those of each host, so every host has flags of its own.
    site.configure_control_planes(&postgres.url(), "");
    site.configure_proxies("https", "");
    for host in &names {
        let (program, flags) = if site.proxies.iter().any(|proxy| proxy == host) {
            ("proxy", [("tls-cert", "proxy.pem"), ("tls-key", "proxy.key"), ("tls-ca", "ca.pem")])
        } else {
            (
                "control-plane",
                [("xds-tls-cert", "cp.pem"), ("xds-tls-key", "cp.key"), ("xds-tls-client-ca", "ca.pem")],
            )
        };
        let file = site.file(host, &format!("/etc/signalbox/{program}.flags"));
        let mut text = std::fs::read_to_string(&file).unwrap();
        for (flag, name) in flags {
            text.push_str(&format!("{flag} = {}\n", tls(host, name)));
        }
        std::fs::write(file, text).unwrap();
    }
    site.start().await;
    put(&site.api(), "text", &respond("/", "text")).await;
    let load = Load::on([site.http(0), site.http(1)]).start().await.unwrap();

    let work = site.path("work");
    std::fs::create_dir_all(&work).unwrap();
    std::fs::write(work.join("old-ca.pem"), old.pem()).unwrap();
    std::fs::write(work.join("new-ca.pem"), new.pem()).unwrap();
    put_files(&new, &files);
    for name in ["cp.pem", "cp.key", "proxy.pem", "proxy.key"] {
        std::fs::copy(files.path(name), work.join(name)).unwrap();
    }
    site.follow("certificates.md", "Change the authority", &[]).await;
    put(&site.api(), "after", &respond("/after", "after")).await;
    until_served(&site, 0, "/after", "after").await;
    // Renewing is the middle of it.
    site.follow("certificates.md", "Renew a certificate", &[]).await;
    load.finish().assert_flawless(100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fleet_is_removed_with_what_is_for_it_alone() {
    let mut site = Site::new(1, 2);
    site.configure_control_planes("sqlite://signalbox-data/signalbox.db", "");
    site.configure_proxies("http", "");
    let flags = site.file(&site.proxies[1], "/etc/signalbox/proxy.flags");
    let text = std::fs::read_to_string(&flags).unwrap();
    std::fs::write(&flags, text + "fleet = edge\n").unwrap();
    site.start().await;
    let api = site.api();
    put(&api, "all", &respond("/all", "all")).await;
    put(&api, "both", &with(respond("/both", "both"), &json!({"fleets": ["default", "edge"]}))).await;
    put(&api, "edge", &with(respond("/edge", "edge"), &json!({"fleets": ["edge"]}))).await;
    until_served(&site, 1, "/edge", "edge").await;

    let all = std::mem::take(&mut site.proxies);
    site.proxies = vec![all[1].clone()];
    site.follow("fleet.md", "Remove a fleet", &[]).await;
    site.proxies = all;
    assert_eq!(api.get("/routes/both").await.unwrap()["fleets"], json!(["default"]));
    assert!(api.get("/routes/edge").await.is_err());
    let revision = api.head().await.unwrap();
    api.wait_default(revision).await.unwrap();
    until_served(&site, 0, "/both", "both").await;
    until_served(&site, 0, "/all", "all").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn control_planes_and_proxies_are_upgraded_without_a_failed_request() {
    let postgres = Postgres::new().unwrap();
    let mut site = Site::new(2, 1);
    site.configure_control_planes(&postgres.url(), "");
    site.configure_proxies("http", "");
    site.start().await;
    put(&site.api(), "text", &respond("/", "text")).await;
    let load = Load::on([site.http(0)]).start().await.unwrap();
    site.follow("upgrade.md", "Upgrade the control planes", &[]).await;
    site.follow("upgrade.md", "Upgrade the proxies", &[]).await;
    load.wait_for(100).await.unwrap();
    site.follow("upgrade.md", "Upgrade the proxies", &[]).await;
    load.wait_for(100).await.unwrap();
    load.finish().assert_flawless(300);
    put(&site.api(), "after", &respond("/after", "after")).await;
    until_served(&site, 0, "/after", "after").await;
}
