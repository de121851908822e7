//! A declarative file instead of a control plane.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use signalbox_config::{
    Change, Errors, Problem, Relations, Resource, ResourceKey, RevisionId, Snapshot, document,
};
use signalbox_plugin::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::apply;
use super::data_plane::{Candidate, DataPlane, Rejected};
use super::status::{StartError, Status};

/// The settings of the reader of the file.
pub(super) struct Reader {
    pub(super) path: PathBuf,
    pub(super) fleet: String,
    /// The plugin types that this proxy knows.
    pub(super) types: Registry,
}

/// Applies the file at the start, and whenever its content changes. If the file cannot be read or applied, the served
/// configuration stays.
pub(super) async fn run(
    Reader { path, fleet, types }: Reader,
    data_plane: Arc<dyn DataPlane>,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let mut watcher = Watcher {
        path,
        fleet: fleet.into(),
        types,
        data_plane,
        status,
        stamp: None,
        seen: None,
        retry_at: None,
        served: Snapshot::empty(EPOCH),
        number: 0,
    };
    let mut interval = tokio::time::interval(POLL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = interval.tick() => watcher.look().await,
        }
    }
}

struct Watcher {
    path: PathBuf,
    fleet: Arc<str>,
    types: Registry,
    data_plane: Arc<dyn DataPlane>,
    status: watch::Sender<Status>,
    /// The file's stamp at the last read; `None` if it had changed so recently that it may have changed again.
    stamp: Option<Stamp>,
    /// The content that was last read, or the error.
    seen: Option<Result<String, String>>,
    /// The time at which a file that was read but could not be applied is tried again.
    retry_at: Option<Instant>,
    served: Snapshot,
    /// Counts the versions of the file.
    number: u64,
}

impl Watcher {
    async fn look(&mut self) {
        let stamp = Stamp::of(&self.path).await;
        if stamp.is_some() && stamp == self.stamp && self.retry_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        let content = read(&self.path).await;
        self.stamp = stamp.filter(Stamp::has_settled);
        let is_new = self.seen.as_ref() != Some(&content);
        if !is_new && self.retry_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        if is_new && self.served.id().number > 0 {
            // The file may be half written; then it differs a moment later.
            tokio::time::sleep(SETTLE_TIME).await;
            if read(&self.path).await != content {
                return;
            }
        }
        self.retry_at = None;
        let readable = content.is_ok();
        self.seen = Some(content.clone());
        let served = self.served.clone();
        let number = self.number + 1;
        let parsed = match content {
            Err(message) => Err(vec![whole(message)]),
            Ok(text) => {
                let (fleet, types) = (Arc::clone(&self.fleet), self.types.clone());
                let parsing =
                    tokio::task::spawn_blocking(move || parse(&text, &fleet, &types, &served, number));
                match parsing.await {
                    Ok(parsed) => parsed,
                    Err(error) => Err(vec![whole(format!("reading it failed: {error}"))]),
                }
            }
        };
        self.status.send_modify(|status| status.connected = readable);
        let origin = self.path.display().to_string();
        let rejected = match parsed {
            Ok(candidate) if candidate.changes.is_empty() && self.number > 0 => {
                self.status.send_modify(|status| status.rejected = Vec::new());
                return;
            }
            Ok(candidate) => match apply::apply(&self.data_plane, candidate, &self.status, &origin).await {
                Ok(applied) => {
                    self.number = number;
                    tracing::info!(
                        file = origin,
                        resources = applied.snapshot.len(),
                        changes = applied.changes.len(),
                        "file applied"
                    );
                    self.served = applied.snapshot;
                    return;
                }
                Err(refused) => {
                    // The file is valid, so the obstacle is on this host, and may pass.
                    self.retry_at = Some(Instant::now() + RETRY);
                    refused.reasons
                }
            },
            Err(rejected) => {
                apply::record_rejection(&self.status, &rejected);
                rejected
            }
        };
        if is_new {
            for reason in rejected {
                tracing::error!(file = origin, %reason, "file not applied; the served configuration stays");
            }
        }
    }
}

/// Metadata that shows whether a file has changed, at the cost of one system call: reading a large file twice a second
/// would keep a core from serving requests for a millisecond each time. Symbolic links are followed, because a mounted
/// ConfigMap changes by moving a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    /// The modification time: seconds and nanoseconds since 1970.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    async fn of(path: &Path) -> Option<Self> {
        let metadata = tokio::fs::metadata(path).await.ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// True if the last change is old enough that another change would show: file systems have timestamps in steps of
    /// up to two seconds.
    fn has_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        (self.changed.0.max(self.modified.0) + 3..=i64::MAX).contains(&now)
    }
}

async fn read(path: &Path) -> Result<String, String> {
    let length = tokio::fs::metadata(path).await.map_err(|error| format!("cannot be read: {error}"))?.len();
    if length > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} bytes"));
    }
    tokio::fs::read_to_string(path).await.map_err(|error| format!("cannot be read: {error}"))
}

/// Parses the file into a candidate for a proxy of `fleet`, or returns all errors.
fn parse(
    text: &str,
    fleet: &str,
    types: &Registry,
    served: &Snapshot,
    number: u64,
) -> Result<Candidate, Vec<Rejected>> {
    let below = |path: &str, field: &str| match (path, field) {
        ("", field) => field.to_owned(),
        (path, "") => path.to_owned(),
        (path, field) => format!("{path}.{field}"),
    };
    let reject = |error: signalbox_config::FieldError| Rejected {
        key: None,
        field: error.field,
        message: error.message,
    };
    let document = document::read(text);
    let document = document.and_then(|document| document.check_whole().map(|()| document));
    let document = document.map_err(|errors| errors.into_iter().map(reject).collect::<Vec<_>>())?;
    let mut rejected = Vec::new();
    let mut resources: BTreeMap<ResourceKey, Arc<Resource>> = BTreeMap::new();
    for entry in document.iter() {
        let name = entry.spec.get("name").and_then(|name| name.as_str()).map(str::to_owned);
        match Resource::parse(entry.kind, entry.spec, types) {
            Ok(resource) => {
                resources.insert(resource.key().clone(), Arc::new(resource));
            }
            // The first errors are enough to find the fault in the file.
            Err(_) if rejected.len() >= Errors::MAX => {
                rejected.push(whole("there are more errors, not listed here".to_owned()));
                break;
            }
            Err(errors) => {
                let key = name.and_then(|name| format!("{}/{name}", entry.kind).parse().ok());
                rejected.extend(errors.into_iter().map(|error| Rejected {
                    key: key.clone(),
                    field: below(&entry.path, &error.field),
                    message: error.message,
                }));
            }
        }
    }
    if !rejected.is_empty() {
        return Err(rejected);
    }
    let id = RevisionId { epoch: EPOCH.into(), number };
    let all: Vec<_> = resources.values().cloned().map(Change::Put).collect();
    let nothing = Snapshot::empty(EPOCH);
    let alone = nothing.with(id.clone(), 0, all.iter().cloned());
    Relations::default()
        .with(&nothing, &alone, &all)
        .map_err(|problems| problems.into_iter().map(problem).collect::<Vec<_>>())?;
    resources.retain(|_, resource| resource.visible_to(fleet));
    let gone = served.iter().filter(|old| !resources.contains_key(old.key()));
    let mut changes: Vec<_> = gone.map(|old| Change::Delete(old.key().clone())).collect();
    let differs =
        |new: &Arc<Resource>| served.find(new.key()).is_none_or(|old| old.fingerprint() != new.fingerprint());
    changes.extend(resources.into_values().filter(differs).map(Change::Put));
    let read_at_us = jiff::Timestamp::now().as_microsecond();
    Ok(Candidate { snapshot: served.with(id, read_at_us, changes.iter().cloned()), changes })
}

fn problem(problem: Problem) -> Rejected {
    match problem {
        Problem::Dangling { resource, error } | Problem::Claimed { resource, error, .. } => {
            Rejected { key: Some(resource), field: error.field, message: error.message }
        }
        Problem::StillReferenced { resource, .. } => {
            Rejected { key: Some(resource), field: String::new(), message: "is still referred to".to_owned() }
        }
    }
}

fn whole(message: String) -> Rejected {
    Rejected { key: None, field: String::new(), message }
}

/// The epoch of revisions from a file, whose numbers count from the start of the process.
const EPOCH: &str = "file";

const POLL: Duration = Duration::from_millis(500);

/// How long the content must be unchanged before it is applied.
const SETTLE_TIME: Duration = Duration::from_millis(50);

const RETRY: Duration = Duration::from_secs(5);

const MAX_FILE: u64 = 64 << 20;
