//! The fleets about which nothing can be decided, because their state cannot be read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signalbox_process::ErrorChain;

use crate::store::StoreError;

/// The time until the state of such a fleet is read again: at first, and after it could not be read again and again.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(60);

/// The fleets about which nothing can be decided.
#[derive(Default)]
pub(super) struct Broken(BTreeMap<Arc<str>, Retry>);

struct Retry {
    at: Instant,
    wait: Duration,
}

impl Broken {
    pub(super) fn contains(&self, fleet: &str) -> bool {
        self.0.contains_key(fleet)
    }

    /// True if the state of a fleet may be read: it could be read before, or it is time to try again.
    pub(super) fn is_due(&self, fleet: &str, now: Instant) -> bool {
        self.0.get(fleet).is_none_or(|retry| retry.at <= now)
    }

    /// Notes that the state of a fleet could not be read, and logs that once.
    pub(super) fn note(&mut self, fleet: &Arc<str>, error: &StoreError, now: Instant) {
        let wait = match self.0.get(fleet) {
            Some(retry) => (retry.wait * 2).min(LAST),
            None => {
                let error = ErrorChain(error);
                tracing::error!(%fleet, %error, "nothing can be decided about the rollouts of a fleet");
                FIRST
            }
        };
        self.0.insert(Arc::clone(fleet), Retry { at: now + wait, wait });
    }

    /// Notes that a fleet is well.
    pub(super) fn forget(&mut self, fleet: &str) {
        self.0.remove(fleet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_cannot_be_read_is_read_less_and_less_often() {
        let fleet: Arc<str> = "edge".into();
        let (mut broken, began) = (Broken::default(), Instant::now());
        let error = StoreError::Broken("no JSON".into());
        let (mut now, mut reads) = (began, 0);
        while now < began + Duration::from_secs(3600) {
            if broken.is_due(&fleet, now) {
                reads += 1;
                broken.note(&fleet, &error, now);
            }
            now += Duration::from_millis(200);
        }
        assert!((60..70).contains(&reads), "{reads} reads in an hour");
        assert!(broken.is_due("core", now), "others are no concern of it");
        broken.forget(&fleet);
        assert!(broken.is_due(&fleet, now));
        broken.note(&fleet, &error, now);
        assert!(broken.is_due(&fleet, now + FIRST), "it begins anew");
    }
}
