//! The way of full buffers to the writer, and of written ones back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};

/// The channels by which workers send full buffers, and get empty ones.
#[derive(Debug, Clone)]
pub struct Sender {
    full: SyncSender<Vec<u8>>,
    returned: Returned,
}

/// The writer's way back to workers: written buffers and lost lines.
#[derive(Debug, Clone, Default)]
pub struct Returned {
    written: Arc<Mutex<Vec<Vec<u8>>>>,
    reopen: Arc<AtomicBool>,
    /// Lines that could not be written, and that no worker has counted yet.
    unwritten: Arc<AtomicU64>,
}

/// A buffer is sent at this size in bytes. The kernel writes large pieces at half the cost of small ones.
pub(super) const BUFFER: usize = 256 << 10;

/// The number of written buffers that are kept for reuse: fresh memory would cost a page fault for every ten lines.
const KEPT: usize = 16;

/// Creates the workers' and the writer's end, with at most `capacity` buffers in transit.
pub fn channel(capacity: usize) -> (Sender, Receiver<Vec<u8>>) {
    let (full, receiver) = sync_channel(capacity);
    (Sender { full, returned: Returned::default() }, receiver)
}

impl Sender {
    /// A flag to set after log rotation: the file is reopened before the next lines are written.
    pub fn reopening(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.returned.reopen)
    }

    pub fn returned(&self) -> &Returned {
        &self.returned
    }

    /// Sends a buffer to the writer without waiting. Returns one that the writer does not take, emptied.
    pub fn send(&self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        match self.full.try_send(bytes) {
            Ok(()) => None,
            Err(TrySendError::Full(mut bytes) | TrySendError::Disconnected(mut bytes)) => {
                bytes.clear();
                Some(bytes)
            }
        }
    }

    /// Returns an empty buffer without waiting.
    pub fn buffer(&self) -> Vec<u8> {
        let kept = self.returned.written.try_lock().ok().and_then(|mut written| written.pop());
        kept.unwrap_or_else(|| Vec::with_capacity(BUFFER + 1024))
    }
}

impl Returned {
    /// Keeps a buffer that was written for reuse.
    pub fn keep(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        if let Ok(mut written) = self.written.lock()
            && written.len() < KEPT
        {
            written.push(buffer);
        }
    }

    /// Counts lines that could not be written.
    pub fn add_unwritten(&self, lines: u64) {
        self.unwritten.fetch_add(lines, Ordering::Relaxed);
    }

    /// True if there are lines that could not be written, and that are not counted yet.
    pub fn has_unwritten(&self) -> bool {
        self.unwritten.load(Ordering::Relaxed) > 0
    }

    /// The number of lines that could not be written since the last call.
    pub fn take_unwritten(&self) -> u64 {
        if self.has_unwritten() { self.unwritten.swap(0, Ordering::Relaxed) } else { 0 }
    }

    /// True if the log was to be reopened since the last call.
    pub fn take_reopen(&self) -> bool {
        self.reopen.swap(false, Ordering::Relaxed)
    }
}
