//! URLs without their secrets.

use http::HeaderName;
use percent_encoding::percent_decode;
use smallvec::{Array, SmallVec};

/// Words in the names of parameters whose values usually are secrets.
const WORDS: [&[u8]; 13] = [
    b"assertion",
    b"credential",
    b"credentials",
    b"jwt",
    b"passwd",
    b"password",
    b"pwd",
    b"secret",
    b"sig",
    b"signature",
    b"ticket",
    b"token",
    b"apikey",
];

/// Further names. `AWSAccessKeyId`, `sig`, `Signature` and `X-Goog-Signature` are those that OpenTelemetry's semantic conventions name
/// (`url.query`); `code` is OAuth's (RFC 6749, section 4.1.2).
const NAMES: [&[u8]; 10] = [
    b"accesskey",
    b"accesstoken",
    b"access_key",
    b"api_key",
    b"api-key",
    b"awsaccesskeyid",
    b"code",
    b"idtoken",
    b"key",
    b"refreshtoken",
];

/// Headers whose values are URLs, with the same secrets as the request's own.
const URLS: [&str; 8] = [
    "content-location",
    "location",
    "referer",
    "x-envoy-original-path",
    "x-forwarded-uri",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

const REDACTED: &[u8] = b"REDACTED";

/// True if the values of a header are URLs.
pub(super) fn is_url(name: &HeaderName) -> bool {
    URLS.contains(&name.as_str())
}

/// Writes a URL, or a path with a query, without secrets. `names` are those of further parameters, in lower case; `None`: the query is
/// left out. A user with a password is always redacted.
pub(super) fn write_redacted<A: Array<Item = u8>>(
    out: &mut SmallVec<A>,
    url: &[u8],
    names: Option<&[Box<str>]>,
) {
    let split = url.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(url.len());
    let (begin, mut rest) = url.split_at(split);
    write_without_user(out, begin);
    let Some(names) = names else { return };
    // Each part begins with the character that separates it from the one before.
    while let Some((separator, after)) = rest.split_first() {
        let end =
            after.iter().position(|byte| matches!(byte, b'&' | b';' | b'?' | b'#')).unwrap_or(after.len());
        let (parameter, next) = after.split_at(end);
        out.push(*separator);
        match parameter.iter().position(|byte| *byte == b'=') {
            Some(equals) if is_secret(parameter.get(..equals).unwrap_or_default(), names) => {
                out.extend_from_slice(parameter.get(..=equals).unwrap_or_default());
                out.extend_from_slice(REDACTED);
            }
            _ => out.extend_from_slice(parameter),
        }
        rest = next;
    }
}

fn write_without_user<A: Array<Item = u8>>(out: &mut SmallVec<A>, url: &[u8]) {
    let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let scheme = url.iter().take_while(|byte| is_scheme(byte)).count();
    let after = url.get(scheme..).unwrap_or_default();
    let authority = after.strip_prefix(b"://").or_else(|| after.strip_prefix(b"//").filter(|_| scheme == 0));
    let Some(authority) = authority else { return out.extend_from_slice(url) };
    let end = authority.iter().position(|byte| *byte == b'/').unwrap_or(authority.len());
    match authority.iter().take(end).rposition(|byte| *byte == b'@') {
        Some(at) => {
            out.extend_from_slice(url.get(..url.len() - authority.len()).unwrap_or_default());
            out.extend_from_slice(REDACTED);
            out.extend_from_slice(authority.get(at..).unwrap_or_default());
        }
        None => out.extend_from_slice(url),
    }
}

fn is_secret(encoded: &[u8], names: &[Box<str>]) -> bool {
    let name: SmallVec<[u8; 64]> = percent_decode(encoded)
        .map(|byte| if byte == b'+' { b' ' } else { byte.to_ascii_lowercase() })
        .collect();
    let mut words = name.split(|byte| !byte.is_ascii_alphanumeric());
    NAMES.contains(&&*name)
        || words.any(|word| WORDS.contains(&word))
        || names.iter().any(|known| known.as_bytes() == &*name)
        || !name.is_ascii() && is_among(&name, names)
}

/// The same for names with other letters, whose case only Unicode knows.
#[cold]
fn is_among(name: &[u8], names: &[Box<str>]) -> bool {
    let name = String::from_utf8_lossy(name).to_lowercase();
    names.iter().any(|known| **known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(url: &str, names: Option<&[&str]>) -> String {
        let names: Option<Vec<Box<str>>> =
            names.map(|names| names.iter().map(|name| (*name).into()).collect());
        let mut out = SmallVec::<[u8; 64]>::new();
        write_redacted(&mut out, url.as_bytes(), names.as_deref());
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn queries_are_left_out_or_redacted() {
        for (url, expected) in [
            ("/a", "/a"),
            ("/a?", "/a?"),
            ("/a?b=1", "/a?b=1"),
            ("/a?token=x&b=1", "/a?token=REDACTED&b=1"),
            ("/a?b=1;Access_Token=x", "/a?b=1;Access_Token=REDACTED"),
            ("/a?%74oken=x", "/a?%74oken=REDACTED"),
            ("/a?user[password]=x=y", "/a?user[password]=REDACTED"),
            (
                "/a?sig=x&X-Amz-Signature=y&code=z&key=",
                "/a?sig=REDACTED&X-Amz-Signature=REDACTED&code=REDACTED&key=REDACTED",
            ),
            ("/a?signal=1&keys=2&tokens", "/a?signal=1&keys=2&tokens"),
            ("/a?token", "/a?token"),
            ("/a?b=/x?token=y", "/a?b=/x?token=REDACTED"),
            ("/a#access_token=x", "/a#access_token=REDACTED"),
            ("/a?own=1&%c3%84=2", "/a?own=REDACTED&%c3%84=REDACTED"),
            ("https://user:pw@a.example/x@y?b=1", "https://REDACTED@a.example/x@y?b=1"),
            ("//user@a.example", "//REDACTED@a.example"),
            ("/x/https://user:pw@a.example", "/x/https://user:pw@a.example"),
            ("", ""),
        ] {
            assert_eq!(redacted(url, Some(&["own", "ä"])), expected, "{url}");
            let path = expected.split(['?', '#']).next().unwrap();
            assert_eq!(redacted(url, None), path, "{url}");
        }
    }
}
