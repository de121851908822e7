//! The thread that writes a file.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use signalbox_config::Name;
use signalbox_plugin::{Context, LogRecord};
use tokio::sync::mpsc;
use tracing::error;

use super::file::LogFile;
use crate::log_sink::{DROPPED, Entry, Gate, Losses, QueueSpec};

/// One plugin's way to the writer of its file. It outlives revisions as long as its configuration stays the same.
pub(super) struct FileSink {
    source: Arc<Source>,
    writer: Arc<Writer>,
}

/// The bound and the counts of a plugin's lines.
struct Source {
    gate: Gate,
    losses: Losses,
}

struct Line {
    entry: Entry,
    source: Arc<Source>,
}

/// The thread that writes a file, for all plugins with its path.
struct Writer {
    /// `None` once it is to end. What each source puts in is bounded by its gate.
    lines: Option<mpsc::UnboundedSender<Line>>,
    /// Closed when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

/// The pause in which lines gather, so that each does not wake the thread.
const GATHER: Duration = Duration::from_millis(20);
/// The most bytes that are written at once, but for one line.
const MAX_WRITE: usize = 256 << 10;
/// The longest time in which the last lines are written.
const LAST_LINES: Duration = Duration::from_secs(2);

impl FileSink {
    /// The sink of this plugin with this path, as it was in the revision before, or a new one.
    pub(super) fn of(path: &Path, queue: &QueueSpec, context: &Context<'_>) -> Self {
        #[expect(clippy::expect_used, reason = "a constant")]
        static SHARED: LazyLock<Name> = LazyLock::new(|| "log-files".parse().expect("a name"));
        let source = context.state(&(path, queue), || Source {
            gate: Gate::new(queue),
            losses: Losses::new(context.outcomes.clone(), context.log.clone(), context.clock.clone()),
        });
        // Not under the plugin's own name.
        let name = SHARED.clone();
        let writer = context.named(&name).state(&path, || Writer::start(path.to_owned()));
        Self { source, writer }
    }

    /// Puts an entry into the queue. One for which there is no room is counted, and no more.
    pub(super) fn push(&self, entry: Entry, record: &LogRecord<'_>) {
        let Source { gate, losses } = &*self.source;
        let size = entry.len();
        if gate.admit(size).is_none() {
            losses.note_dropped();
            record.count(DROPPED);
        } else if !self.writer.write(Line { entry, source: Arc::clone(&self.source) }) {
            gate.release(1, size);
            losses.note_dropped();
            record.count(DROPPED);
        }
    }
}

impl Writer {
    fn start(path: PathBuf) -> Self {
        let (lines, receiver) = mpsc::unbounded_channel();
        let (running, ended) = channel();
        let started = std::thread::Builder::new()
            .name("file-log".to_owned())
            .spawn(move || write_all(receiver, LogFile::new(path), &running));
        if let Err(error) = started {
            // All lines are dropped, because nobody receives them.
            error!(%error, "cannot start the thread that writes a log file");
        }
        Self { lines: Some(lines), ended: Mutex::new(ended) }
    }

    fn write(&self, line: Line) -> bool {
        self.lines.as_ref().is_some_and(|lines| lines.send(line).is_ok())
    }
}

impl Drop for Writer {
    /// Waits until the last lines are written. A writer goes with a revision, which no worker drops.
    fn drop(&mut self) {
        self.lines = None;
        if let Ok(ended) = self.ended.get_mut() {
            // Nothing is ever sent: it ends with the thread, or the time is over.
            let _ = ended.recv_timeout(LAST_LINES);
        }
    }
}

/// Writes lines until the last sender is gone. `_running` is dropped at its end.
fn write_all(mut receiver: mpsc::UnboundedReceiver<Line>, mut file: LogFile, _running: &Sender<()>) {
    let mut lines = Vec::new();
    let mut bytes = Vec::new();
    while let Some(first) = receiver.blocking_recv() {
        if !receiver.is_closed() && receiver.is_empty() {
            std::thread::sleep(GATHER);
        }
        let mut next = Some(first);
        while let Some(line) = next {
            bytes.extend_from_slice(&line.entry);
            bytes.push(b'\n');
            lines.push(line);
            next = if bytes.len() < MAX_WRITE { receiver.try_recv().ok() } else { None };
        }
        let (written, error) = file.append(&bytes);
        settle(&lines, written, error.as_ref().map(|error| error as &dyn std::fmt::Display));
        lines.clear();
        bytes.clear();
    }
}

/// Counts lines of which so many bytes were written.
fn settle(lines: &[Line], written: usize, cause: Option<&dyn std::fmt::Display>) {
    let mut end = 0;
    for Line { entry, source } in lines {
        end += entry.len() + 1;
        source.gate.release(1, entry.len());
        if end <= written {
            source.losses.count_sent(1);
        } else {
            source.losses.count_failed(1);
        }
    }
    let changes = |pair: &[Line]| !matches!(pair, [one, other] if Arc::ptr_eq(&one.source, &other.source));
    for (index, Line { source, .. }) in lines.iter().enumerate() {
        if lines.get(index..index + 2).is_none_or(changes) {
            source.losses.report(cause);
        }
    }
}
