//! Resources, one by one: `/{kinds}` and `/{kinds}/{name}`.

use std::sync::Arc;

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Value, json};
use signalbox_config::{
    Body, CertificateFacts, CertificateSpec, ConsumerSpec, Kind, ListenerSpec, Name, PluginSpec, Resource,
    ResourceKey, RouteSpec, UpstreamSpec,
};

use super::call::{Call, json_response, no_content, ok, rfc3339};
use super::endpoint::{
    Access, CURSOR, Endpoint, LIMIT, Media, Parameter, Place, RESOURCE_LIMIT, SchemaOf, WRITE,
};
use super::problem::Problem;
use crate::board::{WaitOutcome, WaitResult};
use crate::publish::{Published, compute};
use crate::store::Role;
use crate::writer::{Changed, Mode, Operation, Written};

/// The endpoints of every kind.
pub(super) fn endpoints() -> Vec<Endpoint> {
    Kind::ALL.into_iter().flat_map(of_kind).collect()
}

fn of_kind(kind: Kind) -> Vec<Endpoint> {
    let (all, one, title) = match kind {
        Kind::Listener => ("/listeners", "/listeners/{name}", "Listener"),
        Kind::Route => ("/routes", "/routes/{name}", "Route"),
        Kind::Upstream => ("/upstreams", "/upstreams/{name}", "Upstream"),
        Kind::Plugin => ("/plugins", "/plugins/{name}", "Plugin"),
        Kind::Consumer => ("/consumers", "/consumers/{name}", "Consumer"),
        Kind::Certificate => ("/certificates", "/certificates/{name}", "Certificate"),
    };
    let (spec, view, page) = schemas(kind);
    let editor = Access::Role(Role::Editor);
    let json = "application/json";
    let new = |method, path, id: &str, run, summary: String| {
        Endpoint::new(method, path, format!("{id}{title}"), run).text(kind.plural(), summary).of_kind(kind)
    };
    vec![
        Endpoint::new(Method::GET, all, format!("list{title}s"), |call| {
            async move {
                let filters = call.query.iter().any(|(name, _)| matches!(&**name, "q" | "label"));
                let size = if filters { call.app.publisher.current().snapshot.len() } else { 1 };
                compute(size, || list(&call))
            }
            .boxed()
        })
        .text(kind.plural(), format!("{title}s, by name"))
        .of_kind(kind)
        .parameters(&[LIMIT, CURSOR, SEARCH, LABEL])
        .answer_as(200, "A page of them", json, page),
        new(Method::POST, all, "create", |call| create(call).boxed(), format!("Create a {kind}"))
            .access(editor)
            .parameters(&WRITE)
            .body(Media::Json, spec, RESOURCE_LIMIT)
            .answer_as(201, "It was created", json, view)
            .answer::<Revised>(200, "With `dry_run`: what would change")
            .problems(&[409, 413, 415, 422, 503, 504]),
        new(Method::GET, one, "get", |call| async move { get(&call) }.boxed(), format!("One {kind}"))
            .parameters(&[IF_NONE_MATCH])
            .answer_as(200, "It", json, view)
            .empty(304, "It is still the version of If-None-Match")
            .problems(&[404]),
        new(Method::PUT, one, "put", |call| put(call).boxed(), format!("Create or replace a {kind}"))
            .access(editor)
            .parameters(&WRITE)
            .parameters(&[IF_MATCH, IF_ABSENT])
            .body(Media::Json, spec, RESOURCE_LIMIT)
            .answer_as(
                200,
                "It was replaced, or nothing differed; with `dry_run`: what would change",
                json,
                view_or_revised(kind),
            )
            .answer_as(201, "It was created", json, view)
            .problems(&[409, 412, 413, 415, 422, 503, 504]),
        new(
            Method::PATCH,
            one,
            "patch",
            |call| patch(call).boxed(),
            format!("Change fields of a {kind}: a JSON merge patch (RFC 7396)"),
        )
        .access(editor)
        .parameters(&WRITE)
        .parameters(&[IF_MATCH])
        .body(Media::MergePatch, |_| Schema::from(json_object()), RESOURCE_LIMIT)
        .answer_as(200, "It as it is now; with `dry_run`: what would change", json, view_or_revised(kind))
        .problems(&[404, 409, 412, 413, 415, 422, 503, 504]),
        new(Method::DELETE, one, "delete", |call| delete(call).boxed(), format!("Delete a {kind}"))
            .access(editor)
            .parameters(&WRITE)
            .parameters(&[IF_MATCH])
            .empty(204, "It was deleted")
            .answer::<Revised>(200, "With `dry_run`: what would change")
            .problems(&[404, 409, 412, 503, 504]),
    ]
}

const SEARCH: Parameter = Parameter {
    name: "q",
    place: Place::Query,
    schema: || json!({"type": "string"}),
    text: "Only those with this text in their name or in any other text of theirs, in any case",
};

const LABEL: Parameter = Parameter {
    name: "label",
    place: Place::Query,
    schema: || json!({"type": "array", "items": {"type": "string", "examples": ["team=payments"]}}),
    text: "Only those with this label, `KEY=VALUE`; repeatable: with all of them",
};

const IF_MATCH: Parameter = Parameter {
    name: "If-Match",
    place: Place::Header,
    schema: || json!({"type": "string"}),
    text: "Only if it has this ETag; `*`: only if it is there",
};

const IF_ABSENT: Parameter = Parameter {
    name: "If-None-Match",
    place: Place::Header,
    schema: || json!({"type": "string", "enum": ["*"]}),
    text: "`*`: only if it is not there",
};

const IF_NONE_MATCH: Parameter = Parameter {
    name: "If-None-Match",
    place: Place::Header,
    schema: || json!({"type": "string"}),
    text: "Only if it does not have this ETag",
};

/// What a resource has beside its specification.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Meta {
    /// Its content hash; quoted it is the ETag.
    version: String,
    /// The revision that wrote it last.
    revision: u64,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
    /// The name of the token that wrote it last.
    updated_by: String,
    /// Of a certificate: what it says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateFacts>,
}

/// What a write did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Revised {
    /// The revision that was made; null when nothing differed, and with `dry_run`.
    pub(super) revision: Option<u64>,
    /// One for each resource that differs, by kind and name.
    pub(super) changes: Vec<ChangeView>,
    /// Resources that a newer version wrote, and that this one cannot read: neither `prune` nor a rollback changes
    /// them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) left_alone: Vec<String>,
}

/// One difference.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Change")]
pub(super) struct ChangeView {
    /// Of the resource.
    pub(super) kind: Kind,
    /// Of the resource.
    pub(super) name: String,
    /// What happened to it.
    pub(super) action: Action,
    /// The specification before, without secrets; absent when it was created, and where only the names are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Value>,
    /// The specification after; absent when it was deleted, and where only the names are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<Value>,
}

/// What happened to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ChangeAction")]
pub(super) enum Action {
    /// It was not there.
    Created,
    /// It was otherwise.
    Updated,
    /// It is gone.
    Deleted,
}

impl Action {
    pub(super) fn of(before: bool, after: bool) -> Self {
        match (before, after) {
            (false, _) => Self::Created,
            (true, true) => Self::Updated,
            (true, false) => Self::Deleted,
        }
    }
}

impl Revised {
    /// What a write did, by name; and how, if it was only checked.
    pub(super) fn of(written: &Written, mode: Mode) -> Self {
        let view = |changed: &Changed| ChangeView {
            kind: changed.key.kind,
            name: changed.key.name.to_string(),
            action: Action::of(changed.before.is_some(), changed.after.is_some()),
            before: changed.before.as_ref().filter(|_| mode == Mode::DryRun).map(|before| before.redacted()),
            after: changed.after.as_ref().filter(|_| mode == Mode::DryRun).map(|after| after.redacted()),
        };
        Self {
            revision: written.revision,
            changes: written.changes.iter().map(view).collect(),
            left_alone: written.published.left_alone(),
        }
    }
}

/// The specification, the resource with its meta, and a page of such.
fn schemas(kind: Kind) -> (SchemaOf, SchemaOf, SchemaOf) {
    macro_rules! of {
        ($spec:ty, $kind:literal) => {
            (
                |generator| generator.subschema_for::<$spec>(),
                |generator| {
                    // The resource's own schema is made from this one, in the OpenAPI document.
                    generator.subschema_for::<$spec>();
                    generator.subschema_for::<Meta>();
                    Schema::new_ref(concat!("#/components/schemas/", $kind).to_owned())
                },
                |generator| {
                    generator.subschema_for::<$spec>();
                    generator.subschema_for::<Meta>();
                    page(concat!("#/components/schemas/", $kind))
                },
            )
        };
    }
    match kind {
        Kind::Listener => of!(ListenerSpec, "Listener"),
        Kind::Route => of!(RouteSpec, "Route"),
        Kind::Upstream => of!(UpstreamSpec, "Upstream"),
        Kind::Plugin => of!(PluginSpec, "Plugin"),
        Kind::Consumer => of!(ConsumerSpec, "Consumer"),
        Kind::Certificate => of!(CertificateSpec, "Certificate"),
    }
}

fn view_or_revised(kind: Kind) -> SchemaOf {
    macro_rules! of {
        ($kind:literal) => {
            |generator| {
                let revised = generator.subschema_for::<Revised>();
                schemars::json_schema!({
                    "anyOf": [{"$ref": concat!("#/components/schemas/", $kind)}, revised],
                })
            }
        };
    }
    match kind {
        Kind::Listener => of!("Listener"),
        Kind::Route => of!("Route"),
        Kind::Upstream => of!("Upstream"),
        Kind::Plugin => of!("Plugin"),
        Kind::Consumer => of!("Consumer"),
        Kind::Certificate => of!("Certificate"),
    }
}

fn page(item: &str) -> Schema {
    schemars::json_schema!({
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": {"$ref": item}},
            "next_cursor": {"type": ["string", "null"], "description": "For the next page; null: there is none"},
        },
        "required": ["items", "next_cursor"],
    })
}

fn json_object() -> serde_json::Map<String, Value> {
    let mut object = serde_json::Map::new();
    object.insert("type".to_owned(), "object".into());
    object
}

fn list(call: &Call) -> Result<Response, Problem> {
    let kind = call.kind.ok_or_else(|| Problem::not_found("no such kind"))?;
    let limit = call.limit()?;
    let after: Option<Name> = match call.text("cursor")? {
        None => None,
        Some(cursor) => {
            Some(cursor.parse().map_err(|_| Problem::parameter("cursor", "is not one that a page gave"))?)
        }
    };
    let labels: Vec<(&str, &str)> = call
        .query
        .iter()
        .filter(|(name, _)| name == "label")
        .map(|(_, value)| {
            value.split_once('=').ok_or_else(|| Problem::parameter("label", "must be KEY=VALUE"))
        })
        .collect::<Result<_, _>>()?;
    let search = call.text("q")?.filter(|text| !text.is_empty()).map(str::to_lowercase);
    let published = call.app.publisher.current();
    let mut items = Vec::with_capacity(limit.min(published.snapshot.len()));
    let mut next_cursor = None;
    let mut last: Option<&Arc<Resource>> = None;
    for resource in published.snapshot.of_kind(kind, after.as_ref()) {
        if !labels.is_empty() && !has_labels(resource, &labels) {
            continue;
        }
        if search.as_ref().is_some_and(|text| !mentions(resource, text)) {
            continue;
        }
        if items.len() == limit {
            next_cursor = last.map(|resource| resource.key().name.to_string());
            break;
        }
        items.push(view(&published, resource));
        last = Some(resource);
    }
    ok(&json!({"items": items, "next_cursor": next_cursor}))
}

fn get(call: &Call) -> Result<Response, Problem> {
    let key = call.key()?;
    let published = call.app.publisher.current();
    let resource = published.snapshot.find(&key).ok_or_else(|| not_found(&published, &key))?;
    let etag = etag(resource);
    // A weak comparison (RFC 9110, section 13.1.2).
    let tags = call.tags(&header::IF_NONE_MATCH)?;
    let mut response = if tags.iter().any(|tag| *tag == "*" || tag.trim_start_matches("W/") == etag) {
        let mut response = no_content();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        ok(&view(&published, resource))?
    };
    set_etag(&mut response, resource);
    Ok(response)
}

fn not_found(published: &Published, key: &ResourceKey) -> Problem {
    match published.unreadable.get(key) {
        Some(errors) => Problem::not_found(format!("{key} is stored, but this version cannot read it"))
            .errors(errors.to_vec()),
        None => Problem::not_found(format!("{key} does not exist")),
    }
}

async fn create(call: Call) -> Result<Response, Problem> {
    let kind = call.kind.ok_or_else(|| Problem::not_found("no such kind"))?;
    let spec = call.json()?;
    let name: Option<Name> = spec.get("name").and_then(Value::as_str).and_then(|name| name.parse().ok());
    let written = write(&call, Operation::Create { kind, spec }).await?;
    let location = name.as_ref().map(|name| format!("/api/v1/{}/{name}", kind.plural()));
    let mut response = answer(&call, &written, name.map(|name| ResourceKey::new(kind, name))).await?;
    if let Some(location) = location.and_then(|location| HeaderValue::from_str(&location).ok())
        && response.status() == StatusCode::CREATED
    {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn put(call: Call) -> Result<Response, Problem> {
    let key = call.key()?;
    let operation =
        Operation::Put { key: key.clone(), spec: call.json()?, precondition: call.precondition()? };
    let written = write(&call, operation).await?;
    answer(&call, &written, Some(key)).await
}

async fn patch(call: Call) -> Result<Response, Problem> {
    let key = call.key()?;
    let operation =
        Operation::Patch { key: key.clone(), patch: call.json()?, precondition: call.precondition()? };
    let written = write(&call, operation).await?;
    answer(&call, &written, Some(key)).await
}

async fn delete(call: Call) -> Result<Response, Problem> {
    let key = call.key()?;
    let written = write(&call, Operation::Delete { key, precondition: call.precondition()? }).await?;
    answer(&call, &written, None).await
}

/// Does a write as the request asks for it.
pub(super) async fn write(call: &Call, operation: Operation) -> Result<Written, Problem> {
    // Before anything is written, for a parameter that is wrong.
    call.deadline("wait")?;
    Ok(call.app.writer.write(call.author()?, operation, call.mode()?).await?)
}

/// The answer to a write of one resource: it as it is now, or nothing when it is gone.
async fn answer(call: &Call, written: &Written, key: Option<ResourceKey>) -> Result<Response, Problem> {
    if call.mode()? == Mode::DryRun {
        return ok(&Revised::of(written, Mode::DryRun));
    }
    settle(call, written).await?;
    let found = key.and_then(|key| written.published.snapshot.find(&key).cloned());
    let mut response = match &found {
        None => no_content(),
        Some(resource) => {
            let created = written.changes.iter().any(|changed| changed.before.is_none());
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            let mut response = json_response(status, &view(&written.published, resource))?;
            set_etag(&mut response, resource);
            response
        }
    };
    set_revision(&mut response, written);
    Ok(response)
}

/// Waits until the fleet serves what was written, if the request asks for it.
pub(super) async fn settle(call: &Call, written: &Written) -> Result<(), Problem> {
    let Some(deadline) = call.deadline("wait")? else { return Ok(()) };
    let revision = revision_of(written);
    let outcome = call.app.board.wait(revision, None, deadline).await;
    match outcome_problem(revision, &outcome) {
        Some(problem) => Err(problem.header(REVISION, HeaderValue::from(revision))),
        None => Ok(()),
    }
}

/// Why a revision is not served everywhere; `None`: it is.
pub(super) fn outcome_problem(revision: u64, outcome: &WaitOutcome) -> Option<Problem> {
    let (status, detail) = match outcome.result {
        WaitResult::Done => return None,
        WaitResult::Rejected => {
            let mut detail =
                format!("revision {revision} was rejected by a proxy, which serves an earlier one");
            if let Some(reason) = outcome.rollouts.iter().find_map(|rollout| rollout.reason.as_deref()) {
                detail.push_str(": ");
                detail.push_str(reason);
            }
            (StatusCode::CONFLICT, detail)
        }
        WaitResult::TimedOut => (StatusCode::GATEWAY_TIMEOUT, not_served(revision, outcome)),
    };
    let problem = Problem::new(status, detail)
        .member("revision", revision)
        .member("rollouts", &outcome.rollouts)
        .member("waiting", &outcome.waiting)
        .member("waiting_count", outcome.waiting_count);
    Some(problem)
}

/// What a wait waited for in vain.
fn not_served(revision: u64, outcome: &WaitOutcome) -> String {
    let mut detail = match &outcome.unknown {
        Some(reason) => format!("whether every proxy serves revision {revision} is not known: {reason}"),
        None => format!("revision {revision} is not served by every proxy yet"),
    };
    let mut separator = "; waited for ";
    for proxy in outcome.waiting.iter().take(3) {
        detail.push_str(&format!(
            "{separator}{} ({}, serves {})",
            proxy.id,
            json!(proxy.state),
            proxy.applied
        ));
        separator = ", ";
    }
    if outcome.waiting_count > 3 {
        detail.push_str(&format!(" and {} more", outcome.waiting_count - 3));
    }
    detail.replace('"', "")
}

/// The answer's revision.
pub(super) const REVISION: HeaderName = HeaderName::from_static("signalbox-revision");

/// Names the revision in which what was written is: the one made, or the current one when nothing differed.
pub(super) fn set_revision(response: &mut Response, written: &Written) {
    response.headers_mut().insert(REVISION, HeaderValue::from(revision_of(written)));
}

fn revision_of(written: &Written) -> u64 {
    written.revision.unwrap_or_else(|| written.published.snapshot.id().number)
}

fn etag(resource: &Resource) -> String {
    format!("\"{}\"", resource.version())
}

fn set_etag(response: &mut Response, resource: &Resource) {
    if let Ok(value) = HeaderValue::from_str(&etag(resource)) {
        response.headers_mut().insert(header::ETAG, value);
    }
}

/// A resource as it is read: its specification without secrets, and its meta.
fn view(published: &Published, resource: &Resource) -> Value {
    let mut value = resource.redacted();
    if let (Value::Object(object), Some(meta)) = (&mut value, published.metas.get(resource.key())) {
        let meta = Meta {
            version: resource.version(),
            revision: meta.revision,
            created_at: rfc3339(meta.created_at_us),
            updated_at: rfc3339(meta.updated_at_us),
            updated_by: meta.updated_by.to_string(),
            certificate: match resource.body() {
                Body::Certificate(certificate) => Some(certificate.facts.clone()),
                _ => None,
            },
        };
        object.insert("meta".to_owned(), serde_json::to_value(meta).unwrap_or_default());
    }
    value
}

fn has_labels(resource: &Resource, wanted: &[(&str, &str)]) -> bool {
    let spec: Value = serde_json::from_slice(resource.spec()).unwrap_or_default();
    wanted.iter().all(|(key, value)| {
        spec.get("labels").and_then(|labels| labels.get(*key)).and_then(Value::as_str) == Some(*value)
    })
}

/// Whether `text`, in lower case, is in any text of a resource that can be read.
fn mentions(resource: &Resource, text: &str) -> bool {
    fn any_text(value: &Value, text: &str) -> bool {
        match value {
            Value::String(found) => found.to_lowercase().contains(text),
            Value::Array(items) => items.iter().any(|item| any_text(item, text)),
            Value::Object(fields) => fields.values().any(|field| any_text(field, text)),
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }
    resource.key().name.as_str().contains(text) || any_text(&resource.redacted(), text)
}
