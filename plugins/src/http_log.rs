//! Sends an entry for each request to a service of yours, in batches.
//!
//! When a request has ended, however it did, its entry is put into a queue of the proxy. A task beside requests takes entries out of
//! it and sends them to a target of `upstream`, with that upstream's balancing, health checks, limits, circuit breaker and TLS. No
//! request ever waits for the service.
//!
//! ## Entries
//!
//! An entry is a JSON object with the fields of the proxy's access log: `time`, `request_id`, `trace_id`, `span_id`, `sampled`, `client`, `method`,
//! `host`, `path`, `protocol`, `status`, `flags`, `route`, `upstream`, `upstream_error`, `target`, `attempts`, `duration_ms`,
//! `upstream_ms`, `bytes_in`, `bytes_out`, `consumer`, `plugin`, `shadow`, `user_agent` and `revision`. `fields` narrows them.
//! `custom_fields` adds texts of your own, with placeholders: `{request.header.x-tenant}`, `{response.header.x-cache-status|none}`. A
//! field whose placeholder has no value is left out.
//!
//! Entries have no credentials: the path comes without its query, and no placeholder shows a cookie, the whole query, or a header that
//! authenticates. Control characters are escaped.
//!
//! Requests that are refused before any plugin runs have no entry, for example those whose head is malformed. Attach the plugin
//! globally to have entries of requests that no route takes.
//!
//! ## Calls
//!
//! A batch is sent when it has `batch.max_entries` or `batch.max_size`, or `batch.interval` after its first entry. `format` says
//! whether it is a JSON array (`application/json`) or one object per line (`application/x-ndjson`). An answer of `2xx` means that the
//! batch was taken. If there is no answer within `timeout`, or it is `408`, `429` or `5xx`, the batch is sent again up to `retries`
//! times, with pauses that grow from 250ms to 30s; a longer `Retry-After` in seconds counts, up to 30s. Every other answer is final. A
//! batch whose answer was lost may arrive twice.
//!
//! `headers` adds headers. A value may be a reference to the environment or to a file of the proxy; those of headers that authenticate
//! must be.
//!
//! ## When the service fails
//!
//! Entries for which the queue has no room are dropped. `signalbox_plugin_outcomes_total` counts each entry once: `sent`, `dropped`
//! (no room in the queue), or `failed` (the service refused it, or did not take it in all tries). The proxy's log tells of losses once a
//! minute at most. When the proxy ends, or the plugin is removed or sends elsewhere, what is in the queue is still sent for up to two
//! seconds, without retries.
//!
//! Do not attach the plugin to the route by which the service itself is reached through this proxy: each batch would be an entry of
//! the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError, HumanDuration, ResourceKey};
use signalbox_plugin::{
    Context, Definition, Flow, LogRecord, OnConditionError, Plugin, PluginResponse, hooks,
};

use crate::log_sink::{
    self, BatchSpec, Endpoint, EndpointSpec, Entry, Field, Format, HeaderValues, HttpSink, QueueSpec,
    Selection, SelectionSpec, Taken,
};
use crate::provider::upstream_reference;

/// The service that gets the entries, and what they have.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "HTTP log", example = serde_json::json!({"upstream": "logs", "path": "/ingest"}), example = serde_json::json!({
    "upstream": "logs", "path": "/ingest", "format": "json-lines",
    "headers": {"host": "logs.example", "authorization": {"env": "LOGS_AUTHORIZATION"}},
    "fields": ["time", "request_id", "client", "method", "path", "status", "duration_ms"],
    "custom_fields": {"tenant": "{request.header.x-tenant|none}"},
    "batch": {"max_entries": 1000, "interval": "5s"},
}))]
pub(crate) struct Config {
    /// The upstream whose targets are the service.
    #[schemars(title = "Upstream")]
    upstream: String,
    /// The path of calls.
    #[serde(default = "default_path")]
    #[schemars(title = "Path")]
    path: String,
    /// The method of calls.
    #[serde(default)]
    #[schemars(title = "Method")]
    method: CallMethod,
    /// Headers of calls: a text, or a reference `{"env": "NAME"}` or `{"file": "PATH"}` of the proxy. `host` is the name of the
    /// upstream unless it is given here.
    #[serde(default)]
    #[schemars(title = "Headers")]
    headers: HeaderValues,
    /// The form of a batch.
    #[serde(default)]
    #[schemars(title = "Format")]
    format: BatchFormat,
    /// The fields of the access log that an entry has. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Fields")]
    fields: Option<Vec<Field>>,
    /// Further fields: a name, and a text with placeholders.
    #[serde(default)]
    #[schemars(title = "Custom fields")]
    custom_fields: BTreeMap<String, String>,
    /// The entries that are sent together.
    #[serde(default)]
    #[schemars(title = "Batch")]
    batch: BatchSpec,
    /// The entries that wait in the proxy. One for which there is no room is dropped.
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

/// The method of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
enum CallMethod {
    /// `POST`
    #[default]
    #[serde(rename = "POST")]
    Post,
    /// `PUT`
    #[serde(rename = "PUT")]
    Put,
}

/// The form of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum BatchFormat {
    /// A JSON array of entries.
    #[default]
    JsonArray,
    /// An entry on each line.
    JsonLines,
}

/// The form in which the service takes entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Json {
    method: CallMethod,
    format: BatchFormat,
}

/// Sends an entry for each request to a service, in batches.
pub(crate) struct HttpLog {
    selection: Selection,
    sink: Arc<HttpSink>,
}

#[hooks]
impl Plugin for HttpLog {
    // It also makes the requests without a route those that the plugin sees.
    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        self.selection.note(response);
        Flow::Continue
    }

    fn on_log(&self, record: &LogRecord<'_>) {
        self.sink.push(self.selection.json(record), record);
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for HttpLog {
    const NAME: &'static str = "http-log";
    const DESCRIPTION: &'static str = "Sends an entry for each request to a service of yours, in batches.";
    const ORDER: i32 = 10;
    // It sees a response as the client gets it.
    const RESPONSE_ORDER: Option<i32> = Some(i32::MAX);
    const OUTCOMES: &'static [&'static str] = log_sink::OUTCOMES;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.endpoint(errors);
        config.selection(errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        upstream_reference(&config.upstream, "upstream").into_iter().collect()
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let selection = config.selection(&mut errors);
        let endpoint = config.endpoint(&mut errors);
        let format = Json { method: config.method, format: config.format };
        let sink = endpoint.filter(|_| errors.is_empty()).map(|it| HttpSink::of(&it, &format, context));
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

impl Format for Json {
    fn call(&self) -> (Method, HeaderValue) {
        let method = match self.method {
            CallMethod::Post => Method::POST,
            CallMethod::Put => Method::PUT,
        };
        let content_type = match self.format {
            BatchFormat::JsonArray => "application/json",
            BatchFormat::JsonLines => "application/x-ndjson",
        };
        (method, HeaderValue::from_static(content_type))
    }

    fn encode(&self, batch: &[Entry]) -> Bytes {
        let size: usize = batch.iter().map(|entry| entry.len() + 1).sum();
        let mut body = Vec::with_capacity(size + 1);
        match self.format {
            BatchFormat::JsonLines => {
                for entry in batch {
                    body.extend_from_slice(entry);
                    body.push(b'\n');
                }
            }
            BatchFormat::JsonArray => {
                for (index, entry) in batch.iter().enumerate() {
                    body.push(if index == 0 { b'[' } else { b',' });
                    body.extend_from_slice(entry);
                }
                body.push(b']');
            }
        }
        body.into()
    }

    fn judge(&self, answer: &Response<Bytes>) -> Taken {
        match answer.status() {
            status if status.is_success() => Taken::But(0, "".into()),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Taken::NotNow,
            status if status.is_server_error() => Taken::NotNow,
            _ => Taken::Never,
        }
    }
}

fn default_path() -> String {
    "/".to_owned()
}

fn default_timeout() -> HumanDuration {
    HumanDuration(log_sink::DEFAULT_TIMEOUT)
}

fn default_retries() -> u8 {
    log_sink::DEFAULT_RETRIES
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{build, refused};

    #[test]
    fn a_batch_is_an_array_or_lines() {
        let batch: [Entry; 2] = [b"{\"a\":1}".as_slice().into(), b"{}".as_slice().into()];
        let encoded = |format| Json { method: CallMethod::Post, format }.encode(&batch);
        assert_eq!(encoded(BatchFormat::JsonArray), "[{\"a\":1},{}]");
        assert_eq!(encoded(BatchFormat::JsonLines), "{\"a\":1}\n{}\n");
    }

    #[test]
    fn an_answer_says_if_a_batch_was_taken() {
        let json = Json { method: CallMethod::Put, format: BatchFormat::JsonLines };
        for (status, taken) in [
            (200, Taken::But(0, "".into())),
            (204, Taken::But(0, "".into())),
            (302, Taken::Never),
            (400, Taken::Never),
            (401, Taken::Never),
            (408, Taken::NotNow),
            (413, Taken::Never),
            (429, Taken::NotNow),
            (500, Taken::NotNow),
            (503, Taken::NotNow),
        ] {
            let answer = Response::builder().status(status).body(Bytes::new()).unwrap();
            assert_eq!(json.judge(&answer), taken, "{status}");
        }
    }

    #[test]
    fn bad_configurations_are_refused_with_all_that_is_wrong() {
        let all = refused(
            "http-log",
            json!({"upstream": "a b", "path": "x", "timeout": "2m", "retries": 11, "fields": [],
                   "headers": {"authorization": "secret", "content-length": "1", "x": "a\nb", "y": {"sha256": "0"}},
                   "custom_fields": {"a": "{request.query}"},
                   "batch": {"max_entries": 0, "max_size": "32MiB", "interval": "1ms"},
                   "queue": {"max_entries": 0, "max_size": "1KiB"}}),
        );
        for field in [
            "upstream: ",
            "path: ",
            "timeout: ",
            "retries: ",
            "headers.authorization: ",
            "headers.content-length: ",
            "headers.x: ",
            "headers.y: ",
            "custom_fields.a: ",
            "batch.max_entries: ",
            "batch.max_size: ",
            "batch.interval: ",
            "queue.max_entries: ",
            "queue.max_size: ",
        ] {
            assert!(all.contains(field), "{field} in {all}");
        }
        let small = json!({"upstream": "a", "queue": {"max_entries": 10, "max_size": "64KiB"}});
        let all = refused("http-log", small);
        assert!(
            all.contains("batch.max_entries: must be at most")
                && all.contains("batch.max_size: must be at most")
        );
        build("http-log", json!({"upstream": "a", "fields": ["status"], "custom_fields": {}}));
    }
}
