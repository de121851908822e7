//! Tells the processor what is needed soon: of many routes, few are in its caches.

#![allow(unsafe_code, reason = "prefetching has no safe interface")]

/// Has the processor fetch the cache line in which `value` begins. Nothing waits for it.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: A prefetch is a hint. It neither reads nor writes for the program, and no address makes it fail.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
