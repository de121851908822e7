//! HTTP/1.1 as it is spoken to targets (RFC 9112): bytes from heads, heads from bytes, and where bodies end.
//!
//! Functions over values; [`super::connection`] moves the bytes.

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, request, response};
use smallvec::SmallVec;

use crate::http::head::{Claims, OF_A_CONNECTION, remove_claims};

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
    #[error("a chunk cannot be read")]
    Chunk,
    #[error("it switches protocols without being asked")]
    Upgrade,
}

/// The largest head of an answer, bytes; and trailers, and what a chunk says of itself.
pub(super) const MAX_HEAD: usize = 64 << 10;
const MAX_TRAILERS: usize = 16 << 10;
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

/// Writes what precedes a chunk of `length` bytes. `\r\n` follows it.
pub(super) fn encode_chunk_head(out: &mut Vec<u8>, length: usize) {
    let _ = write!(out, "{length:x}\r\n");
}

/// Writes the end of a chunked body.
pub(super) fn encode_end(out: &mut Vec<u8>, trailers: Option<HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(mut trailers) = trailers {
        remove_unfit_trailers(&mut trailers);
        encode_fields(out, &trailers);
    }
    out.extend_from_slice(b"\r\n");
}

/// RFC 9110, section 6.5.1: what frames or routes a message does not belong behind it; nor does what only the proxy may say.
pub(super) fn remove_unfit_trailers(trailers: &mut HeaderMap) {
    for name in [header::CONTENT_LENGTH, header::HOST, header::TRAILER, header::TE, header::AUTHORIZATION]
        .iter()
        .chain(&OF_A_CONNECTION)
    {
        trailers.remove(name);
    }
    remove_claims(trailers, Claims::All);
}

fn encode_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
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
            let this = parse_length(value.as_bytes()).ok_or(Malformed::Length)?;
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
        Framing::Chunked(Chunked::default())
    } else {
        length.map_or(Framing::Close, Framing::Length)
    };
    keep_alive &= framing != Framing::Close;
    Ok(Head { status, headers, framing, keep_alive })
}

/// Digits only: no sign, no blank.
fn parse_length(value: &[u8]) -> Option<u64> {
    // A list of equal lengths is as good as one (RFC 9110, section 8.6).
    let mut lengths = value.split(|byte| *byte == b',').map(|part| {
        let part = part.trim_ascii();
        if part.is_empty() || part.len() > 19 || !part.iter().all(u8::is_ascii_digit) {
            return None;
        }
        Some(part.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0')))
    });
    let first = lengths.next()??;
    lengths.all(|length| length == Some(first)).then_some(first)
}

/// Reads a chunked body (RFC 9112, section 7.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunked {
    state: ChunkState,
    /// Bytes of extensions since the last chunk.
    extensions: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    /// In the size; how many digits there were.
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    Trailers,
    End,
}

/// What was in the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// Not enough to tell.
    More,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { state: ChunkState::Size { size: 0, digits: 0 }, extensions: 0 }
    }
}

impl Chunked {
    /// Takes the next part of a body from `buffer`.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Malformed> {
        loop {
            match self.state {
                ChunkState::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Decoded::More);
                    }
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let data = buffer.split_to(length).freeze();
                    let left = left - length as u64;
                    self.state = if left == 0 { ChunkState::DataCr } else { ChunkState::Data(left) };
                    // The end is usually there already; who knows it can be done with the body at once.
                    if left == 0 && buffer.starts_with(b"\r\n0\r\n\r\n") {
                        buffer.advance(7);
                        self.state = ChunkState::End;
                    }
                    return Ok(Decoded::Data(data));
                }
                ChunkState::Trailers => return self.trailers(buffer),
                ChunkState::End => return Ok(Decoded::End),
                _ => match buffer.first().copied() {
                    None => return Ok(Decoded::More),
                    Some(byte) => {
                        buffer.advance(1);
                        self.state = self.step(byte)?;
                    }
                },
            }
        }
    }

    /// Whether all of it was taken.
    pub(super) fn is_end(&self) -> bool {
        self.state == ChunkState::End
    }

    fn step(&mut self, byte: u8) -> Result<ChunkState, Malformed> {
        Ok(match (self.state, byte) {
            (ChunkState::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < 16 => {
                let digit = (byte as char).to_digit(16).ok_or(Malformed::Chunk)?;
                ChunkState::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (ChunkState::Size { size, digits: 1.. }, b'\r') => ChunkState::SizeLf { size },
            (ChunkState::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => ChunkState::Extension { size },
            (ChunkState::Extension { size }, b'\r') => ChunkState::SizeLf { size },
            (ChunkState::Extension { size }, byte) if byte != b'\n' => {
                self.extensions += 1;
                if self.extensions > MAX_TRAILERS {
                    return Err(Malformed::Chunk);
                }
                ChunkState::Extension { size }
            }
            (ChunkState::SizeLf { size: 0 }, b'\n') => ChunkState::Trailers,
            (ChunkState::SizeLf { size }, b'\n') => ChunkState::Data(size),
            (ChunkState::DataCr, b'\r') => ChunkState::DataLf,
            (ChunkState::DataLf, b'\n') => {
                self.extensions = 0;
                ChunkState::Size { size: 0, digits: 0 }
            }
            _ => return Err(Malformed::Chunk),
        })
    }

    fn trailers(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let (length, fields) = match httparse::parse_headers(buffer, &mut fields) {
            Ok(httparse::Status::Complete(parsed)) => parsed,
            Ok(httparse::Status::Partial) if buffer.len() < MAX_TRAILERS => return Ok(Decoded::More),
            Ok(httparse::Status::Partial) | Err(_) => return Err(Malformed::Chunk),
        };
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Chunk)?;
            trailers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| Malformed::Chunk)?);
        }
        buffer.advance(length);
        self.state = ChunkState::End;
        Ok(if trailers.is_empty() { Decoded::End } else { Decoded::Trailers(trailers) })
    }
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
        let chunked = || Framing::Chunked(Chunked::default());
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

    /// Decodes `text`, given in parts of `size` bytes: the data, the trailers, and what was left.
    fn decoded(text: &[u8], size: usize) -> Result<(Vec<u8>, Option<HeaderMap>, bool), Malformed> {
        let mut decoder = Chunked::default();
        let mut buffer = BytesMut::new();
        let mut data = Vec::new();
        let mut trailers = None;
        for part in text.chunks(size) {
            buffer.extend_from_slice(part);
            loop {
                match decoder.decode(&mut buffer)? {
                    Decoded::Data(part) => data.extend_from_slice(&part),
                    Decoded::Trailers(found) => trailers = Some(found),
                    Decoded::More | Decoded::End => break,
                }
            }
        }
        Ok((data, trailers, decoder.is_end()))
    }

    #[test]
    fn chunks_are_read_however_they_arrive() {
        for text in [
            "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
            "b\r\nhello world\r\n0\r\n\r\n",
            "B;ext=\"x\"\r\nhello world\r\n000\r\n\r\n",
            "b \r\nhello world\r\n0;x\r\n\r\n",
        ] {
            for size in 1..=text.len() {
                let (data, trailers, end) = decoded(text.as_bytes(), size).unwrap();
                assert_eq!(
                    (data.as_slice(), trailers, end),
                    (&b"hello world"[..], None, true),
                    "{text} {size}"
                );
            }
        }
    }

    #[test]
    fn trailers_are_read() {
        let text = b"1\r\nx\r\n0\r\nx-sum: 42\r\nx-more: 1\r\n\r\n";
        for size in 1..=text.len() {
            let (data, trailers, end) = decoded(text, size).unwrap();
            let trailers = trailers.unwrap();
            assert_eq!((data.as_slice(), trailers.len(), end), (&b"x"[..], 2, true));
            assert_eq!(trailers["x-sum"], "42");
        }
    }

    #[test]
    fn bad_chunks_are_refused() {
        for text in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "5\nhello",
            "5\r\nhelloXX",
            "5\r\nhello\n",
            "5;x\nhello",
            "11111111111111111\r\n",
            "0\r\nbad trailer\r\n\r\n",
        ] {
            assert_eq!(decoded(text.as_bytes(), 1).unwrap_err(), Malformed::Chunk, "{text}");
        }
        let extension = format!("5;{}", "x".repeat(MAX_TRAILERS + 1));
        assert_eq!(decoded(extension.as_bytes(), 1000).unwrap_err(), Malformed::Chunk);
        let trailers = format!("0\r\nx: {}", "x".repeat(MAX_TRAILERS));
        assert_eq!(decoded(trailers.as_bytes(), 1000).unwrap_err(), Malformed::Chunk);
    }

    #[test]
    fn what_chunks_say_of_themselves_is_bounded_for_each_and_not_for_all() {
        let extension = "x".repeat(MAX_TRAILERS / 2);
        for chunk in [format!("1;{extension}\r\nx\r\n"), "1   \r\nx\r\n".repeat(MAX_TRAILERS / 2)] {
            let text = format!("{}0\r\n\r\n", chunk.repeat(3));
            let (data, _, end) = decoded(text.as_bytes(), 1000).unwrap();
            assert!(end && data.iter().all(|byte| *byte == b'x'));
        }
    }

    #[test]
    fn a_body_that_ends_early_has_not_ended() {
        let text = "5\r\nhello\r\n0\r\n\r\n";
        for end in 0..text.len() {
            assert!(!decoded(&text.as_bytes()[..end], 100).unwrap().2, "{end}");
        }
    }

    #[test]
    fn chunks_are_written_as_they_are_read() {
        let mut out = Vec::new();
        for data in [&b"hello"[..], &[b'x'; 300]] {
            encode_chunk_head(&mut out, data.len());
            out.extend_from_slice(data);
            out.extend_from_slice(b"\r\n");
        }
        let trailers = [("x-sum", "42"), ("content-length", "9"), ("host", "evil")];
        let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        encode_end(&mut out, Some(HeaderMap::from_iter(trailers)));
        let (data, trailers, end) = decoded(&out, out.len()).unwrap();
        assert_eq!((data.len(), end), (305, true));
        assert_eq!(trailers.unwrap().keys().collect::<Vec<_>>(), ["x-sum"]);
    }
}
