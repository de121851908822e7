//! HTTP/1.1 as bytes (RFC 9112).
//!
//! [`framing`] is shared by both sides. [`request`] parses request heads, and [`link`] is the socket that a client's
//! connection and the body of its current request share.

pub mod framing;
pub mod link;
pub mod request;
