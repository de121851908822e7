//! HTTP/1.1 as it is spoken to targets (RFC 9112): bytes from heads, heads from bytes, and where bodies end.
//!
//! Functions over values; [`super::connection`] moves the bytes.

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, request, response};
use smallvec::SmallVec;

use crate::http1::{BadChunk, Chunked, encode_fields, parse_length};

/// How the body of a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestFraming {
    /// There is none.
    None,
    /// As `Content-Length` says.
    Length(u64),
    Chunked,
}

/// How the body of an answer ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are still to come; with 0 it has ended.
    Length(u64),
    Chunked(Chunked),
    /// With the connection.
    Close,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether the connection can take another request after this answer.
    pub(super) keep_alive: bool,
}

impl Head {
    /// Of an answer over HTTP/2, whose body is framed by its stream.
    pub(super) fn over_http2(head: response::Parts) -> Self {
        let response::Parts { status, headers, .. } = head;
        Self { status, headers, framing: Framing::Length(0), keep_alive: false }
    }
}

/// What a target said is not HTTP/1.1, or more than is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the head cannot be read")]
    Head,
    #[error("the head is too large")]
    TooLarge,
    #[error("it is not clear where the body ends")]
    Length,
    #[error("the body is coded in a way that nobody asked for")]
    Coding,
    #[error(transparent)]
    Chunk(#[from] BadChunk),
    #[error("it switches protocols without being asked")]
    Upgrade,
}

/// The largest head of an answer, bytes.
pub(super) const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;

/// Writes the head of a request. `more` writes further fields.
#[inline]
pub(super) fn encode_head(
    out: &mut Vec<u8>,
    head: &request::Parts,
    framing: RequestFraming,
    more: impl FnOnce(&mut Vec<u8>),
) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    encode_fields(out, &head.headers);
    more(out);
    match framing {
        RequestFraming::Length(length) if !head.headers.contains_key(header::CONTENT_LENGTH) => {
            // Writing to a vector does not fail; nor below.
            let _ = write!(out, "content-length: {length}\r\n");
        }
        RequestFraming::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // RFC 9110, section 8.6: some answer 411 without it.
        RequestFraming::None
            if matches!(head.method, Method::POST | Method::PUT | Method::PATCH)
                && !head.headers.contains_key(header::CONTENT_LENGTH) =>
        {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        RequestFraming::None | RequestFraming::Length(_) => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Takes the head of an answer to a request with `method` from `buffer`, if all of it is there. `headers` is cleared and
/// used, so that its memory is. Interim answers (1xx) are passed over, but for 101 if the target may switch protocols.
pub(super) fn parse_head(
    buffer: &mut BytesMut,
    method: &Method,
    switches: bool,
    headers: &mut HeaderMap,
) -> Result<Option<Head>, Malformed> {
    loop {
        let mut fields = [MaybeUninit::uninit(); MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            buffer,
            &mut fields,
        );
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TooLarge),
            Err(_) => return Err(Malformed::Head),
        };
        let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed::Head)?;
        if status.is_informational() && !(switches && status == StatusCode::SWITCHING_PROTOCOLS) {
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Malformed::Upgrade);
            }
            buffer.advance(length);
            continue;
        }
        let version = if response.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
        // Where the fields are, for the buffer must be let go of before it can be shared.
        let start = buffer.as_ptr() as usize;
        let mut places: SmallVec<[Place; 32]> = SmallVec::new();
        places.extend(response.headers.iter().map(|field| {
            let name = field.name.as_ptr() as usize - start;
            let value = if field.value.is_empty() { 0 } else { field.value.as_ptr() as usize - start };
            (name as u16, field.name.len() as u16, value as u32, field.value.len() as u32)
        }));
        let bytes = buffer.split_to(length).freeze();
        return build_head(&bytes, &places, status, version, method, headers).map(Some);
    }
}

/// The place of a field in the bytes of a head: where its name begins, how long it is, and the same of its value.
type Place = (u16, u16, u32, u32);

fn build_head(
    bytes: &Bytes,
    places: &[Place],
    status: StatusCode,
    version: Version,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<Head, Malformed> {
    let mut headers = std::mem::take(headers);
    headers.clear();
    headers.reserve(places.len());
    let mut length: Option<u64> = None;
    let mut coded = false;
    let mut keep_alive = version == Version::HTTP_11;
    for &(name, name_length, value, value_length) in places {
        let name = usize::from(name)..usize::from(name) + usize::from(name_length);
        let name = bytes.get(name).ok_or(Malformed::Head)?;
        let name = HeaderName::from_bytes(name).map_err(|_| Malformed::Head)?;
        let value = bytes.slice(value as usize..value as usize + value_length as usize);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed::Head)?;
        if name == header::CONTENT_LENGTH {
            let this = parse_lengths(value.as_bytes()).ok_or(Malformed::Length)?;
            match length.replace(this) {
                Some(before) if before != this => return Err(Malformed::Length),
                // Once is enough.
                Some(_) => continue,
                None => {}
            }
        } else if name == header::TRANSFER_ENCODING {
            // Another coding would have to be undone, for the field is of this connection; nobody asked for one.
            if coded || !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::Coding);
            }
            coded = true;
            continue;
        } else if name == header::CONNECTION {
            let mut names = false;
            for token in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if token.eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                } else if token.eq_ignore_ascii_case(b"keep-alive") {
                    keep_alive |= version == Version::HTTP_10;
                } else {
                    names = true;
                }
            }
            // Likewise, unless it names others that are.
            if !names {
                continue;
            }
        }
        headers.append(name, value);
    }
    // RFC 9112, section 6.3, in its order.
    let bodiless = *method == Method::HEAD
        || matches!(
            status,
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    keep_alive &= status != StatusCode::SWITCHING_PROTOCOLS;
    let framing = if bodiless {
        Framing::Length(0)
    } else if coded {
        if version == Version::HTTP_10 {
            return Err(Malformed::Length);
        }
        if length.is_some() {
            // An attempt to have somebody on the way see another end.
            headers.remove(header::CONTENT_LENGTH);
            keep_alive = false;
        }
        Framing::Chunked(Chunked::from_target())
    } else {
        length.map_or(Framing::Close, Framing::Length)
    };
    keep_alive &= framing != Framing::Close;
    Ok(Head { status, headers, framing, keep_alive })
}

/// A list of equal lengths is as good as one (RFC 9110, section 8.6).
fn parse_lengths(value: &[u8]) -> Option<u64> {
    let mut lengths = value.split(|byte| *byte == b',').map(|part| parse_length(part.trim_ascii()));
    let first = lengths.next()??;
    lengths.all(|length| length == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head_of(method: &str, text: &str) -> Result<Option<Head>, Malformed> {
        let mut buffer = BytesMut::from(text);
        let mut headers = HeaderMap::new();
        headers.insert("x-old", HeaderValue::from_static("1"));
        let head = parse_head(&mut buffer, &method.parse().unwrap(), false, &mut headers)?;
        if let Some(head) = &head {
            assert!(!head.headers.contains_key("x-old"));
            assert_eq!(buffer, "REST", "what follows stays");
        }
        Ok(head)
    }

    #[test]
    fn heads_are_read_with_the_end_of_their_body() {
        let chunked = || Framing::Chunked(Chunked::from_target());
        for (method, head, framing, keep_alive) in [
            ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Framing::Length(5), true),
            ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n", Framing::Length(5), true),
            (
                "GET",
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            ("GET", "HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n", chunked(), true),
            ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", chunked(), true),
            (
                "GET",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
                chunked(),
                false,
            ),
            ("GET", "HTTP/1.1 200 OK\r\n\r\n", Framing::Close, false),
            ("GET", "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", Framing::Length(5), false),
            (
                "GET",
                "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: Keep-Alive\r\n\r\n",
                Framing::Length(5),
                true,
            ),
            (
                "GET",
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: x, Close\r\n\r\n",
                Framing::Length(5),
                false,
            ),
            ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Framing::Length(0), true),
            ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Framing::Length(0), true),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n", Framing::Length(0), true),
            ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", Framing::Length(0), true),
            (
                "GET",
                "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                Framing::Length(0),
                true,
            ),
        ] {
            let read = head_of(method, &format!("{head}REST")).unwrap().expect("it is whole");
            assert_eq!((read.framing, read.keep_alive), (framing, keep_alive), "{head}");
        }
    }

    #[test]
    fn fields_are_read() {
        let head = head_of("GET", "HTTP/1.1 418 Short\r\nX-Tea:  pot \r\nempty:\r\nx-tea: two\r\n\r\nREST");
        let head = head.unwrap().unwrap();
        assert_eq!(head.status, 418);
        assert_eq!(head.headers.get_all("x-tea").iter().collect::<Vec<_>>(), ["pot", "two"]);
        assert_eq!(head.headers["empty"], "");
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for (head, expected) in [
            ("nonsense\r\n\r\n", Malformed::Head),
            ("HTTP/1.1 99 Low\r\n\r\n", Malformed::Head),
            ("HTTP/1.1 200 OK\r\nbad header\r\n\r\n", Malformed::Head),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", Malformed::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\n", Malformed::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n", Malformed::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", Malformed::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775808\r\n\r\n", Malformed::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n", Malformed::Length),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Malformed::Length),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", Malformed::Coding),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", Malformed::Coding),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
                Malformed::Coding,
            ),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", Malformed::Upgrade),
        ] {
            assert_eq!(head_of("GET", head).unwrap_err(), expected, "{head}");
        }
        let large = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(MAX_HEAD));
        assert_eq!(head_of("GET", &large).unwrap_err(), Malformed::TooLarge);
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(head_of("GET", &many).unwrap_err(), Malformed::TooLarge);
    }

    #[test]
    fn a_head_that_is_not_whole_is_waited_for() {
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        for end in 0..whole.len() {
            assert!(head_of("GET", &whole[..end]).unwrap().is_none(), "{end}");
        }
    }

    #[test]
    fn heads_are_written() {
        let request = |length: Option<&str>| {
            let mut builder = Request::post("/a?b=c").header("host", "x");
            if let Some(length) = length {
                builder = builder.header("content-length", length);
            }
            builder.body(()).unwrap().into_parts().0
        };
        for (length, framing, expected) in [
            (None, RequestFraming::None, "content-length: 0\r\n"),
            (Some("0"), RequestFraming::None, "content-length: 0\r\n"),
            (Some("7"), RequestFraming::Length(7), "content-length: 7\r\n"),
            (None, RequestFraming::Length(7), "content-length: 7\r\n"),
            (None, RequestFraming::Chunked, "transfer-encoding: chunked\r\n"),
        ] {
            let mut out = Vec::new();
            encode_head(&mut out, &request(length), framing, |out| out.extend_from_slice(b"more: 1\r\n"));
            let own = if length.is_some() { expected } else { "" };
            let added = if length.is_some() { "" } else { expected };
            let expected = format!("POST /a?b=c HTTP/1.1\r\nhost: x\r\n{own}more: 1\r\n{added}\r\n");
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
