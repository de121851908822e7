//! A path as it is matched and forwarded.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The treatment of percent-encoded slashes and backslashes in a path. Some targets read `%2F` as `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EscapedSlashes {
    /// The request is answered 400.
    #[default]
    Reject,
    /// The characters stay as they are. Routes do not take them for slashes.
    Keep,
}

/// Why a path cannot be normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadPath {
    /// More `..` than there are segments before them.
    Climbs,
    /// `%` without two hexadecimal digits.
    Encoding,
    /// NUL, another control character, or a backslash.
    Character,
    /// A slash or backslash, with [`EscapedSlashes::Reject`].
    EscapedSlash,
}

impl BadPath {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Climbs => "The path leads above the root.",
            Self::Encoding => "The path has a % that does not encode a byte.",
            Self::Character => "The path has a character that no path has.",
            Self::EscapedSlash => "The path has an encoded slash.",
        }
    }
}

/// Percent-encodes what no target of a request may have, but browsers, curl and others send all the same: bytes that are not
/// ASCII, and `"`, `<`, `>`, `^`, `` ` ``, `{`, `|`, `}`. `target` is a path, with its query or without. What is matched and sent
/// on is the encoded form. `None`: there is nothing to encode.
pub fn encode(target: &[u8]) -> Option<String> {
    target.iter().any(|byte| is_raw(*byte)).then(|| encode_where(target, is_raw))
}

/// The same for a path with variables in braces.
pub(crate) fn encode_template(template: &str) -> String {
    encode_where(template.as_bytes(), |byte| is_raw(byte) && !matches!(byte, b'{' | b'}'))
}

fn encode_where(target: &[u8], is_raw: impl Fn(u8) -> bool) -> String {
    let digit = |digit: u8| char::from_digit(u32::from(digit), 16).unwrap_or_default().to_ascii_uppercase();
    let mut out = String::with_capacity(target.len() + 16);
    for byte in target {
        if is_raw(*byte) {
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        } else {
            out.push(char::from(*byte));
        }
    }
    out
}

fn is_raw(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80..)
}

/// The form of `path` that means the same to everybody: the percent-encoding of characters that need none is undone (RFC
/// 3986, section 2.3), the rest is in upper case, empty segments are gone and then `.` and `..` (section 5.2.4). So `/a//../b`
/// is `/b`, as a file system has it. Twice is the same as once.
///
/// A path that does not begin with `/` (`*`) is returned as it is. Allocates only when something is to be changed.
pub fn normalize(path: &str, slashes: EscapedSlashes) -> Result<Cow<'_, str>, BadPath> {
    let mut before = 0;
    for byte in path.bytes() {
        match byte {
            b'%' => return rebuild(path, slashes),
            b'/' | b'.' if before == b'/' => return rebuild(path, slashes),
            b'\\' | 0..=0x1f | 0x7f => return Err(BadPath::Character),
            _ => before = byte,
        }
    }
    Ok(Cow::Borrowed(path))
}

fn rebuild(path: &str, slashes: EscapedSlashes) -> Result<Cow<'_, str>, BadPath> {
    if !path.starts_with('/') {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path, slashes)?;
    let mut out = String::with_capacity(decoded.len());
    // True if the last segment names a directory.
    let mut open = true;
    for segment in decoded.split('/') {
        open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => out.truncate(out.rfind('/').ok_or(BadPath::Climbs)?),
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if open {
        out.push('/');
    }
    Ok(if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) })
}

fn decode(path: &str, slashes: EscapedSlashes) -> Result<String, BadPath> {
    let mut out = String::with_capacity(path.len());
    let mut parts = path.split('%');
    out.push_str(checked(parts.next().unwrap_or_default())?);
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or(BadPath::Encoding)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(BadPath::Encoding);
        }
        let byte = u8::from_str_radix(digits, 16).map_err(|_| BadPath::Encoding)?;
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            0..=0x1f | 0x7f => return Err(BadPath::Character),
            b'/' | b'\\' if slashes == EscapedSlashes::Reject => return Err(BadPath::EscapedSlash),
            _ => {
                out.push('%');
                out.extend(digits.chars().map(|digit| digit.to_ascii_uppercase()));
            }
        }
        out.push_str(checked(rest)?);
    }
    Ok(out)
}

fn checked(part: &str) -> Result<&str, BadPath> {
    match part.bytes().any(|byte| matches!(byte, b'\\' | 0..=0x1f | 0x7f)) {
        true => Err(BadPath::Character),
        false => Ok(part),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keep(path: &str) -> Result<String, BadPath> {
        normalize(path, EscapedSlashes::Keep).map(Cow::into_owned)
    }

    #[test]
    fn what_no_target_may_have_is_encoded() {
        for (target, expected) in [
            ("/", None),
            ("*", None),
            ("/a?b=c&d[]=%7b\\ '()!$~", None),
            ("/caf\u{e9}", Some("/caf%C3%A9")),
            ("/a\"b?c=\"d\"", Some("/a%22b?c=%22d%22")),
            ("/<>^`{|}", Some("/%3C%3E%5E%60%7B%7C%7D")),
        ] {
            assert_eq!(encode(target.as_bytes()).as_deref(), expected, "{target}");
        }
        assert_eq!(encode(b"/\xff\x80").as_deref(), Some("/%FF%80"));
        assert_eq!(encode_template("/{id}/a|b"), "/{id}/a%7Cb");
        // Encoded characters are in normal form already.
        let encoded = encode("/caf\u{e9}/{x}".as_bytes()).unwrap();
        assert!(matches!(normalize(&encoded, EscapedSlashes::Reject), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn paths_are_normalized() {
        for (path, expected) in [
            ("/", Ok("/")),
            ("*", Ok("*")),
            ("", Ok("")),
            ("/a/b", Ok("/a/b")),
            ("/a/b/", Ok("/a/b/")),
            ("/a.b/.c/..d/e..", Ok("/a.b/.c/..d/e..")),
            ("/...", Ok("/...")),
            ("/.well-known/x", Ok("/.well-known/x")),
            ("//", Ok("/")),
            ("//a///b//", Ok("/a/b/")),
            ("/.", Ok("/")),
            ("/a/.", Ok("/a/")),
            ("/./a/./b", Ok("/a/b")),
            ("/a/..", Ok("/")),
            ("/a/b/..", Ok("/a/")),
            ("/a/b/../../c", Ok("/c")),
            ("/a//../b", Ok("/b")),
            ("/%61%2D%2e%5F%7e", Ok("/a-._~")),
            ("/a/%2e%2E/b", Ok("/b")),
            ("/a/.%2e/b", Ok("/b")),
            ("/a/%2e/b", Ok("/a/b")),
            ("/%c3%a4%3a", Ok("/%C3%A4%3A")),
            ("/%2525", Ok("/%2525")),
            ("/%252e%252e/a", Ok("/%252e%252e/a")),
            ("/a%2fb%5cc", Ok("/a%2Fb%5Cc")),
            ("/\u{e4}/", Ok("/\u{e4}/")),
            ("/..", Err(BadPath::Climbs)),
            ("/a/../..", Err(BadPath::Climbs)),
            ("/%2e%2e/a", Err(BadPath::Climbs)),
            ("//..", Err(BadPath::Climbs)),
            ("/a\\b", Err(BadPath::Character)),
            ("/%61\\", Err(BadPath::Character)),
            ("/%00", Err(BadPath::Character)),
            ("/%0d%0a", Err(BadPath::Character)),
            ("/%7F", Err(BadPath::Character)),
            ("/\u{7f}", Err(BadPath::Character)),
            ("/%", Err(BadPath::Encoding)),
            ("/%2", Err(BadPath::Encoding)),
            ("/%+1", Err(BadPath::Encoding)),
            ("/%zz", Err(BadPath::Encoding)),
            ("/%%32%35", Err(BadPath::Encoding)),
            ("/%\u{e4}", Err(BadPath::Encoding)),
        ] {
            assert_eq!(keep(path), expected.map(str::to_owned), "{path:?}");
        }
        for path in ["/a%2Fb", "/a%5cb", "/%2f%2e%2e"] {
            assert_eq!(normalize(path, EscapedSlashes::Reject), Err(BadPath::EscapedSlash), "{path}");
        }
        assert!(matches!(normalize("/a/b.c", EscapedSlashes::Reject), Ok(Cow::Borrowed(_))));
        assert!(matches!(normalize("/.a/%20", EscapedSlashes::Reject), Ok(Cow::Borrowed(_))));
    }

    /// The same, one rule after the other, by replacing text until nothing changes.
    fn naive(path: &str) -> Option<String> {
        let mut path = path.to_owned();
        let encoded = regex::Regex::new("%([0-9A-Fa-f]{2})").unwrap();
        if encoded.replace_all(&path, "").contains('%') {
            return None;
        }
        path = encoded
            .replace_all(&path, |found: &regex::Captures<'_>| {
                let c = char::from(u8::from_str_radix(&found[1], 16).unwrap());
                match c.is_ascii_alphanumeric() || "-._~".contains(c) {
                    true => c.to_string(),
                    false => found[0].to_uppercase(),
                }
            })
            .into_owned();
        if path.chars().any(|c| c == '\\' || c.is_ascii_control())
            || ["%0", "%1", "%7F"].iter().any(|control| path.contains(control))
        {
            return None;
        }
        while path.contains("//") {
            path = path.replace("//", "/");
        }
        while path.contains("/./") {
            path = path.replace("/./", "/");
        }
        if path.ends_with("/.") {
            path.pop();
        }
        if path.ends_with("/..") {
            path.push('/');
        }
        let up = regex::Regex::new(r"/[^/]+/\.\./").unwrap();
        loop {
            // The first one, whose segment before it is not `..`.
            let Some(found) = up.find_iter(&path).find(|found| !found.as_str().starts_with("/../")) else {
                break;
            };
            path.replace_range(found.range(), "/");
        }
        (!path.contains("/../")).then_some(path)
    }

    proptest! {
        #[test]
        fn a_normal_path_is_what_rule_after_rule_makes_it(
            parts in proptest::collection::vec(
                prop::sample::select(vec![
                    "/", "/", "/", ".", "..", "a", "b", "%2e", "%2E", "%61", "%2f", "%5C", "%25", "%", "%00", "\\", "\u{e4}", "%7f",
                    "%c3", "/../", "/./", "2", "e",
                ]),
                0..24,
            )
        ) {
            let path = format!("/{}", parts.concat());
            let normal = keep(&path);
            prop_assert_eq!(normal.clone().ok(), naive(&path), "{}", path);
            if let Ok(normal) = normal {
                prop_assert_eq!(keep(&normal), Ok(normal.clone()));
                prop_assert!(normal.starts_with('/') && !normal.contains("//"));
                prop_assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")));
            }
        }
    }
}
