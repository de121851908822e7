//! What is refused when somebody writes it, beside what no specification may have.
//!
//! What is stored is not checked like this: an earlier version may have accepted it, and it goes on being served.

use schemars::Schema;
use serde_json::Value;

use crate::error::{Errors, FieldError, join};
use crate::key::Kind;
use crate::secret::REDACTED;

/// A field that narrows something down, and must therefore not be there without saying to what: an empty list would mean
/// "any" or "everything".
struct Narrowing {
    /// `None`: of every kind.
    kind: Option<Kind>,
    path: &'static [&'static str],
    /// What leaving it out means.
    absent: &'static str,
    empty: Empty,
}

/// What an empty list or object means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Empty {
    /// It would mean the same as a field that is not there.
    Refused,
    /// None at all, or something that the parser refuses.
    LeftToParser,
}

const NARROWING: &[Narrowing] = &[
    field(None, &["fleets"], "for all fleets", Empty::Refused),
    field(Some(Kind::Listener), &["trusted_proxies"], "to trust none", Empty::LeftToParser),
    field(Some(Kind::Listener), &["tls"], "for TLS with the defaults", Empty::LeftToParser),
    field(Some(Kind::Listener), &["tls", "client_auth"], "to ask for no certificate", Empty::Refused),
    field(Some(Kind::Route), &["listeners"], "for all listeners", Empty::Refused),
    field(Some(Kind::Route), &["match", "hosts"], "for any host", Empty::Refused),
    field(Some(Kind::Route), &["match", "paths"], "for any path", Empty::Refused),
    field(Some(Kind::Route), &["match", "methods"], "for any method", Empty::Refused),
    field(Some(Kind::Route), &["match", "headers"], "for any headers", Empty::Refused),
    field(Some(Kind::Route), &["match", "query"], "for any query", Empty::Refused),
    field(Some(Kind::Route), &["forward", "upgrades"], "for the default", Empty::LeftToParser),
    field(Some(Kind::Route), &["forward", "retry", "on"], "for the default", Empty::LeftToParser),
    field(
        Some(Kind::Route),
        &["forward", "retry", "methods"],
        "for the idempotent ones",
        Empty::LeftToParser,
    ),
    field(
        Some(Kind::Upstream),
        &["health_check", "active", "statuses"],
        "for the default",
        Empty::LeftToParser,
    ),
    field(Some(Kind::Certificate), &["snis"], "for all names of the certificate", Empty::LeftToParser),
];

const fn field(
    kind: Option<Kind>,
    path: &'static [&'static str],
    absent: &'static str,
    empty: Empty,
) -> Narrowing {
    Narrowing { kind, path, absent, empty }
}

/// Refuses fields that are there and say nothing. They are taken out of `spec`, so that the rest can be checked further.
pub(crate) fn check_narrowing(kind: Kind, spec: &mut Value, errors: &mut Errors) {
    let requires_proxy_protocol = spec.get("proxy_protocol").is_some_and(|mode| mode == "require");
    for field in NARROWING.iter().filter(|field| field.kind.is_none_or(|of| of == kind)) {
        let Some((name, above)) = field.path.split_last() else { continue };
        let object = above.iter().try_fold(&mut *spec, |value, name| value.get_mut(*name));
        let Some(object) = object.and_then(Value::as_object_mut) else { continue };
        let Some(value) = object.get(*name) else { continue };
        // Where connections must come from trusted proxies if there are any, none would be anybody.
        let means_any = *name == "trusted_proxies" && requires_proxy_protocol;
        let is_empty = match value {
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        let wrong = match value {
            Value::Null => "must not be null",
            _ if is_empty && (field.empty == Empty::Refused || means_any) => "must not be empty",
            _ => continue,
        };
        let absent = if means_any { "to take connections from anybody" } else { field.absent };
        errors.push(field.path.join("."), format_args!("{wrong}; leave it out {absent}"));
        object.remove(*name);
    }
    match kind {
        Kind::Route => check_value_prefixes(spec, errors),
        Kind::Plugin => check_plugin_config(spec, errors),
        Kind::Listener | Kind::Upstream | Kind::Consumer | Kind::Certificate => {}
    }
}

/// An empty prefix is a prefix of every value.
fn check_value_prefixes(spec: &Value, errors: &mut Errors) {
    for list in ["headers", "query"] {
        let matches = spec.get("match").and_then(|matches| matches.get(list)).and_then(Value::as_array);
        for (index, wanted) in matches.into_iter().flatten().enumerate() {
            if wanted.get("prefix").and_then(Value::as_str) == Some("") {
                errors.push(
                    format_args!("match.{list}[{index}].prefix"),
                    "must not be empty, for every value begins so; use `present: true`",
                );
            }
        }
    }
}

/// Which fields of a plugin's configuration narrow something down is not known here, so none may be null.
fn check_plugin_config(spec: &Value, errors: &mut Errors) {
    let config = spec.get("config").and_then(Value::as_object);
    for (name, _) in config.into_iter().flatten().filter(|(_, value)| value.is_null()) {
        errors.push(join("config", name), "must not be null; leave it out for its default");
    }
}

/// Finds secrets that have the text [`REDACTED`] in them and more: somebody typed into what was read back, which would
/// replace the secret. Secrets are found by the schema, where they have the type `Secret`.
pub fn check_placeholders(schema: &Schema, value: &Value) -> Vec<FieldError> {
    let mut found = Vec::new();
    if mentions_placeholder(value) {
        walk(schema.as_value(), schema.as_value(), value, "", 0, &mut found);
        found.sort_unstable();
        found.dedup();
    }
    found
}

/// Whether any text in `value` has the placeholder in it.
pub fn mentions_placeholder(value: &Value) -> bool {
    match value {
        Value::String(text) => has_placeholder(text),
        Value::Array(items) => items.iter().any(mentions_placeholder),
        Value::Object(fields) => fields.values().any(mentions_placeholder),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn has_placeholder(text: &str) -> bool {
    // In any case, for some editors change it.
    text.as_bytes().windows(REDACTED.len()).any(|part| part.eq_ignore_ascii_case(REDACTED.as_bytes()))
}

fn walk(root: &Value, schema: &Value, value: &Value, path: &str, depth: usize, found: &mut Vec<FieldError>) {
    // Bounded: a schema may refer to itself.
    if depth > 64 {
        return;
    }
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        if reference.ends_with("/Secret") {
            let is_kept = value.as_str() == Some(REDACTED);
            if !is_kept && mentions_placeholder(value) {
                found.push(FieldError::new(path, MIXED));
            }
        } else if let Some(target) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) {
            walk(root, target, value, path, depth + 1, found);
        }
        return;
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        for branch in schema.get(word).and_then(Value::as_array).into_iter().flatten() {
            walk(root, branch, value, path, depth + 1, found);
        }
    }
    match value {
        Value::Object(fields) => {
            let properties = schema.get("properties");
            for (name, value) in fields {
                let property = properties.and_then(|properties| properties.get(name));
                let property = property.or_else(|| schema.get("additionalProperties"));
                if let Some(property) = property {
                    walk(root, property, value, &join(path, name), depth + 1, found);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    walk(root, schema, item, &format!("{path}[{index}]"), depth + 1, found);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

const MIXED: &str = "has \"<redacted>\" in it, which stands for the secret that is stored: send exactly that to keep it, \
                     or the new secret alone";
