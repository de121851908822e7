//! The host's side of an instance.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use http::Request;
use signalbox_config::{BlobId, Name};
use signalbox_plugin::{Clock, Logger};
use wasmtime::{Memory, ResourceLimiter, TypedFunc};

use crate::context::{Context, ROOT, View};
use crate::headers::Map;
use crate::shared::Shared;
use crate::status::Status;

/// The parts of a plugin that all its instances share.
pub(crate) struct Setup {
    pub(crate) name: Name,
    /// The module, for the log.
    pub(crate) module: BlobId,
    pub(crate) config: Bytes,
    pub(crate) upstreams: Box<[Name]>,
    pub(crate) max_memory: usize,
    pub(crate) max_body: usize,
    /// The time of one call.
    pub(crate) time: Duration,
    pub(crate) clock: Clock,
    pub(crate) log: Logger,
    /// The log of what the module itself says, so that its lines do not displace those about it.
    pub(crate) lines: Logger,
    pub(crate) shared: Arc<Shared>,
}

/// The host's side of an instance.
pub(crate) struct State {
    pub(crate) setup: Arc<Setup>,
    /// The memory of the module, once it is there.
    pub(crate) memory: Option<Memory>,
    /// The allocator of the module, if it has one.
    pub(crate) allocate: Option<TypedFunc<u32, u32>>,
    pub(crate) limits: Limits,
    pub(crate) contexts: HashMap<u32, Context, RandomState>,
    /// The context that hostcalls are about.
    pub(crate) effective: u32,
    pub(crate) view: View,
    /// The calls that the module has begun, and that nobody has taken over.
    pub(crate) calls: Vec<Call>,
    pub(crate) last_call: u32,
    /// The time between two ticks; zero: there are none.
    pub(crate) tick: Duration,
    /// The contexts whose end the module has declared.
    pub(crate) finished: Vec<u32>,
    /// The last lines of standard output and error that are not complete.
    pub(crate) lines: [Vec<u8>; 2],
}

/// A call of a service.
pub(crate) struct Call {
    /// The context that has begun it.
    pub(crate) owner: u32,
    pub(crate) id: u32,
    pub(crate) upstream: Name,
    pub(crate) request: Request<Bytes>,
    pub(crate) timeout: Duration,
}

/// The bounds of memory and tables.
pub(crate) struct Limits {
    pub(crate) max_memory: usize,
}

/// The most elements of a table.
const MAX_TABLE: usize = 100_000;

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= self.max_memory)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE)
    }
}

impl State {
    pub(crate) fn new(setup: Arc<Setup>) -> Self {
        Self {
            memory: None,
            allocate: None,
            limits: Limits { max_memory: setup.max_memory },
            contexts: HashMap::default(),
            effective: ROOT,
            view: View::default(),
            calls: Vec::new(),
            last_call: 0,
            tick: Duration::ZERO,
            finished: Vec::new(),
            lines: [Vec::new(), Vec::new()],
            setup,
        }
    }

    /// The context that hostcalls are about; `None`: that of the plugin.
    pub(crate) fn context(&mut self) -> Option<&mut Context> {
        self.contexts.get_mut(&self.effective)
    }

    /// The view, if it is one of the context that hostcalls are about.
    pub(crate) fn own_view(&self) -> Option<&View> {
        (self.view.owner == self.effective).then_some(&self.view)
    }

    /// A map of headers. One that is not there now is `None`, and read as one without pairs.
    pub(crate) fn map(&self, id: u32) -> Result<Option<Map<'_>>, Status> {
        let answer = self.view.answer.as_ref();
        let own = self.own_view();
        Ok(match id {
            0 => own.and_then(|view| view.request.as_ref()).map(|head| Map::Request {
                head,
                https: self.contexts.get(&self.effective).is_some_and(|context| context.facts.https),
            }),
            1 => own.and_then(|view| view.trailers[0].as_ref()).map(Map::Fields),
            2 => own.and_then(|view| view.response.as_ref()).map(Map::Response),
            3 => own.and_then(|view| view.trailers[1].as_ref()).map(Map::Fields),
            4 | 5 => None,
            6 => answer.map(|answer| Map::Answer(&answer.status, &answer.headers)),
            7 => answer.map(|answer| Map::Fields(&answer.trailers)),
            _ => return Err(Status::BadArgument),
        })
    }

    /// A buffer.
    pub(crate) fn buffer(&self, id: u32) -> Result<&Bytes, Status> {
        let own = self.own_view();
        let buffer = match id {
            0 => own.and_then(|view| view.bodies[0].as_ref()),
            1 => own.and_then(|view| view.bodies[1].as_ref()),
            4 => self.view.answer.as_ref().map(|answer| &answer.body),
            7 => self.view.is_configuring.then_some(&self.setup.config),
            2 | 3 | 5 | 6 | 8 => None,
            _ => return Err(Status::BadArgument),
        };
        buffer.ok_or(Status::NotFound)
    }
}

impl Drop for State {
    /// Tells the tasks that wait for this instance that it is gone.
    fn drop(&mut self) {
        self.contexts.values_mut().for_each(Context::wake);
    }
}
