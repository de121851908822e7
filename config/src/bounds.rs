//! Values that must lie within bounds.

use std::time::Duration;

use crate::error::Errors;
use crate::values::HumanDuration;

/// The number, if it lies within the bounds. NaN does not.
pub(crate) fn within<N: Copy + PartialOrd + std::fmt::Display>(
    given: Option<N>,
    default: N,
    lowest: N,
    highest: N,
    field: &str,
    errors: &mut Errors,
) -> N {
    let value = given.unwrap_or(default);
    if !(lowest..=highest).contains(&value) {
        errors.push(field, format_args!("must be from {lowest} to {highest}"));
    }
    value
}

/// The length of time, if it lies within the bounds; all in milliseconds.
pub(crate) fn between(
    given: Option<HumanDuration>,
    default: u64,
    lowest: u64,
    highest: u64,
    field: &str,
    errors: &mut Errors,
) -> Duration {
    let [default, lowest, highest] = [default, lowest, highest].map(Duration::from_millis);
    let value = given.map_or(default, |value| value.0);
    if value < lowest || value > highest {
        let (lowest, highest) = (HumanDuration(lowest), HumanDuration(highest));
        errors.push(field, format_args!("must be from {lowest} to {highest}"));
    }
    value
}
