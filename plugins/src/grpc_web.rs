//! Lets browsers call gRPC services: it translates gRPC-Web to gRPC and back.
//!
//! A request whose content type is `application/grpc-web` or `application/grpc-web-text` (both also with `+proto` and the like) goes on as
//! `application/grpc`, and its response comes back in the form of the request: with the trailers as the last frame of the body, and
//! base64-encoded for `-text`. All other requests pass as they are, so one route serves browsers and gRPC clients. Streaming responses
//! are passed on message by message.
//!
//! The upstream must speak HTTP/2: `protocol: http2`.
//!
//! A stream that runs into the timeout of its route is broken off. Errors of the proxy and of other plugins that come before, and responses of the upstream that are not gRPC, become a gRPC status: the client gets 200 with
//! `grpc-status` and `grpc-message` among the headers. A `-text` body that is not base64 is answered 400.
//!
//! Browsers on another origin need a `cors` plugin that exposes `grpc-status`, `grpc-message` and `grpc-status-details-bin`, and allows
//! `content-type`, `x-grpc-web`, `x-user-agent` and `grpc-timeout`.

use std::cell::Cell;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{
    ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION, TE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::grpc::{GRPC_STATUS, insert_status, status_of_http};
use signalbox_plugin::{
    Abort, BodyFilter, BodyWish, Context, Definition, Flow, Origin, Output, Plugin, PluginRequest,
    PluginResponse, Reply, hooks,
};

/// It has no settings.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "gRPC-Web", example = serde_json::json!({}))]
pub(crate) struct Config {}

/// Translates gRPC-Web to gRPC and back.
pub(crate) struct GrpcWeb;

/// One call in gRPC-Web.
struct Call {
    /// The request's body is base64-encoded.
    sends_text: bool,
    /// The response's body is to be.
    takes_text: bool,
    /// The part of the content type that names the messages: `+proto`; may be empty.
    suffix: String,
    /// Set when the request's body turns out not to be base64.
    is_malformed: Rc<Cell<bool>>,
    /// The kind of response, once it has come.
    response: ResponseKind,
}

impl Call {
    /// The call that a request with these headers is.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let (sends_text, suffix) = headers.get(CONTENT_TYPE).and_then(web_type)?;
        let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let takes_text = if accepted.contains(WEB) { accepted.contains(WEB_TEXT) } else { sends_text };
        let (is_malformed, response) = (Rc::default(), ResponseKind::Untouched);
        Some(Self { sends_text, takes_text, suffix, is_malformed, response })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseKind {
    /// A gRPC response. The flag says if its head has the status, so that no trailers follow.
    Grpc { has_status: bool },
    /// An error of the proxy or of a plugin, whose body may be a problem that says more.
    Problem,
    /// Another response, whose body means nothing to the client.
    Foreign,
    /// A response that stays as it is.
    Untouched,
}

const GRPC: &str = "application/grpc";
const WEB: &str = "application/grpc-web";
const WEB_TEXT: &str = "application/grpc-web-text";

/// The most bytes of a problem that is read for its detail.
const MAX_PROBLEM: usize = 64 << 10;

/// The first byte of the frame that has the trailers.
const TRAILERS: u8 = 0x80;

/// UNKNOWN
const UNKNOWN: u16 = 2;
const NO_STATUS: &str = "the response ended without a status";

/// The headers that say what a body is; it is dropped where an error becomes a status.
const OF_BODY: [HeaderName; 5] = [CONTENT_LENGTH, CONTENT_ENCODING, ETAG, LAST_MODIFIED, LOCATION];

/// Splits a content type of gRPC-Web; true: it is the one for text. Parameters are dropped.
fn web_type(value: &HeaderValue) -> Option<(bool, String)> {
    let essence = value.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
    let (is_text, suffix) = match essence.strip_prefix(WEB_TEXT) {
        Some(suffix) => (true, suffix),
        None => (false, essence.strip_prefix(WEB)?),
    };
    (suffix.is_empty() || suffix.starts_with('+')).then(|| (is_text, suffix.to_owned()))
}

/// The suffix of a content type of gRPC, which gRPC-Web is not.
fn grpc_suffix(headers: &HeaderMap) -> Option<String> {
    let essence = headers.get(CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
    let suffix = essence.strip_prefix(GRPC)?;
    (suffix.is_empty() || suffix.starts_with('+')).then(|| suffix.to_owned())
}

fn content_type(essence: &str, suffix: &str) -> HeaderValue {
    HeaderValue::try_from(format!("{essence}{suffix}")).unwrap_or(HeaderValue::from_static(WEB))
}

#[hooks]
impl Plugin for GrpcWeb {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let headers = &mut request.head.headers;
        let Some(call) = Call::of(headers) else { return Flow::Continue };
        headers.insert(CONTENT_TYPE, content_type(GRPC, &call.suffix));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        request.exchange.insert(call);
        Flow::Continue
    }

    fn request_body(&self, request: &mut PluginRequest<'_>) -> BodyWish {
        match request.exchange.get::<Call>() {
            Some(call) if call.sends_text => {
                let is_malformed = Rc::clone(&call.is_malformed);
                BodyWish::Filter(Box::new(Decoder { carry: Vec::new(), is_malformed }))
            }
            _ => BodyWish::Pass,
        }
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        if !response.saw_request
            && let Some(call) = Call::of(&response.request.headers)
        {
            // Another plugin has answered before, or the proxy.
            response.exchange.insert(call);
        }
        let Some(call) = response.exchange.get_mut::<Call>() else { return Flow::Continue };
        let head = &mut *response.head;
        let form = if call.takes_text { WEB_TEXT } else { WEB };
        if let Some(suffix) = grpc_suffix(&head.headers) {
            call.response = ResponseKind::Grpc { has_status: head.headers.contains_key(GRPC_STATUS) };
            let suffix = if suffix.is_empty() { &call.suffix } else { &suffix };
            head.headers.insert(CONTENT_TYPE, content_type(form, suffix));
            head.headers.remove(CONTENT_LENGTH);
            if response.size == Some(0) && !head.headers.contains_key(GRPC_STATUS) {
                insert_status(&mut head.headers, UNKNOWN, NO_STATUS);
            }
        } else if head.headers.get(CONTENT_TYPE).and_then(web_type).is_some() || call.is_malformed.get() {
            call.response = ResponseKind::Untouched;
        } else {
            call.response = match response.origin {
                Origin::Upstream => ResponseKind::Foreign,
                Origin::Plugin | Origin::Proxy => ResponseKind::Problem,
            };
            let (status, message) = match status_of_http(head.status) {
                0 => (UNKNOWN, "the response is not one of gRPC"),
                status => (status, head.status.canonical_reason().unwrap_or_default()),
            };
            head.status = StatusCode::OK;
            for name in &OF_BODY {
                head.headers.remove(name);
            }
            head.headers.insert(CONTENT_TYPE, content_type(form, &call.suffix));
            insert_status(&mut head.headers, status, message);
        }
        Flow::Continue
    }

    fn response_body(&self, response: &mut PluginResponse<'_>) -> BodyWish {
        let Some(call) = response.exchange.get::<Call>() else { return BodyWish::Pass };
        match call.response {
            ResponseKind::Untouched => BodyWish::Pass,
            ResponseKind::Grpc { has_status } => {
                let carry = call.takes_text.then(Vec::new);
                BodyWish::Filter(Box::new(Encoder { carry, needs_status: !has_status }))
            }
            ResponseKind::Problem if response.size.is_some_and(|size| size <= MAX_PROBLEM as u64) => {
                BodyWish::Buffered(MAX_PROBLEM)
            }
            ResponseKind::Problem | ResponseKind::Foreign => BodyWish::Filter(Box::new(Discard)),
        }
    }

    fn on_response_body<'a>(&'a self, response: &'a mut PluginResponse<'_>, body: &'a mut Bytes) -> Flow<'a> {
        let problem: Option<Problem> = serde_json::from_slice(body).ok();
        if let Some(Problem { detail: Some(detail) }) = problem
            && let Some(status) = response.head.headers.get(GRPC_STATUS)
            && let Some(status) = status.to_str().ok().and_then(|status| status.parse().ok())
        {
            insert_status(&mut response.head.headers, status, &detail);
        }
        body.clear();
        Flow::Continue
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

/// The part of a problem (RFC 9457) that a message is made of.
#[derive(Deserialize)]
struct Problem {
    detail: Option<String>,
}

/// Decodes base64, which may be padded at the end of each of its parts.
struct Decoder {
    /// The beginning of a group of four characters.
    carry: Vec<u8>,
    is_malformed: Rc<Cell<bool>>,
}

impl Decoder {
    fn malformed(&self) -> Abort {
        self.is_malformed.set(true);
        let text = "the body of a gRPC-Web text request is not base64";
        Abort::new(text, Reply::problem(StatusCode::BAD_REQUEST, text))
    }
}

/// Decodes whole groups of four characters.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    let mut rest = text;
    while !rest.is_empty() {
        // Padding ends a part; another part may follow.
        let end = rest.iter().position(|byte| *byte == b'=').map_or(rest.len(), |at| (at / 4 + 1) * 4);
        let (part, others) = rest.split_at_checked(end)?;
        STANDARD.decode_vec(part, &mut decoded).ok()?;
        rest = others;
    }
    Some(decoded)
}

impl BodyFilter for Decoder {
    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        self.carry.extend_from_slice(&data);
        let whole = self.carry.len() / 4 * 4;
        let rest = self.carry.split_off(whole);
        let text = std::mem::replace(&mut self.carry, rest);
        out.push(decode(&text).ok_or_else(|| self.malformed())?.into());
        Ok(())
    }

    fn on_end(&mut self, _: &mut HeaderMap, _: &mut Output) -> Result<(), Abort> {
        if self.carry.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}

/// Writes the trailers as the last frame of the body, and encodes all in base64 if the client wants text.
struct Encoder {
    /// For text: the last bytes, fewer than three, that are not encoded yet.
    carry: Option<Vec<u8>>,
    /// True if the status is expected in the trailers.
    needs_status: bool,
}

impl Encoder {
    fn put(&mut self, data: Bytes, out: &mut Output) {
        let Some(carry) = &mut self.carry else { return out.push(data) };
        carry.extend_from_slice(&data);
        let rest = carry.split_off(carry.len() / 3 * 3);
        let whole = std::mem::replace(carry, rest);
        out.push(STANDARD.encode(whole).into());
    }

    /// Ends a part of the text, so that the client gets all that has come.
    fn pad(&mut self, out: &mut Output) {
        if let Some(carry) = &mut self.carry {
            out.push(STANDARD.encode(std::mem::take(carry)).into());
        }
    }
}

impl BodyFilter for Encoder {
    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        self.put(data, out);
        Ok(())
    }

    fn on_pause(&mut self, out: &mut Output) -> Result<(), Abort> {
        self.pad(out);
        Ok(())
    }

    fn on_end(&mut self, trailers: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
        if self.needs_status {
            if !trailers.contains_key(GRPC_STATUS) {
                insert_status(trailers, UNKNOWN, NO_STATUS);
            }
            self.put(trailers_frame(trailers), out);
        }
        trailers.clear();
        self.pad(out);
        Ok(())
    }
}

/// The frame of trailers: its first byte, the length, and the fields as in a head of HTTP/1.1, in lower case.
fn trailers_frame(trailers: &HeaderMap) -> Bytes {
    let mut fields = BytesMut::new();
    for (name, value) in trailers {
        fields.put_slice(name.as_str().as_bytes());
        fields.put_slice(b": ");
        fields.put_slice(value.as_bytes());
        fields.put_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(5 + fields.len());
    frame.put_u8(TRAILERS);
    // Trailers are bounded by the limit of a head.
    frame.put_u32(u32::try_from(fields.len()).unwrap_or(u32::MAX));
    frame.put(fields);
    frame.freeze()
}

/// Drops a body.
struct Discard;

impl BodyFilter for Discard {
    fn on_data(&mut self, _: Bytes, _: &mut Output) -> Result<(), Abort> {
        Ok(())
    }

    fn on_end(&mut self, trailers: &mut HeaderMap, _: &mut Output) -> Result<(), Abort> {
        trailers.clear();
        Ok(())
    }
}

impl Definition for GrpcWeb {
    const NAME: &'static str = "grpc-web";
    const DESCRIPTION: &'static str = "Lets browsers call gRPC services by gRPC-Web.";
    const ORDER: i32 = 700;
    type Config = Config;

    fn check(_: &Config, _: &mut Errors) {}

    fn build(_: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use signalbox_plugin::testing::{Client, build, pass};

    use super::*;

    fn decoder() -> Decoder {
        Decoder { carry: Vec::new(), is_malformed: Rc::default() }
    }

    fn parts(parts: &[&'static str]) -> Vec<Bytes> {
        parts.iter().map(|part| Bytes::from_static(part.as_bytes())).collect()
    }

    #[test]
    fn content_types_are_told_apart() {
        let of = |text: &'static str| web_type(&HeaderValue::from_static(text));
        assert_eq!(of("application/grpc-web"), Some((false, String::new())));
        assert_eq!(of("application/grpc-web+proto"), Some((false, "+proto".into())));
        assert_eq!(of("Application/gRPC-Web-Text+Proto; charset=x"), Some((true, "+proto".into())));
        for other in
            ["application/grpc", "application/grpc+proto", "application/grpc-webby", "application/json", ""]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn text_is_decoded_however_it_is_cut() {
        let text = STANDARD.encode("hello, world");
        for cut in 0..=text.len() {
            let (one, two) = text.split_at(cut);
            let all = [one, two].map(|part| Bytes::copy_from_slice(part.as_bytes()));
            assert_eq!(pass(&mut decoder(), all).unwrap().concat(), b"hello, world", "{cut}");
        }
        // Parts that are padded each, also within one piece.
        let padded = parts(&["aGVsbG8=LCB3", "b3JsZA==", "IQ=="]);
        assert_eq!(pass(&mut decoder(), padded).unwrap().concat(), b"hello, world!");
    }

    #[test]
    fn text_that_is_not_base64_is_a_bad_request() {
        for wrong in [&["aGVsbG8"][..], &["aGVsbG8=", "a"], &["a=GV"], &["ab%d"], &["===="], &["aGVsbG8=\n"]]
        {
            let mut decoder = decoder();
            let abort = pass(&mut decoder, parts(wrong)).unwrap_err();
            assert_eq!(abort.reply.status(), 400, "{wrong:?}");
            assert!(decoder.is_malformed.get());
        }
    }

    #[test]
    fn trailers_are_the_last_frame() {
        let mut trailers = HeaderMap::new();
        insert_status(&mut trailers, 0, "ok");
        let mut out = Output::default();
        let mut encoder = Encoder { carry: None, needs_status: true };
        encoder.on_data(Bytes::from_static(b"\0\0\0\0\x01x"), &mut out).unwrap();
        encoder.on_end(&mut trailers, &mut out).unwrap();
        let all = out.take().collect::<Vec<_>>().concat();
        let (message, frame) = all.split_at(6);
        assert_eq!((message, &frame[..5]), (&b"\0\0\0\0\x01x"[..], &b"\x80\0\0\0\x22"[..]));
        let mut fields: Vec<_> = std::str::from_utf8(&frame[5..]).unwrap().split_inclusive('\n').collect();
        fields.sort_unstable();
        assert_eq!(fields, ["grpc-message: ok\r\n", "grpc-status: 0\r\n"]);
        assert!(trailers.is_empty(), "they are not sent twice");
        // Without trailers the client must not take the response for a success.
        let passed = pass(&mut Encoder { carry: None, needs_status: true }, []).unwrap().concat();
        assert!(String::from_utf8_lossy(&passed).contains("grpc-status: 2\r\n"));
        assert_eq!(pass(&mut Encoder { carry: None, needs_status: false }, []).unwrap().concat(), b"");
    }

    #[test]
    fn text_is_flushed_at_every_pause() {
        let mut encoder = Encoder { carry: Some(Vec::new()), needs_status: false };
        let passed = pass(&mut encoder, parts(&["a", "bcde", "fgh"])).unwrap();
        let texts: Vec<_> = passed.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect();
        assert_eq!(texts, ["YQ==", "YmNkZQ==", "Zmdo", ""]);
    }

    #[test]
    fn a_call_goes_on_as_grpc_and_comes_back_as_it_came() {
        let plugin = build::<GrpcWeb>(serde_json::json!({}));
        for (sent, accepted, form) in [
            ("application/grpc-web", "", "application/grpc-web+proto"),
            ("application/grpc-web-text", "", "application/grpc-web-text+proto"),
            ("application/grpc-web", "application/grpc-web-text", "application/grpc-web-text+proto"),
            ("application/grpc-web-text+proto", "application/grpc-web+proto", "application/grpc-web+proto"),
        ] {
            let mut client =
                Client::new("POST", "/a.B/C").header("content-type", sent).header("accept", accepted);
            assert!(client.meets(&*plugin).is_none());
            assert!(client.head.headers["content-type"].as_bytes().starts_with(b"application/grpc"));
            assert!(!client.head.headers["content-type"].as_bytes().starts_with(b"application/grpc-"));
            assert_eq!(client.head.headers["te"], "trailers");
            let answer = Response::builder().header("content-type", "application/grpc+proto");
            let answer = answer.body(Bytes::from_static(b"\0\0\0\0\0")).unwrap();
            let received = client.receives(&*plugin, Origin::Upstream, answer);
            assert_eq!(received.headers()["content-type"], form);
        }
    }

    #[test]
    fn errors_are_statuses_of_grpc() {
        let plugin = build::<GrpcWeb>(serde_json::json!({}));
        let receives = |origin, status: u16, content_type: &str, body: &'static str| {
            let mut client =
                Client::new("POST", "/a.B/C").header("content-type", "application/grpc-web+proto");
            assert!(client.meets(&*plugin).is_none());
            let answer = Response::builder().status(status).header("content-type", content_type);
            let received = client.receives(&*plugin, origin, answer.body(Bytes::from(body)).unwrap());
            assert_eq!((received.status().as_u16(), received.body().len()), (200, 0));
            assert_eq!(received.headers()["content-type"], "application/grpc-web+proto");
            let text = |name| received.headers()[name].to_str().unwrap().to_owned();
            (text("grpc-status"), text("grpc-message"))
        };
        let problem = r#"{"status": 503, "detail": "no healthy target"}"#;
        let pair = |status: &str, message: &str| (status.to_owned(), message.to_owned());
        let json = "application/problem+json";
        assert_eq!(receives(Origin::Proxy, 503, json, problem), pair("14", "no healthy target"));
        assert_eq!(receives(Origin::Plugin, 401, json, problem), pair("16", "no healthy target"));
        assert_eq!(receives(Origin::Upstream, 404, "text/html", "<p>no"), pair("12", "Not Found"));
        assert_eq!(
            receives(Origin::Upstream, 200, "text/html", "<p>hi"),
            pair("2", "the response is not one of gRPC")
        );
    }

    #[test]
    fn an_answer_of_a_plugin_that_runs_before_is_a_status_too() {
        let plugin = build::<GrpcWeb>(serde_json::json!({}));
        let mut client = Client::new("POST", "/a.B/C").header("content-type", "application/grpc-web+proto");
        let answer = Response::builder().status(401).header("content-encoding", "gzip");
        let received = client.refused(&*plugin, answer.body(Bytes::from_static(b"no key")).unwrap());
        assert_eq!((received.status().as_u16(), received.body().len()), (200, 0));
        assert_eq!(received.headers()["grpc-status"], "16");
        assert!(!received.headers().contains_key("content-encoding"));
        let mut client = Client::new("POST", "/").header("content-type", "application/json");
        let answer = Response::builder().status(401).body(Bytes::from_static(b"no key")).unwrap();
        assert_eq!(client.refused(&*plugin, answer).status(), 401);
    }

    #[test]
    fn other_requests_are_left_alone() {
        let plugin = build::<GrpcWeb>(serde_json::json!({}));
        let mut client = Client::new("POST", "/a.B/C").header("content-type", "application/grpc");
        assert!(client.meets(&*plugin).is_none());
        assert_eq!(client.head.headers["content-type"], "application/grpc");
        let answer = Response::builder().status(404).body(Bytes::from_static(b"no")).unwrap();
        let received = client.receives(&*plugin, Origin::Upstream, answer);
        assert_eq!((received.status().as_u16(), &received.body()[..]), (404, &b"no"[..]));
    }
}
