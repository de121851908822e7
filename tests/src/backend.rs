//! Backends within the test process: what proxies forward to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::process::free_port;

/// A backend, on a thread of its own, so that a test that blocks does not slow it. It is gone when this is dropped,
/// and its open connections with it.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The way in which a backend answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers 200 with an [`Echo`] as JSON.
    Echo,
    /// Likewise, after this long.
    Slow(Duration),
    /// Reads the request and closes the connection.
    Drop,
    /// Reads the request and never answers.
    Hang,
}

/// A request as a backend saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Echo {
    /// The backend's name.
    pub backend: String,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// All headers, names in lower case, in their order.
    pub headers: Vec<(String, String)>,
    /// How long the body was, bytes.
    pub body_length: usize,
}

impl Echo {
    /// The echo in an answer's body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        serde_json::from_slice(body)
            .with_context(|| format!("not an echo: {}", String::from_utf8_lossy(body)))
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Backend {
    /// A backend that echoes.
    pub fn echo(name: &str) -> Result<Self> {
        Self::start(name, Behaviour::Echo)
    }

    /// A backend that does this with every request.
    pub fn start(name: &str, behaviour: Behaviour) -> Result<Self> {
        Self::at(name, behaviour, SocketAddr::from(([127, 0, 0, 1], free_port())))
    }

    /// A backend that does this with every request, at this address.
    pub fn at(name: &str, behaviour: Behaviour, address: SocketAddr) -> Result<Self> {
        let socket = std::net::TcpListener::bind(address).with_context(|| format!("{address} is taken"))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let served = Served { name: name.to_owned(), behaviour, requests: requests.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("backend-{name}")).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(socket, Arc::new(served)) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, requests, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests reached it.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Served {
    name: String,
    behaviour: Behaviour,
    requests: Arc<AtomicU64>,
}

async fn accept(socket: std::net::TcpListener, served: Arc<Served>) {
    let listener = TcpListener::from_std(socket).expect("it was made for this");
    loop {
        // An error is one connection's: it was gone before it was accepted.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve(stream, served.clone()));
    }
}

async fn serve(stream: TcpStream, served: Arc<Served>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(request, &served));
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    // How a connection ends is the proxy's affair.
    let _ = connection.await;
}

/// Ends the connection without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("dropped on purpose")
    }
}

impl std::error::Error for Dropped {}

async fn answer(request: Request<Incoming>, served: &Served) -> Result<Response<Full<Bytes>>, Dropped> {
    served.requests.fetch_add(1, Ordering::Relaxed);
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
    match served.behaviour {
        Behaviour::Echo => {}
        Behaviour::Slow(delay) => tokio::time::sleep(delay).await,
        Behaviour::Drop => return Err(Dropped),
        Behaviour::Hang => match std::future::pending::<Infallible>().await {},
    }
    let echo = Echo {
        backend: served.name.clone(),
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: listed(&head.headers),
        body_length: body.len(),
    };
    let json = serde_json::to_vec(&echo).map_err(|_| Dropped)?;
    let answer = Response::builder().header("content-type", "application/json").body(Full::from(json));
    answer.map_err(|_| Dropped)
}

fn listed(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}
