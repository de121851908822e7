//! The latency of requests that arrive one by one, as from many independent users.
//!
//! The gaps between them are random (exponential), so that even at half of a proxy's capacity some coincide. Each goes
//! over a free connection; if all are in use, it waits for one. Its time begins when it was due, whatever delayed it,
//! and ends with the last byte of its response.
//!
//! The backend behind the proxy is in this process, too, in the same loop: two processes that share a core wait for
//! each other's time slice, which would dominate the slowest requests. Prints a JSON object: the number of responses,
//! and quantiles in milliseconds.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

/// Sends requests through a proxy, answers them behind it, and measures the latency.
#[derive(Parser)]
struct Args {
    /// The proxy's address.
    address: SocketAddr,
    /// The address of the backend.
    #[arg(long)]
    backend: SocketAddr,
    /// The `Host` of the requests.
    #[arg(long)]
    host: String,
    /// The path of the requests.
    #[arg(long)]
    path: String,
    /// The rate in requests per second.
    #[arg(long)]
    rate: f64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The seed for the gaps between requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A connection to the proxy, or from it.
struct Connection {
    stream: TcpStream,
    /// The bytes of a message so far.
    read: Vec<u8>,
    /// The time at which the awaited response's request was due.
    due: Option<Instant>,
}

struct Load {
    args: Args,
    request: Vec<u8>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    listener: TcpListener,
    clients: Vec<Connection>,
    backends: Vec<Option<Connection>>,
    idle: Vec<usize>,
    /// The latencies of the responses, in ms.
    times: Vec<f64>,
}

/// The backend's response.
const BODY: &str =
    r#"{"id":4711,"name":"Ada Lovelace","email":"ada@example.com","roles":["admin","user"],"active":true}"#;

/// The deadline for every wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time before the measurement, in which connections are opened on both sides.
const WARM_UP: Duration = Duration::from_millis(300);

/// Tokens of the poll: clients are below, the backend's connections above.
const LISTENER: u64 = 1 << 32;

#[expect(clippy::print_stdout, reason = "the result")]
fn main() -> Result<()> {
    let args = Args::parse();
    let mut load = Load::new(args)?;
    load.run(WARM_UP)?;
    load.times.clear();
    load.run(Duration::from_secs_f64(load.args.seconds))?;
    let mut times = std::mem::take(&mut load.times);
    times.sort_by(f64::total_cmp);
    ensure!(!times.is_empty(), "no requests");
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
    let told = serde_json::json!({
        "answered": times.len(),
        "p50": at(0.5),
        "p99": at(0.99),
        "p99.9": at(0.999),
    });
    println!("{told}");
    Ok(())
}

impl Load {
    fn new(args: Args) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let listener = TcpListener::bind(args.backend)?;
        listener.set_nonblocking(true)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        let mut clients = Vec::new();
        for index in 0..args.connections {
            let stream = TcpStream::connect(args.address);
            let stream = stream.with_context(|| format!("cannot connect to {}", args.address))?;
            clients.push(Connection::new(stream)?);
            let number = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &clients[index].stream, number, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            request: format!("GET {} HTTP/1.1\r\nhost: {}\r\n\r\n", args.path, args.host).into(),
            idle: (0..clients.len()).collect(),
            events: Vec::with_capacity(256),
            backends: Vec::new(),
            times: Vec::new(),
            epoll,
            listener,
            clients,
            args,
        })
    }

    /// Sends requests for `time`, and waits for the last responses.
    fn run(&mut self, time: Duration) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(self.args.seed);
        let began = Instant::now();
        let end = began + time;
        let mut next = began;
        let mut waiting = VecDeque::new();
        loop {
            let now = Instant::now();
            ensure!(now < end + PATIENCE, "{} answers do not come", self.clients.len() - self.idle.len());
            while next <= now.min(end) {
                waiting.push_back(next);
                next += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / self.args.rate);
            }
            while let Some(due) = waiting.front().copied()
                && let Some(index) = self.idle.pop()
            {
                waiting.pop_front();
                let client = &mut self.clients[index];
                client.say(&self.request)?;
                client.due = Some(due);
            }
            if now >= end && waiting.is_empty() && self.idle.len() == self.clients.len() {
                return Ok(());
            }
            let until = match self.idle.len() == self.clients.len() {
                _ if next <= end => next,
                true => end,
                false => end + PATIENCE,
            };
            self.wait(until)?;
        }
    }

    /// Waits for events until the given time, and handles them.
    fn wait(&mut self, until: Instant) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        // `poll` does not round the timeout to milliseconds.
        let polled = poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&Timespec::try_from(left)?))?;
        if polled == 0 {
            return Ok(());
        }
        self.events.clear();
        epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&Timespec::default()))?;
        for event in std::mem::take(&mut self.events) {
            match event.data.u64() {
                LISTENER => self.accept()?,
                number @ ..LISTENER => {
                    let client = &mut self.clients[number as usize];
                    if client.has_answer()?
                        && let Some(due) = client.due.take()
                    {
                        self.times.push(due.elapsed().as_secs_f64() * 1000.0);
                        self.idle.push(number as usize);
                    }
                }
                number => {
                    let place = &mut self.backends[(number - LISTENER - 1) as usize];
                    // A connection that the proxy has closed is dropped.
                    if place.as_mut().is_some_and(|backend| backend.answer().is_err()) {
                        *place = None;
                    }
                }
            }
        }
        self.events = Vec::with_capacity(256);
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let number = LISTENER + 1 + self.backends.len() as u64;
                    let backend = Connection::new(stream)?;
                    let number = epoll::EventData::new_u64(number);
                    epoll::add(&self.epoll, &backend.stream, number, epoll::EventFlags::IN)?;
                    self.backends.push(Some(backend));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Connection {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, read: Vec::new(), due: None })
    }

    fn say(&mut self, message: &[u8]) -> Result<()> {
        ensure!(self.stream.write(message)? == message.len(), "a message that is not taken");
        Ok(())
    }

    /// Reads from the socket; returns the end of the head, if it is complete.
    fn fill(&mut self) -> Result<Option<usize>> {
        let mut part = [0; 4096];
        match self.stream.read(&mut part) {
            Ok(0) => bail!("the connection is closed"),
            Ok(read) => self.read.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.read.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4))
    }

    /// True if a response has arrived completely.
    fn has_answer(&mut self) -> Result<bool> {
        let Some(head) = self.fill()? else { return Ok(false) };
        let text = std::str::from_utf8(&self.read[..head])?;
        ensure!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
        });
        let whole = head + length.context("no Content-Length")??;
        ensure!(self.read.len() <= whole, "more than an answer");
        let is_whole = self.read.len() == whole;
        if is_whole {
            self.read.clear();
        }
        Ok(is_whole)
    }

    /// Answers the request, if it has arrived completely.
    fn answer(&mut self) -> Result<()> {
        if self.fill()?.is_some() {
            self.read.clear();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
            self.say(format!("{head}{}\r\n\r\n{BODY}", BODY.len()).as_bytes())?;
        }
        Ok(())
    }
}
