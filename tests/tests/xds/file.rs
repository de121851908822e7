//! A proxy that runs a file instead of asking a control plane.

use std::path::Path;
use std::sync::Arc;

use signalbox_plugins::builtin;
use signalbox_proxy::source::{self, Source, StartError, Status};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::*;

struct Follower {
    recorder: Arc<Recorder>,
    status: watch::Receiver<Status>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), StartError>>,
}

impl Follower {
    fn start(path: &Path) -> Self {
        let recorder = Arc::new(Recorder::default());
        let (sender, status) = watch::channel(Status::default());
        let shutdown = CancellationToken::new();
        let source =
            Source::File { path: path.to_owned(), fleet: "edge".to_owned(), types: builtin().clone() };
        let task = tokio::spawn(source::run(source, recorder.clone(), sender, shutdown.clone()));
        Self { recorder, status, shutdown, task }
    }

    async fn until_serves(&self, names: &[&str]) {
        eventually(&format!("it serves {names:?}"), || {
            self.recorder.with(|recorded| {
                recorded.resources.keys().map(ToString::to_string).eq(names.iter().map(ToString::to_string))
            })
        })
        .await;
    }

    async fn until_rejects(&self, times: u64) -> Vec<String> {
        let mut status = self.status.clone();
        let rejected =
            soon("it rejects", status.wait_for(|status| status.rejected_total >= times)).await.unwrap();
        rejected.rejected.iter().map(ToString::to_string).collect()
    }

    fn applied(&self) -> Vec<(u64, usize)> {
        self.recorder.with(|recorded| recorded.applied.clone())
    }
}

/// As a whole, so that no part of it is read.
fn replace(path: &Path, content: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(&new, path).unwrap();
}

const TWO: &str = "
routes:
  - {name: a, match: {}, respond: {status: 200, body: a}}
  - {name: b, match: {}, respond: {status: 200, body: b}}
";

#[tokio::test]
async fn a_file_is_applied_and_again_when_it_changes_and_costs_its_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("signalbox.yaml");
    replace(&path, TWO);
    let follower = Follower::start(&path);
    follower.until_serves(&["route/a", "route/b"]).await;
    replace(&path, format!("{TWO}  - {{name: c, match: {{}}, respond: {{status: 204}}}}\n"));
    follower.until_serves(&["route/a", "route/b", "route/c"]).await;
    assert_eq!(follower.applied(), [(1, 2), (2, 1)]);
    follower.shutdown.cancel();
    soon("it ends", follower.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn of_a_file_a_proxy_serves_what_is_for_its_fleet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("signalbox.yaml");
    let fleets = |of_b: &str| TWO.replace("name: b,", &format!("name: b, fleets: [{of_b}],"));
    replace(&path, fleets("other"));
    let follower = Follower::start(&path);
    follower.until_serves(&["route/a"]).await;
    replace(&path, fleets("other, edge"));
    follower.until_serves(&["route/a", "route/b"]).await;
    replace(&path, fleets("other"));
    follower.until_serves(&["route/a"]).await;
}

#[tokio::test]
async fn a_file_that_has_not_changed_for_a_while_is_still_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("signalbox.yaml");
    replace(&path, TWO);
    let follower = Follower::start(&path);
    follower.until_serves(&["route/a", "route/b"]).await;
    let began = std::time::Instant::now();
    // From then on it is told by its times whether it is still the same.
    eventually("it is old enough", || began.elapsed().as_millis() > 4_500).await;
    // As long as before, and changed at once again.
    replace(&path, TWO.replace("body: b", "body: x"));
    eventually("it is applied", || follower.applied().len() == 2).await;
    replace(&path, TWO.replace("body: b", "body: y"));
    eventually("it is applied again", || follower.applied() == [(1, 2), (2, 1), (3, 1)]).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_behind_a_link_that_is_moved_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    for (version, text) in
        [("one", TWO), ("two", "{kind: route, name: z, match: {}, respond: {status: 200}}")]
    {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        std::fs::write(dir.path().join(version).join("config"), text).unwrap();
    }
    let current = dir.path().join("current");
    std::os::unix::fs::symlink("one", &current).unwrap();
    let follower = Follower::start(&current.join("config"));
    follower.until_serves(&["route/a", "route/b"]).await;
    let next = dir.path().join("next");
    std::os::unix::fs::symlink("two", &next).unwrap();
    std::fs::rename(&next, &current).unwrap();
    follower.until_serves(&["route/z"]).await;
}

#[tokio::test]
async fn a_broken_file_keeps_the_last_good_one_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("signalbox.yaml");
    let follower = Follower::start(&path);
    let missing = follower.until_rejects(1).await;
    assert!(missing[0].contains("cannot be read"), "{missing:?}");
    replace(&path, TWO);
    follower.until_serves(&["route/a", "route/b"]).await;
    eventually("nothing is wrong any more", || follower.status.borrow().rejected.is_empty()).await;
    let cases = [
        (
            "routes: [{name: a, match: {}, respond: {status: 99}, colour: red}]",
            &["respond.status", "colour"][..],
        ),
        ("routes: [", &["YAML"]),
        ("# nothing yet\n---\n", &["is empty"]),
        ("{}", &["is empty"]),
        ("[]", &["is empty"]),
        ("routes:\n", &["routes", "must be a list"]),
        ("routes: [{name: a, respond: {}}]\nlisteners:\n", &["listeners", "must be a list"]),
        ("routes: [{name: a, match: {hosts: []}, respond: {}}]", &["match.hosts", "must not be empty"]),
        (
            "{kind: route, name: a, match: {}, forward: {upstreams: [{name: nowhere}]}}",
            &["nowhere", "does not exist"],
        ),
        (
            "routes: [{name: a, match: {}, respond: {status: 200}}, {name: a, match: {}, respond: {status: 200}}]",
            &["twice"],
        ),
    ];
    let count = cases.len() as u64;
    for (times, (text, parts)) in cases.into_iter().enumerate() {
        replace(&path, text);
        let reasons = follower.until_rejects(times as u64 + 2).await.join("; ");
        for part in parts {
            assert!(reasons.contains(part), "{reasons}");
        }
    }
    replace(&path, b"\xff\xfe");
    follower.until_rejects(count + 2).await;
    assert_eq!(follower.applied(), [(1, 2)]);
    // As it was before all that: nothing has changed.
    replace(&path, TWO);
    eventually("it is good again", || follower.status.borrow().rejected.is_empty()).await;
    assert_eq!(follower.applied(), [(1, 2)]);
}

#[tokio::test]
async fn what_the_host_stood_in_the_way_of_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("signalbox.yaml");
    replace(&path, TWO);
    let follower = Follower::start(&path);
    follower.until_serves(&["route/a", "route/b"]).await;
    follower.recorder.refuse(Some("the port is taken"));
    replace(&path, "{kind: route, name: z, match: {}, respond: {status: 200}}");
    let reasons = follower.until_rejects(1).await;
    assert_eq!(reasons, ["listener/http: address: the port is taken"]);
    follower.recorder.refuse(None);
    follower.until_serves(&["route/z"]).await;
}
