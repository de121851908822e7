//! The header `Authorization`: a scheme, and what follows it (RFC 9110, section 11.6.2).

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// There are several such headers, of which the upstream might take another than the gateway.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Several;

/// The credentials of `scheme`, whose case does not matter. `None`: there are none of this scheme.
pub(crate) fn of_scheme<'h>(headers: &'h HeaderMap, scheme: &str) -> Result<Option<&'h [u8]>, Several> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let is_only = values.next().is_none();
    let credentials = after_scheme(first.as_bytes(), scheme);
    match (is_only, credentials) {
        (true, credentials) => Ok(credentials),
        (false, _) => Err(Several),
    }
}

/// The rest of `value` behind a scheme.
pub(crate) fn after_scheme<'v>(value: &'v [u8], scheme: &str) -> Option<&'v [u8]> {
    let (found, rest) = value.split_at_checked(scheme.len())?;
    let rest = rest.strip_prefix(b" ")?;
    found.eq_ignore_ascii_case(scheme.as_bytes()).then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_credentials_of_a_scheme_follow_its_name() {
        for (values, expected) in [
            (&[][..], Ok(None)),
            (&["Basic abc"][..], Ok(Some(&b"abc"[..]))),
            (&["bAsIc   abc "], Ok(Some(b"abc"))),
            (&["Basic "], Ok(Some(b""))),
            (&["Basic"], Ok(None)),
            (&["Basicabc"], Ok(None)),
            (&["Bearer abc"], Ok(None)),
            (&[""], Ok(None)),
            (&["Basic a", "Basic b"], Err(Several)),
            (&["Bearer a", "Basic b"], Err(Several)),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            assert_eq!(of_scheme(&headers, "basic"), expected, "{values:?}");
        }
    }
}
