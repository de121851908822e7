//! Removals of cached responses, which are no part of revisions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Errors, FieldError};
use crate::host;
use crate::key::Name;

/// The cached responses that are to be removed: those that every given field selects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Purge {
    /// Selects the responses to requests that took this route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Selects the responses of this host: `www.example.com`, with any port and over HTTP and HTTPS. `*.example.com` selects those of
    /// all hosts below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub host: Option<String>,
    /// Selects the responses of this path, `/shop/list`, with any query. `/shop/*` selects those of all paths that begin with
    /// `/shop/`, and `/shop/list?page=2` those with exactly this query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub path: Option<String>,
    /// Selects the responses with this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub tag: Option<String>,
    /// Selects all responses. No other field may be given with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

const MAX_PATH: usize = 8192;
const MAX_TAG: usize = 1024;
const MAX_HOST: usize = 255;

impl Purge {
    /// The purge of everything.
    pub fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// The errors beyond the shape; empty if there are none.
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let is_narrow =
            self.route.is_some() || self.host.is_some() || self.path.is_some() || self.tag.is_some();
        if self.all && is_narrow {
            errors.push("all", "must not be given together with route, host, path and tag");
        }
        if !self.all && !is_narrow {
            errors.push("", "must have at least one of route, host, path and tag, or all: true");
        }
        if let Some(route) = &self.route
            && let Err(error) = route.parse::<Name>()
        {
            errors.push("route", error);
        }
        if self.host.as_ref().is_some_and(|host| !is_host(host)) {
            errors.push(
                "host",
                "must be a host without a port: www.example.com, *.example.com, 192.0.2.1 or [2001:db8::1]",
            );
        }
        if let Some(path) = &self.path {
            let is_text = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            if !path.starts_with('/') || path.len() > MAX_PATH || !is_text {
                errors.push(
                    "path",
                    format_args!("must begin with / and be encoded as in a URL, up to {MAX_PATH} bytes"),
                );
            }
        }
        if let Some(tag) = &self.tag
            && (tag.is_empty() || tag.len() > MAX_TAG || tag.contains([' ', ',']))
        {
            errors
                .push("tag", format_args!("must have from 1 to {MAX_TAG} bytes, without spaces and commas"));
        }
        errors.finish(Some(())).err().unwrap_or_default()
    }

    /// True if it selects a response to a request that took `route`: `url` is the requested one, `https://example.com/a?b`, and
    /// `has_tag` knows the tags of the response.
    pub fn selects(&self, route: &str, url: &str, has_tag: impl Fn(&str) -> bool) -> bool {
        if self.all {
            return true;
        }
        if self.route.is_none() && self.host.is_none() && self.path.is_none() && self.tag.is_none() {
            return false;
        }
        let (authority, target) = parts(url);
        self.route.as_ref().is_none_or(|wanted| wanted == route)
            && self.host.as_ref().is_none_or(|wanted| has_host(authority, wanted))
            && self.path.as_ref().is_none_or(|wanted| has_path(target, wanted))
            && self.tag.as_ref().is_none_or(|wanted| has_tag(wanted))
    }
}

/// The host with its port, and the path with its query.
fn parts(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or((rest, "/"), |at| rest.split_at(at))
}

fn is_host(text: &str) -> bool {
    let host = text.strip_prefix("*.").unwrap_or(text);
    let has_port = match host.rfind(']') {
        Some(end) => end + 1 != host.len(),
        None => host.contains(':'),
    };
    !host.is_empty()
        && text.len() <= MAX_HOST
        && !has_port
        && host::normalize(host).is_some_and(|host| !host.is_empty())
}

/// True if `authority` has the host `wanted`, or one below it if that begins with `*.`.
fn has_host(authority: &str, wanted: &str) -> bool {
    let Some(host) = host::normalize(authority) else { return false };
    match wanted.strip_prefix("*.") {
        None => host::normalize(wanted).is_some_and(|wanted| host == wanted),
        Some(parent) => host::normalize(parent).is_some_and(|parent| {
            host.strip_suffix(&*parent).is_some_and(|below| below.len() > 1 && below.ends_with('.'))
        }),
    }
}

fn has_path(target: &str, wanted: &str) -> bool {
    if let Some(prefix) = wanted.strip_suffix('*') {
        return target.starts_with(prefix);
    }
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    target == wanted || !wanted.contains('?') && path == wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(json: &str) -> Purge {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_purge_selects_what_all_its_fields_select() {
        let table = [
            (r#"{"all": true}"#, true),
            ("{}", false),
            (r#"{"route": "shop"}"#, true),
            (r#"{"route": "other"}"#, false),
            (r#"{"host": "www.example.com"}"#, true),
            (r#"{"host": "WWW.Example.com."}"#, true),
            (r#"{"host": "example.com"}"#, false),
            (r#"{"host": "*.example.com"}"#, true),
            (r#"{"host": "*.www.example.com"}"#, false),
            (r#"{"host": "*.ample.com"}"#, false),
            (r#"{"path": "/shop/list"}"#, true),
            (r#"{"path": "/shop/list?page=2"}"#, true),
            (r#"{"path": "/shop/list?page=3"}"#, false),
            (r#"{"path": "/shop"}"#, false),
            (r#"{"path": "/shop/*"}"#, true),
            (r#"{"path": "/*"}"#, true),
            (r#"{"path": "/other*"}"#, false),
            (r#"{"tag": "red"}"#, true),
            (r#"{"tag": "re"}"#, false),
            (r#"{"route": "shop", "host": "www.example.com", "path": "/shop/*", "tag": "red"}"#, true),
            (r#"{"route": "shop", "tag": "blue"}"#, false),
        ];
        for (json, expected) in table {
            let selects =
                purge(json)
                    .selects("shop", "https://www.example.com:8443/shop/list?page=2", |tag| tag == "red");
            assert_eq!(selects, expected, "{json}");
        }
        assert!(purge(r#"{"host": "[2001:db8:0::1]"}"#).selects("r", "http://[2001:db8::1]/", |_| false));
        assert!(!purge(r#"{"host": "*.example.com"}"#).selects("r", "http://.example.com/", |_| false));
    }

    #[test]
    fn errors_name_the_field_and_an_empty_purge_is_none() {
        for (json, field) in [
            ("{}", ""),
            (r#"{"all": false}"#, ""),
            (r#"{"all": true, "tag": "a"}"#, "all"),
            (r#"{"host": ""}"#, "host"),
            (r#"{"host": "*"}"#, "host"),
            (r#"{"host": "*."}"#, "host"),
            (r#"{"host": "a.example:80"}"#, "host"),
            (r#"{"host": "[::1]:80"}"#, "host"),
            (r#"{"host": "http://a.example"}"#, "host"),
            (r#"{"path": ""}"#, "path"),
            (r#"{"path": "shop"}"#, "path"),
            (r#"{"path": "/a b"}"#, "path"),
            (r#"{"path": "/a#b"}"#, "path"),
            (r#"{"tag": ""}"#, "tag"),
            (r#"{"tag": "a,b"}"#, "tag"),
        ] {
            let errors = purge(json).check();
            assert_eq!(errors.len(), 1, "{json}: {errors:?}");
            assert_eq!(errors[0].field, field, "{json}");
        }
        for json in [
            r#"{"all": true}"#,
            r#"{"route": "a"}"#,
            r#"{"host": "*.a.example"}"#,
            r#"{"host": "[::1]"}"#,
            r#"{"path": "/a*"}"#,
        ] {
            assert_eq!(purge(json).check(), [], "{json}");
        }
        assert!(serde_json::from_str::<Purge>(r#"{"url": "x"}"#).is_err());
    }
}
