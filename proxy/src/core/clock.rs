//! The clock of this host, for plugins.

use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use signalbox_plugin::TimeSource;

/// The clock of this host; its monotonic time begins at a moment before all requests.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock(pub Instant);

impl TimeSource for SystemClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
