//! The begin of a run: what the data directory has, and which revision of it the proxy serves first.

use std::path::PathBuf;

use signalbox_config::Snapshot;
use signalbox_plugin::Registry;

use super::guard::{Durability, Found, Marker};
use super::last_good::{DataDir, Journal, load_proven, proven_revision};
use super::starts::{ExactRevision, Start, choose};
use super::status::StartError;

/// The result of opening a data directory.
pub(super) struct Opened {
    pub(super) node_id: String,
    /// The reason why the directory cannot be written.
    pub(super) error: Option<String>,
    /// The decision, and the snapshot that it is about.
    pub(super) start: Start,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) journal: Journal,
    pub(super) found: Found,
}

/// Opens the data directory, and decides what the run serves first. Blocks.
pub(super) fn open(
    data_dir: PathBuf,
    node_id: Option<String>,
    types: &Registry,
) -> Result<Opened, StartError> {
    let mut dir = DataDir::open(data_dir)?;
    let node_id = node_id.unwrap_or_else(|| dir.node_id());
    let error = dir.error().map(ToString::to_string);
    let path = dir.path().to_owned();
    let mut proven = proven_revision(&path);
    let (mut marker, history) = Marker::read(&path);
    let boot = uuid::Uuid::new_v4().simple().to_string();
    let (history, crash_loop) = history.next_run(boot, proven.as_ref());
    // Reading a snapshot may crash as well. If the marker cannot be written now, the guard says so at its first write.
    let _ = marker.write(&history, Durability::Process);
    // After crashes, the applied snapshot is not even read if there is a proven one.
    let mut fallback = if crash_loop { load_proven(&path, types) } else { None };
    if crash_loop && fallback.is_none() {
        // It cannot be read, and is not to be read once more.
        proven = None;
    }
    let (applied, mut journal) = match &fallback {
        Some(_) => (None, dir.without_load()),
        None => dir.load(types),
    };
    let exact = applied.as_ref().map(ExactRevision::of);
    let mut start = choose(&history, crash_loop, exact.as_ref(), proven.as_ref());
    if start == Start::Proven && fallback.is_none() {
        fallback = load_proven(&path, types);
        if fallback.is_none() {
            proven = None;
            start = choose(&history, crash_loop, exact.as_ref(), None);
        }
    }
    if start != Start::Applied {
        // The next revision is not a difference from the one on disk.
        journal.start_anew();
    }
    let snapshot = match start {
        Start::Applied => applied,
        Start::Proven => fallback,
        Start::AskFirst => fallback.or(applied),
    };
    Ok(Opened { node_id, error, start, snapshot, journal, found: Found { marker, history, proven } })
}
