//! What was applied last, on disk: a proxy that starts while no control plane answers serves it.
//!
//! The data directory has
//! - `lock`, held while the proxy runs: no two share a directory;
//! - `node-id`, the proxy's identity;
//! - `snapshot`, all of one revision, replaced as a whole;
//! - `journal`, what changed since, appended to: so that a revision costs its changes here, too.
//!
//! Both are records of what a control plane could have sent, each with its length and a hash, and are read through the
//! same [`Staging`] that reads the network. A record that was cut off ends what is read, and the last whole revision
//! counts.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use signalbox_config::{Change, ResourceKey, RevisionId, Snapshot, wire};
use signalbox_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

use super::StartError;
use super::staging::{Staging, Step, responses};

/// A data directory that is this proxy's alone. One that cannot be written now is read, and tried again with every write.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// Unlocked when it is closed, however the proxy ends. `None`: the directory could not be written yet.
    lock: Option<File>,
    /// An identity that was made and could not be stored yet.
    unsaved_id: Option<String>,
    /// Why it cannot be written.
    error: Option<io::Error>,
}

impl DataDir {
    /// Makes it if needed, and locks it. The only error is that another proxy uses it.
    pub(super) fn open(path: PathBuf) -> Result<Self, StartError> {
        let (lock, error) = match lock(&path) {
            Ok(Some(lock)) => (Some(lock), None),
            Ok(None) => return Err(StartError::DataDirInUse(path)),
            Err(error) => (None, Some(error)),
        };
        Ok(Self { path, lock, unsaved_id: None, error })
    }

    /// The identity that is kept here; made, and stored if possible, at the first start.
    pub(super) fn node_id(&mut self) -> String {
        let path = self.path.join("node-id");
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        if !stored.trim().is_empty() {
            return stored.trim().to_owned();
        }
        let id = uuid::Uuid::now_v7().to_string();
        self.unsaved_id = Some(id.clone());
        if self.error.is_none() {
            self.error = self.make_writable().err();
        }
        id
    }

    /// Why it cannot be written; what it keeps may be out of date.
    pub(super) fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    /// Makes up for what could not be done when it was opened.
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

    /// The last good revision, and the journal to go on with.
    pub(super) fn load(self) -> (Option<Snapshot>, Journal) {
        let mut staging = Staging::default();
        let snapshot = read_records(&self.path.join("snapshot"), SNAPSHOT_MAGIC, &mut staging);
        let mut journal =
            Journal { dir: self, file: None, snapshot_bytes: 0, journal_bytes: 0, written: None };
        if let Ok(Outcome { bytes, clean: true }) = snapshot
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

/// The files of the last good snapshot, to be written.
#[derive(Debug)]
pub(super) struct Journal {
    dir: DataDir,
    /// The journal, at its end. `None`: what is on disk cannot be added to, and is to be written anew.
    file: Option<File>,
    snapshot_bytes: u64,
    journal_bytes: u64,
    /// What is on disk.
    written: Option<RevisionId>,
}

impl Journal {
    /// Has everything written next, for what is on disk is not what the next changes start from.
    pub(super) fn start_anew(&mut self) {
        self.file = None;
    }

    /// A journal below this size is not worth a new snapshot, bytes.
    const SMALL: u64 = 256 << 10;

    /// Writes `snapshot`, which `changes` lead to from what was written before.
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
            // What it ends with now is not known.
            Err(_) => self.file = None,
        }
        result
    }

    fn write_all(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.file = None;
        // From here on the old journal does not fit the snapshot, and is not read: it names what it continues.
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

/// How reading a file went.
struct Outcome {
    bytes: u64,
    /// It ended where a revision ends.
    clean: bool,
}

/// Reads the revisions of a file into `staging`, as far as they are whole.
fn read_records(path: &Path, magic: &[u8], staging: &mut Staging) -> io::Result<Outcome> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut found = vec![0; magic.len()];
    if file.read_exact(&mut found).is_err() || found != magic {
        return Ok(Outcome { bytes, clean: false });
    }
    let mut at_end_of_revision = true;
    loop {
        let record = match read_record(&mut file) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(Outcome { bytes, clean: at_end_of_revision }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was kept on disk ends early; the last whole revision counts");
                return Ok(Outcome { bytes, clean: false });
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
                    "a revision that was kept on disk cannot be used"
                );
                return Ok(Outcome { bytes, clean: false });
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

/// The lock on a data directory, which is made if needed; `None`: another process has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    make_dir(path)?;
    let lock = private().create(true).write(true).truncate(false).open(path.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Told of every write: `None` when it was made, else why not.
pub(super) type Told = Box<dyn Fn(Option<&io::Error>) + Send>;

/// Writes the last good snapshot on a thread of its own. While it writes, what comes is merged.
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
    snapshot: Option<Snapshot>,
    changes: BTreeMap<ResourceKey, Change>,
    closed: bool,
}

impl Writer {
    pub(super) fn start(journal: Journal, told: Told) -> io::Result<Self> {
        let shared = Arc::new(WriterShared { pending: Mutex::default(), wake: Condvar::new() });
        let thread = std::thread::Builder::new().name("last-good".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.run(journal, &told)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has `snapshot` written, which `changes` lead to from the one before. Does not wait.
    pub(super) fn note(&self, snapshot: Snapshot, changes: &[Change]) {
        let mut pending = self.shared.pending();
        pending.changes.extend(changes.iter().map(|change| (change.key().clone(), change.clone())));
        pending.snapshot = Some(snapshot);
        drop(pending);
        self.shared.wake.notify_one();
    }
}

impl Drop for Writer {
    /// Waits until what was noted is written.
    fn drop(&mut self) {
        self.shared.pending().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps the last good snapshot panicked");
        }
    }
}

impl WriterShared {
    fn run(&self, mut journal: Journal, told: &Told) {
        let mut failing = journal.dir.error.is_some();
        while let Some((snapshot, changes)) = self.next() {
            let merged: Vec<_> = changes.values().cloned().collect();
            match journal.write(&snapshot, &merged) {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(path = %journal.dir.path.display(), "the last good snapshot is kept on disk again");
                    }
                    told(None);
                }
                Err(error) => {
                    told(Some(&error));
                    if !failing {
                        tracing::error!(path = %journal.dir.path.display(), %error, "cannot keep the last good snapshot on disk; trying on");
                    }
                    failing = true;
                    if !self.put_back(snapshot, changes) {
                        return;
                    }
                }
            }
        }
    }

    /// What is to be written; `None` when there is nothing more to come.
    fn next(&self) -> Option<(Snapshot, BTreeMap<ResourceKey, Change>)> {
        let mut pending = self.pending();
        loop {
            if let Some(snapshot) = pending.snapshot.take() {
                return Some((snapshot, std::mem::take(&mut pending.changes)));
            }
            if pending.closed {
                return None;
            }
            pending = self.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits before the next try; `false` when the proxy ends.
    fn put_back(&self, snapshot: Snapshot, changes: BTreeMap<ResourceKey, Change>) -> bool {
        let mut pending = self.pending();
        for (key, change) in changes {
            pending.changes.entry(key).or_insert(change);
        }
        pending.snapshot.get_or_insert(snapshot);
        if pending.closed {
            return false;
        }
        let (pending, _) = self
            .wake
            .wait_timeout_while(pending, RETRY, |pending| !pending.closed)
            .unwrap_or_else(PoisonError::into_inner);
        !pending.closed
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces a file as a whole: whoever reads it, after a crash too, finds the old or the new one. The new one's size.
fn replace_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<u64> {
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

/// For files that hold secrets.
#[cfg(unix)]
fn private() -> OpenOptions {
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
    let version = wire::marker_version(base.id(), &base.digest());
    format!("signalbox journal 1 of {version}\n").into_bytes()
}

const SNAPSHOT_MAGIC: &[u8] = b"signalbox snapshot 1\n";

/// How much a record holds, bytes; one resource may be larger.
const RECORD: usize = 64 << 10;

const MAX_RECORD: usize = 64 << 20;

/// How long after a failed write the next is tried.
const RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::super::staging::tests::{gone, next, route};
    use super::*;

    fn load(path: &Path) -> (Option<Snapshot>, Journal) {
        DataDir::open(path.to_owned()).unwrap().load()
    }

    fn loaded(path: &Path) -> Option<Snapshot> {
        load(path).0
    }

    /// Writes a revision after another; the next.
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
        // Every place in the record's head, and some in its body.
        for (_, length) in cuts.filter(|(index, _)| *index < 40 || index % 16 == 0) {
            std::fs::write(dir.path().join("snapshot"), &snapshot).unwrap();
            std::fs::write(dir.path().join("journal"), &whole[..length as usize]).unwrap();
            let (found, mut journal) = load(dir.path());
            assert!(same(found.as_ref(), &two), "cut at {length}");
            // What is written after that is not lost behind the torn record.
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
        // As if the process had ended between the two files.
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
    fn a_directory_that_becomes_writable_later_keeps_the_identity_and_the_snapshot() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        // Nobody can make a directory where a file is, root neither.
        std::fs::write(&path, "").unwrap();
        let mut opened = DataDir::open(path.clone()).unwrap();
        let id = opened.node_id();
        assert!(opened.error().is_some());
        let (found, mut journal) = opened.load();
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
        let writer = Writer::start(journal, Box::new(|_| {})).unwrap();
        let mut last = Snapshot::empty("e");
        for round in 0..200 {
            let changes = [route("a", &round.to_string()), gone("b"), route(&format!("r{}", round % 7), "x")];
            last = next(&last, &changes);
            writer.note(last.clone(), &changes);
        }
        drop(writer);
        assert!(same(loaded(dir.path()).as_ref(), &last));
    }
}
