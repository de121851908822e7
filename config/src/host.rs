//! A host as it is matched.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// The form of `authority`, a host with an optional port as a request names it, that hosts of routes are compared with:
/// without port and final dot, in lower case, an IPv6 address in its shortest form. An empty text is no host, and stays one.
///
/// `None`: it is no host name, no address, or its port is none. Others on the way may read `a,b`, `a..b` or `%61` as another
/// host, so no request with such a host is routed. Allocates only when something is to be changed.
#[inline]
pub fn normalize(authority: &str) -> Option<Cow<'_, str>> {
    if authority.starts_with('[') {
        return normalize_literal(authority);
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let mut upper = false;
    let mut label = 0;
    for byte in host.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
            b'A'..=b'Z' => {
                upper = true;
                label += 1;
            }
            b'.' if label > 0 => label = 0,
            _ => return None,
        }
    }
    if port.is_some_and(|port| host.is_empty() || !is_port(port)) {
        return None;
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    Some(if upper { Cow::Owned(host.to_ascii_lowercase()) } else { Cow::Borrowed(host) })
}

/// An IPv6 address in brackets.
fn normalize_literal(authority: &str) -> Option<Cow<'_, str>> {
    let end = authority.find(']')?;
    let (host, port) = authority.split_at(end + 1);
    let address: Ipv6Addr = host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return None;
    }
    let form = format!("[{address}]");
    Some(if form == host { Cow::Borrowed(host) } else { Cow::Owned(form) })
}

/// A port as it may stand behind a colon: a number up to 65535, or nothing (RFC 3986, section 3.2.3).
fn is_port(port: &str) -> bool {
    port.bytes().all(|digit| digit.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read() {
        for (given, expected) in [
            ("example.com", Some("example.com")),
            ("Example.COM:8080", Some("example.com")),
            ("example.com.", Some("example.com")),
            ("example.com.:80", Some("example.com")),
            ("a_b-c.1", Some("a_b-c.1")),
            ("127.0.0.1:65535", Some("127.0.0.1")),
            ("a:", Some("a")),
            ("a:0", Some("a")),
            ("[::1]:8080", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("[0:0::1]:", Some("[::1]")),
            ("[::FFFF]", Some("[::ffff]")),
            ("", Some("")),
            ("a b", None),
            ("a/b", None),
            ("a\\b", None),
            ("a@b", None),
            ("a:b", None),
            ("a:80:80", None),
            ("a:65536", None),
            ("a:99999", None),
            ("a:+80", None),
            ("a:-1", None),
            (":80", None),
            (".", None),
            ("..", None),
            (".a", None),
            ("a..b", None),
            ("a..", None),
            ("a,b", None),
            ("a;b", None),
            ("a=b", None),
            ("a&b", None),
            ("a+b", None),
            ("a'b", None),
            ("a(b)", None),
            ("a!", None),
            ("a$", None),
            ("~a", None),
            ("*", None),
            ("*.a", None),
            ("%61", None),
            ("a%2eb", None),
            ("[a", None),
            ("a]", None),
            ("[a]b]", None),
            ("[[a]]", None),
            ("[]", None),
            ("[::1", None),
            ("[::1]80", None),
            ("[::1]:99999", None),
            ("[fe80::1%25eth0]", None),
            ("[v1.a]", None),
            ("[127.0.0.1]", None),
            ("::1", None),
            ("\u{e4}.example", None),
        ] {
            assert_eq!(normalize(given).as_deref(), expected, "{given}");
        }
        assert!(matches!(normalize("example.com:80"), Some(Cow::Borrowed(_))));
    }
}
