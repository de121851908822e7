//! The life of a request.
//!
//! [`connection`] takes a client's connection, [`http1`] and [`http2`] read requests from it; [`exchange`] is what is known of it until its last
//! byte, and [`handle`] decides: it finds the route, runs the plugins, and answers or has it sent on by [`forward`]. [`head`],
//! [`rewrite`] and [`problem`] are the rules of HTTP that this takes, as functions over values; [`body`] lets bodies through;
//! [`switch`] says how a client leaves HTTP behind, and [`tunnel`] lets through what then comes.

mod affinity;
pub mod body;
pub mod connection;
pub mod exchange;
mod forward;
pub mod handle;
pub mod head;
pub mod http1;
mod http2;
pub mod identify;
mod mirror;
mod plugins;
pub mod problem;
mod proxy_protocol;
pub mod rewrite;
pub mod switch;
pub mod trust;
mod tunnel;
