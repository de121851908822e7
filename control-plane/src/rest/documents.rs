//! Whole sets: `apply` and `export`.

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, header};
use schemars::Schema;
use serde_json::json;
use signalbox_config::{Kind, Resource, document};
use signalbox_plugins::Catalog;

use super::call::{Call, ok};
use super::endpoint::{Access, DOCUMENT_LIMIT, Endpoint, Media, Parameter, Place, WRITE};
use super::problem::Problem;
use super::resources::{Revised, set_revision, settle, write};
use crate::store::Role;
use crate::writer::{Operation, Prune};

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/apply", "apply", |call| apply(call).boxed())
            .text("documents", "Create and replace all resources of a declarative document, as one revision")
            .access(Access::Role(Role::Editor))
            .parameters(&[PRUNE])
            .parameters(&WRITE)
            .body(Media::Document, document_schema, DOCUMENT_LIMIT)
            .answer::<Revised>(200, "What was changed; with `dry_run`: what would be")
            .problems(&[409, 413, 415, 422, 503, 504]),
        Endpoint::new(Method::GET, "/export", "export", |call| export(call).boxed())
            .text("documents", "The whole set as one document, ready for `apply`; without secrets")
            .parameters(&[AT, FORMAT])
            .answer_as(200, "The document", "application/yaml", document_schema)
            .answer_as(200, "The document", "application/json", document_schema)
            .problems(&[404, 503]),
    ]
}

const PRUNE: Parameter = Parameter {
    name: "prune",
    place: Place::Query,
    schema: || json!({"type": "boolean", "default": false}),
    text: "Delete what the document does not have",
};

const AT: Parameter = Parameter {
    name: "revision",
    place: Place::Query,
    schema: || json!({"type": "integer", "minimum": 0}),
    text: "As it was at this revision; absent: as it is",
};

const FORMAT: Parameter = Parameter {
    name: "format",
    place: Place::Query,
    schema: || json!({"type": "string", "enum": ["yaml", "json"]}),
    text: "Absent: as Accept has it, or YAML",
};

fn document_schema(generator: &mut schemars::SchemaGenerator) -> Schema {
    use signalbox_config::{
        CertificateSpec, ConsumerSpec, ListenerSpec, PluginSpec, RouteSpec, UpstreamSpec,
    };
    let mut properties = serde_json::Map::new();
    for kind in Kind::ALL {
        let item = match kind {
            Kind::Listener => generator.subschema_for::<ListenerSpec>(),
            Kind::Route => generator.subschema_for::<RouteSpec>(),
            Kind::Upstream => generator.subschema_for::<UpstreamSpec>(),
            Kind::Plugin => generator.subschema_for::<PluginSpec>(),
            Kind::Consumer => generator.subschema_for::<ConsumerSpec>(),
            Kind::Certificate => generator.subschema_for::<CertificateSpec>(),
        };
        properties.insert(kind.plural().to_owned(), json!({"type": "array", "items": item}));
    }
    schemars::json_schema!({
        "type": "object",
        "description": "A list for each kind; or one or several YAML documents `{kind: route, name: …}`",
        "properties": properties,
    })
}

async fn apply(call: Call) -> Result<Response, Problem> {
    let prune = if call.flag("prune")? { Prune::Delete } else { Prune::Keep };
    let text = call.utf8()?.to_owned();
    let current = call.app.publisher.current();
    // A large document takes a second, in which this thread has other requests to answer.
    let parsed = tokio::task::spawn_blocking(move || {
        let entries = document::split(&text).map_err(|errors| {
            // What concerns no field is the text as a whole.
            if errors.iter().any(|error| error.field.is_empty()) {
                let details: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
                Problem::malformed(format!("the document {}", details.join("; "))).errors(errors)
            } else {
                Problem::invalid(errors)
            }
        })?;
        Operation::apply(entries, prune, &current).map_err(Problem::from)
    });
    let operation = parsed.await.map_err(|error| gave_up(&error))??;
    let written = write(&call, operation).await?;
    let mode = call.mode()?;
    if mode == crate::writer::Mode::Store {
        settle(&call, &written).await?;
    }
    let mut response = ok(&Revised::of(&written, mode))?;
    set_revision(&mut response, &written);
    Ok(response)
}

async fn export(call: Call) -> Result<Response, Problem> {
    let accepts_json = call
        .headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("json") && !accept.contains("yaml"));
    let json = match call.text("format")? {
        None => accepts_json,
        Some("json") => true,
        Some("yaml") => false,
        Some(other) => {
            return Err(Problem::parameter("format", format!("must be yaml or json, is {other:?}")));
        }
    };
    let current = call.app.publisher.current();
    let revision = call.parsed::<u64>("revision")?.filter(|number| *number != current.snapshot.id().number);
    let whole = call.app.whole_set().await?;
    let set = match revision {
        None => None,
        Some(number) => Some(super::revisions::set_at(&call, number).await?),
    };
    let rendered = tokio::task::spawn_blocking(move || {
        // It goes on when the client has gone.
        let _whole = whole;
        let mut missing: Vec<String> = Vec::new();
        let document = match set {
            None => {
                missing.extend(current.left_alone());
                document::join(current.snapshot.iter().map(|resource| &**resource))
            }
            Some(set) => {
                // What this version cannot read cannot be applied by it either.
                let mut resources: Vec<Resource> = Vec::with_capacity(set.resources.len());
                for stored in &set.resources {
                    match Resource::from_stored(stored.key.kind, &stored.spec, &Catalog) {
                        Ok(resource) => resources.push(resource),
                        Err(_) => missing.push(stored.key.to_string()),
                    }
                }
                missing.extend(set.unknown.iter().map(|unknown| unknown.key.to_string()));
                document::join(&resources)
            }
        };
        let text = if json {
            serde_json::to_string_pretty(&document).map_err(|error| error.to_string())?
        } else {
            document::to_yaml(&document)?
        };
        Ok((text, missing))
    });
    let (mut text, missing) =
        rendered.await.map_err(|error| gave_up(&error))?.map_err(|message: String| {
            Problem::new(
                http::StatusCode::INTERNAL_SERVER_ERROR,
                format!("the document cannot be written: {message}"),
            )
        })?;
    let not_exported = not_exported(&missing);
    if let Some(names) = &not_exported
        && !json
    {
        text.insert_str(0, &format!("# Not exported, for a newer version wrote them: {names}\n"));
    }
    let mut response = Response::new(text.into());
    let media = if json { "application/json" } else { "application/yaml" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    if let Some(names) = not_exported.and_then(|names| HeaderValue::from_str(&names).ok()) {
        response.headers_mut().insert(NOT_EXPORTED, names);
    }
    Ok(response)
}

/// The header that names what an export lacks: JSON has no comments.
const NOT_EXPORTED: HeaderName = HeaderName::from_static("signalbox-not-exported");

/// The names of resources that this version cannot read, as one line; `None`: there are none.
fn not_exported(missing: &[String]) -> Option<String> {
    const NAMED: usize = 50;
    let mut names: Vec<String> =
        missing.iter().take(NAMED).map(|name| name.escape_default().to_string()).collect();
    if missing.len() > NAMED {
        names.push(format!("and {} more", missing.len() - NAMED));
    }
    (!names.is_empty()).then(|| names.join(", "))
}

/// A task that panicked.
pub(super) fn gave_up(error: &tokio::task::JoinError) -> Problem {
    Problem::new(http::StatusCode::INTERNAL_SERVER_ERROR, "it ended early; the control plane's log says more")
        .because(error.to_string())
}
