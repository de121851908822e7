//! A bounded memory, by SHA-256: of proofs that were verified, and of sessions.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use foldhash::fast::RandomState;
use ring::digest;

/// The proofs that were verified, each with its result.
pub(crate) struct Verified<V> {
    shards: Box<[Shard<V>]>,
}

/// The SHA-256 of a proof.
pub(crate) type ProofHash = [u8; 32];

/// Alone on its cache lines, so that workers do not disturb each other.
#[repr(align(128))]
struct Shard<V>(Mutex<Generations<V>>);

/// The newer half and the older one. When the newer is full, the older is forgotten: nothing is searched for what to evict.
struct Generations<V> {
    young: HashMap<ProofHash, V, RandomState>,
    old: HashMap<ProofHash, V, RandomState>,
}

const SHARDS: usize = 16;

/// The most entries of each half of a shard: 16,384 in all.
const ROOM: usize = 512;

/// The hash by which a proof is remembered.
pub(crate) fn hash(proof: &[u8]) -> ProofHash {
    hash_of_parts([proof])
}

/// The same for a proof whose parts follow each other.
pub(crate) fn hash_of_parts<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> ProofHash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

impl<V> Default for Verified<V> {
    fn default() -> Self {
        let empty = || Generations { young: HashMap::default(), old: HashMap::default() };
        Self { shards: (0..SHARDS).map(|_| Shard(Mutex::new(empty()))).collect() }
    }
}

impl<V> Verified<V> {
    /// The part that `read` takes of what is remembered of a proof. What it refuses is forgotten.
    pub(crate) fn find<T>(&self, hash: &ProofHash, read: impl FnOnce(&V) -> Option<T>) -> Option<T> {
        let mut shard = self.shard(hash)?.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Generations { young, old } = &mut *shard;
        if let Some(entry) = young.get(hash) {
            let found = read(entry);
            if found.is_none() {
                young.remove(hash);
            }
            return found;
        }
        let entry = old.remove(hash)?;
        let found = read(&entry)?;
        shard.add(*hash, entry);
        Some(found)
    }

    /// Remembers a proof.
    pub(crate) fn remember(&self, hash: ProofHash, entry: V) {
        if let Some(shard) = self.shard(&hash) {
            shard.0.lock().unwrap_or_else(PoisonError::into_inner).add(hash, entry);
        }
    }

    /// Puts the result of `change` in the place of what is remembered of a proof. No other change comes between.
    pub(crate) fn update(&self, hash: ProofHash, change: impl FnOnce(Option<V>) -> V) {
        let Some(shard) = self.shard(&hash) else { return };
        let mut shard = shard.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Generations { young, old } = &mut *shard;
        let known = young.remove(&hash).or_else(|| old.remove(&hash));
        shard.add(hash, change(known));
    }

    fn shard(&self, hash: &ProofHash) -> Option<&Shard<V>> {
        self.shards.get(usize::from(hash[0]) % SHARDS)
    }
}

impl<V> Generations<V> {
    fn add(&mut self, hash: ProofHash, entry: V) {
        if self.young.len() >= ROOM {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_bounded() {
        let verified = Verified::default();
        let used = hash(b"used");
        verified.remember(used, 7);
        for number in 0..100_000_u32 {
            verified.remember(hash(&number.to_le_bytes()), 1);
            assert_eq!(verified.find(&used, |value| Some(*value)), Some(7));
        }
        let kept = |shard: &Shard<i32>| {
            let shard = shard.0.lock().unwrap();
            shard.young.len() + shard.old.len()
        };
        assert!(verified.shards.iter().map(kept).sum::<usize>() <= 2 * SHARDS * ROOM);
        assert_eq!(verified.find(&hash(&0_u32.to_le_bytes()), |value| Some(*value)), None);
    }

    #[test]
    fn what_is_changed_is_found_in_either_half() {
        let verified = Verified::default();
        let add = |known: Option<u32>| known.unwrap_or_default() + 1;
        verified.update(hash(b"a"), add);
        verified.update(hash(b"a"), add);
        assert_eq!(verified.find(&hash(b"a"), |value| Some(*value)), Some(2));
        let mut shard = verified.shard(&hash(b"a")).unwrap().0.lock().unwrap();
        shard.old = std::mem::take(&mut shard.young);
        drop(shard);
        verified.update(hash(b"a"), add);
        assert_eq!(verified.find(&hash(b"a"), |value| Some(*value)), Some(3));
        let shard = verified.shard(&hash(b"a")).unwrap().0.lock().unwrap();
        assert_eq!((shard.young.len(), shard.old.len()), (1, 0));
    }

    #[test]
    fn what_is_refused_is_forgotten() {
        let verified = Verified::default();
        verified.remember(hash(b"a"), 7);
        assert_eq!(verified.find(&hash(b"a"), |_| None::<()>), None);
        assert_eq!(verified.find(&hash(b"a"), |value| Some(*value)), None);
        assert_eq!(verified.find(&hash(b"b"), |value| Some(*value)), None);
    }
}
