//! The format of an access log's lines as text: a template with Envoy's command operators
//! ("Access logging: format strings" of Envoy's documentation).

use http::HeaderName;
use http::header::{HOST, USER_AGENT};

use crate::arrival::{CLIENT_CERTIFICATE, CONSUMER, X_REQUEST_ID};
use crate::credential_header::carries_credentials;

/// A template that was parsed, with the headers that its values are from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Template {
    pub(crate) parts: Vec<LogPart>,
    pub(crate) request_headers: Vec<HeaderName>,
    pub(crate) response_headers: Vec<HeaderName>,
}

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogPart {
    /// This text. It has no control characters but tabs.
    Text(Box<str>),
    /// A value of the request.
    Value {
        /// The value.
        value: LogValue,
        /// The most bytes of it; `None`: no limit of its own.
        longest: Option<usize>,
    },
}

/// A value of a request and its response. Headers are numbers in the lists of the listener's [`AccessLog`](crate::AccessLog).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogValue {
    /// The time at which the request's head was complete, in this format.
    StartTime(Box<[TimePart]>),
    /// The first that the request's head has.
    Request(RequestValue, Option<RequestValue>),
    /// The first that the response's head has.
    Response(usize, Option<usize>),
    /// `HTTP/1.1`.
    Protocol,
    /// The status of the response.
    ResponseCode,
    /// The response flags.
    ResponseFlags,
    /// The reason why the target did not answer.
    UpstreamError,
    /// The number of a gRPC call's status.
    GrpcStatus,
    /// The bytes of the request's body.
    BytesReceived,
    /// The bytes of the response's body.
    BytesSent,
    /// Whole milliseconds from the request's head to the end of the response.
    Duration,
    /// Whole milliseconds that the target took for the head of its response.
    ResponseDuration,
    /// The target.
    UpstreamHost,
    /// The upstream.
    UpstreamCluster,
    /// The number of times that the request was sent.
    Attempts,
    /// The route.
    RouteName,
    /// The client's address.
    Client,
    /// The id of the trace.
    TraceId,
    /// The id of the request's span, if that is exported.
    SpanId,
    /// The id of the request.
    RequestId,
    /// The consumer.
    Consumer,
    /// The plugin that answered or failed.
    Plugin,
    /// The revision.
    Revision,
    /// The number of requests that the line stands for.
    Weight,
}

/// A value of a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestValue {
    /// The method.
    Method,
    /// The host that the client asked for.
    Host,
    /// The path, with the query if that is logged.
    Path,
    /// The user agent.
    UserAgent,
    /// The id of the request, whoever gave it.
    RequestId,
    /// A header.
    Header(usize),
}

/// A part of a time. All are of UTC.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TimePart {
    /// This text.
    Text(Box<str>),
    /// Four digits.
    Year,
    /// Two digits, as are the others.
    Month,
    /// `Jan`.
    MonthName,
    /// The day of the month.
    Day,
    /// From 00 to 23.
    Hour,
    /// From 00 to 59.
    Minute,
    /// From 00 to 59.
    Second,
    /// The first digits of the fraction of a second, from 1 to 9.
    Fraction(u8),
    /// Seconds since 1970.
    Epoch,
}

/// nginx's format `combined`, and the Common Log Format that is its begin.
pub(crate) const COMBINED: &str = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% - %CONSUMER% [%START_TIME(%d/%b/%Y:%H:%M:%S %z)%] \
    \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %BYTES_SENT% \"%REQ(REFERER)%\" \"%REQ(USER-AGENT)%\"";
pub(crate) const COMMON: &str = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% - %CONSUMER% [%START_TIME(%d/%b/%Y:%H:%M:%S %z)%] \
    \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %BYTES_SENT%";

/// The longest template in bytes, and the most headers of one side.
pub(crate) const MAX_TEMPLATE: usize = 4096;
pub(crate) const MAX_LOGGED_HEADERS: usize = 16;

/// The operators without an argument.
static PLAIN: [(&str, LogValue); 21] = [
    ("PROTOCOL", LogValue::Protocol),
    ("RESPONSE_CODE", LogValue::ResponseCode),
    ("RESPONSE_FLAGS", LogValue::ResponseFlags),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", LogValue::UpstreamError),
    ("GRPC_STATUS_NUMBER", LogValue::GrpcStatus),
    ("BYTES_RECEIVED", LogValue::BytesReceived),
    ("BYTES_SENT", LogValue::BytesSent),
    ("DURATION", LogValue::Duration),
    ("RESPONSE_DURATION", LogValue::ResponseDuration),
    ("UPSTREAM_HOST", LogValue::UpstreamHost),
    ("UPSTREAM_CLUSTER", LogValue::UpstreamCluster),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", LogValue::Attempts),
    ("ROUTE_NAME", LogValue::RouteName),
    ("DOWNSTREAM_REMOTE_ADDRESS", LogValue::Client),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", LogValue::Client),
    ("TRACE_ID", LogValue::TraceId),
    ("SPAN_ID", LogValue::SpanId),
    ("STREAM_ID", LogValue::RequestId),
    ("CONSUMER", LogValue::Consumer),
    ("PLUGIN", LogValue::Plugin),
    ("REVISION", LogValue::Revision),
];

impl Template {
    /// Parses a template. The error names the position of what is wrong: the number of its first character.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEMPLATE {
            return Err(format!("is longer than {MAX_TEMPLATE} bytes"));
        }
        // Templates for Envoy end so.
        let text = text.strip_suffix('\n').unwrap_or(text);
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        let at = |offset: usize| text.get(..offset).unwrap_or_default().chars().count() + 1;
        if let Some((offset, _)) = text.char_indices().find(|(_, c)| c.is_control() && *c != '\t') {
            return Err(format!("has a control character at {}; a line has one line", at(offset)));
        }
        let mut template = Self::default();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            let offset = text.len() - after.len() - 1;
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let (operator, after) =
                Operator::split(after).map_err(|message| format!("{message} at {}", at(offset)))?;
            let value =
                template.value(&operator).map_err(|message| format!("{message} at {}", at(offset)))?;
            template.push_text(&mut literal);
            template.parts.push(LogPart::Value { value, longest: operator.longest });
            rest = after;
        }
        literal.push_str(rest);
        template.push_text(&mut literal);
        Ok(template)
    }

    fn push_text(&mut self, literal: &mut String) {
        if !literal.is_empty() {
            self.parts.push(LogPart::Text(std::mem::take(literal).into()));
        }
    }

    fn value(&mut self, operator: &Operator<'_>) -> Result<LogValue, String> {
        let Operator { name, argument, .. } = operator;
        let headers =
            || argument.map(|names| names.split_once('?').map_or((names, None), |(a, b)| (a, Some(b))));
        match (*name, headers()) {
            ("START_TIME", None) => time_format(DEFAULT_TIME).map(LogValue::StartTime),
            ("START_TIME", Some(_)) => time_format(argument.unwrap_or_default()).map(LogValue::StartTime),
            ("REQ", Some((first, second))) => {
                let first = self.request_value(first)?;
                Ok(LogValue::Request(first, second.map(|name| self.request_value(name)).transpose()?))
            }
            ("RESP", Some((first, second))) => {
                let first = self.response_header(first)?;
                Ok(LogValue::Response(first, second.map(|name| self.response_header(name)).transpose()?))
            }
            ("REQ" | "RESP", None) => Err(format!("%{name}% needs the name of a header: %{name}(X-NAME)%")),
            ("WEIGHT", None) => Ok(LogValue::Weight),
            (name, argument) => match PLAIN.iter().find(|(known, _)| *known == name) {
                Some(_) if argument.is_some() => Err(format!("%{name}% has no argument, but is given one")),
                Some((_, value)) => Ok(value.clone()),
                None => Err(format!("{name:?} is not an operator that this proxy knows,")),
            },
        }
    }

    fn request_value(&mut self, text: &str) -> Result<RequestValue, String> {
        if let Some(pseudo) = text.strip_prefix(':') {
            return match pseudo.to_ascii_lowercase().as_str() {
                "method" => Ok(RequestValue::Method),
                "path" => Ok(RequestValue::Path),
                "authority" => Ok(RequestValue::Host),
                _ => Err(format!("{text:?} is none of :METHOD, :PATH and :AUTHORITY,")),
            };
        }
        let name = request_header(text).map_err(|message| format!("{text:?} {message},"))?;
        if name == HOST {
            Ok(RequestValue::Host)
        } else if name == USER_AGENT {
            Ok(RequestValue::UserAgent)
        } else if name == X_REQUEST_ID {
            Ok(RequestValue::RequestId)
        } else {
            index_of(&mut self.request_headers, name).map(RequestValue::Header)
        }
    }

    fn response_header(&mut self, text: &str) -> Result<usize, String> {
        let name = response_header(text).map_err(|message| format!("{text:?} {message},"))?;
        index_of(&mut self.response_headers, name)
    }
}

fn index_of(names: &mut Vec<HeaderName>, name: HeaderName) -> Result<usize, String> {
    if let Some(index) = names.iter().position(|known| *known == name) {
        return Ok(index);
    }
    if names.len() == MAX_LOGGED_HEADERS {
        return Err(format!("{name:?} is one header more than the {MAX_LOGGED_HEADERS} that may be logged,"));
    }
    names.push(name);
    Ok(names.len() - 1)
}

/// The name of a request's header that may be logged.
pub(crate) fn request_header(text: &str) -> Result<HeaderName, String> {
    let name = response_header(text)?;
    if CONSUMER.contains(&name) || CLIENT_CERTIFICATE.contains(&name) {
        return Err("is the proxy's own: what a client sends of it is removed, and means nothing".to_owned());
    }
    Ok(name)
}

/// The same for a response's.
pub(crate) fn response_header(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::try_from(text).map_err(|_| "is not the name of a header".to_owned())?;
    if carries_credentials(&name) {
        return Err("carries credentials, by its name, and is never logged".to_owned());
    }
    Ok(name)
}

/// An operator: `%NAME(ARGUMENT):LONGEST%`.
struct Operator<'t> {
    name: &'t str,
    argument: Option<&'t str>,
    longest: Option<usize>,
}

impl<'t> Operator<'t> {
    /// Splits the operator off a text that begins after its `%`.
    fn split(text: &'t str) -> Result<(Self, &'t str), String> {
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let (name, mut rest) = text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
        let open = || format!("%{name} is not closed by a '%', or '%' is not doubled to stand for itself,");
        if name.is_empty() {
            return Err("'%' begins no operator, and is not doubled to stand for itself,".to_owned());
        }
        let mut argument = None;
        if let Some(after) = rest.strip_prefix('(') {
            let (inner, after) = after.split_once(')').ok_or_else(|| format!("%{name}( has no ')'"))?;
            (argument, rest) = (Some(inner), after);
        }
        let mut longest = None;
        if let Some(after) = rest.strip_prefix(':') {
            let (digits, after) = after.split_at(after.find('%').ok_or_else(open)?);
            let length = digits.parse().ok().filter(|length| *length > 0 && digits.len() < 7);
            longest = Some(
                length.ok_or_else(|| format!("the length {digits:?} of %{name}% is not a number from 1"))?,
            );
            rest = after;
        }
        let rest = rest.strip_prefix('%').ok_or_else(open)?;
        Ok((Self { name, argument, longest }, rest))
    }
}

const DEFAULT_TIME: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";

/// Parses a time's format: the specifiers of `strftime` that log formats use.
fn time_format(text: &str) -> Result<Box<[TimePart]>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            literal.push(c);
            continue;
        }
        let specifier = chars.next();
        let known: &[TimePart] = match specifier {
            Some('Y') => &[TimePart::Year],
            Some('m') => &[TimePart::Month],
            Some('b') => &[TimePart::MonthName],
            Some('d') => &[TimePart::Day],
            Some('H') => &[TimePart::Hour],
            Some('M') => &[TimePart::Minute],
            Some('S') => &[TimePart::Second],
            Some('s') => &[TimePart::Epoch],
            Some('f') => &[TimePart::Fraction(9)],
            Some(digit @ '1'..='9') if chars.as_str().starts_with('f') => {
                chars.next();
                let digits = digit as u8 - b'0';
                flush(&mut literal, &mut parts);
                parts.push(TimePart::Fraction(digits));
                continue;
            }
            Some('z') => {
                literal.push_str("+0000");
                continue;
            }
            Some('%') => {
                literal.push('%');
                continue;
            }
            _ => {
                let wrong: String = specifier.into_iter().collect();
                return Err(format!(
                    "the time has %{wrong}, which is none of %Y %m %b %d %H %M %S %z %s %f %3f and the like,"
                ));
            }
        };
        flush(&mut literal, &mut parts);
        parts.extend_from_slice(known);
    }
    flush(&mut literal, &mut parts);
    Ok(parts.into())
}

fn flush(literal: &mut String, parts: &mut Vec<TimePart>) {
    if !literal.is_empty() {
        parts.push(TimePart::Text(std::mem::take(literal).into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> LogPart {
        LogPart::Text(text.into())
    }

    fn value(value: LogValue) -> LogPart {
        LogPart::Value { value, longest: None }
    }

    #[test]
    fn templates_are_read() {
        let header = |index| RequestValue::Header(index);
        for (template, expected) in [
            ("x", vec![text("x")]),
            ("100%% %PROTOCOL%\n", vec![text("100% "), value(LogValue::Protocol)]),
            (
                "%RESPONSE_CODE%%RESPONSE_FLAGS%",
                vec![value(LogValue::ResponseCode), value(LogValue::ResponseFlags)],
            ),
            ("%REQ(:method)%", vec![value(LogValue::Request(RequestValue::Method, None))]),
            (
                "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):9%",
                vec![LogPart::Value {
                    value: LogValue::Request(header(0), Some(RequestValue::Path)),
                    longest: Some(9),
                }],
            ),
            (
                "%REQ(a)%%REQ(B)%%REQ(A)%%RESP(a?c)%",
                vec![
                    value(LogValue::Request(header(0), None)),
                    value(LogValue::Request(header(1), None)),
                    value(LogValue::Request(header(0), None)),
                    value(LogValue::Response(0, Some(1))),
                ],
            ),
            ("%REQ(X-Request-Id)%", vec![value(LogValue::Request(RequestValue::RequestId, None))]),
            (
                "%START_TIME(%s.%6f %%)%",
                vec![value(LogValue::StartTime(
                    [
                        TimePart::Epoch,
                        TimePart::Text(".".into()),
                        TimePart::Fraction(6),
                        TimePart::Text(" %".into()),
                    ]
                    .into(),
                ))],
            ),
        ] {
            assert_eq!(Template::parse(template).unwrap().parts, expected, "{template:?}");
        }
        for known in [COMBINED, COMMON, "%START_TIME%"] {
            Template::parse(known).unwrap();
        }
        for (name, _) in &PLAIN {
            Template::parse(&format!("%{name}%")).unwrap();
        }
    }

    #[test]
    fn wrong_templates_are_refused_with_the_position() {
        for (template, reason) in [
            ("", "must not be empty"),
            ("a\nb", "has a control character at 2"),
            ("ä %UNKNOWN%", "\"UNKNOWN\" is not an operator that this proxy knows, at 3"),
            ("%PROTOCOL", "%PROTOCOL is not closed"),
            ("50% of", "'%' begins no operator, and is not doubled to stand for itself, at 3"),
            ("%REQ%", "%REQ% needs the name of a header"),
            ("%REQ(a%", "has no ')' at 1"),
            ("%REQ(a b)%", "\"a b\" is not the name of a header, at 1"),
            ("%REQ(:SCHEME)%", "is none of :METHOD"),
            ("%REQ(A):x%", "the length \"x\" of %REQ% is not a number from 1 at 1"),
            ("%REQ(A):0%", "is not a number from 1"),
            ("%PROTOCOL(1)%", "%PROTOCOL% has no argument, but is given one at 1"),
            ("%START_TIME(%Q)%", "the time has %Q"),
            (
                "- %REQ(Authorization)%",
                "\"Authorization\" carries credentials, by its name, and is never logged, at 3",
            ),
            ("%REQ(A?Cookie)%", "\"Cookie\" carries credentials"),
            ("%REQ(proxy_authorization)%", "carries credentials"),
            ("%REQ(X-API-Key)%", "carries credentials"),
            ("%RESP(SET-COOKIE)%", "\"SET-COOKIE\" carries credentials"),
            ("%REQ(X-Consumer-Username)%", "is the proxy's own"),
        ] {
            let error = Template::parse(template).unwrap_err();
            assert!(error.contains(reason), "{template:?}: {error}");
        }
        let many = (0..17).map(|index| format!("%REQ(x-{index})%")).collect::<String>();
        assert!(Template::parse(&many).unwrap_err().contains("one header more than the 16"));
        assert!(Template::parse(&"x".repeat(MAX_TEMPLATE + 1)).is_err());
    }
}
