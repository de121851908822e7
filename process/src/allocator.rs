//! Figures of the allocator.
#![allow(unsafe_code, reason = "the allocator is written in C")]

use std::ptr;

// Both programs allocate with it; this links it.
use mimalloc as _;

/// Figures of the allocator, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Allocator {
    /// The memory that it has from the system now, used or kept for later.
    pub(crate) committed: u64,
    /// The most that it ever had.
    pub(crate) peak_committed: u64,
    /// The most that the process ever had in memory.
    pub(crate) peak_resident: u64,
}

unsafe extern "C" {
    fn mi_process_info(
        elapsed_ms: *mut usize,
        user_ms: *mut usize,
        system_ms: *mut usize,
        current_rss: *mut usize,
        peak_rss: *mut usize,
        current_commit: *mut usize,
        peak_commit: *mut usize,
        page_faults: *mut usize,
    );
}

/// Reads the figures.
pub(crate) fn figures() -> Allocator {
    let (mut peak_rss, mut commit, mut peak_commit) = (0_usize, 0_usize, 0_usize);
    let none = ptr::null_mut();
    // SAFETY: mimalloc writes to the pointers that are not null, which are to values of this function.
    unsafe {
        mi_process_info(
            none,
            none,
            none,
            none,
            &raw mut peak_rss,
            &raw mut commit,
            &raw mut peak_commit,
            none,
        );
    }
    Allocator { committed: commit as u64, peak_committed: peak_commit as u64, peak_resident: peak_rss as u64 }
}
