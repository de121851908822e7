//! A request as the index sees it, and what it finds for one.

use http::{HeaderMap, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The parts of a request that are matched.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    /// The listener that got it.
    pub listener: &'a str,
    /// Its method.
    pub method: &'a Method,
    /// Its host: lower-case, without a port; empty when the client gave none.
    pub host: &'a str,
    /// Its path, as it came, without the query.
    pub path: &'a str,
    /// Its query, without the question mark.
    pub query: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// The result of a search in the index.
#[derive(Debug)]
pub struct Found<'i, T> {
    /// The value that was stored with the route.
    pub value: &'i T,
    /// The number of the path among the route's that matched.
    pub path: usize,
    /// The length of the part of the path that a prefix of the route matched (`/a` of `/a/b`: 2); 0 when it was no prefix, or `/`.
    pub prefix_len: usize,
    /// With `strict_slash`: the request's path has a slash at the end that the route's has not, or lacks it.
    pub slash: Option<Slash>,
    /// The request is a CORS preflight, and the route does not take its method: only a plugin of the route may answer it.
    pub is_preflight_only: bool,
}

/// The change of the path that `strict_slash` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Slash {
    /// Redirect to the path with a slash added.
    Add,
    /// Redirect to the path without its last slash.
    Remove,
}
