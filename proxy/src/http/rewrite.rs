//! Rewrites of a request's target.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::Uri;
use http::uri::PathAndQuery;
use signalbox_config::path::EscapedSlashes;
use signalbox_config::router::Slash;
use signalbox_config::{PathRewrite, Redirect};

use crate::core::failure::Failure;

/// The path after `rewrite`; `prefix_len` is the number of bytes of `path` that a prefix of the route matched.
pub fn path<'a>(rewrite: &'a PathRewrite, path: &'a str, prefix_len: usize) -> Cow<'a, str> {
    match rewrite {
        PathRewrite::Full(new) => Cow::Borrowed(new),
        PathRewrite::Prefix(new) => {
            let rest = path.get(prefix_len..).unwrap_or_default();
            // `/a` and `/a/` for the prefix `/a`, and the prefix `/` of length 0, must not result in two slashes or
            // none.
            match (new.strip_suffix('/').unwrap_or(new), rest) {
                ("", "") => Cow::Borrowed("/"),
                ("", rest) if rest.starts_with('/') => Cow::Borrowed(rest),
                (_, "") => Cow::Borrowed(new),
                (new, rest) => Cow::Owned(format!("{new}{rest}")),
            }
        }
        PathRewrite::Regex { pattern, substitution } => {
            let new = pattern.replace_all(path, &**substitution);
            if new.starts_with('/') { new } else { Cow::Owned(format!("/{new}")) }
        }
    }
}

/// Normalizes the path of `uri` into the form that is matched and sent on.
#[inline]
pub fn normalize(uri: &mut Uri, slashes: EscapedSlashes) -> Result<(), Failure> {
    match signalbox_config::path::normalize(uri.path(), slashes) {
        Ok(Cow::Borrowed(_)) => Ok(()),
        Ok(Cow::Owned(path)) => {
            let target = with_path(uri, &path).ok_or(NO_PATH)?;
            let mut parts = std::mem::take(uri).into_parts();
            parts.path_and_query = target.into_parts().path_and_query;
            *uri = Uri::from_parts(parts).map_err(|_| NO_PATH)?;
            Ok(())
        }
        Err(bad) => Err(Failure::BadRequest(bad.as_str())),
    }
}

/// Encodes the target of an HTTP/2 request in the form in which an HTTP/1.1 target is read.
#[inline]
pub fn encode(uri: &mut Uri) -> Result<(), Failure> {
    let Some(target) = uri.path_and_query() else { return Ok(()) };
    if target.as_str().starts_with('?') {
        return Err(NO_PATH);
    }
    let Some(encoded) = signalbox_config::path::encode(target.as_str().as_bytes()) else { return Ok(()) };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(encoded.try_into().map_err(|_| Failure::UriTooLong)?);
    *uri = Uri::from_parts(parts).map_err(|_| NO_PATH)?;
    Ok(())
}

const NO_PATH: Failure = Failure::BadRequest("The request's path is not valid.");

/// Builds a request target from `path` and the query of `uri`. Returns `None` if the path is not valid in a target.
pub fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let target: PathAndQuery = match uri.query() {
        Some(query) => format!("{path}?{query}").try_into().ok()?,
        None => path.try_into().ok()?,
    };
    Some(Uri::from(target))
}

/// The parts of the client's URL besides the path.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// True if the client used TLS, to this proxy or to a trusted one before it.
    pub https: bool,
    /// Host and port.
    pub authority: &'a str,
}

/// The location of a redirect.
pub fn location(redirect: &Redirect, origin: Origin<'_>, uri: &Uri, prefix_len: usize) -> String {
    // `OPTIONS *` has no path.
    let requested_path = if uri.path() == "*" { "/" } else { uri.path() };
    let path = match &redirect.path {
        Some(rewrite) => path(rewrite, requested_path, prefix_len),
        None => Cow::Borrowed(requested_path),
    };
    let mut location = String::with_capacity(origin.authority.len() + path.len() + 16);
    let relative = redirect.scheme.is_none() && redirect.host.is_none() && redirect.port.is_none();
    if !relative {
        let (host, port) = split_port(origin.authority);
        // A port belongs to the scheme with which it was requested: another scheme or host has its own.
        let port = match (redirect.port, port) {
            (Some(port), _) => Some(port.to_string()),
            (None, Some(port)) if redirect.scheme.is_none() && redirect.host.is_none() => {
                Some(port.to_owned())
            }
            (None, _) => None,
        };
        let scheme = redirect.scheme.as_deref().unwrap_or(if origin.https { "https" } else { "http" });
        let host = redirect.host.as_deref().unwrap_or(host);
        let usual = if scheme == "https" { "443" } else { "80" };
        let _ = write!(location, "{scheme}://{host}");
        if let Some(port) = port.filter(|port| port != usual) {
            let _ = write!(location, ":{port}");
        }
    }
    if relative {
        location.push_str(guard(&path));
    }
    location.push_str(&path);
    if let Some(query) = uri.query() {
        let _ = write!(location, "?{query}");
    }
    location
}

/// The location of a `strict_slash` redirect.
pub fn slash_location(slash: Slash, uri: &Uri) -> String {
    let path = uri.path();
    let path = match slash {
        Slash::Add => format!("{path}/"),
        Slash::Remove => path.strip_suffix('/').unwrap_or(path).to_owned(),
    };
    let guard = guard(&path);
    match uri.query() {
        Some(query) => format!("{guard}{path}?{query}"),
        None => format!("{guard}{path}"),
    }
}

/// The prefix for a path that would lead to another host: `//host/`, and `/\host/`, which browsers take for the same.
fn guard(path: &str) -> &'static str {
    if path.starts_with("//") || path.starts_with("/\\") { "/." } else { "" }
}

/// Splits an authority into host and port; the brackets of an IPv6 address stay.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::StatusCode;
    use regex::Regex;

    use super::*;

    #[test]
    fn paths_are_rewritten() {
        let prefix = |new: &str| PathRewrite::Prefix(new.into());
        let regex = |pattern, substitution: &str| PathRewrite::Regex {
            pattern: Arc::new(Regex::new(pattern).unwrap()),
            substitution: substitution.into(),
        };
        for (rewrite, given, prefix_len, expected) in [
            (prefix("/"), "/api/users/7", 4, "/users/7"),
            (prefix("/"), "/api", 4, "/"),
            (prefix("/"), "/api/", 4, "/"),
            (prefix("/v2"), "/api/users", 4, "/v2/users"),
            (prefix("/v2/"), "/api/users", 4, "/v2/users"),
            (prefix("/v2"), "/api", 4, "/v2"),
            (prefix("/v2/"), "/api", 4, "/v2/"),
            (prefix("/v2"), "/api/", 4, "/v2/"),
            (prefix("/v2"), "/users", 0, "/v2/users"),
            (prefix("/v2"), "/", 0, "/v2/"),
            (prefix("/"), "/users", 0, "/users"),
            (PathRewrite::Full("/x".into()), "/api/users", 4, "/x"),
            (regex("^/users/([0-9]+)$", "/u/$1/profile"), "/users/17", 0, "/u/17/profile"),
            (regex("^/", ""), "/a", 0, "/a"),
            (regex("b", "-"), "/abab", 0, "/a-a-"),
        ] {
            assert_eq!(path(&rewrite, given, prefix_len), expected, "{rewrite:?} {given}");
        }
    }

    #[test]
    fn the_query_is_kept() {
        let uri = Uri::from_static("/a?x=1&y=%20");
        assert_eq!(with_path(&uri, "/b").unwrap(), "/b?x=1&y=%20");
        assert_eq!(with_path(&Uri::from_static("/a"), "/b").unwrap(), "/b");
        assert!(with_path(&uri, "/b c").is_none());
    }

    #[test]
    fn redirects_keep_what_they_do_not_change() {
        let redirect =
            Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND };
        let with = |change: fn(&mut Redirect)| {
            let mut redirect = redirect.clone();
            change(&mut redirect);
            redirect
        };
        let https = with(|r| r.scheme = Some("https".into()));
        let host = with(|r| r.host = Some("new.example.com".into()));
        let port = with(|r| r.port = Some(8443));
        let https_port = with(|r| {
            r.scheme = Some("https".into());
            r.port = Some(443);
        });
        let prefix = with(|r| r.path = Some(PathRewrite::Prefix("/new".into())));
        for (redirect, expected) in [
            (https, "https://a.example.com/old/x?q=1"),
            (host, "http://new.example.com/old/x?q=1"),
            (port, "http://a.example.com:8443/old/x?q=1"),
            (https_port, "https://a.example.com/old/x?q=1"),
            (prefix, "/new/x?q=1"),
        ] {
            let uri = Uri::from_static("/old/x?q=1");
            let origin = Origin { https: false, authority: "a.example.com:8080" };
            assert_eq!(location(&redirect, origin, &uri, 4), expected);
        }
        let port = with(|r| r.port = Some(8443));
        let host = with(|r| r.host = Some("new.example.com".into()));
        let http = with(|r| r.scheme = Some("http".into()));
        for (redirect, expected) in [
            (port, "https://a.example.com:8443/x"),
            (host, "https://new.example.com/x"),
            (http, "http://a.example.com/x"),
        ] {
            let origin = Origin { https: true, authority: "a.example.com:444" };
            assert_eq!(location(&redirect, origin, &Uri::from_static("/x"), 0), expected);
        }
        let elsewhere = with(|r| r.path = Some(PathRewrite::Prefix("/".into())));
        let uri = Uri::from_static("/old//evil.example.com/");
        let origin = Origin { https: false, authority: "a" };
        assert_eq!(location(&elsewhere, origin, &uri, 4), "/.//evil.example.com/");
    }

    #[test]
    fn slashes_are_added_and_removed() {
        let at = |uri| Uri::from_static(uri);
        assert_eq!(slash_location(Slash::Add, &at("/a?q=1")), "/a/?q=1");
        assert_eq!(slash_location(Slash::Remove, &at("/a/")), "/a");
        assert_eq!(slash_location(Slash::Remove, &at("//evil.example.com/")), "/.//evil.example.com");
        assert_eq!(slash_location(Slash::Remove, &at("/\\evil.example.com/")), "/./\\evil.example.com");
    }

    #[test]
    fn ports_are_split_off() {
        assert_eq!(split_port("a:80"), ("a", Some("80")));
        assert_eq!(split_port("a"), ("a", None));
        assert_eq!(split_port("[::1]:80"), ("[::1]", Some("80")));
        assert_eq!(split_port("[::1]"), ("[::1]", None));
    }
}
