//! The message of a call, made from the path, the query and the body of a request.

use base64::Engine as _;
use bytes::Bytes;
use prost_reflect::{DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use serde_json::value::RawValue;

use crate::lenient_base64::{BASE64, BASE64_URL};

use super::rules::{BodyRule, HTTP_BODY, Rule, make_http_body, parent_of, resolve};

/// Why a request is not a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invalid(pub(super) String);

impl Invalid {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// The parts of a request that a message is made of.
pub(super) struct Parts<'r> {
    /// The decoded values of the template's variables, in their order.
    pub(super) variables: &'r [String],
    pub(super) query: &'r [(String, String)],
    pub(super) content_type: &'r str,
    pub(super) body: Bytes,
    pub(super) ignores_unknown_parameters: bool,
}

/// Makes the message of a call.
pub(super) fn message(rule: &Rule, parts: Parts<'_>) -> Result<DynamicMessage, Invalid> {
    let input = &rule.method.input;
    let mut message = match &rule.body {
        BodyRule::Whole if input.full_name() == HTTP_BODY => {
            make_http_body(input, parts.content_type, parts.body)
        }
        BodyRule::Whole => read_json(input, &parts.body)?,
        BodyRule::Field(field) => read_field(input, field, &parts)?,
        BodyRule::None => DynamicMessage::new(input.clone()),
    };
    for (name, text) in parts.query {
        add_parameter(&mut message, rule, name, text, parts.ignores_unknown_parameters)?;
    }
    for (path, text) in rule.variables.iter().zip(parts.variables) {
        let Some(field) = path.last() else { continue };
        let value = parse(field, text).map_err(|reason| Invalid(format!("{}: {reason}", field.name())))?;
        if let Some(parent) = parent_of(&mut message, path) {
            parent.set_field(field, value);
        }
    }
    Ok(message)
}

fn read_json(input: &MessageDescriptor, body: &[u8]) -> Result<DynamicMessage, Invalid> {
    // A client of a method without parameters may send nothing.
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(DynamicMessage::new(input.clone()));
    }
    if has_more_values_than(body, MAX_VALUES) {
        return Err(Invalid(format!("the body has more than {MAX_VALUES} values")));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let read = DynamicMessage::deserialize_with_options(input.clone(), &mut deserializer, &options);
    let read = read.and_then(|message| deserializer.end().map(|()| message));
    read.map_err(|error| Invalid(format!("the body: {error}")))
}

/// The most values of a body. Each takes up to a kilobyte, however short its text is.
const MAX_VALUES: usize = 100_000;

/// True if a JSON text has more values than `most`, by what separates them.
fn has_more_values_than(text: &[u8], most: usize) -> bool {
    let (mut count, mut is_text, mut is_escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b',' | b'[' | b'{' if !is_text => count += 1,
            _ => {}
        }
    }
    count > most
}

/// The message whose field is the body.
fn read_field(
    input: &MessageDescriptor,
    field: &FieldDescriptor,
    parts: &Parts<'_>,
) -> Result<DynamicMessage, Invalid> {
    if let Kind::Message(inner) = field.kind()
        && inner.full_name() == HTTP_BODY
    {
        let mut message = DynamicMessage::new(input.clone());
        let content = make_http_body(&inner, parts.content_type, parts.body.clone());
        message.set_field(field, Value::Message(content));
        return Ok(message);
    }
    if parts.body.iter().all(u8::is_ascii_whitespace) {
        return Ok(DynamicMessage::new(input.clone()));
    }
    // It must be one value, so that it cannot set other fields.
    let value: &RawValue =
        serde_json::from_slice(&parts.body).map_err(|error| Invalid(format!("the body: {error}")))?;
    read_json(input, format!("{{\"{}\":{}}}", field.json_name(), value.get()).as_bytes())
}

/// Adds a parameter of the query.
fn add_parameter(
    message: &mut DynamicMessage,
    rule: &Rule,
    name: &str,
    text: &str,
    ignores_unknown: bool,
) -> Result<(), Invalid> {
    let is_bound = |path: &[FieldDescriptor]| match &rule.body {
        BodyRule::Whole => true,
        BodyRule::Field(field) => path.first() == Some(field),
        BodyRule::None => false,
    };
    let Some(path) = resolve(&rule.method.input, name).filter(|path| !is_bound(path)) else {
        return if ignores_unknown {
            Ok(())
        } else {
            Err(Invalid(format!("the parameter {name:?} is not known")))
        };
    };
    let is_variable = rule.variables.contains(&path);
    let (Some(field), false) = (path.last(), is_variable) else {
        return Err(Invalid(format!("the parameter {name:?} is a part of the path")));
    };
    let wrong = |reason: String| Invalid(format!("the parameter {name:?}: {reason}"));
    if field.is_map() {
        return Err(wrong("a map cannot be a parameter".to_owned()));
    }
    let value = parse(field, text).map_err(wrong)?;
    let Some(parent) = parent_of(message, &path) else { return Ok(()) };
    if field.is_list() {
        if let Some(list) = parent.get_field_mut(field).as_list_mut() {
            list.push(value);
        }
    } else {
        parent.set_field(field, value);
    }
    Ok(())
}

/// The messages whose JSON is a text, or a single value.
const TEXT_MESSAGES: [&str; 3] =
    ["google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask"];
const WRAPPERS: [&str; 9] = [
    "google.protobuf.BoolValue",
    "google.protobuf.BytesValue",
    "google.protobuf.DoubleValue",
    "google.protobuf.FloatValue",
    "google.protobuf.Int32Value",
    "google.protobuf.Int64Value",
    "google.protobuf.StringValue",
    "google.protobuf.UInt32Value",
    "google.protobuf.UInt64Value",
];

/// A value of a field, or of an item of it, from its text.
fn parse(field: &FieldDescriptor, text: &str) -> Result<Value, String> {
    fn number<T: std::str::FromStr<Err: ToString>>(text: &str) -> Result<T, String> {
        text.parse()
            .map_err(|error: T::Err| format!("{text:?} is not a number of its type: {}", error.to_string()))
    }
    Ok(match field.kind() {
        Kind::String => Value::String(text.to_owned()),
        Kind::Bool => match text {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return Err(format!("{text:?} is neither true nor false")),
        },
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number(text)?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(text)?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number(text)?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number(text)?),
        Kind::Float => Value::F32(number(float(text))?),
        Kind::Double => Value::F64(number(float(text))?),
        Kind::Bytes => Value::Bytes(
            BASE64
                .decode(text)
                .or_else(|_| BASE64_URL.decode(text))
                .ok()
                .ok_or_else(|| format!("{text:?} is not base64"))?
                .into(),
        ),
        Kind::Enum(kind) => {
            let by_name = kind.get_value_by_name(text).map(|value| value.number());
            let known = by_name.or_else(|| kind.get_value(text.parse().ok()?).map(|value| value.number()));
            Value::EnumNumber(
                known.ok_or_else(|| format!("{text:?} is not a value of {}", kind.full_name()))?,
            )
        }
        Kind::Message(kind) if TEXT_MESSAGES.contains(&kind.full_name()) => {
            let json = serde_json::Value::from(text);
            let message = DynamicMessage::deserialize(kind, json);
            Value::Message(message.map_err(|error| format!("{text:?}: {error}"))?)
        }
        Kind::Message(kind) if WRAPPERS.contains(&kind.full_name()) => {
            let inner = kind.get_field_by_name("value").ok_or("its type cannot be a parameter")?;
            let value = parse(&inner, text)?;
            let mut message = DynamicMessage::new(kind);
            message.set_field(&inner, value);
            Value::Message(message)
        }
        Kind::Message(kind) => return Err(format!("a {} cannot be a parameter", kind.full_name())),
    })
}

/// The texts of JSON for what is no number, as Rust reads them.
fn float(text: &str) -> &str {
    match text {
        "Infinity" => "inf",
        "-Infinity" => "-inf",
        text => text,
    }
}
