//! The plugin: which hook calls which callback of the module.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use serde_json::Value;
use signalbox_config::{BlobId, Errors, FieldError, Kind, Name, ResourceKey};
use signalbox_plugin::grpc::is_grpc;
use signalbox_plugin::{
    Blobs, BodyWish, Context, Definition, Flow, Hooked, Hooks, LogRecord, Logger, Origin, Plugin,
    PluginRequest, PluginResponse, Reply, Task,
};
use tokio::sync::{Mutex, mpsc};

use crate::background;
use crate::body::Streamed;
use crate::config::{Config, OnError};
use crate::context::{Direction, Facts, OfLog, OfRequest, OfResponse, response_head};
use crate::fault::Fault;
use crate::module::{self, Compiled};
use crate::pause::Held;
use crate::pool::{Pool, QUEUE, Work};
use crate::runtime::Runtime;
use crate::shared::Shared;
use crate::state::Setup;
use crate::stream::{Ending, Stream};
use crate::vm::{self, Verdict};

/// Runs a module of the user.
pub struct Wasm {
    pub(crate) pool: Arc<Pool>,
    hooks: Hooks,
    _task: Task,
    _kept: Kept,
}

/// The state that the next revision finds, because this plugin keeps it.
type Kept = (Arc<Result<Arc<Runtime>, String>>, Arc<Result<Arc<Compiled>, String>>);

/// All hooks that a module can have a callback for.
impl Hooked for Wasm {
    const HOOKS: Hooks = Hooks::REQUEST
        .with(Hooks::REQUEST_BODY)
        .with(Hooks::WHOLE_REQUEST_BODY)
        .with(Hooks::RESPONSE)
        .with(Hooks::RESPONSE_BODY)
        .with(Hooks::WHOLE_RESPONSE_BODY)
        .with(Hooks::LOG);
}

/// The name under which modules and the runtime are kept, whichever plugin uses them.
const SHARED: &str = "wasm";

impl Definition for Wasm {
    const NAME: &'static str = "wasm";
    const DESCRIPTION: &'static str = "Runs a WebAssembly module of yours that speaks the proxy-wasm ABI 0.2, written in Go, Rust, C or another language.";
    const ORDER: i32 = 500;
    const OUTCOMES: &'static [&'static str] = &["trapped", "timed_out", "lost"];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.check(errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        let names = config.upstreams.iter().enumerate();
        let named = names.filter_map(|(index, name)| Some((index, name.parse::<Name>().ok()?)));
        named
            .map(|(index, name)| (ResourceKey::new(Kind::Upstream, name), format!("upstreams[{index}]")))
            .collect()
    }

    fn blobs(config: &Config) -> Vec<(BlobId, String)> {
        vec![(config.module, "module".to_owned())]
    }

    fn check_blobs(config: &Config, blobs: &Blobs, errors: &mut Errors) {
        let Some(content) = blobs.get(config.module) else { return };
        match Runtime::without_ticker().and_then(|runtime| module::check(&runtime, &content)) {
            Ok(needed) if needed > config.limits.memory.0 => {
                errors.push(
                    "limits.memory",
                    format_args!("is less than the {needed} bytes that the module begins with"),
                );
            }
            Ok(_) => {}
            Err(message) => errors.push("module", message),
        }
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        errors.finish(Some(()))?;
        let pool = Pool::for_config(&config, context);
        let (pool, work, kept) = pool.map_err(|(field, message)| vec![FieldError::new(field, message)])?;
        let (pool, work) = (Arc::new(pool), Arc::new(Mutex::new(work)));
        let weak = Arc::downgrade(&pool);
        let task = context.tasks.spawn("ticks and calls", move |context| {
            background::run(context, weak.clone(), Arc::clone(&work))
        });
        Ok(Self { hooks: hooks_of(&pool), pool, _task: task, _kept: kept })
    }
}

impl Pool {
    fn for_config(
        config: &Config,
        context: &Context<'_>,
    ) -> Result<(Self, mpsc::Receiver<Work>, Kept), (&'static str, String)> {
        let shared_name: Name =
            SHARED.parse().map_err(|_| ("", "has no name for shared state".to_owned()))?;
        let shared = context.named(&shared_name);
        let kept_runtime = shared.state(&"runtime", || Runtime::start().map(Arc::new));
        let runtime = Result::clone(&kept_runtime).map_err(|message| ("", message))?;
        let kept_module = shared.state(&config.module, || {
            let content = context.blobs.get(config.module).ok_or("is not there, or is damaged")?;
            Compiled::new(runtime, config.module, &content).map(Arc::new)
        });
        let compiled = Result::clone(&kept_module).map_err(|message| ("module", message))?;
        // States are told apart by a hash that is not made to withstand an attack.
        if compiled.id != config.module {
            return Err(("module", "cannot be told from another one".to_owned()));
        }
        let setup = Setup {
            name: context.name.clone(),
            module: config.module,
            config: config.config_bytes().into(),
            upstreams: config.upstreams.iter().filter_map(|name| name.parse().ok()).collect(),
            max_memory: usize::try_from(config.limits.memory.0).unwrap_or(usize::MAX),
            max_body: usize::try_from(config.max_body.0).unwrap_or(usize::MAX),
            time: config.limits.time.0,
            clock: context.clock.clone(),
            log: context.log.clone(),
            lines: Logger::new(context.name.clone(), context.clock.clone()),
            shared: context.state(&"shared data", Shared::default),
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let field = if matches!(config.config, Value::Null) { "module" } else { "config" };
        let pool = Self::new(compiled, setup, config.on_error, context.outcomes.clone(), sender);
        let pool = pool.map_err(|fault| match fault {
            Fault::Refused(_) => (field, fault.to_string()),
            Fault::TimedOut => ("module", format!("took longer than {} s to start", vm::START.as_secs())),
            fault => ("module", format!("failed when it was started: {fault}")),
        })?;
        Ok((pool, receiver, (kept_runtime, kept_module)))
    }
}

/// The hooks by which the module has a callback. All see requests: there the context is made.
fn hooks_of(pool: &Pool) -> Hooks {
    let callbacks = pool.callbacks;
    let sees_body = |direction: usize| callbacks.body[direction] || callbacks.trailers[direction];
    let mut hooks = Hooks::REQUEST;
    if sees_body(0) {
        hooks = hooks.with(Hooks::REQUEST_BODY).with(Hooks::WHOLE_REQUEST_BODY);
    }
    if callbacks.headers[1] || sees_body(1) {
        hooks = hooks.with(Hooks::RESPONSE);
    }
    if sees_body(1) {
        hooks = hooks.with(Hooks::RESPONSE_BODY).with(Hooks::WHOLE_RESPONSE_BODY);
    }
    if callbacks.log {
        hooks = hooks.with(Hooks::LOG);
    }
    hooks
}

impl Wasm {
    /// The treatment of an exchange for which the module has failed.
    fn failed(&self, fault: &Fault) -> Flow<'static> {
        self.pool.note(fault);
        match self.pool.on_error {
            OnError::Allow => Flow::Continue,
            OnError::Deny => Reply::problem(StatusCode::INTERNAL_SERVER_ERROR, "a plugin failed").into(),
        }
    }

    fn sees_body(&self, direction: Direction) -> bool {
        self.pool.callbacks.body[direction as usize]
    }

    /// How the module gets a body of this size, if not part by part.
    ///
    /// One that the module waits for, and one that is known to be small enough, it gets whole: the length stays known then. That
    /// drops trailers, so calls of gRPC pass part by part.
    fn whole(
        &self,
        stream: &Stream,
        direction: Direction,
        size: Option<u64>,
        headers: &HeaderMap,
    ) -> Option<BodyWish> {
        let max_body = self.pool.setup.max_body;
        let fits = size.is_some_and(|size| size <= max_body as u64) && self.sees_body(direction);
        let is_whole = stream.holds_for_body(direction)
            || (fits && !headers.contains_key(header::TRAILER) && !is_grpc(headers));
        is_whole.then_some(BodyWish::Buffered(max_body))
    }
}

/// Turns the wish of a module for a message into the next step of the host.
fn flow(verdict: Verdict) -> Result<Flow<'static>, Fault> {
    match verdict {
        Verdict::Continue => Ok(Flow::Continue),
        Verdict::Reply(reply) => Ok(Reply::Response(reply).into()),
        Verdict::Close => {
            Ok(Reply::problem(StatusCode::INTERNAL_SERVER_ERROR, "a plugin closed the request").into())
        }
        Verdict::Pause => Err(Fault::Held),
    }
}

impl Plugin for Wasm {
    fn hooks(&self) -> Hooks {
        self.hooks
    }

    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let facts = Facts::of_request(request);
        let has_body = request.body_size != Some(0);
        let has_changed = &mut request.exchange.is_personal;
        let mut lend = OfRequest { head: request.head, body: None, has_changed };
        let opened = Stream::open(&self.pool, facts, |vm, id| {
            let verdict = vm.headers(id, Direction::Request, !has_body, &mut lend)?;
            Ok((verdict, vm.take_calls()))
        });
        let (stream, (verdict, calls)) = match opened {
            Ok((stream, called)) => (Rc::new(stream), called),
            Err(fault) => {
                request.exchange.insert(Rc::new(Stream::lost(&self.pool)));
                request.count(fault.outcome());
                return self.failed(&fault);
            }
        };
        request.exchange.insert(Rc::clone(&stream));
        request.exchange.guard(Ending(Rc::clone(&stream)));
        let sees_body = has_body && self.sees_body(Direction::Request);
        match verdict {
            Verdict::Pause if sees_body && calls.is_empty() => {
                stream.hold_for_body(Direction::Request);
                Flow::Continue
            }
            Verdict::Pause => Flow::Wait(Box::pin(async move {
                let decided = {
                    let PluginRequest { head, outbound, clock, exchange, .. } = &mut *request;
                    let (direction, stream) = (Direction::Request, &*stream);
                    let held = Held { stream, direction, outbound, clock, sees_body };
                    let has_changed = &mut exchange.is_personal;
                    held.decided(calls, &mut OfRequest { head, body: None, has_changed }).await
                };
                match decided {
                    Ok(Verdict::Pause) => {
                        stream.hold_for_body(Direction::Request);
                        Flow::Continue
                    }
                    decided => self.conclude(&stream, decided, |outcome| request.count(outcome)),
                }
            })),
            verdict => {
                stream.hand_over(calls);
                self.conclude(&stream, Ok(verdict), |outcome| request.count(outcome))
            }
        }
    }

    fn request_body(&self, request: &mut PluginRequest<'_>) -> BodyWish {
        let Some(stream) = request.exchange.get::<Rc<Stream>>() else { return BodyWish::Pass };
        if stream.is_lost() {
            return BodyWish::Pass;
        }
        let whole = self.whole(stream, Direction::Request, request.body_size, &request.head.headers);
        whole.unwrap_or_else(|| {
            let filter = Streamed::new(Rc::clone(stream), Direction::Request, request.outbound.clone());
            BodyWish::Filter(Box::new(filter))
        })
    }

    fn on_request_body<'a>(&'a self, request: &'a mut PluginRequest<'_>, body: &'a mut Bytes) -> Flow<'a> {
        let Some(stream) = request.exchange.get::<Rc<Stream>>().map(Rc::clone) else { return Flow::Continue };
        if stream.is_lost() {
            return Flow::Continue;
        }
        let has_changed = &mut request.exchange.is_personal;
        let mut lend = OfRequest { head: request.head, body: Some(body), has_changed };
        let called = stream.call(|vm, id| {
            let verdict = vm.body(id, Direction::Request, true, &mut lend)?;
            Ok((verdict, vm.take_calls()))
        });
        match called {
            Ok((Verdict::Pause, calls)) => Flow::Wait(Box::pin(async move {
                let decided = {
                    let PluginRequest { head, outbound, clock, exchange, .. } = &mut *request;
                    let (direction, stream) = (Direction::Request, &*stream);
                    let held = Held { stream, direction, outbound, clock, sees_body: false };
                    let has_changed = &mut exchange.is_personal;
                    held.decided(calls, &mut OfRequest { head, body: Some(body), has_changed }).await
                };
                self.conclude(&stream, decided, |outcome| request.count(outcome))
            })),
            Ok((verdict, calls)) => {
                stream.hand_over(calls);
                self.conclude(&stream, Ok(verdict), |outcome| request.count(outcome))
            }
            Err(fault) => self.conclude(&stream, Err(fault), |outcome| request.count(outcome)),
        }
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        let known = response.exchange.get::<Rc<Stream>>().map(Rc::clone);
        if let Some(stream) = known.as_ref().filter(|stream| stream.is_lost()) {
            return self.pass_unseen(stream, response);
        }
        let has_body = response.size != Some(0)
            && response.request.method != Method::HEAD
            && !matches!(response.head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let facts = match known {
            Some(_) => Facts::default(),
            None => Facts::of_response(response),
        };
        let mut lend = OfResponse { request: response.request, head: response.head, body: None };
        let called = match &known {
            Some(stream) => stream.call(|vm, id| {
                let verdict = vm.headers(id, Direction::Response, !has_body, &mut lend)?;
                Ok((verdict, vm.take_calls()))
            }),
            None => {
                // The request was answered before this plugin saw it. Its module sees the response all the same.
                let opened = Stream::open(&self.pool, facts, |vm, id| {
                    let verdict = vm.headers(id, Direction::Response, !has_body, &mut lend)?;
                    Ok((verdict, vm.take_calls()))
                });
                opened.map(|(stream, called)| {
                    let stream = Rc::new(stream);
                    response.exchange.guard(Ending(Rc::clone(&stream)));
                    response.exchange.insert(stream);
                    called
                })
            }
        };
        let stream = response.exchange.get::<Rc<Stream>>().map(Rc::clone);
        let stream = stream.unwrap_or_else(|| {
            let lost = Rc::new(Stream::lost(&self.pool));
            response.exchange.insert(Rc::clone(&lost));
            lost
        });
        let sees_body = has_body && self.sees_body(Direction::Response);
        match called {
            Ok((Verdict::Pause, calls)) if sees_body && calls.is_empty() => {
                stream.hold_for_body(Direction::Response);
                Flow::Continue
            }
            Ok((Verdict::Pause, calls)) => Flow::Wait(Box::pin(async move {
                let decided = {
                    let PluginResponse { request, head, outbound, clock, .. } = &mut *response;
                    let (direction, stream) = (Direction::Response, &*stream);
                    let held = Held { stream, direction, outbound, clock, sees_body };
                    held.decided(calls, &mut OfResponse { request, head, body: None }).await
                };
                match decided {
                    Ok(Verdict::Pause) => {
                        stream.hold_for_body(Direction::Response);
                        Flow::Continue
                    }
                    decided => self.concluded(&stream, decided, response),
                }
            })),
            Ok((verdict, calls)) => {
                stream.hand_over(calls);
                self.concluded(&stream, Ok(verdict), response)
            }
            Err(fault) => self.concluded(&stream, Err(fault), response),
        }
    }

    fn response_body(&self, response: &mut PluginResponse<'_>) -> BodyWish {
        let Some(stream) = response.exchange.get::<Rc<Stream>>() else { return BodyWish::Pass };
        if stream.is_lost() && !(stream.is_denied() && response.origin == Origin::Upstream) {
            return BodyWish::Pass;
        }
        let whole = self.whole(stream, Direction::Response, response.size, &response.head.headers);
        whole.unwrap_or_else(|| {
            let filter = Streamed::new(Rc::clone(stream), Direction::Response, response.outbound.clone());
            BodyWish::Filter(Box::new(filter))
        })
    }

    fn on_response_body<'a>(&'a self, response: &'a mut PluginResponse<'_>, body: &'a mut Bytes) -> Flow<'a> {
        let Some(stream) = response.exchange.get::<Rc<Stream>>().map(Rc::clone) else {
            return Flow::Continue;
        };
        if stream.is_lost() {
            return self.pass_unseen(&stream, response);
        }
        let mut lend = OfResponse { request: response.request, head: response.head, body: Some(body) };
        let called = stream.call(|vm, id| {
            let verdict = vm.body(id, Direction::Response, true, &mut lend)?;
            Ok((verdict, vm.take_calls()))
        });
        match called {
            Ok((Verdict::Pause, calls)) => Flow::Wait(Box::pin(async move {
                let decided = {
                    let PluginResponse { request, head, outbound, clock, .. } = &mut *response;
                    let (direction, stream) = (Direction::Response, &*stream);
                    let held = Held { stream, direction, outbound, clock, sees_body: false };
                    held.decided(calls, &mut OfResponse { request, head, body: Some(body) }).await
                };
                self.concluded(&stream, decided, response)
            })),
            Ok((verdict, calls)) => {
                stream.hand_over(calls);
                self.concluded(&stream, Ok(verdict), response)
            }
            Err(fault) => self.concluded(&stream, Err(fault), response),
        }
    }

    fn on_log(&self, record: &LogRecord<'_>) {
        let Some(stream) = record.get::<Rc<Stream>>() else { return };
        stream.end(Some(heads_of(record)));
    }
}

impl Wasm {
    /// Carries out what the module has decided, or what is done because it has failed.
    fn conclude(
        &self,
        stream: &Stream,
        decided: Result<Verdict, Fault>,
        count: impl FnOnce(&'static str),
    ) -> Flow<'static> {
        decided.and_then(flow).unwrap_or_else(|fault| {
            stream.lose();
            count(fault.outcome());
            self.failed(&fault)
        })
    }

    /// A response comes after the module has failed for its request: one of the upstream passes only if the module may fail.
    fn pass_unseen(&self, stream: &Stream, response: &PluginResponse<'_>) -> Flow<'static> {
        if !stream.is_denied() || response.origin != Origin::Upstream {
            return Flow::Continue;
        }
        response.count(Fault::Lost.outcome());
        self.failed(&Fault::Lost)
    }

    /// The same for a response, whose head is kept for the log.
    fn concluded(
        &self,
        stream: &Stream,
        decided: Result<Verdict, Fault>,
        response: &PluginResponse<'_>,
    ) -> Flow<'static> {
        if self.pool.callbacks.log {
            stream.keep(response.request, response.head);
        }
        self.conclude(stream, decided, |outcome| response.count(outcome))
    }
}

/// The heads of an exchange, as far as the log knows them.
fn heads_of(record: &LogRecord<'_>) -> OfLog {
    let (mut request, ()) = Request::new(()).into_parts();
    request.method = record.method.clone();
    request.uri = record.uri.clone();
    request.version = record.version;
    let named = [(header::HOST, record.host), (header::USER_AGENT, record.user_agent)];
    for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        request.headers.insert(name, value.clone());
    }
    let mut response = response_head();
    response.status = record.status;
    OfLog { request: Some(request), response: Some(response) }
}
