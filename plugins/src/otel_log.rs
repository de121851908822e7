//! Sends a log record for each request to an OpenTelemetry collector, in batches.
//!
//! The records go by OTLP over HTTP, as protobuf, to a target of `upstream`, with that upstream's balancing, health checks, limits,
//! circuit breaker and TLS. No request ever waits for the collector.
//!
//! ## Records
//!
//! A record has the time of the request, the ids of its trace and its span where the request has them, a severity (`ERROR` for a status from 500,
//! `WARN` from 400, else `INFO`), a body such as `GET /users 200`, and the fields of the proxy's access log as attributes:
//!
//! | field | attribute |
//! | --- | --- |
//! | `client` | `client.address` |
//! | `method` | `http.request.method` |
//! | `host` | `server.address` and `server.port` |
//! | `path` | `url.path` |
//! | `protocol` | `network.protocol.version` |
//! | `status` | `http.response.status_code` |
//! | `bytes_in` | `http.request.body.size` |
//! | `bytes_out` | `http.response.body.size` |
//! | `user_agent` | `user_agent.original` |
//! | `flags`, `route`, `upstream` and all others | `signalbox.` and the name of the field |
//!
//! A field without a value has no attribute. `fields` narrows the attributes, and `custom_fields` adds some of your own, with
//! placeholders: `{request.header.x-tenant}`. Records have no credentials: the path comes without its query.
//!
//! `resource` names attributes of the resource; `service.name` is `signalbox` unless it is given.
//!
//! ## Calls
//!
//! A batch is sent when it has `batch.max_entries` or `batch.max_size`, or `batch.interval` after its first record. If there is no
//! answer within `timeout`, or it is `429`, `502`, `503` or `504`, the batch is sent again up to `retries` times, with pauses that grow
//! from 250ms to 30s; a longer `Retry-After` in seconds counts, up to 30s. Every other answer is final, as OTLP wants it. Records that
//! the collector rejects from a batch that it takes (`partial_success`) count as `failed`, and are not sent again.
//!
//! `signalbox_plugin_outcomes_total` counts each record once: `sent`, `dropped` (no room in the queue), or `failed`. The proxy's log
//! tells of losses once a minute at most. When the proxy ends, or the plugin is removed or sends elsewhere, what is in the queue is
//! still sent for up to two seconds, without retries.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError, HumanDuration, ResourceKey};
use signalbox_plugin::otlp::{self, ExportResponse};
use signalbox_plugin::{
    Context, Definition, Flow, LogRecord, OnConditionError, Plugin, PluginResponse, hooks,
};

mod protocol;

use self::protocol::Prefix;
use crate::log_sink::{
    self, BatchSpec, Endpoint, EndpointSpec, Entry, Field, Format, HeaderValues, HttpSink, QueueSpec,
    Selection, SelectionSpec, Taken,
};
use crate::provider::upstream_reference;

/// The collector, and what the records have.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "OpenTelemetry log", example = serde_json::json!({"upstream": "collector"}), example = serde_json::json!({
    "upstream": "collector",
    "headers": {"authorization": {"file": "/run/secrets/collector"}},
    "resource": {"service.name": "shop-gateway", "deployment.environment.name": "production"},
    "custom_fields": {"shop.tenant": "{request.header.x-tenant}"},
}))]
pub(crate) struct Config {
    /// The upstream whose targets are the collector.
    #[schemars(title = "Upstream")]
    upstream: String,
    /// The path of calls.
    #[serde(default = "default_path")]
    #[schemars(title = "Path")]
    path: String,
    /// Headers of calls: a text, or a reference `{"env": "NAME"}` or `{"file": "PATH"}` of the proxy. `host` is the name of the
    /// upstream unless it is given here.
    #[serde(default)]
    #[schemars(title = "Headers")]
    headers: HeaderValues,
    /// Attributes of the resource that the records are about.
    #[serde(default)]
    #[schemars(title = "Resource")]
    resource: BTreeMap<String, String>,
    /// The fields of the access log that a record has as attributes. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Fields")]
    fields: Option<Vec<Field>>,
    /// Further attributes: a name, and a text with placeholders.
    #[serde(default)]
    #[schemars(title = "Custom fields")]
    custom_fields: BTreeMap<String, String>,
    /// The records that are sent together.
    #[serde(default)]
    #[schemars(title = "Batch")]
    batch: BatchSpec,
    /// The records that wait in the proxy. One for which there is no room is dropped.
    #[serde(default)]
    #[schemars(title = "Queue")]
    queue: QueueSpec,
    /// The time to wait for an answer, from 1ms to 1m.
    #[serde(default = "default_timeout")]
    #[schemars(title = "Timeout")]
    timeout: HumanDuration,
    /// The number of times that a batch is sent again.
    #[serde(default = "default_retries")]
    #[schemars(title = "Retries", range(max = 10))]
    retries: u8,
}

const MAX_ATTRIBUTES: usize = 64;
const MAX_ATTRIBUTE: usize = 1024;

/// Sends a log record for each request to a collector, in batches.
pub(crate) struct OtelLog {
    selection: Selection,
    sink: Arc<HttpSink>,
}

#[hooks]
impl Plugin for OtelLog {
    // It also makes the requests without a route those that the plugin sees.
    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        self.selection.note(response);
        Flow::Continue
    }

    fn on_log(&self, record: &LogRecord<'_>) {
        self.sink.push(protocol::encode_record(&self.selection, record), record);
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for OtelLog {
    const NAME: &'static str = "otel-log";
    const DESCRIPTION: &'static str =
        "Sends a log record for each request to an OpenTelemetry collector, in batches.";
    const ORDER: i32 = 10;
    // It sees a response as the client gets it.
    const RESPONSE_ORDER: Option<i32> = Some(i32::MAX);
    const OUTCOMES: &'static [&'static str] = log_sink::OUTCOMES;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.endpoint(errors);
        config.selection(errors);
        if config.resource.len() > MAX_ATTRIBUTES {
            errors.push("resource", format_args!("has more than {MAX_ATTRIBUTES} attributes"));
        }
        for (name, value) in &config.resource {
            if name.is_empty() || name.len() > MAX_ATTRIBUTE || value.len() > MAX_ATTRIBUTE {
                let error =
                    format_args!("must have a name, and neither is longer than {MAX_ATTRIBUTE} bytes");
                errors.push(format_args!("resource.{name}"), error);
            }
        }
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        upstream_reference(&config.upstream, "upstream").into_iter().collect()
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let selection = config.selection(&mut Errors::default());
        let endpoint = config.endpoint(&mut Errors::default()).filter(|_| errors.is_empty());
        let format = protocol::envelope(&config.resource);
        let sink = endpoint.map(|endpoint| HttpSink::of(&endpoint, &format, context));
        errors.finish(sink.map(|sink| Self { selection, sink }))
    }
}

impl Config {
    fn endpoint(&self, errors: &mut Errors) -> Option<Endpoint> {
        let spec = EndpointSpec {
            upstream: &self.upstream,
            path: &self.path,
            headers: &self.headers,
            timeout: self.timeout,
            retries: self.retries,
            batch: self.batch,
            queue: self.queue,
        };
        spec.parse(errors)
    }

    fn selection(&self, errors: &mut Errors) -> Selection {
        SelectionSpec { fields: self.fields.as_deref(), custom_fields: &self.custom_fields }.parse(errors)
    }
}

impl Format for Prefix {
    fn call(&self) -> (Method, HeaderValue) {
        (Method::POST, HeaderValue::from_static("application/x-protobuf"))
    }

    fn encode(&self, batch: &[Entry]) -> Bytes {
        self.request(batch)
    }

    fn judge(&self, answer: &Response<Bytes>) -> Taken {
        match answer.status() {
            status if status.is_success() => {
                let read = <ExportResponse as prost::Message>::decode(answer.body().clone());
                // A body that cannot be read does not say that records were rejected.
                match read.ok().and_then(|response| response.partial_success) {
                    Some(partial) => {
                        Taken::But(u64::try_from(partial.rejected).unwrap_or(0), partial.error_message.into())
                    }
                    None => Taken::But(0, "".into()),
                }
            }
            status if otlp::is_retryable(status) => Taken::NotNow,
            _ => Taken::Never,
        }
    }
}

fn default_path() -> String {
    "/v1/logs".to_owned()
}

fn default_timeout() -> HumanDuration {
    HumanDuration(log_sink::DEFAULT_TIMEOUT)
}

fn default_retries() -> u8 {
    log_sink::DEFAULT_RETRIES
}
