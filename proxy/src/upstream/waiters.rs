use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::endpoint::Endpoint;
use super::load::Load;

/// The requests on one worker that wait for connections of upstreams at their connection limit.
#[derive(Default)]
pub struct Waiters(RefCell<Vec<Waiting>>);

/// The waiters for one endpoint.
struct Waiting {
    load: Arc<Load>,
    endpoint: Endpoint,
    count: u32,
    /// Notified when a connection of the upstream came back and can be used, or closed for another one. All endpoints
    /// of an upstream share it, so that their waiters take turns.
    connection_returned: Rc<Notify>,
    /// Notified when an HTTP/2 connection to this endpoint can take one more request.
    room: Rc<Notify>,
}

/// A registered waiter.
pub struct Awaiting<'a> {
    waiters: &'a Waiters,
    load: &'a Arc<Load>,
    endpoint: Endpoint,
    connection_returned: Rc<Notify>,
    room: Rc<Notify>,
}

impl Waiters {
    /// Registers a waiter for a connection to `endpoint`, of the upstream with this `load`.
    pub fn join<'a>(&'a self, load: &'a Arc<Load>, endpoint: Endpoint) -> Awaiting<'a> {
        let mut all = self.0.borrow_mut();
        let of_load = all.iter().find(|waiting| Arc::ptr_eq(&waiting.load, load));
        let connection_returned =
            of_load.map_or_else(Rc::default, |waiting| Rc::clone(&waiting.connection_returned));
        let room = match all.iter_mut().find(|waiting| waiting.is(load, endpoint)) {
            Some(waiting) => {
                waiting.count += 1;
                Rc::clone(&waiting.room)
            }
            None => {
                let room = Rc::<Notify>::default();
                let (load, connection_returned) = (Arc::clone(load), Rc::clone(&connection_returned));
                all.push(Waiting { load, endpoint, count: 1, connection_returned, room: Rc::clone(&room) });
                room
            }
        };
        Awaiting { waiters: self, load, endpoint, connection_returned, room }
    }

    /// The number of waiters on this worker for the upstream with this `load`.
    pub fn count(&self, load: &Arc<Load>) -> u32 {
        let all = self.0.borrow();
        all.iter().filter(|waiting| Arc::ptr_eq(&waiting.load, load)).map(|waiting| waiting.count).sum()
    }

    /// Draws whether a freed connection goes to this worker's waiters and not to another worker's, weighted by their
    /// numbers.
    pub fn win_draw(&self, load: &Arc<Load>) -> bool {
        fastrand::u32(..load.awaited().max(1)) < self.count(load)
    }

    /// Wakes a waiter: a connection of the upstream with this `load` came back.
    pub fn connection_returned(&self, load: &Arc<Load>) {
        if let Some(waiting) = self.0.borrow().iter().find(|waiting| Arc::ptr_eq(&waiting.load, load)) {
            waiting.connection_returned.notify_one();
        }
    }

    /// Wakes a waiter: a connection to `endpoint` takes one more request.
    pub fn has_room(&self, load: &Arc<Load>, endpoint: Endpoint) {
        if let Some(waiting) = self.0.borrow().iter().find(|waiting| waiting.is(load, endpoint)) {
            waiting.room.notify_one();
        }
    }
}

impl Waiting {
    fn is(&self, load: &Arc<Load>, endpoint: Endpoint) -> bool {
        Arc::ptr_eq(&self.load, load) && self.endpoint == endpoint
    }
}

impl Awaiting<'_> {
    /// Completes when a connection may be available: one came back to this worker, one has room, or one of the
    /// upstream was closed.
    pub async fn wait(&self) {
        tokio::select! {
            () = self.connection_returned.notified() => {}
            () = self.room.notified() => {}
            () = self.load.wait() => {}
        }
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        let mut all = self.waiters.0.borrow_mut();
        if let Some(index) = all.iter().position(|waiting| waiting.is(self.load, self.endpoint))
            && let Some(waiting) = all.get_mut(index)
        {
            waiting.count -= 1;
            if waiting.count == 0 {
                all.swap_remove(index);
            }
        }
    }
}
