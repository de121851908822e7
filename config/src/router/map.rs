//! A persistent map from text to the nodes of the index.
//!
//! A hash trie of 64 ways, its slots packed. A clone shares everything; a change copies only the branches on its way,
//! and only those that are shared. Each slot knows the highest priority below it, so that the highest of the whole
//! map is known after a change without looking at what did not change. What a branch has is kept in the slot that
//! leads to it: a level costs a lookup one miss of the cache, not two.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// An item of a [`Map`], which knows its own key.
pub(super) trait Item: Clone {
    /// An empty one.
    fn new(key: &str) -> Self;

    /// The key that it was made with.
    fn key(&self) -> &[u8];

    /// The highest priority in it; `None`: it is empty, and need not be kept.
    fn max_priority(&self) -> Option<i32>;

    /// Where it goes. The keys are those of the configuration, and only looking up uses what clients send: so a fixed
    /// seed lets no client make the trie uneven.
    fn hash(key: &[u8]) -> u64 {
        let mut hasher = foldhash::quality::FixedState::default().build_hasher();
        hasher.write(key);
        hasher.finish()
    }
}

/// The map.
pub(super) struct Map<V> {
    /// The highest priority of all slots, if there are any.
    max: i32,
    bitmap: u64,
    slots: Slots<V>,
}

/// The slots that there are, in order. Which of the 64 these are is said by a bitmap; below the last bit of the hash,
/// where it has every bit, they are just listed.
type Slots<V> = Arc<[Slot<V>]>;

enum Slot<V> {
    Leaf { max: i32, item: Arc<V> },
    Branch { max: i32, bitmap: u64, slots: Slots<V> },
}

/// Bits of the hash that one branch uses.
const BITS: u32 = 6;

impl<V: Item> Map<V> {
    pub(super) fn new() -> Self {
        Self { max: i32::MIN, bitmap: 0, slots: Arc::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bitmap == 0
    }

    pub(super) fn max_priority(&self) -> Option<i32> {
        (!self.is_empty()).then_some(self.max)
    }

    pub(super) fn find(&self, key: &str) -> Option<&V> {
        if self.is_empty() {
            return None;
        }
        let key = key.as_bytes();
        let hash = V::hash(key);
        let (mut bitmap, mut slots, mut shift) = (self.bitmap, &self.slots, 0);
        loop {
            let (bit, index) = place(bitmap, slots, hash, shift, key);
            if bitmap & bit == 0 {
                return None;
            }
            match slots.get(index)? {
                Slot::Leaf { item, .. } => return (item.key() == key).then_some(item),
                Slot::Branch { bitmap: below, slots: slots_below, .. } => {
                    (bitmap, slots) = (*below, slots_below);
                }
            }
            shift += BITS;
        }
    }

    /// Changes the item of `key`. One that is not there is made when `create` says so, else nothing is done; one
    /// that is empty afterwards is taken out.
    pub(super) fn modify(&mut self, key: &str, create: bool, change: &mut dyn FnMut(&mut V)) {
        let hash = V::hash(key.as_bytes());
        self.max = modify(&mut self.bitmap, &mut self.slots, Step { key, hash, shift: 0, create }, change);
    }
}

/// A step of a change: what is looked for, and from which bit of its hash on.
#[derive(Clone, Copy)]
struct Step<'k> {
    key: &'k str,
    hash: u64,
    shift: u32,
    create: bool,
}

/// The bit and the position of the slot for a key.
fn place<V: Item>(bitmap: u64, slots: &[Slot<V>], hash: u64, shift: u32, key: &[u8]) -> (u64, usize) {
    if shift < u64::BITS {
        let bit = 1 << ((hash >> shift) & 63);
        return (bit, (bitmap & (bit - 1)).count_ones() as usize);
    }
    // Different keys with one hash. A position past the end means "not there".
    let found = slots.iter().position(|slot| match slot {
        Slot::Leaf { item, .. } => item.key() == key,
        Slot::Branch { .. } => false,
    });
    (u64::MAX, found.unwrap_or(slots.len()))
}

/// Changes one branch, and returns the highest priority that it then has.
fn modify<V: Item>(
    bitmap: &mut u64,
    slots: &mut Slots<V>,
    step: Step<'_>,
    change: &mut dyn FnMut(&mut V),
) -> i32 {
    let key = step.key.as_bytes();
    let (bit, index) = place(*bitmap, slots, step.hash, step.shift, key);
    let there = *bitmap & bit != 0 && index < slots.len();
    if !there {
        let mut item = V::new(step.key);
        if step.create {
            change(&mut item);
        }
        if let Some(max) = item.max_priority() {
            let (before, after) = slots.split_at(index);
            let new = Slot::Leaf { max, item: Arc::new(item) };
            *slots = before.iter().cloned().chain([new]).chain(after.iter().cloned()).collect();
            *bitmap |= bit;
        }
        return max_of(slots);
    }
    // If the slot holds an item with another key, and no item is to be created, nothing changes.
    let is_others = matches!(&slots[index], Slot::Leaf { item, .. } if item.key() != key);
    if is_others && !step.create {
        return max_of(slots);
    }
    let slot = &mut Arc::make_mut(slots)[index];
    if let Slot::Leaf { item, max } = slot
        && is_others
    {
        let bit = match step.shift + BITS {
            shift if shift < u64::BITS => 1 << ((V::hash(item.key()) >> shift) & 63),
            _ => u64::MAX,
        };
        *slot = Slot::Branch { max: *max, bitmap: bit, slots: Arc::new([slot.clone()]) };
    }
    let is_empty = match slot {
        Slot::Leaf { max, item } => {
            let changed = Arc::make_mut(item);
            change(changed);
            *max = changed.max_priority().unwrap_or(i32::MIN);
            changed.max_priority().is_none()
        }
        Slot::Branch { max, bitmap, slots } => {
            *max = modify(bitmap, slots, Step { shift: step.shift + BITS, ..step }, change);
            let only = match &**slots {
                [only @ Slot::Leaf { .. }] => Some(only.clone()),
                _ => None,
            };
            let is_empty = slots.is_empty();
            // A branch of one leaf is replaced by the leaf, so that what was removed leaves nothing behind.
            if let Some(only) = only {
                *slot = only;
            }
            is_empty
        }
    };
    if is_empty {
        let others = slots.iter().enumerate().filter(|(at, _)| *at != index);
        *slots = others.map(|(_, slot)| slot.clone()).collect();
        *bitmap = if slots.is_empty() {
            0
        } else if bit == u64::MAX {
            *bitmap
        } else {
            *bitmap & !bit
        };
    }
    max_of(slots)
}

fn max_of<V>(slots: &[Slot<V>]) -> i32 {
    let priorities = slots.iter().map(|slot| match slot {
        Slot::Leaf { max, .. } | Slot::Branch { max, .. } => *max,
    });
    priorities.max().unwrap_or(i32::MIN)
}

// Not derived: what is shared needs no `V: Clone`.
impl<V> Clone for Map<V> {
    fn clone(&self) -> Self {
        Self { max: self.max, bitmap: self.bitmap, slots: self.slots.clone() }
    }
}

impl<V> Clone for Slot<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf { max, item } => Self::Leaf { max: *max, item: item.clone() },
            Self::Branch { max, bitmap, slots } => {
                Self::Branch { max: *max, bitmap: *bitmap, slots: slots.clone() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A number under its text; odd hashes are few, so that keys collide to the last bit.
    #[derive(Clone)]
    struct Number {
        key: String,
        value: Option<i32>,
    }

    impl Item for Number {
        fn new(key: &str) -> Self {
            Self { key: key.into(), value: None }
        }

        fn key(&self) -> &[u8] {
            self.key.as_bytes()
        }

        fn max_priority(&self) -> Option<i32> {
            self.value
        }

        fn hash(key: &[u8]) -> u64 {
            let sum: u64 = key.iter().map(|byte| u64::from(*byte)).sum();
            // Two classes of whole hashes, and between them some that part only at the last level.
            if sum.is_multiple_of(3) { 7 } else { 7 | (sum % 3) << 62 }
        }
    }

    proptest! {
        #[test]
        fn it_is_the_same_as_a_btree_map(
            changes in prop::collection::vec(("[a-c]{0,3}", prop::option::of(-3..3_i32), any::<bool>()), 1..120),
        ) {
            let mut map: Map<Number> = Map::new();
            let mut model: BTreeMap<String, i32> = BTreeMap::new();
            let mut old = Vec::new();
            for (key, value, create) in changes {
                map.modify(&key, create, &mut |number| number.value = value);
                if create || model.contains_key(&key) {
                    match value {
                        Some(value) => model.insert(key, value),
                        None => model.remove(&key),
                    };
                }
                old.push((map.clone(), model.clone()));
            }
            for (map, model) in &old {
                prop_assert_eq!(map.max_priority(), model.values().max().copied());
                prop_assert_eq!(map.is_empty(), model.is_empty());
                for key in ["", "a", "b", "c", "aa", "ab", "ba", "abc", "cba", "bbb", "acb"] {
                    prop_assert_eq!(map.find(key).and_then(|found| found.value), model.get(key).copied());
                }
            }
        }
    }

    #[test]
    fn a_slot_is_small() {
        assert!(size_of::<Slot<Number>>() <= 32);
    }
}
