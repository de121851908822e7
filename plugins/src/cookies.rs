//! The header `Cookie` of requests: reading it, and taking cookies out of it (RFC 6265, section 5.4).

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

/// All cookies of a request, name and value, as they stand.
pub(crate) fn all(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.get_all(COOKIE).iter().flat_map(parts).map(name_and_value)
}

/// Takes the cookies whose names `is_ours` accepts out of a request, and leaves the others as they are.
pub(crate) fn remove(headers: &mut HeaderMap, is_ours: impl Fn(&[u8]) -> bool) {
    if !all(headers).any(|(name, _)| is_ours(name)) {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| {
            let kept: Vec<&[u8]> = parts(value).filter(|part| !is_ours(name_and_value(part).0)).collect();
            if kept.is_empty() { None } else { HeaderValue::from_bytes(&kept.join(&b"; "[..])).ok() }
        })
        .collect();
    headers.remove(COOKIE);
    for value in kept {
        headers.append(COOKIE, value);
    }
}

fn parts(header: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    header.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii)
}

fn name_and_value(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b'=') {
        Some(place) => (text.get(..place).unwrap_or_default(), text.get(place + 1..).unwrap_or_default()),
        None => (text, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_taken_out_and_their_neighbours_stay() {
        let mut headers = HeaderMap::new();
        for value in ["a=1; b=2;c", "b=3", "xb=4; d=\"5; e=6\""] {
            headers.append(COOKIE, HeaderValue::from_static(value));
        }
        let found: Vec<_> = all(&headers).filter(|(name, _)| *name == b"b").map(|(_, value)| value).collect();
        assert_eq!(found, [b"2", b"3"]);
        remove(&mut headers, |name| name == b"b");
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; c", "xb=4; d=\"5; e=6\""]);
    }
}
