//! Changes headers, query parameters and the JSON body of a request on its way to the upstream.
//!
//! There are five operations, done in this order, each for headers, query and body:
//!
//! 1. `remove` takes out everything of a name;
//! 2. `rename` gives another name, and replaces what had that name before;
//! 3. `replace` sets a value where the name is present;
//! 4. `add` sets a value where the name is absent;
//! 5. `append` adds one more value, whether the name is present or not.
//!
//! Values are plain text; in a body they may also be numbers, booleans and null.
//!
//! **Headers**: names have no case. Those that frame a message or belong to one connection (`Content-Length`,
//! `Transfer-Encoding`, `Connection` …) cannot be changed; the host is changed by the route's `rewrite`.
//!
//! **Query**: parameters that no operation names keep their place and their encoding. New values are percent-encoded.
//!
//! **Body**: the members of a JSON object, on its first level. Members that no operation names stay as they are, to the
//! last digit of their numbers. `append` makes a list of what is there, or adds to the list. Only bodies of a JSON content
//! type (`application/json`, `…+json`, as it is after the headers were changed) are read, held in memory up to `max_body`;
//! all others stream through. A JSON value that is not an object stays as it is. A body that is not valid JSON is answered
//! `400`, one that is too large `413`, and one that is compressed `415`, for what a client can hide could not be removed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use signalbox_config::{ByteSize, Errors, FieldError};
use signalbox_plugin::{
    BodyWish, Context, Definition, Flow, OnConditionError, Plugin, PluginRequest, Reply, hooks,
};

use crate::headers::header_name;
use crate::query;

/// The changes, operation by operation.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Request transformation", example = serde_json::json!({
    "remove": {"headers": ["x-debug"], "query": ["trace"]},
    "rename": {"headers": {"x-old": "x-new"}},
    "add": {"headers": {"x-api-version": "2"}, "body": {"source": "gateway"}},
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
    #[serde(default, skip_serializing_if = "Values::is_empty")]
    #[schemars(title = "Replace")]
    replace: Values,
    /// The fourth operation sets values where the name is absent.
    #[serde(default, skip_serializing_if = "Values::is_empty")]
    #[schemars(title = "Add")]
    add: Values,
    /// The fifth operation adds values to those that are there.
    #[serde(default, skip_serializing_if = "Values::is_empty")]
    #[schemars(title = "Append")]
    append: Values,
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
    /// Members of the JSON body.
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
    /// Members of the JSON body, old name to new name.
    #[schemars(title = "Body")]
    body: BTreeMap<String, String>,
}

/// Names and values.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Values {
    /// Headers, name to value.
    #[schemars(title = "Headers")]
    headers: BTreeMap<String, String>,
    /// Query parameters, name to value.
    #[schemars(title = "Query")]
    query: BTreeMap<String, String>,
    /// Members of the JSON body, name to value.
    #[schemars(title = "Body")]
    body: BTreeMap<String, Scalar>,
}

/// A JSON value that is neither a list nor an object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Scalar(Value);

/// Changes a request on its way to the upstream.
pub(crate) struct RequestTransform {
    headers: Edits<HeaderName, HeaderValue>,
    query: Edits<Box<str>, Box<str>>,
    body: Edits<Box<str>, Box<RawValue>>,
    max_body: usize,
}

#[hooks]
impl Plugin for RequestTransform {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        edit_headers(&self.headers, &mut request.head.headers);
        if !self.query.is_empty()
            && let Some(uri) = edit_query(&self.query, &request.head.uri)
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
        match edit_body(&self.body, body) {
            Ok(Some(changed)) => *body = changed,
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

/// The five operations, in their order.
#[derive(Debug)]
struct Edits<N, V> {
    remove: Vec<N>,
    rename: Vec<(N, N)>,
    replace: Vec<(N, V)>,
    add: Vec<(N, V)>,
    append: Vec<(N, V)>,
}

impl<N, V> Edits<N, V> {
    fn is_empty(&self) -> bool {
        let Self { remove, rename, replace, add, append } = self;
        remove.is_empty() && rename.is_empty() && replace.is_empty() && add.is_empty() && append.is_empty()
    }
}

fn edit_headers(edits: &Edits<HeaderName, HeaderValue>, headers: &mut HeaderMap) {
    for name in &edits.remove {
        headers.remove(name);
    }
    for (old, new) in &edits.rename {
        let values: Vec<HeaderValue> = headers.get_all(old).iter().cloned().collect();
        if !values.is_empty() {
            headers.remove(old);
            headers.remove(new);
            for value in values {
                headers.append(new.clone(), value);
            }
        }
    }
    for (name, value) in &edits.replace {
        if headers.contains_key(name) {
            headers.insert(name.clone(), value.clone());
        }
    }
    for (name, value) in &edits.add {
        if !headers.contains_key(name) {
            headers.insert(name.clone(), value.clone());
        }
    }
    for (name, value) in &edits.append {
        headers.append(name.clone(), value.clone());
    }
}

/// The URI with its query changed; `None` when it stays as it is.
fn edit_query(edits: &Edits<Box<str>, Box<str>>, uri: &Uri) -> Option<Uri> {
    let query = uri.query().unwrap_or_default();
    let mut texts: Vec<Cow<'_, str>> =
        query::parameters(query).filter(|_| uri.query().is_some()).map(|p| p.text().into()).collect();
    let before = texts.clone();
    let is = |text: &str, name: &str| query::parameters(text).any(|parameter| parameter.is_named(name));
    let set =
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
    for (name, value) in &edits.replace {
        let mut found = false;
        texts.retain_mut(|text| {
            if !is(text, name) {
                return true;
            }
            *text = set(name, value);
            !std::mem::replace(&mut found, true)
        });
    }
    for (name, value) in &edits.add {
        if !texts.iter().any(|text| is(text, name)) {
            texts.push(set(name, value));
        }
    }
    texts.extend(edits.append.iter().map(|(name, value)| set(name, value)));
    if texts == before { None } else { query::with_query(uri, &texts.join("&")) }
}

/// The body with its members changed; `None` when it is no object. An error when it is no JSON.
fn edit_body(
    edits: &Edits<Box<str>, Box<RawValue>>,
    body: &[u8],
) -> Result<Option<Bytes>, serde_json::Error> {
    let whole: &RawValue = serde_json::from_slice(body)?;
    if !whole.get().starts_with('{') {
        return Ok(None);
    }
    let Members(mut members) = serde_json::from_str(whole.get())?;
    for name in &edits.remove {
        members.retain(|(member, _)| *member != **name);
    }
    for (old, new) in &edits.rename {
        if members.iter().any(|(member, _)| *member == **old) {
            members.retain(|(member, _)| *member != **new || old == new);
            for (member, _) in members.iter_mut().filter(|(member, _)| *member == **old) {
                *member = Cow::Borrowed(new);
            }
        }
    }
    for (name, value) in &edits.replace {
        let mut found = false;
        members.retain_mut(|(member, old)| {
            if *member != **name {
                return true;
            }
            *old = Cow::Borrowed(&**value);
            !std::mem::replace(&mut found, true)
        });
    }
    for (name, value) in &edits.add {
        if !members.iter().any(|(member, _)| *member == **name) {
            members.push((Cow::Borrowed(name), Cow::Borrowed(&**value)));
        }
    }
    for (name, value) in &edits.append {
        let list = match members.iter_mut().find(|(member, _)| *member == **name) {
            Some((_, old)) => {
                *old = Cow::Owned(appended(old, value)?);
                continue;
            }
            None => RawValue::from_string(format!("[{}]", value.get()))?,
        };
        members.push((Cow::Borrowed(name), Cow::Owned(list)));
    }
    Ok(Some(serde_json::to_vec(&Members(members))?.into()))
}

/// `old`, as a list, with `value` behind it.
fn appended(old: &RawValue, value: &RawValue) -> Result<Box<RawValue>, serde_json::Error> {
    let (old, value) = (old.get(), value.get());
    let list = match old.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(items) if items.trim().is_empty() => format!("[{value}]"),
        Some(items) => format!("[{items},{value}]"),
        None => format!("[{old},{value}]"),
    };
    RawValue::from_string(list)
}

/// The members of an object in their order, their values as they were written.
struct Members<'a>(Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((name, Cow::Borrowed(value)));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, &**value)?;
        }
        map.end()
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(text) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.contains('/') && essence.ends_with("+json"))
}

fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
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

impl Values {
    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.query.is_empty() && self.body.is_empty()
    }
}

impl JsonSchema for Scalar {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "number", "boolean", "null"],
            "description": "A text, a number, true, false or null",
        })
    }
}

/// Reads a configuration. Parts that are wrong are missing from the result.
fn parse(config: &Config, errors: &mut Errors) -> RequestTransform {
    if config.max_body.0 == 0 || config.max_body.0 > MAX_BODY {
        errors.push("max_body", "must be at least 1 byte, and at most 64MiB");
    }
    let mut header =
        Parser { part: "headers", name: header_name, value: |text: &String| header_value(text), errors };
    let headers = header.edits(
        &config.remove.headers,
        &config.rename.headers,
        [&config.replace.headers, &config.add.headers, &config.append.headers],
    );
    let plain = |text: &String| Ok::<Box<str>, String>(text.as_str().into());
    let mut query = Parser { part: "query", name: plain_name, value: plain, errors };
    let query = query.edits(
        &config.remove.query,
        &config.rename.query,
        [&config.replace.query, &config.add.query, &config.append.query],
    );
    let mut body = Parser { part: "body", name: plain_name, value: scalar, errors };
    let body = body.edits(
        &config.remove.body,
        &config.rename.body,
        [&config.replace.body, &config.add.body, &config.append.body],
    );
    RequestTransform {
        headers,
        query,
        body,
        max_body: usize::try_from(config.max_body.0).unwrap_or(usize::MAX),
    }
}

/// Reads the operations on one part of the request.
struct Parser<'e, N, V> {
    part: &'static str,
    name: N,
    value: V,
    errors: &'e mut Errors,
}

impl<N, V> Parser<'_, N, V> {
    fn edits<Name, Text, Value>(
        &mut self,
        remove: &[String],
        rename: &BTreeMap<String, String>,
        [replace, add, append]: [&BTreeMap<String, Text>; 3],
    ) -> Edits<Name, Value>
    where
        N: Fn(&str) -> Result<Name, String>,
        V: Fn(&Text) -> Result<Value, String>,
    {
        Edits {
            remove: remove
                .iter()
                .enumerate()
                .filter_map(|(index, name)| {
                    let field = format!("remove.{}[{index}]", self.part);
                    self.note(&field, (self.name)(name))
                })
                .collect(),
            rename: rename
                .iter()
                .filter_map(|(old, new)| {
                    let field = format!("rename.{}.{old}", self.part);
                    let (old, new) = ((self.name)(old), (self.name)(new));
                    self.note(&field, old).zip(self.note(&field, new))
                })
                .collect(),
            replace: self.values("replace", replace),
            add: self.values("add", add),
            append: self.values("append", append),
        }
    }

    fn values<Name, Text, Value>(
        &mut self,
        operation: &str,
        values: &BTreeMap<String, Text>,
    ) -> Vec<(Name, Value)>
    where
        N: Fn(&str) -> Result<Name, String>,
        V: Fn(&Text) -> Result<Value, String>,
    {
        values
            .iter()
            .filter_map(|(name, value)| {
                let field = format!("{operation}.{}.{name}", self.part);
                let (name, value) = ((self.name)(name), (self.value)(value));
                self.note(&field, name).zip(self.note(&field, value))
            })
            .collect()
    }

    fn note<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.errors.push(field, message)).ok()
    }
}

const MAX_BODY: u64 = 64 << 20;

fn header_value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|_| "cannot be sent in a header".to_owned())
}

fn plain_name(name: &str) -> Result<Box<str>, String> {
    if name.is_empty() { Err("a name must not be empty".to_owned()) } else { Ok(name.into()) }
}

fn scalar(Scalar(value): &Scalar) -> Result<Box<RawValue>, String> {
    if value.is_array() || value.is_object() {
        return Err("must be a text, a number, true, false or null".to_owned());
    }
    serde_json::value::to_raw_value(value).map_err(|error| error.to_string())
}

fn default_max_body() -> ByteSize {
    ByteSize(1 << 20)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

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
            r#"{"kept":123456789012345678901234567890.10,"new":2,"list":["y" ,"z"],"empty":[null],"one":[{"b" : 1},1.5],"added":true,"none":["x"]}"#
        );
        let add = || json!({"add": {"body": {"a\"b": "c\nd"}}});
        assert_eq!(body_after(add(), "{}").unwrap(), r#"{"a\"b":"c\nd"}"#);
        assert_eq!(body_after(add(), r#"{"a\u0022b":1}"#).unwrap(), r#"{"a\"b":1}"#);
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
