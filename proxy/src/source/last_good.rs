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

/// A data directory that is this proxy's alone.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// Unlocked when it is closed, however the proxy ends.
    _lock: File,
}

impl DataDir {
    /// Makes it if needed, and locks it.
    pub(super) fn open(path: PathBuf) -> Result<Self, StartError> {
        let failed = |error| StartError::Io { path: path.clone(), error };
        make_dir(&path).map_err(failed)?;
        let lock =
            private().create(true).write(true).truncate(false).open(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StartError::DataDirInUse(path)),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The identity that is kept here; made and stored at the first start.
    pub(super) fn node_id(&self) -> Result<String, StartError> {
        let path = self.path.join("node-id");
        let made = match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(error)),
        };
        let made = made.unwrap_or_else(|| {
            let id = uuid::Uuid::now_v7().to_string();
            replace_file(&path, |file| writeln!(file, "{id}")).map(|_| id)
        });
        made.map_err(|error| StartError::Io { path, error })
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
    let mut buffer = Vec::new();
    let bytes = write_records(&mut buffer, snapshot, Some(changes))?;
    file.write_all(&buffer)?;
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
    pub(super) fn start(journal: Journal) -> io::Result<Self> {
        let shared = Arc::new(WriterShared { pending: Mutex::default(), wake: Condvar::new() });
        let thread = std::thread::Builder::new().name("last-good".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.run(journal)
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
    fn run(&self, mut journal: Journal) {
        let mut failing = false;
        while let Some((snapshot, changes)) = self.next() {
            let merged: Vec<_> = changes.values().cloned().collect();
            match journal.write(&snapshot, &merged) {
                Ok(()) => failing = false,
                Err(error) => {
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
    let mut file = BufWriter::with_capacity(1 << 18, file);
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
const RECORD: usize = 1 << 20;

const MAX_RECORD: usize = 64 << 20;

/// How long after a failed write the next is tried.
const RETRY: Duration = Duration::from_secs(5);
