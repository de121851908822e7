//! The access log of a listener's requests: which of them have a line, and what it shows.

use std::borrow::Cow;
use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::error::Errors;
use crate::log_format::{
    COMBINED, COMMON, LogPart, MAX_LOGGED_HEADERS, Template, request_header, response_header,
};
use crate::values::HumanDuration;

/// The access log of a listener's requests. Absent: a line of JSON for every request, without headers and queries. A proxy's
/// `--access-log` says where lines go, and if there are any.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLogSpec {
    /// False: no request has a line. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Leaves out most lines of requests that went well. Absent: every request has a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<LogSampleSpec>,
    /// Shows the query in `path`, with `REDACTED` in the place of the values of parameters that usually are secrets (`token`, `sig`,
    /// `code`, …). Default false: the path alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<bool>,
    /// Further secrets that lines must not show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redact: Option<LogRedactionSpec>,
    /// The request headers that lines show, as the client sent them; at most 16. Names that tell of credentials are refused, such as
    /// `authorization`, `cookie` and `x-api-key`. A value is shown up to 256 bytes. For the format `json`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<String>,
    /// The response headers that lines show; likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<String>,
    /// The format of lines: `json` (default), `combined` as nginx writes it, `common` (the Common Log Format), or `{template: TEXT}`, a
    /// text with Envoy's command operators, such as `%START_TIME% %REQ(:METHOD)% %RESPONSE_CODE%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormatSpec>,
}

/// The lines that are left out. Every request has its line whose status is not from 200 to 299, that has a response flag, a gRPC status
/// other than OK, or was slow; of each `every` others on a worker, one has, chosen at random. A line has the field `weight`, the number
/// of requests that it stands for.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogSampleSpec {
    /// One of this many has a line, from 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000), example = 100)]
    pub every: u32,
    /// Requests that took this long or longer are slow, from 1ms to 1h; default 1s.
    #[schemars(example = &"1s")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<HumanDuration>,
}

/// Further secrets that lines must not show.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogRedactionSpec {
    /// Names of query parameters whose values are shown as `REDACTED`, whatever their case; at most 64. Needs `query`.
    #[schemars(example = &["invitation"])]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<String>,
}

/// The format of lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormatSpec {
    /// An object of JSON.
    Json,
    /// nginx's `combined`.
    Combined,
    /// The Common Log Format.
    Common,
    /// A text with Envoy's command operators.
    Template(String),
}

/// The access log of a listener's requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccessLog {
    /// False: no request has a line.
    pub enabled: bool,
    /// The lines that are left out; `None`: none.
    pub sample: Option<LogSample>,
    /// The names of query parameters whose values are not shown, besides those that usually are secrets, in lower case. `None`: no
    /// query is shown.
    pub query: Option<Box<[Box<str>]>>,
    /// The request headers that lines show.
    pub request_headers: Box<[HeaderName]>,
    /// The response headers that lines show.
    pub response_headers: Box<[HeaderName]>,
    /// The format of lines.
    pub format: LogFormat,
}

/// The lines that are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogSample {
    /// The number of ordinary requests of which one has a line.
    pub every: NonZeroU32,
    /// Requests that take so long have one in any case.
    pub slow: Duration,
}

/// The format of lines.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// An object of JSON, with the headers in two objects of its own.
    Json,
    /// A text. Its headers are all those that lines show.
    Text(Box<[LogPart]>),
}

const MAX_EVERY: u32 = 1_000_000;
const MAX_PARAMETERS: usize = 64;
const MAX_PARAMETER: usize = 128;

impl AccessLogSpec {
    pub(crate) fn parse(&self, errors: &mut Errors) -> Option<AccessLog> {
        let sample = self.sample.as_ref().map(|sample| sample.parse(errors));
        let query = self.query(errors);
        let lists = [
            ("access_log.request_headers", &self.request_headers, request_header as HeaderParser),
            ("access_log.response_headers", &self.response_headers, response_header),
        ];
        let template = match self.format.as_ref().unwrap_or(&LogFormatSpec::Json) {
            LogFormatSpec::Json => None,
            LogFormatSpec::Combined => Some((Template::parse(COMBINED), "access_log.format")),
            LogFormatSpec::Common => Some((Template::parse(COMMON), "access_log.format")),
            LogFormatSpec::Template(text) => Some((Template::parse(text), "access_log.format.template")),
        };
        let [listed_request, listed_response] = lists.map(|(field, names, parse)| {
            if template.is_some() && !names.is_empty() {
                errors.push(
                    field,
                    "is for the format json; a template shows headers by %REQ(NAME)% and %RESP(NAME)%",
                );
            }
            headers(field, names, parse, errors)
        });
        let (format, request_headers, response_headers) = match template {
            None => (LogFormat::Json, listed_request, listed_response),
            Some((Ok(template), _)) => {
                let Template { parts, request_headers, response_headers } = template;
                (LogFormat::Text(parts.into()), request_headers.into(), response_headers.into())
            }
            Some((Err(message), field)) => {
                errors.push(field, message);
                return None;
            }
        };
        let enabled = self.enabled.unwrap_or(true);
        Some(AccessLog { enabled, sample, query, request_headers, response_headers, format })
    }

    fn query(&self, errors: &mut Errors) -> Option<Box<[Box<str>]>> {
        let names = self.redact.as_ref().map_or(&[][..], |redact| &redact.query);
        let is_shown = self.query.unwrap_or(false);
        if !names.is_empty() && !is_shown {
            errors
                .push("access_log.redact.query", "needs query: true, because else no query is logged at all");
        }
        if names.len() > MAX_PARAMETERS {
            errors.push("access_log.redact.query", format_args!("has more than {MAX_PARAMETERS} names"));
        }
        for (index, name) in names.iter().enumerate().take(MAX_PARAMETERS) {
            if name.is_empty() || name.len() > MAX_PARAMETER {
                let message = format_args!("must have 1 to {MAX_PARAMETER} bytes");
                errors.push(format_args!("access_log.redact.query[{index}]"), message);
            }
        }
        is_shown.then(|| names.iter().map(|name| name.to_lowercase().into()).collect())
    }
}

type HeaderParser = fn(&str) -> Result<HeaderName, String>;

fn headers(field: &str, names: &[String], parse: HeaderParser, errors: &mut Errors) -> Box<[HeaderName]> {
    if names.len() > MAX_LOGGED_HEADERS {
        errors.push(field, format_args!("has more than {MAX_LOGGED_HEADERS} headers"));
    }
    let mut seen = HashSet::new();
    let mut parsed = Vec::new();
    for (index, text) in names.iter().enumerate().take(MAX_LOGGED_HEADERS) {
        match parse(text) {
            Ok(name) if !seen.insert(name.clone()) => {
                errors.push(format_args!("{field}[{index}]"), "is listed twice");
            }
            Ok(name) => parsed.push(name),
            Err(message) => errors.push(format_args!("{field}[{index}]"), message),
        }
    }
    parsed.into()
}

impl LogSampleSpec {
    fn parse(&self, errors: &mut Errors) -> LogSample {
        let every = NonZeroU32::new(self.every).filter(|every| every.get() <= MAX_EVERY);
        if every.is_none() {
            errors.push("access_log.sample.every", format_args!("must be from 1 to {MAX_EVERY}"));
        }
        let slow = self.slow.map_or(Duration::from_secs(1), |slow| slow.0);
        if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&slow) {
            errors.push("access_log.sample.slow", "must be from 1ms to 1h");
        }
        LogSample { every: every.unwrap_or(NonZeroU32::MIN), slow }
    }
}

impl JsonSchema for LogFormatSpec {
    fn schema_name() -> Cow<'static, str> {
        "LogFormat".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "`json`: an object a line; `combined`: as nginx writes it; `common`: the Common Log Format; or \
                `{template: TEXT}`, a text with Envoy's command operators",
            "anyOf": [
                {"type": "string", "enum": ["json", "combined", "common"]},
                {
                    "type": "object",
                    "properties": {
                        "template": {
                            "type": "string",
                            "title": "Template",
                            "description": "A text with Envoy's command operators.",
                            "examples": ["%START_TIME% \"%REQ(:METHOD)% %REQ(:PATH)%\" %RESPONSE_CODE%"],
                        },
                    },
                    "required": ["template"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(spec: Value) -> Result<AccessLog, Vec<String>> {
        let spec: AccessLogSpec = serde_json::from_value(spec).unwrap();
        let mut errors = Errors::default();
        let log = spec.parse(&mut errors);
        errors.finish(log).map_err(|errors| errors.into_iter().map(|error| error.to_string()).collect())
    }

    #[test]
    fn an_empty_section_changes_nothing() {
        let log = parse(json!({})).unwrap();
        assert!(log.enabled && log.sample.is_none() && log.query.is_none());
        assert!(log.request_headers.is_empty() && log.response_headers.is_empty());
        assert_eq!(log.format, LogFormat::Json);
    }

    #[test]
    fn everything_is_read() {
        let log = parse(json!({
            "enabled": false,
            "sample": {"every": 100},
            "query": true,
            "redact": {"query": ["Ticket"]},
            "request_headers": ["Referer", "x-tenant"],
            "response_headers": ["content-type"],
            "format": "json",
        }))
        .unwrap();
        assert!(!log.enabled);
        let every = NonZeroU32::new(100).unwrap();
        assert_eq!(log.sample, Some(LogSample { every, slow: Duration::from_secs(1) }));
        assert_eq!(log.query.as_deref(), Some(&["ticket".into()][..]));
        assert_eq!(&*log.request_headers, ["referer", "x-tenant"]);
        assert_eq!(&*log.response_headers, ["content-type"]);
        for (format, headers) in [(json!("combined"), &["referer"][..]), (json!("common"), &[])] {
            let log = parse(json!({"format": format})).unwrap();
            assert!(matches!(log.format, LogFormat::Text(_)));
            assert_eq!(&*log.request_headers, headers);
        }
        let log = parse(json!({"format": {"template": "%RESP(X-A)%"}})).unwrap();
        assert_eq!(&*log.response_headers, ["x-a"]);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let credentials = "carries credentials, by its name, and is never logged";
        for (spec, expected) in [
            (
                json!({"sample": {"every": 0}}),
                vec!["access_log.sample.every: must be from 1 to 1000000".to_owned()],
            ),
            (
                json!({"sample": {"every": 1, "slow": "2h"}}),
                vec!["access_log.sample.slow: must be from 1ms to 1h".to_owned()],
            ),
            (
                json!({"request_headers": ["Authorization", "cookie", "Proxy-Authorization", "X-API-Key", "a", "A"]}),
                vec![
                    format!("access_log.request_headers[0]: {credentials}"),
                    format!("access_log.request_headers[1]: {credentials}"),
                    format!("access_log.request_headers[2]: {credentials}"),
                    format!("access_log.request_headers[3]: {credentials}"),
                    "access_log.request_headers[5]: is listed twice".to_owned(),
                ],
            ),
            (
                json!({"response_headers": ["Set-Cookie", "a b"]}),
                vec![
                    format!("access_log.response_headers[0]: {credentials}"),
                    "access_log.response_headers[1]: is not the name of a header".to_owned(),
                ],
            ),
            (
                json!({"redact": {"query": ["a", ""]}}),
                vec![
                    "access_log.redact.query: needs query: true, because else no query is logged at all"
                        .to_owned(),
                    "access_log.redact.query[1]: must have 1 to 128 bytes".to_owned(),
                ],
            ),
            (
                json!({"format": {"template": "%REQ(Cookie)%"}}),
                vec![format!("access_log.format.template: \"Cookie\" {credentials}, at 1")],
            ),
        ] {
            assert_eq!(parse(spec.clone()).unwrap_err(), expected, "{spec}");
        }
        let many: Vec<_> = (0..17).map(|index| format!("x-{index}")).collect();
        assert_eq!(
            parse(json!({"request_headers": many})).unwrap_err(),
            ["access_log.request_headers: has more than 16 headers"]
        );
        let both = parse(json!({"format": "common", "request_headers": ["a"]})).unwrap_err();
        assert!(both[0].contains("is for the format json"), "{both:?}");
    }
}
