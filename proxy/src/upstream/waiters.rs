use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::{Endpoint, Load};

/// Who waits on one worker for connections of upstreams that have as many as they may.
#[derive(Default)]
pub struct Waiters(RefCell<Vec<Waiting>>);

/// Those that wait for the same.
struct Waiting {
    load: Arc<Load>,
    endpoint: Endpoint,
    count: u32,
    /// A connection of the upstream can be had, or closed for another. The same for all of its endpoints, so that they have
    /// their turns.
    came_back: Rc<Notify>,
    /// A connection to this endpoint takes one more request.
    room: Rc<Notify>,
}

/// A request that waits.
pub struct Awaiting<'a> {
    waiters: &'a Waiters,
    load: &'a Arc<Load>,
    endpoint: Endpoint,
    came_back: Rc<Notify>,
    room: Rc<Notify>,
}

impl Waiters {
    /// Notes that somebody waits for a connection to `endpoint`, of the upstream with this `load`.
    pub fn join<'a>(&'a self, load: &'a Arc<Load>, endpoint: Endpoint) -> Awaiting<'a> {
        let mut all = self.0.borrow_mut();
        let of_load = all.iter().find(|waiting| Arc::ptr_eq(&waiting.load, load));
        let came_back = of_load.map_or_else(Rc::default, |waiting| Rc::clone(&waiting.came_back));
        let room = match all.iter_mut().find(|waiting| waiting.is(load, endpoint)) {
            Some(waiting) => {
                waiting.count += 1;
                Rc::clone(&waiting.room)
            }
            None => {
                let room = Rc::<Notify>::default();
                let (load, came_back) = (Arc::clone(load), Rc::clone(&came_back));
                all.push(Waiting { load, endpoint, count: 1, came_back, room: Rc::clone(&room) });
                room
            }
        };
        Awaiting { waiters: self, load, endpoint, came_back, room }
    }

    /// How many wait here for connections of the upstream with this `load`.
    pub fn count(&self, load: &Arc<Load>) -> u32 {
        let all = self.0.borrow();
        all.iter().filter(|waiting| Arc::ptr_eq(&waiting.load, load)).map(|waiting| waiting.count).sum()
    }

    /// Whether a connection that is free now goes to who waits here, and not to who waits on another worker: drawn by how
    /// many wait.
    pub fn are_drawn(&self, load: &Arc<Load>) -> bool {
        fastrand::u32(..load.awaited().max(1)) < self.count(load)
    }

    /// A connection of the upstream with this `load` came back.
    pub fn came_back(&self, load: &Arc<Load>) {
        if let Some(waiting) = self.0.borrow().iter().find(|waiting| Arc::ptr_eq(&waiting.load, load)) {
            waiting.came_back.notify_one();
        }
    }

    /// A connection to `endpoint` takes one more request.
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
    /// Ends when a connection may be had: one came back to this worker, has room, or one of the upstream was closed.
    pub async fn wait(&self) {
        tokio::select! {
            () = self.came_back.notified() => {}
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
