//! The configuration of a plugin.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use signalbox_config::{BlobId, ByteSize, Errors, HumanDuration, Name};

/// The module, its configuration and its limits.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "WebAssembly module", example = serde_json::json!({
    "module": "3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b",
    "config": {"header": "x-plan", "value": "gold"}, "limits": {"memory": "32MiB", "time": "50ms"},
}))]
pub struct Config {
    /// The uploaded module, by the SHA-256 of its bytes.
    #[schemars(title = "Module")]
    pub(crate) module: BlobId,
    /// The module's own configuration. It gets a text as it is, and anything else as JSON.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schemars(title = "Configuration")]
    pub(crate) config: Value,
    /// The upstreams whose services the module may call. None: it calls nothing.
    #[serde(default)]
    #[schemars(title = "Upstreams")]
    pub(crate) upstreams: Vec<String>,
    /// The resources that each instance of the module may use.
    #[serde(default)]
    #[schemars(title = "Limits")]
    pub(crate) limits: Limits,
    /// The largest body that the module gets whole, or that it holds back.
    #[serde(default = "default_max_body")]
    #[schemars(title = "Max body")]
    pub(crate) max_body: ByteSize,
    /// The treatment of requests for which the module fails.
    #[serde(default)]
    #[schemars(title = "On error")]
    pub(crate) on_error: OnError,
}

/// The resources that each instance of the module may use.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Limits")]
pub(crate) struct Limits {
    /// The memory of an instance, from 64KiB to 1GiB. Each worker has one instance.
    #[schemars(title = "Memory")]
    pub(crate) memory: ByteSize,
    /// The time that one call of the module may take, from 5ms to 10s.
    #[schemars(title = "Time")]
    pub(crate) time: HumanDuration,
}

/// The treatment of requests for which the module fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnError {
    /// They are answered 500.
    #[default]
    Deny,
    /// They go on without the module.
    Allow,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: ByteSize(64 << 20), time: HumanDuration(Duration::from_millis(100)) }
    }
}

fn default_max_body() -> ByteSize {
    ByteSize(1 << 20)
}

/// The largest `config`, in bytes.
const MAX_CONFIG: usize = 256 << 10;
/// The most `upstreams`.
const MAX_UPSTREAMS: usize = 64;

impl Config {
    pub(crate) fn check(&self, errors: &mut Errors) {
        if !(64 << 10..=1 << 30).contains(&self.limits.memory.0) {
            errors.push("limits.memory", "must be from 64KiB to 1GiB");
        }
        if !(Duration::from_millis(5)..=Duration::from_secs(10)).contains(&self.limits.time.0) {
            errors.push("limits.time", "must be from 5ms to 10s");
        }
        if !(1..=64 << 20).contains(&self.max_body.0) {
            errors.push("max_body", "must be from 1 byte to 64MiB");
        }
        if !matches!(self.config, Value::Null | Value::String(_) | Value::Object(_)) {
            errors.push("config", "must be a text or an object");
        }
        if self.config_bytes().len() > MAX_CONFIG {
            errors.push("config", format_args!("is larger than {MAX_CONFIG} bytes"));
        }
        if self.upstreams.len() > MAX_UPSTREAMS {
            errors.push("upstreams", format_args!("has more than {MAX_UPSTREAMS} names"));
        }
        for (index, name) in self.upstreams.iter().enumerate() {
            if let Err(message) = name.parse::<Name>() {
                errors.push(format_args!("upstreams[{index}]"), message);
            }
        }
    }

    /// The configuration as the module gets it.
    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        match &self.config {
            Value::Null => Vec::new(),
            Value::String(text) => text.as_bytes().to_vec(),
            other => other.to_string().into_bytes(),
        }
    }
}
