//! Writes spans as fields of `opentelemetry.proto.trace.v1.ScopeSpans`.

use crate::otlp::{self, AttributeValue, RECORD};
use crate::trace_context::{SpanId, TraceContext};
use http::HeaderValue;

/// The numbers of the fields of `Span`, and of its `Status`.
mod tag {
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const TRACE_STATE: u32 = 3;
    pub(super) const PARENT_SPAN_ID: u32 = 4;
    pub(super) const NAME: u32 = 5;
    pub(super) const KIND: u32 = 6;
    pub(super) const START_TIME: u32 = 7;
    pub(super) const END_TIME: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;
    pub(super) const STATUS: u32 = 15;
    pub(super) const FLAGS: u32 = 16;
    pub(super) const STATUS_CODE: u32 = 3;
}

/// The side of a call that a span is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Work of its own.
    Internal = 1,
    /// A request that is answered.
    Server = 2,
    /// A request that is made.
    Client = 3,
}

/// The status of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing is wrong, as far as it is known.
    Unset,
    /// It failed.
    Error,
}

/// The parent of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// It begins the trace.
    None,
    /// A span of this process.
    Local(SpanId),
    /// A span of the caller.
    Remote(SpanId),
}

/// Everything about a span but its attributes.
#[derive(Debug)]
pub struct SpanHead<'a> {
    /// The trace and the span itself.
    pub context: TraceContext,
    /// The span that it is part of.
    pub parent: Parent,
    /// The caller's `tracestate`.
    pub state: &'a [HeaderValue],
    /// The name, in parts.
    pub name: [&'a str; 4],
    /// The side of a call.
    pub kind: Kind,
    /// The begin, in nanoseconds since 1970.
    pub start: u64,
    /// The end, likewise.
    pub end: u64,
    /// An error if it failed.
    pub status: Status,
}

/// The attributes of a span that is being written.
#[derive(Debug)]
pub struct Attributes<'b>(&'b mut Vec<u8>);

/// The bits of a span's flags that say whether its parent is remote (`SpanFlags` of OTLP).
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// The longest `tracestate` that goes into a span, in bytes; a longer one is left out.
const MAX_STATE: usize = 512;

/// The longest text of an attribute, in bytes; a longer one is cut off.
pub const MAX_TEXT: usize = 2048;

/// Appends a span. `scratch` is memory.
#[inline]
pub fn encode(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    span: &SpanHead<'_>,
    attributes: impl FnOnce(&mut Attributes<'_>),
) {
    scratch.clear();
    otlp::put_bytes(scratch, tag::TRACE_ID, &span.context.trace_id);
    otlp::put_bytes(scratch, tag::SPAN_ID, &span.context.span_id);
    if !span.state.is_empty() {
        put_state(scratch, span.state);
    }
    let (parent, remote) = match &span.parent {
        Parent::None => (None, 0),
        Parent::Local(id) => (Some(id), HAS_IS_REMOTE),
        Parent::Remote(id) => (Some(id), HAS_IS_REMOTE | IS_REMOTE),
    };
    if let Some(parent) = parent {
        otlp::put_bytes(scratch, tag::PARENT_SPAN_ID, parent);
    }
    otlp::put_length(scratch, tag::NAME, span.name.iter().map(|part| part.len()).sum());
    for part in span.name {
        scratch.extend_from_slice(part.as_bytes());
    }
    otlp::put_number(scratch, tag::KIND, span.kind as u64);
    otlp::put_fixed64(scratch, tag::START_TIME, span.start);
    otlp::put_fixed64(scratch, tag::END_TIME, span.end);
    attributes(&mut Attributes(scratch));
    if span.status == Status::Error {
        const ERROR: u64 = 2;
        otlp::put_length(scratch, tag::STATUS, 2);
        otlp::put_number(scratch, tag::STATUS_CODE, ERROR);
    }
    otlp::put_fixed32(scratch, tag::FLAGS, u32::from(span.context.flags) | remote);
    otlp::put_bytes(out, RECORD, scratch);
}

/// Its bytes were checked when it was read.
fn put_state(out: &mut Vec<u8>, state: &[HeaderValue]) {
    let size = state.iter().map(HeaderValue::len).sum::<usize>() + state.len() - 1;
    if size > MAX_STATE {
        return;
    }
    otlp::put_length(out, tag::TRACE_STATE, size);
    for (index, value) in state.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(value.as_bytes());
    }
}

impl Attributes<'_> {
    /// A text.
    #[inline]
    pub fn text(&mut self, key: &str, text: &str) {
        self.put(key, &AttributeValue::Text([cut(text, MAX_TEXT), ""]));
    }

    /// A text in parts, which are not cut off.
    #[inline]
    pub fn text_of(&mut self, key: &str, parts: &[&str]) {
        self.put(key, &AttributeValue::Joined(parts));
    }

    /// A number.
    #[inline]
    pub fn number(&mut self, key: &str, number: u64) {
        self.put(key, &AttributeValue::Number(number));
    }

    /// A fact.
    #[inline]
    pub fn flag(&mut self, key: &str) {
        self.put(key, &AttributeValue::Bool(true));
    }

    #[inline]
    fn put(&mut self, key: &str, value: &AttributeValue<'_>) {
        otlp::attribute(self.0, tag::ATTRIBUTES, ["", key], value);
    }
}

/// The begin of a text, up to so many bytes.
#[inline]
pub fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}
