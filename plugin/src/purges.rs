//! Purges of cached responses, which reach a proxy beside its configuration.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use signalbox_config::Purge;

/// A cache that purges are to reach.
pub trait Purgeable: Send + Sync {
    /// Removes the stored responses that `purge` selects, and lets no such response be stored that was requested before. Blocks for
    /// no longer than it takes to look at what is stored.
    fn purge(&self, purge: &Purge);
}

/// The caches of a proxy. A plugin adds its own when it makes it, by [`Context::on_purge`](crate::Context::on_purge).
#[derive(Clone, Default)]
pub struct Purges(Arc<Mutex<Vec<Weak<dyn Purgeable>>>>);

impl Purges {
    /// Adds a cache. Purges reach it for as long as something else holds it.
    pub fn add(&self, cache: &Arc<impl Purgeable + 'static>) {
        let cache: Arc<dyn Purgeable> = cache.clone();
        let mut caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|known| known.strong_count() > 0);
        caches.push(Arc::downgrade(&cache));
    }

    /// Carries out a purge in all caches.
    pub fn carry_out(&self, purge: &Purge) {
        let caches = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        caches.iter().filter_map(Weak::upgrade).for_each(|cache| cache.purge(purge));
    }
}

impl fmt::Debug for Purges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Purges")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicU32);

    impl Purgeable for Counting {
        fn purge(&self, _: &Purge) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn purges_reach_every_cache_that_is_held() {
        let purges = Purges::default();
        let [one, other] = [(); 2].map(|()| Arc::new(Counting::default()));
        purges.add(&one);
        purges.add(&other);
        purges.carry_out(&Purge::everything());
        drop(other);
        purges.carry_out(&Purge::everything());
        assert_eq!(one.0.load(Ordering::Relaxed), 2);
        purges.add(&one);
        assert_eq!(purges.0.lock().unwrap().len(), 2, "a cache that nobody holds is forgotten");
    }
}
