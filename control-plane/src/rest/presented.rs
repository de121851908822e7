//! How a request presents a token or the cookie of a session, and what that is good for.

use http::{HeaderMap, StatusCode, header};

use super::call::Caller;
use super::problem::Problem;
use crate::auth::{Credentials, Use};

pub(super) const COOKIE: &str = "signalbox_session";

/// A token, or the cookie of a session, as a request presents it.
pub(super) struct Presented {
    pub(super) text: String,
    pub(super) by: Means,
}

impl Presented {
    /// The caller that presents it. A session's cookie is no token, and a token is no cookie.
    pub(super) fn caller(&self, credentials: &Credentials, how: Use) -> Option<Caller> {
        match self.by {
            Means::Header => {
                let principal = credentials.authenticate(&self.text)?;
                Some(Caller { principal, session: None })
            }
            Means::Cookie => {
                let (principal, session) = credentials.authenticate_session(&self.text, how)?;
                Some(Caller { principal, session: Some(session) })
            }
        }
    }
}

/// How a token is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    Header,
    /// By a browser, of itself: so it may be another site that asks.
    Cookie,
}

/// The token that a request presents.
pub(super) fn presented(headers: &HeaderMap) -> Option<Presented> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().unwrap_or_default();
        let (scheme, text) = value.split_once(' ').unwrap_or((value, ""));
        // Another scheme presents no token, and must not fall back to the cookie.
        let text = if scheme.eq_ignore_ascii_case("bearer") { text.trim() } else { "" };
        return Some(Presented { text: text.to_owned(), by: Means::Header });
    }
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let text = cookies
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))?;
    Some(Presented { text: text.to_owned(), by: Means::Cookie })
}

/// Refuses what another site makes a browser send (Fetch Metadata, and the Origin header of older browsers).
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |why: &str| {
        Err(Problem::new(StatusCode::FORBIDDEN, format!("a request with the session cookie {why}")))
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (text("sec-fetch-site"), text("origin")) {
        (Some("same-origin" | "none"), _) => Ok(()),
        (Some(_), _) => refused("must come from the same origin"),
        (None, Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            if authority.is_some() && authority == text("host") {
                Ok(())
            } else {
                refused("must come from the same origin")
            }
        }
        (None, None) => refused("needs Origin or Sec-Fetch-Site"),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_header_goes_before_the_cookie() {
        let text = |pairs: &[(&'static str, &'static str)]| {
            presented(&headers(pairs)).map(|token| (token.text, token.by))
        };
        assert_eq!(text(&[]), None);
        assert_eq!(text(&[("authorization", "Bearer a")]), Some(("a".to_owned(), Means::Header)));
        assert_eq!(text(&[("authorization", "bearer  a ")]), Some(("a".to_owned(), Means::Header)));
        let cookie = ("cookie", "x=1; signalbox_session=b");
        assert_eq!(text(&[cookie]), Some(("b".to_owned(), Means::Cookie)));
        assert_eq!(text(&[("authorization", "Basic a"), cookie]), Some((String::new(), Means::Header)));
        assert_eq!(text(&[("cookie", "signalbox_session2=b")]), None);
    }

    #[test]
    fn only_the_same_origin_may_use_the_cookie() {
        let fine = |pairs: &[(&'static str, &'static str)]| check_origin(&headers(pairs)).is_ok();
        assert!(fine(&[("sec-fetch-site", "same-origin")]));
        assert!(fine(&[("host", "a:9080"), ("origin", "http://a:9080")]));
        assert!(!fine(&[("sec-fetch-site", "cross-site"), ("host", "a"), ("origin", "http://a")]));
        assert!(!fine(&[("sec-fetch-site", "same-site")]));
        assert!(!fine(&[("host", "a:9080"), ("origin", "http://b:9080")]));
        assert!(!fine(&[("host", "a"), ("origin", "null")]));
        assert!(!fine(&[("host", "a")]));
    }
}
