//! The messages of `opentelemetry.proto.collector.logs.v1.LogsService/Export`, as far as they are used.
//!
//! A record is written on the worker in the form in which the request has it, without a message in between. A request is then the
//! concatenation of records behind what is the same for all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use signalbox_plugin::LogRecord;

use crate::log_sink::{Entry, Field, FieldName, Selection, Value};

/// The answer to a batch.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExportLogsServiceResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

/// The records of a batch that were rejected.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_log_records: i64,
    #[prost(string, tag = "2")]
    pub(super) error_message: String,
}

/// The parts that are the same for all batches: the resource and the scope, each as a field of the message that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Prefix {
    resource: Box<[u8]>,
    scope: Box<[u8]>,
}

type Buffer = Vec<u8>;

/// The numbers of the fields of messages.
mod tag {
    /// `ExportLogsServiceRequest`
    pub(super) const RESOURCE_LOGS: u32 = 1;
    /// `ResourceLogs`
    pub(super) const RESOURCE: u32 = 1;
    pub(super) const SCOPE_LOGS: u32 = 2;
    /// `Resource`
    pub(super) const RESOURCE_ATTRIBUTES: u32 = 1;
    /// `ScopeLogs`
    pub(super) const SCOPE: u32 = 1;
    pub(super) const LOG_RECORDS: u32 = 2;
    /// `InstrumentationScope`
    pub(super) const SCOPE_NAME: u32 = 1;
    /// `LogRecord`
    pub(super) const TIME: u32 = 1;
    pub(super) const SEVERITY_NUMBER: u32 = 2;
    pub(super) const SEVERITY_TEXT: u32 = 3;
    pub(super) const BODY: u32 = 5;
    pub(super) const ATTRIBUTES: u32 = 6;
    pub(super) const TRACE_ID: u32 = 9;
    pub(super) const OBSERVED_TIME: u32 = 11;
    /// `KeyValue`
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    /// `AnyValue`
    pub(super) const STRING: u32 = 1;
    pub(super) const INT: u32 = 3;
    pub(super) const DOUBLE: u32 = 4;
}

const SERVICE_NAME: &str = "service.name";
const SIGNALBOX: &str = "signalbox";

impl Prefix {
    pub(super) fn new(attributes: &BTreeMap<String, String>) -> Self {
        let mut resource = Buffer::new();
        let default = (!attributes.contains_key(SERVICE_NAME)).then_some((SERVICE_NAME, SIGNALBOX));
        let given = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in default.into_iter().chain(given) {
            attribute(&mut resource, tag::RESOURCE_ATTRIBUTES, ["", name], &Value::Text(value.into()));
        }
        let mut scope = Buffer::new();
        put_bytes(&mut scope, tag::SCOPE_NAME, SIGNALBOX.as_bytes());
        let field = |tag, message: &Buffer| {
            let mut field = Buffer::new();
            put_bytes(&mut field, tag, message);
            field.into_boxed_slice()
        };
        Self { resource: field(tag::RESOURCE, &resource), scope: field(tag::SCOPE, &scope) }
    }

    /// The request with these records.
    pub(super) fn request(&self, records: &[Entry]) -> Bytes {
        let scope_logs = self.scope.len() + records.iter().map(|record| record.len()).sum::<usize>();
        let scope_field = 1 + encoded_len_varint(scope_logs as u64) + scope_logs;
        let resource_logs = self.resource.len() + scope_field;
        let mut out = Vec::with_capacity(resource_logs + 16);
        put_length(&mut out, tag::RESOURCE_LOGS, resource_logs);
        out.extend_from_slice(&self.resource);
        put_length(&mut out, tag::SCOPE_LOGS, scope_logs);
        out.extend_from_slice(&self.scope);
        for record in records {
            out.extend_from_slice(record);
        }
        out.into()
    }
}

/// The record of an exchange, as a field of `ScopeLogs`.
pub(super) fn encode_record(selection: &Selection, record: &LogRecord<'_>) -> Entry {
    let mut message = Buffer::with_capacity(1024);
    fixed64(&mut message, tag::TIME, nanoseconds(record.time));
    fixed64(&mut message, tag::OBSERVED_TIME, nanoseconds(record.time + record.duration));
    let (severity, text) = match record.status.as_u16() {
        500.. => (17, "ERROR"),
        400.. => (13, "WARN"),
        _ => (9, "INFO"),
    };
    encode_key(tag::SEVERITY_NUMBER, WireType::Varint, &mut message);
    encode_varint(severity, &mut message);
    put_bytes(&mut message, tag::SEVERITY_TEXT, text.as_bytes());
    let line = format!("{} {} {}", record.method, record.uri.path(), record.status.as_u16());
    any_value(&mut message, tag::BODY, &Value::Text(line.into()));
    if let Some(trace) = trace_id(record.trace_id) {
        put_bytes(&mut message, tag::TRACE_ID, &trace);
    }
    selection.each(record, |name, value| field(&mut message, name, &value));
    let mut entry = Vec::with_capacity(message.len() + 8);
    put_bytes(&mut entry, tag::LOG_RECORDS, &message);
    entry.into()
}

/// Writes the attributes of a field.
fn field(out: &mut Buffer, name: FieldName<'_>, value: &Value<'_>) {
    if matches!(value, Value::Null) || matches!(value, Value::Text(text) if text.is_empty()) {
        return;
    }
    let mut put = |prefix, name, value: &Value<'_>| attribute(out, tag::ATTRIBUTES, [prefix, name], value);
    let field = match name {
        FieldName::Custom(name) => return put("", name, value),
        FieldName::Known(field) => field,
    };
    match (field, value) {
        // They are fields of the record.
        (Field::Time | Field::TraceId, _) => {}
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

/// Writes a `KeyValue`, whose key comes in two parts.
fn attribute(out: &mut Buffer, tag: u32, [prefix, name]: [&str; 2], value: &Value<'_>) {
    let key = prefix.len() + name.len();
    let value_size = any_value_size(value);
    put_length(out, tag, delimited(key) + delimited(value_size));
    put_length(out, tag::KEY, key);
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(name.as_bytes());
    any_value(out, tag::VALUE, value);
}

/// Writes an `AnyValue`.
fn any_value(out: &mut Buffer, tag: u32, value: &Value<'_>) {
    put_length(out, tag, any_value_size(value));
    match value {
        Value::Text(text) => put_bytes(out, tag::STRING, text.as_bytes()),
        Value::Number(number) => {
            encode_key(tag::INT, WireType::Varint, out);
            encode_varint(int64(*number), out);
        }
        Value::Millis(millis) => fixed64(out, tag::DOUBLE, millis.to_bits()),
        Value::Time(_) | Value::Null => {}
    }
}

fn any_value_size(value: &Value<'_>) -> usize {
    match value {
        Value::Text(text) => delimited(text.len()),
        Value::Number(number) => 1 + encoded_len_varint(int64(*number)),
        Value::Millis(_) => 9,
        Value::Time(_) | Value::Null => 0,
    }
}

/// A number that is signed on the wire.
fn int64(number: u64) -> u64 {
    number.min(i64::MAX as u64)
}

/// The size of a field of this length, whose tag takes one byte.
fn delimited(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn put_length(out: &mut Buffer, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

fn put_bytes(out: &mut Buffer, tag: u32, value: &[u8]) {
    put_length(out, tag, value.len());
    out.extend_from_slice(value);
}

fn fixed64(out: &mut Buffer, tag: u32, value: u64) {
    encode_key(tag, WireType::SixtyFourBit, out);
    out.extend_from_slice(&value.to_le_bytes());
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The bytes of a trace's id. `None`: there is none.
fn trace_id(hex: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(hex).ok().filter(|text| text.len() == 32)?;
    Some(u128::from_str_radix(text, 16).ok()?.to_be_bytes())
}

#[cfg(test)]
mod tests;
