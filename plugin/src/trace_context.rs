//! The trace context that a request brings, in the form of W3C Trace Context: `traceparent` and `tracestate`.

use http::HeaderMap;
use http::header::{GetAll, HeaderName, HeaderValue};

use crate::hex::hex;

/// The header with the caller's span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with what systems add to it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A span of a trace, and the decision of its maker about the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never all zeros.
    pub trace_id: TraceId,
    /// Never all zeros.
    pub span_id: SpanId,
    /// [`SAMPLED`] and [`RANDOM`]; other bits are dropped.
    pub flags: u8,
}

/// The id of a trace.
pub type TraceId = [u8; 16];

/// The id of a span.
pub type SpanId = [u8; 8];

/// The value of a `traceparent` header.
pub type Traceparent = [u8; 55];

/// The flag of a trace whose spans are recorded.
pub const SAMPLED: u8 = 1;

/// The flag of a trace id whose last 56 bits are random (W3C Trace Context, level 2).
pub const RANDOM: u8 = 2;

/// The most members of a `tracestate` (W3C Trace Context, section 3.3.1.1).
const MAX_MEMBERS: usize = 32;

/// The longest key of a member; of a key with an `@`, the longest parts before and behind it (section 3.3.1.3.1).
const MAX_KEY: usize = 256;
const MAX_TENANT: usize = 241;
const MAX_SYSTEM: usize = 14;

/// The longest value of a member (section 3.3.1.3.2).
const MAX_VALUE: usize = 256;

impl TraceContext {
    /// Parses a `traceparent`: of version 00, or of a later one that begins in the same way.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.trim_ascii().split_at_checked(55)?;
        let has_dashes = [2, 35, 52].iter().all(|at| head.get(*at) == Some(&b'-'));
        let [version] = unhex(head.get(..2)?)?;
        let [flags] = unhex(head.get(53..)?)?;
        let (trace_id, span_id) = (unhex(head.get(3..35)?)?, unhex(head.get(36..52)?)?);
        let has_end = match version {
            0xff => false,
            0 => rest.is_empty(),
            _ => rest.first().is_none_or(|byte| *byte == b'-'),
        };
        let is_valid = has_dashes && has_end && trace_id != [0; 16] && span_id != [0; 8];
        is_valid.then_some(Self { trace_id, span_id, flags: flags & (SAMPLED | RANDOM) })
    }

    /// The `traceparent` of this context.
    #[inline]
    pub fn traceparent(&self) -> Traceparent {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..35].copy_from_slice(&hex_trace_id(&self.trace_id));
        text[36..52].copy_from_slice(&hex_span_id(&self.span_id));
        text[54] = b'0' + (self.flags & (SAMPLED | RANDOM));
        text
    }

    /// True if its maker records the trace.
    #[inline]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// Reads the context of `headers`: there is exactly one `traceparent`, and it is valid.
pub fn read(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let only = parents.next().filter(|_| parents.next().is_none());
    only.and_then(|parent| TraceContext::parse(parent.as_bytes()))
}

/// Reads the context of `headers`, and removes the fields that nobody may take for a context: both, unless there is exactly one
/// `traceparent` and it is valid; `tracestate` alone, if only that is invalid (W3C Trace Context, sections 3.3 and 4.3).
pub fn take(headers: &mut HeaderMap) -> Option<TraceContext> {
    let context = read(headers);
    if context.is_none() {
        headers.remove(TRACEPARENT);
    }
    if context.is_none() || !is_state(&headers.get_all(TRACESTATE)) {
        headers.remove(TRACESTATE);
    }
    context
}

/// True if the values of all fields together are a `tracestate`.
fn is_state(values: &GetAll<'_, HeaderValue>) -> bool {
    let members = values.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    // Empty members are allowed, and count for nothing.
    let mut members = members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty());
    members.by_ref().take(MAX_MEMBERS).all(is_member) && members.next().is_none()
}

fn is_member(member: &[u8]) -> bool {
    let Some(at) = position(b'=', member) else { return false };
    let (key, value) = (&member[..at], &member[at + 1..]);
    let is_value_byte = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b',' | b'=');
    let is_value = (1..=MAX_VALUE).contains(&value.len()) && value.iter().all(is_value_byte);
    is_key(key) && is_value
}

fn position(wanted: u8, bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == wanted)
}

fn is_key(key: &[u8]) -> bool {
    let is_part = |part: &[u8], longest: usize, may_begin: fn(&u8) -> bool| {
        let is_byte = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
        part.len() <= longest && part.first().is_some_and(may_begin) && part.iter().all(is_byte)
    };
    let letter: fn(&u8) -> bool = |byte| byte.is_ascii_lowercase();
    match position(b'@', key) {
        None => is_part(key, MAX_KEY, letter),
        Some(at) => {
            let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            is_part(&key[..at], MAX_TENANT, alphanumeric) && is_part(&key[at + 1..], MAX_SYSTEM, letter)
        }
    }
}

/// The bytes of lower-case hexadecimal digits. `None`: there are other characters, or not the right number.
pub fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// The id of a trace as text.
#[inline]
pub fn hex_trace_id(id: &TraceId) -> [u8; 32] {
    let id = u128::from_be_bytes(*id);
    hex((id >> 64) as u64, id as u64)
}

/// The id of a span as text.
#[inline]
pub fn hex_span_id(id: &SpanId) -> [u8; 16] {
    let mut text = [0; 16];
    text.copy_from_slice(&hex(u64::from_be_bytes(*id), 0)[..16]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "12345678901234567890123456789012";
    const PARENT: &str = "00-12345678901234567890123456789012-1234567890123456-00";

    /// The fields that are left of these.
    fn left(fields: &[(&str, &str)]) -> (Option<TraceContext>, Vec<String>, Vec<String>) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let context = take(&mut headers);
        let all = |name| headers.get_all(name).iter().map(|it| it.to_str().unwrap().to_owned()).collect();
        (context, all(TRACEPARENT), all(TRACESTATE))
    }

    /// The cases of the test suite of W3C Trace Context, for a proxy without tracing: a context passes unchanged, or not at all.
    #[test]
    fn a_traceparent_passes_unchanged_or_not_at_all() {
        let good = |text: &str| (text.to_owned(), true);
        let bad = |text: &str| (text.to_owned(), false);
        for (value, passes) in [
            good(PARENT),
            good(&format!("00-{TRACE}-1234567890123456-01")),
            good(&format!("00-{TRACE}-1234567890123456-ff")),
            // Version 00 ends with the flags.
            bad(&format!("{PARENT}.")),
            bad(&format!("{PARENT}-what-the-future-will-be-like")),
            // Later versions may go on.
            good(&format!("cc-{TRACE}-1234567890123456-01")),
            good(&format!("cc-{TRACE}-1234567890123456-01-what-the-future-will-be-like")),
            bad(&format!("cc-{TRACE}-1234567890123456-01.what-the-future-will-be-like")),
            bad(&format!("ff-{TRACE}-1234567890123456-01")),
            bad(&format!(".0-{TRACE}-1234567890123456-01")),
            bad(&format!("0.-{TRACE}-1234567890123456-01")),
            bad(&format!("CC-{TRACE}-1234567890123456-01")),
            bad(&format!("000-{TRACE}-1234567890123456-01")),
            bad(&format!("0000-{TRACE}-1234567890123456-01")),
            bad(&format!("0-{TRACE}-1234567890123456-01")),
            bad(&format!("-{TRACE}-1234567890123456-01")),
            // Ids.
            bad("00-00000000000000000000000000000000-1234567890123456-01"),
            bad("00-.2345678901234567890123456789012-1234567890123456-01"),
            bad("00-1234567890123456789012345678901.-1234567890123456-01"),
            bad("00-ABCDEF78901234567890123456789012-1234567890123456-01"),
            bad("00-123456789012345678901234567890123-1234567890123456-01"),
            bad("00-1234567890123456789012345678901-1234567890123456-01"),
            bad(&format!("00-{TRACE}-0000000000000000-01")),
            bad(&format!("00-{TRACE}-.234567890123456-01")),
            bad(&format!("00-{TRACE}-123456789012345.-01")),
            bad(&format!("00-{TRACE}-ABCDEF7890123456-01")),
            bad(&format!("00-{TRACE}-12345678901234567-01")),
            bad(&format!("00-{TRACE}-123456789012345-01")),
            // Flags.
            bad(&format!("00-{TRACE}-1234567890123456-.0")),
            bad(&format!("00-{TRACE}-1234567890123456-0.")),
            bad(&format!("00-{TRACE}-1234567890123456-FF")),
            bad(&format!("00-{TRACE}-1234567890123456-001")),
            bad(&format!("00-{TRACE}-1234567890123456-1")),
            bad(&format!("00-{TRACE}-1234567890123456-")),
            bad(&PARENT.replace('-', "_")),
            bad(""),
            // White space around a value is no part of it.
            good(&format!(" {PARENT}")),
            good(&format!("\t{PARENT}")),
            good(&format!("{PARENT} \t")),
        ] {
            let (context, parents, states) = left(&[("traceparent", &value), ("tracestate", "foo=1")]);
            let expected: &[&str] = if passes { &[&value] } else { &[] };
            assert_eq!(parents, expected);
            assert_eq!(context.is_some(), passes, "{value}");
            // Without the one the other says nothing.
            assert_eq!(states.len(), usize::from(passes), "{value}");
        }
    }

    #[test]
    fn a_context_is_read_as_it_is_written() {
        for flags in [0, 1, 2, 3] {
            let value = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0{flags}");
            let context = TraceContext::parse(value.as_bytes()).unwrap();
            assert_eq!(context.traceparent(), value.as_bytes());
            assert_eq!((context.flags, context.is_sampled()), (flags, flags & 1 == 1));
        }
        // Flags that nobody knows yet are not passed on.
        let context = TraceContext::parse(format!("00-{TRACE}-1234567890123456-fd").as_bytes()).unwrap();
        assert_eq!(context.flags, SAMPLED);
        let later = TraceContext::parse(format!("cc-{TRACE}-1234567890123456-01-x").as_bytes()).unwrap();
        assert!(later.traceparent().starts_with(b"00-"));
    }

    #[test]
    fn two_parents_are_none() {
        let other = "00-12345678901234567890123456789011-1234567890123456-01";
        for second in [PARENT, other, "nonsense", ""] {
            let fields = [("traceparent", PARENT), ("traceparent", second), ("tracestate", "foo=1")];
            assert_eq!(left(&fields), (None, vec![], vec![]), "{second}");
        }
        // Two in one field.
        let both = format!("{PARENT},{other}");
        assert_eq!(left(&[("traceparent", &both)]), (None, vec![], vec![]));
    }

    #[test]
    fn a_state_without_a_parent_is_dropped() {
        assert_eq!(left(&[("tracestate", "foo=1")]), (None, vec![], vec![]));
        assert_eq!(left(&[("tracestate", "foo=1"), ("tracestate", "bar=2")]), (None, vec![], vec![]));
    }

    #[test]
    fn a_state_passes_unchanged_or_not_at_all_and_the_parent_lives() {
        let many =
            |count: usize| (1..=count).map(|n| format!("bar{n:02}={n:02}")).collect::<Vec<_>>().join(",");
        let halves = [many(16), many(16)];
        let long = |key: String| format!("{key}=1");
        let cases: &[(&[&str], bool)] = &[
            (&["foo=1"], true),
            (&["foo=1,bar=2"], true),
            (&["foo=1", "bar=2"], true),
            (&["foo=1", "", "bar=2"], true),
            (&[""], true),
            (&["foo=1,"], true),
            (&["foo=1 \t,\t bar=2"], true),
            (&["foo=1 ,bar=2,baz=3"], true),
            (&["foo=1\t \t,\t \tbar=2,\t \tbaz=3"], true),
            (&[" foo=1"], true),
            (&["\tfoo=1\t"], true),
            // Keys that come twice pass as they are.
            (&["foo=1,foo=1"], true),
            (&["foo=1", "foo=2"], true),
            (
                &["abcdefghijklmnopqrstuvwxyz0123456789_-*/= !\"#$%&'()*+-./0123456789:;<>?@AZ[\\]^_`az{|}~"],
                true,
            ),
            (&["0tenant@system=1"], true),
            (&[&many(32)], true),
            (&[&many(33)], false),
            (&[&halves[0], &halves[1]], true),
            (&[&halves[0], &halves[1], "one=more"], false),
            (&["foo =1"], false),
            (&["FOO=1"], false),
            (&["foo.bar=1"], false),
            (&["0foo=1"], false),
            (&["foo@=1,bar=2"], false),
            (&["@foo=1,bar=2"], false),
            (&["foo@@bar=1,bar=2"], false),
            (&["foo@bar@baz=1,bar=2"], false),
            (&["foo"], false),
            (&["=1"], false),
            (&["foo="], false),
            (&["foo=bar=baz"], false),
            (&["foo=,bar=3"], false),
            (&["foo=1", &long("z".repeat(256))], true),
            (&["foo=1", &long("z".repeat(257))], false),
            (&["foo=1", &long(format!("{}@{}", "t".repeat(241), "v".repeat(14)))], true),
            (&["foo=1", &long(format!("{}@v", "t".repeat(242)))], false),
            (&["foo=1", &long(format!("t@{}", "v".repeat(15)))], false),
            (&[&format!("foo={}", "v".repeat(256))], true),
            (&[&format!("foo={}", "v".repeat(257))], false),
        ];
        for (states, passes) in cases {
            let mut fields = vec![("traceparent", PARENT)];
            fields.extend(states.iter().map(|state| ("tracestate", *state)));
            let (context, parents, left) = left(&fields);
            assert!(context.is_some());
            assert_eq!(parents, [PARENT]);
            let expected: &[&str] = if *passes { states } else { &[] };
            assert_eq!(left, expected, "{states:?}");
        }
    }
}
