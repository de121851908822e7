//! Tests with small modules, written as text.

mod faults;
mod guest;
mod headers;
mod hostcalls;
mod messages;
