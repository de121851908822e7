//! The parts of heads that a line may show. They are as they came, but for hosts and URLs in headers, which have lost their secrets.

use http::HeaderName;
use smallvec::SmallVec;

use super::redact::ValueKind;

/// The parts of heads that a line may show, for listeners with settings of their own: they are encoded only if the line is written. They
/// are copied, because the heads are gone by then.
#[derive(Debug)]
pub struct Parts {
    bytes: Vec<u8>,
    /// The ends of the first parts: method, host, path and user agent.
    ends: [usize; 4],
    protocol: &'static str,
    /// The places of headers, those of the request first. `None`: there is no such header.
    headers: SmallVec<[Option<(usize, usize)>; 4]>,
}

/// The most bytes of a header's value that are kept.
pub(super) const MAX_VALUE: usize = 256;

impl Parts {
    /// Copies parts into `memory`, which is cleared. The path has the query if that is logged.
    pub fn new(
        mut memory: Vec<u8>,
        method: &str,
        host: &[u8],
        path: &str,
        protocol: &'static str,
        user_agent: &[u8],
    ) -> Self {
        memory.clear();
        let ends = [method.as_bytes(), host, path.as_bytes(), user_agent].map(|part| {
            memory.extend_from_slice(part);
            memory.len()
        });
        Self { bytes: memory, ends, protocol, headers: SmallVec::new() }
    }

    /// Adds the next header: its values, separated by commas, up to [`MAX_VALUE`] bytes. URLs lose their secrets before anything is cut,
    /// because a part of one may look harmless. `names` are those of parameters that are redacted; `None`: URLs lose their queries.
    pub fn push_header<'a>(
        &mut self,
        name: &HeaderName,
        names: Option<&[Box<str>]>,
        values: impl Iterator<Item = &'a [u8]>,
    ) {
        let begin = self.bytes.len();
        let kind = ValueKind::of(name);
        let mut redacted = SmallVec::<[u8; 256]>::new();
        let mut is_there = false;
        for value in values {
            if std::mem::replace(&mut is_there, true) {
                self.bytes.extend_from_slice(b", ");
            }
            let shown = match kind {
                Some(kind) => {
                    redacted.clear();
                    kind.write(&mut redacted, value, names);
                    &*redacted
                }
                None => value,
            };
            // One more tells if a character is cut in two.
            self.bytes.extend(shown.iter().take(MAX_VALUE + 1));
            if self.bytes.len() - begin > MAX_VALUE {
                break;
            }
        }
        let length = bounded(self.bytes.get(begin..).unwrap_or_default(), MAX_VALUE).len();
        self.bytes.truncate(begin + length);
        self.headers.push(is_there.then_some((begin, begin + length)));
    }

    pub fn method(&self) -> &[u8] {
        self.part(0)
    }

    pub fn host(&self) -> &[u8] {
        self.part(1)
    }

    pub fn path(&self) -> &[u8] {
        self.part(2)
    }

    pub fn user_agent(&self) -> &[u8] {
        self.part(3)
    }

    pub fn protocol(&self) -> &'static str {
        self.protocol
    }

    /// The header of this number, by the order in which they were added.
    pub fn header(&self, index: usize) -> Option<&[u8]> {
        let (begin, end) = self.headers.get(index).copied().flatten()?;
        self.bytes.get(begin..end)
    }

    /// Returns its memory, for the next head.
    pub fn into_memory(self) -> Vec<u8> {
        self.bytes
    }

    fn part(&self, index: usize) -> &[u8] {
        let begin = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(index).copied().unwrap_or(begin);
        self.bytes.get(begin..end).unwrap_or_default()
    }
}

/// The first `longest` bytes of a text. A character of UTF-8 at the end is not cut in two.
pub(super) fn bounded(text: &[u8], longest: usize) -> &[u8] {
    let Some(cut) = text.get(..longest).filter(|cut| cut.len() < text.len()) else { return text };
    let is_continuation = |byte: &u8| byte & 0xc0 == 0x80;
    if !text.get(longest).is_some_and(is_continuation) {
        return cut;
    }
    match cut.iter().rposition(|byte| !is_continuation(byte)) {
        Some(begin) if cut.len() - begin < 4 => cut.get(..begin).unwrap_or_default(),
        _ => cut,
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    const PLAIN: HeaderName = header::CONTENT_TYPE;

    #[test]
    fn parts_are_found_again() {
        let mut parts = Parts::new(b"old".to_vec(), "GET", b"a.example", "/x?y", "HTTP/1.1", b"");
        parts.push_header(&PLAIN, None, [&b"one"[..], b"two"].into_iter());
        parts.push_header(&PLAIN, None, std::iter::empty());
        parts.push_header(&PLAIN, None, [&b""[..]].into_iter());
        assert_eq!(
            (parts.method(), parts.host(), parts.path()),
            (&b"GET"[..], &b"a.example"[..], &b"/x?y"[..])
        );
        assert_eq!((parts.user_agent(), parts.protocol()), (&b""[..], "HTTP/1.1"));
        assert_eq!(parts.header(0), Some(&b"one, two"[..]));
        assert_eq!((parts.header(1), parts.header(2), parts.header(3)), (None, Some(&b""[..]), None));
    }

    #[test]
    fn secrets_are_gone_before_values_are_cut() {
        let user = format!("https://u:{}", "SECRET".repeat(100));
        let long = "x".repeat(2 * MAX_VALUE);
        for (values, expected) in [
            (vec![format!("{user}@a.example/x?b=1")], "https://REDACTED@a.example/x?b=1".to_owned()),
            (vec![format!("{user}@a.example")], "https://REDACTED@a.example".to_owned()),
            (
                vec!["/a?b=1".to_owned(), "https://u:SECRET@a.example/?token=SECRET".to_owned()],
                "/a?b=1, https://REDACTED@a.example/?token=REDACTED".to_owned(),
            ),
            (
                vec!["x".repeat(250), "https://u:SECRET@a.example".to_owned()],
                format!("{}, http", "x".repeat(250)),
            ),
            (vec![format!("/{long}?token=SECRET")], format!("/{}", "x".repeat(MAX_VALUE - 1))),
            (vec![format!("/a?token={}&b=1", "SECRET".repeat(100))], "/a?token=REDACTED&b=1".to_owned()),
        ] {
            let mut parts = Parts::new(Vec::new(), "GET", b"", "/", "HTTP/1.1", b"");
            parts.push_header(&header::REFERER, Some(&[]), values.iter().map(String::as_bytes));
            assert_eq!(parts.header(0), Some(expected.as_bytes()), "{values:?}");
            parts.push_header(&header::REFERER, None, values.iter().map(String::as_bytes));
            assert!(!String::from_utf8_lossy(parts.header(1).unwrap()).contains("SECRET"), "{values:?}");
        }
    }

    #[test]
    fn values_are_bounded() {
        let mut parts = Parts::new(Vec::new(), "GET", b"", "/", "HTTP/1.1", b"");
        let long = [b'x'; 5000];
        parts.push_header(&PLAIN, None, std::iter::repeat_n(&long[..], 100));
        parts.push_header(&PLAIN, None, std::iter::repeat_n(&b"y"[..], 1000));
        assert_eq!(parts.header(0), Some(&[b'x'; MAX_VALUE][..]));
        assert_eq!(parts.header(1).unwrap().len(), MAX_VALUE);
        parts.push_header(&PLAIN, None, std::iter::once("€".repeat(100).as_bytes()));
        assert_eq!(parts.header(2), Some("€".repeat(85).as_bytes()));
        parts.push_header(&PLAIN, None, ["€".repeat(84).as_bytes(), "€".as_bytes()].into_iter());
        assert_eq!(parts.header(3), Some(format!("{}, ", "€".repeat(84)).as_bytes()));
        for (text, longest, expected) in [
            ("abc", 3, "abc"),
            ("abc", 2, "ab"),
            ("aä", 2, "a"),
            ("aä", 3, "aä"),
            ("a€b", 3, "a"),
            ("a€b", 4, "a€"),
            ("\u{1f600}", 3, ""),
            ("", 0, ""),
        ] {
            assert_eq!(bounded(text.as_bytes(), longest), expected.as_bytes(), "{text} {longest}");
        }
        assert_eq!(bounded(&[0x80; 9], 5), [0x80; 5]);
    }
}
