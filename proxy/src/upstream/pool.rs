use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::Connection;

/// Where a connection leads, and how: what has to be the same for another request to take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Which settings of TLS; 0: none.
    pub settings: u64,
}

/// One worker's idle connections. They belong to an endpoint, so they outlive revisions.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<Endpoint, Vec<Idle>, RandomState>>,
}

struct Idle {
    connection: Box<Connection>,
    until: Instant,
}

/// Most idle connections of one worker to one endpoint; what comes back beyond is closed.
const MAX_IDLE: usize = 1024;

impl Pool {
    /// The connection that came back last, if one is left that the target has not closed.
    #[inline]
    pub fn take(&self, endpoint: Endpoint) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&endpoint)?;
        while let Some(Idle { mut connection, .. }) = connections.pop() {
            if connection.is_alive() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for `timeout` from `now`, if it can take another request.
    #[inline]
    pub fn put(&self, mut connection: Box<Connection>, now: Instant, timeout: Duration) {
        if !connection.is_alive() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(connection.endpoint).or_default();
        if connections.len() < MAX_IDLE {
            connections.push(Idle { connection, until: now + timeout });
        }
    }

    /// Closes what was idle for too long, and what the targets have closed.
    pub fn sweep(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|_, connections| {
            connections.retain_mut(|idle| idle.until > now && idle.connection.is_alive());
            !connections.is_empty()
        });
    }

    /// Closes all of them.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
    }
}
