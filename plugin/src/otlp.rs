//! The parts of OpenTelemetry's protocol (OTLP) that its signals share: the envelope of records, attributes, and the rules for
//! answers. Records are written as they are sent, without a message in between.

pub mod span;

use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// Protobuf as it is written.
pub type Buffer = Vec<u8>;

/// The parts of a request that are the same for all batches: the resource and the scope, each as a field of the message that it
/// belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Envelope {
    resource: Box<[u8]>,
    scope: Box<[u8]>,
}

/// The answer to a batch, which all signals number alike.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExportResponse {
    /// Present if records were rejected, or there is a warning.
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

/// The records of a batch that were rejected.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PartialSuccess {
    /// Their number.
    #[prost(int64, tag = "1")]
    pub rejected: i64,
    /// The reason.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// The numbers of the fields of messages. Those of the envelope are the same for logs and for traces.
mod tag {
    /// `ExportLogsServiceRequest`
    pub(super) const RESOURCE_RECORDS: u32 = 1;
    /// `ResourceLogs`
    pub(super) const RESOURCE: u32 = 1;
    pub(super) const SCOPE_RECORDS: u32 = 2;
    /// `Resource`
    pub(super) const RESOURCE_ATTRIBUTES: u32 = 1;
    /// `ScopeLogs`
    pub(super) const SCOPE: u32 = 1;
    /// `InstrumentationScope`
    pub(super) const SCOPE_NAME: u32 = 1;
    /// `KeyValue`
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    /// `AnyValue`
    pub(super) const STRING: u32 = 1;
    pub(super) const BOOL: u32 = 2;
    pub(super) const INT: u32 = 3;
    pub(super) const DOUBLE: u32 = 4;
}

/// The field of `ScopeLogs` and `ScopeSpans` with a record.
pub const RECORD: u32 = 2;

const SCOPE: &str = "signalbox";

/// A value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AttributeValue<'a> {
    /// A text in two parts.
    Text([&'a str; 2]),
    /// A text in any number of parts.
    Joined(&'a [&'a str]),
    /// A number; one beyond the range of `int64` counts as its end.
    Number(u64),
    /// A fraction.
    Double(f64),
    /// True or false.
    Bool(bool),
    /// A value without a kind.
    Nothing,
}

impl Envelope {
    /// The envelope of records about a resource with these attributes.
    pub fn new<'a>(attributes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut resource = Buffer::new();
        for (name, value) in attributes {
            attribute(
                &mut resource,
                tag::RESOURCE_ATTRIBUTES,
                ["", name],
                &AttributeValue::Text([value, ""]),
            );
        }
        let mut scope = Buffer::new();
        put_bytes(&mut scope, tag::SCOPE_NAME, SCOPE.as_bytes());
        let field = |tag, message: &Buffer| {
            let mut field = Buffer::new();
            put_bytes(&mut field, tag, message);
            field.into_boxed_slice()
        };
        Self { resource: field(tag::RESOURCE, &resource), scope: field(tag::SCOPE, &scope) }
    }

    /// The request with these records. Each part has any number of records, as fields [`RECORD`].
    pub fn request<R: AsRef<[u8]>>(&self, records: &[R]) -> Bytes {
        let size = records.iter().map(|part| part.as_ref().len()).sum::<usize>();
        let scope_records = self.scope.len() + size;
        let resource_records = self.resource.len() + delimited(scope_records);
        let mut out = Vec::with_capacity(resource_records + 16);
        put_length(&mut out, tag::RESOURCE_RECORDS, resource_records);
        out.extend_from_slice(&self.resource);
        put_length(&mut out, tag::SCOPE_RECORDS, scope_records);
        out.extend_from_slice(&self.scope);
        for part in records {
            out.extend_from_slice(part.as_ref());
        }
        out.into()
    }
}

/// True for the answers after which a batch is sent once more ("OTLP/HTTP Response").
pub fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// The pause that `Retry-After` asks for, if it is a number of seconds. A date needs two clocks that agree.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The number of records of a batch that were rejected, by the answer. One that cannot be read does not say so.
pub fn rejected(answer: &[u8]) -> u64 {
    let partial = ExportResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
    partial.map_or(0, |partial| u64::try_from(partial.rejected).unwrap_or(0))
}

/// The pause before a retry, after so many of them: from half of `first` on, doubling, up to `longest`. `random` is from 0 to 1. A pause
/// that the receiver asks for counts where it is longer.
pub fn pause(retries: u8, [first, longest]: [Duration; 2], asked: Option<Duration>, random: f64) -> Duration {
    let doubled = first.saturating_mul(1 << u32::from(retries).min(10)).min(longest);
    let pause = doubled.mul_f64(1.0 - 0.5 * random);
    asked.map_or(pause, |asked| asked.min(longest).max(pause))
}

/// Writes a `KeyValue`, whose key comes in two parts.
pub fn attribute(out: &mut Buffer, tag: u32, [prefix, name]: [&str; 2], value: &AttributeValue<'_>) {
    let key = prefix.len() + name.len();
    put_length(out, tag, delimited(key) + delimited(value_size(value)));
    put_length(out, tag::KEY, key);
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(name.as_bytes());
    any_value(out, tag::VALUE, value);
}

/// Writes an `AnyValue`.
pub fn any_value(out: &mut Buffer, tag: u32, value: &AttributeValue<'_>) {
    put_length(out, tag, value_size(value));
    match value {
        AttributeValue::Text([text, more]) => {
            put_length(out, tag::STRING, text.len() + more.len());
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(more.as_bytes());
        }
        AttributeValue::Joined(parts) => {
            put_length(out, tag::STRING, joined(parts));
            parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        }
        AttributeValue::Number(number) => put_number(out, tag::INT, int64(*number)),
        AttributeValue::Double(number) => put_fixed64(out, tag::DOUBLE, number.to_bits()),
        AttributeValue::Bool(is_true) => put_number(out, tag::BOOL, u64::from(*is_true)),
        AttributeValue::Nothing => {}
    }
}

fn value_size(value: &AttributeValue<'_>) -> usize {
    match value {
        AttributeValue::Text([text, more]) => delimited(text.len() + more.len()),
        AttributeValue::Joined(parts) => delimited(joined(parts)),
        AttributeValue::Number(number) => 1 + encoded_len_varint(int64(*number)),
        AttributeValue::Double(_) => 9,
        AttributeValue::Bool(_) => 2,
        AttributeValue::Nothing => 0,
    }
}

fn joined(parts: &[&str]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

/// A number that is signed on the wire.
fn int64(number: u64) -> u64 {
    number.min(i64::MAX as u64)
}

/// The size of a field of this length, whose tag takes one byte.
fn delimited(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

/// Writes the key and the length of a field, whose content follows.
#[inline]
pub fn put_length(out: &mut Buffer, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

/// Writes a field of bytes.
#[inline]
pub fn put_bytes(out: &mut Buffer, tag: u32, value: &[u8]) {
    put_length(out, tag, value.len());
    out.extend_from_slice(value);
}

/// Writes a number of variable length.
#[inline]
pub fn put_number(out: &mut Buffer, tag: u32, value: u64) {
    encode_key(tag, WireType::Varint, out);
    encode_varint(value, out);
}

/// Writes a number of eight bytes.
#[inline]
pub fn put_fixed64(out: &mut Buffer, tag: u32, value: u64) {
    encode_key(tag, WireType::SixtyFourBit, out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Writes a number of four bytes.
#[inline]
pub fn put_fixed32(out: &mut Buffer, tag: u32, value: u32) {
    encode_key(tag, WireType::ThirtyTwoBit, out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A time since 1970 as OTLP has it.
#[inline]
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_a_number_of_seconds() {
        for (text, seconds) in [
            ("3", Some(3)),
            (" 0 ", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("Tue, 01 Dec 2026 00:00:00 GMT", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers), seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn an_answer_that_cannot_be_read_rejects_nothing() {
        let answer = |rejected| {
            let partial_success = Some(PartialSuccess { rejected, error_message: String::new() });
            ExportResponse { partial_success }.encode_to_vec()
        };
        for (bytes, expected) in [(vec![], 0), (b"nonsense".to_vec(), 0), (answer(2), 2), (answer(-1), 0)] {
            assert_eq!(rejected(&bytes), expected);
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_one_that_is_asked_for_counts() {
        let bounds = [Duration::from_millis(250), Duration::from_secs(30)];
        let ms = |retries, asked, random| pause(retries, bounds, asked, random).as_millis();
        assert_eq!((ms(0, None, 0.0), ms(0, None, 1.0)), (250, 125));
        assert_eq!((ms(3, None, 0.0), ms(20, None, 0.0)), (2000, 30_000));
        let asked = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!((ms(0, asked(2), 0.0), ms(0, asked(0), 0.0), ms(0, asked(300), 0.0)), (2000, 250, 30_000));
    }
}
