//! `POST /explain`: which route takes a request, and what then becomes of it; and `GET /plugin-types`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use signalbox_config::router::{Explanation, RequestParts};
use signalbox_config::{
    Action, Body, Edge, FieldError, Kind, LoadBalancing, Name, Plugin, Resource, ResourceKey, RevisionId,
    Snapshot, path,
};
use signalbox_plugins::TYPES;

use super::call::{Call, ok};
use super::documents::gave_up;
use super::endpoint::{Endpoint, Media, RESOURCE_LIMIT};
use super::problem::Problem;
use crate::publish::Published;
use crate::store::{Loaded, StoredSet};

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/explain", "explain", |call| explain(call).boxed())
            .text("explain", "Which route takes a request, which lost and why, and what then becomes of it")
            .body(Media::Json, |generator| generator.subschema_for::<Question>(), RESOURCE_LIMIT)
            .answer::<Explained>(200, "The explanation")
            .problems(&[404, 422, 503]),
        Endpoint::new(Method::GET, "/plugin-types", "listPluginTypes", |_| async { plugin_types() }.boxed())
            .text(
                "plugins",
                "The types that a plugin can have, with the JSON schemas of their configurations",
            )
            .answer::<PluginTypes>(200, "They"),
    ]
}

/// A request to be explained.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Question {
    /// Default GET.
    #[serde(default)]
    method: Option<String>,
    /// `http://admin.example.com/api/users?x=1`, or a path alone with the host among the headers.
    url: String,
    /// Its headers.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// By which listener it comes; absent: the first by name.
    #[serde(default)]
    listener: Option<String>,
    /// As it was at this revision; absent: as it is.
    #[serde(default)]
    revision: Option<u64>,
}

/// What becomes of a request.
#[derive(Debug, Serialize, JsonSchema)]
struct Explained {
    /// Of which revision this is true.
    revision: u64,
    /// By which listener the request is taken to come; null: there is none.
    listener: Option<String>,
    /// The route that takes it, and those that do not.
    #[serde(flatten)]
    explanation: Explanation,
    /// What the route does; null: no route takes it, and it is answered 404.
    action: Option<ActionKind>,
    /// The plugins it goes through, in order; a consumer's own are known only once it is authenticated.
    plugins: Vec<ChainStep>,
    /// Of which one is drawn by share; empty when it is not forwarded.
    upstreams: Vec<UpstreamShare>,
}

/// What a route does.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ActionKind {
    /// It sends the request to an upstream.
    Forward,
    /// It answers with a redirect.
    Redirect,
    /// It answers itself.
    Respond,
}

/// One plugin of a chain.
#[derive(Debug, Serialize, JsonSchema)]
struct ChainStep {
    /// The plugin.
    name: String,
    /// Its type.
    #[serde(rename = "type")]
    type_name: String,
    /// Its place, the highest first.
    order: i32,
    /// How it comes to be in the chain.
    attached: Attachment,
    /// Why it is not run although it is attached; null: it is.
    skipped: Option<String>,
}

/// How a plugin comes to be in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Attachment {
    /// The route names it.
    Route,
    /// It runs on every route.
    Global,
}

/// An upstream of a route.
#[derive(Debug, Serialize, JsonSchema)]
struct UpstreamShare {
    /// The upstream.
    name: String,
    /// Of the route's requests, 0 to 1.
    share: f64,
    /// How one of its targets is picked.
    load_balancing: LoadBalancing,
    /// Its targets.
    targets: Vec<TargetShare>,
}

/// A target of an upstream.
#[derive(Debug, Serialize, JsonSchema)]
struct TargetShare {
    /// Host and port.
    address: String,
    /// Of the upstream's requests by weight, 0 to 1.
    share: f64,
}

/// The types that a plugin can have.
#[derive(Debug, Serialize, JsonSchema)]
struct PluginTypes {
    items: Vec<PluginTypeView>,
}

/// A type that a plugin can have.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PluginType")]
struct PluginTypeView {
    name: String,
    /// For people who choose.
    description: String,
    /// Its place in the chain unless a plugin says otherwise, the highest first.
    default_order: i32,
    /// When it is called: `request_headers`, `request_body`, `response_headers`, `response_body`, `log`.
    phases: Vec<String>,
    /// The JSON schema of `config`.
    schema: Value,
}

/// A question whose parts were read.
struct Request {
    method: Method,
    host: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    listener: Option<String>,
}

async fn explain(call: Call) -> Result<Response, Problem> {
    let question: Question = call.json_as()?;
    let revision = question.revision;
    let mut request = Request::read(question).map_err(Problem::invalid)?;
    let current = call.app.publisher.current();
    let published = match revision.filter(|number| *number != current.snapshot.id().number) {
        None => current,
        Some(number) => {
            let _whole = call.app.whole_set().await?;
            let StoredSet { resources, unknown } = super::revisions::set_at(&call, number).await?;
            let head = RevisionId { epoch: current.snapshot.id().epoch.clone(), number };
            let loaded = Loaded { head, committed_at_us: 0, resources, unknown };
            Arc::new(
                tokio::task::spawn_blocking(|| Published::of(loaded))
                    .await
                    .map_err(|error| gave_up(&error))?,
            )
        }
    };
    request.arrive(&published).map_err(Problem::invalid)?;
    ok(&request.explain(&published))
}

impl Request {
    fn read(question: Question) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let method = question.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
        let method = Method::from_bytes(method.as_bytes()).unwrap_or_else(|_| {
            errors.push(FieldError::new("method", "is not an HTTP method"));
            Method::GET
        });
        let mut headers = HeaderMap::new();
        for (name, value) in &question.headers {
            match (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                (Ok(name), Ok(value)) => drop(headers.append(name, value)),
                _ => errors.push(FieldError::new(format!("headers.{name}"), "is not a header")),
            }
        }
        let uri: Uri = question.url.parse().unwrap_or_else(|_| {
            errors.push(FieldError::new("url", "is not a URL; write http://host/path?query or /path?query"));
            Uri::from_static("/")
        });
        if !errors.is_empty() {
            return Err(errors);
        }
        let given = headers.get(http::header::HOST).and_then(|value| value.to_str().ok());
        // As a client would send it, so that a match on the header sees it too.
        let authority = uri.authority().map(|authority| authority.as_str()).or(given).unwrap_or_default();
        let host =
            authority.parse::<http::uri::Authority>().map(|authority| authority.host().to_ascii_lowercase());
        if let Ok(value) = HeaderValue::from_str(authority)
            && !authority.is_empty()
        {
            headers.insert(http::header::HOST, value);
        }
        Ok(Self {
            method,
            host: host.unwrap_or_default(),
            path: if uri.path().is_empty() { "/".to_owned() } else { uri.path().to_owned() },
            query: uri.query().map(str::to_owned),
            headers,
            listener: question.listener,
        })
    }

    /// Makes of it what its listener does before a route is looked for.
    fn arrive(&mut self, published: &Published) -> Result<(), Vec<FieldError>> {
        let set = &published.snapshot;
        if self.listener.is_none() {
            let first = set.of_kind(Kind::Listener, None).next();
            self.listener = first.map(|listener| listener.key().name.to_string());
        }
        let listener = self.listener.as_ref().and_then(|name| find(set, Kind::Listener, name));
        let edge = match listener.map(|resource| resource.body()) {
            Some(Body::Listener(listener)) => listener.edge.clone(),
            _ => Edge::default(),
        };
        if let Some(slashes) = edge.normalize_path {
            let normal = path::normalize(&self.path, slashes).map_err(|wrong| {
                vec![FieldError::new("url", format!("is answered 400: {}", wrong.as_str()))]
            })?;
            self.path = normal.into_owned();
        }
        Ok(())
    }

    fn explain(&self, published: &Published) -> Explained {
        let set = &published.snapshot;
        let listener = self.listener.clone();
        let explanation = published.routes.explain(&RequestParts {
            listener: listener.as_deref().unwrap_or_default(),
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        });
        let winner = explanation.winner.as_ref().and_then(|winner| find(set, Kind::Route, &winner.route));
        let mut explained = Explained {
            revision: set.id().number,
            listener,
            explanation,
            action: None,
            plugins: Vec::new(),
            upstreams: Vec::new(),
        };
        if let Some(Body::Route(route)) = winner.map(|resource| resource.body()) {
            explained.plugins = chain(set, &route.plugins);
            explained.action = Some(match &route.action {
                Action::Forward(forward) => {
                    let total: f64 =
                        forward.upstreams.iter().map(|upstream| f64::from(upstream.weight.get())).sum();
                    let share = |weight: u32| f64::from(weight) / total;
                    explained.upstreams = forward
                        .upstreams
                        .iter()
                        .filter_map(|upstream| {
                            upstream_share(set, &upstream.name, share(upstream.weight.get()))
                        })
                        .collect();
                    ActionKind::Forward
                }
                Action::Redirect(_) => ActionKind::Redirect,
                Action::Respond(_) => ActionKind::Respond,
            });
        }
        explained
    }
}

/// The chain of a route with these plugins, as a proxy resolves it: its own, then the global ones of other types; the
/// highest order first, and by name.
fn chain(set: &Snapshot, own: &[Name]) -> Vec<ChainStep> {
    let mut steps: Vec<ChainStep> = Vec::new();
    for name in own {
        if let Some(Body::Plugin(plugin)) = find(set, Kind::Plugin, name.as_str()).map(|found| found.body()) {
            steps.push(step(name, plugin, Attachment::Route));
        }
    }
    for resource in set.of_kind(Kind::Plugin, None) {
        let Body::Plugin(plugin) = resource.body() else { continue };
        let name = &resource.key().name;
        if !plugin.global || own.contains(name) {
            continue;
        }
        let mut global = step(name, plugin, Attachment::Global);
        let stronger = steps.iter().find(|step| {
            step.attached == Attachment::Route
                && step.skipped.is_none()
                && *step.type_name == *plugin.type_name
        });
        if let (None, Some(stronger)) = (&global.skipped, stronger) {
            global.skipped = Some(format!("the route's own {} goes first", stronger.name));
        }
        steps.push(global);
    }
    steps.sort_by(|a, b| b.order.cmp(&a.order).then_with(|| a.name.cmp(&b.name)));
    steps
}

fn step(name: &Name, plugin: &Plugin, attached: Attachment) -> ChainStep {
    ChainStep {
        name: name.to_string(),
        type_name: plugin.type_name.to_string(),
        order: plugin.order,
        attached,
        skipped: (!plugin.enabled).then(|| "it is not enabled".to_owned()),
    }
}

fn upstream_share(set: &Snapshot, name: &Name, share: f64) -> Option<UpstreamShare> {
    let Some(Body::Upstream(upstream)) = find(set, Kind::Upstream, name.as_str()).map(|found| found.body())
    else {
        return None;
    };
    let total: f64 = upstream.targets.iter().map(|target| f64::from(target.weight.get())).sum();
    let targets = upstream
        .targets
        .iter()
        .map(|target| TargetShare {
            address: if target.host.contains(':') {
                format!("[{}]:{}", target.host, target.port)
            } else {
                format!("{}:{}", target.host, target.port)
            },
            share: f64::from(target.weight.get()) / total,
        })
        .collect();
    Some(UpstreamShare { name: name.to_string(), share, load_balancing: upstream.load_balancing, targets })
}

fn find<'s>(set: &'s Snapshot, kind: Kind, name: &str) -> Option<&'s Arc<Resource>> {
    set.find(&ResourceKey::new(kind, name.parse().ok()?))
}

fn plugin_types() -> Result<Response, Problem> {
    let items = TYPES
        .iter()
        .map(|plugin_type| PluginTypeView {
            name: plugin_type.name.to_owned(),
            description: plugin_type.description.to_owned(),
            default_order: plugin_type.default_order,
            phases: plugin_type
                .phases
                .iter()
                .filter_map(|phase| serde_json::to_value(phase).ok()?.as_str().map(str::to_owned))
                .collect(),
            schema: plugin_type.schema().as_value().clone(),
        })
        .collect();
    ok(&PluginTypes { items })
}
