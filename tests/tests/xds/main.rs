//! The protocol between the planes, over real streams: the real server on a port of its own and a real store, with
//! clients that say exactly what a test wants, and with the proxies' own.

// Clippy lets only the tests themselves unwrap, not what they share.
#![allow(clippy::unwrap_used)]

mod assignment;
mod counts;
mod file;
mod files;
mod harness;
mod model;
mod planes;
mod plugin_types;
mod protocol;
mod purges;
mod reader;
mod scripted;
mod stats;
mod tls;
