//! The rules of a descriptor set: which requests of HTTP are calls of which methods.

use std::collections::HashSet;
use std::sync::Arc;

use http::uri::PathAndQuery;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ReflectMessage as _, Value,
};

use super::template::{Template, Tree};

/// The rules of the services of a descriptor set.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) tree: Tree<Arc<Rule>>,
    /// The types, also for the details of errors.
    pub(super) pool: DescriptorPool,
}

/// One rule: a template and the method that it calls.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) method: Arc<Method>,
    pub(super) template: Template,
    /// The fields of the template's variables, in their order.
    pub(super) variables: Vec<FieldPath>,
    pub(super) body: BodyRule,
    /// The field of the response that is the body; `None`: all of it.
    pub(super) response_body: Option<FieldDescriptor>,
}

/// A method of a service.
#[derive(Debug)]
pub(super) struct Method {
    /// `/package.Service/Method`
    pub(super) path: PathAndQuery,
    pub(super) input: MessageDescriptor,
    pub(super) output: MessageDescriptor,
    pub(super) is_streaming: bool,
    /// True if a response may hold an `Any`.
    pub(super) may_answer_any: bool,
}

/// Where the body of a request goes.
#[derive(Debug)]
pub(super) enum BodyRule {
    /// There is none.
    None,
    /// It is the message.
    Whole,
    /// It is a field of the message.
    Field(FieldDescriptor),
}

/// The way to a field: those of messages, and at its end the field.
pub(super) type FieldPath = Vec<FieldDescriptor>;

/// The most fields of a path, and the most messages of type `Any` within each other.
pub(super) const MAX_DEPTH: usize = 32;

/// The type whose messages may hold any other, themselves included.
const ANY: &str = "google.protobuf.Any";

/// The message that stands for a body of any kind.
pub(super) const HTTP_BODY: &str = "google.api.HttpBody";

/// An error of a descriptor set, and the part of the configuration that it is about.
#[derive(Debug)]
pub(super) struct RulesError {
    pub(super) field: &'static str,
    pub(super) message: String,
}

impl RulesError {
    fn of_set(message: impl Into<String>) -> Self {
        Self { field: "descriptor_set", message: message.into() }
    }
}

impl Rules {
    /// The rules of these services; without any, of all services of the set.
    pub(super) fn read(set: &[u8], services: &[String]) -> Result<Self, Vec<RulesError>> {
        let pool = DescriptorPool::decode(set)
            .map_err(|error| vec![RulesError::of_set(format!("is not a descriptor set: {error}"))])?;
        let mut errors = Vec::new();
        for (at, name) in services.iter().enumerate() {
            if pool.get_service_by_name(name).is_none() {
                let message = format!("has {name:?} at {at}, which the descriptor set does not have");
                errors.push(RulesError { field: "services", message });
            }
        }
        let mut rules = Self { tree: Tree::default(), pool: pool.clone() };
        let mut count = 0;
        for service in pool.services() {
            if !services.is_empty() && !services.iter().any(|name| name == service.full_name()) {
                continue;
            }
            for method in service.methods() {
                match rules.add_method(&method) {
                    Ok(added) => count += added,
                    Err(error) => {
                        errors.push(RulesError::of_set(format!("{}: {error}", method.full_name())));
                    }
                }
            }
        }
        if errors.is_empty() && count == 0 {
            let message = "has no method with a google.api.http rule; compile it with --include_imports";
            errors.push(RulesError::of_set(message));
        }
        if errors.is_empty() { Ok(rules) } else { Err(errors) }
    }

    /// Adds the rules of a method. Returns their number. A method to which the client streams has none.
    fn add_method(&mut self, descriptor: &MethodDescriptor) -> Result<usize, String> {
        let Some(extension) = self.pool.get_extension_by_name("google.api.http") else { return Ok(0) };
        let options = descriptor.options();
        if !options.has_extension(&extension) || descriptor.is_client_streaming() {
            return Ok(0);
        }
        let value = options.get_extension(&extension);
        let Some(http) = value.as_message() else { return Ok(0) };
        let path = format!("/{}/{}", descriptor.parent_service().full_name(), descriptor.name());
        let method = Arc::new(Method {
            path: PathAndQuery::try_from(path).map_err(|error| error.to_string())?,
            input: descriptor.input(),
            output: descriptor.output(),
            is_streaming: descriptor.is_server_streaming(),
            may_answer_any: reaches_any(&descriptor.output()),
        });
        self.add_rule(&method, http)?;
        let mut count = 1;
        let additional = http.get_field_by_name("additional_bindings");
        for binding in additional.iter().filter_map(|value| value.as_list()).flatten() {
            let Some(binding) = binding.as_message() else { continue };
            self.add_rule(&method, binding)?;
            count += 1;
        }
        Ok(count)
    }

    fn add_rule(&mut self, method: &Arc<Method>, http: &DynamicMessage) -> Result<(), String> {
        let (verb, text) = pattern(http)?;
        let template = Template::parse(&text).map_err(|error| format!("the path {text:?} {error}"))?;
        let bound = template.variables.iter().map(|variable| path_field(&method.input, &variable.field));
        let variables = bound.collect::<Result<Vec<_>, _>>()?;
        let body = match field_text(http, "body").as_str() {
            "" => BodyRule::None,
            "*" => BodyRule::Whole,
            name => BodyRule::Field(named(&method.input, name)?),
        };
        let response_body = match field_text(http, "response_body").as_str() {
            "" => None,
            name => Some(named(&method.output, name)?),
        };
        let rule =
            Rule { method: Arc::clone(method), template: template.clone(), variables, body, response_body };
        match self.tree.insert(verb.as_deref(), &template, Arc::new(rule)) {
            None => Ok(()),
            Some(other) => Err(format!("the path {text:?} is that of {}, too", other.method.path)),
        }
    }
}

/// The method of HTTP and the template of a rule; `None`: any method.
fn pattern(http: &DynamicMessage) -> Result<(Option<String>, String), String> {
    for name in ["get", "put", "post", "delete", "patch"] {
        let template = field_text(http, name);
        if !template.is_empty() {
            return Ok((Some(name.to_ascii_uppercase()), template));
        }
    }
    let custom = http.get_field_by_name("custom").filter(|_| http.has_field_by_name("custom"));
    let Some(custom) = custom.as_ref().and_then(|value| value.as_message()) else {
        return Err("the rule has no path".to_owned());
    };
    let kind = field_text(custom, "kind");
    let method = match kind.as_str() {
        "*" => None,
        kind => {
            Some(http::Method::from_bytes(kind.as_bytes()).map_err(|_| format!("{kind:?} is no method"))?)
        }
    };
    Ok((method.map(|method| method.to_string()), field_text(custom, "path")))
}

fn field_text(message: &DynamicMessage, name: &str) -> String {
    let value = message.get_field_by_name(name);
    value.as_ref().and_then(|value| value.as_str()).unwrap_or_default().to_owned()
}

fn named(message: &MessageDescriptor, name: &str) -> Result<FieldDescriptor, String> {
    let field = message.get_field_by_name(name);
    field.ok_or_else(|| format!("{} has no field {name:?}", message.full_name()))
}

/// The field that a variable of a path names: a single value, which is not a message.
fn path_field(message: &MessageDescriptor, path: &str) -> Result<FieldPath, String> {
    let fields =
        resolve(message, path).ok_or_else(|| format!("{} has no field {path:?}", message.full_name()))?;
    match fields.last() {
        Some(field) if field.is_list() || field.is_map() || matches!(field.kind(), Kind::Message(_)) => {
            Err(format!("the field {path:?} cannot be a part of a path"))
        }
        _ => Ok(fields),
    }
}

/// The way to a field by the names of the schema or those of JSON. `None`: there is no such field, or it lies within a list.
pub(super) fn resolve(message: &MessageDescriptor, path: &str) -> Option<FieldPath> {
    let mut fields = FieldPath::new();
    let mut message = Some(message.clone());
    for name in path.split('.') {
        // A message that can hold itself must not be made as deep as a path is long.
        if fields.len() == MAX_DEPTH {
            return None;
        }
        let within = message.take()?;
        let field = within.get_field_by_name(name).or_else(|| within.get_field_by_json_name(name))?;
        if let Kind::Message(inner) = field.kind()
            && !field.is_list()
            && !field.is_map()
        {
            message = Some(inner);
        }
        fields.push(field);
    }
    Some(fields)
}

/// The message in which the last field of a path lies.
pub(super) fn parent_of<'m>(
    message: &'m mut DynamicMessage,
    path: &[FieldDescriptor],
) -> Option<&'m mut DynamicMessage> {
    let (_, outer) = path.split_last()?;
    outer.iter().try_fold(message, |message, field| message.get_field_mut(field).as_message_mut())
}

/// True if a message of this type may hold an `Any`.
fn reaches_any(message: &MessageDescriptor) -> bool {
    let mut seen = HashSet::new();
    let mut next = vec![message.clone()];
    while let Some(message) = next.pop() {
        if message.full_name() == ANY {
            return true;
        }
        if seen.insert(message.full_name().to_owned()) {
            next.extend(message.fields().filter_map(|field| field.kind().as_message().cloned()));
        }
    }
    false
}

/// True if no more than [`MAX_DEPTH`] messages of type `Any` are within each other: what writes them as JSON has no limit.
pub(super) fn is_shallow(message: &DynamicMessage, pool: &DescriptorPool) -> bool {
    is_shallow_below(message, pool, MAX_DEPTH)
}

fn is_shallow_below(message: &DynamicMessage, pool: &DescriptorPool, left: usize) -> bool {
    if message.descriptor().full_name() == ANY {
        let Some(left) = left.checked_sub(1) else { return false };
        let (url, value) = (field_text(message, "type_url"), message.get_field_by_name("value"));
        let name = url.rsplit('/').next().unwrap_or_default();
        let value = value.as_ref().and_then(|value| value.as_bytes());
        let inner = pool
            .get_message_by_name(name)
            .zip(value)
            .and_then(|(kind, value)| DynamicMessage::decode(kind, value.clone()).ok());
        return inner.is_none_or(|inner| is_shallow_below(&inner, pool, left));
    }
    message.fields().all(|(_, value)| match value {
        Value::Message(inner) => is_shallow_below(inner, pool, left),
        Value::List(items) => {
            items.iter().filter_map(Value::as_message).all(|inner| is_shallow_below(inner, pool, left))
        }
        Value::Map(entries) => {
            entries.values().filter_map(Value::as_message).all(|inner| is_shallow_below(inner, pool, left))
        }
        _ => true,
    })
}

/// The texts and bytes of a `google.api.HttpBody`.
pub(super) fn http_body(message: &DynamicMessage) -> (String, bytes::Bytes) {
    let data = message.get_field_by_name("data");
    let data = data.as_ref().and_then(|value| value.as_bytes()).cloned().unwrap_or_default();
    (field_text(message, "content_type"), data)
}

/// A `google.api.HttpBody`. The descriptor is that of the descriptor set.
pub(super) fn make_http_body(
    descriptor: &MessageDescriptor,
    content_type: &str,
    data: bytes::Bytes,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    // A set whose HttpBody has other fields gets an empty one.
    let _ = message.try_set_field_by_name("content_type", Value::String(content_type.to_owned()));
    let _ = message.try_set_field_by_name("data", Value::Bytes(data));
    message
}
