//! Decides which streams are sent everything now, and which wait for a turn. Else thousands that connect together would all get a little of it, and
//! none all of it soon.

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::limits::Limits;

/// The turns of one control plane.
pub(super) struct Admission {
    streams: Arc<Semaphore>,
    /// In KiB.
    size: Arc<Semaphore>,
    /// All of `size`.
    most: u32,
    waiting: Arc<AtomicUsize>,
    most_waiting: usize,
}

/// A place in the queue, and its turn when that comes. It may wait for any time: its holder's deadlines begin with the turn.
pub(super) type Waiting = Pin<Box<dyn Future<Output = Turn> + Send>>;

/// A turn to be sent everything, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _stream: Option<OwnedSemaphorePermit>,
    _size: Option<OwnedSemaphorePermit>,
}

/// Too many wait already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        let most = kibibytes(limits.full_bytes);
        Self {
            streams: Arc::new(Semaphore::new(limits.full_sends)),
            size: Arc::new(Semaphore::new(most as usize)),
            most,
            waiting: Arc::default(),
            most_waiting: limits.waiting,
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes a place in the queue, for someone who is to be sent so many bytes.
    pub(super) fn enter(&self, bytes: usize) -> Result<Waiting, Full> {
        let place = Place::take(&self.waiting);
        // Those whose turn comes at once do not wait.
        if self.streams.available_permits() == 0 && place.number > self.most_waiting {
            return Err(Full);
        }
        // A frame that is larger than all of it takes all of it.
        let size = kibibytes(bytes).min(self.most);
        let (streams, sizes) = (Arc::clone(&self.streams), Arc::clone(&self.size));
        Ok(Box::pin(async move {
            // The semaphores are never closed; were they, everyone would have a turn.
            let stream = streams.acquire_owned().await.ok();
            let size = sizes.acquire_many_owned(size).await.ok();
            drop(place);
            Turn { _stream: stream, _size: size }
        }))
    }
}

/// Counts as waiting until it is dropped.
struct Place {
    waiting: Arc<AtomicUsize>,
    /// How many wait, with this one.
    number: usize,
}

impl Place {
    fn take(waiting: &Arc<AtomicUsize>) -> Self {
        let number = waiting.fetch_add(1, Ordering::Relaxed) + 1;
        Self { waiting: Arc::clone(waiting), number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn kibibytes(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 4)
}

/// The status for a client that is to come back later. It says when, at random, so that not all come back together:
/// `grpc-retry-pushback-ms`, as in <https://github.com/grpc/proposal/blob/master/A6-client-retries.md>.
pub(super) fn exhausted(message: &str) -> Status {
    let after = *RETRY_AFTER.start() + (*RETRY_AFTER.end() - *RETRY_AFTER.start()).mul_f64(fastrand::f64());
    let mut status = Status::resource_exhausted(message);
    if let Ok(value) = after.as_millis().to_string().parse() {
        status.metadata_mut().insert(signalbox_proto::RETRY_HEADER, value);
    }
    status
}

const RETRY_AFTER: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn admission(full_sends: usize, full_bytes: usize, waiting: usize) -> Admission {
        Admission::new(&Limits { full_sends, full_bytes, waiting, ..Limits::default() })
    }

    #[test]
    fn turns_are_bounded_by_their_number() {
        let admission = admission(2, 1 << 20, 10);
        let mut waiting: Vec<_> = (0..3).map(|_| admission.enter(1).unwrap()).collect();
        let first = waiting[0].as_mut().now_or_never().unwrap();
        let _second = waiting[1].as_mut().now_or_never().unwrap();
        assert!(waiting[2].as_mut().now_or_never().is_none());
        drop(first);
        assert!(waiting[2].as_mut().now_or_never().is_some());
    }

    #[test]
    fn turns_are_bounded_by_their_bytes() {
        let admission = admission(64, 100 << 10, 10);
        let large = admission.enter(60 << 10).unwrap().now_or_never().unwrap();
        let mut next = admission.enter(60 << 10).unwrap();
        assert!(next.as_mut().now_or_never().is_none());
        drop(large);
        let next = next.now_or_never().unwrap();
        let mut all = admission.enter(usize::MAX).unwrap();
        assert!(all.as_mut().now_or_never().is_none());
        drop(next);
        assert!(all.now_or_never().is_some(), "more than all of it is all of it");
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let admission = admission(1, 1 << 20, 2);
        let turn = admission.enter(1).unwrap().now_or_never().unwrap();
        let first = admission.enter(1).unwrap();
        let second = admission.enter(1).unwrap();
        assert_eq!(admission.enter(1).err(), Some(Full));
        // One that goes away leaves its place, and one that has its turn.
        drop(first);
        let third = admission.enter(1).unwrap();
        drop(turn);
        let _turn = second.now_or_never().unwrap();
        assert!(admission.enter(1).is_ok());
        drop(third);
    }

    #[test]
    fn a_hint_to_come_back_is_within_its_range_and_not_always_the_same() {
        let hints: std::collections::BTreeSet<u64> = (0..100)
            .map(|_| {
                let status = exhausted("full");
                let hint = status.metadata().get(signalbox_proto::RETRY_HEADER).unwrap();
                hint.to_str().unwrap().parse().unwrap()
            })
            .collect();
        assert!(hints.len() > 10);
        assert!(hints.iter().all(|hint| (5_000..=20_000).contains(hint)));
    }
}
