use schemars::Schema;
use serde_json::{Map, Number, Value};

use crate::error::{Errors, FieldError, join};
use crate::values::{ByteSize, HumanDuration};

/// Finds everything in `value` that does not have the shape of `schema`: unknown fields, wrong types, missing
/// fields. What is unknown is taken out of `value`, and something of the right shape is put in the place of what is
/// wrong or missing, so that the rest can be checked further: see [`Errors::extend_misshapen`].
///
/// serde stops at the first of these; people want all of them at once. The schema is one that `schemars` derived
/// from a type that serde reads, so only the words that `schemars` uses are understood. `planned` are paths of fields that
/// are designed, but that this version refuses by name.
pub fn check_structure(schema: &Schema, value: &mut Value, planned: &[&str]) -> Vec<FieldError> {
    let mut check = Check { root: schema.as_value(), planned, errors: Vec::new(), more: 0 };
    check.walk(schema.as_value(), value, "");
    if check.more > 0 {
        check.errors.push(FieldError::more(check.more));
    }
    check.errors
}

struct Check<'a> {
    root: &'a Value,
    planned: &'a [&'a str],
    /// At most [`Errors::MAX`].
    errors: Vec<FieldError>,
    /// How many more there were.
    more: usize,
}

impl<'a> Check<'a> {
    fn walk(&mut self, schema: &'a Value, value: &mut Value, path: &str) {
        let schema = self.resolve(schema);
        for word in ["anyOf", "oneOf"] {
            if let Some(branches) = schema.get(word).and_then(Value::as_array) {
                return self.walk_branches(schema, branches, value, path);
            }
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
            return self.expect_one_of(schema, &allowed.iter().collect::<Vec<_>>(), value, path);
        }
        if let Some(only) = schema.get("const") {
            return self.expect_one_of(schema, &[only], value, path);
        }
        if !self.has_type(schema, value) {
            let message = format!("must be {}, is {}", wanted(schema), describe(value));
            return self.replace(schema, value, path, message);
        }
        match value {
            Value::Object(object) => self.walk_object(schema, object, path),
            Value::Array(items) => {
                if let Some(item_schema) = schema.get("items") {
                    for (index, item) in items.iter_mut().enumerate() {
                        self.walk(item_schema, item, &format!("{path}[{index}]"));
                    }
                }
            }
            Value::String(text) => {
                let wrong = match schema.get("format").and_then(Value::as_str) {
                    Some("duration-text") => text.parse::<HumanDuration>().err(),
                    Some("byte-size") => text.parse::<ByteSize>().err(),
                    _ => None,
                };
                if let Some(message) = wrong {
                    self.replace(schema, value, path, message);
                }
            }
            Value::Number(number) => {
                if let Some(message) = out_of_range(schema, number) {
                    self.replace(schema, value, path, message);
                }
            }
            Value::Bool(_) | Value::Null => {}
        }
    }

    fn walk_object(&mut self, schema: &'a Value, object: &mut Map<String, Value>, path: &str) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let others = schema.get("additionalProperties");
        object.retain(|name, value| {
            let path = join(path, name);
            match (properties.and_then(|properties| properties.get(name)), others) {
                (Some(property), _) => self.walk(property, value, &path),
                (None, Some(Value::Bool(false))) => {
                    let message = self.unknown_field(name, &path, properties);
                    self.note(path, message);
                    return false;
                }
                (None, Some(other)) if other.is_object() => self.walk(other, value, &path),
                (None, _) => {}
            }
            true
        });
        for name in required.iter().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                self.note(join(path, name), "is required".to_owned());
                let property = properties.and_then(|properties| properties.get(name));
                object.insert(name.to_owned(), property.map_or(Value::Null, |p| self.stand_in(p, 0)));
            }
        }
    }

    /// Walks the branch of several whose type fits, or whose only field is there (an enum of objects).
    fn walk_branches(&mut self, schema: &'a Value, branches: &'a [Value], value: &mut Value, path: &str) {
        let resolved: Vec<&'a Value> = branches.iter().map(|branch| self.resolve(branch)).collect();
        let texts: Vec<&Value> = resolved
            .iter()
            .flat_map(|branch| match (branch.get("const"), branch.get("enum").and_then(Value::as_array)) {
                (Some(only), _) => vec![only],
                (None, Some(several)) => several.iter().collect(),
                (None, None) => Vec::new(),
            })
            .collect();
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
            return self.replace(schema, value, path, message);
        }
        let other = |branch: &&&Value| branch.get("const").is_none() && branch.get("enum").is_none();
        if let Some(branch) = resolved.iter().filter(other).find(|branch| self.has_type(branch, value)) {
            return self.walk(branch, value, path);
        }
        if !texts.is_empty() {
            return self.expect_one_of(schema, &texts, value, path);
        }
        let mut shapes: Vec<String> = Vec::new();
        for shape in resolved.iter().filter(|branch| !is_null(branch)).map(|branch| wanted(branch)) {
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        let message = format!("must be {}, is {}", shapes.join(" or "), describe(value));
        self.replace(schema, value, path, message);
    }

    fn expect_one_of(&mut self, schema: &'a Value, allowed: &[&Value], value: &mut Value, path: &str) {
        if allowed.contains(&&*value) {
            return;
        }
        let names: Vec<String> = allowed
            .iter()
            .filter(|allowed| !allowed.is_null())
            .map(|allowed| allowed.as_str().map_or_else(|| allowed.to_string(), str::to_owned))
            .collect();
        let given = value.as_str().map_or_else(|| describe(value).to_owned(), |text| format!("{text:?}"));
        self.replace(schema, value, path, format!("must be {}, is {given}", one_of(&names)));
    }

    /// Notes what is wrong with a value, and puts one of the right shape in its place.
    fn replace(&mut self, schema: &'a Value, value: &mut Value, path: &str, message: String) {
        self.note(path.to_owned(), message);
        *value = self.stand_in(schema, 0);
    }

    fn note(&mut self, path: String, message: String) {
        if self.errors.len() < Errors::MAX {
            self.errors.push(FieldError::new(path, message));
        } else {
            self.more += 1;
        }
    }

    /// Some value of the shape of `schema`.
    fn stand_in(&self, schema: &'a Value, depth: u32) -> Value {
        let schema = self.resolve(schema);
        let list = |word: &str| schema.get(word).and_then(Value::as_array).and_then(|list| list.first());
        if let Some(value) = schema.get("default").or_else(|| schema.get("const")) {
            return value.clone();
        }
        if let Some(value) = list("examples").or_else(|| list("enum")) {
            return value.clone();
        }
        // Bounded: a type that needs one of itself has no value.
        if depth > 8 {
            return Value::Null;
        }
        if let Some(branch) = list("anyOf").or_else(|| list("oneOf")) {
            return self.stand_in(branch, depth + 1);
        }
        let name = match schema.get("type") {
            Some(Value::Array(names)) => names.first(),
            name => name,
        };
        match name.and_then(Value::as_str) {
            Some("string") => "".into(),
            Some("boolean") => false.into(),
            Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or_else(|| 0.into()),
            Some("array") => Value::Array(Vec::new()),
            Some("object") => {
                let mut object = Map::new();
                let required = schema.get("required").and_then(Value::as_array);
                for name in required.into_iter().flatten().filter_map(Value::as_str) {
                    let property = schema.get("properties").and_then(|properties| properties.get(name));
                    object.insert(
                        name.to_owned(),
                        property.map_or(Value::Null, |p| self.stand_in(p, depth + 1)),
                    );
                }
                Value::Object(object)
            }
            _ => Value::Null,
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
        self.planned.contains(&plain.as_str())
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

/// Why a number is none of the numbers of its schema.
fn out_of_range(schema: &Value, number: &Number) -> Option<String> {
    let of_format: Option<(i64, u64)> = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => Some((0, u8::MAX.into())),
        Some("uint16") => Some((0, u16::MAX.into())),
        Some("uint32") => Some((0, u32::MAX.into())),
        Some("uint64" | "uint") => Some((0, u64::MAX)),
        Some("int32") => Some((i32::MIN.into(), i32::MAX as u64)),
        _ => None,
    };
    let bound = |word: &str| schema.get(word).and_then(Value::as_number);
    let minimum = bound("minimum").cloned().or(of_format.map(|(lowest, _)| lowest.into()));
    let maximum = bound("maximum").cloned().or(of_format.map(|(_, highest)| highest.into()));
    if let Some(minimum) = minimum.filter(|minimum| is_less(number, minimum)) {
        return Some(format!("must be at least {minimum}"));
    }
    let maximum = maximum.filter(|maximum| is_less(maximum, number))?;
    Some(format!("must be at most {maximum}"))
}

fn is_less(a: &Number, b: &Number) -> bool {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => a < b,
        _ => a.as_f64() < b.as_f64(),
    }
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").is_some_and(|name| name == "null")
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

/// True if `given` is `known` with one letter wrong, left out, added or swapped, or in another case or plural.
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
