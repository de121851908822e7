//! Trace contexts in other formats than W3C's: Zipkin's B3, Jaeger's and AWS X-Ray's.

use http::HeaderMap;
use http::header::HeaderName;
use signalbox_config::TraceFormat;
use smallvec::SmallVec;

use signalbox_plugin::trace_context::{SAMPLED, TraceContext, hex_span_id, hex_trace_id, unhex};

/// The contexts that a request brings, in the formats that are configured.
#[derive(Debug, Default)]
pub struct ForeignContexts {
    /// The forms that are there, valid or not.
    pub forms: SmallVec<[Form; 2]>,
    /// The first that is valid.
    pub first: Option<Claim>,
}

/// The statement of a caller about a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// `None`: there is only a decision.
    pub context: Option<TraceContext>,
    /// `None`: the receiver is to decide.
    pub is_sampled: Option<bool>,
}

/// The fields that carry a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `b3`
    B3,
    /// `x-b3-traceid` and its siblings.
    B3Multiple,
    /// `uber-trace-id`
    Jaeger,
    /// `x-amzn-trace-id`
    Xray,
}

const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const JAEGER: HeaderName = HeaderName::from_static("uber-trace-id");
const XRAY: HeaderName = HeaderName::from_static("x-amzn-trace-id");

impl ForeignContexts {
    /// Reads the contexts in `formats`, of which the first that is valid counts.
    pub fn read(headers: &HeaderMap, formats: &[TraceFormat]) -> Self {
        let mut found = Self::default();
        for format in formats {
            let forms: &[Form] = match format {
                TraceFormat::W3c => &[],
                TraceFormat::B3 => &[Form::B3, Form::B3Multiple],
                TraceFormat::Jaeger => &[Form::Jaeger],
                TraceFormat::Xray => &[Form::Xray],
            };
            for form in forms.iter().filter(|form| form.names().iter().any(|name| headers.contains_key(name)))
            {
                found.forms.push(*form);
                if found.first.is_none() {
                    found.first = form.parse(headers);
                }
            }
        }
        found
    }

    /// Removes the fields of all contexts.
    pub fn remove_from(&self, headers: &mut HeaderMap) {
        for name in self.forms.iter().flat_map(|form| form.names()) {
            headers.remove(name);
        }
    }
}

impl Form {
    /// The fields of this form.
    pub fn names(self) -> &'static [HeaderName] {
        static NAMES: [HeaderName; 8] =
            [B3, B3_TRACE_ID, B3_SPAN_ID, B3_PARENT, B3_SAMPLED, B3_FLAGS, JAEGER, XRAY];
        match self {
            Self::B3 => &NAMES[..1],
            Self::B3Multiple => &NAMES[1..6],
            Self::Jaeger => &NAMES[6..7],
            Self::Xray => &NAMES[7..],
        }
    }

    fn parse(self, headers: &HeaderMap) -> Option<Claim> {
        let only = |name: HeaderName| {
            let mut values = headers.get_all(name).iter();
            let value = values.next().filter(|_| values.next().is_none())?;
            Some(value.as_bytes().trim_ascii())
        };
        match self {
            Self::B3 => parse_b3(only(B3)?),
            Self::B3Multiple => {
                let is_debug = only(B3_FLAGS) == Some(b"1");
                let is_sampled = if is_debug { Some(true) } else { only(B3_SAMPLED).and_then(b3_decision) };
                let ids = only(B3_TRACE_ID).zip(only(B3_SPAN_ID));
                let context = ids.and_then(|(trace, span)| context(trace, span, is_sampled));
                (context.is_some() || is_sampled.is_some()).then_some(Claim { context, is_sampled })
            }
            Self::Jaeger => parse_jaeger(only(JAEGER)?),
            Self::Xray => parse_xray(only(XRAY)?),
        }
    }

    /// Calls `field` with the fields that carry `context`.
    pub fn write(self, context: &TraceContext, mut field: impl FnMut(HeaderName, Vec<u8>)) {
        let (trace, span) = (hex_trace_id(&context.trace_id), hex_span_id(&context.span_id));
        let decision: &[u8] = if context.is_sampled() { b"1" } else { b"0" };
        match self {
            Self::B3 => field(B3, [&trace[..], b"-", &span, b"-", decision].concat()),
            Self::B3Multiple => {
                field(B3_TRACE_ID, trace.to_vec());
                field(B3_SPAN_ID, span.to_vec());
                field(B3_SAMPLED, decision.to_vec());
            }
            Self::Jaeger => field(JAEGER, [&trace[..], b":", &span, b":0:", decision].concat()),
            Self::Xray => {
                let (time, rest) = trace.split_at(8);
                let parts = [b"Root=1-", time, b"-", rest, b";Parent=", &span, b";Sampled=", decision];
                field(XRAY, parts.concat());
            }
        }
    }
}

/// `TRACE-SPAN`, `TRACE-SPAN-DECISION` or `TRACE-SPAN-DECISION-PARENT`; a decision may stand alone.
fn parse_b3(value: &[u8]) -> Option<Claim> {
    if let Some(decision) = b3_decision(value) {
        return Some(Claim { context: None, is_sampled: Some(decision) });
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let (trace, span) = (parts.next()?, parts.next()?);
    let is_sampled = match parts.next() {
        Some(decision) => Some(b3_decision(decision)?),
        None => None,
    };
    let context = Some(context(trace, span, is_sampled)?);
    Some(Claim { context, is_sampled })
}

fn b3_decision(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

/// `TRACE:SPAN:PARENT:FLAGS`, whose colons may be percent-encoded.
fn parse_jaeger(value: &[u8]) -> Option<Claim> {
    let text = std::str::from_utf8(value).ok()?.replace("%3A", ":").replace("%3a", ":");
    let mut parts = text.split(':');
    let (trace, span, _, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let is_sampled = Some(flags & 3 != 0);
    let context = Some(context(trace.as_bytes(), span.as_bytes(), is_sampled)?);
    parts.next().is_none().then_some(Claim { context, is_sampled })
}

/// `Root=1-TIME-REST;Parent=SPAN;Sampled=DECISION`, in any order, and with other parts.
fn parse_xray(value: &[u8]) -> Option<Claim> {
    let (mut trace, mut span, mut is_sampled) = ([0; 32], None, None);
    let mut has_root = false;
    for part in value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
        if let Some(root) = part.strip_prefix(b"Root=1-") {
            let (time, rest) = root.split_at_checked(8)?;
            let rest = rest.strip_prefix(b"-").filter(|rest| rest.len() == 24)?;
            trace[..8].copy_from_slice(time);
            trace[8..].copy_from_slice(rest);
            has_root = true;
        } else if let Some(parent) = part.strip_prefix(b"Parent=") {
            span = Some(parent);
        } else if let Some(decision) = part.strip_prefix(b"Sampled=") {
            is_sampled = b3_decision(decision);
        }
    }
    let context = if has_root { context(&trace, span?, is_sampled) } else { None };
    (context.is_some() || is_sampled.is_some()).then_some(Claim { context, is_sampled })
}

/// A context of ids that may be shorter than W3C's.
fn context(trace: &[u8], span: &[u8], is_sampled: Option<bool>) -> Option<TraceContext> {
    let (trace_id, span_id) = (padded(trace)?, padded(span)?);
    let flags = if is_sampled == Some(true) { SAMPLED } else { 0 };
    let is_valid = trace_id != [0; 16] && span_id != [0; 8];
    is_valid.then_some(TraceContext { trace_id, span_id, flags })
}

/// The bytes of an id that may lack zeros on its left.
fn padded<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut all = [b'0'; 32];
    let width = 2 * N;
    let first = width.checked_sub(digits.len()).filter(|_| !digits.is_empty())?;
    for (to, from) in all.get_mut(first..width)?.iter_mut().zip(digits) {
        *to = from.to_ascii_lowercase();
    }
    unhex(all.get(..width)?)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const ALL: [TraceFormat; 3] = [TraceFormat::B3, TraceFormat::Jaeger, TraceFormat::Xray];
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn read(fields: &[(&'static str, &str)]) -> ForeignContexts {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        ForeignContexts::read(&headers, &ALL)
    }

    /// Trace, span and decision of the first context.
    fn ids(fields: &[(&'static str, &str)]) -> Option<(String, Option<bool>)> {
        let Claim { context, is_sampled } = read(fields).first?;
        let text = context.map(|context| String::from_utf8(context.traceparent().to_vec()).unwrap());
        Some((text.map_or_else(String::new, |text| text[3..52].to_owned()), is_sampled))
    }

    #[test]
    fn contexts_are_read() {
        let full = format!("{TRACE}-00f067aa0ba902b7");
        let short = "0000000000000000a3ce929d0e0e4736-00f067aa0ba902b7".to_owned();
        let none = String::new();
        for (fields, expected) in [
            (&[("b3", &*format!("{full}-1"))][..], Some((&full, Some(true)))),
            (&[("b3", &format!("{full}-0-00f067aa0ba902b8"))], Some((&full, Some(false)))),
            (&[("b3", &format!("{full}-d"))], Some((&full, Some(true)))),
            (&[("b3", &full)], Some((&full, None))),
            // An id of 64 bits gets zeros on its left.
            (&[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-1")], Some((&short, Some(true)))),
            (&[("b3", "0")], Some((&none, Some(false)))),
            (&[("b3", "1")], Some((&none, Some(true)))),
            (&[("b3", "x")], None),
            (&[("b3", &format!("{full}-x"))], None),
            (&[("b3", "00000000000000000000000000000000-00f067aa0ba902b7-1")], None),
            (
                &[("x-b3-traceid", TRACE), ("x-b3-spanid", "00f067aa0ba902b7"), ("x-b3-sampled", "0")],
                Some((&full, Some(false))),
            ),
            (
                &[("x-b3-traceid", TRACE), ("x-b3-spanid", "00f067aa0ba902b7"), ("x-b3-flags", "1")],
                Some((&full, Some(true))),
            ),
            (&[("x-b3-sampled", "0")], Some((&none, Some(false)))),
            (&[("x-b3-traceid", TRACE)], None),
            (&[("uber-trace-id", &format!("{TRACE}:f067aa0ba902b7:0:1"))], Some((&full, Some(true)))),
            (&[("uber-trace-id", &format!("{TRACE}%3Af067aa0ba902b7%3A0%3A0"))], Some((&full, Some(false)))),
            (&[("uber-trace-id", &format!("{TRACE}:f067aa0ba902b7:0"))], None),
            (
                &[(
                    "x-amzn-trace-id",
                    "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1",
                )],
                Some((&full, Some(true))),
            ),
            (
                &[(
                    "x-amzn-trace-id",
                    "Self=1-x; Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7",
                )],
                Some((&full, None)),
            ),
            (&[("x-amzn-trace-id", "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736")], None),
            (&[("x-amzn-trace-id", "Root=2-x")], None),
            (&[], None),
        ] {
            let expected = expected.map(|(text, decision)| (text.clone(), decision));
            assert_eq!(ids(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn the_first_valid_context_counts_and_all_forms_are_known() {
        let other = "11111111111111111111111111111111:2222222222222222:0:1";
        let found = read(&[("b3", "nonsense"), ("uber-trace-id", other)]);
        assert_eq!(&*found.forms, [Form::B3, Form::Jaeger]);
        assert_eq!(found.first.unwrap().context.unwrap().trace_id, [0x11; 16]);
        // Two of a field are none.
        assert_eq!(read(&[("uber-trace-id", other), ("uber-trace-id", other)]).first, None);
    }

    #[test]
    fn contexts_are_written_as_they_are_read() {
        let context = context(TRACE.as_bytes(), b"00f067aa0ba902b7", Some(true)).unwrap();
        for form in [Form::B3, Form::B3Multiple, Form::Jaeger, Form::Xray] {
            let mut headers = HeaderMap::new();
            form.write(&context, |name, value| {
                headers.insert(name, HeaderValue::from_bytes(&value).unwrap());
            });
            let mut found = ForeignContexts::read(&headers, &ALL);
            assert_eq!(found.first, Some(Claim { context: Some(context), is_sampled: Some(true) }));
            assert_eq!(found.forms.pop(), Some(form));
            ForeignContexts::read(&headers, &ALL).remove_from(&mut headers);
            assert!(headers.is_empty());
        }
    }
}
