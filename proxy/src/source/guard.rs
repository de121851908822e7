//! The guard against crash loops: keeps the start marker, refuses a revision that the proxy crashed on, and finds
//! revisions proven.
//!
//! **Order.** The marker `starts` in the data directory says that the run is young, and which revision is on trial. It is
//! written before anything of a revision is compiled or served, both for a snapshot from disk and for a revision from a
//! control plane, because [`Guarded`] stands between the source and the data plane. So a crash at any time after that
//! finds the revision in the marker, whether or not the last good snapshot on disk has it yet.
//!
//! **Cost.** A start syncs the marker to disk. A live apply only writes it, in place, into the kernel's page cache. That
//! takes microseconds, on another thread, while the staged candidate is handed over to the data plane; and it survives
//! every end of the process. A sync would only matter if the machine crashed as well, for which a configuration is rarely
//! at fault; then the marker of the start, or none, is on disk, and the crash counts for the revision before or not at
//! all. The file keeps its size, so a full disk does not prevent the write.
//!
//! **Failures.** A thread of its own writes, and an apply waits for it only a moment ([`LIVE_WAIT`]): a disk that fails or
//! hangs costs the protection, and stops nothing. A torn marker counts as none.
//!
//! **Completion.** After the crash window a run is no longer young and a revision no longer on trial. An orderly end
//! completes both at once, when it begins: a supervisor may kill the proxy in the middle of its drain. A trial whose
//! revision was rejected ends with the rejection.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signalbox_config::{Purge, Snapshot};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::data_plane::{Answers, Candidate, DataPlane, Rejected, ScopeTraffic, Traffic};
use super::last_good::{Prover, private};
use super::proof::{Elapsed, Proof};
use super::settings::CrashLoops;
use super::starts::{ExactRevision, History, Origin};
use super::status::{CrashedRevision, Status};
use crate::telemetry::{Scope, Series};

/// The start marker's file.
#[derive(Debug)]
pub(super) struct Marker {
    path: PathBuf,
    file: Option<File>,
    length: usize,
}

impl Marker {
    /// Reads the history from the data directory. A torn or unreadable file is as good as none.
    pub(super) fn read(data_dir: &Path) -> (Self, History) {
        let path = data_dir.join("starts");
        let mut bytes = Vec::new();
        let opened = File::open(&path);
        let found = opened.and_then(|file| file.take(MAX_MARKER).read_to_end(&mut bytes));
        let history = match &found {
            Ok(_) => std::str::from_utf8(&bytes).ok().and_then(History::decode),
            Err(_) => None,
        };
        if history.is_none() && found.is_ok_and(|length| length > 0) {
            tracing::warn!(path = %path.display(), "the start marker is torn; earlier crashes do not count");
        }
        (Self { path, file: None, length: 0 }, history.unwrap_or_default())
    }

    /// Overwrites the file in place.
    pub(super) fn write(&mut self, history: &History, durability: Durability) -> io::Result<()> {
        let mut text = history.encode().into_bytes();
        // Nothing of a longer text may stay behind this one, and the file keeps its room on the disk.
        text.resize(text.len().max(self.length).max(MARKER_SIZE), b'\n');
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                // A longer text of an earlier run is cut off at once.
                let file = private().create(true).write(true).truncate(false).open(&self.path)?;
                let length = file.metadata()?.len();
                text.resize(text.len().max(usize::try_from(length.min(MAX_MARKER)).unwrap_or(0)), b'\n');
                none.insert(file)
            }
        };
        let written = file.write_all_at(&text, 0).and_then(|()| match durability {
            Durability::Process => Ok(()),
            Durability::Machine => file.sync_data(),
        });
        self.length = text.len();
        if written.is_err() {
            self.file = None;
        }
        written
    }
}

/// The end that a write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The end of the process.
    Process,
    /// The end of the machine.
    Machine,
}

/// The guard of one run. The thread that writes the marker ends with it.
pub(super) struct Guard {
    shared: Arc<Shared>,
    /// The thread does not hold it, because it must not outlive the source.
    data_plane: Arc<dyn DataPlane>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.state().queue.closed = true;
        self.shared.changed.notify_all();
    }
}

struct Shared {
    state: Mutex<State>,
    /// Notified when there is something to write, and when it was written.
    changed: Condvar,
    /// Notified when the next event may be earlier than before.
    rescheduled: Notify,
    settings: CrashLoops,
    /// The time from which on a refused revision is served if there is no other.
    ask_until: Instant,
    status: watch::Sender<Status>,
}

struct State {
    history: History,
    proof: Proof,
    proven: Option<ExactRevision>,
    /// The time at which the run is no longer young.
    young_until: Option<Instant>,
    /// True once the run ends in order: nothing is noted any more.
    ending: bool,
    queue: Queue,
}

/// The marker's writes, by number.
#[derive(Default)]
struct Queue {
    wanted: u64,
    written: u64,
    sync: bool,
    /// True after a wait was in vain, until the next write has ended.
    is_stuck: bool,
    /// True once the thread is to end.
    closed: bool,
}

/// The findings of a start.
pub(super) struct Found {
    pub(super) marker: Marker,
    pub(super) history: History,
    /// The proven revision on disk.
    pub(super) proven: Option<ExactRevision>,
}

impl Guard {
    /// Starts the guard of a run.
    pub(super) fn start(
        found: Found,
        settings: CrashLoops,
        data_plane: Arc<dyn DataPlane>,
        status: watch::Sender<Status>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let settings = CrashLoops {
            crash_window: settings.crash_window.min(MAX_TIME),
            proven_after: settings.proven_after.min(MAX_TIME),
            ..settings
        };
        let Found { marker, history, proven } = found;
        let state = State {
            history,
            proof: Proof::new(settings.crash_window, settings.proven_after),
            proven,
            young_until: Some(now + settings.crash_window),
            ending: false,
            queue: Queue::default(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            rescheduled: Notify::new(),
            ask_until: now + ASK_FIRST,
            settings,
            status,
        });
        if let Some(crashed) = shared.state().history.refused() {
            let (revision, reason) = (&crashed.exact.revision, crashed.message(shared.settings.crash_window));
            tracing::error!(%revision, reason, "the revision is refused; POST /revision/retry tries it again");
        }
        shared.publish(&shared.state());
        std::thread::Builder::new().name("start-marker".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.write_all(marker)
        })?;
        Ok(Self { shared, data_plane })
    }

    /// The data plane for revisions of `origin`.
    pub(super) fn data_plane(self: &Arc<Self>, origin: Origin) -> Arc<dyn DataPlane> {
        Arc::new(Guarded { guard: Arc::clone(self), origin })
    }

    /// Announces that a revision from a control plane is about to be applied, so that it is noted by then. The apply then
    /// need not wait for another thread.
    pub(super) fn announce(&self, snapshot: &Snapshot) {
        let exact = ExactRevision::of(snapshot);
        let mut state = self.shared.state();
        if !state.ending && state.history.refused().is_none_or(|crashed| crashed.exact != exact) {
            state.history.set_trial(Some(exact));
            self.shared.write_soon(&mut state, Durability::Process);
        }
    }

    /// The time until which control planes may send another revision than the one that the proxy crashed on.
    pub(super) fn ask_until(&self) -> Instant {
        self.shared.ask_until
    }

    /// Follows the time until `shutdown`, and then notes that the run ends in order.
    pub(super) async fn follow(self: Arc<Self>, prover: Prover, shutdown: CancellationToken) {
        loop {
            let deadline = self.shared.state().deadline();
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.shared.rescheduled.notified() => {}
                () = self.shared.settings.retry.notified() => self.retry(),
                () = due => {
                    for snapshot in self.shared.elapse(Instant::now(), self.data_plane.answers()) {
                        prover.prove(snapshot);
                    }
                }
            }
        }
        self.end();
    }

    /// Notes that a revision is proven, and on disk as such.
    pub(super) fn on_proven(&self, exact: ExactRevision) {
        tracing::info!(revision = %exact.revision, "the revision is proven");
        let mut state = self.shared.state();
        state.proven = Some(exact);
        self.shared.publish(&state);
    }

    /// Ends the refusal of a revision.
    fn retry(&self) {
        let mut state = self.shared.state();
        let refused = state.history.refused().map(|crashed| crashed.exact.revision.clone());
        state.history.on_retry();
        self.shared.publish(&state);
        self.shared.write_soon(&mut state, Durability::Process);
        drop(state);
        if let Some(revision) = refused {
            tracing::info!(%revision, "the revision is tried again, as an operator asked");
        }
    }

    /// Notes that the run ends in order. Returns before it is written.
    fn end(&self) {
        let mut state = self.shared.state();
        state.ending = true;
        state.history.on_ended();
        self.shared.write_soon(&mut state, Durability::Process);
    }

    /// Notes that the run ends in order, and waits until that is written, but not for long. Blocks.
    pub(super) fn close(&self) {
        self.end();
        self.shared.wait_written(self.shared.state(), SLOW_WAIT);
    }
}

impl Shared {
    /// Waits for the lock, which is never held over a slow operation.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_soon(&self, state: &mut State, durability: Durability) {
        state.queue.wanted += 1;
        state.queue.sync |= durability == Durability::Machine;
        self.changed.notify_all();
    }

    /// Waits until everything wanted is written, but at most `limit`.
    fn wait_written(&self, state: MutexGuard<'_, State>, limit: Duration) {
        let seq = state.queue.wanted;
        let waits = |state: &mut State| state.queue.written < seq && !state.queue.is_stuck;
        let waited = self.changed.wait_timeout_while(state, limit, waits);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        state.queue.is_stuck |= waited.timed_out();
    }

    /// Writes the marker whenever it changes, until the guard is closed.
    fn write_all(&self, mut marker: Marker) {
        let mut failing = false;
        loop {
            let (history, seq, durability) = {
                let idle =
                    |state: &mut State| state.queue.written == state.queue.wanted && !state.queue.closed;
                let state = self.changed.wait_while(self.state(), idle);
                let mut state = state.unwrap_or_else(PoisonError::into_inner);
                if state.queue.written == state.queue.wanted {
                    return;
                }
                let sync = std::mem::take(&mut state.queue.sync);
                let durability = if sync { Durability::Machine } else { Durability::Process };
                (state.history.clone(), state.queue.wanted, durability)
            };
            let result = marker.write(&history, durability);
            if let Err(error) = &result
                && !failing
            {
                let path = marker.path.display();
                tracing::warn!(%path, %error, "the start marker cannot be written; crashes may not count");
            }
            failing = result.is_err();
            let mut state = self.state();
            state.queue.written = seq;
            state.queue.is_stuck = false;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Shows in the status what is refused and what is proven.
    fn publish(&self, state: &State) {
        let crashed = state.history.refused().map(|crashed| CrashedRevision {
            exact: crashed.exact.clone(),
            times: crashed.times,
            message: crashed.message(self.settings.crash_window),
        });
        self.status.send_if_modified(|status| {
            let changed = status.crashed != crashed || status.proven != state.proven;
            (status.crashed, status.proven) = (crashed, state.proven.clone());
            changed
        });
    }

    /// Notes what time brought until `now`; `answers` are the data plane's so far. Returns the snapshots that are proven.
    fn elapse(&self, now: Instant, answers: Answers) -> Vec<Snapshot> {
        let mut proven = Vec::new();
        let mut state = self.state();
        if state.ending {
            return proven;
        }
        if state.young_until.take_if(|until| *until <= now).is_some() {
            state.history.on_lasted();
        }
        while state.proof.deadline().is_some_and(|deadline| deadline <= now) {
            match state.proof.elapse(now, answers) {
                Some(Elapsed::Survived(served)) => {
                    state.history.on_survived(&ExactRevision::of(&served.snapshot), served.origin);
                }
                Some(Elapsed::Proven(snapshot))
                    if state.proven.as_ref() != Some(&ExactRevision::of(&snapshot)) =>
                {
                    proven.push(snapshot);
                }
                Some(Elapsed::Proven(_)) | None => {}
            }
        }
        self.publish(&state);
        self.write_soon(&mut state, Durability::Process);
        proven
    }

    /// The reason why a candidate is refused, if it is.
    fn refusal(&self, exact: &ExactRevision) -> Option<String> {
        let state = self.state();
        let crashed = state.history.refused().filter(|crashed| crashed.exact == *exact)?;
        let reason = crashed.message(self.settings.crash_window);
        match state.proof.current().map(|served| ExactRevision::of(&served.snapshot)) {
            // It was tried again, and is served.
            Some(served) if served == *exact => None,
            Some(_) => Some(reason),
            None => (Instant::now() < self.ask_until)
                .then(|| format!("{reason}; it is tried again soon, as there is no other")),
        }
    }
}

impl State {
    fn deadline(&self) -> Option<Instant> {
        self.young_until.into_iter().chain(self.proof.deadline()).min()
    }
}

/// The data plane behind the guard: each revision is noted before it is applied.
struct Guarded {
    guard: Arc<Guard>,
    origin: Origin,
}

/// A trial that ends when it is dropped, also by a panic of the compiler.
struct Trial<'g>(&'g Shared);

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.ending {
            return;
        }
        let on_trial = state.proof.on_trial().map(|served| ExactRevision::of(&served.snapshot));
        state.history.set_trial(on_trial);
        self.0.write_soon(&mut state, Durability::Process);
    }
}

impl DataPlane for Guarded {
    fn apply(&self, candidate: &Candidate) -> Result<(), Vec<Rejected>> {
        let shared = &*self.guard.shared;
        let exact = ExactRevision::of(&candidate.snapshot);
        let origin = self.origin;
        if origin == Origin::ControlPlane
            && let Some(message) = shared.refusal(&exact)
        {
            return Err(vec![Rejected { key: None, field: String::new(), message }]);
        }
        let mut state = shared.state();
        if state.ending {
            drop(state);
            return self.guard.data_plane.apply(candidate);
        }
        let (durability, limit) = match origin {
            Origin::Disk => (Durability::Machine, SLOW_WAIT),
            Origin::ControlPlane => (Durability::Process, LIVE_WAIT),
        };
        // A revision that was announced may be noted already.
        if durability == Durability::Machine || state.history.trial() != Some(&exact) {
            state.history.set_trial(Some(exact));
            shared.write_soon(&mut state, durability);
        }
        shared.wait_written(state, limit);
        let trial = Trial(shared);
        self.guard.data_plane.apply(candidate)?;
        std::mem::forget(trial);
        let answers = self.guard.data_plane.answers();
        shared.state().proof.on_applied(candidate.snapshot.clone(), origin, Instant::now(), answers);
        shared.rescheduled.notify_one();
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.guard.data_plane.traffic()
    }

    fn watch(&self, scopes: &[Scope]) {
        self.guard.data_plane.watch(scopes);
    }

    fn scope_traffic(&self) -> Vec<ScopeTraffic> {
        self.guard.data_plane.scope_traffic()
    }

    fn purge(&self, purge: &Purge) {
        self.guard.data_plane.purge(purge);
    }

    fn series(&self) -> Vec<Series> {
        self.guard.data_plane.series()
    }

    fn answers(&self) -> Answers {
        self.guard.data_plane.answers()
    }

    fn listeners(&self) -> BTreeMap<String, SocketAddr> {
        self.guard.data_plane.listeners()
    }
}

/// How long the apply of a revision from a control plane waits for its marker: a thousand times as long as it takes.
const LIVE_WAIT: Duration = Duration::from_millis(20);

/// How long a start and an end wait for the marker.
const SLOW_WAIT: Duration = Duration::from_secs(1);

/// How long a start without a proven revision waits for another one than the proxy crashed on.
const ASK_FIRST: Duration = Duration::from_secs(10);

/// The maximum of both times in the settings: more is as good as forever.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The size of the marker in bytes; only a longer text makes it larger.
const MARKER_SIZE: usize = 1024;

/// The size in bytes up to which an existing marker is read, and overwritten as a whole.
const MAX_MARKER: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn history(epoch: &str) -> History {
        let revision = signalbox_config::RevisionId { epoch: epoch.into(), number: 7 };
        let mut history = History::default();
        history.set_trial(Some(ExactRevision { revision, digest: "0".repeat(64) }));
        history
    }

    #[test]
    fn a_shorter_marker_over_a_longer_one_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let short = history("e");
        let long = history(&"e".repeat(3000));
        for history in [&short, &long, &short, &History::default()] {
            // Each run opens the file anew, and writes more than once.
            let mut marker = Marker::read(dir.path()).0;
            marker.write(&long, Durability::Process).unwrap();
            marker.write(history, Durability::Machine).unwrap();
            assert_eq!(Marker::read(dir.path()).1, *history);
            let mut marker = Marker::read(dir.path()).0;
            marker.write(history, Durability::Process).unwrap();
            assert_eq!(Marker::read(dir.path()).1, *history);
        }
    }

    #[test]
    fn a_marker_that_is_torn_endless_or_away_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("starts");
        assert_eq!(Marker::read(dir.path()).1, History::default());
        let mut marker = Marker::read(dir.path()).0;
        marker.write(&history("e"), Durability::Process).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..40]).unwrap();
        assert_eq!(Marker::read(dir.path()).1, History::default());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let (mut marker, found) = Marker::read(dir.path());
        assert_eq!(found, History::default());
        assert!(marker.write(&found, Durability::Process).is_err());
        // A file that appears later is used.
        std::fs::remove_file(&path).unwrap();
        marker.write(&history("e"), Durability::Process).unwrap();
        assert_eq!(Marker::read(dir.path()).1, history("e"));
    }
}
