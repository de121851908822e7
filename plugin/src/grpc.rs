//! The statuses of gRPC (google.rpc.Code) beside those of HTTP, and its messages.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS};

/// The field of a call's status, in its trailers or in their place among its headers.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The field of the message that explains the status.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Bytes of a `grpc-message` that are percent-encoded.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// True for the media type of gRPC; gRPC-Web has another.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

/// A message in its frame. It must be smaller than 4 GiB.
pub fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// The gRPC status by the "HTTP to gRPC Status Code Mapping", except where gRPC has a status of its own: an expired
/// deadline, a message that is too large, a method that does not exist.
pub fn status_of_http(status: StatusCode) -> u16 {
    match status.as_u16() {
        200..300 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 | 501 => 12,
        408 | 504 => 4,
        413 | 431 => 8,
        429 | 502 | 503 => 14,
        _ => 2,
    }
}

/// The HTTP status that corresponds to a gRPC status.
pub fn http_of_status(status: u8) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Puts a status and a message among the fields of a call's head or trailers.
pub fn insert_status(fields: &mut HeaderMap, status: u16, message: &str) {
    fields.insert(GRPC_STATUS, HeaderValue::from(status));
    let message = percent_encoding::utf8_percent_encode(message, ENCODED).to_string();
    // A percent-encoded text is a valid header value.
    if let Ok(message) = HeaderValue::try_from(message) {
        fields.insert(GRPC_MESSAGE, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_percent_encoded() {
        let mut fields = HeaderMap::new();
        insert_status(&mut fields, 14, "100 % ä\r\n");
        assert_eq!(fields["grpc-status"], "14");
        assert_eq!(fields["grpc-message"], "100 %25 %C3%A4%0D%0A");
    }
}
