//! Answers as clients of HTTP/1.1 and HTTP/1.0 read them (RFC 9112): heads as bytes, and bodies on their way.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::header;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, response};
use http_body::{Body as _, Frame};

use super::super::body::ResponseBody;
use super::link::Link;
use crate::http1::{encode_chunk_head, encode_end, parse_length};

/// The part of a request that its answer depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) version: Version,
    /// The client wants to send another request over the connection.
    pub(super) keep_alive: bool,
    pub(super) takes_trailers: bool,
}

/// The length of an answer's body, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// There is none.
    Empty,
    Known(u64),
    Unknown,
}

/// The rule by which a client knows where the body of an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    Chunked {
        trailers: bool,
    },
    /// With the connection.
    Close,
}

/// An answer on its way to the client.
pub(super) struct Answer {
    /// The head; behind it, and then in its place, what frames the body, and small parts of it.
    out: Vec<u8>,
    /// Length of the part of `out` that was written.
    written: usize,
    /// A large part of the body, which follows `out`.
    data: Bytes,
    /// The end of a chunk, which follows `data`.
    tail: &'static [u8],
    framing: Framing,
    body: ResponseBody,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// More of the body is to come.
    Streaming,
    /// There is no more to come.
    Whole,
    /// It ended early. What came of it is still written.
    Broken,
}

/// The way in which an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Whole,
    /// All that came of it was written, and the client has to be told that there was more.
    Broken,
}

/// Parts of a body up to this size, bytes, are copied behind the head, for one plain write is faster than a vectored one; and how
/// much is gathered before it is written.
const COPY: usize = 4 << 10;
const GATHER: usize = 16 << 10;

/// Writes the head of an answer. Returns how its body is framed, and whether the connection takes another request.
pub(super) fn encode_head(
    out: &mut Vec<u8>,
    head: &response::Parts,
    length: Length,
    asked: &Asked,
    date: impl FnOnce() -> HeaderValue,
) -> (Framing, bool) {
    let old = asked.version == Version::HTTP_10;
    let status = head.status;
    let switches =
        status == StatusCode::SWITCHING_PROTOCOLS || asked.method == Method::CONNECT && status.is_success();
    // RFC 9112, section 6.3.
    let bodiless = switches
        || asked.method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let may_be_chunked = length == Length::Unknown && !bodiless && !old;
    out.reserve(256 + 64 * head.headers.len());
    if status == StatusCode::OK && !old {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let mut keep_alive = asked.keep_alive;
    let mut declared = None;
    let mut says_connection = false;
    let mut says_close = false;
    let mut says_date = false;
    for (name, value) in &head.headers {
        if *name == header::CONTENT_LENGTH {
            declared = parse_length(value.as_bytes());
            continue;
        } else if *name == header::CONNECTION {
            says_connection = true;
            let mut options = value.as_bytes().split(|byte| *byte == b',');
            says_close |= options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
            keep_alive &= !says_close;
        } else if *name == header::DATE {
            says_date = true;
        } else if *name == header::TRANSFER_ENCODING || *name == header::TRAILER && !may_be_chunked {
            continue;
        }
        field(out, name.as_str(), value.as_bytes());
    }
    // What is said of the length, and how the body is framed.
    let (said, framing) = match (length, declared) {
        _ if switches || status == StatusCode::NO_CONTENT => (None, Framing::Length(0)),
        (_, declared) if bodiless => (declared, Framing::Length(0)),
        (Length::Empty, _) => (Some(0), Framing::Length(0)),
        (Length::Known(length), _) | (Length::Unknown, Some(length)) => {
            (Some(length), Framing::Length(length))
        }
        (Length::Unknown, None) if old => (None, Framing::Close),
        (Length::Unknown, None) => (None, Framing::Chunked { trailers: asked.takes_trailers }),
    };
    if let Some(length) = said {
        out.extend_from_slice(b"content-length: ");
        decimal(out, length);
        out.extend_from_slice(b"\r\n");
    } else if framing == Framing::Close {
        keep_alive = false;
    } else if may_be_chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if !keep_alive && !says_close && !switches {
        // Beside what else concerns the connection, as a 426 has it.
        out.extend_from_slice(b"connection: close\r\n");
    } else if keep_alive && old && !says_connection {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if !says_date {
        field(out, "date", date().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    (framing, keep_alive)
}

/// Writes a number.
fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (number % 10) as u8;
        }
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

impl Length {
    pub(super) fn of(body: &ResponseBody) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        body.size_hint().exact().map_or(Self::Unknown, Self::Known)
    }
}

impl Answer {
    /// The answer whose head is in `out`.
    pub(super) fn new(out: Vec<u8>, framing: Framing, body: ResponseBody) -> Self {
        let over = framing == Framing::Length(0) || body.is_end_stream();
        let state = if over { State::Whole } else { State::Streaming };
        let mut answer = Self { out, written: 0, data: Bytes::new(), tail: b"", framing, body, state };
        if over {
            answer.end(None);
        }
        answer
    }

    /// The memory of the head, for the next.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.out
    }

    /// Tells if more of the body is to come.
    pub(super) fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// Writes as much as the client takes, and there is. Ready when all that will come was written.
    pub(super) fn poll(&mut self, link: &Link, cx: &mut Context<'_>) -> Poll<io::Result<Sent>> {
        loop {
            while self.state == State::Streaming
                && self.data.is_empty()
                && self.tail.is_empty()
                && self.out.len() - self.written < GATHER
            {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => self.add(frame),
                    Poll::Ready(None) => self.end(None),
                    Poll::Ready(Some(Err(_))) => self.state = State::Broken,
                    Poll::Pending => break,
                }
            }
            if self.is_flushed() {
                let flushed = link.poll_flush(cx);
                return match self.state {
                    // What is left in the socket goes on when it or the body does.
                    State::Streaming => Poll::Pending,
                    State::Whole => flushed.map_ok(|()| Sent::Whole),
                    State::Broken => flushed.map_ok(|()| Sent::Broken),
                };
            }
            let rest = self.out.get(self.written..).unwrap_or_default();
            let written = if self.data.is_empty() && self.tail.is_empty() {
                ready!(link.poll_write(&[IoSlice::new(rest)], cx))?
            } else {
                let slices = [IoSlice::new(rest), IoSlice::new(&self.data), IoSlice::new(self.tail)];
                ready!(link.poll_write(&slices, cx))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
    }

    fn is_flushed(&self) -> bool {
        self.written == self.out.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Puts a part of the body behind what is to be written.
    fn add(&mut self, frame: Frame<Bytes>) {
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end(frame.into_trailers().ok()),
        };
        let end = self.body.is_end_stream();
        if let Framing::Length(left) = &mut self.framing {
            // What is more than was said would be taken for another answer.
            data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= data.len() as u64;
        }
        if data.is_empty() {
            if end {
                self.end(None);
            }
            return;
        }
        self.make_room();
        let chunked = matches!(self.framing, Framing::Chunked { .. });
        if chunked {
            encode_chunk_head(&mut self.out, data.len());
        }
        let tail: &'static [u8] = match (chunked, end) {
            (true, true) => b"\r\n0\r\n\r\n",
            (true, false) => b"\r\n",
            (false, _) => b"",
        };
        if data.len() <= COPY {
            self.out.extend_from_slice(&data);
            self.out.extend_from_slice(tail);
        } else {
            self.data = data;
            self.tail = tail;
        }
        if end {
            self.finish();
        }
    }

    /// There is no more of the body.
    fn end(&mut self, trailers: Option<HeaderMap>) {
        if let Framing::Chunked { trailers: wanted } = self.framing {
            self.make_room();
            encode_end(&mut self.out, trailers.filter(|_| wanted));
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.state = match self.framing {
            // Less than was said.
            Framing::Length(1..) => State::Broken,
            Framing::Length(0) | Framing::Chunked { .. } | Framing::Close => State::Whole,
        };
    }

    /// Lets go of what was written.
    fn make_room(&mut self) {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
    }

    fn advance(&mut self, written: usize) {
        let of_out = written.min(self.out.len() - self.written);
        self.written += of_out;
        let of_data = (written - of_out).min(self.data.len());
        self.data.advance(of_data);
        let of_tail = (written - of_out - of_data).min(self.tail.len());
        self.tail = self.tail.get(of_tail..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn asked(method: &str, version: Version, keep_alive: bool) -> Asked {
        Asked { method: method.parse().unwrap(), version, keep_alive, takes_trailers: false }
    }

    /// The head that is written, without its first line and its date.
    fn encoded(
        status: u16,
        fields: &[(&str, &str)],
        length: Length,
        asked: &Asked,
    ) -> (String, Framing, bool) {
        let mut builder = Response::builder().status(status);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let head = builder.body(()).unwrap().into_parts().0;
        let mut out = Vec::new();
        let date = || HeaderValue::from_static("now");
        let (framing, keep_alive) = encode_head(&mut out, &head, length, asked, date);
        let text = String::from_utf8(out).unwrap();
        let (line, rest) = text.split_once("\r\n").unwrap();
        let version = if asked.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
        assert!(line.starts_with(&format!("{version} {status} ")), "{line}");
        let rest = rest.strip_suffix("date: now\r\n\r\n").expect("a date and the end");
        (rest.to_owned(), framing, keep_alive)
    }

    #[test]
    fn answers_say_where_they_end_and_whether_the_connection_goes_on() {
        let (new, old) = (Version::HTTP_11, Version::HTTP_10);
        let chunked = Framing::Chunked { trailers: false };
        for (method, version, wants, status, fields, length, expected, framing, keep_alive) in [
            (
                "GET",
                new,
                true,
                200,
                &[][..],
                Length::Known(5),
                "content-length: 5\r\n",
                Framing::Length(5),
                true,
            ),
            ("GET", new, true, 200, &[], Length::Empty, "content-length: 0\r\n", Framing::Length(0), true),
            ("GET", new, true, 200, &[], Length::Unknown, "transfer-encoding: chunked\r\n", chunked, true),
            (
                "GET",
                new,
                true,
                200,
                &[("content-length", "7")],
                Length::Unknown,
                "content-length: 7\r\n",
                Framing::Length(7),
                true,
            ),
            (
                "GET",
                new,
                false,
                200,
                &[],
                Length::Known(5),
                "content-length: 5\r\nconnection: close\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "GET",
                new,
                true,
                200,
                &[("connection", "close")],
                Length::Known(5),
                "connection: close\r\ncontent-length: 5\r\n",
                Framing::Length(5),
                false,
            ),
            (
                "GET",
                old,
                true,
                200,
                &[],
                Length::Known(5),
                "content-length: 5\r\nconnection: keep-alive\r\n",
                Framing::Length(5),
                true,
            ),
            // It ends with the connection, so the connection does not go on.
            ("GET", old, true, 200, &[], Length::Unknown, "connection: close\r\n", Framing::Close, false),
            (
                "GET",
                old,
                true,
                200,
                &[("trailer", "x")],
                Length::Unknown,
                "connection: close\r\n",
                Framing::Close,
                false,
            ),
            ("HEAD", new, true, 200, &[], Length::Empty, "", Framing::Length(0), true),
            (
                "HEAD",
                new,
                true,
                200,
                &[("content-length", "9")],
                Length::Empty,
                "content-length: 9\r\n",
                Framing::Length(0),
                true,
            ),
            ("GET", new, true, 204, &[("content-length", "9")], Length::Empty, "", Framing::Length(0), true),
            (
                "GET",
                new,
                true,
                304,
                &[("content-length", "9")],
                Length::Empty,
                "content-length: 9\r\n",
                Framing::Length(0),
                true,
            ),
            (
                "GET",
                new,
                true,
                101,
                &[("connection", "upgrade"), ("content-length", "9")],
                Length::Empty,
                "connection: upgrade\r\n",
                Framing::Length(0),
                true,
            ),
            ("CONNECT", new, true, 200, &[], Length::Empty, "", Framing::Length(0), true),
            (
                "CONNECT",
                new,
                true,
                404,
                &[],
                Length::Empty,
                "content-length: 0\r\n",
                Framing::Length(0),
                true,
            ),
        ] {
            let case = format!("{method} {version:?} {status} {fields:?} {length:?}");
            let found = encoded(status, fields, length, &asked(method, version, wants));
            assert_eq!(found, (expected.to_owned(), framing, keep_alive), "{case}");
        }
    }

    #[test]
    fn numbers_are_written() {
        for number in [0, 7, 10, 1234567890, u64::MAX] {
            let mut out = Vec::new();
            decimal(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn trailers_go_to_clients_that_take_them() {
        let mut asked = asked("GET", Version::HTTP_11, true);
        let framing = |fields: &[(&str, &str)], asked: &Asked| encoded(200, fields, Length::Unknown, asked).1;
        assert_eq!(framing(&[], &asked), Framing::Chunked { trailers: false });
        assert_eq!(framing(&[("trailer", "x")], &asked), Framing::Chunked { trailers: false });
        asked.takes_trailers = true;
        assert_eq!(framing(&[], &asked), Framing::Chunked { trailers: true });
    }
}
