//! Conditions over requests: their values, their faults and their errors.

// Clippy lets only the tests themselves unwrap, not what they share.
#![allow(clippy::unwrap_used)]

mod errors;
mod hostile;
mod request;
mod values;
