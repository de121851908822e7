//! Lines of JSON.

use std::io::Write;
use std::time::Duration;

use http::HeaderName;
use signalbox_config::AccessLog;
use smallvec::SmallVec;

use super::clock::Clock;
use super::digits::push_digits;
use super::entry::Entry;
use super::parts::Parts;
use super::redact::write_path;

/// The logged parts of a request's head. They are encoded when the head arrives, because holding the head would cost
/// more.
#[derive(Debug, Default)]
pub struct Head {
    text: Vec<u8>,
    /// The position in `text` at which the user agent begins.
    user_agent: usize,
}

impl Head {
    /// Encodes the head into `memory`, which is cleared. An empty text stands for an absent value. The path has no
    /// query, because that may hold secrets.
    #[inline]
    pub fn new(
        mut memory: Vec<u8>,
        method: &str,
        host: &[u8],
        path: &str,
        protocol: &str,
        user_agent: &[u8],
    ) -> Self {
        memory.clear();
        plain(&mut memory, "\",\"method\":\"", method.as_bytes());
        text(&mut memory, "\",\"host\":\"", host);
        text(&mut memory, "\",\"path\":\"", path.as_bytes());
        plain(&mut memory, "\",\"protocol\":\"", protocol.as_bytes());
        let at = memory.len();
        text(&mut memory, "\",\"user_agent\":\"", user_agent);
        Self { text: memory, user_agent: at }
    }

    /// The same from parts that were kept. `query` are the names of parameters that are redacted; `None`: there is no query.
    pub fn of_parts(mut memory: Vec<u8>, parts: &Parts, query: Option<&[Box<str>]>) -> Self {
        memory.clear();
        plain(&mut memory, "\",\"method\":\"", parts.method());
        text(&mut memory, "\",\"host\":\"", parts.host());
        let mut path = SmallVec::<[u8; 256]>::new();
        write_path(&mut path, parts.path(), query);
        text(&mut memory, "\",\"path\":\"", &path);
        plain(&mut memory, "\",\"protocol\":\"", parts.protocol().as_bytes());
        let at = memory.len();
        text(&mut memory, "\",\"user_agent\":\"", parts.user_agent());
        Self { text: memory, user_agent: at }
    }

    /// Returns its memory, for the next head.
    pub fn into_memory(self) -> Vec<u8> {
        self.text
    }
}

/// Writes a line. `more` appends further fields, each with the comma before it.
#[inline]
pub(super) fn write_line(
    out: &mut Vec<u8>,
    clock: &mut Clock,
    head: &Head,
    entry: &Entry<'_>,
    more: impl FnOnce(&mut Vec<u8>),
) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(clock.text(entry.time));
    plain(out, "\",\"request_id\":\"", entry.request_id);
    plain(out, "\",\"trace_id\":\"", entry.trace_id);
    plain(out, "\",\"span_id\":\"", entry.span_id);
    let sampled: &[u8] = if entry.span_id.is_empty() { b"false" } else { b"true" };
    plain(out, "\",\"sampled\":", sampled);
    plain(out, ",\"client\":\"", entry.client);
    let (request, user_agent) = head.text.split_at(head.user_agent);
    out.extend_from_slice(request);
    number(out, "\",\"status\":", entry.status.into());
    if let Some(status) = entry.grpc_status {
        number(out, ",\"grpc_status\":", status.into());
    }
    plain(out, ",\"flags\":\"", entry.flags.as_bytes());
    plain(out, "\",\"route\":\"", entry.route.as_bytes());
    plain(out, "\",\"upstream\":\"", entry.upstream.as_bytes());
    plain(out, "\",\"upstream_error\":\"", entry.upstream_error.as_bytes());
    plain(out, "\",\"target\":\"", entry.target.as_bytes());
    number(out, "\",\"attempts\":", entry.attempts.into());
    millis(out, ",\"duration_ms\":", entry.duration);
    match entry.upstream_duration {
        Some(duration) => millis(out, ",\"upstream_ms\":", duration),
        None => out.extend_from_slice(b",\"upstream_ms\":null"),
    }
    number(out, ",\"bytes_in\":", entry.bytes_in);
    number(out, ",\"bytes_out\":", entry.bytes_out);
    plain(out, ",\"consumer\":\"", entry.consumer.as_bytes());
    plain(out, "\",\"plugin\":\"", entry.plugin.as_bytes());
    if !entry.shadow.is_empty() {
        plain(out, "\",\"shadow\":\"", entry.shadow.as_bytes());
    }
    out.extend_from_slice(user_agent);
    number(out, "\",\"revision\":", entry.revision);
    more(out);
    out.extend_from_slice(b"}\n");
}

/// Writes the fields that only a listener's own settings add.
pub(super) fn write_more(out: &mut Vec<u8>, settings: &AccessLog, parts: Option<&Parts>, weight: u32) {
    if settings.sample.is_some() {
        number(out, ",\"weight\":", weight.into());
    }
    let Some(parts) = parts else { return };
    let requests = settings.request_headers.len();
    let values = (0..).map(|index| parts.header(index));
    write_headers(out, ",\"request_headers\":{", settings.request_headers.iter().zip(values));
    let values = (requests..).map(|index| parts.header(index));
    write_headers(out, ",\"response_headers\":{", settings.response_headers.iter().zip(values));
}

/// Writes an object of those headers that are there, if there is one.
fn write_headers<'a>(
    out: &mut Vec<u8>,
    begin: &str,
    headers: impl Iterator<Item = (&'a HeaderName, Option<&'a [u8]>)>,
) {
    let mut before = begin;
    for (name, value) in headers {
        let Some(value) = value else { continue };
        // The characters of names need no escaping (RFC 9110, section 5.6.2).
        out.extend_from_slice(before.as_bytes());
        plain(out, "\"", name.as_str().as_bytes());
        text(out, "\":\"", value);
        out.push(b'"');
        before = ",";
    }
    if before == "," {
        out.push(b'}');
    }
}

/// Writes values that need no escaping: names, methods, addresses, identifiers. `key` includes the closing quotation
/// mark of the value before it and the opening one of this value.
#[inline]
fn plain(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(value);
}

/// Writes a value of the client, escaped.
#[inline]
fn text(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend_from_slice(key.as_bytes());
    if has_special(value) {
        escape(out, &String::from_utf8_lossy(value));
    } else {
        out.extend_from_slice(value);
    }
}

/// True if a value must be escaped. Some bytes are compared twice if their number is no multiple of eight.
#[inline]
fn has_special(value: &[u8]) -> bool {
    let is_special = |byte: &u8| (*byte < 0x20) | (*byte >= 0x7f) | (*byte == b'"') | (*byte == b'\\');
    match value.last_chunk::<8>() {
        Some(last) => value.as_chunks::<8>().0.iter().any(any_special) || any_special(last),
        None => value.iter().any(is_special),
    }
}

/// True if one of eight bytes must be escaped. They are compared in parallel (Sean Anderson, "Bit Twiddling Hacks").
#[inline]
fn any_special(eight: &[u8; 8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(*eight);
    // The highest bit of a byte tells the result; the lowest byte with that bit is always right.
    let below = |word: u64, limit: u64| word.wrapping_sub(limit * ONES) & !word;
    let equal = |byte: u8| below(word ^ (u64::from(byte) * ONES), 1);
    let special = below(word, 0x20) | equal(b'"') | equal(b'\\') | word | word.wrapping_add(ONES);
    special & (0x80 * ONES) != 0
}

#[cold]
fn escape(out: &mut Vec<u8>, value: &str) {
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            '\0'..'\x20' | '\x7f' => {
                // Writing to a vector does not fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

fn number(out: &mut Vec<u8>, key: &str, value: u64) {
    out.extend_from_slice(key.as_bytes());
    push_digits(out, value);
}

/// Writes a duration in milliseconds, to the microsecond.
fn millis(out: &mut Vec<u8>, key: &str, duration: Duration) {
    number(out, key, duration.as_secs() * 1000 + u64::from(duration.subsec_millis()));
    let rest = duration.subsec_micros() % 1000;
    out.extend_from_slice(&[
        b'.',
        b'0' + (rest / 100) as u8,
        b'0' + (rest / 10 % 10) as u8,
        b'0' + (rest % 10) as u8,
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_to_be_escaped_is_found_at_any_place() {
        for length in 0..40 {
            let plain = vec![b' '; length];
            for byte in (b' '..=b'~').filter(|byte| !matches!(byte, b'"' | b'\\')) {
                assert!(!has_special(&vec![byte; length]), "{length} times {byte}");
            }
            for (place, byte) in
                (0..length).flat_map(|place| b"\x00\x1f\x7f\x80\xff\"\\".map(|byte| (place, byte)))
            {
                let mut value = plain.clone();
                value[place] = byte;
                assert!(has_special(&value), "{byte} at {place} of {length}");
            }
        }
    }
}
