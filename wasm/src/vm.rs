//! An instance of a module.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use signalbox_plugin::{CallAnswer, CallError};
use wasmtime::{Instance, Store, TypedFunc, WasmParams, WasmResults};

use crate::context::{Answer, Context, Direction, Done, Facts, Lend, Nothing, ROOT, View};
use crate::fault::{Exit, Fault};
use crate::headers::Map;
use crate::module::Compiled;
use crate::runtime::TICK;
use crate::state::{Call, Setup, State};

/// An instance of a module, with the contexts of the requests that it sees.
pub(crate) struct Vm {
    store: Store<State>,
    exports: Exports,
    /// Tells it from those that were thrown away.
    pub(crate) generation: u64,
    /// The time of a call, in ticks.
    ticks: u64,
    last_context: u32,
    /// Keeps the thread that interrupts it.
    _compiled: Arc<Compiled>,
}

type One<R> = Option<TypedFunc<u32, R>>;
type Two<R> = Option<TypedFunc<(u32, u32), R>>;
type Five = Option<TypedFunc<(u32, u32, u32, u32, u32), ()>>;
type Three<R> = Option<TypedFunc<(u32, u32, u32), R>>;

/// The functions of a module that are called.
struct Exports {
    context_create: Two<()>,
    headers: [Three<u32>; 2],
    body: [Three<u32>; 2],
    trailers: [Two<u32>; 2],
    http_call_response: Five,
    tick: One<()>,
    done: One<u32>,
    log: One<()>,
    delete: One<()>,
}

/// The callbacks for messages that a module has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Callbacks {
    pub(crate) headers: [bool; 2],
    pub(crate) body: [bool; 2],
    pub(crate) trailers: [bool; 2],
    pub(crate) log: bool,
}

/// The wish of a module after a callback.
#[derive(Debug)]
pub(crate) enum Verdict {
    Continue,
    Pause,
    Reply(Response<Bytes>),
    Close,
}

/// The time that a module may take to start and to read its configuration, in all its callbacks together.
pub(crate) const START: Duration = Duration::from_secs(5);

/// `proxy_action_t` of the specification.
const PAUSE: u32 = 1;

/// The most contexts whose exchange has ended and that a module has not let go.
const MAX_WAITING: usize = 1000;

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX).saturating_add(1)
}

fn size(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

impl Exports {
    fn of(instance: &Instance, store: &mut Store<State>) -> Self {
        fn find<P: WasmParams, R: WasmResults>(
            instance: &Instance,
            store: &mut Store<State>,
            name: &str,
        ) -> Option<TypedFunc<P, R>> {
            // The types were checked with the module.
            instance.get_typed_func(store, name).ok()
        }
        Self {
            context_create: find(instance, store, "proxy_on_context_create"),
            headers: ["proxy_on_request_headers", "proxy_on_response_headers"]
                .map(|name| find(instance, store, name)),
            body: ["proxy_on_request_body", "proxy_on_response_body"].map(|name| find(instance, store, name)),
            trailers: ["proxy_on_request_trailers", "proxy_on_response_trailers"]
                .map(|name| find(instance, store, name)),
            http_call_response: find(instance, store, "proxy_on_http_call_response"),
            tick: find(instance, store, "proxy_on_tick"),
            done: find(instance, store, "proxy_on_done"),
            log: find(instance, store, "proxy_on_log"),
            delete: find(instance, store, "proxy_on_delete"),
        }
    }
}

impl Vm {
    /// Makes an instance, starts it, and gives it its configuration.
    pub(crate) fn start(
        compiled: &Arc<Compiled>,
        setup: &Arc<Setup>,
        generation: u64,
    ) -> Result<Self, Fault> {
        let end = Instant::now() + START;
        let mut store = Store::new(&compiled.runtime.engine, State::new(Arc::clone(setup)));
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(ticks(START));
        let instance = compiled.pre.instantiate(&mut store)?;
        let allocate = ["proxy_on_memory_allocate", "malloc"];
        let allocate = allocate.iter().find_map(|name| instance.get_typed_func(&mut store, name).ok());
        let memory = instance.get_memory(&mut store, "memory");
        let state = store.data_mut();
        (state.memory, state.allocate) = (memory, allocate);
        let initialize: Option<TypedFunc<(), ()>> = instance.get_typed_func(&mut store, "_initialize").ok();
        if let Some(initialize) = initialize {
            exits_well(initialize.call(&mut store, ()))?;
            let main: Option<TypedFunc<(u32, u32), u32>> = instance.get_typed_func(&mut store, "main").ok();
            if let Some(main) = main {
                exits_well(main.call(&mut store, (0, 0)).map(drop))?;
            }
        } else if let Ok(start) = instance.get_typed_func::<(), ()>(&mut store, "_start") {
            exits_well(start.call(&mut store, ()))?;
        }
        let exports = Exports::of(&instance, &mut store);
        let ticks = ticks(setup.time);
        let mut this =
            Self { store, exports, generation, ticks, last_context: ROOT, _compiled: Arc::clone(compiled) };
        this.configure(&instance, setup, end)?;
        this.ticks = ticks;
        Ok(this)
    }

    /// Tells the module its configuration, until `end`.
    fn configure(&mut self, instance: &Instance, setup: &Setup, end: Instant) -> Result<(), Fault> {
        let left = || ticks(end.saturating_duration_since(Instant::now()));
        self.ticks = left();
        self.call_two(&self.exports.context_create.clone(), ROOT, (ROOT, 0))?;
        let vm_start: Two<u32> = instance.get_typed_func(&mut self.store, "proxy_on_vm_start").ok();
        self.ticks = left();
        if self.call_two(&vm_start, ROOT, (ROOT, 0))? == Some(0) {
            return Err(Fault::Refused("the module refused to start"));
        }
        let configure: Two<u32> = instance.get_typed_func(&mut self.store, "proxy_on_configure").ok();
        self.ticks = left();
        self.state().view = View { owner: ROOT, is_configuring: true, ..View::default() };
        let configured = self.call_two(&configure, ROOT, (ROOT, size(setup.config.len())));
        self.state().view = View::default();
        if configured? == Some(0) {
            return Err(Fault::Refused("the module refused its configuration"));
        }
        Ok(())
    }

    /// The callbacks that the module has.
    pub(crate) fn callbacks(&self) -> Callbacks {
        let Exports { headers, body, trailers, done, log, .. } = &self.exports;
        Callbacks {
            headers: headers.each_ref().map(Option::is_some),
            body: body.each_ref().map(Option::is_some),
            trailers: trailers.each_ref().map(Option::is_some),
            log: log.is_some() || done.is_some(),
        }
    }

    pub(crate) fn state(&mut self) -> &mut State {
        self.store.data_mut()
    }

    fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        function: &TypedFunc<P, R>,
        effective: u32,
        arguments: P,
    ) -> Result<R, Fault> {
        self.store.data_mut().effective = effective;
        self.store.set_epoch_deadline(self.ticks);
        Ok(function.call(&mut self.store, arguments)?)
    }

    fn call_two<R: WasmResults>(
        &mut self,
        function: &Two<R>,
        effective: u32,
        arguments: (u32, u32),
    ) -> Result<Option<R>, Fault> {
        function.as_ref().map(|function| self.call(function, effective, arguments)).transpose()
    }

    /// Calls the module while the parts of an exchange are lent to it.
    fn lending<T>(
        &mut self,
        owner: u32,
        lend: &mut dyn Lend,
        call: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let view = &mut self.store.data_mut().view;
        *view = View { owner, ..View::default() };
        lend.lend(view);
        let called = call(self);
        let mut view = std::mem::take(&mut self.store.data_mut().view);
        lend.take_back(&mut view);
        let called = called?;
        self.settle()?;
        Ok(called)
    }

    /// Makes the context of a request.
    pub(crate) fn open(&mut self, facts: Facts) -> Result<u32, Fault> {
        let id = loop {
            self.last_context = self.last_context.wrapping_add(1);
            if self.last_context > ROOT && !self.store.data().contexts.contains_key(&self.last_context) {
                break self.last_context;
            }
        };
        self.state().contexts.insert(id, Context::new(facts));
        let create = self.exports.context_create.clone();
        self.call_two(&create, id, (id, ROOT))?;
        Ok(id)
    }

    /// The head of a message is there. `is_end`: it has no body.
    pub(crate) fn headers(
        &mut self,
        id: u32,
        direction: Direction,
        is_end: bool,
        lend: &mut dyn Lend,
    ) -> Result<Verdict, Fault> {
        let Some(function) = self.exports.headers[direction as usize].clone() else {
            return Ok(Verdict::Continue);
        };
        let action = self.lending(id, lend, |vm| {
            vm.store.data_mut().effective = id;
            let map = vm.store.data().map(2 * direction as u32);
            let count = map.ok().flatten().map_or(0, Map::len);
            vm.call(&function, id, (id, count, u32::from(is_end)))
        })?;
        Ok(self.verdict(id, direction, action))
    }

    /// A part of a body is there, beside what is held back of it: all of that is in the buffer.
    pub(crate) fn body(
        &mut self,
        id: u32,
        direction: Direction,
        is_end: bool,
        lend: &mut dyn Lend,
    ) -> Result<Verdict, Fault> {
        let Some(function) = self.exports.body[direction as usize].clone() else {
            return Ok(Verdict::Continue);
        };
        let action = self.lending(id, lend, |vm| {
            let body = vm.store.data().view.bodies[direction as usize].as_ref();
            let length = body.map_or(0, |body| size(body.len()));
            vm.call(&function, id, (id, length, u32::from(is_end)))
        })?;
        Ok(self.verdict(id, direction, action))
    }

    /// The trailers of a message are there.
    pub(crate) fn trailers(
        &mut self,
        id: u32,
        direction: Direction,
        lend: &mut dyn Lend,
    ) -> Result<Verdict, Fault> {
        let Some(function) = self.exports.trailers[direction as usize].clone() else {
            return Ok(Verdict::Continue);
        };
        let action = self.lending(id, lend, |vm| {
            let trailers = vm.store.data().view.trailers[direction as usize].as_ref();
            let count = trailers.map_or(0, |trailers| size(trailers.len()));
            vm.call(&function, id, (id, count))
        })?;
        Ok(self.verdict(id, direction, action))
    }

    /// A call has come to its end. `owner` is the context that began it.
    pub(crate) fn answered(
        &mut self,
        owner: u32,
        call: u32,
        answer: Result<CallAnswer, CallError>,
        lend: &mut dyn Lend,
    ) -> Result<(), Fault> {
        let Some(function) = self.exports.http_call_response.clone() else { return Ok(()) };
        if owner != ROOT && !self.state().contexts.contains_key(&owner) {
            return Ok(());
        }
        let answer = answer.ok().map(|answer| {
            let (head, body) = answer.response.into_parts();
            Answer { status: head.status, headers: head.headers, body, trailers: answer.trailers }
        });
        let counts = answer.as_ref().map_or((0, 0, 0), |answer| {
            (size(answer.headers.len() + 1), size(answer.body.len()), size(answer.trailers.len()))
        });
        self.lending(owner, lend, |vm| {
            vm.store.data_mut().view.answer = answer;
            vm.call(&function, ROOT, (ROOT, call, counts.0, counts.1, counts.2))
        })
    }

    /// The time for a tick has come.
    pub(crate) fn tick(&mut self) -> Result<(), Fault> {
        let Some(function) = self.exports.tick.clone() else { return Ok(()) };
        self.lending(ROOT, &mut Nothing, |vm| vm.call(&function, ROOT, ROOT))
    }

    /// The exchange of a context has ended: the module may log it, and forgets it.
    pub(crate) fn finish(&mut self, id: u32, lend: &mut dyn Lend) -> Result<(), Fault> {
        if !self.state().contexts.contains_key(&id) {
            return Ok(());
        }
        self.lending(id, lend, |vm| {
            if let Some(done) = vm.exports.done.clone()
                && vm.call(&done, id, id)? == 0
            {
                let contexts = &mut vm.state().contexts;
                let waiting = contexts.values().filter(|context| context.done == Done::Waiting).count();
                if let Some(context) = contexts.get_mut(&id)
                    && context.done == Done::No
                    && waiting < MAX_WAITING
                {
                    context.done = Done::Waiting;
                    return Ok(());
                }
            }
            vm.conclude(id)
        })
    }

    /// Ends a context.
    fn conclude(&mut self, id: u32) -> Result<(), Fault> {
        if let Some(log) = self.exports.log.clone() {
            self.call(&log, id, id)?;
        }
        if let Some(delete) = self.exports.delete.clone() {
            self.call(&delete, id, id)?;
        }
        self.state().contexts.remove(&id);
        Ok(())
    }

    /// Ends the contexts that the module has let go meanwhile.
    fn settle(&mut self) -> Result<(), Fault> {
        while let Some(id) = self.state().finished.pop() {
            self.conclude(id)?;
        }
        Ok(())
    }

    /// The wish of the module for a message after it has returned `action`.
    fn verdict(&mut self, id: u32, direction: Direction, action: u32) -> Verdict {
        let resumed = self.resumed(id, direction);
        resumed.unwrap_or(if action == PAUSE { Verdict::Pause } else { Verdict::Continue })
    }

    /// The wish of the module for a message that it holds; `None`: it holds it on.
    pub(crate) fn resumed(&mut self, id: u32, direction: Direction) -> Option<Verdict> {
        let context = self.state().contexts.get_mut(&id)?;
        if let Some(reply) = context.reply.take() {
            return Some(Verdict::Reply(reply));
        }
        if context.is_closed {
            return Some(Verdict::Close);
        }
        let resumed = std::mem::take(&mut context.resumed[direction as usize]);
        resumed.then_some(Verdict::Continue)
    }

    /// The same. If the module holds it on, `waker` is woken when that changes.
    pub(crate) fn poll_resumed(&mut self, id: u32, direction: Direction, waker: &Waker) -> Option<Verdict> {
        let resumed = self.resumed(id, direction);
        if resumed.is_none()
            && let Some(context) = self.state().contexts.get_mut(&id)
        {
            context.wakers[direction as usize] = Some(waker.clone());
        }
        resumed
    }

    /// Takes the calls that the module has begun.
    pub(crate) fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.state().calls)
    }

    /// The time between two ticks; zero: there are none.
    pub(crate) fn tick_period(&self) -> Duration {
        match self.exports.tick {
            Some(_) => self.store.data().tick,
            None => Duration::ZERO,
        }
    }
}

/// A module may exit while it starts, if it does so with success.
fn exits_well(ended: wasmtime::Result<()>) -> Result<(), Fault> {
    match ended {
        Err(error) if !matches!(error.downcast_ref(), Some(Exit(0))) => Err(error.into()),
        _ => Ok(()),
    }
}
