//! A route: the requests that it takes, and its action for them.

mod forward;
mod matching;
mod redirect;
mod rewrite;
mod text;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::forward::ForwardSpec;
pub use self::forward::{Forward, Mirror, WeightedUpstream};
use self::matching::MatchSpec;
pub use self::matching::{
    HeaderMatch, HostMatch, PathMatch, PathSpec, PrefixPath, QueryMatch, RouteMatch, ValueMatch,
};
pub use self::redirect::Redirect;
use self::redirect::RedirectSpec;
pub use self::rewrite::{PathRewrite, Rewrite};
use crate::catalog::PluginCatalog;
use crate::error::{Errors, FieldError};
use crate::key::{Name, ResourceKey};
use crate::kind::Kind;
use crate::names::parse_names;
use crate::narrowing::Narrowing;
use crate::respond::{Respond, RespondSpec};
use crate::specification::{Audience, Context, Specification, common_fields, references_of_list};
use crate::tracing::{RouteTracingSpec, SampleRatio};
use crate::values::enabled;

/// A route as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// The name of the route, unique among routes.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The fleets that get the route. Absent: all fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// A route that is not enabled matches nothing.
    #[serde(default = "enabled", skip_serializing_if = "Clone::clone")]
    pub enabled: bool,
    /// The listeners whose requests the route takes. Absent: all listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listeners: Option<Vec<String>>,
    /// The requests that the route takes. Absent: all requests.
    #[serde(default, rename = "match", skip_serializing_if = "MatchSpec::is_empty")]
    pub matches: MatchSpec,
    /// The priority of the route. Of the routes that match a request, the one with the highest priority takes it; other rules
    /// decide only between equal priorities. Default 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Redirects requests for `/x/` or `/x` to the form that the route has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict_slash: bool,
    /// The names of the plugins that run on the route. Their order is decided by their own `order`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
    /// Tracing of the route's requests, on listeners that have tracing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<RouteTracingSpec>,
    /// Forwards the request to an upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<ForwardSpec>,
    /// Answers with a redirect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<RedirectSpec>,
    /// Answers with a fixed response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond: Option<RespondSpec>,
}

/// A route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its name.
    pub name: Name,
    /// A route that is not enabled matches nothing.
    pub enabled: bool,
    /// The listeners whose requests it takes; `None`: all.
    pub listeners: Option<Box<[Name]>>,
    /// The requests that it takes.
    pub matches: RouteMatch,
    /// The route with the highest priority takes a request.
    pub priority: i32,
    /// True if a path that differs from the route's only in the slash at its end is redirected to the route's form.
    pub strict_slash: bool,
    /// The plugins attached to it, as written.
    pub plugins: Box<[Name]>,
    /// The share of traces that begin with its requests and are sampled; `None`: the listener's.
    pub sample_ratio: Option<SampleRatio>,
    /// The action on a request.
    pub action: Action,
}

/// The action of a route.
#[derive(Debug, Clone)]
pub enum Action {
    /// Forwards the request to an upstream.
    Forward(Forward),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers with a fixed response.
    Respond(Respond),
}

impl Specification for RouteSpec {
    type Parsed = Route;

    const TITLE: &'static str = "Route";
    const TITLES: &'static str = "Routes";
    const ABOUT: &'static str =
        "A route has a match, which selects requests, and an action for these requests.";
    const AUDIENCE: Audience = Audience::Proxies { wire_tag: 2 };

    common_fields!(RouteSpec);

    fn parse(&self, context: &Context<'_>) -> Result<Route, Vec<FieldError>> {
        let mut errors = Errors::default();
        let listeners = self.listeners.as_ref().map(|names| {
            if names.is_empty() {
                errors.push("listeners", "must not be empty; leave it out for all listeners");
            }
            parse_names(names, "listeners", &mut errors)
        });
        let matches = self.matches.parse(&mut errors);
        let plugins = parse_names(&self.plugins, "plugins", &mut errors);
        let sample_ratio = self.tracing.as_ref().and_then(|tracing| tracing.parse(&mut errors));
        let has_prefix = matches.paths.iter().all(|path| matches!(path, PathMatch::Prefix(_)));
        let action = match (&self.forward, &self.redirect, &self.respond) {
            (Some(forward), None, None) => Some(Action::Forward(forward.parse(has_prefix, &mut errors))),
            (None, Some(redirect), None) => Some(Action::Redirect(redirect.parse(has_prefix, &mut errors))),
            (None, None, Some(respond)) => Some(Action::Respond(respond.parse("respond", &mut errors))),
            _ => {
                errors.push("", "needs exactly one of forward, redirect and respond");
                None
            }
        };
        errors.finish(action.map(|action| Route {
            name: context.name.clone(),
            enabled: self.enabled,
            listeners,
            matches,
            priority: self.priority,
            strict_slash: self.strict_slash,
            plugins,
            sample_ratio,
            action,
        }))
    }
    fn narrowing(_: &Value) -> &'static [Narrowing] {
        const {
            &[
                Narrowing::not_empty(&["listeners"], "for all listeners"),
                Narrowing::not_empty(&["match", "hosts"], "for any host"),
                Narrowing::not_empty(&["match", "paths"], "for any path"),
                Narrowing::not_empty(&["match", "methods"], "for any method"),
                Narrowing::not_empty(&["match", "headers"], "for any headers"),
                Narrowing::not_empty(&["match", "query"], "for any query"),
                Narrowing::not_null(&["forward", "upgrades"], "for the default"),
                Narrowing::not_null(&["forward", "retry", "on"], "for the default"),
                Narrowing::not_null(&["forward", "retry", "methods"], "for the idempotent ones"),
            ]
        }
    }

    /// Refuses patterns that match nothing: as a guard they would guard nothing. A pattern that cannot be read is none of these.
    fn check_written(&self, _: &dyn PluginCatalog) -> Vec<FieldError> {
        let mut found = self.matches.check_written();
        found.extend(self.forward.as_ref().and_then(ForwardSpec::check_written));
        found
    }

    fn references(route: &Route) -> Vec<(ResourceKey, String)> {
        let mut references: Vec<_> = references_of_list(Kind::Plugin, &route.plugins, "plugins").collect();
        let listeners = route.listeners.as_deref().unwrap_or_default();
        references.extend(references_of_list(Kind::Listener, listeners, "listeners"));
        if let Action::Forward(forward) = &route.action {
            references.extend(forward.references());
        }
        references
    }
}

fn is_zero(value: &i32) -> bool {
    *value == 0
}
