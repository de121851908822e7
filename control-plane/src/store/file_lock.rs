//! One control plane at a time uses a SQLite file: what one holds in memory the other would not know of.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::interface::StoreError;
use super::sqlite;

/// The right to use a SQLite file, as long as it is kept; the kernel takes it back when the process ends, however it ends.
///
/// It is a lock on a file beside the database, `signalbox.db.lock`, that names the process. The database file itself
/// cannot have it: closing any descriptor of that would let go of SQLite's own locks.
#[derive(Debug)]
pub struct FileLock(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

impl FileLock {
    /// Takes the lock of a URL's file; `None` where the database is no file. [`StoreError::Broken`] when another process
    /// has it.
    pub fn take(url: &str) -> Result<Option<Self>, StoreError> {
        // Opening says what is wrong with a URL that names no file.
        let file = sqlite::file_of(url).filter(|_| !sqlite::is_in_memory(url));
        file.map(|file| Self::beside(&file)).transpose()
    }

    fn beside(database: &Path) -> Result<Self, StoreError> {
        sqlite::make_private(database)?;
        // By whatever name the file is called, it has one lock.
        let database = database.canonicalize().unwrap_or_else(|_| database.to_owned());
        let path = lock_path(&database);
        let broken = |error: std::io::Error| {
            StoreError::Broken(format!("{} cannot be locked: {error}", path.display()))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(broken)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // A lock file is a few bytes; whatever else it is, no more of it is read.
                let _ = std::io::Read::by_ref(&mut file).take(32).read_to_string(&mut text);
                let holder = match text.trim() {
                    "" => String::new(),
                    pid => format!(", process {pid}"),
                };
                return Err(StoreError::Broken(format!(
                    "{} is in use by another control plane{holder}; several can share a PostgreSQL database",
                    database.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(broken(error)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(broken)?;
        Ok(Self(file))
    }
}

fn lock_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
