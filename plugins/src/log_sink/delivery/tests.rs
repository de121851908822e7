use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use http::HeaderMap;
use signalbox_config::{ByteSize, HumanDuration, Name};
use signalbox_plugin::outbound::Caller;
use signalbox_plugin::testing::{Services, TestClock, block_on, name};
use signalbox_plugin::{CallAnswer, Clock, Outbound, Outcomes, States, TimeSource as _};

use super::*;
use crate::log_sink::settings::{EndpointSpec, HeaderValues};
use crate::log_sink::{BatchSpec, FAILED, OUTCOMES, QueueSpec, SENT};

/// The entries as they are; the status says all.
#[derive(Clone, Hash)]
struct Plain;

impl Format for Plain {
    fn call(&self) -> (Method, HeaderValue) {
        (Method::POST, HeaderValue::from_static("text/plain"))
    }

    fn encode(&self, batch: &[Entry]) -> Bytes {
        batch.concat().into()
    }

    fn judge(&self, answer: &Response<Bytes>) -> Taken {
        match answer.status().as_u16() {
            200 => Taken::But(0, "".into()),
            206 => Taken::But(1, "one is bad".into()),
            503 => Taken::NotNow,
            _ => Taken::Never,
        }
    }
}

/// A status, and the value of `Retry-After`.
type Answered = Result<(u16, &'static str), CallError>;

/// A service that answers by a list, and then 200.
#[derive(Default)]
struct Service {
    answers: RefCell<VecDeque<Answered>>,
    bodies: RefCell<Vec<Bytes>>,
}

impl Caller for Service {
    fn call<'a>(
        &'a self,
        upstream: &'a Name,
        request: Request<Bytes>,
        _: CallLimits,
    ) -> LocalBoxFuture<'a, Result<CallAnswer, CallError>> {
        assert_eq!((upstream.as_str(), request.uri().path()), ("logs", "/in"));
        assert_eq!(request.headers()["content-type"], "text/plain");
        self.bodies.borrow_mut().push(request.into_body());
        let answer = self.answers.borrow_mut().pop_front().unwrap_or(Ok((200, "")));
        let answer = answer.map(|(status, after)| {
            let builder = Response::builder().status(status).header(http::header::RETRY_AFTER, after);
            CallAnswer::new(builder.body(Bytes::new()).unwrap(), HeaderMap::new())
        });
        Box::pin(std::future::ready(answer))
    }
}

fn endpoint(batch: BatchSpec, queue: QueueSpec) -> Endpoint {
    let spec = EndpointSpec {
        upstream: "logs",
        path: "/in",
        headers: &HeaderValues::new(),
        timeout: HumanDuration(Duration::from_secs(1)),
        retries: 3,
        batch,
        queue,
    };
    let mut errors = signalbox_config::Errors::default();
    let endpoint = spec.parse(&mut errors);
    assert!(errors.is_empty());
    endpoint.unwrap()
}

fn task(service: &Rc<Service>, clock: &TestClock, end: impl Future<Output = ()> + 'static) -> TaskContext {
    let clock = Clock::new(clock.clone());
    let log = signalbox_plugin::Logger::new(name("p"), clock.clone());
    TaskContext::new(clock, Outbound::new(Rc::clone(service) as Rc<dyn Caller>), log, end)
}

fn entry(text: &str) -> Entry {
    text.as_bytes().into()
}

#[test]
fn a_batch_that_may_be_taken_later_is_sent_again_and_no_other() {
    let table: [(&str, &[Answered], usize, bool, u64); 9] = [
        ("taken", &[Ok((200, ""))], 1, true, 0),
        ("taken at the third try", &[Ok((503, "")), Err(CallError::Timeout), Ok((200, ""))], 3, true, 750),
        ("refused for good", &[Ok((400, ""))], 1, false, 0),
        ("taken in part", &[Ok((206, ""))], 1, false, 0),
        ("an answer that says too much", &[Err(CallError::TooLarge(1))], 1, false, 0),
        ("refused for too long", &[Ok((503, "")); 9], 4, false, 1750),
        ("not reached for too long", &[Err(CallError::Connect); 9], 4, false, 1750),
        ("asked to come later", &[Ok((503, "7")), Ok((200, ""))], 2, true, 7000),
        ("asked to come much later", &[Ok((503, "86400")), Ok((200, ""))], 2, true, 30_000),
    ];
    for (what, answers, calls, is_taken, longest) in table {
        let service = Rc::<Service>::default();
        service.answers.borrow_mut().extend(answers.iter().copied());
        let clock = TestClock::new(Duration::ZERO, std::time::UNIX_EPOCH);
        let context = task(&service, &clock, std::future::pending());
        let endpoint = endpoint(BatchSpec::default(), QueueSpec::default());
        let delivered = block_on(deliver(&endpoint, &Plain, &[entry("a"), entry("b")], &context));
        assert_eq!(delivered.is_ok(), is_taken, "{what}");
        assert_eq!(*service.bodies.borrow(), vec!["ab"; calls], "{what}");
        let waited = clock.monotonic().as_millis() as u64;
        assert!((longest / 2..=longest).contains(&waited), "{what}: {waited}");
    }
}

#[test]
fn a_batch_is_bounded_by_entries_and_by_bytes_and_what_does_not_fit_the_queue_is_dropped() {
    let batch = BatchSpec {
        max_entries: 3,
        max_size: ByteSize(1024),
        interval: HumanDuration(Duration::from_secs(1)),
    };
    let endpoint = endpoint(batch, QueueSpec { max_entries: 7, max_size: ByteSize(64 << 10) });
    let (services, states, plugin) = (Services::default(), States::default(), name("p"));
    let mut context = services.context(&plugin, &states);
    let outcomes = Outcomes::new(OUTCOMES, 1);
    context.outcomes = &outcomes;
    let (queue, mut outlet) = queue(&endpoint, &context);
    let (large, larger) = ("x".repeat(1000), "y".repeat(2000));
    let entries = ["a", "b", "c", "d", &large, &larger, "e", "too many"];
    let pushed = entries.map(|text| queue.push(entry(text)));
    assert_eq!(pushed, [true, true, true, true, true, true, true, false]);
    let service = Rc::<Service>::default();
    service.answers.borrow_mut().extend([Ok((200, "")), Ok((206, "")), Ok((503, "")), Ok((200, ""))]);
    // It is told to end from the beginning: it sends all that waits, each batch once.
    let ended = task(&service, &services.clock, std::future::ready(()));
    block_on(run(&queue, &mut outlet, &endpoint, &Plain, &ended));
    assert_eq!(*service.bodies.borrow(), ["abc", &format!("d{large}"), &larger, "e"]);
    let counts = [SENT, FAILED].map(|wanted| outcomes.read().find(|(name, _)| *name == wanted).unwrap().1);
    assert_eq!(counts, [5, 2]);
    assert_eq!(queue.gate.waiting(), Waiting { entries: 0, size: 0 });
    assert!(!queue.push(entry("late")), "nobody would send it");
}

#[test]
fn a_task_that_is_cancelled_counts_what_it_has_not_sent() {
    let endpoint = endpoint(BatchSpec::default(), QueueSpec::default());
    let (services, states, plugin) = (Services::default(), States::default(), name("p"));
    let mut context = services.context(&plugin, &states);
    let outcomes = Outcomes::new(OUTCOMES, 1);
    context.outcomes = &outcomes;
    let (queue, mut outlet) = queue(&endpoint, &context);
    struct Silent;
    impl Caller for Silent {
        fn call<'a>(
            &'a self,
            _: &'a Name,
            _: Request<Bytes>,
            _: CallLimits,
        ) -> LocalBoxFuture<'a, Result<CallAnswer, CallError>> {
            Box::pin(std::future::pending())
        }
    }
    assert!(queue.push(entry("in flight")));
    let clock = services.shared_clock().clone();
    let log = signalbox_plugin::Logger::new(name("p"), clock.clone());
    let silent = TaskContext::new(clock, Outbound::new(Rc::new(Silent)), log, std::future::pending());
    let mut running = Box::pin(run(&queue, &mut outlet, &endpoint, &Plain, &silent));
    assert!((&mut running).now_or_never().is_none());
    assert!(queue.push(entry("waits")));
    drop(running);
    let counts = [SENT, FAILED, DROPPED];
    let counts = counts.map(|wanted| outcomes.read().find(|(name, _)| *name == wanted).unwrap().1);
    assert_eq!(counts, [0, 1, 1]);
}
