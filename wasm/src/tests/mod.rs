//! Tests with small modules, written as text.

mod background;
mod cost;
mod faults;
mod guest;
mod headers;
mod hostcalls;
mod messages;
