//! Lines of text, by a template.

use signalbox_config::{AccessLog, LogPart, LogValue, RequestValue};
use smallvec::SmallVec;

use super::clock::write_time;
use super::digits::push_digits;
use super::entry::Entry;
use super::parts::{Parts, bounded};
use super::redact::write_path;

/// The sources of a line's values.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub settings: &'a AccessLog,
    /// `None`: there was no valid head.
    pub parts: Option<&'a Parts>,
    pub entry: &'a Entry<'a>,
    /// The number of requests that the line stands for.
    pub weight: u32,
}

/// Writes a line. A value that is not there is `-`.
pub(super) fn write_text(out: &mut Vec<u8>, template: &[LogPart], view: View<'_>) {
    for part in template {
        match part {
            LogPart::Text(text) => out.extend_from_slice(text.as_bytes()),
            LogPart::Value { value, longest } => {
                let begin = out.len();
                view.write(out, value, longest.unwrap_or(usize::MAX));
                if out.len() == begin {
                    out.push(b'-');
                }
            }
        }
    }
    out.push(b'\n');
}

impl View<'_> {
    fn write(self, out: &mut Vec<u8>, value: &LogValue, longest: usize) {
        let entry = self.entry;
        let number = |out: &mut Vec<u8>, number: u64| {
            let begin = out.len();
            push_digits(out, number);
            out.truncate(begin.saturating_add(longest));
        };
        match value {
            LogValue::StartTime(format) => {
                let begin = out.len();
                write_time(out, format, entry.time);
                out.truncate(begin.saturating_add(longest));
            }
            LogValue::Request(first, second) => self.write_request(out, *first, *second, longest),
            LogValue::Response(first, second) => {
                let requests = self.settings.request_headers.len();
                let find = |index: usize| self.parts?.header(requests + index);
                if let Some(value) = find(*first).or_else(|| find((*second)?)) {
                    put(out, value, longest);
                }
            }
            LogValue::Protocol => {
                put(out, self.parts.map_or(b"", |parts| parts.protocol().as_bytes()), longest);
            }
            LogValue::ResponseCode => number(out, entry.status.into()),
            LogValue::ResponseFlags => put(out, entry.flags.as_bytes(), longest),
            LogValue::UpstreamError => put(out, entry.upstream_error.as_bytes(), longest),
            LogValue::GrpcStatus => {
                if let Some(status) = entry.grpc_status {
                    number(out, status.into());
                }
            }
            LogValue::BytesReceived => number(out, entry.bytes_in),
            LogValue::BytesSent => number(out, entry.bytes_out),
            LogValue::Duration => number(out, entry.duration.as_millis() as u64),
            LogValue::ResponseDuration => {
                if let Some(duration) = entry.upstream_duration {
                    number(out, duration.as_millis() as u64);
                }
            }
            LogValue::UpstreamHost => put(out, entry.target.as_bytes(), longest),
            LogValue::UpstreamCluster => put(out, entry.upstream.as_bytes(), longest),
            LogValue::Attempts => number(out, entry.attempts.into()),
            LogValue::RouteName => put(out, entry.route.as_bytes(), longest),
            LogValue::Client => put(out, entry.client, longest),
            LogValue::TraceId => put(out, entry.trace_id, longest),
            LogValue::SpanId => put(out, entry.span_id, longest),
            LogValue::RequestId => put(out, entry.request_id, longest),
            LogValue::Consumer => put(out, entry.consumer.as_bytes(), longest),
            LogValue::Plugin => put(out, entry.plugin.as_bytes(), longest),
            LogValue::Revision => number(out, entry.revision),
            LogValue::Weight => number(out, self.weight.into()),
        }
    }

    fn write_request(
        self,
        out: &mut Vec<u8>,
        first: RequestValue,
        second: Option<RequestValue>,
        longest: usize,
    ) {
        let find = |value: RequestValue| {
            let parts = self.parts?;
            let found = match value {
                RequestValue::Method => parts.method(),
                RequestValue::Host => parts.host(),
                RequestValue::Path => parts.path(),
                RequestValue::UserAgent => parts.user_agent(),
                RequestValue::RequestId => self.entry.request_id,
                RequestValue::Header(index) => parts.header(index)?,
            };
            Some((value, found)).filter(|_| !found.is_empty())
        };
        let Some((value, found)) = find(first).or_else(|| find(second?)) else { return };
        if value == RequestValue::Path {
            let mut path = SmallVec::<[u8; 256]>::new();
            write_path(&mut path, found, self.settings.query.as_deref());
            put(out, &path, longest);
        } else {
            put(out, found, longest);
        }
    }
}

/// Writes the first bytes of a value. Bytes that could end the value, or the line, are written as `\xHH`, as nginx does.
fn put(out: &mut Vec<u8>, value: &[u8], longest: usize) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bounded(value, longest) {
        match byte {
            b' '..=b'~' if !matches!(byte, b'"' | b'\\') => out.push(*byte),
            _ => {
                let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
                out.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use signalbox_config::{Body, Kind, LogFormat, Resource};

    use super::*;

    fn settings(section: &serde_json::Value) -> AccessLog {
        let spec = serde_json::json!({"name": "http", "address": "0.0.0.0:80", "access_log": section});
        let resource = Resource::parse(Kind::Listener, spec, signalbox_plugins::builtin()).unwrap();
        let Body::Listener(listener) = resource.body() else { panic!() };
        listener.access_log.clone().unwrap()
    }

    fn entry() -> Entry<'static> {
        Entry {
            time: Duration::from_millis(1_767_225_600_042),
            request_id: b"id-1",
            client: b"192.0.2.1",
            status: 200,
            route: "users",
            upstream: "u",
            target: "10.0.0.1:80",
            attempts: 1,
            duration: Duration::from_micros(1_234_567),
            upstream_duration: Some(Duration::from_micros(7_999)),
            bytes_in: 3,
            bytes_out: 42,
            consumer: "alice",
            revision: 7,
            ..Entry::default()
        }
    }

    fn line(
        section: &serde_json::Value,
        target: &str,
        user_agent: &[u8],
        headers: &[(&str, &[u8])],
    ) -> String {
        let settings = settings(section);
        let mut parts = Parts::new(Vec::new(), "GET", b"a.example", target, "HTTP/1.1", user_agent);
        for name in settings.request_headers.iter().chain(&settings.response_headers) {
            let values = headers.iter().filter(|(known, _)| name == known).map(|(_, value)| *value);
            parts.push_header(name, settings.query.as_deref(), values);
        }
        let LogFormat::Text(template) = &settings.format else { panic!("a text") };
        let mut out = Vec::new();
        let view = View { settings: &settings, parts: Some(&parts), entry: &entry(), weight: 10 };
        write_text(&mut out, template, view);
        let text = String::from_utf8(out).unwrap();
        let line = text.strip_suffix('\n').unwrap();
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        line.to_owned()
    }

    #[test]
    fn known_formats_are_those_of_nginx() {
        let headers = [("referer", &b"https://b.example/x?token=1"[..])];
        for (format, expected) in [
            (
                "combined",
                "192.0.2.1 - alice [01/Jan/2026:00:00:00 +0000] \"GET /x HTTP/1.1\" 200 42 \"https://b.example/x\" \"curl/8\"",
            ),
            ("common", "192.0.2.1 - alice [01/Jan/2026:00:00:00 +0000] \"GET /x HTTP/1.1\" 200 42"),
        ] {
            assert_eq!(line(&serde_json::json!({"format": format}), "/x?a=1", b"curl/8", &headers), expected);
        }
        let shown =
            line(&serde_json::json!({"format": "combined", "query": true}), "/x?a=1&sig=2", b"", &headers);
        let expected =
            "\"GET /x?a=1&sig=REDACTED HTTP/1.1\" 200 42 \"https://b.example/x?token=REDACTED\" \"-\"";
        assert!(shown.ends_with(expected), "{shown}");
    }

    #[test]
    fn templates_are_filled() {
        let headers = [("x-a", &b"one"[..]), ("x-a", b"two"), ("content-type", b"text/html")];
        for (template, expected) in [
            ("%REQ(X-A)% %REQ(X-B)% %REQ(X-B?X-A):5% %REQ(X-B?:METHOD)%", "one, two - one,  GET"),
            ("%RESP(CONTENT-TYPE)%|%RESP(X-B?CONTENT-TYPE):4%", "text/html|text"),
            ("%REQ(:AUTHORITY)% %REQ(HOST)% %REQ(:PATH)% %REQ(X-REQUEST-ID)%", "a.example a.example /x id-1"),
            ("%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %GRPC_STATUS_NUMBER%", "HTTP/1.1 200 - -"),
            ("%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_DURATION%", "3 42 1234 7"),
            ("%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %ROUTE_NAME%", "10.0.0.1:80 u users"),
            ("%UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_TRANSPORT_FAILURE_REASON%", "1 -"),
            ("%DOWNSTREAM_REMOTE_ADDRESS% %TRACE_ID% %SPAN_ID% %STREAM_ID%", "192.0.2.1 - - id-1"),
            ("%CONSUMER% %PLUGIN% %REVISION% %WEIGHT% 100%%", "alice - 7 10 100%"),
            ("%START_TIME% %START_TIME(%s.%3f)%", "2026-01-01T00:00:00.042Z 1767225600.042"),
        ] {
            let section = serde_json::json!({"format": {"template": template}});
            assert_eq!(line(&section, "/x", b"", &headers), expected, "{template}");
        }
    }

    #[test]
    fn values_cannot_forge_lines() {
        let evil = b"a\" 200\r\n\\\x7f\x00\t\xc3\xa4\xff";
        let shown = line(
            &serde_json::json!({"format": {"template": "\"%REQ(USER-AGENT)%\" \"%REQ(x)%\""}}),
            "/",
            evil,
            &[("x", evil)],
        );
        let escaped = r#"a\x22 200\x0D\x0A\x5C\x7F\x00\x09\xC3\xA4\xFF"#;
        assert_eq!(shown, format!("\"{escaped}\" \"{escaped}\""));
    }
}
