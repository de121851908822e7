//! The response of a call as JSON: its messages, or the status of its failure.

use std::sync::Arc;

use base64::Engine as _;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode, response};
use percent_encoding::percent_decode;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, SerializeOptions};
use serde_json::{Value, json};
use signalbox_plugin::grpc::{GRPC_MESSAGE, GRPC_STATUS, http_of_status};
use signalbox_plugin::{Abort, BodyFilter, Output, Reply};

use crate::lenient_base64::BASE64;

use super::rules::{HTTP_BODY, Rule, Rules, http_body, is_shallow};

/// The header with the details of a status: a `google.rpc.Status`, in base64.
const DETAILS: &str = "grpc-status-details-bin";

/// The headers that mean something to clients of gRPC only.
const OF_GRPC: [&str; 6] =
    ["grpc-status", "grpc-message", DETAILS, "grpc-encoding", "grpc-accept-encoding", "trailer"];

/// INTERNAL and UNKNOWN
const INTERNAL: u8 = 13;
const UNKNOWN: u8 = 2;

/// The media type of one value, and of one on each line.
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// How messages are written.
#[derive(Debug, Clone)]
pub(super) struct Style {
    pub(super) options: SerializeOptions,
    /// The largest message in bytes.
    pub(super) max_message: usize,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Status {
    code: u8,
    message: String,
    details: Vec<Value>,
}

/// `google.rpc.Status`
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, prost::Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

impl Status {
    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// The status of a response that has none.
    pub(super) fn missing() -> Self {
        Self::new(UNKNOWN, "the service ended without a status")
    }

    /// The status among the fields of a head or of trailers, unless there is none.
    pub(super) fn read(fields: &HeaderMap, pool: &DescriptorPool) -> Option<Self> {
        let code = fields.get(GRPC_STATUS)?;
        let code = code.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(UNKNOWN);
        let message = fields.get(GRPC_MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
        let message = percent_decode(message).decode_utf8_lossy().into_owned();
        let details = fields.get(DETAILS).and_then(|details| BASE64.decode(details).ok());
        // Details that cannot be read are left out; the status counts.
        let details = details.and_then(|details| RpcStatus::decode(&details[..]).ok());
        let details = details.map(|status| status.details).unwrap_or_default();
        let details = details.iter().map(|any| any_json(any, pool)).collect();
        Some(Self { code, message, details })
    }

    fn is_ok(&self) -> bool {
        self.code == 0
    }

    /// The response that says so.
    pub(super) fn response(&self) -> Response<Bytes> {
        let body = json!({"code": self.code, "message": self.message, "details": self.details});
        let mut response = Response::new(Bytes::from(body.to_string()));
        *response.status_mut() =
            StatusCode::from_u16(http_of_status(self.code)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        response
    }

    /// The response to a call that has a status and no message.
    pub(super) fn response_without_messages(&self, is_streaming: bool) -> Response<Bytes> {
        if !self.is_ok() {
            return self.response();
        }
        if !is_streaming {
            return Self::new(INTERNAL, "the service sent no message").response();
        }
        let mut response = Response::new(Bytes::new());
        response.headers_mut().insert(CONTENT_TYPE, JSON_LINES);
        response
    }

    fn abort(&self) -> Abort {
        let reason = format!("the call failed with status {}: {}", self.code, self.message);
        Abort::new(reason, Reply::Response(self.response()))
    }
}

/// A detail as JSON: with its fields if the descriptor set has its type, otherwise with its bytes.
fn any_json(any: &AnyMessage, pool: &DescriptorPool) -> Value {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let known = pool.get_message_by_name(name);
    let message = known.and_then(|kind| DynamicMessage::decode(kind, &any.value[..]).ok());
    let message = message.filter(|message| is_shallow(message, pool));
    let fields = message.and_then(|message| serde_json::to_value(&message).ok());
    match fields {
        Some(Value::Object(mut fields)) => {
            fields.insert("@type".to_owned(), any.type_url.clone().into());
            Value::Object(fields)
        }
        // Types such as Duration are no objects in JSON.
        Some(value) => json!({"@type": any.type_url, "value": value}),
        None => {
            let value = BASE64.encode(&any.value);
            json!({"@type": any.type_url, "value": value})
        }
    }
}

/// The media type of a response, unless its messages say another.
pub(super) fn content_type_of(is_streaming: bool) -> HeaderValue {
    if is_streaming { JSON_LINES } else { JSON }
}

/// Takes out of a head what only clients of gRPC understand.
pub(super) fn forget_grpc(headers: &mut HeaderMap) {
    for name in OF_GRPC {
        headers.remove(name);
    }
    headers.remove(CONTENT_LENGTH);
}

/// Turns the frames of a response into JSON. The head waits for the first message, or for the status.
pub(super) struct Translator {
    rule: Arc<Rule>,
    rules: Arc<Rules>,
    style: Style,
    /// The bytes of a message that has not come as a whole.
    partial: BytesMut,
    /// The number of messages that have come.
    messages: usize,
    /// The only message, translated: whether it is the response is known with the status.
    whole: Option<Bytes>,
    /// The media type of an `HttpBody`.
    content_type: Option<HeaderValue>,
}

impl Translator {
    pub(super) fn new(rule: Arc<Rule>, rules: Arc<Rules>, style: Style) -> Self {
        Self { rule, rules, style, partial: BytesMut::new(), messages: 0, whole: None, content_type: None }
    }

    /// The next message, if all of it has come.
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(([flag, length @ ..], rest)) = self.partial.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if *flag != 0 {
            return Err(Status::new(
                INTERNAL,
                "the service sent a message in an encoding that was not asked for",
            ));
        }
        if length > self.style.max_message {
            let text = format!("the service sent a message of more than {} bytes", self.style.max_message);
            return Err(Status::new(INTERNAL, text));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.partial.advance(5);
        Ok(Some(self.partial.split_to(length).freeze()))
    }

    /// A message as the client gets it.
    fn translate(&mut self, message: &Bytes) -> Result<Bytes, Status> {
        let output = &self.rule.method.output;
        let unreadable =
            || Status::new(INTERNAL, "the service sent a message that does not fit the descriptor set");
        let message = DynamicMessage::decode(output.clone(), message.clone()).map_err(|_| unreadable())?;
        if self.rule.method.may_answer_any && !is_shallow(&message, &self.rules.pool) {
            return Err(Status::new(INTERNAL, "the service sent a message that is nested too deeply"));
        }
        let response_body = self.rule.response_body.as_ref();
        let body = response_body.map(|field| message.get_field(field).into_owned());
        let raw = match &body {
            None if output.full_name() == HTTP_BODY => Some(http_body(&message)),
            Some(prost_reflect::Value::Message(inner)) if inner.descriptor().full_name() == HTTP_BODY => {
                Some(http_body(inner))
            }
            _ => None,
        };
        if let Some((content_type, data)) = raw {
            self.content_type.get_or_insert(
                HeaderValue::try_from(content_type)
                    .ok()
                    .filter(|it| !it.is_empty())
                    .unwrap_or(HeaderValue::from_static("application/octet-stream")),
            );
            return Ok(data);
        }
        let mut text = Vec::new();
        let written = match response_body {
            None => {
                let mut serializer = serde_json::Serializer::new(&mut text);
                message.serialize_with_options(&mut serializer, &self.style.options)
            }
            Some(field) => {
                let mut only = DynamicMessage::new(output.clone());
                if message.has_field(field) {
                    only.set_field(field, message.get_field(field).into_owned());
                }
                // A field that is not set has a value, too.
                let options = match message.has_field(field) {
                    true => self.style.options.clone(),
                    false => self.style.options.clone().skip_default_fields(false),
                };
                let all = only.serialize_with_options(serde_json::value::Serializer, &options);
                let names = [field.json_name(), field.name()];
                all.and_then(|all| {
                    let value = names.iter().find_map(|name| all.get(*name)).unwrap_or(&Value::Null);
                    serde_json::to_writer(&mut text, value)
                })
            }
        };
        written.map_err(|error| {
            Status::new(INTERNAL, format!("the message cannot be written as JSON: {error}"))
        })?;
        if self.rule.method.is_streaming {
            text.push(b'\n');
        }
        Ok(text.into())
    }
}

impl BodyFilter for Translator {
    fn holds_head(&self) -> bool {
        true
    }

    fn finish_head(&mut self, head: &mut response::Parts) {
        if let Some(content_type) = self.content_type.take() {
            head.headers.insert(CONTENT_TYPE, content_type);
        }
    }

    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        if self.partial.len() + data.len() > self.style.max_message + 5 + data.len() {
            let status = Status::new(INTERNAL, "the service sent a message that is too large");
            return Err(status.abort());
        }
        self.partial.put(data);
        while let Some(message) = self.next().map_err(|status| status.abort())? {
            self.messages += 1;
            if self.messages > 1 && !self.rule.method.is_streaming {
                return Err(Status::new(INTERNAL, "the service sent more than one message").abort());
            }
            let translated = self.translate(&message).map_err(|status| status.abort())?;
            match self.rule.method.is_streaming {
                true => out.push(translated),
                false => self.whole = Some(translated),
            }
        }
        Ok(())
    }

    fn on_end(&mut self, trailers: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
        let status = Status::read(trailers, &self.rules.pool);
        trailers.clear();
        let status = status.unwrap_or_else(Status::missing);
        if !status.is_ok() {
            return Err(status.abort());
        }
        if !self.partial.is_empty() {
            return Err(Status::new(INTERNAL, "the service ended within a message").abort());
        }
        if self.messages == 0 && !self.rule.method.is_streaming {
            return Err(Status::new(INTERNAL, "the service sent no message").abort());
        }
        out.push(self.whole.take().unwrap_or_default());
        Ok(())
    }
}
