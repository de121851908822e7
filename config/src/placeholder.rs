//! The text that stands for a secret when a resource is read. A person who writes it back keeps the secret.

use schemars::Schema;
use serde_json::Value;

use crate::error::{FieldError, join};
use crate::secret::{REDACTED, SECRET_TYPES};

/// Finds secrets that have the text [`REDACTED`] in them and more: somebody typed into what was read back, which would
/// replace the secret. Secrets are found by the schema, where they have a type of [`SECRET_TYPES`].
pub fn check_placeholders(schema: &Schema, value: &Value) -> Vec<FieldError> {
    let mut found = Vec::new();
    if mentions_placeholder(value) {
        walk(schema.as_value(), schema.as_value(), value, "", 0, &mut found);
        found.sort_unstable();
        found.dedup();
    }
    found
}

/// True if any text in `value` has the placeholder in it.
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
        if reference.rsplit('/').next().is_some_and(|name| SECRET_TYPES.contains(&name)) {
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
