//! The instances of a plugin, one for each worker.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use signalbox_plugin::Outcomes;
use tokio::sync::mpsc;

use crate::config::OnError;
use crate::fault::Fault;
use crate::module::Compiled;
use crate::state::{Call, Setup};
use crate::vm::{Callbacks, Vm};

/// The instances of a plugin.
pub(crate) struct Pool {
    /// Tells it from all other pools of the process.
    id: u64,
    pub(crate) setup: Arc<Setup>,
    pub(crate) callbacks: Callbacks,
    pub(crate) on_error: OnError,
    pub(crate) outcomes: Outcomes,
    pub(crate) compiled: Arc<Compiled>,
    slots: Mutex<Vec<Arc<Slot>>>,
    /// The instance by which the plugin was checked, for the first worker.
    spare: Mutex<Option<Vm>>,
    last_generation: AtomicU64,
    /// The time that starting instances anew has taken.
    restarts: Mutex<Restarts>,
    background: mpsc::Sender<Work>,
}

/// The place of a worker's instance. It is empty before the first request, and after the instance has failed.
///
/// Its lock is only ever contended by the task that calls ticks.
pub(crate) struct Slot {
    vm: Mutex<Option<Vm>>,
    /// The time between two ticks, in milliseconds; zero: there are none.
    tick: AtomicU64,
    /// True once an instance has failed here.
    has_failed: AtomicBool,
}

/// Work for the task beside requests.
pub(crate) enum Work {
    /// A call of a module.
    Call { slot: Weak<Slot>, generation: u64, call: Box<Call> },
    /// The period of ticks of an instance has changed.
    Ticks,
}

/// The amount of work that may wait for the task.
pub(crate) const QUEUE: usize = 256;

/// The most instances that a plugin starts anew in a second. A module that fails whenever it is called costs no more than that.
const MAX_RESTARTS: u32 = 50;

/// The time that they may take at once. Beyond it they take a part of one in this many of all time.
const MAX_DEBT: Duration = Duration::from_millis(250);
const DEBT_PER: u32 = 20;

/// How often and how long a plugin has started instances anew.
#[derive(Default)]
struct Restarts {
    second: u64,
    count: u32,
    /// The time that they took, less what was paid back since.
    debt: Duration,
    /// When the debt was looked at last.
    at: Duration,
}

impl Restarts {
    /// True if another instance may be started.
    fn begin(&mut self, now: Duration) -> bool {
        self.debt = self.debt.saturating_sub(now.saturating_sub(self.at) / DEBT_PER);
        self.at = now;
        if self.second != now.as_secs() {
            (self.second, self.count) = (now.as_secs(), 0);
        }
        let may = self.count < MAX_RESTARTS && self.debt < MAX_DEBT;
        self.count += u32::from(may);
        may
    }
}

static LAST_POOL: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The slots of this thread, by the id of the pool.
    static SLOTS: RefCell<Vec<(u64, Weak<Slot>)>> = const { RefCell::new(Vec::new()) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool with one instance, which shows that the module starts and takes its configuration.
    pub(crate) fn new(
        compiled: Arc<Compiled>,
        setup: Setup,
        on_error: OnError,
        outcomes: Outcomes,
        background: mpsc::Sender<Work>,
    ) -> Result<Self, Fault> {
        let setup = Arc::new(setup);
        let first = Vm::start(&compiled, &setup, 0)?;
        Ok(Self {
            id: LAST_POOL.fetch_add(1, Ordering::Relaxed),
            callbacks: first.callbacks(),
            setup,
            on_error,
            outcomes,
            compiled,
            slots: Mutex::default(),
            spare: Mutex::new(Some(first)),
            last_generation: AtomicU64::new(0),
            restarts: Mutex::default(),
            background,
        })
    }

    /// The slot of this thread.
    pub(crate) fn slot(&self) -> Arc<Slot> {
        SLOTS.with_borrow_mut(|slots| {
            let known = slots.iter().find(|(id, _)| *id == self.id).and_then(|(_, slot)| slot.upgrade());
            known.unwrap_or_else(|| {
                slots.retain(|(_, slot)| slot.strong_count() > 0);
                let slot = Arc::new(Slot {
                    vm: Mutex::default(),
                    tick: AtomicU64::new(0),
                    has_failed: AtomicBool::new(false),
                });
                slots.push((self.id, Arc::downgrade(&slot)));
                lock(&self.slots).push(Arc::clone(&slot));
                slot
            })
        })
    }

    /// The slots of all threads.
    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).clone()
    }

    /// Starts an instance. `is_anew`: the one before has failed. That happens on the thread of a worker, which serves nobody else
    /// meanwhile, so it may take only a small part of its time.
    fn start(&self, is_anew: bool) -> Result<Vm, Fault> {
        if let Some(spare) = lock(&self.spare).take() {
            return Ok(spare);
        }
        let began = self.setup.clock.monotonic();
        if is_anew && !lock(&self.restarts).begin(began) {
            return Err(Fault::Refused("the module fails so often that it is not started for a while"));
        }
        let generation = self.last_generation.fetch_add(1, Ordering::Relaxed) + 1;
        let started = Vm::start(&self.compiled, &self.setup, generation);
        if is_anew {
            lock(&self.restarts).debt += self.setup.clock.monotonic().saturating_sub(began);
        }
        started
    }

    /// Hands calls that no request waits for to the task beside requests.
    pub(crate) fn hand_over(&self, slot: &Arc<Slot>, generation: u64, calls: Vec<Call>) {
        for call in calls {
            let work = Work::Call { slot: Arc::downgrade(slot), generation, call: Box::new(call) };
            if self.background.try_send(work).is_err() {
                self.setup.log.warn("a call of the module was dropped: too many are under way");
            }
        }
    }

    /// Says in the log that the module has failed.
    pub(crate) fn note(&self, fault: &Fault) {
        let module = self.setup.module.to_string();
        let module = module.get(..12).unwrap_or_default();
        self.setup.log.warn(format_args!("module {module} failed: {fault}"));
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Vm>> {
        self.vm.lock().unwrap_or_else(|poisoned| {
            // The host panicked in the midst of a call: that instance is not used any more.
            let mut vm = poisoned.into_inner();
            *vm = None;
            self.vm.clear_poison();
            vm
        })
    }

    /// Calls the instance, which is started if there is none. One that fails is thrown away.
    pub(crate) fn run<T>(
        self: &Arc<Self>,
        pool: &Pool,
        call: impl FnOnce(&mut Vm) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut place = self.lock();
        if place.is_none() {
            let vm = place.insert(pool.start(self.has_failed.load(Ordering::Relaxed))?);
            // Those that it began when it was started belong to no request.
            pool.hand_over(self, vm.generation, vm.take_calls());
        }
        self.call(&mut place, pool, call)
    }

    /// Calls the instance of this generation, if it is still there.
    pub(crate) fn run_in<T>(
        &self,
        pool: &Pool,
        generation: u64,
        call: impl FnOnce(&mut Vm) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut place = self.lock();
        if place.as_ref().is_none_or(|vm| vm.generation != generation) {
            return Err(Fault::Lost);
        }
        self.call(&mut place, pool, call)
    }

    fn call<T>(
        &self,
        place: &mut Option<Vm>,
        pool: &Pool,
        call: impl FnOnce(&mut Vm) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let vm = place.as_mut().ok_or(Fault::Lost)?;
        let called = call(vm);
        let period = match called {
            Ok(_) => vm.tick_period(),
            Err(_) => {
                self.has_failed.store(true, Ordering::Relaxed);
                *place = None;
                Duration::ZERO
            }
        };
        let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        if self.tick.load(Ordering::Relaxed) != period {
            self.tick.store(period, Ordering::Relaxed);
            // A full queue wakes the task as well.
            let _ = pool.background.try_send(Work::Ticks);
        }
        called
    }

    /// True if an instance is there.
    #[cfg(test)]
    pub(crate) fn is_running(&self) -> bool {
        self.lock().is_some()
    }

    /// The time between two ticks; `None`: there are none.
    pub(crate) fn tick_period(&self) -> Option<Duration> {
        let period = self.tick.load(Ordering::Relaxed);
        (period > 0).then(|| Duration::from_millis(period))
    }
}
