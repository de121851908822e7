//! The life of a request.
//!
//! [`connection`] takes a client's connection, [`http1`] and [`http2`] read requests from it; [`downstream`] is their
//! shared part. An [`exchange`] is one request and its response. [`handle`] finds the route, runs the [`plugins`], and
//! answers or lets [`forward`] send the request on; the response passes the plugins once more on its [`way_out`].
//! [`head`], [`rewrite`] and [`problem`] are the rules of HTTP, as functions over values. [`finalise`] prepares every response for the client, and [`response_body`] streams it;
//! [`switch`] decides on protocol switches, and [`tunnel`] carries the bytes that follow.

mod affinity;
mod as_sent;
pub mod attempt_record;
mod conditions;
pub mod connection;
pub mod downstream;
pub mod exchange;
pub mod finalise;
mod forward;
pub mod handle;
pub mod handshakes;
pub mod head;
pub mod http1;
pub mod http2;
pub mod logged;
mod mirror;
pub mod outbound;
mod plugins;
pub mod problem;
mod proxy_protocol;
mod redirect;
mod refusal;
mod reply;
mod request_body;
pub mod request_context;
pub mod response_body;
mod retry;
pub mod rewrite;
mod shadow;
pub mod switch;
pub mod trace;
pub mod trust;
mod tunnel;
mod way_out;
pub mod worker_context;
