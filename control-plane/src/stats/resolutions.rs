//! The resolutions in which series are kept.

pub(super) const HOUR: u64 = 3600;
pub(super) const DAY: u64 = 24 * HOUR;

/// The resolutions in seconds.
pub(super) const RESOLUTIONS: [u64; 3] = [10, 60, 600];

/// The time that rows of each resolution are kept, in seconds.
pub(super) const KEPT: [u64; 3] = [HOUR, DAY, 7 * DAY];
