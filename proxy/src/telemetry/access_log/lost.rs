//! Lines that were not written.

use std::io;

/// Lines that were not written, and why.
#[derive(Debug)]
pub(super) struct Lost {
    pub lines: u64,
    pub error: io::Error,
}
