//! The route index: which route takes a request, and why.

pub mod template;

use http::{HeaderMap, Method};

use crate::route::Route;

/// What of a request is matched.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    /// The listener it came in by.
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

/// What [`RouteIndex::find`] found.
#[derive(Debug)]
pub struct Found<'i, T> {
    /// What was stored with the route.
    pub value: &'i T,
    /// How many bytes of the path a prefix of the route matched (`/a` of `/a/b`: 2); 0 when it was no prefix, or `/`.
    pub prefix_len: usize,
    /// With `strict_slash`: the request's path has a slash at the end that the route's has not, or lacks it.
    pub slash: Option<Slash>,
}

/// What `strict_slash` wants of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slash {
    /// Redirect to the path with a slash added.
    Add,
    /// Redirect to the path without its last slash.
    Remove,
}

/// All enabled routes, indexed. Persistent: a clone is cheap, and a change copies only its own way through the index.
#[derive(Debug, Clone)]
pub struct RouteIndex<T> {
    routes: Vec<(Route, T)>,
}

impl<T: Clone> RouteIndex<T> {
    /// An index without routes.
    pub fn new() -> Self {
        Self { routes: Vec::new() }
    }

    /// Adds a route that is not in the index. A route that is not enabled is not added.
    pub fn insert(&mut self, route: &Route, value: T) {
        self.routes.push((route.clone(), value));
    }

    /// Takes out a route, given as it was inserted.
    pub fn remove(&mut self, route: &Route) {
        self.routes.retain(|(known, _)| known.name != route.name);
    }

    /// The route that takes the request, by the precedence of the design.
    pub fn find(&self, _request: &RequestParts<'_>) -> Option<Found<'_, T>> {
        None
    }
}

impl<T: Clone> Default for RouteIndex<T> {
    fn default() -> Self {
        Self::new()
    }
}
