//! All resources at once: `apply` and `export`.

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use schemars::Schema;
use serde_json::{Value, json};
use signalbox_config::document::Entry;
use signalbox_config::{FieldError, Kind, REDACTED, Resource, document};

use super::call::{Call, PASSPHRASE, ok};
use super::endpoint::{Access, DOCUMENT_LIMIT, Endpoint, Media, Parameter, Place, WRITE};
use super::problem::Problem;
use super::resources::{Revised, set_revision, wait_for_fleet, write};
use super::roles::suffices;
use super::whole_set::{gave_up, set_at};
use crate::locked::{Locker, Unlocker};
use crate::publish::Published;
use crate::store::{Role, StoredSet};
use crate::writer::{MassDelete, Operation, Prune};

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::POST, "/apply", "apply", |call| apply(call).boxed())
            .text("documents", "Create or replace all resources of a declarative document, as one revision")
            .access(Access::Role(Role::Editor))
            .parameters(&[PRUNE, ALLOW_MASS_DELETE])
            .parameters(&WRITE)
            .parameters(&[PASSPHRASE_OF_APPLY])
            .body(Media::Document, document_schema, DOCUMENT_LIMIT)
            .answer::<Revised>(200, "The changes. With `dry_run`: the changes that would be made")
            .problems(&[409, 413, 415, 422, 503, 504]),
        Endpoint::new(Method::GET, "/export", "export", |call| export(call).boxed())
            .text(
                "documents",
                "Export all resources as one document, ready for `apply`. API keys are exported as their SHA-256, but not to viewers. \
                 Private keys are left out unless the request asks for them: `<redacted>` stands for each of them, \
                 `Signalbox-Secrets-Omitted` names the resources, and `apply` on another control plane refuses each until it is filled in",
            )
            .parameters(&[AT, FORMAT, SECRETS, PASSPHRASE_OF_EXPORT])
            .answer_as(200, "The document", "application/yaml", document_schema)
            .answer_as(200, "The document", "application/json", document_schema)
            .problems(&[404, 503]),
    ]
}

const PRUNE: Parameter = Parameter {
    name: "prune",
    place: Place::Query,
    schema: || json!({"type": "boolean", "default": false}),
    text: "Deletes the resources that the document does not have. The document must name a resource or a list, and no list may be null (`[]` is an empty one), else the response is 400. If that would delete the last listener or more than half of all resources, the response is 409 with `deletions`, unless `allow_mass_delete` is true",
};

const ALLOW_MASS_DELETE: Parameter = Parameter {
    name: "allow_mass_delete",
    place: Place::Query,
    schema: || json!({"type": "boolean", "default": false}),
    text: "With `prune`: allows to delete the last listener and more than half of all resources",
};

const PASSPHRASE_OF_APPLY: Parameter = Parameter {
    name: PASSPHRASE,
    place: Place::Header,
    schema: || json!({"type": "string"}),
    text: "The passphrase that a document was exported with (`secrets=encrypted`)",
};

const PASSPHRASE_OF_EXPORT: Parameter = Parameter {
    name: PASSPHRASE,
    place: Place::Header,
    schema: || json!({"type": "string"}),
    text: "The passphrase for `secrets=encrypted`, from 12 to 1024 characters",
};

const SECRETS: Parameter = Parameter {
    name: "secrets",
    place: Place::Query,
    schema: || json!({"type": "string", "enum": ["encrypted"]}),
    text: "`encrypted`: includes private keys, encrypted with the passphrase of the header; needs the role admin. Absent: private keys are left out",
};

const AT: Parameter = Parameter {
    name: "revision",
    place: Place::Query,
    schema: || json!({"type": "integer", "minimum": 0}),
    text: "Exports the resources of this revision. Absent: those of the current revision",
};

const FORMAT: Parameter = Parameter {
    name: "format",
    place: Place::Query,
    schema: || json!({"type": "string", "enum": ["yaml", "json"]}),
    text: "The format of the document. Absent: the one that Accept asks for, else YAML",
};

fn document_schema(generator: &mut schemars::SchemaGenerator) -> Schema {
    let lists = Kind::ALL.map(|kind| {
        let item = kind.subschema(generator);
        (kind.plural().to_owned(), json!({"type": "array", "items": item}))
    });
    let properties = serde_json::Map::from_iter(lists);
    schemars::json_schema!({
        "type": "object",
        "description": "A list of resources for each kind. Or one or several YAML documents with a `kind` each, like `{kind: route, name: …}`. A private key may be `{encrypted: …}`, as an export with `secrets=encrypted` has it",
        "properties": properties,
    })
}

async fn apply(mut call: Call) -> Result<Response, Problem> {
    let prune = match (call.flag("prune")?, call.flag("allow_mass_delete")?) {
        (false, _) => Prune::Keep,
        (true, false) => Prune::Delete(MassDelete::Refused),
        (true, true) => Prune::Delete(MassDelete::Allowed),
    };
    call.utf8()?;
    let body = std::mem::take(&mut call.body);
    let passphrase = call.passphrase()?.map(str::to_owned);
    let current = call.app.publisher.current();
    // A large document takes a second, in which this thread has other requests to answer.
    let parsed = tokio::task::spawn_blocking(move || {
        let document = document::read(std::str::from_utf8(&body).unwrap_or_default()).map_err(|errors| {
            // Errors without a field concern the text as a whole.
            let of_the_whole = errors.iter().filter(|error| error.field.is_empty() && error.omitted == 0);
            let details: Vec<&str> = of_the_whole.map(|error| error.message.as_str()).collect();
            if details.is_empty() {
                Problem::invalid(errors)
            } else {
                Problem::malformed(format!("the document {}", details.join("; "))).errors(errors)
            }
        })?;
        drop(body);
        if prune != Prune::Keep {
            document.check_whole().map_err(|errors| {
                let first = errors.first().map(ToString::to_string).unwrap_or_default();
                Problem::malformed(format!("prune needs a document that says what stays; this one: {first}"))
                    .errors(errors)
            })?;
        }
        let mut unlocker = Unlocker::new(passphrase.as_deref());
        let mut cannot_unlock = Vec::new();
        let entries = document.iter().map(|mut entry| {
            cannot_unlock.extend(unlock(&mut entry, &mut unlocker).err());
            entry
        });
        let operation = Operation::apply(entries, prune, &current);
        if cannot_unlock.is_empty() {
            operation.map_err(Problem::from)
        } else {
            Err(Problem::invalid(cannot_unlock))
        }
    });
    let operation = parsed.await.map_err(|error| gave_up(&error))??;
    let written = write(&call, operation).await?;
    let mode = call.mode()?;
    if mode == crate::writer::Mode::Store {
        wait_for_fleet(&call, &written).await?;
    }
    let mut response = ok(&Revised::of(&written, mode))?;
    set_revision(&call, &mut response, &written);
    Ok(response)
}

/// Decrypts the secrets of a resource that are encrypted. The error names the field.
fn unlock(entry: &mut Entry, unlocker: &mut Unlocker<'_>) -> Result<(), FieldError> {
    let name = entry.spec.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Entry { kind, spec, path } = entry;
    let mut error = None;
    kind.visit_clear_secrets(spec, &mut |field, secret| {
        let only = secret.as_object().filter(|fields| fields.len() == 1);
        let Some(locked) = only.and_then(|fields| fields.get("encrypted")) else { return };
        let bound_to = bound_to(*kind, &name, field);
        match unlocker.unlock(locked.as_str().unwrap_or_default(), &bound_to) {
            Ok(unlocked) => *secret = Value::String(unlocked),
            Err(message) => error = Some(FieldError::new(format!("{path}.{field}"), message)),
        }
    });
    error.map_or(Ok(()), Err)
}

/// The text that an encrypted secret is bound to, so that it cannot be moved to another field or resource.
fn bound_to(kind: Kind, name: &str, field: &str) -> String {
    format!("{kind}/{name} {field}")
}

/// The options of an export, as the request has them.
struct ExportOptions {
    is_json: bool,
    /// Encrypts private keys; `None`: they are left out.
    passphrase: Option<String>,
    /// True if digests of API keys are shown. A weak key can be found from its digest.
    with_digests: bool,
}

impl ExportOptions {
    fn read(call: &Call) -> Result<Self, Problem> {
        let accepts_json = call
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|accept| accept.contains("json") && !accept.contains("yaml"));
        let is_json = match call.text("format")? {
            None => accepts_json,
            Some("json") => true,
            Some("yaml") => false,
            Some(other) => {
                return Err(Problem::parameter("format", format!("must be yaml or json, is {other:?}")));
            }
        };
        let encrypts = match call.text("secrets")? {
            None => false,
            Some("encrypted") => true,
            Some(other) => {
                return Err(Problem::parameter(
                    "secrets",
                    format!("must be encrypted or left out, is {other:?}"),
                ));
            }
        };
        let passphrase = call.passphrase()?.map(str::to_owned);
        let caller = call.caller.as_ref();
        let has_role = |needed| caller.is_some_and(|caller| suffices(&caller.principal.role, needed));
        if encrypts && !has_role(Role::Admin) {
            let detail = "secrets=encrypted needs a token with the role admin: whoever knows the passphrase can read the keys";
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        if encrypts && passphrase.is_none() {
            return Err(Problem::parameter(PASSPHRASE, "is needed with secrets=encrypted"));
        }
        let passphrase = passphrase.filter(|_| encrypts);
        Ok(Self { is_json, passphrase, with_digests: has_role(Role::Editor) })
    }
}

/// A document, and what it lacks.
struct Exported {
    text: String,
    omitted: Omitted,
    /// The resources that this version cannot read.
    missing: Vec<String>,
}

async fn export(call: Call) -> Result<Response, Problem> {
    let options = ExportOptions::read(&call)?;
    let is_json = options.is_json;
    let current = call.app.publisher.current();
    let revision = call.parsed::<u64>("revision")?.filter(|number| *number != current.snapshot.id().number);
    let whole = call.app.whole_set().await?;
    let set = match revision {
        None => None,
        Some(number) => Some(set_at(&call, number).await?),
    };
    let rendered = tokio::task::spawn_blocking(move || {
        // This goes on when the client has gone, so it keeps the permit.
        let _whole = whole;
        render(options, &current, set)
    });
    let Exported { mut text, omitted, missing } =
        rendered.await.map_err(|error| gave_up(&error))?.map_err(|message: String| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the document cannot be written: {message}"),
            )
        })?;
    let not_exported = not_exported(&missing);
    if let Some(names) = &not_exported
        && !is_json
    {
        text.insert_str(0, &format!("# Not exported, for a newer version wrote them: {names}\n"));
    }
    let mut response = Response::new(text.into());
    let media = if is_json { "application/json" } else { "application/yaml" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    if let Some(names) = not_exported.and_then(|names| HeaderValue::from_str(&names).ok()) {
        response.headers_mut().insert(NOT_EXPORTED, names);
    }
    if let Some(names) = omitted.names() {
        response.headers_mut().insert(SECRETS_OMITTED, names);
    }
    Ok(response)
}

/// Writes the current resources, or those of `set`, as a document.
fn render(options: ExportOptions, current: &Published, set: Option<StoredSet>) -> Result<Exported, String> {
    let locker = options.passphrase.map(|passphrase| Locker::new(&passphrase)).transpose();
    let mut export = Export {
        locker: locker.map_err(|error| error.to_string())?,
        with_digests: options.with_digests,
        ..Export::default()
    };
    let mut missing: Vec<String> = Vec::new();
    let document = match set {
        None => {
            missing.extend(current.left_alone());
            document::join_with(current.snapshot.iter().map(|resource| &**resource), |resource, path| {
                export.write(resource, path)
            })
        }
        Some(set) => {
            // A resource that this version cannot read cannot be applied by it either.
            let mut resources: Vec<Resource> = Vec::with_capacity(set.resources.len());
            for stored in &set.resources {
                match Resource::from_stored(stored.key.kind, &stored.spec, &current.types) {
                    Ok(resource) => resources.push(resource),
                    Err(_) => missing.push(stored.key.to_string()),
                }
            }
            missing.extend(set.unknown.iter().map(|unknown| unknown.key.to_string()));
            document::join_with(&resources, |resource, path| export.write(resource, path))
        }
    };
    if let Some(error) = export.failed {
        return Err(error);
    }
    let text = if options.is_json {
        serde_json::to_string_pretty(&document).map_err(|error| error.to_string())?
    } else {
        export.omitted.comment() + &document::to_yaml(&document)?
    };
    Ok(Exported { text, omitted: export.omitted, missing })
}

/// The header that names the resources that an export lacks: JSON has no comments.
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

/// The header that names the resources whose secrets an export leaves out.
const SECRETS_OMITTED: HeaderName = HeaderName::from_static("signalbox-secrets-omitted");

/// Writes the resources of an export.
#[derive(Default)]
struct Export {
    /// Encrypts secrets; `None`: they are left out.
    locker: Option<Locker>,
    with_digests: bool,
    omitted: Omitted,
    failed: Option<String>,
}

impl Export {
    fn write(&mut self, resource: &Resource, path: &str) -> Value {
        let spec = if self.with_digests {
            let key = resource.key();
            resource.exported(&mut |field, secret| match &self.locker {
                None => REDACTED.into(),
                Some(locker) => match locker.lock(secret, &bound_to(key.kind, key.name.as_str(), field)) {
                    Ok(locked) => json!({"encrypted": locked}),
                    Err(error) => {
                        self.failed = Some(error.to_string());
                        Value::Null
                    }
                },
            })
        } else {
            resource.redacted()
        };
        if resource.key().kind.has_secrets() {
            self.omitted.add(resource, &spec, path);
        }
        spec
    }
}

/// The secrets that an export leaves out.
#[derive(Debug, Default)]
struct Omitted {
    /// Resource and field of each, up to [`MAX_OMITTED`].
    listed: Vec<(String, String)>,
    count: usize,
}

const MAX_OMITTED: usize = 100;

impl Omitted {
    /// Lists the fields of `value` that have the placeholder.
    fn add(&mut self, resource: &Resource, value: &Value, path: &str) {
        match value {
            Value::String(text) if text == REDACTED => {
                self.count += 1;
                if self.listed.len() < MAX_OMITTED {
                    self.listed.push((resource.key().to_string(), path.to_owned()));
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.add(resource, item, &format!("{path}[{index}]"));
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.add(resource, value, &format!("{path}.{name}"));
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// The comment above a YAML document.
    fn comment(&self) -> String {
        if self.count == 0 {
            return String::new();
        }
        let mut lines = format!(
            "# {} secrets are left out. A control plane that does not have them refuses this document until they are filled in:\n",
            self.count
        );
        for (resource, path) in &self.listed {
            lines.push_str(&format!("#   {path}  ({resource})\n"));
        }
        if self.count > self.listed.len() {
            lines.push_str(&format!("#   and {} more\n", self.count - self.listed.len()));
        }
        lines
    }

    /// The names of the resources, for a header.
    fn names(&self) -> Option<HeaderValue> {
        let mut names: Vec<&str> = self.listed.iter().map(|(resource, _)| resource.as_str()).collect();
        names.dedup();
        let more = self.count.saturating_sub(self.listed.len());
        let mut text = names.join(", ");
        if more > 0 {
            text.push_str(&format!(", and {more} more secrets"));
        }
        if text.is_empty() { None } else { HeaderValue::from_str(&text).ok() }
    }
}
