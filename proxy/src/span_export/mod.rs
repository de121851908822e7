//! Exports spans to collectors, on a thread of its own with a runtime of its own: neither a collector that hangs nor a busy proxy
//! can make the one wait for the other.
//!
//! Calls go over connections of their own, and not through the data path, so that none is ever traced.

mod call;
mod delivery;

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use self::delivery::LAST_CALLS;
use crate::telemetry::spans::NewSink;

/// Starts the thread, which runs an exporter for each new sink until `stop`.
pub(crate) fn start(
    sinks: mpsc::UnboundedReceiver<NewSink>,
    stop: CancellationToken,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("span-export".to_owned()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                runtime.block_on(run(sinks, stop));
                // Name lookups cannot be cancelled, and nothing waits for them.
                runtime.shutdown_timeout(Duration::from_millis(100));
            }
            Err(error) => error!(%error, "the thread that exports spans cannot start"),
        }
    })
}

async fn run(mut sinks: mpsc::UnboundedReceiver<NewSink>, stop: CancellationToken) {
    let mut exporters = JoinSet::new();
    let mut in_use: Vec<CancellationToken> = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            sink = sinks.recv() => match sink {
                Some(sink) => {
                    in_use.retain(|retired| !retired.is_cancelled());
                    in_use.push(sink.retired.clone());
                    exporters.spawn(delivery::run(sink, stop.clone()));
                }
                None => break,
            },
            Some(_) = exporters.join_next() => {}
        }
    }
    // Sinks of the last revision, whose exporters have not begun.
    while let Ok(sink) = sinks.try_recv() {
        in_use.push(sink.retired.clone());
        exporters.spawn(delivery::run(sink, stop.clone()));
    }
    in_use.iter().for_each(CancellationToken::cancel);
    let end = Instant::now() + LAST_CALLS;
    while let Ok(Some(_)) = tokio::time::timeout_at(end, exporters.join_next()).await {}
}
