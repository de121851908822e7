//! The last good snapshot on disk. A proxy that starts while no control plane answers serves it.
//!
//! The data directory has
//! - `lock`, held while the proxy runs, so that no two proxies share a directory;
//! - `node-id`, the proxy's identity;
//! - `snapshot`, one complete revision, replaced as a whole;
//! - `journal`, the changes since then, append-only, so that writing a revision costs O(change);
//! - `proven`, the last revision that is proven, complete, for a start after crashes with the last applied one. It is
//!   replaced as a whole, at most twice in the time that a proof takes;
//! - `starts`, the start marker, see [`super::guard`];
//! - `blobs/`, the uploaded files that plugins use, see [`super::blobs`].
//!
//! The snapshots and the journal hold records of messages that a control plane could have sent, each with its length and a hash, and are
//! read through the same [`Staging`] as the network. Reading stops at a truncated record, and the last complete
//! revision counts.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use signalbox_config::{Change, NodeId, ResourceKey, RevisionId, Snapshot, wire};
use signalbox_plugin::Registry;
use signalbox_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

use super::staging::{Staging, Step, responses};
use super::starts::ExactRevision;
use super::status::StartError;

/// A data directory that belongs to this proxy alone. If it cannot be written now, it is read, and every write tries
/// again.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// The lock file. The lock ends when the file is closed, however the proxy ends. `None`: the directory could not
    /// be written yet.
    lock: Option<File>,
    /// A generated identity that could not be stored yet.
    unsaved_id: Option<String>,
    /// The reason why the directory cannot be written.
    error: Option<io::Error>,
}

impl DataDir {
    /// Creates the directory if needed, and locks it. The only error is that another proxy uses it.
    pub(super) fn open(path: PathBuf) -> Result<Self, StartError> {
        let (lock, error) = match lock(&path) {
            Ok(Some(lock)) => (Some(lock), None),
            Ok(None) => return Err(StartError::DataDirInUse(path)),
            Err(error) => (None, Some(error)),
        };
        Ok(Self { path, lock, unsaved_id: None, error })
    }

    /// The stored identity. At the first start it is generated, and stored if possible.
    pub(super) fn node_id(&mut self) -> String {
        let path = self.path.join("node-id");
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        match stored.trim().parse::<NodeId>() {
            Ok(id) => return id.to_string(),
            Err(_) if stored.trim().is_empty() => {}
            // Control planes would refuse it.
            Err(reason) => {
                let path = path.display();
                tracing::warn!(%path, reason, "the stored node id is not valid; a new one is generated");
            }
        }
        let id = uuid::Uuid::now_v7().to_string();
        self.unsaved_id = Some(id.clone());
        if self.error.is_none() {
            self.error = self.make_writable().err();
        }
        id
    }

    /// The reason why the directory cannot be written, if so; its content may then be out of date.
    pub(super) fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    /// Repeats the steps that failed when the directory was opened.
    fn make_writable(&mut self) -> io::Result<()> {
        if self.lock.is_none() {
            let in_use = || io::Error::other("another proxy uses the data directory");
            self.lock = Some(lock(&self.path)?.ok_or_else(in_use)?);
        }
        if let Some(id) = &self.unsaved_id {
            replace_file(&self.path.join("node-id"), |file| writeln!(file, "{id}"))?;
            self.unsaved_id = None;
        }
        Ok(())
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The journal of a start that does not read the last good revision: the first write is a complete snapshot.
    pub(super) fn without_load(self) -> Journal {
        Journal { dir: self, file: None, snapshot_bytes: 0, journal_bytes: 0, written: None }
    }

    /// Loads the last good revision, and the journal to append to.
    pub(super) fn load(self, types: &Registry) -> (Option<Snapshot>, Journal) {
        let mut staging = Staging::on(None, types);
        let snapshot = read_records(&self.path.join("snapshot"), SNAPSHOT_MAGIC, &mut staging);
        let mut journal = self.without_load();
        if let Ok(ReadResult { bytes, clean: true }) = snapshot
            && let Some(base) = staging.served().cloned()
        {
            let path = journal.dir.path.join("journal");
            let replayed = read_records(&path, &journal_magic(&base), &mut staging);
            if let (Ok(replayed), Some(last)) = (&replayed, staging.served())
                && replayed.clean
                && let Ok(file) = private().append(true).open(&path)
            {
                journal.file = Some(file);
                journal.snapshot_bytes = bytes;
                journal.journal_bytes = replayed.bytes;
                journal.written = Some(last.id().clone());
            }
        }
        (staging.served().cloned(), journal)
    }
}

/// The writer's side of the last good snapshot's files.
#[derive(Debug)]
pub(super) struct Journal {
    dir: DataDir,
    /// The journal file, positioned at its end. `None`: the files on disk cannot be appended to, and have to be
    /// rewritten.
    file: Option<File>,
    snapshot_bytes: u64,
    journal_bytes: u64,
    /// The revision on disk.
    written: Option<RevisionId>,
}

impl Journal {
    /// Forces a complete snapshot on the next write, because the next changes do not start from the revision on disk.
    pub(super) fn start_anew(&mut self) {
        self.file = None;
    }

    /// The size in bytes below which a journal is not replaced by a new snapshot.
    const SMALL: u64 = 256 << 10;

    /// Writes `snapshot`, which differs from the one written before by `changes`.
    pub(super) fn write(&mut self, snapshot: &Snapshot, changes: &[Change]) -> io::Result<()> {
        self.dir.make_writable()?;
        let continues = self.written.as_ref().is_some_and(|written| written.epoch == snapshot.id().epoch);
        let large = self.journal_bytes > Self::SMALL.max(self.snapshot_bytes);
        let result = match &mut self.file {
            Some(file) if continues && !large => {
                append(file, snapshot, changes).map(|bytes| self.journal_bytes += bytes)
            }
            _ => self.write_all(snapshot),
        };
        match &result {
            Ok(()) => self.written = Some(snapshot.id().clone()),
            // The state of the file's end is unknown now.
            Err(_) => self.file = None,
        }
        result
    }

    /// Writes `snapshot` as the proven one.
    fn write_proven(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.dir.make_writable()?;
        let head = proven_head(&ExactRevision::of(snapshot));
        let written = replace_file(&self.dir.path.join(PROVEN), |file| {
            file.write_all(&head)?;
            write_records(file, snapshot, None).map(drop)
        });
        written.map(drop)
    }

    fn write_all(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.file = None;
        // From here on the old journal is ignored: it names the snapshot that it continues, which is another one.
        self.snapshot_bytes = replace_file(&self.dir.path.join("snapshot"), |file| {
            file.write_all(SNAPSHOT_MAGIC)?;
            write_records(file, snapshot, None).map(drop)
        })?;
        let path = self.dir.path.join("journal");
        self.journal_bytes = replace_file(&path, |file| file.write_all(&journal_magic(snapshot)))?;
        self.file = Some(private().append(true).open(&path)?);
        Ok(())
    }
}

fn append(file: &mut File, snapshot: &Snapshot, changes: &[Change]) -> io::Result<u64> {
    let mut buffered = BufWriter::with_capacity(RECORD, &mut *file);
    let bytes = write_records(&mut buffered, snapshot, Some(changes))?;
    buffered.flush()?;
    drop(buffered);
    file.sync_data()?;
    Ok(bytes)
}

fn write_records(file: &mut dyn Write, snapshot: &Snapshot, changes: Option<&[Change]>) -> io::Result<u64> {
    let mut bytes = 0;
    for response in responses(snapshot, changes, RECORD) {
        let record = response.encode_to_vec();
        let length = u32::try_from(record.len()).map_err(io::Error::other)?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(blake3::hash(&record).as_bytes())?;
        file.write_all(&record)?;
        bytes += 4 + blake3::OUT_LEN as u64 + u64::from(length);
    }
    Ok(bytes)
}

/// The proven revision in a data directory, by the head of its file.
pub(super) fn proven_revision(data_dir: &Path) -> Option<ExactRevision> {
    let mut head = Vec::new();
    File::open(data_dir.join(PROVEN)).ok()?.take(MAX_HEAD).read_to_end(&mut head).ok()?;
    let line = head.split(|byte| *byte == b'\n').next()?;
    ExactRevision::parse(std::str::from_utf8(line).ok()?.strip_prefix(PROVEN_MAGIC)?)
}

/// Loads the proven revision of a data directory.
pub(super) fn load_proven(data_dir: &Path, types: &Registry) -> Option<Snapshot> {
    let exact = proven_revision(data_dir)?;
    let mut staging = Staging::on(None, types);
    let read = read_records(&data_dir.join(PROVEN), &proven_head(&exact), &mut staging).ok()?;
    staging.served().filter(|snapshot| read.clean && ExactRevision::of(snapshot) == exact).cloned()
}

fn proven_head(exact: &ExactRevision) -> Vec<u8> {
    format!("{PROVEN_MAGIC}{exact}\n").into_bytes()
}

/// The result of reading a file.
struct ReadResult {
    bytes: u64,
    /// True if the file ends at the end of a revision.
    clean: bool,
}

/// Reads the complete revisions of a file into `staging`.
fn read_records(path: &Path, magic: &[u8], staging: &mut Staging) -> io::Result<ReadResult> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut found = vec![0; magic.len()];
    if file.read_exact(&mut found).is_err() || found != magic {
        return Ok(ReadResult { bytes, clean: false });
    }
    let mut at_end_of_revision = true;
    loop {
        let record = match read_record(&mut file) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(ReadResult { bytes, clean: at_end_of_revision }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the snapshot on disk is truncated; the last complete revision is used");
                return Ok(ReadResult { bytes, clean: false });
            }
        };
        match staging.on_response(record) {
            Step::More => at_end_of_revision = false,
            Step::Served => at_end_of_revision = true,
            Step::Ready(candidate) => {
                staging.serve(candidate.snapshot);
                at_end_of_revision = true;
            }
            Step::Rejected(rejection) => {
                let reason = rejection.errors.first().map(|error| error.message.as_str()).unwrap_or_default();
                tracing::warn!(
                    path = %path.display(), revision = rejection.revision, reason,
                    "a revision on disk cannot be used"
                );
                return Ok(ReadResult { bytes, clean: false });
            }
        }
    }
}

fn read_record(file: &mut impl Read) -> io::Result<Option<DeltaDiscoveryResponse>> {
    let mut length = [0; 4];
    match file.read(&mut length)? {
        0 => return Ok(None),
        read => file.read_exact(length.get_mut(read..).unwrap_or_default())?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_RECORD {
        return Err(io::Error::other("a record's length is not one"));
    }
    let mut hash = [0; blake3::OUT_LEN];
    file.read_exact(&mut hash)?;
    let mut record = vec![0; length];
    file.read_exact(&mut record)?;
    if blake3::hash(&record) != hash {
        return Err(io::Error::other("a record's hash is not its own"));
    }
    DeltaDiscoveryResponse::decode(bytes::Bytes::from(record)).map(Some).map_err(io::Error::other)
}

/// Locks a data directory, which is created if needed; `None` if another process holds the lock.
fn lock(path: &Path) -> io::Result<Option<File>> {
    make_dir(path)?;
    let lock = private().create(true).write(true).truncate(false).open(path.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A callback that is called after every write, with the number of the revision or the error.
pub(super) type WriteCallback = Box<dyn Fn(Result<u64, &io::Error>) + Send>;

/// A callback that is called with each revision that was written as proven.
pub(super) type ProvenCallback = Box<dyn Fn(ExactRevision) + Send>;

/// Writes the last good snapshot on a thread of its own. Snapshots that arrive during a write are merged.
pub(super) struct Writer {
    shared: Arc<WriterShared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct WriterShared {
    pending: Mutex<Pending>,
    wake: Condvar,
}

#[derive(Default)]
struct Pending {
    /// True if the next snapshot does not continue the one on disk.
    anew: bool,
    snapshot: Option<Snapshot>,
    proven: Option<Snapshot>,
    changes: BTreeMap<ResourceKey, Change>,
    closed: bool,
}

impl Writer {
    pub(super) fn start(
        journal: Journal,
        on_write: WriteCallback,
        on_proven: ProvenCallback,
    ) -> io::Result<Self> {
        let shared = Arc::new(WriterShared { pending: Mutex::default(), wake: Condvar::new() });
        let thread = std::thread::Builder::new().name("last-good".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.run(journal, &on_write, &on_proven)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Forces a complete snapshot on the next write, see [`Journal::start_anew`].
    pub(super) fn start_anew(&self) {
        self.shared.pending().anew = true;
    }

    /// The other use of the thread.
    pub(super) fn prover(&self) -> Prover {
        Prover(Arc::clone(&self.shared))
    }

    /// Queues `snapshot`, which differs from the one before by `changes`. Does not wait.
    pub(super) fn enqueue(&self, snapshot: Snapshot, changes: &[Change]) {
        let mut pending = self.shared.pending();
        pending.changes.extend(changes.iter().map(|change| (change.key().clone(), change.clone())));
        pending.snapshot = Some(snapshot);
        drop(pending);
        self.shared.wake.notify_one();
    }
}

/// Keeps proven revisions through the thread of a [`Writer`].
pub(super) struct Prover(Arc<WriterShared>);

impl Prover {
    /// Queues a revision that is proven, in place of the one on disk. Does not wait. The proxy calls it when its own
    /// proof is done; a control plane's word would be as good.
    pub(super) fn prove(&self, snapshot: Snapshot) {
        self.0.pending().proven = Some(snapshot);
        self.0.wake.notify_one();
    }
}

impl Drop for Writer {
    /// Waits until everything queued is written.
    fn drop(&mut self) {
        self.shared.pending().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the last good snapshot panicked");
        }
    }
}

/// The next task of a [`Writer`]'s thread.
enum Work {
    Write(Snapshot, BTreeMap<ResourceKey, Change>),
    Prove(Snapshot),
}

impl WriterShared {
    fn run(&self, mut journal: Journal, on_write: &WriteCallback, on_proven: &ProvenCallback) {
        let mut failing = journal.dir.error.is_some();
        let mut proof_fails = false;
        while let Some(work) = self.next() {
            let goes_on = match work {
                Work::Write(snapshot, changes) => {
                    let revision = snapshot.id().number;
                    let result = self.write(&mut journal, snapshot, changes, &mut failing);
                    on_write(result.as_ref().map(|()| revision));
                    result.is_ok() || self.wait_retry()
                }
                Work::Prove(snapshot) => match journal.write_proven(&snapshot) {
                    Ok(()) => {
                        proof_fails = false;
                        on_proven(ExactRevision::of(&snapshot));
                        true
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut proof_fails, true) {
                            tracing::warn!(path = %journal.dir.path.display(), %error, "cannot write the proven snapshot; retrying");
                        }
                        self.pending().proven.get_or_insert(snapshot);
                        if !self.wait_retry() {
                            // The last good snapshot may still have to be written.
                            self.pending().proven = None;
                        }
                        true
                    }
                },
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Writes a snapshot. If it fails, puts the snapshot back.
    fn write(
        &self,
        journal: &mut Journal,
        snapshot: Snapshot,
        changes: BTreeMap<ResourceKey, Change>,
        failing: &mut bool,
    ) -> io::Result<()> {
        if std::mem::take(&mut self.pending().anew) {
            journal.start_anew();
        }
        let merged: Vec<_> = changes.values().cloned().collect();
        let result = journal.write(&snapshot, &merged);
        let was_failing = std::mem::replace(failing, result.is_err());
        let path = journal.dir.path.display();
        match &result {
            Ok(()) if was_failing => tracing::info!(%path, "the last good snapshot can be written again"),
            Ok(()) => {}
            Err(error) => {
                if !was_failing {
                    tracing::error!(%path, %error, "cannot write the last good snapshot; retrying");
                }
                let mut pending = self.pending();
                for (key, change) in changes {
                    pending.changes.entry(key).or_insert(change);
                }
                pending.snapshot.get_or_insert(snapshot);
            }
        }
        result
    }

    /// Waits for the next task; `None` once the writer is shut down.
    fn next(&self) -> Option<Work> {
        let mut pending = self.pending();
        loop {
            if let Some(snapshot) = pending.snapshot.take() {
                return Some(Work::Write(snapshot, std::mem::take(&mut pending.changes)));
            }
            if let Some(snapshot) = pending.proven.take() {
                return Some(Work::Prove(snapshot));
            }
            if pending.closed {
                return None;
            }
            pending = self.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits before the next try of a write. Returns `false` when the proxy shuts down.
    fn wait_retry(&self) -> bool {
        let (pending, _) = self
            .wake
            .wait_timeout_while(self.pending(), RETRY, |pending| !pending.closed)
            .unwrap_or_else(PoisonError::into_inner);
        !pending.closed
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces a file atomically: a reader, even after a crash, finds the old or the new one. Returns the new one's size
/// in bytes.
pub(super) fn replace_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<u64> {
    let temporary = path.with_extension("new");
    let file = private().create(true).write(true).truncate(true).open(&temporary)?;
    let mut file = BufWriter::with_capacity(RECORD, file);
    write(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    std::fs::rename(&temporary, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(bytes)
}

/// Options for opening files that hold secrets.
#[cfg(unix)]
pub(super) fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[cfg(unix)]
fn make_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn journal_magic(base: &Snapshot) -> Vec<u8> {
    let version = wire::marker_version(base);
    format!("signalbox journal 1 of {version}\n").into_bytes()
}

const SNAPSHOT_MAGIC: &[u8] = b"signalbox snapshot 1\n";

/// The name of the proven snapshot's file.
const PROVEN: &str = "proven";

/// The beginning of the first line of that file; the revision follows.
const PROVEN_MAGIC: &str = "signalbox proven 1 of ";

/// The maximum length in bytes of that line.
const MAX_HEAD: u64 = 4096;

/// The target size of a record in bytes; a single resource may be larger.
const RECORD: usize = 64 << 10;

const MAX_RECORD: usize = 64 << 20;

/// The delay after a failed write.
const RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::super::staging::tests::{gone, next, route};
    use super::*;

    fn load(path: &Path) -> (Option<Snapshot>, Journal) {
        DataDir::open(path.to_owned()).unwrap().load(&Registry::default())
    }

    fn loaded(path: &Path) -> Option<Snapshot> {
        load(path).0
    }

    /// Writes one further revision, and returns it.
    fn write(journal: &mut Journal, before: &Snapshot, changes: &[Change]) -> Snapshot {
        let after = next(before, changes);
        journal.write(&after, changes).unwrap();
        after
    }

    fn size(dir: &Path, name: &str) -> u64 {
        std::fs::metadata(dir.join(name)).unwrap().len()
    }

    fn same(a: Option<&Snapshot>, b: &Snapshot) -> bool {
        a.is_some_and(|a| a.id() == b.id() && a.digest() == b.digest() && a.len() == b.len())
    }

    #[test]
    fn an_empty_directory_has_no_last_good_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        assert!(loaded(dir.path()).is_none());
        assert!(loaded(&dir.path().join("made/at/need")).is_none());
    }

    #[test]
    fn what_was_written_is_read_back_and_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = Snapshot::empty("e");
        for round in 0..5 {
            let (found, mut journal) = load(dir.path());
            assert!(round == 0 || same(found.as_ref(), &last));
            last = write(
                &mut journal,
                &last,
                &[route("a", &round.to_string()), route(&format!("r{round}"), "x")],
            );
            last = write(&mut journal, &last, &[gone(&format!("r{round}"))]);
        }
        let found = loaded(dir.path()).unwrap();
        assert!(same(Some(&found), &last));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_revision_costs_its_changes() {
        let dir = tempfile::tempdir().unwrap();
        let many: Vec<_> = (0..5000).map(|index| route(&format!("r{index}"), "x")).collect();
        let (_, mut journal) = load(dir.path());
        let mut last = write(&mut journal, &Snapshot::empty("e"), &many);
        let (snapshot, journal_before) = (size(dir.path(), "snapshot"), size(dir.path(), "journal"));
        for round in 0..10 {
            last = write(&mut journal, &last, &[route("r7", &round.to_string())]);
        }
        assert_eq!(size(dir.path(), "snapshot"), snapshot);
        let grown = size(dir.path(), "journal") - journal_before;
        assert!(grown < 10 * 600, "{grown} bytes for ten changes");
        drop(journal);
        assert!(same(loaded(dir.path()).as_ref(), &last));
    }

    #[test]
    fn a_journal_that_outgrows_the_snapshot_becomes_one() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut journal) = load(dir.path());
        let mut last = write(&mut journal, &Snapshot::empty("e"), &[route("a", "0")]);
        let body = "x".repeat(10_000);
        let mut largest = 0;
        for round in 0..100 {
            last = write(&mut journal, &last, &[route("a", &format!("{round}{body}"))]);
            largest = largest.max(size(dir.path(), "journal"));
        }
        assert!(largest < Journal::SMALL + 20_000, "{largest}");
        assert!(size(dir.path(), "journal") < largest);
        drop(journal);
        assert!(same(loaded(dir.path()).as_ref(), &last));
    }

    #[test]
    fn a_torn_tail_leaves_the_last_whole_revision() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut journal) = load(dir.path());
        let one = write(&mut journal, &Snapshot::empty("e"), &[route("a", "1"), route("b", "1")]);
        let two = write(&mut journal, &one, &[route("a", "2")]);
        let boundary = size(dir.path(), "journal");
        let three = write(&mut journal, &two, &[gone("b"), route("c", "3")]);
        drop(journal);
        let [snapshot, whole] =
            ["snapshot", "journal"].map(|name| std::fs::read(dir.path().join(name)).unwrap());
        let cuts = (boundary..whole.len() as u64).enumerate();
        // Every position in the record's head, and some in its body.
        for (_, length) in cuts.filter(|(index, _)| *index < 40 || index % 16 == 0) {
            std::fs::write(dir.path().join("snapshot"), &snapshot).unwrap();
            std::fs::write(dir.path().join("journal"), &whole[..length as usize]).unwrap();
            let (found, mut journal) = load(dir.path());
            assert!(same(found.as_ref(), &two), "cut at {length}");
            // Records that are written later are not lost behind the torn record.
            journal.write(&three, &[gone("b"), route("c", "3")]).unwrap();
            drop(journal);
            assert!(same(loaded(dir.path()).as_ref(), &three), "cut at {length}");
        }
    }

    #[test]
    fn a_byte_that_changed_on_disk_never_becomes_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut journal) = load(dir.path());
        let one = write(&mut journal, &Snapshot::empty("e"), &[route("a", "1")]);
        let two = write(&mut journal, &one, &[route("a", "2")]);
        drop(journal);
        for name in ["snapshot", "journal"] {
            let whole = std::fs::read(dir.path().join(name)).unwrap();
            for index in 0..whole.len() {
                let mut spoilt = whole.clone();
                spoilt[index] ^= 0x10;
                std::fs::write(dir.path().join(name), &spoilt).unwrap();
                let found = loaded(dir.path());
                let good = found.is_none() || same(found.as_ref(), &one) || same(found.as_ref(), &two);
                assert!(good, "{name} at {index}: {found:?}");
            }
            std::fs::write(dir.path().join(name), &whole).unwrap();
        }
        assert!(same(loaded(dir.path()).as_ref(), &two));
    }

    #[test]
    fn a_journal_of_an_older_snapshot_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut journal) = load(dir.path());
        let one = write(&mut journal, &Snapshot::empty("e"), &[route("a", "1")]);
        let two = write(&mut journal, &one, &[route("a", "2")]);
        let old_journal = std::fs::read(dir.path().join("journal")).unwrap();
        let mut three = Snapshot::empty("f");
        three = next(&three, &[route("z", "3")]);
        journal.write(&three, &[]).unwrap();
        drop(journal);
        // This is the state if the process ends between writing the two files.
        std::fs::write(dir.path().join("journal"), &old_journal).unwrap();
        assert!(same(loaded(dir.path()).as_ref(), &three));
        assert!(!same(loaded(dir.path()).as_ref(), &two));
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let (_, mut journal) = load(&path);
        write(&mut journal, &Snapshot::empty("e"), &[route("a", "1")]);
        for name in ["lock", "snapshot", "journal"] {
            let mode = std::fs::metadata(path.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_node_id_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let id = DataDir::open(dir.path().to_owned()).unwrap().node_id();
        assert_eq!(id.len(), 36);
        assert_eq!(DataDir::open(dir.path().to_owned()).unwrap().node_id(), id);
    }

    #[test]
    fn a_node_id_that_control_planes_refuse_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("node-id"), "a b\n").unwrap();
        let id = DataDir::open(dir.path().to_owned()).unwrap().node_id();
        assert!(id.parse::<NodeId>().is_ok(), "{id}");
        assert_eq!(DataDir::open(dir.path().to_owned()).unwrap().node_id(), id);
    }

    #[test]
    fn a_directory_that_becomes_writable_later_keeps_the_identity_and_the_snapshot() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        // Nobody, not even root, can create a directory where there is a file.
        std::fs::write(&path, "").unwrap();
        let mut opened = DataDir::open(path.clone()).unwrap();
        let id = opened.node_id();
        assert!(opened.error().is_some());
        let (found, mut journal) = opened.load(&Registry::default());
        assert!(found.is_none());
        let changes = [route("a", "1")];
        let one = next(&Snapshot::empty("e"), &changes);
        assert!(journal.write(&one, &changes).is_err());
        std::fs::remove_file(&path).unwrap();
        journal.write(&one, &changes).unwrap();
        assert!(DataDir::open(path.clone()).is_err(), "it is locked now");
        drop(journal);
        assert!(same(loaded(&path).as_ref(), &one));
        assert_eq!(DataDir::open(path).unwrap().node_id(), id);
    }

    #[test]
    fn a_directory_is_one_proxys_alone_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path().to_owned()).unwrap();
        let second = DataDir::open(dir.path().to_owned()).unwrap_err();
        assert!(matches!(second, StartError::DataDirInUse(_)));
        drop(first);
        DataDir::open(dir.path().to_owned()).unwrap();
    }

    #[test]
    fn what_is_noted_while_it_writes_is_written_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (_, journal) = load(dir.path());
        let writer = Writer::start(journal, Box::new(|_| {}), Box::new(|_| {})).unwrap();
        let mut last = Snapshot::empty("e");
        for round in 0..200 {
            let changes = [route("a", &round.to_string()), gone("b"), route(&format!("r{}", round % 7), "x")];
            last = next(&last, &changes);
            writer.enqueue(last.clone(), &changes);
        }
        drop(writer);
        assert!(same(loaded(dir.path()).as_ref(), &last));
    }
}
