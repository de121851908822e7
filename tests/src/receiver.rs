//! A receiver of webhooks within the test process.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A receiver of webhooks, on a thread of its own. It is gone when this is dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    received: Vec<Received>,
    /// The next replies.
    script: VecDeque<Reply>,
    /// The reply to all other requests.
    usual: Reply,
}

/// The way in which a receiver answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// With this status.
    Status(u16),
    /// With this status, and `Retry-After` with so many seconds.
    RetryAfter(u16, u32),
    /// With this status, and a `Location` at the receiver itself.
    Redirect(u16),
    /// It reads the request, and never answers.
    Never,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Received {
    /// Path and query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The reply to it.
    pub reply: Reply,
}

impl Receiver {
    /// A receiver that answers 204.
    pub fn start() -> Result<Self> {
        Self::answering(Reply::Status(204), [])
    }

    /// A receiver with these replies to the first requests, and the `usual` one to all others.
    pub fn answering(usual: Reply, script: impl IntoIterator<Item = Reply>) -> Result<Self> {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let state = State { received: Vec::new(), script: script.into_iter().collect(), usual };
        let state = Arc::new(Mutex::new(state));
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&state);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("receiver".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(socket, served) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, state, stop: Some(stop), thread: Some(thread) })
    }

    /// The URL of a path: `/hook`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.state).received.clone()
    }

    /// Those that were answered with a success.
    pub fn taken(&self) -> Vec<Received> {
        let mut received = self.received();
        received.retain(|request| matches!(request.reply, Reply::Status(200..300)));
        received
    }

    /// Changes the reply to all requests from now on.
    pub fn reply(&self, usual: Reply) {
        let mut state = lock(&self.state);
        state.script.clear();
        state.usual = usual;
    }
}

impl Received {
    /// A header; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("no JSON: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(socket: std::net::TcpListener, state: Arc<Mutex<State>>) {
    let listener = TcpListener::from_std(socket).expect("it was made for this");
    loop {
        // An error is one connection's: it was gone before it was accepted.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            // An error is that the client has gone.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let reply = {
        let mut state = lock(&state);
        let reply = state.script.pop_front().unwrap_or(state.usual);
        state.received.push(Received { path, headers: head.headers, body, reply });
        reply
    };
    let builder = Response::builder();
    let builder = match reply {
        Reply::Status(status) => builder.status(status),
        Reply::RetryAfter(status, seconds) => builder.status(status).header("retry-after", seconds),
        Reply::Redirect(status) => builder.status(status).header("location", "/elsewhere"),
        Reply::Never => return std::future::pending().await,
    };
    Ok(builder.body(Full::default()).expect("a usual response"))
}
