//! The parts of the configuration that logs share.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::header::{AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{ByteSize, Errors, HumanDuration, Name, ReferenceSpec, SecretSpec};

use crate::headers::header_name;
use crate::provider::check_upstream;
use crate::reference::{ReferenceError, resolve};

/// The entries that are sent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Batch")]
pub(crate) struct BatchSpec {
    /// The most entries of a batch.
    #[serde(default = "default_batch_entries")]
    #[schemars(title = "Max entries", range(min = 1, max = 10_000))]
    pub(crate) max_entries: u32,
    /// The largest size of a batch, from 1KiB to 16MiB. A single entry that is larger is sent by itself.
    #[serde(default = "default_batch_size")]
    #[schemars(title = "Max size")]
    pub(crate) max_size: ByteSize,
    /// The longest time for which an entry waits for others, from 10ms to 1m.
    #[serde(default = "default_interval")]
    #[schemars(title = "Interval")]
    pub(crate) interval: HumanDuration,
}

/// The entries that wait for the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Queue")]
pub(crate) struct QueueSpec {
    /// The most entries that wait in a proxy.
    #[serde(default = "default_queue_entries")]
    #[schemars(title = "Max entries", range(min = 1, max = 1_000_000))]
    pub(crate) max_entries: u32,
    /// Their largest size, from 64KiB to 1GiB.
    #[serde(default = "default_queue_size")]
    #[schemars(title = "Max size")]
    pub(crate) max_size: ByteSize,
}

/// The headers of calls, by name.
pub(crate) type HeaderValues = BTreeMap<String, SecretSpec>;

/// The service that takes the entries, as a configuration has it.
pub(crate) struct EndpointSpec<'c> {
    pub(crate) upstream: &'c str,
    pub(crate) path: &'c str,
    pub(crate) headers: &'c HeaderValues,
    pub(crate) timeout: HumanDuration,
    pub(crate) retries: u8,
    pub(crate) batch: BatchSpec,
    pub(crate) queue: QueueSpec,
}

/// The service that takes the entries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    pub(super) upstream: Name,
    pub(super) uri: Uri,
    headers: Box<[(HeaderName, SecretSpec)]>,
    pub(super) timeout: Duration,
    pub(super) retries: u8,
    pub(super) batch: BatchSpec,
    pub(super) queue: QueueSpec,
}

const BATCH_ENTRIES: RangeInclusive<u32> = 1..=10_000;
const BATCH_SIZE: RangeInclusive<u64> = 1 << 10..=16 << 20;
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const QUEUE_ENTRIES: RangeInclusive<u32> = 1..=1_000_000;
const QUEUE_SIZE: RangeInclusive<u64> = 64 << 10..=1 << 30;
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
const MAX_RETRIES: u8 = 10;
const MAX_HEADERS: usize = 32;

impl QueueSpec {
    /// Adds the errors of the field `queue`.
    pub(crate) fn check(&self, errors: &mut Errors) {
        if !QUEUE_ENTRIES.contains(&self.max_entries) {
            errors.push("queue.max_entries", "must be from 1 to 1000000");
        }
        if !QUEUE_SIZE.contains(&self.max_size.0) {
            errors.push("queue.max_size", "must be from 64KiB to 1GiB");
        }
    }
}

impl EndpointSpec<'_> {
    /// Reads it, with the errors of the plugin's fields.
    pub(crate) fn parse(&self, errors: &mut Errors) -> Option<Endpoint> {
        let Self { batch, queue, .. } = self;
        if !BATCH_ENTRIES.contains(&batch.max_entries) {
            errors.push("batch.max_entries", "must be from 1 to 10000");
        } else if batch.max_entries > queue.max_entries {
            errors.push("batch.max_entries", "must be at most queue.max_entries");
        }
        if !BATCH_SIZE.contains(&batch.max_size.0) {
            errors.push("batch.max_size", "must be from 1KiB to 16MiB");
        } else if batch.max_size > queue.max_size {
            errors.push("batch.max_size", "must be at most queue.max_size");
        }
        if !INTERVAL.contains(&batch.interval.0) {
            errors.push("batch.interval", "must be from 10ms to 1m");
        }
        queue.check(errors);
        if !TIMEOUT.contains(&self.timeout.0) {
            errors.push("timeout", "must be from 1ms to 1m");
        }
        if self.retries > MAX_RETRIES {
            errors.push("retries", "must be at most 10");
        }
        let upstream = check_upstream(self.upstream, errors);
        let uri = format!("http://{}{}", self.upstream, self.path).parse().ok();
        let uri = uri.filter(|_| self.path.starts_with('/'));
        if uri.is_none() {
            errors.push("path", "must be a path that begins with /");
        }
        let headers = self.headers(errors);
        Some(Endpoint {
            upstream: upstream?,
            uri: uri?,
            headers,
            timeout: self.timeout.0,
            retries: self.retries,
            batch: *batch,
            queue: *queue,
        })
    }

    fn headers(&self, errors: &mut Errors) -> Box<[(HeaderName, SecretSpec)]> {
        if self.headers.len() > MAX_HEADERS {
            errors.push("headers", format_args!("has more than {MAX_HEADERS} headers"));
        }
        let mut headers = Vec::new();
        for (text, value) in self.headers {
            let field = format!("headers.{text}");
            let name = match header_name(text) {
                Ok(name) => name,
                Err(_) if text.eq_ignore_ascii_case(HOST.as_str()) => HOST,
                Err(error) => {
                    errors.push(field, error);
                    continue;
                }
            };
            match value {
                SecretSpec::Literal(_) if [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(&name) => {
                    errors.push(
                        &field,
                        "must be a reference: {\"env\": \"NAME\"} or {\"file\": \"PATH\"} of the proxy",
                    );
                }
                SecretSpec::Literal(text) if HeaderValue::from_str(text).is_err() => {
                    errors.push(&field, "cannot be the value of a header");
                }
                SecretSpec::Reference(ReferenceSpec::Sha256(_)) => {
                    errors.push(&field, "must be a text or a reference; a hash cannot be sent");
                }
                SecretSpec::Literal(_) | SecretSpec::Reference(_) => {}
            }
            headers.push((name, value.clone()));
        }
        headers.into()
    }
}

impl Endpoint {
    /// The headers of a call. References are read anew each time.
    pub(super) fn headers(&self) -> Result<HeaderMap, HeaderError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let text = match value {
                SecretSpec::Literal(text) => text.clone(),
                reference @ SecretSpec::Reference(_) => resolve(Some(reference))?.unwrap_or_default(),
            };
            let mut value = HeaderValue::try_from(text).map_err(|_| HeaderError::Value(name.clone()))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

/// Why a call has no headers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("the secret for {0} cannot be the value of a header")]
    Value(HeaderName),
}

impl Default for BatchSpec {
    fn default() -> Self {
        Self {
            max_entries: default_batch_entries(),
            max_size: default_batch_size(),
            interval: default_interval(),
        }
    }
}

impl Default for QueueSpec {
    fn default() -> Self {
        Self { max_entries: default_queue_entries(), max_size: default_queue_size() }
    }
}

fn default_batch_entries() -> u32 {
    500
}

fn default_batch_size() -> ByteSize {
    ByteSize(1 << 20)
}

fn default_interval() -> HumanDuration {
    HumanDuration(Duration::from_secs(1))
}

fn default_queue_entries() -> u32 {
    20_000
}

fn default_queue_size() -> ByteSize {
    ByteSize(16 << 20)
}
