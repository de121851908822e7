//! Ticks, and calls that no request waits for: with a real clock, and a task that really runs.

use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, LocalBoxFuture};
use http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use signalbox_config::{BlobId, Name};
use signalbox_plugin::outbound::Caller;
use signalbox_plugin::tasks::{Spawner, TaskContext, Work};
use signalbox_plugin::testing::{Client, name};
use signalbox_plugin::{
    Blobs, CallAnswer, CallError, CallLimits, Clock, Context, Definition as _, Logger, Outbound, Outcomes,
    States, Tasks, TimeSource,
};
use tokio::sync::oneshot;

use super::guest::{NOTE, module, trace};
use crate::Wasm;

struct RealTime(Instant);

impl TimeSource for RealTime {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration).boxed()
    }
}

/// Runs each task on a thread of its own.
struct Threads(Clock);

impl Spawner for Threads {
    fn spawn(&self, _: String, log: Logger, _: Duration, work: Work) -> Box<dyn Send + Sync> {
        let (alive, gone) = oneshot::channel::<()>();
        let clock = self.0.clone();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let work =
                    work(TaskContext::new(clock, Outbound::new(Rc::new(Echo)), log, std::future::pending()));
                tokio::select! {
                    _ = gone => {}
                    () = work => {}
                }
            });
        };
        thread::spawn(run);
        Box::new(alive)
    }
}

/// Answers each call at once.
struct Echo;

impl Caller for Echo {
    fn call<'a>(
        &'a self,
        _: &'a Name,
        request: Request<Bytes>,
        _: CallLimits,
    ) -> LocalBoxFuture<'a, Result<CallAnswer, CallError>> {
        let response = Response::new(request.into_body());
        std::future::ready(Ok(CallAnswer::new(response, HeaderMap::new()))).boxed_local()
    }
}

fn running(module: &Bytes, mut config: Value) -> Wasm {
    config["module"] = json!(BlobId::of(module).to_string());
    let clock = Clock::new(RealTime(Instant::now()));
    let (name, states, content) = (name("p"), States::default(), module.clone());
    let log = Logger::new(name.clone(), clock.clone());
    let tasks = Tasks::new(Arc::new(Threads(clock.clone())), log.clone());
    let outcomes = Outcomes::new(Wasm::OUTCOMES, 1);
    let blobs = Blobs::new(Arc::new(move |_| Some(content.clone())));
    let context = Context::new(&name, &states, &clock, &tasks, &log, &outcomes, &blobs);
    Wasm::build(serde_json::from_value(config).unwrap(), &context).unwrap()
}

/// Waits until the trace is as it should be.
#[track_caller]
fn wait_for(plugin: &Wasm, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while trace(plugin) != expected {
        assert!(Instant::now() < deadline, "{:?}, not {expected:?}", trace(plugin));
        thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn ticks_are_called_until_the_module_ends_them() {
    let ticking = module(&format!(
        r#"
        {NOTE}
        (global $ticks (mut i32) (i32.const 0))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $set_tick_period_milliseconds (i32.const 10)))
            i32.const 1)
        (func (export "proxy_on_tick") (param i32)
            (call $note (i32.add (i32.const 48) (local.get 0)))
            (global.set $ticks (i32.add (global.get $ticks) (i32.const 1)))
            (if (i32.eq (global.get $ticks) (i32.const 3))
                (then (drop (call $set_tick_period_milliseconds (i32.const 0))))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $note (i32.const 113)) i32.const 0)
        "#
    ));
    let plugin = running(&ticking, json!({}));
    assert!(Client::new("GET", "/").meets(&plugin).is_none());
    wait_for(&plugin, "q111");
    assert!(Client::new("GET", "/").meets(&plugin).is_none());
    assert_eq!(trace(&plugin), "q111q");
}

#[test]
fn a_tick_that_fails_is_counted_and_the_next_request_gets_a_new_instance() {
    let failing = module(
        r#"
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $set_tick_period_milliseconds (i32.const 10)))
            i32.const 1)
        (func (export "proxy_on_tick") (param i32) unreachable)
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 0)
        "#,
    );
    let plugin = running(&failing, json!({}));
    assert!(Client::new("GET", "/").meets(&plugin).is_none());
    let trapped = || plugin.pool.outcomes.read().find(|(name, _)| *name == "trapped").unwrap().1;
    let deadline = Instant::now() + Duration::from_secs(20);
    while trapped() == 0 {
        assert!(Instant::now() < deadline, "no tick");
        thread::park_timeout(Duration::from_millis(5));
    }
    assert!(Client::new("GET", "/").meets(&plugin).is_none());
}

#[test]
fn a_call_that_no_request_waits_for_is_answered_all_the_same() {
    let pairs: [(&str, &str); 3] = [(":method", "POST"), (":path", "/"), (":authority", "svc")];
    let encoded = crate::pairs::encode(pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    let escaped: String = encoded.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let calling = module(&format!(
        r#"
        {NOTE}
        (data (i32.const 0) "svc")
        (data (i32.const 16) "{escaped}")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $note (i32.const 113))
            (if (call $http_call (i32.const 0) (i32.const 3) (i32.const 16) (i32.const {size}) (i32.const 0) (i32.const 3)
                    (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 300))
                (then unreachable))
            i32.const 0)
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (call $note (i32.add (i32.const 48) (local.get 3))))
        "#,
        size = encoded.len()
    ));
    let plugin = running(&calling, json!({"upstreams": ["svc"]}));
    let mut client = Client::new("GET", "/");
    assert!(client.meets(&plugin).is_none());
    // The size of the body, which comes back.
    wait_for(&plugin, "q3");
    drop(client);
}
