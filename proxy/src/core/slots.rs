//! Slots: the numbers by which one part of a revision refers to another that may change on its own.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use imbl::Vector;

/// The place of a `T` in a [`SlotTable`].
pub struct Slot<T> {
    number: u32,
    table: PhantomData<fn() -> T>,
}

/// The `T`s of a revision by slot; a slot may be free. A clone is cheap, a change costs itself.
pub struct SlotTable<T> {
    entries: Vector<Option<Arc<T>>>,
}

impl<T> Slot<T> {
    pub const fn new(number: u32) -> Self {
        Self { number, table: PhantomData }
    }

    #[inline]
    pub fn number(self) -> u32 {
        self.number
    }
}

impl<T> SlotTable<T> {
    /// `None`: the slot is free.
    #[inline]
    pub fn get(&self, slot: Slot<T>) -> Option<&Arc<T>> {
        self.entries.get(slot.number as usize)?.as_ref()
    }

    pub fn set(&mut self, slot: Slot<T>, value: Arc<T>) {
        let index = slot.number as usize;
        while self.entries.len() <= index {
            self.entries.push_back(None);
        }
        self.entries.set(index, Some(value));
    }

    /// Frees a slot.
    pub fn clear(&mut self, slot: Slot<T>) {
        let index = slot.number as usize;
        if index < self.entries.len() {
            self.entries.set(index, None);
        }
    }

    /// All that are there, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.entries.iter().flatten()
    }

    /// How many slots there are, free ones included.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }
}

// Derived, these would ask the same of `T`.

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> PartialEq for Slot<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Slot<T> {}

impl<T> PartialOrd for Slot<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Slot<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number.cmp(&other.number)
    }
}

impl<T> Hash for Slot<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.number)
    }
}

impl<T> Clone for SlotTable<T> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone() }
    }
}

impl<T> Default for SlotTable<T> {
    fn default() -> Self {
        Self { entries: Vector::new() }
    }
}
