//! The debugging pages that both programs have: profiles, memory, threads. The programs decide who may see them.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::profile::{self, ProfileError};
use crate::{ErrorChain, allocator, procfs};

/// A page that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebugRequest {
    /// A CPU profile.
    Profile {
        /// Its length in seconds.
        seconds: u64,
        /// The number of samples in a second of a thread's CPU time.
        hz: u32,
    },
    /// A profile of what is allocated.
    Heap,
    /// The names of functions, which profiles have already.
    Symbol,
    /// Figures about memory.
    Memory,
    /// The threads.
    Tasks,
}

/// A page.
#[derive(Debug)]
pub struct Page {
    /// The media type of the body.
    pub content_type: &'static str,
    /// The content.
    pub body: Vec<u8>,
}

/// The reason why there is no page.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the response.
    pub status: u16,
    /// The reason, for a person.
    pub detail: String,
}

/// The longest profile, in seconds.
const MAX_SECONDS: u64 = 60;
/// The length that `go tool pprof` expects if none is asked for.
const DEFAULT_SECONDS: u64 = 30;

impl DebugRequest {
    /// Reads a request's path and query. `None`: it is for none of these pages.
    pub fn parse(path: &str, query: Option<&str>) -> Option<Result<Self, Refusal>> {
        Some(match path {
            "/debug/pprof/profile" => Self::profile(query.unwrap_or_default()),
            "/debug/pprof/heap" => Ok(Self::Heap),
            "/debug/pprof/symbol" => Ok(Self::Symbol),
            "/debug/memory" => Ok(Self::Memory),
            "/debug/tasks" => Ok(Self::Tasks),
            _ => return None,
        })
    }

    fn profile(query: &str) -> Result<Self, Refusal> {
        let (mut seconds, mut hz) = (DEFAULT_SECONDS, profile::DEFAULT_HZ);
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "seconds" => seconds = number(name, value, MAX_SECONDS)?,
                "hz" => hz = number(name, value, profile::MAX_HZ)?,
                _ => {}
            }
        }
        Ok(Self::Profile { seconds, hz })
    }
}

/// A number from 1 to `most`.
fn number<N: FromStr + PartialOrd + From<u8> + Display + Copy>(
    name: &str,
    value: &str,
    most: N,
) -> Result<N, Refusal> {
    let number = value.parse().ok().filter(|number| *number >= N::from(1) && *number <= most);
    number.ok_or_else(|| Refusal {
        status: 400,
        detail: format!("{name} must be from 1 to {most}, is {value:?}"),
    })
}

/// Makes a page. `tasks` are further entries of the page of threads. A profile ends when the future is dropped.
pub async fn answer(request: DebugRequest, tasks: Vec<Value>) -> Result<Page, Refusal> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _cancel = CancelOnDrop(Arc::clone(&cancelled));
    let made = tokio::task::spawn_blocking(move || make(request, &tasks, &cancelled)).await;
    made.unwrap_or_else(|_| Err(Refusal { status: 500, detail: "the page could not be made".to_owned() }))
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn make(request: DebugRequest, tasks: &[Value], cancelled: &AtomicBool) -> Result<Page, Refusal> {
    match request {
        DebugRequest::Profile { seconds, hz } => {
            let refused = |error: ProfileError| Refusal {
                status: if matches!(error, ProfileError::Busy) { 409 } else { 503 },
                detail: ErrorChain(&error).to_string(),
            };
            let profile = profile::take(Duration::from_secs(seconds), hz, cancelled).map_err(refused)?;
            let body = profile.to_gzip().map_err(|error| refused(error.into()))?;
            Ok(Page { content_type: "application/octet-stream", body })
        }
        DebugRequest::Heap => Err(Refusal {
            status: 501,
            detail: "this build does not record allocations: its allocator is mimalloc, which has no heap profiles. \
                     /debug/memory has figures; for allocations, run the program under heaptrack or bytehound"
                .to_owned(),
        }),
        DebugRequest::Symbol => {
            Err(Refusal { status: 404, detail: "profiles have the names of their functions already".to_owned() })
        }
        DebugRequest::Memory => Ok(json_page(&memory())),
        DebugRequest::Tasks => Ok(json_page(&threads(tasks))),
    }
}

fn memory() -> Value {
    let mut system = Map::new();
    for (name, bytes) in procfs::memory().unwrap_or_default() {
        system.insert(name, bytes.into());
    }
    let allocator = allocator::figures();
    json!({
        "unit": "bytes",
        "allocator": {
            "name": "mimalloc",
            "committed": allocator.committed,
            "peak_committed": allocator.peak_committed,
            "peak_resident": allocator.peak_resident,
        },
        "smaps_rollup": system,
    })
}

fn threads(tasks: &[Value]) -> Value {
    let threads = procfs::threads().unwrap_or_default();
    let threads = threads.into_iter().map(|thread| {
        json!({"id": thread.id, "name": thread.name, "state": thread.state.to_string(), "cpu_ms": thread.cpu_ms})
    });
    json!({"threads": threads.collect::<Vec<_>>(), "plugin_tasks": tasks})
}

fn json_page(value: &Value) -> Page {
    Page { content_type: "application/json", body: value.to_string().into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_frequencies_are_bounded() {
        let profile = |query| DebugRequest::parse("/debug/pprof/profile", query).unwrap();
        let taken = |seconds, hz| Ok(DebugRequest::Profile { seconds, hz });
        assert_eq!(profile(None), taken(30, 99));
        assert_eq!(profile(Some("seconds=60&hz=100&other=1")), taken(60, 100));
        for wrong in ["seconds=0", "seconds=61", "seconds=x", "seconds=", "hz=0", "hz=101", "seconds=-1"] {
            let refusal = profile(Some(wrong)).unwrap_err();
            assert_eq!(refusal.status, 400, "{wrong}");
            assert!(refusal.detail.contains(" must be from 1 to "), "{}", refusal.detail);
        }
        assert_eq!(DebugRequest::parse("/debug/upstreams", None), None);
    }

    #[tokio::test]
    async fn the_pages_have_figures_of_this_process() {
        let page = |request| async move { answer(request, vec![json!({"task": "t"})]).await };
        let value = |page: Page| serde_json::from_slice::<Value>(&page.body).unwrap();
        let memory = value(page(DebugRequest::Memory).await.unwrap());
        assert!(memory["smaps_rollup"]["rss"].as_u64().unwrap() > 0, "{memory}");
        let tasks = value(page(DebugRequest::Tasks).await.unwrap());
        assert!(!tasks["threads"].as_array().unwrap().is_empty());
        assert_eq!(tasks["plugin_tasks"], json!([{"task": "t"}]));
        assert_eq!(page(DebugRequest::Heap).await.unwrap_err().status, 501);
        assert_eq!(page(DebugRequest::Symbol).await.unwrap_err().status, 404);
    }
}
