//! A response that is stored while it passes to the client.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use signalbox_plugin::BodyObserver;

use super::entry::Draft;
use super::flight::Lead;
use super::store::{Reservation, Store};
use super::validation::Arrived;

/// Collects the body of a response. It is stored when it is complete, and forgotten when it is broken off or too large.
#[derive(Debug)]
pub(super) struct Recording(Option<Parts>);

#[derive(Debug)]
struct Parts {
    store: Arc<Store>,
    draft: Draft,
    arrived: Arrived,
    reservation: Reservation,
    body: Vec<u8>,
    /// The size of everything but the body.
    overhead: usize,
    /// The size that the body must have, where it is known.
    expected: Option<usize>,
    largest: usize,
    /// Frees those who wait when it is dropped, which is after the response was stored.
    lead: Option<Lead>,
}

/// The first piece of memory for a body of unknown size.
const FIRST: usize = 4 << 10;

impl Recording {
    /// Begins to record a response, whose body has `size` bytes if that is known, and at most `largest`. `None`: there is no room.
    pub(super) fn begin(
        store: &Arc<Store>,
        draft: Draft,
        arrived: Arrived,
        size: Option<u64>,
        largest: usize,
        lead: Option<Lead>,
    ) -> Option<Self> {
        let expected = size.map(usize::try_from).transpose().ok()?;
        if expected.is_some_and(|size| size > largest) {
            note_uncacheable(store, lead.as_ref(), &arrived);
            return None;
        }
        let overhead = draft.size();
        let reservation = store.reserve(overhead + expected.unwrap_or(0))?;
        let body = Vec::with_capacity(expected.unwrap_or(0));
        let store = Arc::clone(store);
        let parts = Parts { store, draft, arrived, reservation, body, overhead, expected, largest, lead };
        Some(Self(Some(parts)))
    }

    /// The response is complete. `true`: it is stored.
    pub(super) fn complete(&mut self) -> bool {
        let Some(parts) = self.0.take() else { return false };
        let Parts { store, draft, arrived, reservation, mut body, expected, lead: _lead, .. } = parts;
        if expected.is_some_and(|size| size != body.len()) {
            return false;
        }
        body.shrink_to_fit();
        store.insert(draft, body.into(), arrived.ticket, reservation)
    }
}

impl Parts {
    /// Appends a part of the body. `None`: it is too large, or there is no room.
    fn append(&mut self, data: &[u8]) -> Option<()> {
        let size = self.body.len().checked_add(data.len()).filter(|size| *size <= self.largest)?;
        if size > self.body.capacity() {
            let capacity = size.max(2 * self.body.capacity()).max(FIRST).min(self.largest);
            if !self.reservation.grow(self.overhead + capacity) {
                return None;
            }
            self.body.reserve_exact(capacity - self.body.len());
        }
        self.body.extend_from_slice(data);
        Some(())
    }
}

/// No request waits for the next responses, which are as large.
fn note_uncacheable(store: &Store, lead: Option<&Lead>, arrived: &Arrived) {
    if let Some(lead) = lead {
        store.note_uncacheable(lead.key(), arrived.now);
    }
}

impl BodyObserver for Recording {
    fn on_data(&mut self, data: &Bytes) {
        if let Some(parts) = &mut self.0
            && parts.append(data).is_none()
        {
            note_uncacheable(&parts.store, parts.lead.as_ref(), &parts.arrived);
            self.0 = None;
        }
    }

    fn on_end(&mut self, _: &HeaderMap) {
        self.complete();
    }
}
