//! The data plane: a stateless proxy that applies revisions atomically.
//!
//! A control plane or a file is the [`source`] of configuration; the data plane serves it.

pub mod args;
pub mod source;
