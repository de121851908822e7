//! Changes headers and the JSON body of responses on their way to the client.
//!
//! The operations are those of `request-transform`, in the same order: `remove`, `rename`, `replace` (where the name is present), `add`
//! (where it is absent), `set` (in either case) and `append`, each for headers and body.
//!
//! **Values** are templates, as there: `{response.status}`, `{response.header.NAME}`, and of the request as it was sent on
//! `{request.method}`, `{request.host}`, `{request.path}`, `{request.query}`, `{request.query.NAME}`, `{request.header.NAME}` and
//! `{request.cookie.NAME}`, besides `{consumer.name}` and `{route.name}`. An operation whose value lacks one is left out, and `set`
//! removes what has the name, unless there is a default: `{response.header.x-version|unknown}`. Placeholders mean the response as it comes to this plugin; those of the body see its
//! headers as they were changed.
//!
//! It concerns the responses whose status is among `statuses`, whoever made them: the upstream, another plugin or the proxy. Headers that
//! plugins add to every response (CORS, rate limits) are written later, and win.
//!
//! **Headers** that frame a message or belong to one connection cannot be changed.
//!
//! **Body**: a name is that of a member on the first level of a JSON object, and one that begins with `/` is a JSON pointer (RFC 6901).
//! Only bodies of a JSON content type (`application/json`, `…+json`, after the headers were changed) are read, held in memory up to
//! `max_body`; all others, event streams among them, pass as they come. `Content-Length` is that of the new body. `ETag`, digests
//! (`Digest`, `Content-Digest`, `Repr-Digest`, `Content-MD5`) and `Accept-Ranges`, which speak of other bytes, are removed, also from the
//! response to `HEAD`, whose length is then not known, and the `ETag` from a `304`.
//!
//! Parts that are to be removed must not reach a client in another form, so these responses are answered `502`: a body larger than `max_body`,
//! one that is not valid JSON, a part (`206`), and with `on_encoded: refuse` one with a content coding (`gzip`). The upstream gets no
//! `Range` of a client, so it has no reason for parts. An upstream that encodes JSON can be told not to by a
//! `request-transform` that removes `Accept-Encoding`, or its encoded bodies pass unchanged with `on_encoded: pass`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use signalbox_config::{ByteSize, Errors, FieldError};
use signalbox_plugin::{
    BodyWish, Context, Definition, Flow, OnConditionError, Plugin, PluginRequest, PluginResponse, Reply,
    hooks,
};

use crate::headers::header_name;
use crate::template::{Side, Values};
use crate::transform::{
    Edits, MAX_BODY, Parser, Pointer, Scalar, edit_body, edit_headers, forget_digests, given_header,
    given_scalar, header_value, is_compressed, is_json, scalar_text,
};

/// The changes, operation by operation, and the responses that they concern.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Response transformation", example = serde_json::json!({
    "remove": {"headers": ["server", "x-powered-by"]}, "set": {"headers": {"x-served-by": "{route.name}"}},
}), example = serde_json::json!({
    "statuses": ["2xx"], "remove": {"body": ["/user/password"]}, "add": {"body": {"version": 2}},
}))]
pub(crate) struct Config {
    /// The statuses of the responses that are changed: `404`, `5xx` or `500-503`. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Statuses")]
    statuses: Option<Vec<String>>,
    /// The first operation removes all values of these names.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    #[schemars(title = "Remove")]
    remove: Names,
    /// The second operation renames: old name to new name.
    #[serde(default, skip_serializing_if = "Renames::is_empty")]
    #[schemars(title = "Rename")]
    rename: Renames,
    /// The third operation sets values where the name is present.
    #[serde(default, skip_serializing_if = "Inserts::is_empty")]
    #[schemars(title = "Replace")]
    replace: Inserts,
    /// The fourth operation sets values where the name is absent.
    #[serde(default, skip_serializing_if = "Inserts::is_empty")]
    #[schemars(title = "Add")]
    add: Inserts,
    /// The fifth operation sets values whether the name is present or not.
    #[serde(default, skip_serializing_if = "Inserts::is_empty")]
    #[schemars(title = "Set")]
    set: Inserts,
    /// The sixth operation adds values to those that are there.
    #[serde(default, skip_serializing_if = "Inserts::is_empty")]
    #[schemars(title = "Append")]
    append: Inserts,
    /// The treatment of an encoded JSON body that was to be changed.
    #[serde(default)]
    #[schemars(title = "On encoded")]
    on_encoded: OnEncoded,
    /// The largest JSON body that is changed, at most 64MiB. In the place of a larger one the client gets 502. Without changes of the
    /// body there is no limit.
    #[serde(default = "default_max_body")]
    #[schemars(title = "Max body")]
    max_body: ByteSize,
}

/// The names that are removed.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Names {
    /// Headers.
    #[schemars(title = "Headers")]
    headers: Vec<String>,
    /// Members of the JSON body, by name or JSON pointer.
    #[schemars(title = "Body")]
    body: Vec<String>,
}

/// Old names and new ones.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Renames {
    /// Headers, old name to new name.
    #[schemars(title = "Headers")]
    headers: BTreeMap<String, String>,
    /// Members of the JSON body, old name or JSON pointer to new name.
    #[schemars(title = "Body")]
    body: BTreeMap<String, String>,
}

/// Names and values.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Inserts {
    /// Headers, name to value.
    #[schemars(title = "Headers")]
    headers: BTreeMap<String, String>,
    /// Members of the JSON body, name or JSON pointer to value.
    #[schemars(title = "Body")]
    body: BTreeMap<String, Scalar>,
}

/// The treatment of an encoded body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OnEncoded {
    /// The client gets 502.
    #[default]
    Refuse,
    /// It passes as it is.
    Pass,
}

/// Changes responses on their way to the client.
pub(crate) struct ResponseTransform {
    /// `None`: all.
    statuses: Option<Box<[RangeInclusive<u16>]>>,
    headers: Edits<HeaderName, HeaderValue>,
    body: Edits<Pointer, Box<RawValue>>,
    on_encoded: OnEncoded,
    max_body: usize,
}

#[hooks]
impl Plugin for ResponseTransform {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        if !self.body.is_empty() {
            request.head.headers.remove(RANGE);
            request.head.headers.remove(IF_RANGE);
        }
        Flow::Continue
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        if !self.concerns(response.head.status) {
            return Flow::Continue;
        }
        let made = self.headers.render(|| Values::of_response(response), header_value);
        edit_headers(&self.headers, &made, &mut response.head.headers);
        if self.body.is_empty() {
            return Flow::Continue;
        }
        let status = response.head.status;
        if status == StatusCode::NOT_MODIFIED {
            response.head.headers.remove(ETAG);
            return Flow::Continue;
        }
        if status == StatusCode::NO_CONTENT || !is_json(&response.head.headers) {
            return Flow::Continue;
        }
        if is_compressed(&response.head.headers) {
            return match self.on_encoded {
                OnEncoded::Pass => Flow::Continue,
                OnEncoded::Refuse => refusal(response, "the response is encoded, so it cannot be changed"),
            };
        }
        if status == StatusCode::PARTIAL_CONTENT || response.head.headers.contains_key(CONTENT_RANGE) {
            return refusal(response, "the response is a part, so it cannot be changed");
        }
        if response.request.method == Method::HEAD {
            forget_bytes(&mut response.head.headers);
            response.head.headers.remove(CONTENT_LENGTH);
        }
        Flow::Continue
    }

    fn response_body(&self, response: &mut PluginResponse<'_>) -> BodyWish {
        match self.changes_body(response) {
            true => BodyWish::Buffered(self.max_body),
            false => BodyWish::Pass,
        }
    }

    fn on_response_body<'a>(&'a self, response: &'a mut PluginResponse<'_>, body: &'a mut Bytes) -> Flow<'a> {
        if !self.changes_body(response) || body.is_empty() {
            return Flow::Continue;
        }
        let made = self.body.render(|| Values::of_response(response), scalar_text);
        let edited = edit_body(&self.body, &made, body);
        match edited {
            Ok(Some(changed)) => {
                *body = changed;
                forget_bytes(&mut response.head.headers);
                response.count("changed");
                Flow::Continue
            }
            Ok(None) => Flow::Continue,
            Err(_) => refusal(response, "the response is not valid JSON, so it cannot be changed"),
        }
    }
}

impl Definition for ResponseTransform {
    const NAME: &'static str = "response-transform";
    const DESCRIPTION: &'static str =
        "Changes headers and the JSON body of responses on their way to the client.";
    const ORDER: i32 = 800;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    const OUTCOMES: &'static [&'static str] = &["changed", "refused"];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        parse(config, errors);
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let built = parse(&config, &mut errors);
        errors.finish(Some(built))
    }
}

impl ResponseTransform {
    fn concerns(&self, status: StatusCode) -> bool {
        let statuses = self.statuses.as_deref();
        statuses.is_none_or(|ranges| ranges.iter().any(|range| range.contains(&status.as_u16())))
    }

    fn changes_body(&self, response: &PluginResponse<'_>) -> bool {
        let headers = &response.head.headers;
        !self.body.is_empty()
            && self.concerns(response.head.status)
            && is_json(headers)
            && !is_compressed(headers)
    }
}

/// Refuses a response that was to be changed and cannot be.
fn refusal(response: &PluginResponse<'_>, detail: &'static str) -> Flow<'static> {
    response.count("refused");
    Reply::problem(StatusCode::BAD_GATEWAY, detail).into()
}

/// Removes the headers that describe the bytes of a body that has changed.
fn forget_bytes(headers: &mut HeaderMap) {
    for name in [ETAG, ACCEPT_RANGES] {
        headers.remove(name);
    }
    forget_digests(headers);
}

impl Names {
    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.body.is_empty()
    }
}

impl Renames {
    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.body.is_empty()
    }
}

impl Inserts {
    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.body.is_empty()
    }
}

/// Reads a configuration. Parts that are wrong are missing from the result.
fn parse(config: &Config, errors: &mut Errors) -> ResponseTransform {
    let Config { statuses, remove, rename, replace, add, set, append, on_encoded, max_body } = config;
    if max_body.0 == 0 || max_body.0 > MAX_BODY {
        errors.push("max_body", "must be at least 1 byte, and at most 64MiB");
    }
    if statuses.as_ref().is_some_and(Vec::is_empty) {
        errors.push("statuses", "must have at least one; leave it out for all");
    }
    let mut read = |(index, text): (usize, &String)| {
        let range = parse_statuses(text);
        if range.is_none() {
            errors
                .push(format_args!("statuses[{index}]"), "must be like 404, 5xx or 500-503, from 200 to 599");
        }
        range
    };
    let statuses = statuses.as_ref().map(|list| list.iter().enumerate().filter_map(&mut read).collect());
    let mut headers = Parser {
        part: "headers",
        name: header_name,
        new_name: header_name,
        value: |text: &String| given_header(text, Side::Response),
        errors,
    };
    let headers = headers.edits(
        &remove.headers,
        &rename.headers,
        [&replace.headers, &add.headers, &set.headers, &append.headers],
    );
    let mut body = Parser {
        part: "body",
        name: Pointer::parse,
        new_name: Pointer::parse_new_name,
        value: |scalar: &Scalar| given_scalar(scalar, Side::Response),
        errors,
    };
    let body = body.edits(&remove.body, &rename.body, [&replace.body, &add.body, &set.body, &append.body]);
    ResponseTransform {
        statuses,
        headers,
        body,
        on_encoded: *on_encoded,
        max_body: usize::try_from(max_body.0).unwrap_or(usize::MAX),
    }
}

/// The statuses that `404`, `5xx` or `500-503` means.
fn parse_statuses(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| text.parse().ok().filter(|it: &u16| text.len() == 3 && (200..600).contains(it));
    if let Some(class) = text.strip_suffix("xx") {
        let first = number(&format!("{class}00"))?;
        return Some(first..=first + 99);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

fn default_max_body() -> ByteSize {
    ByteSize(1 << 20)
}

#[cfg(test)]
mod tests {
    use http::Response;
    use serde_json::{Value, json};
    use signalbox_plugin::Origin;

    use super::*;
    use crate::testing::{Client, build, refused};

    fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Response<Bytes> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    fn after(config: Value, method: &str, response: Response<Bytes>) -> Response<Bytes> {
        let mut client = Client::new(method, "/p?q=1").header("x-id", "7");
        let plugin = build("response-transform", config);
        assert!(client.meets(&*plugin).is_none());
        client.receives(&*plugin, Origin::Upstream, response)
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn headers_are_changed_for_the_statuses_that_are_named() {
        let config = json!({
            "statuses": ["404", "5xx", "201-202"],
            "remove": {"headers": ["Server"]},
            "rename": {"headers": {"x-old": "x-new"}},
            "replace": {"headers": {"x-new": "new"}},
            "add": {"headers": {"x-added": "{response.status} {request.header.x-id}"}},
            "set": {"headers": {"x-set": "{response.header.x-none|none}", "x-left-out": "{response.header.x-none}"}},
            "append": {"headers": {"vary": "x-id"}},
        });
        for (status, is_changed) in
            [(200, false), (404, true), (403, false), (500, true), (599, true), (201, true), (203, false)]
        {
            let headers = [("server", "s"), ("x-old", "o"), ("vary", "origin")];
            let response = after(config.clone(), "GET", response(status, &headers, "x"));
            let mut lines: Vec<String> = response
                .headers()
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .collect();
            lines.sort();
            let changed = [
                "vary: origin".to_owned(),
                "vary: x-id".to_owned(),
                format!("x-added: {status} 7"),
                "x-new: new".to_owned(),
                "x-set: none".to_owned(),
            ];
            if is_changed {
                assert_eq!(lines, changed, "{status}");
            } else {
                assert_eq!(lines, ["server: s", "vary: origin", "x-old: o"], "{status}");
            }
        }
    }

    #[test]
    fn members_of_a_json_body_are_changed_and_headers_about_its_bytes_go() {
        let config =
            json!({"remove": {"body": ["/user/password"]}, "set": {"body": {"from": "{request.path}"}}});
        let about = [
            JSON,
            ("etag", "\"v1\""),
            ("accept-ranges", "bytes"),
            ("content-digest", "sha-256=:x:"),
            ("x-kept", "1"),
        ];
        let body = r#"{"user":{"name":"a","password":"b"}}"#;
        let response = after(config, "GET", response(200, &about, body));
        assert_eq!(response.body(), r#"{"user":{"name":"a"},"from":"/p"}"#);
        let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-type", "x-kept"]);
    }

    #[test]
    fn a_body_stays_as_it_is_or_is_refused() {
        let config = |on_encoded: &str| json!({"remove": {"body": ["secret"]}, "on_encoded": on_encoded});
        let body = r#"{"secret": 1}"#;
        for (on_encoded, status, headers, sent, expected) in [
            ("refuse", 200, &[JSON][..], body, Ok("{}")),
            ("refuse", 200, &[JSON, ("content-encoding", "identity")], body, Ok("{}")),
            ("refuse", 200, &[JSON, ("content-encoding", "gzip")], body, Err(502)),
            ("pass", 200, &[JSON, ("content-encoding", "gzip")], body, Ok(body)),
            ("refuse", 206, &[JSON], body, Err(502)),
            ("refuse", 200, &[JSON, ("content-range", "bytes 0-1/2")], body, Err(502)),
            ("refuse", 200, &[("content-type", "text/plain")], body, Ok(body)),
            ("refuse", 200, &[("content-type", "text/event-stream")], "data: x", Ok("data: x")),
            ("refuse", 200, &[("content-type", "application/problem+json")], body, Ok("{}")),
            ("refuse", 200, &[JSON], "", Ok("")),
            ("refuse", 200, &[JSON], r#"{"other": 1}"#, Ok(r#"{"other": 1}"#)),
        ] {
            let response = after(config(on_encoded), "GET", response(status, headers, sent));
            match expected {
                Ok(expected) => assert_eq!(response.body(), expected, "{on_encoded} {status} {headers:?}"),
                Err(status) => assert_eq!(response.status(), status, "{on_encoded} {headers:?}"),
            }
        }
    }

    #[test]
    fn responses_without_a_body_do_not_speak_of_other_bytes() {
        let config = json!({"remove": {"body": ["secret"]}});
        let about = [JSON, ("etag", "\"v1\""), ("content-length", "12")];
        let head = after(config.clone(), "HEAD", response(200, &about, ""));
        assert_eq!(head.headers().len(), 1);
        let not_modified = after(config.clone(), "GET", response(304, &[("etag", "\"v1\"")], ""));
        assert!(not_modified.headers().is_empty());
        let other = after(config, "HEAD", response(200, &[("etag", "\"v1\"")], ""));
        assert_eq!(other.headers().len(), 1);
    }

    #[test]
    fn the_upstream_is_asked_for_whole_bodies() {
        let ranges = |config| {
            let mut client = Client::new("GET", "/").header("range", "bytes=0-1").header("if-range", "x");
            assert!(client.meets(&*build("response-transform", config)).is_none());
            client.head.headers.len()
        };
        assert_eq!(ranges(json!({"remove": {"body": ["a"]}})), 0);
        assert_eq!(ranges(json!({"remove": {"headers": ["a"]}})), 2);
    }

    #[test]
    fn bad_configurations_are_refused_with_all_that_is_wrong() {
        let all = refused(
            "response-transform",
            json!({
                "statuses": ["200", "6xx", "1xx", "500-400", "20", "x"],
                "remove": {"headers": ["content-length"], "body": [""]},
                "rename": {"body": {"/a/b": "/c"}},
                "set": {"headers": {"x-a": "{client.ip}", "x-b": "a\r\nb", "x-c": "{route.name|a\r\nb}"}},
                "max_body": 0,
            }),
        );
        for expected in [
            "statuses[1]: ",
            "statuses[2]: ",
            "statuses[3]: ",
            "statuses[4]: ",
            "statuses[5]: ",
            "remove.headers[0]: content-length frames",
            "remove.body[0]: a name must not be empty",
            "rename.body./a/b: the new name",
            "set.headers.x-a: {client.ip} is no placeholder",
            "set.headers.x-b: cannot be sent",
            "set.headers.x-c: cannot be sent",
            "max_body: ",
        ] {
            assert!(all.contains(expected), "{expected} in {all}");
        }
        assert!(!all.contains("statuses[0]"), "{all}");
        assert!(refused("response-transform", json!({"statuses": []})).starts_with("statuses: "));
    }
}
