//! `POST /explain`, which says how a proxy would treat a request, and `GET /plugin-types`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use signalbox_config::arrival::{self, Claims};
use signalbox_config::path::BadPath;
use signalbox_config::router::{Explanation, Preflight, RequestParts};
use signalbox_config::{
    Action, Body, Edge, FieldError, Kind, Listener, LoadBalancing, Name, Resource, ResourceKey, RevisionId,
    Route, Snapshot, host, path, request_target,
};
use signalbox_plugin::precedence::{Attached, Lane, Source, TypeSet, Walk, overridden_by, run_order};
use signalbox_plugin::{OnConditionError, Registry};

use super::call::{Call, ok};
use super::conditions::{DescribedRequest, PluginCondition};
use super::endpoint::{Endpoint, Media, RESOURCE_LIMIT};
use super::problem::Problem;
use super::whole_set::{gave_up, set_at};
use crate::publish::{Published, named_fleets};
use crate::store::{Loaded, StoredSet};

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/explain", "explain", |call| explain(call).boxed())
            .text(
                "explain",
                "Explain which route takes a request, why the others do not, and how the request goes on",
            )
            .body(Media::Json, |generator| generator.subschema_for::<Question>(), RESOURCE_LIMIT)
            .answer::<Explained>(200, "The explanation")
            .problems(&[404, 422, 503]),
        Endpoint::new(Method::GET, "/plugin-types", "listPluginTypes", |call| {
            async move { plugin_types(&call) }.boxed()
        })
        .text(
            "plugins",
            "List the types that a plugin can have, with the JSON schemas of their configurations",
        )
        .answer::<PluginTypes>(200, "The types"),
    ]
}

/// A request to be explained.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Question {
    /// The method; default GET. Upper and lower case matter, as they do to proxies: `get` is another method.
    #[serde(default)]
    method: Option<String>,
    /// The URL: `http://admin.example.com/api/users?x=1`, or a path with the host among the headers. For CONNECT: `host:port`.
    url: String,
    /// The headers, as a client sends them that is no trusted proxy.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// The fleet of the proxy that gets the request. Absent: `default`, the fleet of proxies that name none.
    #[serde(default)]
    fleet: Option<String>,
    /// The listener that gets the request. Absent: the first of the fleet by name.
    #[serde(default)]
    listener: Option<String>,
    /// The revision whose resources decide. Absent: the one that the proxies of the fleet should serve, but for canaries.
    #[serde(default)]
    revision: Option<u64>,
}

/// The way of a request through a proxy.
#[derive(Debug, Serialize, JsonSchema)]
struct Explained {
    /// The revision that the explanation is about.
    revision: u64,
    /// The fleet of the proxy.
    fleet: String,
    /// The listener that gets the request. Null: the fleet has no listener, so no proxy gets the request.
    listener: Option<String>,
    /// The route that takes it, and those that do not.
    #[serde(flatten)]
    explanation: Explanation,
    /// The response by which the proxy refuses the request before any plugin runs. Null: it does not refuse it.
    refused: Option<Refusal>,
    /// The action of the route. Null: no route takes the request.
    action: Option<ActionKind>,
    /// The plugins of the request, in the order in which they run. A consumer's own plugins are not among them, because the consumer is
    /// known only after authentication.
    plugins: Vec<ChainStep>,
    /// The plugin that answers the request if it is a CORS preflight. The route is then the one that takes the request which the
    /// browser asks about. Null: it is no preflight, or no plugin answers it.
    preflight_answered_by: Option<String>,
    /// The upstreams, of which one is drawn by share. Empty: the request is not forwarded.
    upstreams: Vec<UpstreamShare>,
}

/// How a proxy refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
struct Refusal {
    /// The status: 400, 404 or 501.
    status: u16,
    /// The reason, in one sentence.
    reason: String,
}

/// The action of a route.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ActionKind {
    /// The route forwards the request to an upstream.
    Forward,
    /// The route answers with a redirect.
    Redirect,
    /// The route answers with a fixed response.
    Respond,
}

/// One plugin of a chain.
#[derive(Debug, Clone, Serialize, JsonSchema)]
struct ChainStep {
    /// The name of the plugin.
    #[schemars(with = "String")]
    name: Name,
    /// The type of the plugin.
    #[serde(rename = "type")]
    type_name: String,
    /// The place of the plugin in the chain: higher numbers run first.
    order: i32,
    /// The resource that attaches the plugin.
    attached: Attachment,
    /// The condition of the plugin. Null: it has none, or does not run for another reason.
    condition: Option<PluginCondition>,
    /// True if the plugin runs without effect.
    shadow: bool,
    /// The reason why the plugin does not run although it is attached. Null: it runs, unless its condition has the outcome
    /// `unknown` and is not met.
    skipped: Option<String>,
    /// The upstreams of the route for whose requests the plugin runs. Null: all.
    upstreams: Option<Vec<String>>,
    #[serde(skip)]
    types: TypeSet,
    #[serde(skip)]
    answers_preflights: bool,
    #[serde(skip)]
    on_condition_error: OnConditionError,
}

/// The way a plugin is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Attachment {
    /// The route names the plugin.
    Route,
    /// The upstream names the plugin.
    Upstream,
    /// The listener names the plugin.
    Listener,
    /// The plugin is global and runs on every route.
    Global,
}

/// An upstream of a route.
#[derive(Debug, Serialize, JsonSchema)]
struct UpstreamShare {
    /// The name of the upstream.
    name: String,
    /// The share of the route's requests, from 0 to 1.
    share: f64,
    /// The policy by which a target is chosen.
    load_balancing: LoadBalancing,
    /// The targets of the upstream.
    targets: Vec<TargetShare>,
}

/// A target of an upstream.
#[derive(Debug, Serialize, JsonSchema)]
struct TargetShare {
    /// Host and port.
    address: String,
    /// The share of the upstream's requests by weight, 0 to 1.
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
    /// A description of the type.
    description: String,
    /// The default place in the chain: higher numbers run first.
    default_order: i32,
    /// The phases in which the plugin is called: `request_headers`, `request_body`, `response_headers`, `response_body`, `log`.
    phases: Vec<String>,
    /// The treatment of a request for which the condition of a plugin (`when`) is neither true nor false.
    on_condition_error: OnConditionError,
    /// True if plugins of the type can run in shadow.
    can_shadow: bool,
    /// The JSON schema of `config`.
    schema: Value,
}

/// A question whose parts were read.
struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    fleet: String,
    listener: Option<String>,
}

/// A request as a proxy looks for its route.
struct Arrived {
    host: String,
    path: String,
}

async fn explain(call: Call) -> Result<Response, Problem> {
    let question: Question = call.json_as()?;
    let revision = question.revision;
    let request = Request::read(question).map_err(Problem::invalid)?;
    let current = call.app.publisher.current();
    // A proxy without an id is no canary.
    let served = || current.target(&request.fleet.as_str().into(), "").state;
    let published =
        match revision.map_or_else(|| Ok(served()), |number| current.state_of(number).ok_or(number)) {
            Ok(state) => state,
            Err(number) => {
                let _whole = call.app.whole_set().await?;
                let StoredSet { resources, unknown } = set_at(&call, number).await?;
                let head = RevisionId { epoch: current.snapshot.id().epoch.clone(), number };
                let loaded = Loaded { head, committed_at_us: 0, resources, unknown };
                let types = current.types.clone();
                Arc::new(
                    tokio::task::spawn_blocking(move || Published::from_loaded(loaded, &types))
                        .await
                        .map_err(|error| gave_up(&error))?,
                )
            }
        };
    let fleet = &*request.fleet;
    let is_known = fleet == DEFAULT_FLEET
        || named_fleets(&published).contains(fleet)
        || call.app.board.fleets().iter().any(|known| known.name == fleet);
    if !is_known {
        let message = format!("there is no fleet {fleet:?}: no resource names it, and no proxy is of it");
        return Err(Problem::invalid(vec![FieldError::new("fleet", message)]));
    }
    let explained = request.explain(&published).map_err(|error| Problem::invalid(vec![error]))?;
    ok(&explained)
}

impl Request {
    fn read(question: Question) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let method = question.method.as_deref().unwrap_or("GET");
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
        let target = Bytes::from(question.url);
        let uri = request_target::read(target, &method, RESOURCE_LIMIT).unwrap_or_else(|_| {
            errors.push(FieldError::new("url", "is not a URL; write http://host/path?query or /path?query"));
            Uri::from_static("/")
        });
        if !errors.is_empty() {
            return Err(errors);
        }
        let fleet = question.fleet.unwrap_or_else(|| DEFAULT_FLEET.to_owned());
        Ok(Self { method, uri, headers, fleet, listener: question.listener })
    }

    /// The listener by which it comes, and its name.
    fn listener(&self, set: &Snapshot) -> Result<Option<(String, Arc<Listener>)>, FieldError> {
        let mut listeners = set.of_kind(Kind::Listener, None).filter(|it| it.visible_to(&self.fleet));
        let found = match &self.listener {
            None => listeners.next(),
            Some(name) => Some(listeners.find(|it| it.key().name.as_str() == name).ok_or_else(|| {
                FieldError::new("listener", format!("the fleet {} has no listener {name:?}", self.fleet))
            })?),
        };
        Ok(found.and_then(|resource| match resource.body() {
            Body::Listener(listener) => Some((resource.key().name.to_string(), Arc::clone(listener))),
            _ => None,
        }))
    }

    /// Does with it what a proxy does before it looks for a route, or says why a proxy answers 400.
    fn arrive(&mut self, edge: &Edge) -> Result<Arrived, &'static str> {
        arrival::remove_claims(&mut self.headers, Claims::All);
        arrival::remove_misspelt(&mut self.headers);
        let connects = self.method == Method::CONNECT;
        let path = match self.uri.path() {
            _ if connects && self.uri.authority().is_none() => {
                return Err("The request's target is not a host.");
            }
            _ if connects => "/",
            "*" if self.method == Method::OPTIONS => "*",
            path if path.starts_with('/') => path,
            _ => return Err("The request's target is not a path."),
        };
        let path = match edge.normalize_path {
            Some(slashes) => path::normalize(path, slashes).map_err(BadPath::as_str)?.into_owned(),
            None => path.to_owned(),
        };
        if self.headers.get_all(http::header::HOST).iter().count() > 1 {
            return Err("The request has more than one Host header.");
        }
        let no_name = "The request's host is not a host name.";
        // As a client would send it, so that a match on the header sees it, too.
        if let Some(authority) = self.uri.authority() {
            let value = HeaderValue::from_str(authority.as_str()).map_err(|_| no_name)?;
            self.headers.insert(http::header::HOST, value);
        }
        let given = self.headers.get(http::header::HOST).map(HeaderValue::to_str).transpose();
        let given = given.map_err(|_| no_name)?.unwrap_or_default();
        let host = host::normalize(given).ok_or(no_name)?.into_owned();
        Ok(Arrived { host, path })
    }

    fn explain(mut self, published: &Published) -> Result<Explained, FieldError> {
        let set = &published.snapshot;
        let (listener, settings) = self.listener(set)?.unzip();
        let listens_with_tls = settings.as_ref().is_some_and(|settings| settings.tls.is_some());
        let edge = settings.map(|settings| settings.edge.clone());
        let listener_name: Option<Name> = listener.as_ref().and_then(|name| name.parse().ok());
        let mut explained = Explained {
            revision: set.id().number,
            fleet: self.fleet.clone(),
            listener,
            explanation: Explanation { winner: None, losers: Vec::new(), truncated: false },
            refused: None,
            action: None,
            plugins: Vec::new(),
            preflight_answered_by: None,
            upstreams: Vec::new(),
        };
        let refusal = |status: u16, reason: &str| Some(Refusal { status, reason: reason.to_owned() });
        let Arrived { host, path } = match self.arrive(&edge.unwrap_or_default()) {
            Ok(arrived) => arrived,
            Err(reason) => {
                explained.refused = refusal(400, reason);
                return Ok(explained);
            }
        };
        let parts = RequestParts {
            listener: explained.listener.as_deref().unwrap_or_default(),
            method: &self.method,
            host: &host,
            path: &path,
            query: self.uri.query(),
            headers: &self.headers,
        };
        let has = |name: &Name| {
            let found = find(set, Kind::Route, name.as_str());
            found.is_some_and(|route| route.visible_to(&self.fleet))
        };
        let attachments = Attachments {
            set,
            types: &published.types,
            fleet: &self.fleet,
            listener: listener_name.as_ref(),
        };
        let preflight = Preflight::of(&self.method, &self.headers);
        explained.explanation =
            match &preflight {
                None => published.routes.explain_in(&parts, &has),
                Some(preflight) => published.routes.explain_preflight(&parts, preflight, &has, |route| {
                    match find(set, Kind::Route, route.as_str()).map(|found| found.body()) {
                        Some(Body::Route(route)) => preflight_step(&attachments.chain(Some(route))).is_some(),
                        _ => false,
                    }
                }),
            };
        let winner = explained.explanation.winner.as_ref();
        let winner = winner.and_then(|winner| find(set, Kind::Route, &winner.route));
        let https = self.uri.scheme().map_or(listens_with_tls, |scheme| *scheme == http::uri::Scheme::HTTPS);
        let described =
            DescribedRequest { parts, https, route: winner.map(|route| route.key().name.as_str()) };
        let Some(Body::Route(route)) = winner.map(|resource| resource.body()) else {
            if preflight.is_some() {
                // When no route takes a request, global plugins see only preflights.
                explained.plugins = attachments.chain(None);
                evaluate_conditions(set, &mut explained.plugins, &described);
                explained.plugins.retain(answers_preflights);
                explained.preflight_answered_by =
                    preflight_step(&explained.plugins).map(|step| step.name.to_string());
            }
            if explained.preflight_answered_by.is_none() {
                explained.refused = refusal(404, "No route takes the request.");
            }
            return Ok(explained);
        };
        if self.method == Method::CONNECT
            && !matches!(&route.action, Action::Forward(forward) if forward.connects())
        {
            explained.refused = refusal(501, "CONNECT is not allowed here.");
        }
        explained.plugins = attachments.chain(Some(route));
        evaluate_conditions(set, &mut explained.plugins, &described);
        if preflight.is_some() {
            explained.preflight_answered_by =
                preflight_step(&explained.plugins).map(|step| step.name.to_string());
        }
        explained.action = Some(match &route.action {
            Action::Forward(forward) => {
                let total: f64 =
                    forward.upstreams.iter().map(|upstream| f64::from(upstream.weight.get())).sum();
                let share = |weight: u32| f64::from(weight) / total;
                explained.upstreams = forward
                    .upstreams
                    .iter()
                    .filter_map(|upstream| upstream_share(set, &upstream.name, share(upstream.weight.get())))
                    .collect();
                ActionKind::Forward
            }
            Action::Redirect(_) => ActionKind::Redirect,
            Action::Respond(_) => ActionKind::Respond,
        });
        Ok(explained)
    }
}

/// The fleet of proxies that name none.
const DEFAULT_FLEET: &str = "default";

/// The resources of one request to which plugins are attached.
struct Attachments<'s> {
    set: &'s Snapshot,
    types: &'s Registry,
    fleet: &'s str,
    listener: Option<&'s Name>,
}

impl Attachments<'_> {
    /// The chain of a route, as a proxy resolves it, and the plugins that are attached but do not run. Where its upstreams have
    /// plugins of their own, each step says for which it runs.
    fn chain(&self, route: Option<&Route>) -> Vec<ChainStep> {
        let upstreams = match route.map(|route| &route.action) {
            Some(Action::Forward(forward)) => forward.upstreams.iter().map(|it| Some(&it.name)).collect(),
            _ => vec![None],
        };
        let count = upstreams.len();
        let mut all: Vec<ChainStep> = Vec::new();
        for upstream in upstreams {
            let runs_for =
                |step: &ChainStep| upstream.filter(|_| step.skipped.is_none()).map(Name::to_string);
            for mut step in self.chain_to(route, upstream) {
                let known = all.iter_mut().find(|it| it.name == step.name && it.attached == step.attached);
                match known {
                    None => {
                        step.upstreams = Some(runs_for(&step).into_iter().collect());
                        all.push(step);
                    }
                    Some(known) => {
                        if step.skipped.is_none() {
                            known.skipped = None;
                        }
                        known.upstreams.get_or_insert_default().extend(runs_for(&step));
                    }
                }
            }
        }
        for step in &mut all {
            let runs_for_some =
                |names: &Vec<String>| step.skipped.is_none() && !names.is_empty() && names.len() < count;
            step.upstreams = step.upstreams.take().filter(runs_for_some);
        }
        all.sort_by(run_order);
        all
    }

    /// The chain of a request to one upstream.
    fn chain_to(&self, route: Option<&Route>, upstream: Option<&Name>) -> Vec<ChainStep> {
        let lane = |names: &[Name], attached| {
            let steps = names.iter().filter_map(|name| self.step(name, attached));
            let mut steps: Vec<ChainStep> = steps.collect();
            steps.sort_by(run_order);
            steps
        };
        let plugins_of = |kind, name: Option<&Name>| match name.and_then(|name| body(self.set, kind, name)) {
            Some(Body::Upstream(upstream)) => &*upstream.plugins,
            Some(Body::Listener(listener)) => &*listener.plugins,
            _ => &[],
        };
        let is_global = |resource: &&Arc<Resource>| match resource.body() {
            Body::Plugin(plugin) => plugin.global && resource.visible_to(self.fleet),
            _ => false,
        };
        let globals = self.set.of_kind(Kind::Plugin, None).filter(is_global);
        let globals: Vec<Name> = globals.map(|resource| resource.key().name.clone()).collect();
        let lanes = [
            lane(route.map_or(&[], |route| &*route.plugins), Attachment::Route),
            lane(plugins_of(Kind::Upstream, upstream), Attachment::Upstream),
            lane(plugins_of(Kind::Listener, self.listener), Attachment::Listener),
            lane(&globals, Attachment::Global),
        ];
        // A plugin that is not enabled does not exist for a proxy.
        let enabled = lanes.each_ref().map(|lane| {
            lane.iter().filter(|step| step.skipped.is_none()).cloned().collect::<Vec<ChainStep>>()
        });
        let runs: Vec<(Name, Attachment)> =
            walk(&enabled).map(|step| (step.name.clone(), step.attached)).collect();
        let mut steps: Vec<ChainStep> = lanes.into_iter().flatten().collect();
        for step in steps.iter_mut().filter(|step| step.skipped.is_none()) {
            if !runs.iter().any(|(name, attached)| *name == step.name && *attached == step.attached) {
                let stronger = overridden_by(step, enabled.iter().flatten());
                step.skipped = stronger.map(|stronger| {
                    format!("the {}'s own {} goes first", stronger.attached.as_str(), stronger.name)
                });
            }
        }
        // A plugin that is attached twice is shown once, where it runs.
        steps.retain(|step| {
            step.attached == Attachment::Route
                || !runs.iter().any(|(name, attached)| *name == step.name && *attached != step.attached)
        });
        steps
    }

    fn step(&self, name: &Name, attached: Attachment) -> Option<ChainStep> {
        let Body::Plugin(plugin) = body(self.set, Kind::Plugin, name)? else { return None };
        let plugin_type = self.types.find(&plugin.type_name);
        Some(ChainStep {
            name: name.clone(),
            type_name: plugin.type_name.to_string(),
            order: plugin.order,
            attached,
            condition: None,
            shadow: plugin.shadow,
            skipped: (!plugin.enabled).then(|| "it is not enabled".to_owned()),
            upstreams: None,
            types: self.types.position(&plugin.type_name).map_or_else(TypeSet::default, TypeSet::of),
            answers_preflights: plugin_type.is_some_and(|it| it.answers_preflights),
            on_condition_error: plugin_type.map_or(OnConditionError::Run, |it| it.on_condition_error),
        })
    }
}

/// The plugins of these lanes that run, in the order of a proxy.
fn walk(lanes: &[Vec<ChainStep>; 4]) -> impl Iterator<Item = &ChainStep> {
    let [route, upstream, listener, global] = lanes;
    let mut walk = Walk::new(lane(route, Source::Route));
    walk.join(lane(upstream, Source::Upstream));
    walk.join(lane(listener, Source::Listener));
    walk.join(lane(global, Source::Global));
    walk
}

fn lane(steps: &[ChainStep], source: Source) -> Lane<'_, ChainStep> {
    let real = steps.iter().filter(|step| !step.shadow);
    let types = real.fold(TypeSet::default(), |types, step| types.with(step.types));
    Lane::new(steps, source, types)
}

fn body<'s>(set: &'s Snapshot, kind: Kind, name: &Name) -> Option<&'s Body> {
    set.find(&ResourceKey::new(kind, name.clone())).map(|resource| resource.body())
}

impl Attached for ChainStep {
    fn name(&self) -> &Name {
        &self.name
    }

    fn order(&self) -> i32 {
        self.order
    }

    fn response_order(&self) -> i32 {
        self.order
    }

    fn types(&self) -> TypeSet {
        self.types
    }

    fn source(&self) -> Source {
        match self.attached {
            Attachment::Route => Source::Route,
            Attachment::Upstream => Source::Upstream,
            Attachment::Listener => Source::Listener,
            Attachment::Global => Source::Global,
        }
    }

    fn is_shadow(&self) -> bool {
        self.shadow
    }
}

impl Attachment {
    fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Upstream => "upstream",
            Self::Listener => "listener",
            Self::Global => "set",
        }
    }
}

/// Evaluates the conditions of the plugins of a chain that would run.
fn evaluate_conditions(set: &Snapshot, chain: &mut [ChainStep], request: &DescribedRequest<'_>) {
    for step in chain.iter_mut().filter(|step| step.skipped.is_none()) {
        let Some(Body::Plugin(plugin)) = body(set, Kind::Plugin, &step.name) else { continue };
        let Some(when) = &plugin.when else { continue };
        let (condition, skipped) = PluginCondition::new(when, step.on_condition_error, request);
        (step.condition, step.skipped) = (Some(condition), skipped);
    }
}

/// The plugin of a chain that answers CORS preflight requests.
fn preflight_step(chain: &[ChainStep]) -> Option<&ChainStep> {
    chain.iter().find(|step| answers_preflights(step))
}

fn answers_preflights(step: &ChainStep) -> bool {
    step.skipped.is_none() && !step.shadow && step.upstreams.is_none() && step.answers_preflights
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

fn plugin_types(call: &Call) -> Result<Response, Problem> {
    let items = call
        .app
        .publisher
        .current()
        .types
        .types()
        .iter()
        .map(|plugin_type| PluginTypeView {
            name: plugin_type.name.to_owned(),
            description: plugin_type.description.to_owned(),
            default_order: plugin_type.default_order,
            phases: plugin_type
                .hooks
                .phases()
                .filter_map(|phase| serde_json::to_value(phase).ok()?.as_str().map(str::to_owned))
                .collect(),
            on_condition_error: plugin_type.on_condition_error,
            can_shadow: plugin_type.can_shadow,
            schema: plugin_type.schema().as_value().clone(),
        })
        .collect();
    ok(&PluginTypes { items })
}
