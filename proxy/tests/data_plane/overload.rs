use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use crate::harness::{Client, block_on_alone};
use crate::process::Process;

/// A route whose cost grows with the number of its plugins: each reads, changes and writes the body.
fn costly(plugins: u32) -> String {
    let names: Vec<_> = (0..plugins).map(|number| format!("p{number}")).collect();
    let plugins: Vec<_> = names
        .iter()
        .map(|name| {
            format!(
                "{{name: {name}, type: request-transform, config: {{append: {{body: {{seen: {name}}}}}}}}}"
            )
        })
        .collect();
    format!(
        "plugins: [{}]\nroutes: [{{name: r, plugins: [{}], respond: {{body: done}}}}]",
        plugins.join(", "),
        names.join(", ")
    )
}

async fn start(plugins: u32, max_queue_delay: &str) -> Process {
    Process::start(&costly(plugins), &["--workers", "1", "--max-queue-delay", max_queue_delay]).await
}

/// A proxy whose route costs as much as possible, so that the proxy is the bottleneck and not this process, but little
/// enough that there are enough responses to judge by. Returns it with the number of plugins and its capacity in
/// requests per second.
async fn calibrated() -> (Process, u32, f64) {
    let mut plugins = 32;
    loop {
        let process = start(plugins, "250ms").await;
        let capacity = capacity(process.address).await;
        if capacity > 120.0 || plugins == 1 {
            return (process, plugins, capacity);
        }
        plugins /= 2;
    }
}

fn request() -> Rc<[u8]> {
    let members: Vec<_> = (0..150).map(|number| format!("\"m{number:06}\": 1.5")).collect();
    let body = format!("{{{}}}", members.join(","));
    let head = "POST / HTTP/1.1\r\nhost: test.example\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes().into()
}

/// The results of requests.
#[derive(Default)]
struct Seen {
    /// The number of all requests.
    sent: Cell<usize>,
    /// The time from when each answered request was due.
    answered: RefCell<Vec<Duration>>,
    refused: RefCell<Vec<Duration>>,
    /// The free connections.
    idle: RefCell<Vec<TcpStream>>,
}

/// A proxy needs a moment to detect overload: earlier requests have waited for long.
const NOTICED: Duration = Duration::from_millis(1500);

impl Seen {
    /// The number of responses that arrived before the user gave up.
    fn in_time(&self) -> usize {
        self.answered.borrow().iter().filter(|took| **took < Duration::from_secs(1)).count()
    }
}

fn p99(times: &RefCell<Vec<Duration>>) -> Duration {
    let mut times = times.borrow().clone();
    times.sort_unstable();
    let index = (times.len() * 99 / 100).min(times.len().saturating_sub(1));
    times.get(index).copied().unwrap_or_default()
}

/// Sends a request; returns the response head.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> Option<String> {
    stream.write_all(request).await.ok()?;
    let mut answer = Vec::new();
    loop {
        stream.read_buf(&mut answer).await.ok().filter(|read| *read > 0)?;
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            return Some(head.to_owned());
        }
    }
}

/// The number of requests per second that are answered to clients that repeat them without a pause.
async fn capacity(address: SocketAddr) -> f64 {
    const TIME: Duration = Duration::from_secs(1);
    let (request, end) = (request(), Instant::now() + TIME);
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let request = Rc::clone(&request);
        clients.spawn_local(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let mut count = 0;
            while Instant::now() < end {
                assert!(ask(&mut stream, &request).await.unwrap().starts_with("HTTP/1.1 200"));
                count += 1;
            }
            count
        });
    }
    f64::from(clients.join_all().await.into_iter().sum::<i32>()) / TIME.as_secs_f64()
}

/// Sends `rate` requests per second for `time`, independently of responses, each over a free connection or a new one;
/// then waits another `patience` for responses. Returns the results of those that were due after `since`.
async fn offer(
    address: SocketAddr,
    rate: f64,
    time: Duration,
    patience: Duration,
    since: Duration,
) -> Rc<Seen> {
    let (seen, request, began) = (Rc::<Seen>::default(), request(), Instant::now());
    let mut clients = JoinSet::new();
    while began.elapsed() < time {
        let due = (began.elapsed().as_secs_f64() * rate) as usize;
        for number in seen.sent.replace(due)..due {
            let at = began + Duration::from_secs_f64(number as f64 / rate);
            let (seen, request) = (Rc::clone(&seen), Rc::clone(&request));
            clients.spawn_local(async move {
                let idle = seen.idle.borrow_mut().pop();
                let mut stream = match idle {
                    Some(stream) => stream,
                    None => TcpStream::connect(address).await.unwrap(),
                };
                let Some(head) = ask(&mut stream, &request).await else { return };
                let head = head.to_ascii_lowercase();
                let is_answered = head.starts_with("http/1.1 200");
                let is_refused = head.starts_with("http/1.1 503") && head.contains("retry-after: 1");
                assert!(is_answered || is_refused, "{head}");
                if at - began >= since {
                    let seen = if is_answered { &seen.answered } else { &seen.refused };
                    seen.borrow_mut().push(at.elapsed());
                }
                if !head.contains("connection: close") {
                    seen.idle.borrow_mut().push(stream);
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _ = tokio::time::timeout(patience, async { while clients.join_next().await.is_some() {} }).await;
    seen
}

/// Loads two proxies, one that sheds and one that does not, with `factor` times their capacity, at the same time, so
/// that the machine's other load affects both. Returns true if they differ as they should, and a description.
async fn compare(factor: f64) -> (bool, String) {
    let (sheds, plugins, capacity) = calibrated().await;
    let waits = start(plugins, "0s").await;
    let (rate, time, patience) = (capacity * factor, Duration::from_secs(4), Duration::from_secs(4));
    let (shed, waited) = tokio::join!(
        offer(sheds.address, rate, time, patience, NOTICED),
        offer(waits.address, rate, time, patience, NOTICED)
    );
    let told = format!(
        "{plugins} plugins, {rate:.0}/s; {} answered ({} in time) p99 {:?}, {} refused p99 {:?}; without shedding {} ({} in time) p99 {:?}",
        shed.answered.borrow().len(),
        shed.in_time(),
        p99(&shed.answered),
        shed.refused.borrow().len(),
        p99(&shed.refused),
        waited.answered.borrow().len(),
        waited.in_time(),
        p99(&waited.answered),
    );
    assert!(waited.refused.borrow().is_empty(), "{told}");
    // If the machine is so busy that the load itself is late, that adds to both.
    let (longest, bound) = (p99(&waited.answered), p99(&waited.answered) * 7 / 10);
    let differ = longest > Duration::from_secs(1)
        && !shed.refused.borrow().is_empty()
        && p99(&shed.answered) < bound
        && p99(&shed.refused) < bound
        && shed.in_time() > 0;
    if differ {
        let metrics = Client::connect(sheds.admin()).await.get("/metrics").await;
        let is_counted =
            |line: &str| line.starts_with("signalbox_requests_total") && line.contains("flags=\"OM\"");
        assert!(metrics.text().lines().any(is_counted), "{}", metrics.text());
    }
    (differ, told)
}

#[test]
fn beyond_what_it_can_do_it_refuses_at_once_and_answers_the_rest_in_bounded_time() {
    block_on_alone(LocalSet::new().run_until(async {
        let mut told = Vec::new();
        // On a busy machine, a load may turn out to be no overload, or the proxy may be paused meanwhile.
        for factor in [2.5, 4.0, 4.0] {
            let (differ, one) = compare(factor).await;
            if differ {
                return;
            }
            told.push(one);
        }
        panic!("shedding makes no difference:\n{}", told.join("\n"));
    }));
}

#[test]
fn a_pause_of_the_process_at_moderate_load_refuses_hardly_anybody() {
    block_on_alone(LocalSet::new().run_until(async {
        let (process, _, capacity) = calibrated().await;
        let rate = capacity * 0.15;
        let time = Duration::from_secs(3);
        let (seen, ()) = tokio::join!(offer(process.address, rate, time, time * 4, Duration::ZERO), async {
            let kill = |signal: &str| {
                let id = process.id().to_string();
                assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
            };
            tokio::time::sleep(Duration::from_secs(1)).await;
            kill("-STOP");
            tokio::time::sleep(Duration::from_millis(400)).await;
            kill("-CONT");
        });
        let (sent, refused) = (seen.sent.get(), seen.refused.borrow().len());
        assert!(refused * 20 <= sent, "{refused} of {sent} were refused");
        assert_eq!(seen.answered.borrow().len() + refused, sent, "all have been answered");
    }));
}
