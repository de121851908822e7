//! The parts of HTTP/1.1 that both sides share (RFC 9112): lengths, chunked bodies, and fields as bytes.
//!
//! These are functions over values; the connections of clients and targets move the bytes.

use std::io::Write as _;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

use crate::core::fields::{remove_all_claims, remove_forbidden_trailers};

/// Decodes a chunked body (RFC 9112, section 7.1).
#[derive(Debug, PartialEq, Eq)]
pub struct Chunked {
    state: State,
    /// The number of bytes of extensions since the last chunk.
    extensions: usize,
    peer: Peer,
}

/// The sender of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    /// A client has to follow the RFC exactly, because a server before the proxy may have read it differently.
    Client,
    /// Old servers pad chunk sizes with blanks, and extensions have no effect.
    Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the chunk size; `digits` is the number of its digits so far.
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        part: Extension,
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

/// The position of the next byte in the extensions of a chunk (RFC 9112, section 7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    /// In blanks before a semicolon.
    BeforeSemicolon,
    BeforeName,
    Name,
    /// In blanks after a name.
    AfterName,
    BeforeValue,
    Value,
    Quoted,
    /// After a backslash in a quoted string.
    Escaped,
    /// After the closing quote.
    AfterQuoted,
    /// Anything is accepted, from a target.
    Any,
}

/// The result of [`Chunked::decode`].
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// The buffer has too few bytes.
    More,
}

/// A chunk, or the end of the body, violates RFC 9112.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a chunk cannot be read")]
pub struct BadChunk;

/// The maximum size of trailers, and of the extensions of one chunk, in bytes.
const MAX_TRAILERS: usize = 16 << 10;
const MAX_TRAILER_FIELDS: usize = 128;

/// If one of these bits is set, another digit would make the size 2⁶³ or more.
const SIZE_OVERFLOW: u64 = 0xf800_0000_0000_0000;

impl Chunked {
    /// Creates a decoder for the body of a client's request.
    pub fn from_client() -> Self {
        Self::new(Peer::Client)
    }

    /// Creates a decoder for the body of a target's response.
    pub fn from_target() -> Self {
        Self::new(Peer::Target)
    }

    fn new(peer: Peer) -> Self {
        Self { state: State::Size { size: 0, digits: 0 }, extensions: 0, peer }
    }

    /// Decodes the next part of a body from `buffer`.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, BadChunk> {
        loop {
            match self.state {
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Decoded::More);
                    }
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let data = buffer.split_to(length).freeze();
                    let left = left - length as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                    // The end is usually in the buffer already; the caller then learns at once that the body is
                    // complete.
                    if left == 0 && buffer.starts_with(b"\r\n0\r\n\r\n") {
                        buffer.advance(7);
                        self.state = State::End;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::Trailers => return self.trailers(buffer),
                State::End => return Ok(Decoded::End),
                _ => {
                    if !self.read_size(buffer)? {
                        return Ok(Decoded::More);
                    }
                }
            }
        }
    }

    /// Decodes up to the data of the next chunk, or to the trailers. Returns `false` if the buffer has too few bytes.
    pub fn read_size(&mut self, buffer: &mut BytesMut) -> Result<bool, BadChunk> {
        while !matches!(self.state, State::Data(_) | State::Trailers | State::End) {
            let Some(byte) = buffer.first().copied() else { return Ok(false) };
            buffer.advance(1);
            self.state = self.step(byte)?;
        }
        Ok(true)
    }

    /// Returns true if the whole body was decoded.
    pub fn is_end(&self) -> bool {
        self.state == State::End
    }

    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < 16 => {
                if size & SIZE_OVERFLOW != 0 {
                    return Err(BadChunk);
                }
                let digit = (byte as char).to_digit(16).ok_or(BadChunk)?;
                State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { size, digits: 1.. }, b'\r') => State::SizeLf { size },
            (State::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => {
                let before = match self.peer {
                    Peer::Client => Extension::BeforeSemicolon,
                    Peer::Target => Extension::Any,
                };
                State::Extension { size, part: before.next(byte).ok_or(BadChunk)? }
            }
            (State::Extension { size, part }, b'\r') if part.may_end() => State::SizeLf { size },
            (State::Extension { size, part }, byte) => {
                self.extensions += 1;
                if self.extensions > MAX_TRAILERS {
                    return Err(BadChunk);
                }
                State::Extension { size, part: part.next(byte).ok_or(BadChunk)? }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::Trailers,
            (State::SizeLf { size }, b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.extensions = 0;
                State::Size { size: 0, digits: 0 }
            }
            _ => return Err(BadChunk),
        })
    }

    fn trailers(&mut self, buffer: &mut BytesMut) -> Result<Decoded, BadChunk> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
        let (length, fields) = match httparse::parse_headers(buffer, &mut fields) {
            Ok(httparse::Status::Complete(parsed)) => parsed,
            Ok(httparse::Status::Partial) if buffer.len() < MAX_TRAILERS => return Ok(Decoded::More),
            Ok(httparse::Status::Partial) | Err(_) => return Err(BadChunk),
        };
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadChunk)?;
            trailers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| BadChunk)?);
        }
        buffer.advance(length);
        self.state = State::End;
        Ok(if trailers.is_empty() { Decoded::End } else { Decoded::Trailers(trailers) })
    }
}

impl Extension {
    /// Returns the position after `byte`; `None` if the byte is not allowed here.
    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Any, b'\t' | b' '..=b'~' | 0x80..) => Self::Any,
            (Self::Quoted, b'"') => Self::AfterQuoted,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Self::Quoted,
            (
                Self::BeforeSemicolon | Self::Name | Self::AfterName | Self::Value | Self::AfterQuoted,
                b';',
            ) => Self::BeforeName,
            (Self::BeforeSemicolon | Self::Value | Self::AfterQuoted, b' ' | b'\t') => Self::BeforeSemicolon,
            (Self::BeforeName | Self::BeforeValue, b' ' | b'\t') => self,
            (Self::Name | Self::AfterName, b' ' | b'\t') => Self::AfterName,
            (Self::Name | Self::AfterName, b'=') => Self::BeforeValue,
            (Self::BeforeValue, b'"') => Self::Quoted,
            (Self::BeforeName | Self::Name, byte) if is_token(byte) => Self::Name,
            (Self::BeforeValue | Self::Value, byte) if is_token(byte) => Self::Value,
            _ => return None,
        })
    }

    /// Returns true if the line may end here.
    fn may_end(self) -> bool {
        matches!(self, Self::Name | Self::Value | Self::AfterQuoted | Self::Any)
    }
}

/// True for the characters of a token: RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Parses one `Content-Length`: digits, and a number below 2⁶³, so that implementations with signed numbers read the
/// same.
pub fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length = value.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    (length <= i64::MAX as u64).then_some(length)
}

/// Writes the size line of a chunk of `length` bytes. `\r\n` follows the chunk.
pub fn encode_chunk_head(out: &mut Vec<u8>, length: usize) {
    // Writing to a vector does not fail.
    let _ = write!(out, "{length:x}\r\n");
}

/// Writes the end of a chunked body.
pub fn encode_end(out: &mut Vec<u8>, trailers: Option<HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(mut trailers) = trailers {
        remove_unfit_trailers(&mut trailers);
        encode_fields(out, &trailers);
    }
    out.extend_from_slice(b"\r\n");
}

/// Removes from trailers the fields that are forbidden there, and those that only the proxy may set.
pub fn remove_unfit_trailers(trailers: &mut HeaderMap) {
    remove_forbidden_trailers(trailers);
    remove_all_claims(trailers);
}

/// Writes header fields as lines.
pub fn encode_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_digits_below_two_to_the_63rd() {
        for (value, expected) in [
            ("0", Some(0)),
            ("05", Some(5)),
            ("9223372036854775807", Some(i64::MAX as u64)),
            ("9223372036854775808", None),
            ("18446744073709551616", None),
            ("00000000000000000005", None),
            ("", None),
            ("+5", None),
            ("5,5", None),
        ] {
            assert_eq!(parse_length(value.as_bytes()), expected, "{value}");
        }
    }

    /// Decodes `text`, given in parts of `size` bytes; returns the data, the trailers, and whether bytes were left.
    fn decoded(text: &[u8], size: usize) -> Result<(Vec<u8>, Option<HeaderMap>, bool), BadChunk> {
        decoded_from(Chunked::from_target(), text, size)
    }

    fn decoded_from(
        mut decoder: Chunked,
        text: &[u8],
        size: usize,
    ) -> Result<(Vec<u8>, Option<HeaderMap>, bool), BadChunk> {
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
            "8000000000000000\r\n",
            "ffffffffffffffff\r\n",
            "5;\0\r\nhello",
            "5\rhello",
            "0\r\nbad trailer\r\n\r\n",
        ] {
            assert_eq!(decoded(text.as_bytes(), 1).unwrap_err(), BadChunk, "{text}");
        }
        let extension = format!("5;{}", "x".repeat(MAX_TRAILERS + 1));
        assert_eq!(decoded(extension.as_bytes(), 1000).unwrap_err(), BadChunk);
        let trailers = format!("0\r\nx: {}", "x".repeat(MAX_TRAILERS));
        assert_eq!(decoded(trailers.as_bytes(), 1000).unwrap_err(), BadChunk);
    }

    #[test]
    fn extensions_of_clients_are_what_the_rfc_says() {
        let decode = |extension: &str, size: usize| {
            let text = format!("5{extension}\r\nhello\r\n0{extension}\r\n\r\n");
            decoded_from(Chunked::from_client(), text.as_bytes(), size).map(|(data, _, end)| (data, end))
        };
        for extension in [
            "",
            ";a",
            ";a=b",
            " ; a = b\t;c",
            ";a=\"\"",
            ";a=\"b \t;\u{e4}\\\"\"",
            ";a=\"\\\\\";b",
            ";!#$%&'*+-.^_`|~=9",
        ] {
            for size in [1, 2, 100] {
                assert_eq!(decode(extension, size), Ok((b"hello".to_vec(), true)), "{extension:?} {size}");
            }
        }
        for extension in [
            " ",
            "\t",
            ";",
            ";;a",
            "; ",
            ";a ",
            ";a=",
            ";a=b ",
            ";a=b c",
            ";a b",
            ";=b",
            ";a=\"b",
            ";a=\"b\\\"",
            ";a=\"b\"c",
            ";a=b\"c\"",
            ";a\0",
            ";a=\0",
            ";a=\"\0\"",
            ";a=\"\\\0\"",
            ";\x0ba",
            ";a\x0b",
            ";a\u{85}",
            ";\u{e4}",
            ";a=\"\x7f\"",
            ";a\rb",
            ";a\nb",
            "\r",
        ] {
            assert_eq!(decode(extension, 1), Err(BadChunk), "{extension:?}");
        }
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
