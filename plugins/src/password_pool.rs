//! Verifies passwords on threads of its own: a hash takes 20 to 250 ms, in which a worker would serve nobody.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use ring::hmac;
use ring::rand::SystemRandom;
use signalbox_config::PasswordHash;

/// The threads, and the passwords that were verified lately.
pub(crate) struct PasswordPool {
    /// `None`: no thread could be started.
    queue: OnceLock<Option<SyncSender<Job>>>,
    verified: Option<Verified>,
}

/// A password to be verified.
struct Job {
    hash: PasswordHash,
    password: Box<[u8]>,
    result: ResultSender,
}

/// The queue is full.
#[derive(Debug)]
pub(crate) struct Busy;

/// The passwords that are verified at a time, and those that wait for it.
const THREADS: usize = 2;
const QUEUE: usize = 64;

impl Default for PasswordPool {
    fn default() -> Self {
        Self { queue: OnceLock::new(), verified: Verified::new() }
    }
}

impl PasswordPool {
    /// Verifies a password. The future resolves to true if it is the one of `hash`.
    pub(crate) fn verify(&self, hash: &PasswordHash, password: &[u8]) -> Result<ResultReceiver, Busy> {
        let queue = self.queue.get_or_init(start).as_ref().ok_or(Busy)?;
        let (sender, receiver) = result();
        let job = Job { hash: hash.clone(), password: password.into(), result: sender };
        queue.try_send(job).map_err(|_| Busy)?;
        Ok(receiver)
    }

    /// A key for the memory of verified passwords; see [`PasswordPool::remember`].
    pub(crate) fn memory_key(&self, parts: [&[u8]; 3]) -> Option<[u8; 32]> {
        self.verified.as_ref().map(|verified| verified.key_of(parts))
    }

    /// True if a password with this key was verified not long before `now`.
    pub(crate) fn is_remembered(&self, key: &[u8; 32], now: Duration) -> bool {
        self.verified.as_ref().is_some_and(|verified| verified.has(key, now))
    }

    /// Remembers a password that was verified at `now`.
    pub(crate) fn remember(&self, key: [u8; 32], now: Duration) {
        if let Some(verified) = &self.verified {
            verified.add(key, now);
        }
    }
}

/// Starts the threads, which end with the queue.
fn start() -> Option<SyncSender<Job>> {
    let (sender, receiver) = sync_channel::<Job>(QUEUE);
    let receiver = Arc::new(Mutex::new(receiver));
    let started = (0..THREADS).filter(|_| {
        let receiver = Arc::clone(&receiver);
        thread::Builder::new().name("passwords".to_owned()).spawn(move || work(&receiver)).is_ok()
    });
    (started.count() > 0).then_some(sender)
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { hash, password, result }) = next else { return };
        // Nobody waits for it any more when the client is gone.
        if !result.is_abandoned() {
            let verifies = hash.verifies(&password);
            result.send(verifies);
        }
    }
}

/// The passwords that were verified in the last minute.
struct Verified {
    /// Made for this process: what is remembered says nothing of a password to who does not know it.
    key: hmac::Key,
    shards: [Mutex<HashMap<[u8; 32], Duration>>; SHARDS],
}

const SHARDS: usize = 16;
const MAX_IN_SHARD: usize = 4096;

/// How long a verified password is remembered.
const MEMORY: Duration = Duration::from_secs(60);

impl Verified {
    /// `None`: there is no randomness, and nothing is remembered.
    fn new() -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        Some(Self { key, shards: Default::default() })
    }

    /// The hash of user, password and stored hash, each with its length before it, so that no two triples have one text.
    fn key_of(&self, parts: [&[u8]; 3]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.sign().as_ref());
        key
    }

    fn shard(&self, key: &[u8; 32]) -> &Mutex<HashMap<[u8; 32], Duration>> {
        &self.shards[usize::from(key[0]) % SHARDS]
    }

    fn has(&self, key: &[u8; 32], now: Duration) -> bool {
        let shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        shard.get(key).is_some_and(|until| now < *until)
    }

    fn add(&self, key: [u8; 32], now: Duration) {
        let mut shard = self.shard(&key).lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= MAX_IN_SHARD {
            shard.retain(|_, until| now < *until);
        }
        if shard.len() < MAX_IN_SHARD {
            shard.insert(key, now + MEMORY);
        }
    }
}

/// The state that the sender and the receiver of a result share.
#[derive(Default)]
struct Shared {
    result: Option<bool>,
    waker: Option<Waker>,
}

struct ResultSender(Arc<Mutex<Shared>>);

/// The result of a verification; false if it was given up.
pub(crate) struct ResultReceiver(Arc<Mutex<Shared>>);

fn result() -> (ResultSender, ResultReceiver) {
    let shared = Arc::<Mutex<Shared>>::default();
    (ResultSender(Arc::clone(&shared)), ResultReceiver(shared))
}

impl ResultSender {
    fn send(self, verifies: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).result = Some(verifies);
    }

    fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Drop for ResultSender {
    fn drop(&mut self) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.result.get_or_insert(false);
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
    }
}

impl Future for ResultReceiver {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.result {
            Some(verifies) => Poll::Ready(verifies),
            None => {
                shared.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::testing::block_on;

    #[test]
    fn passwords_are_verified_on_other_threads_and_a_full_queue_says_so() {
        let pool = PasswordPool::default();
        let hash = PasswordHash::of(b"secret");
        let mut pending = Vec::new();
        let mut busy = 0;
        for index in 0..QUEUE * 2 {
            let password: &[u8] = if index % 2 == 0 { b"secret" } else { b"wrong" };
            match pool.verify(&hash, password) {
                Ok(receiver) => pending.push((index % 2 == 0, receiver)),
                Err(Busy) => busy += 1,
            }
        }
        assert!(busy > 0 && pending.len() >= QUEUE, "{busy} busy, {} pending", pending.len());
        let (expected, receivers): (Vec<bool>, Vec<_>) = pending.into_iter().unzip();
        assert_eq!(block_on(join_all(receivers)), expected);
    }

    #[test]
    fn what_is_abandoned_is_not_verified() {
        let pool = PasswordPool::default();
        let slow = PasswordHash::of(b"secret");
        // Far more than could be verified in the time of a test's patience.
        for _ in 0..20_000 {
            drop(pool.verify(&slow, b"wrong"));
        }
        let last = loop {
            if let Ok(receiver) = pool.verify(&slow, b"secret") {
                break receiver;
            }
            thread::yield_now();
        };
        assert!(block_on(last));
    }

    #[test]
    fn a_verified_password_is_remembered_for_a_minute_and_for_its_hash_only() {
        let pool = PasswordPool::default();
        let key = |parts| pool.memory_key(parts).unwrap();
        let alice = key([b"alice", b"secret", b"hash"]);
        let now = Duration::from_secs(5);
        assert!(!pool.is_remembered(&alice, now));
        pool.remember(alice, now);
        assert!(pool.is_remembered(&alice, now + MEMORY - Duration::from_millis(1)));
        assert!(!pool.is_remembered(&alice, now + MEMORY));
        // A text cannot move from one part to the next.
        for other in [
            [&b"alic"[..], b"esecret", b"hash"],
            [b"alice", b"secrethash", b""],
            [b"alice", b"secret", b"new"],
        ] {
            assert!(!pool.is_remembered(&key(other), now), "{other:?}");
        }
    }

    #[test]
    fn the_memory_is_bounded() {
        let verified = Verified::new().unwrap();
        for number in 0..(SHARDS * MAX_IN_SHARD * 2) as u64 {
            verified.add(verified.key_of([&number.to_le_bytes(), b"", b""]), Duration::ZERO);
        }
        let sizes = verified.shards.each_ref().map(|shard| shard.lock().unwrap().len());
        assert!(sizes.iter().all(|size| *size <= MAX_IN_SHARD), "{sizes:?}");
        let late = verified.key_of([b"late", b"", b""]);
        verified.add(late, MEMORY);
        assert!(verified.has(&late, MEMORY), "what has expired makes room");
    }
}
