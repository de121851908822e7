use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use signalbox_config::Name;

use crate::clock::Clock;

/// The program's log, in a plugin's name and at a limited rate. A clone shares the limit.
#[derive(Debug, Clone)]
pub struct Logger(Arc<Limited>);

#[derive(Debug)]
struct Limited {
    plugin: Name,
    clock: Clock,
    /// The time at which the current window began, in milliseconds, and the lines in it.
    window: AtomicU64,
    lines: AtomicU64,
    suppressed: AtomicU64,
}

/// The lines that a plugin may write in a window; the others are counted.
const LINES: u64 = 10;
const WINDOW: Duration = Duration::from_secs(10);

impl Logger {
    /// The log of this plugin.
    pub fn new(plugin: Name, clock: Clock) -> Self {
        let (window, lines, suppressed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Limited { plugin, clock, window, lines, suppressed }))
    }

    /// The plugin.
    pub fn plugin(&self) -> &Name {
        &self.0.plugin
    }

    /// Something failed that someone should look at.
    pub fn warn(&self, message: impl fmt::Display) {
        if let Some(suppressed) = self.0.may_write() {
            tracing::warn!(plugin = %self.0.plugin, suppressed, "{message}");
        }
    }

    /// Something happened that is good to know.
    pub fn info(&self, message: impl fmt::Display) {
        if let Some(suppressed) = self.0.may_write() {
            tracing::info!(plugin = %self.0.plugin, suppressed, "{message}");
        }
    }
}

impl Limited {
    /// The number of lines that were suppressed before this one; `None`: so is this one.
    fn may_write(&self) -> Option<u64> {
        let now = u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX);
        let began = self.window.load(Ordering::Relaxed);
        let is_over = now.saturating_sub(began) >= WINDOW.as_millis() as u64;
        if is_over && self.window.compare_exchange(began, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.lines.store(0, Ordering::Relaxed);
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) < LINES {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}
