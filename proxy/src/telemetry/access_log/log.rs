//! A worker's end of the log: lines are encoded into its own buffer.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use signalbox_config::LogFormat;
use tokio::sync::Notify;

use super::clock::Clock;
use super::entry::Entry;
use super::json::{Head, write_line, write_more};
use super::queue::{BUFFER, Sender};
use super::text::{View, write_text};
use crate::telemetry::counters::WorkerStats;

/// One worker's end of the log.
pub struct Log {
    buffer: Rc<RefCell<Buffer>>,
    /// Notified when the buffer is no longer empty.
    begun: Rc<Notify>,
}

struct Buffer {
    bytes: Vec<u8>,
    lines: u64,
    clock: Clock,
    /// Memory for heads.
    scratch: Vec<u8>,
    sender: Sender,
}

/// The time after its first line at which a buffer is sent.
const FLUSH: Duration = Duration::from_millis(200);

impl Log {
    pub fn new(sender: Sender) -> Self {
        let (clock, scratch) = Default::default();
        let buffer = Buffer { bytes: sender.buffer(), lines: 0, clock, scratch, sender };
        Self { buffer: Rc::new(RefCell::new(buffer)), begun: Rc::default() }
    }

    /// Adds a line of JSON.
    pub fn write(&self, stats: &WorkerStats, head: &Head, entry: &Entry<'_>) {
        self.add(stats, |buffer| write_line(&mut buffer.bytes, &mut buffer.clock, head, entry, |_| {}));
    }

    /// Adds a line in the form that its listener's settings give.
    pub fn write_as(&self, stats: &WorkerStats, view: View<'_>) {
        self.add(stats, |buffer| match &view.settings.format {
            LogFormat::Json => buffer.json(view),
            LogFormat::Text(template) => write_text(&mut buffer.bytes, template, view),
        });
    }

    #[inline]
    fn add(&self, stats: &WorkerStats, write: impl FnOnce(&mut Buffer)) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.bytes.is_empty() {
            self.begun.notify_one();
        }
        buffer.lines += 1;
        write(&mut buffer);
        if buffer.bytes.len() >= BUFFER {
            buffer.hand_over(stats);
        }
    }

    /// Sends the buffered lines.
    pub fn flush(&self, stats: &WorkerStats) {
        self.buffer.borrow_mut().hand_over(stats);
    }

    /// Sends buffered lines after [`FLUSH`]; never returns.
    pub fn flusher(&self, stats: Arc<WorkerStats>) -> impl Future<Output = ()> + 'static {
        let (buffer, begun) = (Rc::clone(&self.buffer), Rc::clone(&self.begun));
        async move {
            loop {
                begun.notified().await;
                tokio::time::sleep(FLUSH).await;
                buffer.borrow_mut().hand_over(&stats);
            }
        }
    }
}

/// The last lines of a worker are written when it ends.
impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.sender.send(std::mem::take(&mut self.bytes));
        }
    }
}

impl Buffer {
    fn hand_over(&mut self, stats: &WorkerStats) {
        if self.bytes.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        let unwritten = self.sender.returned().take_unwritten();
        if unwritten > 0 {
            stats.log_dropped.add(unwritten);
        }
        let bytes = std::mem::replace(&mut self.bytes, self.sender.buffer());
        if let Some(bytes) = self.sender.send(bytes) {
            stats.log_dropped.add(lines);
            self.bytes = bytes;
        }
    }

    fn json(&mut self, view: View<'_>) {
        let View { settings, parts, entry, weight } = view;
        let memory = std::mem::take(&mut self.scratch);
        let head = match parts {
            Some(parts) => Head::of_parts(memory, parts, settings.query.as_deref()),
            None => Head::new(memory, "", b"", "", "", b""),
        };
        let more = |out: &mut Vec<u8>| write_more(out, settings, parts, weight);
        write_line(&mut self.bytes, &mut self.clock, &head, entry, more);
        self.scratch = head.into_memory();
    }
}
