//! Answers a request with a redirect.

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rewrite::{PathRewrite, parse_path_rewrite};
use crate::authority::is_host_name;
use crate::error::Errors;

/// Answers with a redirect. Absent parts of the new location are taken from the request, and its query is kept.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedirectSpec {
    /// The scheme of the new location, `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The host of the new location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port of the new location. Absent: the port of the request, or the default port of `scheme` if scheme or host differ from
    /// the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The path of the new location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Replaces the part of the path that a `prefix` of the route matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// The status: 301, 302, 303, 307 or 308; default 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// Answers with a redirect.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// The host.
    pub host: Option<Box<str>>,
    /// The port.
    pub port: Option<u16>,
    /// The path; never [`PathRewrite::Regex`].
    pub path: Option<PathRewrite>,
    /// The status.
    pub status: StatusCode,
}

impl RedirectSpec {
    pub(super) fn parse(&self, has_prefix: bool, errors: &mut Errors) -> Redirect {
        let status = self.status.unwrap_or(302);
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            errors.push("redirect.status", "must be 301, 302, 303, 307 or 308");
        }
        if let Some(scheme) = self.scheme.as_deref().filter(|scheme| !matches!(*scheme, "http" | "https")) {
            errors.push("redirect.scheme", format_args!("{scheme:?} is neither http nor https"));
        }
        if let Some(host) = self.host.as_deref().filter(|host| !is_host_name(host)) {
            errors.push("redirect.host", format_args!("{host:?} is not a host name without a port"));
        }
        if self.port == Some(0) {
            errors.push("redirect.port", "must be from 1 to 65535");
        }
        if self.path.is_some() && self.path_prefix.is_some() {
            errors.push("redirect", "takes one of path and path_prefix");
        }
        if self.scheme.is_none()
            && self.host.is_none()
            && self.port.is_none()
            && self.path.is_none()
            && self.path_prefix.is_none()
        {
            errors.push("redirect", "changes nothing: needs one of scheme, host, port, path and path_prefix");
        }
        Redirect {
            scheme: self.scheme.as_deref().map(Into::into),
            host: self.host.as_deref().map(Into::into),
            port: self.port,
            path: parse_path_rewrite(
                self.path_prefix.as_deref(),
                self.path.as_deref(),
                has_prefix,
                "redirect",
                errors,
            ),
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::FOUND),
        }
    }
}
