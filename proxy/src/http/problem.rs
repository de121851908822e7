//! What the proxy answers by itself when something is wrong.

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS};

use super::body::RequestBodyError;
use crate::telemetry::Flag;

/// Why a request cannot be answered by what it was meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    // The client's.
    BadRequest(&'static str),
    NotImplemented(&'static str),
    BodyTooLarge,
    HeadTooLarge,
    UriTooLong,
    HeadTimeout,
    ClientBroke,
    BodyTimeout,
    NoRoute,
    // The upstream's.
    NoHealthyTarget,
    ConnectFailure,
    /// It has all that it may have under way, or its circuit breaker is open.
    Overflow,
    /// This host has no room for a connection to it.
    NoRoom,
    Timeout,
    /// Nothing moved for too long.
    StreamIdle,
    Reset,
    /// The head of the answer is beyond the upstream's limits.
    ResponseHeadTooLarge,
    // Our own.
    Overloaded,
    Misconfigured,
}

impl Failure {
    /// Of a request whose body does not come whole.
    pub fn of_body(error: &RequestBodyError) -> Self {
        match error {
            RequestBodyError::TooLarge => Self::BodyTooLarge,
            RequestBodyError::Late => Self::BodyTimeout,
            RequestBodyError::Client(_) | RequestBodyError::ClientStream(_) => Self::ClientBroke,
        }
    }

    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::ClientBroke => StatusCode::BAD_REQUEST,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTimeout | Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoHealthyTarget
            | Self::ConnectFailure
            | Self::Overflow
            | Self::NoRoom
            | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout | Self::StreamIdle => StatusCode::GATEWAY_TIMEOUT,
            Self::Reset | Self::ResponseHeadTooLarge => StatusCode::BAD_GATEWAY,
            Self::Misconfigured => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub fn flag(self) -> Flag {
        match self {
            Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::UriTooLong
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::ClientBroke => Flag::DownstreamProtocol,
            Self::NotImplemented(_) | Self::BodyTooLarge | Self::Misconfigured => Flag::None,
            Self::NoRoute => Flag::NoRoute,
            Self::NoHealthyTarget => Flag::NoHealthyUpstream,
            Self::ConnectFailure => Flag::ConnectFailure,
            Self::Overflow | Self::NoRoom => Flag::Overflow,
            Self::Timeout => Flag::Timeout,
            Self::StreamIdle => Flag::StreamIdle,
            Self::Overloaded => Flag::Overloaded,
            Self::Reset => Flag::UpstreamReset,
            Self::ResponseHeadTooLarge => Flag::UpstreamProtocol,
        }
    }

    /// For the client: nothing of the inside.
    pub fn detail(self) -> &'static str {
        match self {
            Self::BadRequest(detail) | Self::NotImplemented(detail) => detail,
            Self::BodyTooLarge => "The request's body is larger than what is accepted here.",
            Self::HeadTooLarge => "The request's headers are larger or more than what is accepted here.",
            Self::UriTooLong => "The request's target is longer than what is accepted here.",
            Self::HeadTimeout => "The request's head did not arrive in time.",
            Self::BodyTimeout => "The request's body did not come in time.",
            Self::ClientBroke => "The request's body did not arrive as announced.",
            Self::NoRoute => "No route takes this request.",
            Self::NoHealthyTarget => "The service is not available.",
            Self::ConnectFailure | Self::NoRoom => "The service cannot be reached.",
            Self::Overflow => "The service has no room for this request.",
            Self::Timeout => "The service did not answer in time.",
            Self::StreamIdle => "Nothing came for too long.",
            Self::Overloaded => "There is more to do than can be done.",
            Self::Reset => "The service broke off.",
            Self::ResponseHeadTooLarge => {
                "The service's answer has larger or more headers than is accepted here."
            }
            Self::Misconfigured => "The request cannot be sent on.",
        }
    }
}

/// `application/problem+json` (RFC 9457) as the proxy answers it.
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

/// Makes an answer of the proxy one that a gRPC client understands: a status without a message, which stands in the head
/// (gRPC's "Trailers-Only"). What was meant for people becomes `grpc-message`.
pub fn to_grpc(response: &mut Response<Bytes>) {
    if response.headers().get(header::CONTENT_TYPE).is_some_and(|it| it.as_bytes().starts_with(GRPC)) {
        return;
    }
    let status = response.status();
    let body = std::mem::take(response.body_mut());
    let problem: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let detail = problem.as_ref().and_then(|problem| problem.get("detail")?.as_str());
    let message = detail.or(status.canonical_reason()).unwrap_or_default().to_owned();
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(grpc_status(status)));
    insert_grpc_message(headers, &message);
}

/// How a call of gRPC ends that has begun to be answered, and then fails.
pub fn grpc_trailers(failure: Failure) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(grpc_status(failure.status())));
    insert_grpc_message(&mut trailers, failure.detail());
    trailers
}

fn insert_grpc_message(fields: &mut HeaderMap, message: &str) {
    let message = percent_encoding::utf8_percent_encode(message, GRPC_MESSAGE).to_string();
    // What is percent-encoded is a value.
    fields
        .extend(HeaderValue::try_from(message).map(|value| (HeaderName::from_static("grpc-message"), value)));
}

/// Whether the target is to blame for the status that a gRPC call ended with, as far as there is one. `hurried`: the client said how
/// much time there is.
pub fn is_targets_failure(grpc_status: Option<u8>, hurried: bool) -> bool {
    match grpc_status {
        // UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS.
        Some(2 | 13 | 14 | 15) => true,
        // DEADLINE_EXCEEDED: a client that is in a hurry is no failure of the target.
        Some(4) => !hurried,
        Some(_) | None => false,
    }
}

/// The status as which an answer is counted: 200 says nothing of a gRPC call.
pub fn counted_status(status: u16, grpc_status: Option<u8>) -> u16 {
    match grpc_status {
        Some(grpc_status) if status == 200 => status_of_grpc(grpc_status),
        _ => status,
    }
}

/// The status of HTTP that says what one of gRPC does (google.rpc.Code).
fn status_of_grpc(status: u8) -> u16 {
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

const GRPC: &[u8] = b"application/grpc";
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// As gRPC has it in "HTTP to gRPC Status Code Mapping", but for what has a status of its own: a time that is over, a
/// message that is too large, a method that is not there.
fn grpc_status(status: StatusCode) -> u16 {
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

/// A problem as it is written to an HTTP/1.1 connection that is closed after it.
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
    fn statuses_and_flags_are_those_of_the_documentation() {
        for (failure, status, flag) in [
            (Failure::NoRoute, 404, "NR"),
            (Failure::NoHealthyTarget, 503, "UH"),
            (Failure::ConnectFailure, 503, "UF"),
            (Failure::Overflow, 503, "UO"),
            (Failure::Timeout, 504, "UT"),
            (Failure::StreamIdle, 504, "SI"),
            (Failure::Overloaded, 503, "OM"),
            (Failure::Reset, 502, "UC"),
            (Failure::ResponseHeadTooLarge, 502, "UPE"),
            (Failure::BodyTooLarge, 413, ""),
            (Failure::HeadTooLarge, 431, "DPE"),
            (Failure::BadRequest(""), 400, "DPE"),
            (Failure::HeadTimeout, 408, "DPE"),
        ] {
            assert_eq!(failure.status(), status, "{failure:?}");
            assert_eq!(failure.flag().as_str(), flag, "{failure:?}");
        }
    }

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
