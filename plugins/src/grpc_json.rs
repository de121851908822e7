//! Serves gRPC methods as JSON over HTTP, by the `google.api.http` rules of their definition.
//!
//! One gRPC service serves scripts and browsers, too: `GET /v1/users/7` becomes a call of the method whose rule has that path, and its response
//! comes back as JSON. Requests that no rule takes pass as they are, gRPC calls among them, so one route serves both.
//!
//! **The descriptor set** is an uploaded file, made by `protoc --include_imports --descriptor_set_out=api.binpb` or `buf build -o api.binpb`. A plugin is
//! refused if the set cannot be read, or if one of its rules is wrong, by the name of the method. A new version of the API is a new file and a
//! changed plugin.
//!
//! The upstream must speak HTTP/2: `protocol: http2`.
//!
//! **Requests**: the variables of the path, the parameters of the query and the body become the message. A parameter is the path of a field
//! (`user.name`, also by its JSON name); lists are repeated; enums are names or numbers; timestamps, durations, field masks and
//! wrappers are their JSON texts, and bytes are base64. With `body: "*"` there are no parameters, with `body: field` none within that field. JSON
//! is read as proto3 defines it. What is unknown or does not fit is answered 400. A body or field of type `google.api.HttpBody` takes any bytes.
//!
//! **Responses**: one message is a JSON object (or the field that `response_body` names), a stream is one JSON value a line
//! (`application/x-ndjson`), each sent when it comes. A `google.api.HttpBody` is its bytes with its content type.
//!
//! **Errors** of the service have the HTTP status that corresponds to the gRPC status, and the body `{"code", "message", "details"}`; the details are
//! those of `grpc-status-details-bin`, written out if the descriptor set has their types. The head of a response waits for the first
//! message, so a stream that begins with an error has its status, too. A stream that fails later is broken off. Errors of the proxy and of
//! other plugins stay as they are.
//!
//! Methods to which clients stream have no JSON form, and their rules are passed over.

mod request;
mod response;
mod rules;
mod template;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Uri};
use prost::Message as _;
use prost_reflect::SerializeOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{BlobId, ByteSize, Errors, FieldError};
use signalbox_plugin::grpc::{self, GRPC_STATUS};
use signalbox_plugin::{
    Blobs, BodyWish, Context, Definition, Flow, Origin, Plugin, PluginRequest, PluginResponse, Reply, hooks,
};

use crate::query::{Parameter, parameters};

use self::request::{Invalid, Parts};
use self::response::{Status, Style, Translator, content_type_of, forget_grpc};
use self::rules::{BodyRule, Rule, Rules};

/// The descriptor set, and how JSON is written.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "gRPC as JSON", example = serde_json::json!({
    "descriptor_set": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}))]
pub(crate) struct Config {
    /// The uploaded descriptor set.
    #[schemars(title = "Descriptor set")]
    descriptor_set: BlobId,
    /// The services whose methods are served: `package.Service`. Absent: all of the descriptor set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Services")]
    services: Option<Vec<String>>,
    /// Fields have the names of the schema, not those of JSON (`user_id`, not `userId`). Requests may use either.
    #[serde(default)]
    #[schemars(title = "Proto names")]
    proto_names: bool,
    /// Fields that have their default value are written, too.
    #[serde(default)]
    #[schemars(title = "Write defaults")]
    write_defaults: bool,
    /// Enums are numbers.
    #[serde(default)]
    #[schemars(title = "Enums as numbers")]
    enums_as_numbers: bool,
    /// Parameters of the query that are no fields are passed over. Otherwise they are answered 400.
    #[serde(default)]
    #[schemars(title = "Ignore unknown parameters")]
    ignore_unknown_parameters: bool,
    /// The largest body of a request, at most 64MiB. A larger one is answered 413, and one with more than 100,000 values 400.
    #[serde(default = "default_max_body")]
    #[schemars(title = "Max body")]
    max_body: ByteSize,
    /// The largest message of a response, at most 64MiB. In the place of a larger one the client gets 500.
    #[serde(default = "default_max_message")]
    #[schemars(title = "Max message")]
    max_message: ByteSize,
}

fn default_max_body() -> ByteSize {
    ByteSize(4 << 20)
}

fn default_max_message() -> ByteSize {
    ByteSize(4 << 20)
}

const MAX_SIZE: u64 = 64 << 20;

/// The most parameters of a query.
const MAX_PARAMETERS: usize = 1000;

/// INVALID_ARGUMENT
const INVALID_ARGUMENT: u8 = 3;

/// Serves gRPC methods as JSON over HTTP.
pub(crate) struct GrpcJson {
    rules: Arc<Rules>,
    style: Style,
    ignores_unknown_parameters: bool,
    max_body: usize,
}

/// A request that is a call, between its head and its response.
struct Call {
    rule: Arc<Rule>,
    variables: Vec<String>,
    query: Vec<(String, String)>,
    content_type: String,
    /// True once the response is to be translated.
    translates: bool,
}

impl GrpcJson {
    /// The call that a request is. `None`: no rule takes it.
    fn call(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Result<Call, Invalid>> {
        let content_type =
            headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content_type.starts_with("application/grpc") {
            return None;
        }
        let (rule, segments) = self.rules.tree.find(method.as_str(), uri.path())?;
        let read = || {
            let bad_escape = |_| Invalid::new("the path is not percent-encoded UTF-8");
            let bound = rule.template.bind(&segments).map_err(bad_escape)?;
            let variables = bound.into_iter().map(|(_, value)| value).collect();
            let query = parameters(uri.query().unwrap_or_default()).filter(|it| !it.text().is_empty());
            let query: Option<Vec<(String, String)>> =
                query.take(MAX_PARAMETERS + 1).map(Parameter::texts).collect();
            let query = query.ok_or_else(|| Invalid::new("the query is not UTF-8"))?;
            if query.len() > MAX_PARAMETERS {
                return Err(Invalid::new(format!("there are more than {MAX_PARAMETERS} parameters")));
            }
            let (rule, content_type) = (Arc::clone(rule), content_type.to_owned());
            Ok(Call { rule, variables, query, content_type, translates: false })
        };
        Some(read())
    }
}

fn refuse(Invalid(message): Invalid) -> Flow<'static> {
    Reply::Response(Status::new(INVALID_ARGUMENT, message).response()).into()
}

#[hooks]
impl Plugin for GrpcJson {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let head = &mut *request.head;
        let call = match self.call(&head.method, &head.uri, &head.headers) {
            None => return Flow::Continue,
            Some(Err(invalid)) => return refuse(invalid),
            Some(Ok(call)) => call,
        };
        let mut target = head.uri.clone().into_parts();
        target.path_and_query = Some(call.rule.method.path.clone());
        let Ok(uri) = Uri::from_parts(target) else {
            return refuse(Invalid::new("the request has no usable target"));
        };
        head.uri = uri;
        head.method = Method::POST;
        let headers = &mut head.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.remove("grpc-accept-encoding");
        headers.remove(CONTENT_LENGTH);
        request.exchange.insert(call);
        Flow::Continue
    }

    fn request_body(&self, request: &mut PluginRequest<'_>) -> BodyWish {
        match request.exchange.get::<Call>() {
            Some(_) => BodyWish::Buffered(self.max_body),
            None => BodyWish::Pass,
        }
    }

    fn on_request_body<'a>(&'a self, request: &'a mut PluginRequest<'_>, body: &'a mut Bytes) -> Flow<'a> {
        let Some(call) = request.exchange.get_mut::<Call>() else { return Flow::Continue };
        if !body.is_empty() && matches!(call.rule.body, BodyRule::None) {
            return refuse(Invalid::new("the method takes no body"));
        }
        let parts = Parts {
            variables: &call.variables,
            query: &call.query,
            content_type: &call.content_type,
            body: std::mem::take(body),
            ignores_unknown_parameters: self.ignores_unknown_parameters,
        };
        match request::message(&call.rule, parts) {
            Ok(message) => *body = grpc::frame(&message.encode_to_vec()),
            Err(invalid) => return refuse(invalid),
        }
        call.translates = true;
        Flow::Continue
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        let Some(call) = response.exchange.get_mut::<Call>() else { return Flow::Continue };
        let head = &mut *response.head;
        call.translates &= response.origin == Origin::Upstream && grpc::is_grpc(&head.headers);
        if !call.translates {
            return Flow::Continue;
        }
        // A response without messages has its status in the head.
        if head.headers.contains_key(GRPC_STATUS) {
            call.translates = false;
            if let Some(status) = Status::read(&head.headers, &self.rules.pool) {
                return Reply::Response(status.response_without_messages(call.rule.method.is_streaming))
                    .into();
            }
        }
        if response.size == Some(0) {
            call.translates = false;
            return Reply::Response(Status::missing().response()).into();
        }
        forget_grpc(&mut head.headers);
        // Plugins that run behind this one, such as compress, go by it.
        head.headers.insert(CONTENT_TYPE, content_type_of(call.rule.method.is_streaming));
        Flow::Continue
    }

    fn response_body(&self, response: &mut PluginResponse<'_>) -> BodyWish {
        match response.exchange.get::<Call>() {
            Some(call) if call.translates => {
                let (rule, rules) = (Arc::clone(&call.rule), Arc::clone(&self.rules));
                BodyWish::Filter(Box::new(Translator::new(rule, rules, self.style.clone())))
            }
            _ => BodyWish::Pass,
        }
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for GrpcJson {
    const NAME: &'static str = "grpc-json";
    const DESCRIPTION: &'static str = "Serves gRPC methods as JSON over HTTP.";
    const ORDER: i32 = 690;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        for (field, size) in [("max_body", config.max_body), ("max_message", config.max_message)] {
            if !(1..=MAX_SIZE).contains(&size.0) {
                errors.push(field, "must be from 1 byte to 64MiB");
            }
        }
        if config.services.as_ref().is_some_and(Vec::is_empty) {
            errors.push("services", "must name a service; leave it out for all");
        }
    }

    fn blobs(config: &Config) -> Vec<(BlobId, String)> {
        vec![(config.descriptor_set, "descriptor_set".to_owned())]
    }

    fn check_blobs(config: &Config, blobs: &Blobs, errors: &mut Errors) {
        if let Err(found) = rules(config, blobs) {
            found.iter().for_each(|error| errors.push(&error.field, &error.message));
        }
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let rules = rules(&config, context.blobs)?;
        let options = SerializeOptions::new()
            .use_proto_field_name(config.proto_names)
            .skip_default_fields(!config.write_defaults)
            .use_enum_numbers(config.enums_as_numbers);
        Ok(Self {
            rules: Arc::new(rules),
            style: Style { options, max_message: config.max_message.0 as usize },
            ignores_unknown_parameters: config.ignore_unknown_parameters,
            max_body: config.max_body.0 as usize,
        })
    }
}

/// The rules of a configuration.
fn rules(config: &Config, blobs: &Blobs) -> Result<Rules, Vec<FieldError>> {
    let Some(set) = blobs.get(config.descriptor_set) else {
        let message = format!("the uploaded file {} is not here", config.descriptor_set);
        return Err(vec![FieldError::new("descriptor_set", message)]);
    };
    Rules::read(&set, config.services.as_deref().unwrap_or_default()).map_err(|errors| {
        errors.into_iter().map(|error| FieldError::new(error.field, error.message)).collect()
    })
}

#[cfg(test)]
mod tests;
