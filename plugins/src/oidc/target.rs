//! The place to which a browser returns after its login.

use http::Uri;

/// The longest path that is kept, bytes: it travels in a cookie.
const MAX_TARGET: usize = 1500;

/// The path and query of a request, to which its browser may be sent back.
///
/// It is made for a URL that begins with an origin, so it must begin with a slash; and no browser may read a part of it as another
/// host, whatever it does to white space, backslashes and repeated slashes.
pub(super) fn of(uri: &Uri) -> String {
    let whole = uri.path_and_query().map_or("/", |path| path.as_str());
    [whole, uri.path()].into_iter().find(|text| is_safe(text)).unwrap_or("/").to_owned()
}

fn is_safe(text: &str) -> bool {
    let path = text.split(['?', '#']).next().unwrap_or_default();
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    let solid: Vec<u8> = decoded.iter().copied().filter(|byte| *byte != b' ').collect();
    let may_name_a_host = solid.starts_with(b"//") || solid.starts_with(b"/.");
    text.len() <= MAX_TARGET
        && text.starts_with('/')
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        && !decoded.iter().any(|byte| matches!(byte, b'\\' | 0..0x20 | 0x7f))
        && !may_name_a_host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_this_host_are_returned_to() {
        for (target, expected) in [
            ("/", "/"),
            ("/a/b?c=d&e=//f", "/a/b?c=d&e=//f"),
            ("/my%20file//b", "/my%20file//b"),
            ("/a?next=https://evil.example/", "/a?next=https://evil.example/"),
            ("https://shop.example/a?b", "/a?b"),
            ("//evil.example", "/"),
            ("//evil.example/a?b", "/"),
            ("///evil.example", "/"),
            ("/\\evil.example", "/"),
            ("/%5cevil.example", "/"),
            ("/%5C/evil.example", "/"),
            ("/%09/evil.example", "/"),
            ("/%0d%0alocation:x", "/"),
            ("/%2fevil.example", "/"),
            ("/%20/evil.example", "/"),
            ("/.//evil.example", "/"),
            ("https://user@evil.example/a", "/a"),
        ] {
            let uri: Result<Uri, _> = target.parse();
            let Ok(uri) = uri else { continue };
            assert_eq!(of(&uri), expected, "{target}");
        }
        let long = format!("/a?{}", "x".repeat(MAX_TARGET));
        assert_eq!(of(&long.parse().unwrap()), "/a");
    }
}
