//! The messages of `opentelemetry.proto.collector.logs.v1.LogsService/Export`, as far as they are used.
//!
//! A record is written on the worker in the form in which the request has it, without a message in between. A request is then the
//! concatenation of records behind what is the same for all of them.

use std::collections::BTreeMap;

use http::uri::Authority;
use signalbox_plugin::LogRecord;
use signalbox_plugin::otlp::{
    self, AttributeValue, Buffer, Envelope, RECORD, nanoseconds, put_bytes, put_fixed32, put_fixed64,
    put_number,
};

use crate::log_sink::{Entry, Field, FieldName, Selection, Value};

/// The messages around the records of a batch.
pub(super) type Prefix = Envelope;

/// The numbers of the fields of messages.
mod tag {
    /// `LogRecord`
    pub(super) const TIME: u32 = 1;
    pub(super) const SEVERITY_NUMBER: u32 = 2;
    pub(super) const SEVERITY_TEXT: u32 = 3;
    pub(super) const BODY: u32 = 5;
    pub(super) const ATTRIBUTES: u32 = 6;
    pub(super) const FLAGS: u32 = 8;
    pub(super) const TRACE_ID: u32 = 9;
    pub(super) const SPAN_ID: u32 = 10;
    pub(super) const OBSERVED_TIME: u32 = 11;
}

/// The flag of a record whose trace is sampled.
const SAMPLED: u32 = 1;

const SERVICE_NAME: &str = "service.name";
const SIGNALBOX: &str = "signalbox";

/// The envelope of records about a resource with these attributes.
pub(super) fn envelope(attributes: &BTreeMap<String, String>) -> Envelope {
    let default = (!attributes.contains_key(SERVICE_NAME)).then_some((SERVICE_NAME, SIGNALBOX));
    let given = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Envelope::new(default.into_iter().chain(given))
}

/// The record of an exchange, as a field of `ScopeLogs`.
pub(super) fn encode_record(selection: &Selection, record: &LogRecord<'_>) -> Entry {
    let mut message = Buffer::with_capacity(1024);
    put_fixed64(&mut message, tag::TIME, nanoseconds(record.time));
    put_fixed64(&mut message, tag::OBSERVED_TIME, nanoseconds(record.time + record.duration));
    let (severity, text) = match record.status.as_u16() {
        500.. => (17, "ERROR"),
        400.. => (13, "WARN"),
        _ => (9, "INFO"),
    };
    put_number(&mut message, tag::SEVERITY_NUMBER, severity);
    put_bytes(&mut message, tag::SEVERITY_TEXT, text.as_bytes());
    let line = format!("{} {} {}", record.method, record.uri.path(), record.status.as_u16());
    otlp::any_value(&mut message, tag::BODY, &AttributeValue::Text([&line, ""]));
    if let Some(trace) = trace_id(record.trace_id) {
        put_bytes(&mut message, tag::TRACE_ID, &trace);
    }
    if let Some(span) = span_id(record.span_id) {
        put_fixed32(&mut message, tag::FLAGS, SAMPLED);
        put_bytes(&mut message, tag::SPAN_ID, &span);
    }
    selection.each(record, |name, value| field(&mut message, name, &value));
    let mut entry = Vec::with_capacity(message.len() + 8);
    put_bytes(&mut entry, RECORD, &message);
    entry.into()
}

/// Writes the attributes of a field.
fn field(out: &mut Buffer, name: FieldName<'_>, value: &Value<'_>) {
    if matches!(value, Value::Null) || matches!(value, Value::Text(text) if text.is_empty()) {
        return;
    }
    let mut put = |prefix, name, value: &Value<'_>| {
        otlp::attribute(out, tag::ATTRIBUTES, [prefix, name], &attribute_value(value));
    };
    let field = match name {
        FieldName::Custom(name) => return put("", name, value),
        FieldName::Known(field) => field,
    };
    match (field, value) {
        // They are fields of the record.
        (Field::Time | Field::TraceId | Field::SpanId | Field::Sampled, _) => {}
        (Field::Client, _) => put("", "client.address", value),
        (Field::Method, _) => put("", "http.request.method", value),
        (Field::Path, _) => put("", "url.path", value),
        (Field::Status, _) => put("", "http.response.status_code", value),
        (Field::BytesIn, _) => put("", "http.request.body.size", value),
        (Field::BytesOut, _) => put("", "http.response.body.size", value),
        (Field::UserAgent, _) => put("", "user_agent.original", value),
        (Field::Protocol, Value::Text(text)) => {
            let version = text.strip_prefix("HTTP/").unwrap_or(text);
            put("", "network.protocol.version", &Value::Text(version.into()));
        }
        (Field::Host, Value::Text(text)) => {
            let authority = text.parse::<Authority>().ok();
            let (host, port) = match &authority {
                Some(authority) => (authority.host(), authority.port_u16()),
                None => (&**text, None),
            };
            put("", "server.address", &Value::Text(host.into()));
            if let Some(port) = port {
                put("", "server.port", &Value::Number(port.into()));
            }
        }
        _ => put("signalbox.", field.name(), value),
    }
}

fn attribute_value<'v>(value: &'v Value<'_>) -> AttributeValue<'v> {
    match value {
        Value::Text(text) => AttributeValue::Text([text, ""]),
        Value::Number(number) => AttributeValue::Number(*number),
        Value::Bool(is_true) => AttributeValue::Bool(*is_true),
        Value::Millis(millis) => AttributeValue::Double(*millis),
        Value::Time(_) | Value::Null => AttributeValue::Nothing,
    }
}

/// The bytes of a trace's id. `None`: there is none.
fn trace_id(hex: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(hex).ok().filter(|text| text.len() == 32)?;
    Some(u128::from_str_radix(text, 16).ok()?.to_be_bytes())
}

/// The bytes of a span's id. `None`: there is none.
fn span_id(hex: &[u8]) -> Option<[u8; 8]> {
    let text = std::str::from_utf8(hex).ok().filter(|text| text.len() == 16)?;
    Some(u64::from_str_radix(text, 16).ok()?.to_be_bytes())
}

#[cfg(test)]
mod tests;
