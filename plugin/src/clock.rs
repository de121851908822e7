use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;

/// The time. A clone reads the same clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn TimeSource>);

/// Where the time comes from.
pub trait TimeSource: Send + Sync {
    /// The time since some moment before the process served requests; it never jumps.
    fn monotonic(&self) -> Duration;

    /// The time of day, which an administrator may set back or forward.
    fn wall(&self) -> SystemTime;

    /// Ready once `duration` of the monotonic time has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

impl Clock {
    /// The clock with this source.
    pub fn new(source: impl TimeSource + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// The time since some moment before the process served requests; it never jumps.
    pub fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    /// The time of day, which an administrator may set back or forward.
    pub fn wall(&self) -> SystemTime {
        self.0.wall()
    }

    /// Waits until `duration` of the monotonic time has passed.
    pub async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.monotonic()).finish()
    }
}
