use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use foldhash::quality::FixedState;
use signalbox_config::Name;
use std::hash::BuildHasher;

/// What a plugin may use while it is built. There is nothing else: no globals, no environment, no clock of its own
/// (a request brings the time, see [`crate::PluginRequest::now`]).
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The plugin's name.
    pub name: &'a Name,
    /// State that outlives a revision.
    pub states: &'a States,
}

impl Context<'_> {
    /// The state of this plugin for `identity`, the part of its configuration that defines it: kept from the
    /// revision before when that was the same, else made.
    pub fn state<T: Any + Send + Sync>(&self, identity: &impl Hash, make: impl FnOnce() -> T) -> Arc<T> {
        self.states.keep(self.name, identity, make)
    }
}

/// The states of all plugins of a proxy, by plugin, type and identity. It holds nothing alive: a state goes with the
/// last revision that uses it.
#[derive(Default)]
pub struct States(Mutex<HashMap<StateKey, Weak<dyn Any + Send + Sync>>>);

#[derive(PartialEq, Eq, Hash)]
struct StateKey {
    plugin: Name,
    type_id: TypeId,
    identity: u64,
}

impl States {
    fn keep<T: Any + Send + Sync>(
        &self,
        plugin: &Name,
        identity: &impl Hash,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let mut hasher = FixedState::default().build_hasher();
        identity.hash(&mut hasher);
        let key = StateKey { plugin: plugin.clone(), type_id: TypeId::of::<T>(), identity: hasher.finish() };
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
