use imbl::OrdSet;

use crate::core::slots::Slot;

/// Gives out the slots of a table, the smallest free one first.
pub(super) struct FreeSlots<T> {
    /// The free slots below `next`.
    free: OrdSet<Slot<T>>,
    /// All from here on are free.
    next: u32,
}

impl<T> FreeSlots<T> {
    pub(super) fn take(&mut self) -> Slot<T> {
        if let Some(slot) = self.free.get_min().copied() {
            self.free.remove(&slot);
            return slot;
        }
        let slot = Slot::new(self.next);
        self.next += 1;
        slot
    }

    pub(super) fn release(&mut self, slot: Slot<T>) {
        self.free.insert(slot);
    }
}

// Derived, `Clone` would ask the same of `T`.
impl<T> Clone for FreeSlots<T> {
    fn clone(&self) -> Self {
        Self { free: self.free.clone(), next: self.next }
    }
}

impl<T> Default for FreeSlots<T> {
    fn default() -> Self {
        Self { free: OrdSet::new(), next: 0 }
    }
}
