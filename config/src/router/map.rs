//! A persistent map from text to the nodes of the index.
//!
//! A hash trie of 64 ways, its slots packed. A clone shares everything; a change copies only the branches on its way,
//! and only those that are shared. Each slot knows the highest priority below it, so that the highest of the whole
//! map is known after a change without looking at what did not change.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// What a [`Map`] holds: something that knows its own key.
pub(super) trait Item: Clone {
    /// An empty one.
    fn new(key: &str) -> Self;

    /// What it was made with.
    fn key(&self) -> &str;

    /// The highest priority in it; `None`: it is empty, and need not be kept.
    fn max_priority(&self) -> Option<i32>;

    /// Where it goes. The keys are those of the configuration, and only looking up uses what clients send: so a fixed
    /// seed lets no client make the trie uneven.
    fn hash(key: &str) -> u64 {
        let mut hasher = foldhash::quality::FixedState::default().build_hasher();
        hasher.write(key.as_bytes());
        hasher.finish()
    }
}

/// The map.
#[derive(Clone)]
pub(super) struct Map<V>(Option<Arc<Branch<V>>>);

#[derive(Clone)]
struct Branch<V> {
    /// Which of the 64 slots there are; not used below the last bit of the hash, where slots are just listed.
    bitmap: u64,
    /// The highest priority of all slots.
    max: i32,
    /// Those that there are, in order. Not empty.
    slots: Vec<Slot<V>>,
}

#[derive(Clone)]
enum Slot<V> {
    Leaf { max: i32, item: Arc<V> },
    Branch { max: i32, branch: Arc<Branch<V>> },
}

impl<V> Slot<V> {
    fn max(&self) -> i32 {
        match self {
            Self::Leaf { max, .. } | Self::Branch { max, .. } => *max,
        }
    }
}

/// Bits of the hash that one branch uses.
const BITS: u32 = 6;

impl<V: Item> Map<V> {
    pub(super) const fn new() -> Self {
        Self(None)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn find(&self, key: &str) -> Option<&V> {
        let mut branch = self.0.as_deref()?;
        let hash = V::hash(key);
        let mut shift = 0;
        loop {
            let (bit, index) = branch.place(hash, shift, key);
            if branch.bitmap & bit == 0 {
                return None;
            }
            match branch.slots.get(index)? {
                Slot::Leaf { item, .. } => return (item.key() == key).then_some(item),
                Slot::Branch { branch: below, .. } => branch = below,
            }
            shift += BITS;
        }
    }

    /// Changes the item of `key`. One that is not there is made when `create` says so, else nothing is done; one
    /// that is empty afterwards is taken out.
    pub(super) fn modify(&mut self, key: &str, create: bool, change: &mut dyn FnMut(&mut V)) {
        if self.0.is_none() && !create {
            return;
        }
        let root = self.0.get_or_insert_with(|| Arc::new(Branch::new()));
        let root = Arc::make_mut(root);
        root.modify(V::hash(key), 0, key, create, change);
        if root.slots.is_empty() {
            self.0 = None;
        }
    }

    pub(super) fn max_priority(&self) -> Option<i32> {
        self.0.as_ref().map(|root| root.max)
    }
}

impl<V: Item> Branch<V> {
    const fn new() -> Self {
        Self { bitmap: 0, max: i32::MIN, slots: Vec::new() }
    }

    /// The bit and the position of the slot for a key.
    fn place(&self, hash: u64, shift: u32, key: &str) -> (u64, usize) {
        if shift < u64::BITS {
            let bit = 1 << ((hash >> shift) & 63);
            return (bit, (self.bitmap & (bit - 1)).count_ones() as usize);
        }
        // Different keys with one hash: a list. Every bit is set, and a position past its end means "not there".
        let found = self.slots.iter().position(|slot| match slot {
            Slot::Leaf { item, .. } => item.key() == key,
            Slot::Branch { .. } => false,
        });
        (u64::MAX, found.unwrap_or(self.slots.len()))
    }

    fn modify(&mut self, hash: u64, shift: u32, key: &str, create: bool, change: &mut dyn FnMut(&mut V)) {
        self.modify_slot(hash, shift, key, create, change);
        let priorities = self.slots.iter().map(Slot::max);
        self.max = priorities.max().unwrap_or(i32::MIN);
    }

    fn modify_slot(
        &mut self,
        hash: u64,
        shift: u32,
        key: &str,
        create: bool,
        change: &mut dyn FnMut(&mut V),
    ) {
        let (bit, index) = self.place(hash, shift, key);
        let there = self.bitmap & bit != 0;
        let slot = self.slots.get_mut(index).filter(|_| there);
        match slot {
            None if !create => {}
            None => {
                let mut item = V::new(key);
                change(&mut item);
                if let Some(max) = item.max_priority() {
                    self.bitmap |= bit;
                    self.slots.reserve_exact(1);
                    self.slots.insert(index, Slot::Leaf { max, item: Arc::new(item) });
                }
            }
            Some(Slot::Leaf { max, item }) if item.key() == key => {
                let changed = Arc::make_mut(item);
                change(changed);
                match changed.max_priority() {
                    Some(now) => *max = now,
                    None => self.take_out(bit, index),
                }
            }
            Some(Slot::Leaf { .. }) if !create => {}
            Some(slot @ Slot::Leaf { .. }) => {
                let mut below = Branch::new();
                if let Slot::Leaf { item, .. } = slot {
                    let (bit, _) = below.place(V::hash(item.key()), shift + BITS, item.key());
                    below.bitmap = bit;
                    below.slots.push(slot.clone());
                }
                below.modify(hash, shift + BITS, key, create, change);
                *slot = below.into_slot();
            }
            Some(Slot::Branch { max, branch }) => {
                let below = Arc::make_mut(branch);
                below.modify(hash, shift + BITS, key, create, change);
                // A branch of one leaf is replaced by the leaf, so that what was removed leaves nothing behind.
                if let [only @ Slot::Leaf { .. }] = below.slots.as_slice() {
                    let only = only.clone();
                    self.slots[index] = only;
                } else if below.slots.is_empty() {
                    self.take_out(bit, index);
                } else {
                    *max = below.max;
                }
            }
        }
    }

    fn take_out(&mut self, bit: u64, index: usize) {
        self.slots.remove(index);
        if bit != u64::MAX {
            self.bitmap &= !bit;
        }
    }

    fn into_slot(mut self) -> Slot<V> {
        if let [Slot::Leaf { .. }] = self.slots.as_slice()
            && let Some(only) = self.slots.pop()
        {
            return only;
        }
        Slot::Branch { max: self.max, branch: Arc::new(self) }
    }
}
