//! Local replies: the responses that the proxy itself creates on failures.

use bytes::Bytes;
use http::header;
use http::{HeaderMap, HeaderValue, Response, StatusCode, response};
use signalbox_plugin::grpc;

use crate::core::failure::Failure;

/// A response with `application/problem+json` (RFC 9457).
pub fn response(status: StatusCode, detail: &str, request_id: &[u8]) -> Response<Bytes> {
    let mut response = Response::new(json(status, detail, request_id));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Converts a local reply for a gRPC client: a status without a message, in the head (gRPC's "Trailers-Only"). The
/// detail becomes `grpc-message`.
pub fn to_grpc(head: &mut response::Parts, body: &mut Bytes) {
    if head.headers.get(header::CONTENT_TYPE).is_some_and(|it| it.as_bytes().starts_with(GRPC)) {
        return;
    }
    let status = head.status;
    let body = std::mem::take(body);
    let problem: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let detail = problem.as_ref().and_then(|problem| problem.get("detail")?.as_str());
    let message = detail.or(status.canonical_reason()).unwrap_or_default().to_owned();
    head.status = StatusCode::OK;
    let headers = &mut head.headers;
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    grpc::insert_status(headers, grpc::status_of_http(status), &message);
}

/// The trailers of a gRPC call whose response has begun, and then fails.
pub fn grpc_trailers(failure: Failure) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    grpc::insert_status(&mut trailers, grpc::status_of_http(failure.status()), failure.detail());
    trailers
}

/// True if the target is responsible for a gRPC call's status, as far as there is one. `has_deadline`: the client has set a
/// deadline.
pub fn is_targets_failure(grpc_status: Option<u8>, has_deadline: bool) -> bool {
    match grpc_status {
        // UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS.
        Some(2 | 13 | 14 | 15) => true,
        // DEADLINE_EXCEEDED: a client's own deadline is no failure of the target.
        Some(4) => !has_deadline,
        Some(_) | None => false,
    }
}

/// The status to count for a response, because 200 says nothing about a gRPC call.
pub fn counted_status(status: u16, grpc_status: Option<u8>) -> u16 {
    match grpc_status {
        Some(grpc_status) if status == 200 => grpc::http_of_status(grpc_status),
        _ => status,
    }
}

const GRPC: &[u8] = b"application/grpc";
/// A problem in the wire format of HTTP/1.1, for a connection that is closed after it.
pub fn raw(failure: Failure, request_id: &[u8]) -> Vec<u8> {
    let status = failure.status();
    let body = json(status, failure.detail(), request_id);
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\ndate: {}\r\n\r\n",
        body.len(),
        httpdate::fmt_http_date(std::time::SystemTime::now()),
    )
    .into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}

fn json(status: StatusCode, detail: &str, request_id: &[u8]) -> Bytes {
    serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
        "request_id": std::str::from_utf8(request_id).unwrap_or_default(),
    })
    .to_string()
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_answer_is_a_whole_response() {
        let raw = String::from_utf8(raw(Failure::HeadTimeout, b"id-1")).unwrap();
        let (head, body) = raw.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["status"], 408);
        assert_eq!(body["request_id"], "id-1");
    }
}
