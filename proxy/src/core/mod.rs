//! Values and rules that every part of the proxy builds on: deadlines, failures, header rules, identifiers.

pub mod clock;
pub mod deadlines;
pub mod failure;
pub mod fields;
pub mod filters;
pub mod foreign_context;
pub mod identify;
pub mod idle;
pub mod map;
pub mod outcome;
pub mod prefetch;
pub mod slots;
pub mod target_label;
