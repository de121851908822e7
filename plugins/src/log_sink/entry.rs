//! The fields of an entry.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderValue, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::Errors;
use signalbox_plugin::{LogRecord, PluginResponse};
use smallvec::SmallVec;

use super::Entry;
use crate::template::{Encoding, Side, Template, Values};

/// The fields that a configuration wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SelectionSpec<'c> {
    /// Absent: all.
    pub(crate) fields: Option<&'c [Field]>,
    pub(crate) custom_fields: &'c BTreeMap<String, String>,
}

/// The fields of the entries of a plugin.
#[derive(Debug)]
pub(crate) struct Selection {
    fields: Box<[Field]>,
    custom: Box<[(Box<str>, Template)]>,
}

/// The values of the custom fields of an exchange, which its response has shown. `None`: it has none.
pub(crate) struct CustomValues(SmallVec<[Option<Box<str>>; 4]>);

/// A field of an access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Field {
    /// The time at which the head of the request was complete, by RFC 3339.
    Time,
    /// The id of the request.
    RequestId,
    /// The id of its trace.
    TraceId,
    /// The id of its span, if the proxy exports that.
    SpanId,
    /// True if the proxy exports its span.
    Sampled,
    /// The client's address.
    Client,
    /// The method.
    Method,
    /// The host that the client asked for, with its port if it gave one.
    Host,
    /// The path, without the query.
    Path,
    /// The protocol, `HTTP/1.1`.
    Protocol,
    /// The status of the response.
    Status,
    /// The response flags.
    Flags,
    /// The route.
    Route,
    /// The upstream.
    Upstream,
    /// The reason why the target did not answer.
    UpstreamError,
    /// The target.
    Target,
    /// The number of times that the request was sent.
    Attempts,
    /// The time from the head of the request to the end of the response, in milliseconds.
    DurationMs,
    /// The time that the target took for the head of its response, in milliseconds, or null.
    UpstreamMs,
    /// The bytes of the request's body.
    BytesIn,
    /// The bytes of the response's body.
    BytesOut,
    /// The consumer.
    Consumer,
    /// The plugin that answered or failed.
    Plugin,
    /// The answers that plugins in shadow would have given. It is left out where there are none.
    Shadow,
    /// The user agent.
    UserAgent,
    /// The revision.
    Revision,
}

/// The value of a field.
#[derive(Debug, PartialEq)]
pub(crate) enum Value<'r> {
    Text(Cow<'r, str>),
    Number(u64),
    Bool(bool),
    Millis(f64),
    /// A time since 1970.
    Time(Duration),
    Null,
}

/// The most custom fields.
const MAX_CUSTOM: usize = 32;
const MAX_NAME: usize = 64;

impl Field {
    /// All, in the order of the access log.
    const ALL: [Self; 26] = [
        Self::Time,
        Self::RequestId,
        Self::TraceId,
        Self::SpanId,
        Self::Sampled,
        Self::Client,
        Self::Method,
        Self::Host,
        Self::Path,
        Self::Protocol,
        Self::Status,
        Self::Flags,
        Self::Route,
        Self::Upstream,
        Self::UpstreamError,
        Self::Target,
        Self::Attempts,
        Self::DurationMs,
        Self::UpstreamMs,
        Self::BytesIn,
        Self::BytesOut,
        Self::Consumer,
        Self::Plugin,
        Self::Shadow,
        Self::UserAgent,
        Self::Revision,
    ];

    /// The name in the access log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::RequestId => "request_id",
            Self::TraceId => "trace_id",
            Self::SpanId => "span_id",
            Self::Sampled => "sampled",
            Self::Client => "client",
            Self::Method => "method",
            Self::Host => "host",
            Self::Path => "path",
            Self::Protocol => "protocol",
            Self::Status => "status",
            Self::Flags => "flags",
            Self::Route => "route",
            Self::Upstream => "upstream",
            Self::UpstreamError => "upstream_error",
            Self::Target => "target",
            Self::Attempts => "attempts",
            Self::DurationMs => "duration_ms",
            Self::UpstreamMs => "upstream_ms",
            Self::BytesIn => "bytes_in",
            Self::BytesOut => "bytes_out",
            Self::Consumer => "consumer",
            Self::Plugin => "plugin",
            Self::Shadow => "shadow",
            Self::UserAgent => "user_agent",
            Self::Revision => "revision",
        }
    }

    /// The value in a record.
    pub(crate) fn value<'r>(self, record: &LogRecord<'r>) -> Value<'r> {
        let bytes = |bytes: &'r [u8]| Value::Text(String::from_utf8_lossy(bytes));
        let header = |value: Option<&'r HeaderValue>| bytes(value.map_or(b"", HeaderValue::as_bytes));
        let text = |text: &'r str| Value::Text(text.into());
        match self {
            Self::Time => Value::Time(record.time),
            Self::RequestId => bytes(record.request_id),
            Self::TraceId => bytes(record.trace_id),
            Self::SpanId => bytes(record.span_id),
            Self::Sampled => Value::Bool(!record.span_id.is_empty()),
            Self::Client => bytes(record.client),
            Self::Method => text(record.method.as_str()),
            Self::Host => header(record.host),
            Self::Path => text(record.uri.path()),
            Self::Protocol => text(match record.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            }),
            Self::Status => Value::Number(record.status.as_u16().into()),
            Self::Flags => text(record.flags),
            Self::Route => text(record.route),
            Self::Upstream => text(record.upstream),
            Self::UpstreamError => text(record.upstream_error),
            Self::Target => text(record.target),
            Self::Attempts => Value::Number(record.attempts.into()),
            Self::DurationMs => millis(record.duration),
            Self::UpstreamMs => record.upstream_duration.map_or(Value::Null, millis),
            Self::BytesIn => Value::Number(record.bytes_in),
            Self::BytesOut => Value::Number(record.bytes_out),
            Self::Consumer => text(record.consumer),
            Self::Plugin => text(record.plugin),
            Self::Shadow => text(record.shadow),
            Self::UserAgent => header(record.user_agent),
            Self::Revision => Value::Number(record.revision),
        }
    }
}

/// Milliseconds with three decimals.
fn millis<'r>(duration: Duration) -> Value<'r> {
    Value::Millis(duration.as_micros() as f64 / 1000.0)
}

impl SelectionSpec<'_> {
    /// Reads it, with the errors of the plugin's fields.
    pub(crate) fn parse(&self, errors: &mut Errors) -> Selection {
        if self.fields.is_some_and(<[Field]>::is_empty) && self.custom_fields.is_empty() {
            errors.push("fields", "must have at least one field, or there are custom_fields");
        }
        for (index, field) in self.fields.into_iter().flatten().enumerate() {
            if self.fields.is_some_and(|fields| fields.iter().take(index).any(|before| before == field)) {
                errors.push(format_args!("fields[{index}]"), "is there twice");
            }
        }
        if self.custom_fields.len() > MAX_CUSTOM {
            errors.push("custom_fields", format_args!("has more than {MAX_CUSTOM} fields"));
        }
        let mut custom = Vec::new();
        for (name, text) in self.custom_fields {
            let field = format!("custom_fields.{name}");
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain) {
                errors
                    .push(&field, "must be named by up to 64 letters, digits, dots, hyphens and underscores");
            } else if Field::ALL.iter().any(|field| field.name() == name) {
                errors.push(&field, "is the name of a field that every log has");
            }
            match Template::parse(text, Side::Response) {
                Ok(template) if template.may_show_credentials() => errors.push(
                    field,
                    "shows credentials: headers of authentication, cookies and whole queries are not logged",
                ),
                Ok(template) => custom.push((name.as_str().into(), template)),
                Err(error) => errors.push(field, error),
            }
        }
        Selection { fields: self.fields.unwrap_or(&Field::ALL).into(), custom: custom.into() }
    }
}

impl Selection {
    /// Leaves the values of the custom fields in the exchange.
    pub(crate) fn note(&self, response: &mut PluginResponse<'_>) {
        if self.custom.is_empty() {
            return;
        }
        let values = Values::of_response(response);
        let rendered = self.custom.iter().map(|(_, template)| {
            let value = template.render(&values, Encoding::Plain)?;
            Some(String::from_utf8_lossy(&value).into())
        });
        let rendered = CustomValues(rendered.collect());
        response.exchange.insert(rendered);
    }

    /// Shows each field of an exchange that has ended.
    pub(crate) fn each<'r>(&self, record: &'r LogRecord<'r>, mut show: impl FnMut(FieldName<'_>, Value<'r>)) {
        for field in &self.fields {
            let value = field.value(record);
            if *field != Field::Shadow || !record.shadow.is_empty() {
                show(FieldName::Known(*field), value);
            }
        }
        if let Some(CustomValues(values)) = record.get() {
            for ((name, _), value) in self.custom.iter().zip(values) {
                if let Some(value) = value {
                    show(FieldName::Custom(name), Value::Text(Cow::Borrowed(value)));
                }
            }
        }
    }

    /// The entry as a JSON object without a line break.
    pub(crate) fn json(&self, record: &LogRecord<'_>) -> Entry {
        let mut out = Vec::with_capacity(1024);
        out.push(b'{');
        self.each(record, |name, value| {
            if out.len() > 1 {
                out.push(b',');
            }
            // The names need no escaping.
            out.push(b'"');
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b"\":");
            value.write_json(&mut out);
        });
        out.push(b'}');
        out.into()
    }
}

/// The name of a field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FieldName<'s> {
    Known(Field),
    Custom(&'s str),
}

impl<'s> FieldName<'s> {
    pub(crate) fn as_str(self) -> &'s str {
        match self {
            Self::Known(field) => field.name(),
            Self::Custom(name) => name,
        }
    }
}

impl Value<'_> {
    fn write_json(&self, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let written = match self {
            Self::Text(text) => serde_json::to_writer(&mut *out, text),
            Self::Number(number) => serde_json::to_writer(&mut *out, number),
            Self::Bool(is_true) => serde_json::to_writer(&mut *out, is_true),
            Self::Millis(millis) => serde_json::to_writer(&mut *out, millis),
            Self::Time(time) => serde_json::to_writer(&mut *out, &timestamp(*time)),
            Self::Null => serde_json::to_writer(&mut *out, &()),
        };
        debug_assert!(written.is_ok());
    }
}

/// A time since 1970 by RFC 3339, to the millisecond.
fn timestamp(time: Duration) -> String {
    let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode, Uri};
    use serde_json::json;

    use super::*;

    fn selection(fields: Option<&[Field]>) -> Selection {
        let mut errors = Errors::default();
        let selection = SelectionSpec { fields, custom_fields: &BTreeMap::new() }.parse(&mut errors);
        assert!(errors.is_empty());
        selection
    }

    #[test]
    fn an_entry_has_the_fields_of_the_access_log() {
        let (method, uri) = (Method::GET, Uri::from_static("/a%20b?token=secret"));
        let (host, agent) = (
            HeaderValue::from_static("a.example:8443"),
            HeaderValue::from_bytes(b"say \"hi\" \\ \t\xff\xc3\xa4").unwrap(),
        );
        let mut record = LogRecord::new(&method, &uri);
        record.time = Duration::from_millis(1_767_225_600_042);
        record.host = Some(&host);
        record.user_agent = Some(&agent);
        record.request_id = b"id-1";
        record.client = b"192.0.2.1";
        record.status = StatusCode::NOT_FOUND;
        record.duration = Duration::from_nanos(1_234_567_890);
        record.upstream_duration = Some(Duration::from_micros(7));
        record.bytes_out = u64::MAX;
        record.revision = 7;
        let line = selection(None).json(&record);
        let expected = json!({
            "time": "2026-01-01T00:00:00.042Z", "request_id": "id-1", "trace_id": "", "span_id": "",
            "sampled": false, "client": "192.0.2.1",
            "method": "GET", "host": "a.example:8443", "path": "/a%20b", "protocol": "HTTP/1.1", "status": 404,
            "flags": "", "route": "", "upstream": "", "upstream_error": "", "target": "", "attempts": 0,
            "duration_ms": 1234.567, "upstream_ms": 0.007, "bytes_in": 0, "bytes_out": u64::MAX, "consumer": "",
            "plugin": "", "user_agent": "say \"hi\" \\ \t\u{fffd}\u{e4}", "revision": 7,
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&line).unwrap(), expected);
        assert!(line.iter().all(|byte| *byte >= b' '), "control characters are escaped");
        record.shadow = "limit:429";
        record.upstream_duration = None;
        let line = selection(Some(&[Field::Shadow, Field::UpstreamMs, Field::Status])).json(&record);
        assert_eq!(&*line, br#"{"shadow":"limit:429","upstream_ms":null,"status":404}"#);
    }

    #[test]
    fn fields_have_the_names_by_which_they_are_configured() {
        for field in Field::ALL {
            assert_eq!(json!(field), field.name());
        }
    }

    #[test]
    fn bad_fields_are_refused() {
        let long = "x".repeat(65);
        for (name, template, message) in [
            ("", "x", "must be named"),
            ("a b", "x", "must be named"),
            (&*long, "x", "must be named"),
            ("status", "x", "is the name of a field"),
            ("x", "{request.body}", "{request.body} is no placeholder"),
            ("x", "a {request.header.authorization}", "shows credentials"),
            ("x", "{request.header.Proxy-Authorization|}", "shows credentials"),
            ("x", "{request.header.cookie}", "shows credentials"),
            ("x", "{response.header.set-cookie}", "shows credentials"),
            ("x", "{request.cookie.session}", "shows credentials"),
            ("x", "{request.query}", "shows credentials"),
        ] {
            let custom_fields = &BTreeMap::from([(name.to_owned(), template.to_owned())]);
            let mut errors = Errors::default();
            SelectionSpec { fields: Some(&[]), custom_fields }.parse(&mut errors);
            let errors = errors.finish(Some(())).unwrap_err();
            let [error] = &*errors else { panic!("{errors:?}") };
            assert_eq!(error.field, format!("custom_fields.{name}"));
            assert!(error.message.starts_with(message), "{name} {template}: {}", error.message);
        }
        for fields in [&[][..], &[Field::Time, Field::Time]] {
            let mut errors = Errors::default();
            SelectionSpec { fields: Some(fields), custom_fields: &BTreeMap::new() }.parse(&mut errors);
            assert!(!errors.is_empty(), "{fields:?}");
        }
    }
}
