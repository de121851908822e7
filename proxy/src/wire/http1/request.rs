//! Parsing of request heads, as functions over bytes (RFC 9112, sections 2 to 6).

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, request};
use signalbox_config::request_target::{self, BadTarget, split_origin};
use signalbox_config::{Limits, path};
use smallvec::SmallVec;

use super::framing::{Chunked, parse_length};
use crate::core::failure::Failure;
use crate::core::fields::{elements, is_continue};

/// The head of a request, with its statements about the bytes behind it.
#[derive(Debug)]
pub struct Head {
    pub parts: request::Parts,
    pub framing: Framing,
    /// True if the client allows another request on the connection.
    pub keep_alive: bool,
    /// True if the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// True if the client accepts trailers.
    pub takes_trailers: bool,
}

/// The framing of a request body.
#[derive(Debug, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes are still to come; 0 is the end.
    Length(u64),
    Chunked(Chunked),
}

impl Framing {
    pub fn is_end(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_end(),
        }
    }
}

/// The state of a head that was incomplete when it was last parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partial {
    /// Its end may have arrived.
    MayBeWhole,
    More,
    /// It cannot become a valid head.
    Bad,
}

pub const UNREADABLE: Failure = Failure::BadRequest("The request cannot be read as HTTP.");
const BAD_LENGTH: Failure = Failure::BadRequest("The request's Content-Length is not valid.");
const BAD_CODING: Failure = Failure::BadRequest("The request's Transfer-Encoding is not chunked.");
const BAD_TARGET: Failure = Failure::BadRequest("The request's target cannot be read.");
const BAD_CHUNK: Failure = Failure::BadRequest("A chunk of the request's body cannot be read.");

/// The number of fields that fit on the stack: a listener's default limit.
const FIELDS: usize = 100;

/// The longest request target in bytes: the limit of [`Uri`].
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// The position of a field in the bytes of a head: start and length of its name, start and length of its value.
type Place = [u32; 4];

/// Takes the head of a request from `buffer`, if it is complete. `headers` is cleared and reused for its memory.
pub fn take_head(
    buffer: &mut BytesMut,
    limits: &Limits,
    headers: &mut HeaderMap,
) -> Result<Option<Head>, Failure> {
    match take_text(buffer, limits, headers) {
        // httparse rejects a target that is not UTF-8.
        Err(UNREADABLE) => match encode_bytes(buffer) {
            Some(encoded) => {
                *buffer = encoded;
                take_text(buffer, limits, headers)
            }
            None => Err(UNREADABLE),
        },
        taken => taken,
    }
}

/// The same for a target in UTF-8.
fn take_text(
    buffer: &mut BytesMut,
    limits: &Limits,
    headers: &mut HeaderMap,
) -> Result<Option<Head>, Failure> {
    let mut few = [const { MaybeUninit::uninit() }; FIELDS];
    let mut many: Vec<MaybeUninit<httparse::Header<'_>>> = Vec::new();
    let fields = match few.get_mut(..limits.header_count) {
        Some(few) => few,
        None => {
            many.resize_with(limits.header_count, MaybeUninit::uninit);
            &mut many
        }
    };
    let mut request = httparse::Request::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_request_with_uninit_headers(&mut request, buffer, fields) {
        Ok(httparse::Status::Complete(length)) if length <= limits.header_size => length,
        Ok(httparse::Status::Partial) if buffer.len() < limits.header_size => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Failure::HeadTooLarge),
        Err(_) => return Err(UNREADABLE),
    };
    let method = request.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    let method = method.ok_or(UNREADABLE)?;
    let version = if request.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    // Positions are recorded instead of slices, because the buffer's borrow must end before it can be shared.
    let start = buffer.as_ptr() as usize;
    let place = |part: &[u8]| match part {
        [] => [0, 0],
        part => [(part.as_ptr() as usize - start) as u32, part.len() as u32],
    };
    let target = place(request.path.ok_or(UNREADABLE)?.as_bytes());
    let mut places: SmallVec<[Place; 32]> = SmallVec::new();
    places.extend(request.headers.iter().map(|field| {
        let ([name, name_length], [value, value_length]) = (place(field.name.as_bytes()), place(field.value));
        [name, name_length, value, value_length]
    }));
    let bytes = buffer.split_to(length).freeze();
    let [start, length] = target.map(|at| at as usize);
    let uri = read_target(bytes.slice(start..start + length), &method)?;
    let mut head = read_fields(&bytes, &places, version, std::mem::take(headers))?;
    head.parts.method = method;
    head.parts.uri = uri;
    if let Framing::Chunked(chunked) = &mut head.framing {
        // An error in the first chunk is found before anything is done for the request.
        chunked.read_size(buffer).map_err(|_| BAD_CHUNK)?;
    }
    Ok(Some(head))
}

/// Reads the fields at `places` of `bytes` into `headers`, and the framing of the body (RFC 9112, section 6.3).
fn read_fields(
    bytes: &Bytes,
    places: &[Place],
    version: Version,
    mut headers: HeaderMap,
) -> Result<Head, Failure> {
    headers.clear();
    headers.reserve(places.len());
    let mut length: Option<u64> = None;
    let mut chunked = false;
    let mut keep_alive = version == Version::HTTP_11;
    let mut closes = false;
    let mut expects_continue = false;
    let mut takes_trailers = false;
    for place in places {
        let [name, name_length, value, value_length] = place.map(|at| at as usize);
        let name = bytes.get(name..name + name_length).ok_or(UNREADABLE)?;
        let name = HeaderName::from_bytes(name).map_err(|_| UNREADABLE)?;
        let value = bytes.slice(value..value + value_length);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| UNREADABLE)?;
        if name == header::CONTENT_LENGTH {
            let this = parse_length(value.as_bytes()).ok_or(BAD_LENGTH)?;
            match length.replace(this) {
                Some(before) if before != this => return Err(BAD_LENGTH),
                // A repeated equal length is dropped.
                Some(_) => continue,
                None => {}
            }
        } else if name == header::TRANSFER_ENCODING {
            // A target that ignores another coding would misread the body, and a server before the proxy may have
            // ended it elsewhere.
            if chunked || version == Version::HTTP_10 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(BAD_CODING);
            }
            chunked = true;
        } else if name == header::CONNECTION {
            for option in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                closes |= option.eq_ignore_ascii_case(b"close");
                keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name == header::EXPECT {
            expects_continue = version == Version::HTTP_11 && is_continue(&value);
        } else if name == header::TE {
            takes_trailers = true;
        }
        headers.append(name, value);
    }
    let framing = if chunked {
        if headers.remove(header::CONTENT_LENGTH).is_some() {
            // This is an attempt to have another server see a different end of the body.
            closes = true;
        }
        Framing::Chunked(Chunked::from_client())
    } else {
        Framing::Length(length.unwrap_or(0))
    };
    if takes_trailers {
        takes_trailers =
            elements(&headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    }
    let mut parts = Request::new(()).into_parts().0;
    parts.version = version;
    parts.headers = headers;
    Ok(Head { parts, framing, keep_alive: keep_alive && !closes, expects_continue, takes_trailers })
}

/// Reads a request's target.
fn read_target(raw: Bytes, method: &Method) -> Result<Uri, Failure> {
    request_target::read(raw, method, MAX_TARGET).map_err(|error| match error {
        BadTarget::TooLong => Failure::UriTooLong,
        BadTarget::Malformed => BAD_TARGET,
    })
}

/// Percent-encodes the target of a head; `None` if the target is UTF-8 already, or absent.
#[cold]
fn encode_bytes(head: &[u8]) -> Option<BytesMut> {
    let begin = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let space = begin + head.get(begin..)?.iter().position(|byte| *byte == b' ')? + 1;
    let behind = head.get(space..)?;
    let target = behind.get(..behind.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n'))?)?;
    if std::str::from_utf8(target).is_ok() {
        return None;
    }
    let (origin, path) = split_origin(target);
    let encoded = path::encode(path)?;
    let mut whole = BytesMut::with_capacity(head.len() + encoded.len());
    for part in [head.get(..space)?, origin, encoded.as_bytes(), behind.get(target.len()..)?] {
        whole.extend_from_slice(part);
    }
    Some(whole)
}

/// Returns the length of the empty line at the beginning of `buffer`, if there is one.
pub fn empty_line(buffer: &[u8]) -> Option<usize> {
    match buffer {
        [b'\n', ..] => Some(1),
        [b'\r', b'\n', ..] => Some(2),
        _ => None,
    }
}

/// Scans a head whose first `seen` bytes are known to be incomplete, without parsing them again.
pub fn scan_partial(buffer: &[u8], seen: usize) -> Partial {
    let from = seen.saturating_sub(2);
    let mut bytes = buffer.get(from..).unwrap_or_default();
    while let [byte, rest @ ..] = bytes {
        match (byte, rest) {
            (b'\r', [next, ..]) if *next != b'\n' => return Partial::Bad,
            // The following bytes are behind the head.
            (b'\n', [b'\n', ..] | [b'\r', b'\n', ..]) => return Partial::MayBeWhole,
            _ => {}
        }
        bytes = rest;
    }
    Partial::More
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Head>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("x-old", HeaderValue::from_static("1"));
        let mut buffer = BytesMut::from(format!("{text}REST").as_bytes());
        let head = take_head(&mut buffer, &Limits::default(), &mut headers)?;
        if let Some(head) = &head {
            assert!(!head.parts.headers.contains_key("x-old"));
            assert_eq!(buffer, "REST", "what follows stays");
        }
        Ok(head)
    }

    #[test]
    fn heads_are_read_with_what_they_say_of_the_bytes_behind_them() {
        for (head, length, keep_alive) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Some(0), true),
            ("GET / HTTP/1.1\nhost: a\n\n", Some(0), true),
            ("\r\n\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Some(0), true),
            ("GET / HTTP/1.0\r\n\r\n", Some(0), false),
            ("GET / HTTP/1.0\r\nconnection: x, Keep-Alive\r\n\r\n", Some(0), true),
            ("GET / HTTP/1.1\r\nconnection: x,\tClose\r\n\r\n", Some(0), false),
            ("GET / HTTP/1.1\r\nconnection: close\r\nconnection: keep-alive\r\n\r\n", Some(0), false),
            ("GET / HTTP/1.1\r\nconnection: keep-alive\r\nconnection: close\r\n\r\n", Some(0), false),
            ("POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n", Some(5), true),
            ("POST / HTTP/1.1\r\ncontent-length: 9223372036854775807\r\n\r\n", Some(i64::MAX as u64), true),
            ("POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\ncontent-length: 5\r\n\r\n5\r\n", None, false),
            ("POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\n", None, false),
        ] {
            let read = read(head).unwrap().expect("it is whole");
            let Head { framing, keep_alive: kept, parts, .. } = &read;
            match (framing, length) {
                (Framing::Length(found), Some(length)) => assert_eq!(*found, length, "{head}"),
                (Framing::Chunked(_), None) => assert!(!parts.headers.contains_key("content-length")),
                _ => panic!("{head} {framing:?}"),
            }
            assert_eq!(*kept, keep_alive, "{head}");
            assert!(parts.headers.get_all("content-length").iter().count() <= 1, "{head}");
        }
    }

    #[test]
    fn what_is_no_head_is_refused_with_the_reason() {
        let line = |line: &str| format!("POST / HTTP/1.1\r\n{line}\r\n\r\n");
        for (head, failure) in [
            ("nonsense\r\n\r\n".to_owned(), UNREADABLE),
            ("GET / HTTP/1.2\r\n\r\n".to_owned(), UNREADABLE),
            ("GET / HTTP/1.1\rx: y\r\n\r\n".to_owned(), UNREADABLE),
            ("GET /a b HTTP/1.1\r\n\r\n".to_owned(), UNREADABLE),
            (format!("GET /{} HTTP/1.1\r\n\r\n", "\u{e4}".repeat(16_000)), Failure::UriTooLong),
            (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(65_535)), Failure::HeadTooLarge),
            (line("x y: z"), UNREADABLE),
            (line("content-length: 5\r\ncontent-length: 6"), BAD_LENGTH),
            (line("content-length: 9223372036854775808"), BAD_LENGTH),
            (line("content-length: 18446744073709551615"), BAD_LENGTH),
            (line("content-length: +5"), BAD_LENGTH),
            (line("content-length:"), BAD_LENGTH),
            (line("transfer-encoding: gzip, chunked"), BAD_CODING),
            (line("transfer-encoding: chunked\r\ntransfer-encoding: chunked"), BAD_CODING),
            ("GET / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(), BAD_CODING),
            (line("transfer-encoding: chunked") + "ffffffffffffffff\r\n", BAD_CHUNK),
            (line("transfer-encoding: chunked") + "8000000000000000\r\n", BAD_CHUNK),
            (line("transfer-encoding: chunked") + "5 \r\n", BAD_CHUNK),
            (line(&"x: y\r\n".repeat(101)), Failure::HeadTooLarge),
        ] {
            assert_eq!(read(&head).map(|_| ()), Err(failure), "{head:.80}");
        }
    }

    #[test]
    fn targets_are_read() {
        for (method, target, expected) in [
            ("GET", "/a?b=c", Some("/a?b=c")),
            ("GET", "/a#b", Some("/a")),
            ("GET", "/caf\u{e9}?q=\"<>^`{|}", Some("/caf%C3%A9?q=%22%3C%3E%5E%60%7B%7C%7D")),
            ("GET", "http://h/\u{e9}", Some("http://h/%C3%A9")),
            ("GET", "http://h?q", Some("http://h/?q")),
            ("GET", "http://h", Some("http://h/")),
            ("GET", "http://h\u{e9}/", None),
            ("GET", "http://h\"/", None),
            ("GET", "http:///a", None),
            ("OPTIONS", "*", Some("*")),
            ("OPTIONS", "http://h/", Some("http://h/")),
            ("OPTIONS", "http://h?q", Some("http://h/?q")),
            ("CONNECT", "h:1", Some("h:1")),
            ("CONNECT", "h\u{e9}:1", None),
        ] {
            let head = read(&format!("{method} {target} HTTP/1.1\r\n\r\n"));
            let found = head.ok().flatten().map(|head| head.parts.uri.to_string());
            assert_eq!(found.as_deref(), expected, "{method} {target}");
        }
        let star = read("OPTIONS http://h HTTP/1.1\r\n\r\n").unwrap().unwrap().parts.uri;
        assert_eq!((star.host(), star.path()), (Some("h"), "*"));
        // Bytes that are not UTF-8 are encoded, too.
        for (target, expected) in [
            (&b"/\xe9"[..], Some("/%E9")),
            (b"/?\xff{", Some("/?%FF%7B")),
            (b"http://h/\xe9", Some("http://h/%E9")),
            (b"http://h\xe9/", None),
            (b"h\xe9", None),
            (b"\xe9", None),
        ] {
            let mut buffer = BytesMut::from(&[b"\r\nGET ", target, b" HTTP/1.1\r\n\r\nREST"].concat()[..]);
            let head = take_head(&mut buffer, &Limits::default(), &mut HeaderMap::new());
            let found = head.ok().flatten().map(|head| head.parts.uri.to_string());
            assert_eq!(found.as_deref(), expected, "{target:?}");
        }
    }

    #[test]
    fn a_head_that_is_not_whole_is_waited_for_but_not_where_it_cannot_become_one() {
        let whole = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        for end in 0..whole.len() {
            let mut buffer = BytesMut::from(&whole.as_bytes()[..end]);
            let head = take_head(&mut buffer, &Limits::default(), &mut HeaderMap::new());
            assert!(head.unwrap().is_none(), "{end}");
            for seen in 0..=end {
                assert_eq!(scan_partial(&whole.as_bytes()[..end], seen), Partial::More, "{seen} {end}");
            }
        }
        for seen in 0..whole.len() {
            assert_eq!(scan_partial(whole.as_bytes(), seen), Partial::MayBeWhole, "{seen}");
            assert_eq!(scan_partial(b"GET / HTTP/1.1\nhost: a\n\n", seen.min(23)), Partial::MayBeWhole);
        }
        assert_eq!(scan_partial(b"x: y\r\n\r\nbody\rx", 5), Partial::MayBeWhole);
        for (text, seen) in [("x: y\rz", 5), ("x: y\rz", 4), ("x: y\r\rz", 5), ("x\r y", 1)] {
            assert_eq!(scan_partial(text.as_bytes(), seen), Partial::Bad, "{text:?}");
        }
    }
}
