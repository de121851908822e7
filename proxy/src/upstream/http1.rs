//! HTTP/1.1 with targets (RFC 9112): encoding of request heads, parsing of response heads, and framing.
//!
//! These are functions over values; [`super::connection`] moves the bytes.

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, request, response};
use signalbox_config::ResponseLimits;
use smallvec::SmallVec;

use crate::wire::http1::framing::{BadChunk, Chunked, encode_fields, parse_length};

/// The framing of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestFraming {
    /// There is no body.
    None,
    /// The length is in `Content-Length`.
    Length(u64),
    Chunked,
}

/// The framing of a response body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes are still to come; 0 is the end.
    Length(u64),
    Chunked(Chunked),
    /// The body ends with the connection.
    Close,
}

/// The head of a response.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub(super) framing: Framing,
    /// True if the connection can carry another request after this response.
    pub(super) keep_alive: bool,
}

impl Head {
    /// Creates the head of a response over HTTP/2, whose body is framed by its stream.
    pub(super) fn over_http2(head: response::Parts) -> Self {
        let response::Parts { status, headers, .. } = head;
        Self { status, headers, framing: Framing::Length(0), keep_alive: false }
    }
}

/// The target's bytes are not valid HTTP/1.1, or exceed a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the head cannot be read")]
    Head,
    #[error("the head is larger than the upstream's limits allow")]
    HeadTooLarge,
    #[error("the body's length is ambiguous")]
    Length,
    #[error("the body has a transfer coding that was not requested")]
    Coding,
    #[error(transparent)]
    Chunk(#[from] BadChunk),
    #[error("it switches protocols without a request to do so")]
    Upgrade,
}

/// The number of fields that fit on the stack.
const USUAL_FIELDS: usize = 128;

/// A head up to this size in bytes is parsed from its beginning whenever more of it arrives.
const SMALL_HEAD: usize = 8 << 10;

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
            // Writing to a vector does not fail, here and below.
            let _ = write!(out, "content-length: {length}\r\n");
        }
        RequestFraming::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // RFC 9110, section 8.6: without it some servers answer 411.
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

/// True if a head that was incomplete with `seen` bytes may be complete now, or too large. Parsing a large head again
/// with each part of it would take time that grows with the square of its size.
pub(super) fn may_be_whole(buffer: &[u8], seen: usize, limits: ResponseLimits) -> bool {
    if seen < SMALL_HEAD || buffer.len() >= limits.header_size {
        return true;
    }
    let new = buffer.get(seen.saturating_sub(3)..).unwrap_or_default();
    // Lines may end without a CR.
    memchr::memmem::find(new, b"\n\r\n").is_some() || memchr::memmem::find(new, b"\n\n").is_some()
}

/// Takes the response head for a request with `method` from `buffer`, if it is complete. `headers` is cleared and
/// reused for its memory. Interim responses (1xx) are skipped, except 101 if the target may switch protocols.
pub(super) fn parse_head(
    buffer: &mut BytesMut,
    method: &Method,
    switches: bool,
    limits: ResponseLimits,
    headers: &mut HeaderMap,
) -> Result<Option<Head>, Malformed> {
    loop {
        let read = match read_lines(buffer, &mut [MaybeUninit::uninit(); USUAL_FIELDS]) {
            Err(httparse::Error::TooManyHeaders) if limits.header_count > USUAL_FIELDS => {
                read_lines(buffer, &mut vec![MaybeUninit::uninit(); limits.header_count])
            }
            read => read,
        };
        let lines = match read {
            Ok(Some(lines)) if lines.is_within(limits) => lines,
            Ok(None) if buffer.len() < limits.header_size => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Malformed::HeadTooLarge),
            Err(_) => return Err(Malformed::Head),
        };
        let status = lines.status.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed::Head)?;
        if status.is_informational() && !(switches && status == StatusCode::SWITCHING_PROTOCOLS) {
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Malformed::Upgrade);
            }
            buffer.advance(lines.length);
            continue;
        }
        let bytes = buffer.split_to(lines.length).freeze();
        return build_head(&bytes, &lines.places, status, lines.version, method, headers).map(Some);
    }
}

/// The positions of a head's parts in the bytes that were read, which can be shared once no slice borrows them.
struct Lines {
    /// The length of the head in bytes.
    length: usize,
    status: Option<u16>,
    version: Version,
    places: SmallVec<[Place; 32]>,
}

impl Lines {
    fn is_within(&self, limits: ResponseLimits) -> bool {
        self.length <= limits.header_size && self.places.len() <= limits.header_count
    }
}

/// The position of a field in the bytes of a head: start and length of its name, start and length of its value.
type Place = (u32, u32, u32, u32);

/// Finds the lines of a head. Returns `None` if it is incomplete. `fields` is scratch space.
#[inline]
fn read_lines<'a>(
    buffer: &'a [u8],
    fields: &mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<Option<Lines>, httparse::Error> {
    let mut response = httparse::Response::new(&mut []);
    // `Name : value` is passed on without the whitespace (RFC 9112, section 5.1).
    let parsed = httparse::ParserConfig::default()
        .allow_spaces_after_header_name_in_responses(true)
        .parse_response_with_uninit_headers(&mut response, buffer, fields)?;
    let httparse::Status::Complete(length) = parsed else { return Ok(None) };
    let start = buffer.as_ptr() as usize;
    let mut places: SmallVec<[Place; 32]> = SmallVec::new();
    places.extend(response.headers.iter().map(|field| {
        let name = field.name.as_ptr() as usize - start;
        let value = if field.value.is_empty() { 0 } else { field.value.as_ptr() as usize - start };
        (name as u32, field.name.len() as u32, value as u32, field.value.len() as u32)
    }));
    let version = if response.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    Ok(Some(Lines { length, status: response.code, version, places }))
}

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
    headers.try_reserve(places.len()).map_err(|_| Malformed::HeadTooLarge)?;
    let mut length: Option<u64> = None;
    let mut coded = false;
    let mut keep_alive = version == Version::HTTP_11;
    for &(name, name_length, value, value_length) in places {
        let name_end = name as usize + name_length as usize;
        let name = bytes.get(name as usize..name_end).ok_or(Malformed::Head)?;
        let name = HeaderName::from_bytes(name).map_err(|_| Malformed::Head)?;
        let frames = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE];
        if bytes.get(name_end) != Some(&b':') && frames.contains(&name) {
            // Other servers may not recognize this field.
            return Err(Malformed::Head);
        }
        let value = bytes.slice(value as usize..value as usize + value_length as usize);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed::Head)?;
        if name == header::CONTENT_LENGTH {
            let this = parse_lengths(value.as_bytes()).ok_or(Malformed::Length)?;
            match length.replace(this) {
                Some(before) if before != this => return Err(Malformed::Length),
                // A repeated equal length is dropped.
                Some(_) => continue,
                None => {}
            }
        } else if name == header::TRANSFER_ENCODING {
            // Another coding would have to be decoded, because the field concerns this connection; it was not
            // requested.
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
            // The same holds unless the value names other options.
            if !names {
                continue;
            }
        }
        headers.try_append(name, value).map_err(|_| Malformed::HeadTooLarge)?;
    }
    // The order is that of RFC 9112, section 6.3.
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
            // This is an attempt to have another party see a different end of the body.
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

/// A list of equal lengths counts as one (RFC 9110, section 8.6).
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
        let limits = ResponseLimits::default();
        let head = parse_head(&mut buffer, &method.parse().unwrap(), false, limits, &mut headers)?;
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
            ("HTTP/1.1 204 No Content\r\ncontent-length: 9223372036854775808\r\n\r\n", Malformed::Length),
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
    }

    #[test]
    fn heads_are_taken_up_to_the_limits() {
        let ResponseLimits { header_count, header_size } = ResponseLimits::default();
        let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        let filled = |size: usize| {
            let rest = size - head("x: \r\n").len();
            head(&format!("x: {}\r\n", "y".repeat(rest)))
        };
        for (fits, text) in [
            (true, head(&"x: y\r\n".repeat(USUAL_FIELDS + 1))),
            (true, head(&"x: y\r\n".repeat(header_count))),
            (false, head(&"x: y\r\n".repeat(header_count + 1))),
            (true, filled(header_size)),
            (false, filled(header_size + 1)),
            // The head need not be complete.
            (false, filled(header_size + 2)[..header_size].to_owned()),
        ] {
            let read = head_of("GET", &format!("{text}REST"));
            match fits {
                true => assert_eq!(head_of("GET", &format!("{text}REST")).unwrap().unwrap().status, 200),
                false => assert_eq!(read.unwrap_err(), Malformed::HeadTooLarge, "{}", text.len()),
            }
        }
        let far = head(&format!("a: {}\r\nb: c\r\n", "x".repeat(100_000)));
        let far = head_of("GET", &format!("{far}REST")).unwrap().unwrap();
        assert_eq!(far.headers["b"], "c", "beyond 64 KiB");
        let mut buffer = BytesMut::from(head("a: b\r\nc: d\r\n").as_str());
        let few = ResponseLimits { header_count: 1, header_size };
        let read = parse_head(&mut buffer, &Method::GET, false, few, &mut HeaderMap::new());
        assert_eq!(read.unwrap_err(), Malformed::HeadTooLarge);
    }

    #[test]
    fn a_large_head_is_read_once_it_is_whole() {
        let limits = ResponseLimits::default();
        for end in ["\r\n", "\n"] {
            let text =
                format!("HTTP/1.1 200 OK{end}x: {}{end}y: z{end}{end}REST", "x".repeat(2 * SMALL_HEAD));
            let whole = text.len() - "REST".len();
            let mut read = 0;
            for size in 1..=text.len() {
                let part = &text.as_bytes()[..size];
                if may_be_whole(part, size - 1, limits) {
                    read += 1;
                    let mut buffer = BytesMut::from(part);
                    let head = parse_head(&mut buffer, &Method::GET, false, limits, &mut HeaderMap::new());
                    assert_eq!(head.unwrap().is_some(), size >= whole, "{size}");
                }
                assert!(size != whole || may_be_whole(part, size - 1, limits), "{size}");
            }
            assert!(read <= SMALL_HEAD + 8, "{read} times");
        }
    }

    #[test]
    fn whitespace_behind_a_name_is_removed_unless_the_field_frames_the_message() {
        let head = head_of("GET", "HTTP/1.1 200 OK\r\nX-A : 1\r\nX-B \t:2\r\n\r\nREST").unwrap().unwrap();
        assert_eq!(
            (&head.headers["x-a"], &head.headers["x-b"]),
            (&"1".parse().unwrap(), &"2".parse().unwrap())
        );
        for field in
            ["Content-Length : 5", "transfer-encoding\t: chunked", "Connection : close", "Upgrade : x"]
        {
            let text = format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n");
            assert_eq!(head_of("GET", &text).unwrap_err(), Malformed::Head, "{field}");
        }
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
