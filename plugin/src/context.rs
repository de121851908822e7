use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hash};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use foldhash::quality::FixedState;
use signalbox_config::Name;

use crate::blobs::Blobs;
use crate::clock::Clock;
use crate::log::Logger;
use crate::metrics::Outcomes;
use crate::purges::{Purgeable, Purges};
use crate::tasks::Tasks;

/// All that a plugin may use while it is built. There is nothing else: no globals, no environment, no clock of its own.
/// A plugin clones the parts that it needs later; a request brings its own clock and its own way out, see [`crate::PluginRequest`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Context<'a> {
    /// The plugin's name.
    pub name: &'a Name,
    /// State that outlives a revision.
    pub states: &'a States,
    /// The time.
    pub clock: &'a Clock,
    /// Work beside requests.
    pub tasks: &'a Tasks,
    /// The program's log, in the plugin's name.
    pub log: &'a Logger,
    /// The counters of its outcomes, for what counts outside of hooks.
    pub outcomes: &'a Outcomes,
    /// The files that its configuration names.
    pub blobs: &'a Blobs,
}

impl<'a> Context<'a> {
    /// The context of the plugin of this name.
    pub fn new(
        name: &'a Name,
        states: &'a States,
        clock: &'a Clock,
        tasks: &'a Tasks,
        log: &'a Logger,
        outcomes: &'a Outcomes,
        blobs: &'a Blobs,
    ) -> Self {
        Self { name, states, clock, tasks, log, outcomes, blobs }
    }

    /// The same under another name, for state that several plugins share.
    #[must_use]
    pub fn named<'b>(&self, name: &'b Name) -> Context<'b>
    where
        'a: 'b,
    {
        Context { name, ..*self }
    }

    /// The state of this plugin for `identity`, the part of its configuration that defines it: kept from the
    /// revision before when that was the same, else made.
    pub fn state<T: Any + Send + Sync>(&self, identity: &impl Hash, make: impl FnOnce() -> T) -> Arc<T> {
        self.states.keep(self.name, identity, make)
    }

    /// Has purges reach a cache for as long as something holds it. It is called once for each cache, when it is made.
    pub fn on_purge(&self, cache: &Arc<impl Purgeable + 'static>) {
        self.states.purges.add(cache);
    }
}

/// The states of all plugins of a proxy, by plugin, type and identity. It holds nothing alive: a state goes with the
/// last revision that uses it.
#[derive(Default)]
pub struct States {
    states: Mutex<HashMap<StateKey, Weak<dyn Any + Send + Sync>>>,
    purges: Purges,
}

#[derive(PartialEq, Eq, Hash)]
struct StateKey {
    plugin: Name,
    type_id: TypeId,
    identity: u64,
}

impl States {
    /// The states that purges reach.
    pub fn purges(&self) -> &Purges {
        &self.purges
    }

    fn keep<T: Any + Send + Sync>(
        &self,
        plugin: &Name,
        identity: &impl Hash,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let identity = FixedState::default().hash_one(identity);
        let key = StateKey { plugin: plugin.clone(), type_id: TypeId::of::<T>(), identity };
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) =
            states.get(&key).and_then(Weak::upgrade).and_then(|state| state.downcast::<T>().ok())
        {
            return state;
        }
        states.retain(|_, state| state.strong_count() > 0);
        let state: Arc<T> = Arc::new(make());
        let shared: Arc<dyn Any + Send + Sync> = state.clone();
        states.insert(key, Arc::downgrade(&shared));
        state
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("States").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::testing::{Services, name};

    #[test]
    fn state_is_kept_while_something_uses_it_and_its_identity_is_the_same() {
        let states = States::default();
        let (a, b) = (name("a"), name("b"));
        let services = Services::default();
        let [a, b] = [&a, &b].map(|name| services.context(name, &states));
        let kept = a.state(&1, || AtomicU32::new(1));
        kept.store(7, Ordering::Relaxed);
        assert_eq!(a.state(&1, || AtomicU32::new(2)).load(Ordering::Relaxed), 7);
        assert_eq!(a.state(&2, || AtomicU32::new(2)).load(Ordering::Relaxed), 2);
        assert_eq!(b.state(&1, || AtomicU32::new(3)).load(Ordering::Relaxed), 3);
        // The same key with another type leads to another state.
        assert_eq!(*a.state(&1, || 4_u8), 4);
        drop(kept);
        assert_eq!(a.state(&1, || AtomicU32::new(5)).load(Ordering::Relaxed), 5);
        assert!(states.states.lock().unwrap().len() <= 2, "what nothing uses is forgotten");
    }
}
