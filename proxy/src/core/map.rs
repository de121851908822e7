//! The map that revisions share.

use imbl::GenericHashMap;
use imbl::shared_ptr::DefaultSharedPtr;

/// A persistent map: a clone is cheap, and a change costs O(change).
pub type Map<K, V> = GenericHashMap<K, V, foldhash::fast::RandomState, DefaultSharedPtr>;
