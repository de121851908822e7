//! URLs without their secrets.

use http::{HeaderName, header};
use percent_encoding::percent_decode;
use signalbox_config::is_credential_name;
use smallvec::{Array, SmallVec};

/// Names of parameters that are secrets, besides those whose words tell so. `code` is OAuth's (RFC 6749, section 4.1.2); OpenTelemetry's
/// semantic conventions (`url.query`) name `AWSAccessKeyId`, `sig`, `Signature` and `X-Goog-Signature`, whose words do.
const NAMES: [&[u8]; 2] = [b"code", b"key"];

/// Headers whose values are URLs or have one in them, with the same secrets as the request's own. `Link` is not
/// among them: its values are lists.
const URLS: [&str; 11] = [
    "content-location",
    "destination",
    "location",
    "origin",
    "referer",
    "refresh",
    "x-envoy-original-path",
    "x-forwarded-uri",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// Headers whose values are hosts, before which some clients send a user and a password.
const HOSTS: [&str; 2] = ["host", "x-forwarded-host"];

const REDACTED: &[u8] = b"REDACTED";

/// The kind of a header's values that may have secrets in them.
#[derive(Debug, Clone, Copy)]
pub(super) enum ValueKind {
    Host,
    Url,
    Links,
}

impl ValueKind {
    /// `None`: values are shown as they are.
    pub(super) fn of(name: &HeaderName) -> Option<Self> {
        if *name == header::LINK {
            Some(Self::Links)
        } else if HOSTS.contains(&name.as_str()) {
            Some(Self::Host)
        } else {
            URLS.contains(&name.as_str()).then_some(Self::Url)
        }
    }

    /// Writes a value without its secrets. `names` as for [`write_path`].
    pub(super) fn write<A: Array<Item = u8>>(
        self,
        out: &mut SmallVec<A>,
        value: &[u8],
        names: Option<&[Box<str>]>,
    ) {
        match self {
            Self::Host => out.extend_from_slice(without_user(value)),
            Self::Url => write_url(out, value, names),
            Self::Links => write_links(out, value, names),
        }
    }
}

/// A host without the user and password before it, which clients must not send (RFC 9110, section 4.2.4), and some do.
#[inline]
pub fn without_user(host: &[u8]) -> &[u8] {
    match memchr::memrchr(b'@', host) {
        Some(at) => host.get(at + 1..).unwrap_or_default(),
        None => host,
    }
}

/// Writes a request's path with its query. `names` are those of further parameters that are secrets, in lower case; `None`: the query is
/// left out. A path that begins with `//` is no authority (RFC 9112, section 3.2.1), so `@` means nothing there.
pub(super) fn write_path<A: Array<Item = u8>>(
    out: &mut SmallVec<A>,
    target: &[u8],
    names: Option<&[Box<str>]>,
) {
    let (path, query) = split(target);
    out.extend_from_slice(path);
    write_query(out, query, names);
}

/// Writes a URL, or a text that ends with one, without users.
fn write_url<A: Array<Item = u8>>(out: &mut SmallVec<A>, url: &[u8], names: Option<&[Box<str>]>) {
    let (begin, query) = split(url);
    write_without_users(out, begin);
    write_query(out, query, names);
}

/// Writes links (RFC 8288, section 3): each URL is between `<` and `>`, and further ones may be quoted.
fn write_links<A: Array<Item = u8>>(out: &mut SmallVec<A>, mut links: &[u8], names: Option<&[Box<str>]>) {
    let mut is_target = false;
    loop {
        // A password may have any other character, if a client is careless.
        let is_end = |byte: &u8| if is_target { *byte == b'>' } else { matches!(byte, b'<' | b'"') };
        let end = links.iter().position(is_end);
        let (url, rest) = links.split_at(end.unwrap_or(links.len()));
        write_url(out, url, names);
        let Some((delimiter, rest)) = rest.split_first() else { return };
        out.push(*delimiter);
        is_target = *delimiter == b'<';
        links = rest;
    }
}

/// Splits a URL where its query or its fragment begins.
fn split(url: &[u8]) -> (&[u8], &[u8]) {
    url.split_at(url.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(url.len()))
}

/// Writes a query and a fragment, with the characters before them.
fn write_query<A: Array<Item = u8>>(out: &mut SmallVec<A>, mut rest: &[u8], names: Option<&[Box<str>]>) {
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
            _ => write_without_users(out, parameter),
        }
        rest = next;
    }
}

/// Writes a text with `REDACTED` in the place of all that stands between `//` and the last `@` before the next slash. Browsers take `\`
/// for `/`, and more slashes for two (WHATWG's URL Standard, section 4.4).
fn write_without_users<A: Array<Item = u8>>(out: &mut SmallVec<A>, mut text: &[u8]) {
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    while let Some(begin) = text.array_windows().position(|two: &[u8; 2]| two.iter().all(is_slash)) {
        let slashes = text.iter().skip(begin).take_while(|byte| is_slash(byte)).count();
        let (before, rest) = text.split_at(begin + slashes);
        out.extend_from_slice(before);
        // A password may have the other one.
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        match authority.iter().rposition(|byte| *byte == b'@') {
            Some(at) => {
                out.extend_from_slice(REDACTED);
                out.extend_from_slice(authority.get(at..).unwrap_or_default());
            }
            None => out.extend_from_slice(authority),
        }
        text = after;
    }
    out.extend_from_slice(text);
}

fn is_secret(encoded: &[u8], names: &[Box<str>]) -> bool {
    let name: SmallVec<[u8; 64]> =
        percent_decode(encoded).map(|byte| if byte == b'+' { b' ' } else { byte }).collect();
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
        || is_credential_name(&name)
        || names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
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

    /// A value of `header`, or the request's own path.
    fn redacted(header: Option<&str>, url: &str, names: Option<&[&str]>) -> String {
        let names: Option<Vec<Box<str>>> =
            names.map(|names| names.iter().map(|name| (*name).into()).collect());
        let mut out = SmallVec::<[u8; 64]>::new();
        match header {
            Some(header) => {
                let kind = ValueKind::of(&header.parse().unwrap()).unwrap();
                kind.write(&mut out, url.as_bytes(), names.as_deref());
            }
            None => write_path(&mut out, url.as_bytes(), names.as_deref()),
        }
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
            ("/a?own=1&OWN=2&%c3%84=2", "/a?own=REDACTED&OWN=REDACTED&%c3%84=REDACTED"),
            ("/a?b=https://u:pw@a.example/", "/a?b=https://REDACTED@a.example/"),
            ("", ""),
        ] {
            for header in [None, Some("referer")] {
                assert_eq!(redacted(header, url, Some(&["own", "ä"])), expected, "{url}");
                let path = expected.split(['?', '#']).next().unwrap();
                assert_eq!(redacted(header, url, None), path, "{url}");
            }
        }
    }

    #[test]
    fn secret_parameters_are_found_in_every_spelling() {
        for name in [
            "authToken",
            "sessionToken",
            "clientSecret",
            "csrfToken",
            "apiToken",
            "userPassword",
            "password1",
            "x-api-key",
            "user[api_key]",
            "user%5bapi_key%5d",
            "api+key",
            "client_api_key",
            "access-key",
            "subscription-key",
            "AWSAccessKeyId",
            "accessToken",
            "idtoken",
            "refresh_token",
            "auth",
            "session",
            "sid",
            "otp",
            "Code",
            "KEY",
        ] {
            let shown = redacted(None, &format!("/a?b=1&{name}=SECRET&c=2"), Some(&[]));
            assert_eq!(shown, format!("/a?b=1&{name}=REDACTED&c=2"));
        }
        for name in ["codes", "sortKey", "page", "author", "sessions", "zip_code"] {
            let url = format!("/a?{name}=1");
            assert_eq!(redacted(None, &url, Some(&[])), url);
        }
    }

    #[test]
    fn users_are_redacted_in_headers() {
        for (url, expected) in [
            ("https://user:pw@a.example/x@y?b=1", "https://REDACTED@a.example/x@y?b=1"),
            ("https://u:p@w@a.example", "https://REDACTED@a.example"),
            ("https://a.example/x@y", "https://a.example/x@y"),
            ("//user@a.example", "//REDACTED@a.example"),
            ("///u:pw@a.example/", "///REDACTED@a.example/"),
            ("https:\\\\u:pw@a.example/", "https:\\\\REDACTED@a.example/"),
            ("/x/https://user:pw@a.example", "/x/https://REDACTED@a.example"),
            (
                "https://a.example/x, https://u:pw@b.example",
                "https://a.example/x, https://REDACTED@b.example",
            ),
            ("/a?b=1, https://u:pw@b.example/", "/a?b=1, https://REDACTED@b.example/"),
            ("5; url=https://u:p'w@a.example/?token=x", "5; url=https://REDACTED@a.example/?token=REDACTED"),
            ("//", "//"),
            ("@", "@"),
        ] {
            for header in ["refresh", "destination", "location", "Referer"] {
                assert_eq!(redacted(Some(header), url, Some(&[])), expected, "{url}");
                let path = expected.split(['?', '#']).next().unwrap();
                assert_eq!(redacted(Some(header), url, None), path, "{url}");
            }
        }
    }

    #[test]
    fn hosts_are_shown_without_users() {
        for (host, expected) in [
            ("api", "api"),
            ("api:8080", "api:8080"),
            ("alice:pw@api", "api"),
            ("alice:p@w@api:80", "api:80"),
            ("alice@", ""),
            ("", ""),
        ] {
            assert_eq!(without_user(host.as_bytes()), expected.as_bytes(), "{host}");
            for header in ["host", "x-forwarded-host"] {
                assert_eq!(redacted(Some(header), host, None), expected, "{host}");
            }
        }
        assert!(ValueKind::of(&header::USER_AGENT).is_none());
    }

    #[test]
    fn links_keep_all_but_secrets() {
        for (links, with_query, without) in [
            (
                "<https://u:p'\"w@a.example/?page=2&token=x>; rel=\"next\", </b?sid=y>; rel=last",
                "<https://REDACTED@a.example/?page=2&token=REDACTED>; rel=\"next\", </b?sid=REDACTED>; rel=last",
                "<https://REDACTED@a.example/>; rel=\"next\", </b>; rel=last",
            ),
            (
                "</a>; anchor=\"https://u:pw@b.example/?token=x\"; rel=up",
                "</a>; anchor=\"https://REDACTED@b.example/?token=REDACTED\"; rel=up",
                "</a>; anchor=\"https://REDACTED@b.example/\"; rel=up",
            ),
            ("<https://u:pw@a.example", "<https://REDACTED@a.example", "<https://REDACTED@a.example"),
            ("", "", ""),
        ] {
            assert_eq!(redacted(Some("link"), links, Some(&[])), with_query);
            assert_eq!(redacted(Some("link"), links, None), without);
        }
    }

    #[test]
    fn the_path_of_a_request_has_no_user() {
        for (path, expected) in [
            ("//admin;x@y/z", "//admin;x@y/z"),
            ("//a@b", "//a@b"),
            ("/x/https://user:pw@a.example", "/x/https://user:pw@a.example"),
            ("//a@b?token=x", "//a@b?token=REDACTED"),
        ] {
            assert_eq!(redacted(None, path, Some(&[])), expected);
        }
    }
}
