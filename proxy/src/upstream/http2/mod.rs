//! HTTP/2 as it is spoken to targets (RFC 9113): connections that many requests share.
//!
//! Each connection has a task, which reads and writes for all its requests; a request's own task sends and takes what is
//! its own. Memory: a stream holds at most [`connection::STREAM_WINDOW`] that its client does not take, and a connection's
//! window is that of all its streams together, so that a client that takes nothing holds up nobody else.
//!
//! This module picks the connection that a request is sent over. [`connection`] opens and drives a connection, [`keepalive`]
//! finds out if the target still answers, [`request`], [`stream`] and [`response`] are a request's way over it.

pub mod connection;
pub mod keepalive;
pub mod request;
pub mod response;
pub mod stream;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;
use signalbox_config::UpstreamLimits;

use self::connection::{Connection, MAX_STREAMS, Phase};
use self::stream::StreamPermit;
use super::endpoint::Endpoint;
use super::load::Load;
use super::transport::Transport;
use super::waiters::Waiters;
use crate::telemetry::WorkerStats;

/// One worker's HTTP/2 connections. They are keyed by endpoint, so they outlive revisions.
pub struct Connections {
    groups: RefCell<HashMap<Endpoint, Group, RandomState>>,
    /// Requests that wait for a connection.
    waiters: Rc<Waiters>,
}

/// The connections to one endpoint.
struct Group {
    connections: Vec<Rc<Connection>>,
    /// Streams that the target takes over one connection, as it said last.
    max_streams: u32,
}

/// The reason why a request gets no stream.
pub enum AcquireError<'a> {
    /// The worker has as many connections to the endpoint as it may have, and none has room.
    TooManyConnections,
    /// The upstream is at its connection limit.
    OverLimits(&'a UpstreamLimits),
}

/// Connections of one worker to one endpoint that take requests.
const MAX_CONNECTIONS: usize = 64;

/// Connections of one worker to one endpoint that only finish their requests: a target that closes each connection after some
/// requests has one of these for each stream that outlives its connection.
const MAX_DRAINING: usize = 4096;

impl Connections {
    /// An empty set. `waiters` are those of the worker.
    pub fn new(waiters: Rc<Waiters>) -> Self {
        Self { groups: RefCell::default(), waiters }
    }

    /// Acquires a stream for a request to `endpoint`, on a connection that may not be established yet.
    pub fn acquire<'a>(
        &self,
        endpoint: Endpoint,
        transport: &'a Transport,
        avoid: Option<&Rc<Connection>>,
        stats: &Arc<WorkerStats>,
    ) -> Result<StreamPermit, AcquireError<'a>> {
        let stream = self.find_or_open(endpoint, transport, avoid, stats)?;
        // Where one request finds room, others that wait may find it, too.
        if transport.limits.is_some() && transport.load.is_awaited() {
            self.waiters.has_room(&transport.load, endpoint);
        }
        Ok(stream)
    }

    fn find_or_open<'a>(
        &self,
        endpoint: Endpoint,
        transport: &'a Transport,
        avoid: Option<&Rc<Connection>>,
        stats: &Arc<WorkerStats>,
    ) -> Result<StreamPermit, AcquireError<'a>> {
        let mut groups = self.groups.borrow_mut();
        let group = groups.entry(endpoint).or_default();
        let avoided = |connection: &Rc<Connection>| avoid.is_some_and(|it| Rc::ptr_eq(it, connection));
        for connection in &group.connections {
            if endpoint.only_of == 0 && connection.load.limits_connections() {
                // Its upstream has got limits since, so other upstreams must not use the connection.
                connection.retire();
                continue;
            }
            if connection.limits == transport.response_limits
                && !avoided(connection)
                && connection.has_room(&mut group.max_streams)
            {
                connection.idle_timeout.set(transport.idle_timeout);
                return Ok(StreamPermit::on(connection));
            }
        }
        group.connections.retain(|connection| connection.phase.get() != Phase::Closed);
        let draining = group.connections.iter().filter(|it| it.phase.get() == Phase::Draining).count();
        if group.connections.len() - draining >= MAX_CONNECTIONS || draining >= MAX_DRAINING {
            return Err(AcquireError::TooManyConnections);
        }
        let limit = transport.limits.map_or(u32::MAX, |limits| limits.connections);
        let permit = match (transport.load.connection(limit), &transport.limits) {
            (Some(permit), _) => permit,
            (None, Some(limits)) => return Err(AcquireError::OverLimits(limits)),
            (None, None) => return Err(AcquireError::TooManyConnections),
        };
        let connection = Connection::begin(endpoint, transport, permit, &self.waiters, stats);
        // In front of those that take no requests any more, which each request would look at otherwise.
        group.connections.insert(0, Rc::clone(&connection));
        Ok(StreamPermit::on(&connection))
    }

    /// Closes connections that are idle for too long, and those whose target is gone. It runs once a second.
    pub fn sweep(&self) {
        self.groups.borrow_mut().retain(|_, group| {
            group.connections.retain(|connection| connection.sweep());
            !group.connections.is_empty()
        });
    }

    /// Closes up to `most` idle connections of upstreams for which `is_wanted` holds. Returns how many it were.
    pub fn give_up_idle(&self, mut is_wanted: impl FnMut(&Arc<Load>) -> bool, most: usize) -> usize {
        let groups = self.groups.borrow();
        let mut given_up = 0;
        for connection in groups.values().flat_map(|group| &group.connections) {
            if given_up < most && connection.is_idle() && is_wanted(&connection.load) {
                connection.close_idle();
                given_up += 1;
            }
        }
        given_up
    }

    /// Lets each connection end with its last response.
    pub fn clear(&self) {
        for (_, group) in self.groups.borrow_mut().drain() {
            group.connections.iter().for_each(|connection| connection.drain());
        }
    }
}

impl Default for Group {
    fn default() -> Self {
        Self { connections: Vec::new(), max_streams: MAX_STREAMS }
    }
}
