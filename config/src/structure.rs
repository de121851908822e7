use schemars::Schema;
use serde_json::{Map, Value};

use crate::error::{FieldError, join};

/// Finds everything in `value` that does not have the shape of `schema`: unknown fields, wrong types, missing
/// fields. What is wrong is taken out of `value` where that leaves something that can be checked further.
///
/// serde stops at the first of these; people want all of them at once. The schema is one that `schemars` derived
/// from a type that serde reads, so only the words that `schemars` uses are understood. `kind` names the table of
/// fields that are designed but not supported yet; plugin configurations have none.
pub fn check_structure(schema: &Schema, value: &mut Value, kind: &str) -> Vec<FieldError> {
    let mut check = Check { root: schema.as_value(), kind, errors: Vec::new() };
    check.walk(schema.as_value(), value, "");
    check.errors
}

/// Fields of the design that this version refuses by name, so that nobody takes them for working.
const NOT_SUPPORTED_YET: &[(&str, &[&str])] = &[
    ("listener", &["tls", "trusted_proxies", "proxy_protocol", "normalize_path"]),
    ("route", &["forward.retry", "forward.mirror"]),
    ("upstream", &["targets.zone", "load_balancing.hash_on", "health_check", "circuit_breaker", "tls"]),
    ("consumer", &["credentials.basic_auth", "credentials.jwt", "credentials.hmac_auth"]),
];

struct Check<'a> {
    root: &'a Value,
    kind: &'a str,
    errors: Vec<FieldError>,
}

/// What is to be done with a value that was checked.
#[derive(PartialEq, Eq)]
enum Verdict {
    Keep,
    /// It is not what the schema wants, and would only confuse what comes after.
    Remove,
}

impl<'a> Check<'a> {
    fn walk(&mut self, schema: &'a Value, value: &mut Value, path: &str) -> Verdict {
        let schema = self.resolve(schema);
        for word in ["anyOf", "oneOf"] {
            if let Some(branches) = schema.get(word).and_then(Value::as_array) {
                return self.walk_branches(branches, value, path);
            }
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
            return self.expect_one_of(allowed.iter(), value, path);
        }
        if let Some(only) = schema.get("const") {
            return self.expect_one_of(std::iter::once(only), value, path);
        }
        if !self.has_type(schema, value) {
            let message = format!("must be {}, is {}", wanted(schema), describe(value));
            self.errors.push(FieldError::new(path, message));
            return Verdict::Remove;
        }
        match value {
            Value::Object(object) => self.walk_object(schema, object, path),
            Value::Array(items) => {
                if let Some(item_schema) = schema.get("items") {
                    let mut index = 0;
                    items.retain_mut(|item| {
                        let verdict = self.walk(item_schema, item, &format!("{path}[{index}]"));
                        index += 1;
                        verdict == Verdict::Keep
                    });
                }
            }
            _ => self.check_number(schema, value, path),
        }
        Verdict::Keep
    }

    fn walk_object(&mut self, schema: &'a Value, object: &mut Map<String, Value>, path: &str) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let others = schema.get("additionalProperties");
        object.retain(|name, value| {
            let path = join(path, name);
            match (properties.and_then(|properties| properties.get(name)), others) {
                (Some(property), _) => self.walk(property, value, &path) == Verdict::Keep,
                (None, Some(Value::Bool(false))) => {
                    let message = self.unknown_field(name, &path, properties);
                    self.errors.push(FieldError::new(path, message));
                    false
                }
                (None, Some(other)) if other.is_object() => self.walk(other, value, &path) == Verdict::Keep,
                (None, _) => true,
            }
        });
        let found: Vec<&str> =
            required.iter().filter_map(Value::as_str).filter(|name| !object.contains_key(*name)).collect();
        for name in found {
            let path = join(path, name);
            // What was there but wrong has been named already.
            if !self.errors.iter().any(|error| error.field == path) {
                self.errors.push(FieldError::new(path, "is required"));
            }
        }
    }

    /// Of several shapes: the one whose type fits, or whose only field is there (an enum of objects).
    fn walk_branches(&mut self, branches: &'a [Value], value: &mut Value, path: &str) -> Verdict {
        let resolved: Vec<&'a Value> = branches.iter().map(|branch| self.resolve(branch)).collect();
        let texts: Vec<&Value> = resolved
            .iter()
            .flat_map(|branch| match (branch.get("const"), branch.get("enum").and_then(Value::as_array)) {
                (Some(only), _) => vec![only],
                (None, Some(several)) => several.iter().collect(),
                (None, None) => Vec::new(),
            })
            .collect();
        if !texts.is_empty() && value.is_string() {
            return self.expect_one_of(texts.into_iter(), value, path);
        }
        let tags: Vec<&str> = resolved.iter().filter_map(|branch| tag_of(branch)).collect();
        if let (Value::Object(object), false) = (&*value, tags.is_empty()) {
            let fitting =
                resolved.iter().find(|branch| tag_of(branch).is_some_and(|tag| object.contains_key(tag)));
            if object.len() == 1
                && let Some(branch) = fitting
            {
                return self.walk(branch, value, path);
            }
            let planned = object.keys().find(|name| self.is_planned(&join(path, name)));
            let message = match planned {
                Some(name) => format!("{name} is not supported by this version"),
                None => format!("needs exactly one of {}", tags.join(", ")),
            };
            self.errors.push(FieldError::new(path, message));
            return Verdict::Remove;
        }
        if let Some(branch) = resolved.iter().find(|branch| self.has_type(branch, value)) {
            return self.walk(branch, value, path);
        }
        let wanted: Vec<String> = resolved
            .iter()
            .filter(|branch| branch.get("type") != Some(&Value::from("null")))
            .map(|b| wanted(b))
            .collect();
        let message = format!("must be {}, is {}", wanted.join(" or "), describe(value));
        self.errors.push(FieldError::new(path, message));
        Verdict::Remove
    }

    fn expect_one_of<'v>(
        &mut self,
        allowed: impl Iterator<Item = &'v Value> + Clone,
        value: &Value,
        path: &str,
    ) -> Verdict {
        if allowed.clone().any(|allowed| allowed == value) {
            return Verdict::Keep;
        }
        let names: Vec<String> = allowed
            .filter(|v| !v.is_null())
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect();
        let given = value.as_str().map_or_else(|| describe(value).to_owned(), |text| format!("{text:?}"));
        self.errors.push(FieldError::new(path, format!("must be {}, is {given}", one_of(&names))));
        Verdict::Remove
    }

    fn check_number(&mut self, schema: &Value, value: &Value, path: &str) {
        let Some(number) = value.as_f64() else { return };
        if let Some(minimum) =
            schema.get("minimum").and_then(Value::as_f64).filter(|minimum| number < *minimum)
        {
            self.errors.push(FieldError::new(path, format!("must be at least {minimum}")));
        }
        if let Some(maximum) =
            schema.get("maximum").and_then(Value::as_f64).filter(|maximum| number > *maximum)
        {
            self.errors.push(FieldError::new(path, format!("must be at most {maximum}")));
        }
    }

    fn unknown_field(&self, name: &str, path: &str, properties: Option<&Map<String, Value>>) -> String {
        if self.is_planned(path) {
            return "is not supported by this version".to_owned();
        }
        let close = properties.and_then(|properties| properties.keys().find(|known| is_close(known, name)));
        match close {
            Some(known) => format!("unknown field; did you mean {known}?"),
            None => "unknown field".to_owned(),
        }
    }

    fn is_planned(&self, path: &str) -> bool {
        let mut plain = String::with_capacity(path.len());
        let mut inside = false;
        for c in path.chars() {
            match c {
                '[' => inside = true,
                ']' => inside = false,
                c if !inside => plain.push(c),
                _ => {}
            }
        }
        NOT_SUPPORTED_YET.iter().any(|(kind, fields)| *kind == self.kind && fields.contains(&plain.as_str()))
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        // Bounded: a schema that refers to itself without end is no schema.
        for _ in 0..8 {
            let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { break };
            let Some(target) = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer))
            else {
                break;
            };
            schema = target;
        }
        schema
    }

    fn has_type(&self, schema: &'a Value, value: &Value) -> bool {
        let schema = self.resolve(schema);
        let fits = |name: &str| match name {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            _ => true,
        };
        match schema.get("type") {
            Some(Value::String(name)) => fits(name),
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(fits),
            _ => true,
        }
    }
}

/// The only property of a branch that is one variant of an enum of objects.
fn tag_of(branch: &Value) -> Option<&str> {
    match branch.get("required").and_then(Value::as_array).map(Vec::as_slice) {
        Some([Value::String(tag)]) if branch.get("properties")?.as_object()?.len() == 1 => Some(tag),
        _ => None,
    }
}

fn wanted(schema: &Value) -> String {
    let article = |name: &str| match name {
        "object" | "array" | "integer" => format!("an {name}"),
        "boolean" => "true or false".to_owned(),
        name => format!("a {name}"),
    };
    match schema.get("type") {
        Some(Value::String(name)) => article(name),
        Some(Value::Array(names)) => {
            let names: Vec<String> =
                names.iter().filter_map(Value::as_str).filter(|name| *name != "null").map(article).collect();
            names.join(" or ")
        }
        _ => "something else".to_owned(),
    }
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn one_of(names: &[String]) -> String {
    match names {
        [only] => only.clone(),
        _ => format!("one of {}", names.join(", ")),
    }
}

/// Whether `given` is `known` with one letter wrong, left out, added or swapped, or in another case or plural.
fn is_close(known: &str, given: &str) -> bool {
    let normal = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let (known, given) = (normal(known), normal(given));
    if known == given
        || known.strip_suffix('s') == Some(given.as_str())
        || given.strip_suffix('s') == Some(known.as_str())
    {
        return true;
    }
    let (a, b) = (known.as_bytes(), given.as_bytes());
    if a.len().abs_diff(b.len()) > 1 || a.len() < 4 {
        return false;
    }
    let start = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let end = a[start..].iter().rev().zip(b[start..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (a_rest, b_rest) = (a.len() - start - end, b.len() - start - end);
    let swapped = a_rest == 2 && b_rest == 2 && a[start] == b[start + 1] && a[start + 1] == b[start];
    (a_rest <= 1 && b_rest <= 1) || swapped
}
