//! Resources, one by one: `/{kinds}` and `/{kinds}/{name}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};
use signalbox_config::{Body, CertificateFacts, Kind, Name, Resource, ResourceKey};

use super::access::while_permitted;
use super::call::{Call, json_response, no_content, ok};
use super::endpoint::{Access, CURSOR, Endpoint, LIMIT, Media, Parameter, Place, RESOURCE_LIMIT, Run, WRITE};
use super::problem::Problem;
use super::rollouts::{check_wait_for, concerns, rollout_ids, wait_for_rollouts};
use crate::board::{WaitOutcome, WaitResult};
use crate::clock::rfc3339;
use crate::compute::compute;
use crate::publish::Published;
use crate::store::Role;
use crate::writer::{Changed, Mode, Operation, Written};

/// The endpoints of every kind.
pub(super) fn endpoints() -> Vec<Endpoint> {
    Kind::ALL.into_iter().flat_map(of_kind).collect()
}

fn of_kind(kind: Kind) -> Vec<Endpoint> {
    vec![
        list_endpoint(kind),
        create_endpoint(kind),
        get_endpoint(kind),
        put_endpoint(kind),
        patch_endpoint(kind),
        delete_endpoint(kind),
    ]
}

/// An endpoint for all resources of a kind. Its operation is named by verb and kind: `createRoute`.
fn collection(kind: Kind, method: Method, id: String, run: Run, summary: String) -> Endpoint {
    Endpoint::new(method, format!("/{}", kind.plural()), id, run).text(kind.plural(), summary).of_kind(kind)
}

/// An endpoint for one resource of a kind.
fn item(kind: Kind, method: Method, verb: &str, run: Run, summary: String) -> Endpoint {
    let id = format!("{verb}{}", kind.schema_name());
    let path = format!("/{}/{{name}}", kind.plural());
    Endpoint::new(method, path, id, run).text(kind.plural(), summary).of_kind(kind)
}

fn list_endpoint(kind: Kind) -> Endpoint {
    let run: Run = |call| {
        async move {
            let filters = call.query.iter().any(|(name, _)| matches!(&**name, "q" | "label"));
            let size = if filters { call.app.publisher.current().snapshot.len() } else { 1 };
            compute(size, || list(&call))
        }
        .boxed()
    };
    // Generated clients have these names.
    let id = format!("list{}s", kind.schema_name());
    collection(kind, Method::GET, id, run, format!("List {}, sorted by name", kind.plural()))
        .parameters(&[LIMIT, CURSOR, SEARCH, LABEL])
        .answer_as(200, "One page of the list", JSON, page_of(kind))
}

fn create_endpoint(kind: Kind) -> Endpoint {
    let id = format!("create{}", kind.schema_name());
    let summary = format!("Create {}", with_article(kind));
    collection(kind, Method::POST, id, |call| create(call).boxed(), summary)
        .access(writers(kind))
        .parameters(&WRITE)
        .body(Media::Json, spec_of(kind), RESOURCE_LIMIT)
        .answer_as(201, "The resource was created", JSON, view_of(kind))
        .answer::<Revised>(200, "With `dry_run`: the changes that would be made")
        .problems(&[409, 413, 415, 422, 503, 504])
}

fn get_endpoint(kind: Kind) -> Endpoint {
    let run: Run = |call| async move { get(&call) }.boxed();
    item(kind, Method::GET, "get", run, format!("Read {}", with_article(kind)))
        .parameters(&[IF_NONE_MATCH])
        .answer_as(200, "The resource", JSON, view_of(kind))
        .empty(304, "The resource still has the version of If-None-Match")
        .problems(&[404])
}

fn put_endpoint(kind: Kind) -> Endpoint {
    let summary = format!("Create or replace {}", with_article(kind));
    item(kind, Method::PUT, "put", |call| put(call).boxed(), summary)
        .access(writers(kind))
        .parameters(&WRITE)
        .parameters(&[IF_MATCH, IF_ABSENT])
        .body(Media::Json, spec_of(kind), RESOURCE_LIMIT)
        .answer_as(
            200,
            "The resource was replaced, or nothing differed. With `dry_run`: the changes that would be made",
            JSON,
            view_or_revised(kind),
        )
        .answer_as(201, "The resource was created", JSON, view_of(kind))
        .problems(&[409, 412, 413, 415, 422, 503, 504])
}

fn patch_endpoint(kind: Kind) -> Endpoint {
    let summary = format!("Change fields of {} by a JSON merge patch (RFC 7396)", with_article(kind));
    item(kind, Method::PATCH, "patch", |call| patch(call).boxed(), summary)
        .access(writers(kind))
        .parameters(&WRITE)
        .parameters(&[IF_MATCH])
        .body(Media::MergePatch, |_| Schema::from(json_object()), RESOURCE_LIMIT)
        .answer_as(
            200,
            "The resource after the change. With `dry_run`: the changes that would be made",
            JSON,
            view_or_revised(kind),
        )
        .problems(&[404, 409, 412, 413, 415, 422, 503, 504])
}

fn delete_endpoint(kind: Kind) -> Endpoint {
    let summary = format!("Delete {}", with_article(kind));
    item(kind, Method::DELETE, "delete", |call| delete(call).boxed(), summary)
        .access(writers(kind))
        .parameters(&WRITE)
        .parameters(&[IF_MATCH])
        .empty(204, "The resource was deleted")
        .answer::<Revised>(200, "With `dry_run`: the changes that would be made")
        .problems(&[404, 409, 412, 503, 504])
}

/// The name of a kind with its article: "a route", "an upstream".
fn with_article(kind: Kind) -> String {
    let name = kind.as_str();
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// Those who may write resources of a kind.
fn writers(kind: Kind) -> Access {
    Access::Role(if kind.is_for_administrators() { Role::Admin } else { Role::Editor })
}

const JSON: &str = "application/json";

const SEARCH: Parameter = Parameter {
    name: "q",
    place: Place::Query,
    schema: || json!({"type": "string"}),
    text: "Lists only resources with this text in their name or in another field, in upper or lower case",
};

const LABEL: Parameter = Parameter {
    name: "label",
    place: Place::Query,
    schema: || json!({"type": "array", "items": {"type": "string", "examples": ["team=payments"]}}),
    text: "Lists only resources with this label, `KEY=VALUE`. Repeated: with all of these labels",
};

const IF_MATCH: Parameter = Parameter {
    name: "If-Match",
    place: Place::Header,
    schema: || json!({"type": "string"}),
    text: "Writes only if the resource has this ETag. `*`: only if the resource exists",
};

const IF_ABSENT: Parameter = Parameter {
    name: "If-None-Match",
    place: Place::Header,
    schema: || json!({"type": "string", "enum": ["*"]}),
    text: "`*`: writes only if the resource does not exist",
};

const IF_NONE_MATCH: Parameter = Parameter {
    name: "If-None-Match",
    place: Place::Header,
    schema: || json!({"type": "string"}),
    text: "Answers 304 without a body if the resource has this ETag",
};

/// Facts about a resource beside its specification.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Meta {
    /// The content hash of the resource. In quotes it is the ETag.
    version: String,
    /// The revision that wrote the resource last.
    revision: u64,
    /// The time when the resource was created, in RFC 3339.
    created_at: String,
    /// The time when the resource was written last, in RFC 3339.
    updated_at: String,
    /// The name of the token that wrote the resource last.
    updated_by: String,
    /// Only for certificates: facts that the certificate states about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateFacts>,
}

/// The result of a write, or of its dry run.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Revised {
    /// The number of the new revision. Null if nothing differed, and with `dry_run`.
    pub(super) revision: Option<u64>,
    /// The differences, one for each resource, sorted by kind and name.
    pub(super) changes: Vec<ChangeView>,
    /// Resources that a newer version wrote and this version cannot read. Neither `prune` nor a rollback changes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) left_alone: Vec<String>,
}

/// The difference of one resource between two revisions.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Change")]
pub(super) struct ChangeView {
    /// The kind of the resource.
    pub(super) kind: Kind,
    /// The name of the resource.
    pub(super) name: String,
    /// The change of the resource.
    pub(super) action: Action,
    /// The specification before the change, without secrets. Absent if the resource was created, and where only names are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Value>,
    /// The specification after the change. Absent if the resource was deleted, and where only names are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<Value>,
}

/// The change of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ChangeAction")]
pub(super) enum Action {
    /// The resource was created.
    Created,
    /// The resource was updated.
    Updated,
    /// The resource was deleted.
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
    /// The result of a write: names and actions, and for a dry run the specifications, too.
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

/// Makes the schema of a specification.
fn spec_of(kind: Kind) -> impl Fn(&mut SchemaGenerator) -> Schema {
    move |generator| kind.subschema(generator)
}

/// Makes the schema of a resource as it is read. The OpenAPI document makes that schema from the specification's.
fn view_of(kind: Kind) -> impl Fn(&mut SchemaGenerator) -> Schema {
    move |generator| {
        kind.subschema(generator);
        generator.subschema_for::<Meta>();
        Schema::new_ref(reference_to(kind))
    }
}

fn view_or_revised(kind: Kind) -> impl Fn(&mut SchemaGenerator) -> Schema {
    move |generator| {
        let revised = generator.subschema_for::<Revised>();
        schemars::json_schema!({"anyOf": [{"$ref": reference_to(kind)}, revised]})
    }
}

/// Makes the schema of one page of a list.
fn page_of(kind: Kind) -> impl Fn(&mut SchemaGenerator) -> Schema {
    move |generator| {
        let item = view_of(kind)(generator);
        schemars::json_schema!({
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": item},
                "next_cursor": {
                    "type": ["string", "null"],
                    "description": "The `cursor` of the next page. Null: this is the last page.",
                },
            },
            "required": ["items", "next_cursor"],
        })
    }
}

fn reference_to(kind: Kind) -> String {
    format!("#/components/schemas/{}", kind.schema_name())
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
    let mut response =
        written_response(&call, &written, name.map(|name| ResourceKey::new(kind, name))).await?;
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
    written_response(&call, &written, Some(key)).await
}

async fn patch(call: Call) -> Result<Response, Problem> {
    let key = call.key()?;
    let operation =
        Operation::Patch { key: key.clone(), patch: call.json()?, precondition: call.precondition()? };
    let written = write(&call, operation).await?;
    written_response(&call, &written, Some(key)).await
}

async fn delete(call: Call) -> Result<Response, Problem> {
    let key = call.key()?;
    let written = write(&call, Operation::Delete { key, precondition: call.precondition()? }).await?;
    written_response(&call, &written, None).await
}

/// Writes as the request asks for: stores it, or only checks it.
pub(super) async fn write(call: &Call, operation: Operation) -> Result<Written, Problem> {
    // Before anything is written, for a parameter that is wrong.
    call.deadline("wait")?;
    check_wait_for(call)?;
    Ok(call.app.writer.write(call.author()?, operation, call.mode()?).await?)
}

/// The response to a write of one resource: the resource, or no content when it was deleted.
async fn written_response(
    call: &Call,
    written: &Written,
    key: Option<ResourceKey>,
) -> Result<Response, Problem> {
    if call.mode()? == Mode::DryRun {
        return ok(&Revised::of(written, Mode::DryRun));
    }
    wait_for_fleet(call, written).await?;
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
    set_revision(call, &mut response, written);
    Ok(response)
}

/// Waits until the fleets serve what was written, if the request asks for it.
pub(super) async fn wait_for_fleet(call: &Call, written: &Written) -> Result<(), Problem> {
    let Some(deadline) = call.deadline("wait")? else { return Ok(()) };
    let revision = revision_of(written);
    let waiting = async {
        let outcome = call.app.board.wait(revision, None, deadline).await;
        if let Some(problem) = outcome_problem(revision, &outcome) {
            return Err(problem);
        }
        wait_for_rollouts(call, revision, &|fleet| concerns(written, fleet), deadline).await
    };
    let waited = match while_permitted(call, waiting).await {
        Ok(waited) => waited,
        // It was written all the same.
        Err(problem) => Err(problem.member("revision", revision)),
    };
    waited.map(drop).map_err(|problem| {
        let problem = problem.header(REVISION, HeaderValue::from(revision));
        match rollouts_of(call, written) {
            Some(ids) => problem.header(ROLLOUT, ids),
            None => problem,
        }
    })
}

/// The reason why a revision is not served everywhere; `None`: it is.
pub(super) fn outcome_problem(revision: u64, outcome: &WaitOutcome) -> Option<Problem> {
    let (status, detail) = match outcome.result {
        WaitResult::Done => return None,
        WaitResult::Rejected => {
            let mut detail =
                format!("revision {revision} was rejected by a proxy, which serves an earlier one");
            if let Some(reason) = outcome.rollouts.iter().find_map(|rollout| rollout.reason.as_ref()) {
                detail.push_str(": ");
                detail.push_str(&reason.text);
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

/// The text that says which proxies do not serve a revision yet.
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

/// The header with the revision of a write.
pub(super) const REVISION: HeaderName = HeaderName::from_static("signalbox-revision");

/// The header with the ids of the rollouts that a write begins.
const ROLLOUT: HeaderName = HeaderName::from_static("signalbox-rollout");

/// The header with what the author of a write should know.
const WARNINGS: HeaderName = HeaderName::from_static("signalbox-warnings");

/// Sets the headers of a write: the revision, which is the current one when nothing differed, and the rollouts that it begins.
pub(super) fn set_revision(call: &Call, response: &mut Response, written: &Written) {
    response.headers_mut().insert(REVISION, HeaderValue::from(revision_of(written)));
    if let Some(ids) = rollouts_of(call, written) {
        response.headers_mut().insert(ROLLOUT, ids);
    }
    let warnings = warnings_of(call, written);
    if let Ok(warnings) = HeaderValue::from_str(&warnings)
        && !warnings.is_empty()
    {
        response.headers_mut().insert(WARNINGS, warnings);
    }
}

/// The header with the consequences of a write that its author may not expect, separated by semicolons.
fn warnings_of(call: &Call, written: &Written) -> String {
    let mut warned = BTreeMap::new();
    for resource in written.changes.iter().filter_map(|changed| changed.after.as_ref()) {
        let Body::Plugin(plugin) = resource.body() else { continue };
        let concerns = |fleet: &str| resource.visible_to(fleet);
        let lacking = call.app.board.proxies_without(&plugin.type_name, concerns);
        if lacking > 0 {
            let most = warned.entry(plugin.type_name.to_string()).or_insert(0);
            *most = lacking.max(*most);
        }
    }
    let text = |(name, count): (&String, &usize)| {
        let proxies =
            if *count == 1 { "1 connected proxy does" } else { &format!("{count} connected proxies do") };
        format!(
            "{proxies} not know the plugin type {name} and will reject this revision: upgrade proxies first"
        )
    };
    warned.iter().map(text).collect::<Vec<_>>().join("; ")
}

/// The ids of the rollouts that a write begins; `None`: it begins none.
fn rollouts_of(call: &Call, written: &Written) -> Option<HeaderValue> {
    let ids = rollout_ids(call, written.revision?, written);
    if ids.is_empty() { None } else { HeaderValue::from_str(&ids.join(", ")).ok() }
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

/// A resource as the API returns it: its specification without secrets, and its meta.
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

/// True if `text`, in lower case, is in any text of a resource that the API returns.
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
