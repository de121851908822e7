//! The data plane: a stateless proxy that applies revisions atomically.
//!
//! A control plane or a file is the [`source`] of configuration. [`proxy`] takes each revision: [`compile`] makes of it
//! what a request sees ([`active`]), [`listener`] binds its sockets, and each [`worker`] serves it from the next request
//! on. [`http`] is the life of a request, [`upstream`] where it goes, [`telemetry`] what is told of it.

pub mod active;
pub mod admin;
pub mod args;
pub mod causes;
pub mod compile;
pub mod deadlines;
pub mod http;
pub mod http1;
pub mod http2;
pub mod listener;
pub mod overload;
pub mod proxy;
pub mod run;
pub mod source;
pub mod stream;
pub mod takeover;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod worker;
