//! Changes headers, query parameters and the JSON body of a request on its way to the upstream.
//!
//! There are six operations, done in this order, each for headers, query and body:
//!
//! 1. `remove` takes out everything of a name;
//! 2. `rename` gives another name, and replaces what had that name before;
//! 3. `replace` sets a value where the name is present;
//! 4. `add` sets a value where the name is absent;
//! 5. `set` sets a value, whether the name is present or not;
//! 6. `append` adds one more value, whether the name is present or not.
//!
//! **Values** are templates: `{request.header.x-user}` stands for a part of the request. There are `{request.method}`,
//! `{request.scheme}`, `{request.host}`, `{request.path}`, `{request.query}`, `{request.query.NAME}`, `{request.header.NAME}`,
//! `{request.cookie.NAME}`, `{request.id}`, `{client.ip}`, `{consumer.name}` and `{route.name}`. `{{` and `}}` stand for braces. A header,
//! parameter or cookie that is absent, or there more than once, has no value, and an operation whose value lacks one is left out, while
//! `set` removes what has the name; `{request.header.x-user|nobody}` has the text behind `|` then. The same holds for a value that becomes longer than 8 KiB, and for one
//! that a header cannot have: nobody can insert a line break. Placeholders mean the request as it comes to this plugin; those of the body
//! see headers and query as they were changed. In a body, values may also be numbers, booleans and null.
//!
//! **Headers**: names have no case. Those that frame a message or belong to one connection (`Content-Length`,
//! `Transfer-Encoding`, `Connection` …) cannot be changed; the host is changed by the route's `rewrite`.
//!
//! **Query**: parameters that no operation names keep their place and their encoding. New values are percent-encoded.
//!
//! **Body**: a name is that of a member on the first level of a JSON object, and one that begins with `/` is a JSON pointer (RFC 6901):
//! `/user/tags/0`. `add`, `set` and `append` make the objects that are missing on the way; elements of lists are only removed and replaced.
//! `rename` gives a member another name in its object. `append` makes a list of what is there, or adds to the list. What is not changed
//! stays as it is, to the last digit of its numbers. Only bodies of a JSON content type (`application/json`, `…+json`, as it is after the
//! headers were changed) are read, held in memory up to `max_body`; all others stream through. A body that is not valid JSON is answered
//! `400`, one that is too large `413`, and one that is compressed `415`, for what a client can hide could not be removed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use signalbox_config::{ByteSize, Errors, FieldError};
use signalbox_plugin::{
    BodyWish, Context, Definition, Flow, OnConditionError, Plugin, PluginRequest, Reply, hooks,
};

use crate::headers::header_name;
use crate::query;
use crate::template::{Side, Values};
use crate::transform::{
    Edits, Given, MAX_BODY, Made, Parser, Pointer, Scalar, edit_body, edit_headers, forget_digests,
    given_header, given_scalar, given_text, header_value, is_compressed, is_json, member_name, scalar_text,
};

/// The changes, operation by operation.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Request transformation", example = serde_json::json!({
    "remove": {"headers": ["x-debug"], "query": ["trace"]},
    "rename": {"headers": {"x-old": "x-new"}},
    "add": {"headers": {"x-api-version": "2"}, "body": {"source": "gateway"}},
}), example = serde_json::json!({
    "remove": {"body": ["/user/password"]},
    "set": {"headers": {"x-tenant": "{request.query.tenant|none}"}, "body": {"/meta/client": "{client.ip}"}},
}))]
pub(crate) struct Config {
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
    /// The largest JSON body that is changed, at most 64MiB. Requests with larger ones are answered 413. Without changes of the body
    /// there is no limit.
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
    /// Query parameters.
    #[schemars(title = "Query")]
    query: Vec<String>,
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
    /// Query parameters, old name to new name.
    #[schemars(title = "Query")]
    query: BTreeMap<String, String>,
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
    /// Query parameters, name to value.
    #[schemars(title = "Query")]
    query: BTreeMap<String, String>,
    /// Members of the JSON body, name or JSON pointer to value.
    #[schemars(title = "Body")]
    body: BTreeMap<String, Scalar>,
}

/// Changes a request on its way to the upstream.
pub(crate) struct RequestTransform {
    headers: Edits<HeaderName, HeaderValue>,
    query: Edits<Box<str>, Box<str>>,
    body: Edits<Pointer, Box<RawValue>>,
    max_body: usize,
}

#[hooks]
impl Plugin for RequestTransform {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let headers = self.headers.render(|| Values::of_request(request), header_value);
        let parameters = self.query.render(|| Values::of_request(request), text);
        edit_headers(&self.headers, &headers, &mut request.head.headers);
        if !self.query.is_empty()
            && let Some(uri) = edit_query(&self.query, &parameters, &request.head.uri)
        {
            request.head.uri = uri;
        }
        if !self.body.is_empty() && request.head.headers.get_all(CONTENT_TYPE).iter().nth(1).is_some() {
            // Servers differ in which they go by.
            return Reply::problem(StatusCode::BAD_REQUEST, "there is more than one Content-Type").into();
        }
        if !self.body.is_empty() && is_json(&request.head.headers) && is_compressed(&request.head.headers) {
            let detail = "a JSON body must come without a content coding";
            return Reply::problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).into();
        }
        Flow::Continue
    }

    fn request_body(&self, request: &mut PluginRequest<'_>) -> BodyWish {
        match !self.body.is_empty() && is_json(&request.head.headers) {
            true => BodyWish::Buffered(self.max_body),
            false => BodyWish::Pass,
        }
    }

    fn on_request_body<'a>(&'a self, request: &'a mut PluginRequest<'_>, body: &'a mut Bytes) -> Flow<'a> {
        // A request without a body may well say what type it would have.
        if !is_json(&request.head.headers) || body.is_empty() {
            return Flow::Continue;
        }
        let made = self.body.render(|| Values::of_request(request), scalar_text);
        let edited = edit_body(&self.body, &made, body);
        match edited {
            Ok(Some(changed)) => {
                *body = changed;
                forget_digests(&mut request.head.headers);
            }
            Ok(None) => {}
            Err(_) => return Reply::problem(StatusCode::BAD_REQUEST, "the body is not valid JSON").into(),
        }
        Flow::Continue
    }
}

impl Definition for RequestTransform {
    const NAME: &'static str = "request-transform";
    const DESCRIPTION: &'static str =
        "Changes headers, query parameters and the JSON body of a request on its way to the upstream.";
    const ORDER: i32 = 801;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
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

/// The URI with its query changed; `None` when it stays as it is.
fn edit_query<'a>(edits: &'a Edits<Box<str>, Box<str>>, made: &'a Made<Box<str>>, uri: &Uri) -> Option<Uri> {
    let query = uri.query().unwrap_or_default();
    let mut texts: Vec<Cow<'_, str>> =
        query::parameters(query).filter(|_| uri.query().is_some()).map(|p| p.text().into()).collect();
    let before = texts.clone();
    let is = |text: &str, name: &str| query::parameters(text).any(|parameter| parameter.is_named(name));
    let written =
        |name: &str, value: &str| Cow::from(format!("{}={}", query::encode(name), query::encode(value)));
    for name in &edits.remove {
        texts.retain(|text| !is(text, name));
    }
    for (old, new) in &edits.rename {
        if texts.iter().any(|text| is(text, old)) {
            texts.retain(|text| !is(text, new) || old == new);
            for text in texts.iter_mut().filter(|text| is(text, old)) {
                let value = query::parameters(text).find_map(query::Parameter::raw_value);
                let value = value.map(|value| format!("={value}")).unwrap_or_default();
                *text = format!("{}{value}", query::encode(new)).into();
            }
        }
    }
    // The first one of the name gets the value, and the others go. True: there was one.
    let replace = |texts: &mut Vec<Cow<'_, str>>, name: &str, value: &str| {
        let mut found = false;
        texts.retain_mut(|text| {
            if !is(text, name) {
                return true;
            }
            *text = written(name, value);
            !std::mem::replace(&mut found, true)
        });
        found
    };
    let given = |(name, value): &'a (Box<str>, Given<Box<str>>)| Some((name, value.of(made)?));
    for (name, value) in edits.replace.iter().filter_map(given) {
        replace(&mut texts, name, value);
    }
    for (name, value) in edits.add.iter().filter_map(given) {
        if !texts.iter().any(|text| is(text, name)) {
            texts.push(written(name, value));
        }
    }
    for (name, value) in &edits.set {
        match value.of(made) {
            Some(value) if replace(&mut texts, name, value) => {}
            Some(value) => texts.push(written(name, value)),
            None => texts.retain(|text| !is(text, name)),
        }
    }
    texts.extend(edits.append.iter().filter_map(given).map(|(name, value)| written(name, value)));
    if texts == before { None } else { query::with_query(uri, &texts.join("&")) }
}

impl Names {
    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.query.is_empty() && self.body.is_empty()
    }
}

impl Renames {
    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.query.is_empty() && self.body.is_empty()
    }
}

impl Inserts {
    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.query.is_empty() && self.body.is_empty()
    }
}

/// Reads a configuration. Parts that are wrong are missing from the result.
fn parse(config: &Config, errors: &mut Errors) -> RequestTransform {
    let Config { remove, rename, replace, add, set, append, max_body } = config;
    if max_body.0 == 0 || max_body.0 > MAX_BODY {
        errors.push("max_body", "must be at least 1 byte, and at most 64MiB");
    }
    let mut headers = Parser {
        part: "headers",
        name: header_name,
        new_name: header_name,
        value: |text: &String| given_header(text, Side::Request),
        errors,
    };
    let headers = headers.edits(
        &remove.headers,
        &rename.headers,
        [&replace.headers, &add.headers, &set.headers, &append.headers],
    );
    let mut query = Parser {
        part: "query",
        name: member_name,
        new_name: member_name,
        value: |text: &String| given_text(text, Side::Request),
        errors,
    };
    let query =
        query.edits(&remove.query, &rename.query, [&replace.query, &add.query, &set.query, &append.query]);
    let mut body = Parser {
        part: "body",
        name: Pointer::parse,
        new_name: Pointer::parse_new_name,
        value: |scalar: &Scalar| given_scalar(scalar, Side::Request),
        errors,
    };
    let body = body.edits(&remove.body, &rename.body, [&replace.body, &add.body, &set.body, &append.body]);
    RequestTransform { headers, query, body, max_body: usize::try_from(max_body.0).unwrap_or(usize::MAX) }
}

fn text(bytes: Vec<u8>) -> Option<Box<str>> {
    String::from_utf8(bytes).ok().map(Into::into)
}

fn default_max_body() -> ByteSize {
    ByteSize(1 << 20)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Client, build, refused};

    /// The request headers after the plugin, sorted.
    fn headers_after(config: Value, headers: &[(&str, &str)]) -> Vec<String> {
        let mut client = Client::new("GET", "/");
        for (name, value) in headers {
            client = client.header(name, value);
        }
        assert!(client.meets(&*build("request-transform", config)).is_none());
        let mut lines: Vec<_> = client
            .head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    fn uri_after(config: Value, uri: &str) -> String {
        let mut client = Client::new("GET", uri);
        assert!(client.meets(&*build("request-transform", config)).is_none());
        client.head.uri.to_string()
    }

    fn body_after(config: Value, body: &str) -> Result<String, u16> {
        let mut client = Client::new("POST", "/").header("content-type", "application/json; charset=utf-8");
        let plugin = build("request-transform", config);
        assert!(client.meets(&*plugin).is_none());
        client.sends(&*plugin, body).map_err(|answer| answer.status)
    }

    #[test]
    fn headers_are_changed_operation_by_operation() {
        let after = headers_after(
            json!({
                "remove": {"headers": ["X-Gone", "x-removed-then-added"]},
                "rename": {"headers": {"x-old": "x-new", "x-absent": "x-kept"}},
                "replace": {"headers": {"x-new": "replaced", "x-nowhere": "no"}},
                "add": {"headers": {"x-removed-then-added": "again", "x-kept": "no"}},
                "append": {"headers": {"x-kept": "more", "x-fresh": "one"}},
            }),
            &[
                ("x-gone", "1"),
                ("x-gone", "2"),
                ("x-removed-then-added", "1"),
                ("x-old", "a"),
                ("x-old", "b"),
                ("x-new", "overwritten"),
                ("x-kept", "kept"),
            ],
        );
        assert_eq!(
            after,
            [
                "x-fresh: one",
                "x-kept: kept",
                "x-kept: more",
                "x-new: replaced",
                "x-removed-then-added: again"
            ]
        );
    }

    #[test]
    fn a_renamed_header_keeps_all_its_values() {
        let config = json!({"rename": {"headers": {"x-old": "x-new"}}});
        let after = headers_after(config, &[("x-old", "a"), ("x-old", "b"), ("x-new", "c")]);
        assert_eq!(after, ["x-new: a", "x-new: b"]);
        assert_eq!(
            headers_after(json!({"rename": {"headers": {"x-a": "X-A"}}}), &[("x-a", "1")]),
            ["x-a: 1"]
        );
    }

    #[test]
    fn query_parameters_are_changed_and_the_others_stay_as_written() {
        for (config, uri, after) in [
            (json!({"remove": {"query": ["a"]}}), "/p?a=1&b=%7e+x&a&&c", "/p?b=%7e+x&&c"),
            (json!({"remove": {"query": ["a"]}}), "/p?%61=1", "/p"),
            (json!({"remove": {"query": ["a"]}}), "/p?", "/p?"),
            (json!({"remove": {"query": ["x"]}}), "/p?b=%7e+x&&", "/p?b=%7e+x&&"),
            (json!({"rename": {"query": {"a": "n m"}}}), "/p?a=%7e&b&a&n%20m=9", "/p?n%20m=%7e&b&n%20m"),
            (json!({"rename": {"query": {"a": "a"}}}), "/p?a=1", "/p?a=1"),
            (json!({"replace": {"query": {"a": "x&y"}}}), "/p?b&a=1&c&a=2", "/p?b&a=x%26y&c"),
            (json!({"replace": {"query": {"a": "x"}}}), "/p?b", "/p?b"),
            (json!({"add": {"query": {"a": "1", "b": "2"}}}), "/p?b", "/p?b&a=1"),
            (json!({"add": {"query": {"a": "ä"}}}), "/p", "/p?a=%C3%A4"),
            (json!({"append": {"query": {"a": "2"}}}), "/p?a=1&b", "/p?a=1&b&a=2"),
            (json!({"append": {"query": {"a": "2"}}}), "http://host/p", "http://host/p?a=2"),
            (json!({"append": {"query": {"a": "2"}}}), "*", "*"),
            (
                json!({
                    "remove": {"query": ["a"]}, "rename": {"query": {"b": "c"}}, "replace": {"query": {"c": "3"}},
                    "add": {"query": {"a": "1"}}, "append": {"query": {"a": "2"}},
                }),
                "/?a=0&b=0",
                "/?c=3&a=1&a=2",
            ),
        ] {
            assert_eq!(uri_after(config.clone(), uri), after, "{config}");
        }
    }

    #[test]
    fn members_of_the_body_are_changed_and_the_others_stay_as_written() {
        let all = json!({
            "remove": {"body": ["gone"]},
            "rename": {"body": {"old": "new"}},
            "replace": {"body": {"new": 2, "nowhere": 1}},
            "add": {"body": {"added": true, "kept": 0}},
            "append": {"body": {"list": "z", "empty": null, "one": 1.5, "none": "x"}},
        });
        assert_eq!(
            body_after(
                all,
                r#" {"gone":1, "kept": 123456789012345678901234567890.10, "old":{"a":[1]}, "new":0, "gone":{},
                   "list":["y" ],"empty":[ ],"one":{"b" : 1}} "#
            )
            .unwrap(),
            r#"{"kept":123456789012345678901234567890.10,"new":2,"list":["y","z"],"empty":[null],"one":[{"b" : 1},1.5],"added":true,"none":["x"]}"#
        );
        let add = || json!({"add": {"body": {"a\"b": "c\nd"}}});
        assert_eq!(body_after(add(), "{}").unwrap(), r#"{"a\"b":"c\nd"}"#);
        // It is there, so nothing is written anew.
        assert_eq!(body_after(add(), r#"{"a\u0022b": 1}"#).unwrap(), r#"{"a\u0022b": 1}"#);
        let set = json!({"set": {"body": {"a": 2, "b": 3}}});
        assert_eq!(body_after(set, r#"{"a":1,"c":0,"a":4}"#).unwrap(), r#"{"a":2,"c":0,"b":3}"#);
    }

    #[test]
    fn json_pointers_lead_into_the_body() {
        for (config, before, after) in [
            (
                json!({"remove": {"body": ["/a/b"]}}),
                r#"{"a":{"b":1,"c":[ 2 ]},"b":3}"#,
                r#"{"a":{"c":[ 2 ]},"b":3}"#,
            ),
            (json!({"remove": {"body": ["/a/b"]}}), r#"{"a":{"b":1},"a":{"b":2}}"#, r#"{"a":{},"a":{}}"#),
            (json!({"remove": {"body": ["/l/1", "/l/01", "/l/9"]}}), r#"{"l":[1,2,3]}"#, r#"{"l":[1,3]}"#),
            (json!({"remove": {"body": ["/0/x"]}}), r#"[{"x":1,"y":2},{"x":3}]"#, r#"[{"y":2},{"x":3}]"#),
            (json!({"remove": {"body": ["/a~1b/c~0d"]}}), r#"{"a/b":{"c~d":1}}"#, r#"{"a/b":{}}"#),
            (json!({"remove": {"body": ["/a/b"]}}), r#"{"a": "text"}"#, r#"{"a": "text"}"#),
            (json!({"rename": {"body": {"/a/b": "d"}}}), r#"{"a":{"b":1,"d":2}}"#, r#"{"a":{"d":1}}"#),
            (json!({"replace": {"body": {"/l/0": null, "/l/2": 1}}}), r#"{"l":[1,2]}"#, r#"{"l":[null,2]}"#),
            (json!({"add": {"body": {"/a/b/c": 1}}}), "{}", r#"{"a":{"b":{"c":1}}}"#),
            (json!({"add": {"body": {"/a/b/c": 1}}}), r#"{"a":{"b":7}}"#, r#"{"a":{"b":7}}"#),
            (json!({"set": {"body": {"/a/b": 1}}}), r#"{"a":{"b":{"c":2}}}"#, r#"{"a":{"b":1}}"#),
            (json!({"append": {"body": {"/a/l": 3}}}), r#"{"a":{"l":[1, 2]}}"#, r#"{"a":{"l":[1,2,3]}}"#),
            (json!({"append": {"body": {"/l/0": 3}}}), r#"{"l":[1]}"#, r#"{"l":[[1,3]]}"#),
        ] {
            assert_eq!(body_after(config.clone(), before).unwrap(), after, "{config} {before}");
        }
        let many = format!("[{}0]", "0,".repeat(1_000_000));
        assert_eq!(body_after(json!({"remove": {"body": ["/0"]}, "max_body": "4MiB"}), &many), Err(400));
    }

    #[test]
    fn templates_take_their_values_from_the_request() {
        let config = json!({
            "set": {
                "headers": {"x-user": "u-{request.header.x-id}", "x-page": "{request.query.page|1}", "x-line": "{request.query.line}"},
                "query": {"from": "{request.path}", "who": "{request.header.x-nobody}"},
                "body": {"ip": "{client.ip}", "/meta/id": "{request.header.x-id}", "gone": "{request.header.x-nobody}"},
            },
            "remove": {"headers": ["x-user"]},
        });
        let plugin = build("request-transform", config);
        let mut client = Client::new("POST", "/a%20b?line=a%0d%0ax-evil:1&who=me")
            .header("content-type", "application/json")
            .header("x-user", "root")
            .header("x-id", "7\"\\");
        assert!(client.meets(&*plugin).is_none());
        let headers = &client.head.headers;
        assert_eq!(headers["x-user"], "u-7\"\\");
        assert_eq!(headers["x-page"], "1");
        assert!(!headers.contains_key("x-line"), "no value has a line break");
        assert_eq!(client.head.uri, "/a%20b?line=a%0d%0ax-evil:1&from=%2Fa%2520b");
        let body = client.sends(&*plugin, "{}").unwrap();
        assert_eq!(body, r#"{"meta":{"id":"7\"\\"},"ip":"192.0.2.1"}"#);
    }

    #[test]
    fn what_is_no_object_stays_as_it_is() {
        for body in ["", "[1, 2]", " null ", "\"text\""] {
            assert_eq!(body_after(json!({"add": {"body": {"a": 1}}}), body).unwrap(), body);
        }
    }

    #[test]
    fn a_body_that_is_no_json_is_refused() {
        let deep = format!("{}1", "[".repeat(100_000));
        for body in ["{", "{\"a\":}", "x", "{} {}", "{\"a\":1,}", &deep] {
            assert_eq!(body_after(json!({"remove": {"body": ["b"]}}), body), Err(400), "{body:.20}");
        }
        let plugin = build("request-transform", json!({"remove": {"body": ["b"]}}));
        let mut client = Client::new("POST", "/").header("content-type", "application/json");
        let mut body = Bytes::from_static(b"{\"a\":\"\xff\"}");
        assert!(matches!(plugin.on_request_body(&mut client.request(), &mut body), Flow::Respond(_)));
    }

    #[test]
    fn only_json_bodies_are_wanted() {
        let plugin = build("request-transform", json!({"add": {"body": {"a": 1}}, "max_body": "2KiB"}));
        for (content_type, wanted) in [
            ("application/json", true),
            ("Application/JSON;charset=utf-8", true),
            ("application/problem+json", true),
            ("text/plain", false),
            ("application/jsonl", false),
            ("json", false),
        ] {
            let mut client = Client::new("POST", "/").header("content-type", content_type);
            let wish = plugin.request_body(&mut client.request());
            assert_eq!(matches!(wish, BodyWish::Buffered(2048)), wanted, "{content_type}");
            // Nor is it touched should it be given one all the same.
            let mut body = Bytes::from_static(b"{}");
            assert!(matches!(plugin.on_request_body(&mut client.request(), &mut body), Flow::Continue));
            assert_eq!(body != "{}", wanted);
        }
        assert!(matches!(plugin.request_body(&mut Client::new("POST", "/").request()), BodyWish::Pass));
        let two = Client::new("POST", "/").header("content-type", "text/plain");
        let mut two = two.header("content-type", "application/json");
        assert!(matches!(plugin.on_request(&mut two.request()), Flow::Respond(_)));
        let plugin = build("request-transform", json!({"add": {"headers": {"a": "1"}}}));
        let mut json = Client::new("POST", "/").header("content-type", "application/json");
        assert!(matches!(plugin.request_body(&mut json.request()), BodyWish::Pass));
    }

    #[test]
    fn a_compressed_json_body_is_refused() {
        let plugin = build("request-transform", json!({"remove": {"body": ["admin"]}}));
        let json = || Client::new("POST", "/").header("content-type", "application/json");
        assert_eq!(json().header("content-encoding", "gzip").meets(&*plugin).unwrap().status, 415);
        assert!(json().header("content-encoding", "identity").meets(&*plugin).is_none());
        let mut other = Client::new("POST", "/").header("content-encoding", "gzip");
        assert!(other.meets(&*plugin).is_none());
    }

    #[test]
    fn bad_configurations_are_refused_with_all_that_is_wrong() {
        let all = refused(
            "request-transform",
            json!({
                "remove": {"headers": ["x-a", "Content-Length"], "query": [""]},
                "rename": {"headers": {"x-a": "transfer-encoding", "host": "x-host"}},
                "add": {"headers": {"a b": "1", "x-b": "line\nbreak"}, "body": {"": 1, "x": [1]}},
                "replace": {"cookies": {}},
                "set": {"headers": {"x-c": "{request.nothing}"}, "body": {"/a~2": 1}},
                "max_body": "1GiB",
            }),
        );
        for expected in [
            "remove.headers[1]: content-length frames",
            "remove.query[0]: ",
            "rename.headers.x-a: transfer-encoding frames",
            "rename.headers.host: the host is changed by",
            "add.headers.a b: ",
            "add.headers.x-b: cannot be sent",
            "add.body.: ",
            "add.body.x: must be a",
            "replace.cookies: unknown field",
            "set.headers.x-c: {request.nothing} is no placeholder",
            "set.body./a~2: is no JSON pointer",
            "max_body: ",
        ] {
            assert!(all.contains(expected), "{expected} in {all}");
        }
    }

    /// A query's parameters, decoded: what an upstream sees.
    fn decoded(uri: &Uri) -> Vec<(Vec<u8>, Vec<u8>)> {
        let decode = |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).collect();
        let split = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (decode(name), decode(value))
        };
        uri.query()
            .map(|query| query.split('&').filter(|text| !text.is_empty()).map(split).collect())
            .unwrap_or_default()
    }

    proptest! {
        /// Against the operations done on decoded pairs.
        #[test]
        fn query_edits_are_what_they_are_on_decoded_pairs(
            query in "([ab%+61]{0,3}(=[xy%20+]{0,3})?&?){0,5}",
            operation in 0..5,
            name in "[ab]",
            other in "[abc]",
        ) {
            let uri: Uri = format!("/?{query}").parse().unwrap();
            let config = match operation {
                0 => json!({"remove": {"query": [name]}}),
                1 => json!({"rename": {"query": {name.clone(): other}}}),
                2 => json!({"replace": {"query": {name.clone(): other}}}),
                3 => json!({"add": {"query": {name.clone(): other}}}),
                _ => json!({"append": {"query": {name.clone(): other}}}),
            };
            let mut expected = decoded(&uri);
            let (name, other) = (name.into_bytes(), other.into_bytes());
            let present = expected.iter().any(|(n, _)| *n == name);
            match operation {
                0 => expected.retain(|(n, _)| *n != name),
                1 if present => {
                    expected.retain(|(n, _)| *n != other || name == other);
                    expected.iter_mut().filter(|(n, _)| *n == name).for_each(|(n, _)| n.clone_from(&other));
                }
                2 if present => {
                    let first = expected.iter().position(|(n, _)| *n == name).unwrap();
                    expected[first].1 = other;
                    let mut index = 0;
                    expected.retain(|(n, _)| { index += 1; index - 1 <= first || *n != name });
                }
                3 if !present => expected.push((name, other)),
                4 => expected.push((name, other)),
                _ => {}
            }
            let after: Uri = uri_after(config, &uri.to_string()).parse().unwrap();
            prop_assert_eq!(decoded(&after), expected);
        }
    }
}
