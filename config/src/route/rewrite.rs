//! Changes to a request before it is forwarded.

use std::sync::Arc;

use http::HeaderValue;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::{check_path, check_substitution, regex};
use crate::authority::check_authority;
use crate::error::Errors;

/// Changes to a request before it is forwarded.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewriteSpec {
    /// Replaces the part of the path that a `prefix` of the route matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// Replaces the whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Replaces the parts of the path that a regular expression matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_regex: Option<PathRegexSpec>,
    /// Replaces the host. Absent: the client's host is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// A replacement by regular expression.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PathRegexSpec {
    /// The regular expression. All its matches in the path are replaced.
    pub pattern: String,
    /// The replacement. `$1` or `${name}` inserts a group of the pattern.
    pub substitution: String,
}

/// Changes to a request before it is forwarded.
#[derive(Debug, Clone, Default)]
pub struct Rewrite {
    /// The change of the path.
    pub path: Option<PathRewrite>,
    /// The host that replaces the client's.
    pub host: Option<HeaderValue>,
}

/// A change of the path.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// Replaces the part that a prefix matched.
    Prefix(Box<str>),
    /// Replaces the whole path.
    Full(Box<str>),
    /// Replaces every match of a regular expression.
    Regex {
        /// The regular expression.
        pattern: Arc<Regex>,
        /// The replacement.
        substitution: Box<str>,
    },
}

impl RewriteSpec {
    pub(super) fn parse(&self, has_prefix: bool, errors: &mut Errors) -> Rewrite {
        let field = "forward.rewrite";
        let given = [self.path_prefix.is_some(), self.path.is_some(), self.path_regex.is_some()];
        if given.iter().filter(|given| **given).count() > 1 {
            errors.push(field, "takes one of path_prefix, path and path_regex");
        }
        let mut path =
            parse_path_rewrite(self.path_prefix.as_deref(), self.path.as_deref(), has_prefix, field, errors);
        if let Some(spec) = &self.path_regex {
            match regex(&spec.pattern) {
                Ok(pattern) => {
                    if let Err(message) = check_substitution(&spec.substitution, &pattern) {
                        errors.push(format_args!("{field}.path_regex.substitution"), message);
                    }
                    path = Some(PathRewrite::Regex {
                        pattern: Arc::new(pattern),
                        substitution: spec.substitution.as_str().into(),
                    });
                }
                Err(message) => errors.push(format_args!("{field}.path_regex.pattern"), message),
            }
        }
        let host = self.host.as_deref().and_then(|host| match check_authority(host) {
            Ok(()) => HeaderValue::from_str(host).ok(),
            Err(message) => {
                errors.push(format_args!("{field}.host"), message);
                None
            }
        });
        Rewrite { path, host }
    }
}

pub(super) fn parse_path_rewrite(
    path_prefix: Option<&str>,
    path: Option<&str>,
    has_prefix: bool,
    field: &str,
    errors: &mut Errors,
) -> Option<PathRewrite> {
    if let Some(prefix) = path_prefix {
        if let Err(message) = check_path(prefix) {
            errors.push(format_args!("{field}.path_prefix"), message);
        }
        if !has_prefix {
            errors.push(format_args!("{field}.path_prefix"), "needs every one of match.paths to be a prefix");
        }
        return Some(PathRewrite::Prefix(prefix.into()));
    }
    let path = path?;
    if let Err(message) = check_path(path) {
        errors.push(format_args!("{field}.path"), message);
    }
    Some(PathRewrite::Full(path.into()))
}
