//! Responses to clients of HTTP/1.1 and HTTP/1.0 (RFC 9112): encoding of heads, and writing of bodies.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, response};
use http_body::{Body as _, Frame};
use signalbox_plugin::Exchange as PluginNotes;

use super::super::response_body::ResponseBody;
use crate::wire::http1::framing::{encode_chunk_head, encode_end, parse_length};
use crate::wire::http1::link::Link;
use crate::wire::splice::Transfer;

/// The properties of a request that its response depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestFacts {
    pub(super) method: Method,
    pub(super) version: Version,
    /// True if the client allows another request on the connection.
    pub(super) keep_alive: bool,
    pub(super) takes_trailers: bool,
}

/// The length of a response body, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// There is no body.
    Empty,
    Known(u64),
    Unknown,
}

/// The framing of a response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes are still to come.
    Length(u64),
    Chunked {
        trailers: bool,
    },
    /// The body ends with the connection.
    Close,
}

/// A response that is being written to the client.
pub(super) struct ResponseWriter {
    /// The head, followed and later replaced by the body's framing and small parts of the body.
    out: Vec<u8>,
    /// The number of bytes of `out` that were written.
    written: usize,
    /// A large part of the body, which follows `out`.
    data: Bytes,
    /// The end of a chunk, which follows `data`.
    tail: &'static [u8],
    framing: Framing,
    body: ResponseBody,
    /// Carries a body of known length between two sockets without TLS.
    transfer: Transfer,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// More of the body follows.
    Streaming,
    /// The body is complete.
    Whole,
    /// The body ended early. The part that arrived is still written.
    Broken,
}

/// How the response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Whole,
    /// The part that arrived was written, and the client has to learn that there was more.
    Broken,
}

/// Parts of a body up to this size in bytes are copied behind the head, because one plain write is faster than a
/// vectored one. It is also the amount that is gathered before a write.
const COPY: usize = 4 << 10;
const GATHER: usize = 16 << 10;

/// Writes the head of a response, with the headers of `notes`. Returns how its body is framed, and whether the connection
/// accepts another request.
pub(super) fn encode_head(
    out: &mut Vec<u8>,
    head: &response::Parts,
    notes: Option<&PluginNotes>,
    length: Length,
    facts: &RequestFacts,
    date: impl FnOnce() -> HeaderValue,
) -> (Framing, bool) {
    let old = facts.version == Version::HTTP_10;
    let status = head.status;
    let switches =
        status == StatusCode::SWITCHING_PROTOCOLS || facts.method == Method::CONNECT && status.is_success();
    // RFC 9112, section 6.3.
    let bodiless = switches
        || facts.method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let may_be_chunked = length == Length::Unknown && !bodiless && !old;
    out.reserve(256 + 64 * (head.headers.len() + notes.map_or(0, |notes| notes.response_headers().len())));
    if status == StatusCode::OK && !old {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let mut keep_alive = facts.keep_alive;
    let mut declared = None;
    let mut says_connection = false;
    let mut says_close = false;
    let mut says_date = false;
    let mut add = |name: &HeaderName, value: &HeaderValue| {
        if *name == header::CONTENT_LENGTH {
            declared = parse_length(value.as_bytes());
            return;
        } else if *name == header::CONNECTION {
            says_connection = true;
            let mut options = value.as_bytes().split(|byte| *byte == b',');
            says_close |= options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
            keep_alive &= !says_close;
        } else if *name == header::DATE {
            says_date = true;
        } else if *name == header::TRANSFER_ENCODING || *name == header::TRAILER && !may_be_chunked {
            return;
        }
        field(out, name.as_str(), value.as_bytes());
    };
    for (name, value) in &head.headers {
        // The proxy decides about its connection, whatever plugins add.
        if *name == header::CONNECTION || !notes.is_some_and(|notes| notes.replaces(name)) {
            add(name, value);
        }
    }
    if let Some(notes) = notes {
        notes.response_headers().for_each(|(name, value)| add(name, value));
    }
    // The announced length, and the framing of the body.
    let (said, framing) = match (length, declared) {
        _ if switches || status == StatusCode::NO_CONTENT => (None, Framing::Length(0)),
        (_, declared) if bodiless => (declared, Framing::Length(0)),
        (Length::Empty, _) => (Some(0), Framing::Length(0)),
        (Length::Known(length), _) | (Length::Unknown, Some(length)) => {
            (Some(length), Framing::Length(length))
        }
        (Length::Unknown, None) if old => (None, Framing::Close),
        (Length::Unknown, None) => (None, Framing::Chunked { trailers: facts.takes_trailers }),
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
        // It is added beside other options of the connection, as for a 426.
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

/// Appends a decimal number.
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

impl ResponseWriter {
    /// Creates the writer of a response whose head is in `out`.
    pub(super) fn new(out: Vec<u8>, framing: Framing, body: ResponseBody) -> Self {
        let over = framing == Framing::Length(0) || body.is_end_stream();
        let state = if over { State::Whole } else { State::Streaming };
        let (data, transfer) = (Bytes::new(), Transfer::default());
        let mut answer = Self { out, written: 0, data, tail: b"", framing, body, transfer, state };
        if over {
            answer.end(None);
        }
        answer
    }

    /// Returns the head's buffer, for the next response.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.out
    }

    /// Returns true if more of the body follows.
    pub(super) fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// Writes as much as the client takes and the body provides. Ready when everything was written.
    pub(super) fn poll(&mut self, link: &Link, cx: &mut Context<'_>) -> Poll<io::Result<Sent>> {
        loop {
            if self.transfer.is_holding() {
                ready!(link.poll_drain(&mut self.transfer, cx))?;
                continue;
            }
            if self.is_flushed() && ready!(self.poll_splice(link, cx)) {
                continue;
            }
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
                    // Bytes that are buffered in the socket are flushed when the task is woken for the socket or the
                    // body.
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

    /// Takes the next part of the body without a copy. `false`: it has to be copied.
    fn poll_splice(&mut self, link: &Link, cx: &mut Context<'_>) -> Poll<bool> {
        let Framing::Length(left) = self.framing else { return Poll::Ready(false) };
        if self.state != State::Streaming || !self.transfer.pays(left) || !link.is_plain() {
            return Poll::Ready(false);
        }
        match ready!(self.body.poll_splice(&mut self.transfer, left, cx)) {
            Ok(None) => return Poll::Ready(false),
            Ok(Some(taken)) => {
                self.framing = Framing::Length(left.saturating_sub(taken as u64));
                if self.body.is_end_stream() {
                    self.finish();
                }
            }
            Err(_) => self.state = State::Broken,
        }
        Poll::Ready(true)
    }

    fn is_flushed(&self) -> bool {
        self.written == self.out.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Appends a part of the body.
    fn add(&mut self, frame: Frame<Bytes>) {
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end(frame.into_trailers().ok()),
        };
        let end = self.body.is_end_stream();
        if let Framing::Length(left) = &mut self.framing {
            // Bytes beyond the announced length would be taken for another response.
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

    /// Handles the end of the body.
    fn end(&mut self, trailers: Option<HeaderMap>) {
        if let Framing::Chunked { trailers: wanted } = self.framing {
            self.make_room();
            encode_end(&mut self.out, trailers.filter(|_| wanted));
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.state = match self.framing {
            // The body is shorter than announced.
            Framing::Length(1..) => State::Broken,
            Framing::Length(0) | Framing::Chunked { .. } | Framing::Close => State::Whole,
        };
    }

    /// Drops the bytes that were written.
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

    fn facts(method: &str, version: Version, keep_alive: bool) -> RequestFacts {
        RequestFacts { method: method.parse().unwrap(), version, keep_alive, takes_trailers: false }
    }

    /// Encodes a head, and returns it without its first line and its date.
    fn encoded(
        status: u16,
        fields: &[(&str, &str)],
        length: Length,
        facts: &RequestFacts,
    ) -> (String, Framing, bool) {
        let mut builder = Response::builder().status(status);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let head = builder.body(()).unwrap().into_parts().0;
        let mut out = Vec::new();
        let date = || HeaderValue::from_static("now");
        let (framing, keep_alive) = encode_head(&mut out, &head, None, length, facts, date);
        let text = String::from_utf8(out).unwrap();
        let (line, rest) = text.split_once("\r\n").unwrap();
        let version = if facts.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
        assert!(line.starts_with(&format!("{version} {status} ")), "{line}");
        let rest = rest.strip_suffix("date: now\r\n\r\n").expect("a date and the end");
        (rest.to_owned(), framing, keep_alive)
    }

    /// Method, version and persistence of a request; status, fields and length of its response; the encoded fields with
    /// their framing, and true if the connection accepts another request.
    type Case<'a> = (&'a str, Version, bool, u16, &'a [(&'a str, &'a str)], Length, &'a str, Framing, bool);

    fn check(cases: &[Case<'_>]) {
        for (method, version, wants, status, fields, length, expected, framing, keep_alive) in cases {
            let case = format!("{method} {version:?} {status} {fields:?} {length:?}");
            let found = encoded(*status, fields, *length, &facts(method, *version, *wants));
            assert_eq!(found, ((*expected).to_owned(), *framing, *keep_alive), "{case}");
        }
    }

    #[test]
    fn answers_say_where_they_end_and_whether_the_connection_goes_on() {
        let (new, old) = (Version::HTTP_11, Version::HTTP_10);
        let chunked = Framing::Chunked { trailers: false };
        check(&[
            ("GET", new, true, 200, &[], Length::Known(5), "content-length: 5\r\n", Framing::Length(5), true),
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
            // The body ends with the connection, so the connection is not reused.
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
        ]);
    }

    #[test]
    fn answers_that_have_no_body_end_with_their_head() {
        let new = Version::HTTP_11;
        check(&[
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
        ]);
    }

    #[test]
    fn headers_of_plugins_follow_those_of_the_answer_and_replace_them() {
        let mut notes = PluginNotes::default();
        notes.append_response_header(header::VARY, HeaderValue::from_static("origin"));
        notes.set_response_header(HeaderName::from_static("x-limit"), HeaderValue::from_static("5"));
        let own = [("x-limit", "7"), ("vary", "accept"), ("x-limit", "8"), ("x-other", "1")];
        let head = own.iter().fold(Response::builder(), |head, (name, value)| head.header(*name, *value));
        let head = head.body(()).unwrap().into_parts().0;
        let (mut out, facts) = (Vec::new(), facts("GET", Version::HTTP_11, true));
        encode_head(&mut out, &head, Some(&notes), Length::Empty, &facts, || HeaderValue::from_static("now"));
        let expected = "HTTP/1.1 200 OK\r\nvary: accept\r\nx-other: 1\r\nvary: origin\r\nx-limit: 5\r\ncontent-length: 0\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}date: now\r\n\r\n"));
    }

    #[test]
    fn no_plugin_keeps_a_connection_open_that_the_proxy_closes() {
        let mut notes = PluginNotes::default();
        notes.set_response_header(header::CONNECTION, HeaderValue::from_static("keep-alive"));
        let head = Response::builder().header("connection", "close").body(()).unwrap().into_parts().0;
        let (mut out, facts) = (Vec::new(), facts("GET", Version::HTTP_11, true));
        let date = || HeaderValue::from_static("now");
        let (_, keep_alive) = encode_head(&mut out, &head, Some(&notes), Length::Empty, &facts, date);
        assert!(!keep_alive);
        assert!(String::from_utf8(out).unwrap().contains("connection: close"));
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
        let mut facts = facts("GET", Version::HTTP_11, true);
        let framing =
            |fields: &[(&str, &str)], facts: &RequestFacts| encoded(200, fields, Length::Unknown, facts).1;
        assert_eq!(framing(&[], &facts), Framing::Chunked { trailers: false });
        assert_eq!(framing(&[("trailer", "x")], &facts), Framing::Chunked { trailers: false });
        facts.takes_trailers = true;
        assert_eq!(framing(&[], &facts), Framing::Chunked { trailers: true });
    }
}
