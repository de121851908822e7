//! Requests that could be read in two ways: each is refused, or reaches the target in one reading only.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Client, Harness, block_on, forward_to};
use crate::wire::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, Recorder, frame, get,
    literals,
};

/// The result of a request: the status of the first response, and the requests at the target with their bodies.
type Outcome = (u16, &'static [(&'static str, &'static str)]);

const BAD: Outcome = (400, &[]);
/// One request without a body, followed by another.
const GET_AND_NEXT: Outcome = (200, &[("GET /", ""), ("GET /next", "")]);
/// One request with a body, followed by another.
const POST_AND_NEXT: Outcome = (200, &[("POST /", "hello"), ("GET /next", "")]);
/// One request with a body, after which the connection is closed.
const POST_AND_CLOSE: Outcome = (200, &[("POST /", "hello")]);

/// The request that follows each of the table's requests on the same connection.
const NEXT: &str = "GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// The request that each attack tries to smuggle in.
const EVIL: &str = "GET /evil HTTP/1.1\r\nhost: a\r\n\r\n";

const TE: &str = "transfer-encoding: chunked";
const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

/// Every HTTP/1.1 request of the tables below, with its expected result.
fn http1() -> Vec<(String, Outcome)> {
    [two_framings(), codings(), lengths(), chunks(), heads(), unread_bodies()].concat()
}

/// Two lengths: RFC 9112, sections 6.1 and 6.3.
fn two_framings() -> Vec<(String, Outcome)> {
    let both = |first: &str, second: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nhost: a\r\n{first}\r\n{second}\r\n\r\n{body}")
    };
    vec![
        (both("content-length: 5", TE, &format!("{CHUNKS}{EVIL}")), POST_AND_CLOSE),
        (both(TE, "content-length: 5", &format!("{CHUNKS}{EVIL}")), POST_AND_CLOSE),
        (both(TE, "content-length: 100", CHUNKS), POST_AND_CLOSE),
        (both("content-length: 0", TE, CHUNKS), POST_AND_CLOSE),
    ]
}

/// Codings that some servers read and others do not.
fn codings() -> Vec<(String, Outcome)> {
    let chunked = |coding: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{coding}\r\n\r\n{CHUNKS}");
    let mut cases = vec![(chunked(TE).replace("HTTP/1.1", "HTTP/1.0"), BAD)];
    for (coding, outcome) in [
        ("Transfer-Encoding: CHUNKED", POST_AND_NEXT),
        ("tRANSFER-eNCODING:cHuNkEd", POST_AND_NEXT),
        ("transfer-encoding: \t chunked \t", POST_AND_NEXT),
        ("transfer-encoding: chunked, identity", BAD),
        ("transfer-encoding: identity, chunked", BAD),
        ("transfer-encoding: gzip, chunked", BAD),
        ("transfer-encoding: chunked, chunked", BAD),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", BAD),
        ("transfer-encoding: identity\r\ntransfer-encoding: chunked", BAD),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity", BAD),
        ("transfer-encoding: chunked\r\ntransfer-encoding: x", BAD),
        ("transfer-encoding: x\r\ntransfer-encoding: chunked", BAD),
        ("transfer-encoding: xchunked", BAD),
        ("transfer-encoding: chunkedx", BAD),
        ("transfer-encoding: chunked,", BAD),
        ("transfer-encoding: ,chunked", BAD),
        ("transfer-encoding: \"chunked\"", BAD),
        ("transfer-encoding: chunked;q=1", BAD),
        ("transfer-encoding: identity", BAD),
        ("transfer-encoding:", BAD),
        ("transfer-encoding: \x0bchunked", BAD),
        ("transfer-encoding: chunked\x0c", BAD),
        ("transfer-encoding: chunked\0", BAD),
        ("transfer-encoding : chunked", BAD),
        ("transfer-encoding\t: chunked", BAD),
        ("transfer-encoding:\r\n chunked", BAD),
        ("x: y\r\n transfer-encoding: chunked", BAD),
        ("x: y\rtransfer-encoding: chunked", BAD),
        ("\rtransfer-encoding: chunked", BAD),
        // It is read as two lines, and sent on as two.
        ("x: y\ntransfer-encoding: chunked", POST_AND_NEXT),
        // `Connection` cannot have the framing removed.
        ("connection: transfer-encoding\r\ntransfer-encoding: chunked", POST_AND_NEXT),
    ] {
        cases.push((chunked(coding), outcome));
    }
    cases
}

fn lengths() -> Vec<(String, Outcome)> {
    let length = |lines: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\nhello");
    let cases = [
        ("content-length: 5", POST_AND_NEXT),
        ("content-length:5", POST_AND_NEXT),
        ("content-length: \t5\t", POST_AND_NEXT),
        // Two equal values count as one (RFC 9110, section 8.6); the target gets one.
        ("content-length: 5\r\ncontent-length: 5", POST_AND_NEXT),
        ("connection: content-length\r\ncontent-length: 5", POST_AND_NEXT),
        ("content-length: 05", POST_AND_NEXT),
        ("content-length: 5\r\ncontent-length: 6", BAD),
        ("content-length: 0\r\ncontent-length: 5", BAD),
        ("content-length: 5, 5", BAD),
        ("content-length: 5, 6", BAD),
        ("content-length: 5,", BAD),
        ("content-length: +5", BAD),
        ("content-length: -5", BAD),
        ("content-length: -0", BAD),
        ("content-length: 0x5", BAD),
        ("content-length: 5e0", BAD),
        ("content-length: 5.0", BAD),
        ("content-length: 5 5", BAD),
        ("content-length: 5;", BAD),
        ("content-length:", BAD),
        ("content-length: five", BAD),
        ("content-length: 9223372036854775808", BAD),
        ("content-length: 18446744073709551615", BAD),
        ("content-length: 18446744073709551616", BAD),
        ("content-length: 18446744073709551621", BAD),
        ("content-length: 99999999999999999999999999", BAD),
        ("content-length: 5\x0b", BAD),
        ("content-length : 5", BAD),
        ("content-length: 5\r\n 0", BAD),
        ("content-length: \u{ff15}", BAD),
    ];
    cases.map(|(lines, outcome)| (length(lines), outcome)).to_vec()
}

/// Chunks: RFC 9112, section 7.1. The error is found when the head has been sent: the target gets no complete request.
fn chunks() -> Vec<(String, Outcome)> {
    let body = |chunks: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{TE}\r\n\r\n{chunks}");
    let cases = [
        ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", POST_AND_NEXT),
        ("05\r\nhello\r\n00\r\n\r\n", POST_AND_NEXT),
        ("5;name=value\r\nhello\r\n0;x\r\n\r\n", POST_AND_NEXT),
        ("5 ; name = \"va\\\"lue\";x\r\nhello\r\n0\r\n\r\n", POST_AND_NEXT),
        ("5 \r\nhello\r\n0\r\n\r\n", BAD),
        ("5\t\r\nhello\r\n0\r\n\r\n", BAD),
        ("5;\r\nhello\r\n0\r\n\r\n", BAD),
        ("5;a\0\r\nhello\r\n0\r\n\r\n", BAD),
        ("5;\x0ba\r\nhello\r\n0\r\n\r\n", BAD),
        ("5;a\u{85}\r\nhello\r\n0\r\n\r\n", BAD),
        ("5;a=\"b\r\nhello\r\n0\r\n\r\n", BAD),
        ("5;a=\"b\0\"\r\nhello\r\n0\r\n\r\n", BAD),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", BAD),
        ("5\r\nhello\r\n0;a=\"\r\n\r\n", BAD),
        ("8000000000000000\r\nhello\r\n0\r\n\r\n", BAD),
        ("ffffffffffffffff\r\nhello\r\n0\r\n\r\n", BAD),
        ("fffffffffffffffff\r\nhello\r\n0\r\n\r\n", BAD),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", BAD),
        ("0x5\r\nhello\r\n0\r\n\r\n", BAD),
        ("-5\r\nhello\r\n0\r\n\r\n", BAD),
        ("+5\r\nhello\r\n0\r\n\r\n", BAD),
        (" 5\r\nhello\r\n0\r\n\r\n", BAD),
        ("5 0\r\nhello\r\n0\r\n\r\n", BAD),
        ("5\nhello\r\n0\r\n\r\n", BAD),
        ("5\rhello\r\n0\r\n\r\n", BAD),
        ("\r\n5\r\nhello\r\n0\r\n\r\n", BAD),
        (";x\r\nhello\r\n0\r\n\r\n", BAD),
        ("g\r\nhello\r\n0\r\n\r\n", BAD),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", BAD),
        ("5\r\nhello0\r\n\r\n", BAD),
        ("5\r\nhello\n0\r\n\r\n", BAD),
        ("5\r\nhello!\r\n0\r\n\r\n", BAD),
        ("6\r\nhello\r\n0\r\n\r\n", BAD),
        ("5\r\nhello\r\n0\n\r\n", BAD),
        ("5\r\nhello\r\n0\r\nx y\r\n\r\n", BAD),
        ("5\r\nhello\r\n0\r\nx: \0\r\n\r\n", BAD),
        ("5\r\nhello\r\n0\r\n x: y\r\n\r\n", BAD),
        // Trailers pass, except those that frame, route or authorize.
        ("5\r\nhello\r\n0\r\nx: y\r\n\r\n", (200, &[("POST /", "hello|x: y"), ("GET /next", "")])),
        (
            "5\r\nhello\r\n0\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\nhost: b\r\nauthorization: x\r\n\r\n",
            POST_AND_NEXT,
        ),
    ];
    cases.map(|(chunks, outcome)| (body(chunks), outcome)).to_vec()
}

/// The request line and the fields.
fn heads() -> Vec<(String, Outcome)> {
    let post = |head: &str| format!("{head}\r\ncontent-length: 5\r\n\r\nhello");
    let head = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n");
    vec![
        ("GET / HTTP/1.1\nhost: a\n\n".to_owned(), GET_AND_NEXT),
        ("\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), GET_AND_NEXT),
        (post("GET / HTTP/1.1\r\nhost: a"), (200, &[("GET /", "hello"), ("GET /next", "")])),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n".to_owned(), (200, &[("GET /", "")])),
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), (200, &[("GET /", "")])),
        (" GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET / HTTP/1.1 \r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET / x HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET / HTTP/1.1\rhost: a\r\n\r\n".to_owned(), BAD),
        ("GET /\r HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("G\0T / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET /\r\n\r\n".to_owned(), BAD),
        ("GET / HTTP/9.9\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET / http/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET a HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET * HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET ?x HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("GET #x HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), BAD),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n".to_owned(), (501, &[])),
        (head("\u{20}host: a"), BAD),
        (head("host: a\r\nx y: z"), BAD),
        (head("host: a\r\n: z"), BAD),
        (head("host: a\r\nx\0: z"), BAD),
        (head("host: a\r\nx(: z"), BAD),
        (head("host: a\r\nx"), BAD),
        (head("host: a\r\nx: \0"), BAD),
        (head("host: a\r\nx: y\rz"), BAD),
        (head("host: a\r\nx: \x7f"), BAD),
        (head("host: a\r\nx : y"), BAD),
        (head("host: a\r\nx: y\r\n z"), BAD),
        (head("host: a\r\nx: \u{e4}"), GET_AND_NEXT),
        // Hosts: RFC 9112, section 3.2.
        (head("x: y"), BAD),
        (head("host: a\r\nhost: a"), BAD),
        (head("host: a\r\nhost : b"), BAD),
        (head("host: user@a"), BAD),
        (head("host: a/b"), BAD),
        (head("host: a\\b"), BAD),
        (head("host: a b"), BAD),
        (head("host: a:80:80"), BAD),
        (head("host: a:8x"), BAD),
        (head("host: [::1"), BAD),
        (head("host: [::1]:80"), GET_AND_NEXT),
        ("GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), GET_AND_NEXT),
        ("GET http://b/ HTTP/1.1\r\n\r\n".to_owned(), BAD),
        ("GET http://b/ HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(), BAD),
        ("GET http://user@b/ HTTP/1.1\r\nhost: b\r\n\r\n".to_owned(), BAD),
        ("GET http:/// HTTP/1.1\r\nhost: b\r\n\r\n".to_owned(), BAD),
        ("GET http://b HTTP/1.1\r\nhost: b\r\n\r\n".to_owned(), GET_AND_NEXT),
    ]
}

/// The body of a request with a local reply is not read as a request.
fn unread_bodies() -> Vec<(String, Outcome)> {
    vec![
        (
            format!("POST /own HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{EVIL}", EVIL.len()),
            (200, &[("GET /next", "")]),
        ),
        (
            format!("POST /nowhere HTTP/1.1\r\nhost: b\r\ncontent-length: {}\r\n\r\n{EVIL}", EVIL.len()),
            (404, &[("GET /next", "")]),
        ),
    ]
}

#[test]
fn http1_that_can_be_read_in_two_ways_is_refused_or_harmless() {
    block_on(async {
        let recorder = Recorder::start();
        let document = forward_to(recorder.backend.address)
            .replace("match: {", "match: {headers: [{name: host, exact: b, invert: true}], ");
        let own = "{name: own, priority: 1, match: {paths: [{exact: /own}]}, respond: {body: own}}";
        let absolute =
            "{name: b, match: {hosts: [b], paths: [{exact: /}]}, forward: {upstreams: [{name: u}]}}";
        let harness =
            Harness::start(&document.replace("routes: [", &format!("routes: [{own}, {absolute}, ")));
        let mut wrong = Vec::new();
        for (request, (status, targets)) in http1() {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            // The request may be answered, and the connection closed, before all is sent.
            let _ = stream.write_all(format!("{request}{NEXT}").as_bytes()).await;
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            let closed = tokio::time::timeout(Duration::from_secs(3), read).await.is_ok();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let got: u16 = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
            // It is sent over the connections that the previous requests left open.
            let after = Client::connect(harness.address()).await.get("/after").await;
            let mut seen = recorder.take();
            let last = seen.pop().map(|seen| seen.line);
            let seen: Vec<_> = seen.iter().map(|seen| (&*seen.line, &*seen.body)).collect();
            let fine = closed && got == status && seen == targets;
            if !fine || (after.status, last.as_deref()) != (200, Some("GET /after")) {
                let after = (after.status, last);
                wrong.push(format!("{request:?}\n  expected {status} {targets:?}\n  got {got} {seen:?}, then {after:?}, closed: {closed}"));
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), http1().len(), wrong.join("\n"));
    });
}

/// The result of an HTTP/2 request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Http2 {
    /// 400, a reset stream, or the end of the connection; the target sees nothing.
    Refused,
    /// The target sees it once, with this request target and body.
    Passes(&'static str, &'static str),
}

/// The fields of a request's head, and its body.
type Http2Request = (Vec<(Vec<u8>, Vec<u8>)>, Option<&'static str>);

/// Every request over HTTP/2 without a body, with its expected result.
fn http2_heads() -> Vec<(Http2Request, Http2)> {
    use Http2::{Passes, Refused};
    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    fn with(more: &[(&str, &str)]) -> Http2Request {
        (GET.iter().chain(more).map(bytes).collect(), None)
    }
    /// `GET` with another value of a pseudo-header.
    fn other(name: &str, value: &str) -> Http2Request {
        let field =
            |(known, before): (&str, &str)| bytes(&(known, if known == name { value } else { before }));
        (GET.map(field).to_vec(), None)
    }
    /// `GET` without a pseudo-header.
    fn without(name: &str) -> Http2Request {
        (GET.iter().filter(|(known, _)| *known != name).map(bytes).collect(), None)
    }
    let passes = Passes("GET /", "");
    let mut cases = vec![
        (with(&[]), passes),
        (without(":method"), Refused),
        (without(":scheme"), Refused),
        (without(":path"), Refused),
        (without(":authority"), Refused),
        (other(":path", ""), Refused),
        (other(":path", "x"), Refused),
        (other(":path", "*"), Refused),
        (other(":path", "http://b/"), Refused),
        (other(":path", "/ HTTP/1.1\r\nhost: b\r\n\r\nGET /evil"), Refused),
        (other(":path", "/\r\nx: y"), Refused),
        (other(":path", "/ x"), Refused),
        (other(":path", "/\0"), Refused),
        (other(":method", "GET /evil HTTP/1.1\r\nhost: a\r\n\r\nGET"), Refused),
        (other(":method", "G T"), Refused),
        (other(":method", ""), Refused),
        (other(":scheme", "http://a/evil?"), Refused),
        (other(":scheme", "ht tp"), Refused),
        (other(":authority", "a\r\nx: y"), Refused),
        (other(":authority", "a b"), Refused),
        (other(":authority", "user@a"), Refused),
        (other(":authority", "a/evil"), Refused),
        (other(":authority", "a:80:80"), Refused),
        (other(":authority", ""), Refused),
    ];
    for (more, outcome) in [
        (&[("host", "a")][..], passes),
        (&[("host", "b")], Refused),
        (&[("host", "a"), ("host", "a")], Refused),
        (&[(":path", "/evil")], Refused),
        (&[(":method", "POST")], Refused),
        (&[(":unknown", "x")], Refused),
        (&[(":status", "200")], Refused),
        (&[(":protocol", "websocket")], Refused),
        (&[("x", "y"), (":path", "/evil")], Refused),
        (&[("X-Upper", "y")], Refused),
        (&[("connection", "keep-alive")], Refused),
        (&[("connection", "x")], Refused),
        (&[("keep-alive", "timeout=1")], Refused),
        (&[("proxy-connection", "keep-alive")], Refused),
        (&[("transfer-encoding", "chunked")], Refused),
        (&[("upgrade", "h2c")], Refused),
        (&[("te", "trailers")], passes),
        (&[("te", "gzip")], Refused),
        (&[("te", "trailers, deflate")], Refused),
        (&[("x", "y\r\nhost: b")], Refused),
        (&[("x", "y\nz")], Refused),
        (&[("x", "y\rz")], Refused),
        (&[("x", "y\0z")], Refused),
        (&[("x\r\nhost", "b")], Refused),
        (&[("x: y\r\nz", "b")], Refused),
        (&[("x y", "b")], Refused),
        (&[("", "b")], Refused),
        (&[("content-length", "0")], passes),
        (&[("content-length", "5")], Refused),
    ] {
        cases.push((with(more), outcome));
    }
    cases
}

/// Every request over HTTP/2 with a body, with its expected result.
fn http2_bodies() -> Vec<(Http2Request, Http2)> {
    use Http2::{Passes, Refused};
    const POST: [(&str, &str); 4] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let with =
        |more: &[(&str, &str)]| (POST.iter().chain(more).map(bytes).collect::<Vec<_>>(), Some("hello"));
    let cases = [
        (&[][..], Passes("POST /", "hello")),
        (&[("content-length", "5")], Passes("POST /", "hello")),
        (&[("content-length", "4")], Refused),
        (&[("content-length", "6")], Refused),
        (&[("content-length", "0")], Refused),
        (&[("content-length", "5"), ("content-length", "5")], Refused),
        (&[("content-length", "5"), ("content-length", "6")], Refused),
        (&[("content-length", "5, 5")], Refused),
        (&[("content-length", "+5")], Refused),
        (&[("content-length", "-1")], Refused),
        (&[("content-length", "0x5")], Refused),
        (&[("content-length", "18446744073709551621")], Refused),
        (&[("content-length", "")], Refused),
    ];
    cases.map(|(more, outcome)| (with(more), outcome)).to_vec()
}

fn bytes((name, value): &(&str, &str)) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

#[test]
fn http2_that_http1_would_read_in_two_ways_is_refused_or_harmless() {
    use Http2::{Passes, Refused};
    let cases = [http2_heads(), http2_bodies()].concat();
    block_on(async {
        let recorder = Recorder::start();
        let harness = Harness::start(&forward_to(recorder.backend.address));
        let mut wrong = Vec::new();
        for ((fields, body), expected) in &cases {
            let mut frames = Frames::connect(harness.address(), &[]).await;
            let end = if body.is_some() { 0 } else { END_STREAM };
            // Head and body arrive together: a body that contradicts its head is to be seen before the head is sent on.
            let mut message = frame(HEADERS, END_HEADERS | end, 1, &literals(fields));
            if let Some(body) = body {
                message.extend_from_slice(&frame(DATA, END_STREAM, 1, body.as_bytes()));
            }
            frames.send(&message).await;
            let passed = outcome(&mut frames, 1).await;
            // Afterwards the connection is usable, or closed.
            frames.send(&get(3)).await;
            let next = outcome(&mut frames, 3).await;
            let after = Client::connect(harness.address()).await.get("/after").await;
            let mut seen: Vec<_> = recorder.take().into_iter().map(|seen| (seen.line, seen.body)).collect();
            assert_eq!(seen.pop(), Some(("GET /after".to_owned(), String::new())), "{fields:?}");
            assert_eq!(after.status, 200);
            let mut wanted = Vec::new();
            if let Passes(line, body) = expected {
                wanted.push(((*line).to_owned(), (*body).to_owned()));
            }
            if next == Some(200) {
                wanted.push(("GET /".to_owned(), String::new()));
            }
            let fine = match expected {
                Passes(..) => passed == Some(200) && next == Some(200),
                Refused => passed != Some(200) && matches!(next, None | Some(200)),
            };
            if !fine || seen != wanted {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| {
                        [String::from_utf8_lossy(name), String::from_utf8_lossy(value)].join(": ")
                    })
                    .collect();
                wrong.push(format!(
                    "{fields:?} {body:?}\n  expected {expected:?}\n  got {passed:?} {seen:?}, then {next:?}"
                ));
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    });
}

/// The status of the response on a stream if it is 200 or 400; `None`: there is none.
async fn outcome(frames: &mut Frames, stream: u32) -> Option<u16> {
    let mut status = None;
    loop {
        let frame = frames.next_within(Duration::from_secs(3)).await?;
        match frame.kind {
            GOAWAY => return status,
            RST_STREAM if frame.stream == stream => return status,
            // The static table has these statuses (RFC 7541, appendix A).
            HEADERS if frame.stream == stream && status.is_none() => {
                status = match frame.payload.first() {
                    Some(0x88) => Some(200),
                    Some(0x8c) => Some(400),
                    _ => Some(0),
                };
                if frame.flags & END_STREAM != 0 {
                    return status;
                }
            }
            HEADERS | DATA if frame.stream == stream && frame.flags & END_STREAM != 0 => return status,
            _ => {}
        }
    }
}

#[test]
fn http2_trailers_frame_and_route_nothing() {
    block_on(async {
        let recorder = Recorder::start();
        let harness = Harness::start(&forward_to(recorder.backend.address));
        let post = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        for (trailers, expected) in [
            (&[("x", "y")][..], Some("hello|x: y")),
            (
                &[("content-length", "9"), ("host", "b"), ("authorization", "x"), ("x", "y")],
                Some("hello|x: y"),
            ),
            (&[("transfer-encoding", "chunked")], None),
            (&[("connection", "close")], None),
            // h2 omits it.
            (&[(":path", "/evil")], Some("hello")),
            (&[("x", "y\r\n\r\nGET /evil HTTP/1.1")], None),
        ] {
            let mut frames = Frames::connect(harness.address(), &[]).await;
            frames.send(&frame(HEADERS, END_HEADERS, 1, &literals(&post))).await;
            frames.send(&frame(DATA, 0, 1, b"hello")).await;
            // A block may be split into two frames.
            let block = literals(trailers);
            let (first, rest) = block.split_at(3);
            frames.send(&frame(HEADERS, END_STREAM, 1, first)).await;
            frames.send(&frame(CONTINUATION, END_HEADERS, 1, rest)).await;
            let passed = outcome(&mut frames, 1).await;
            assert_eq!(passed == Some(200), expected.is_some(), "{trailers:?}");
            assert_eq!(Client::connect(harness.address()).await.get("/after").await.status, 200);
            let seen: Vec<_> = recorder.take().into_iter().map(|seen| (seen.line, seen.body)).collect();
            let after = ("GET /after".to_owned(), String::new());
            let first = expected.map(|body| ("POST /".to_owned(), body.to_owned()));
            assert_eq!(seen, first.into_iter().chain([after]).collect::<Vec<_>>(), "{trailers:?}");
        }
    });
}
