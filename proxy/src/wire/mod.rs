//! The bytes of both sides: sockets and TLS, the framing of HTTP/1.1 and HTTP/2, and bodies in transit.

pub mod body;
pub mod client_io;
pub mod http1;
pub mod http2;
pub mod splice;
pub mod stream;
pub mod tls;
pub mod websocket;
