//! Refuses requests that are too large.
//!
//! A request that announces a body larger than `max_body` is answered `413` before the upstream gets anything of it, and without the
//! `100 (Continue)` that its client may wait for. A body of unknown length (chunked, or over HTTP/2 without `Content-Length`) is counted
//! while it passes. When it becomes too large, the client gets `413` if nothing of a response was sent, and the request to the upstream
//! is broken off, so the upstream does not take it for complete. With `require_content_length` such a request is answered `411` at once.
//!
//! A body that is counted is not sent again by retries once a part of it has passed, and it is not mirrored.
//!
//! `max_headers` bounds the names and values of the request's headers together (`431`), beyond what the listener's limits do.
//!
//! The listener's `limits.body_size` holds as well: the smaller of both limits counts.

use std::fmt::Display;

use bytes::Bytes;
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{ByteSize, Errors, FieldError};
use signalbox_plugin::{
    Abort, BodyFilter, BodyWish, Context, Definition, Flow, Output, Plugin, PluginRequest, Reply, hooks,
};

/// The largest request.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Request size limit", example = serde_json::json!({"max_body": "10MiB"}),
    example = serde_json::json!({"max_body": "64KiB", "require_content_length": true, "max_headers": "8KiB"}))]
pub(crate) struct Config {
    /// The largest body. 0: no body at all.
    #[schemars(title = "Max body")]
    max_body: ByteSize,
    /// Refuses bodies whose length is not announced.
    #[serde(default)]
    #[schemars(title = "Require Content-Length")]
    require_content_length: bool,
    /// The largest sum of the names and values of all headers. Absent: only the listener's limits hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Max headers")]
    max_headers: Option<ByteSize>,
}

/// Refuses requests that are too large.
pub(crate) struct RequestSizeLimit {
    max_body: u64,
    requires_length: bool,
    max_headers: Option<u64>,
}

#[hooks]
impl Plugin for RequestSizeLimit {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        if let Some(max) = self.max_headers {
            let fields = request.head.headers.iter();
            let size: usize = fields.map(|(name, value)| name.as_str().len() + value.len()).sum();
            if size as u64 > max {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                return Reply::problem(status, larger("headers", ByteSize(max))).into();
            }
        }
        match request.body_size {
            Some(size) if size > self.max_body => too_large(self.max_body).into(),
            None if self.requires_length => {
                Reply::problem(StatusCode::LENGTH_REQUIRED, "the request must have a Content-Length").into()
            }
            _ => Flow::Continue,
        }
    }

    fn request_body(&self, request: &mut PluginRequest<'_>) -> BodyWish {
        match request.body_size {
            // The proxy sees to it that a body has the length that was announced.
            Some(_) => BodyWish::Pass,
            None => BodyWish::Filter(Box::new(Counter { max: self.max_body, seen: 0 })),
        }
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for RequestSizeLimit {
    const NAME: &'static str = "request-size-limit";
    const DESCRIPTION: &'static str = "Refuses requests that are too large.";
    const ORDER: i32 = 1951;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        if config.max_headers.is_some_and(|max| max.0 == 0) {
            errors.push("max_headers", "must be at least 1 byte");
        }
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        errors.finish(Some(Self {
            max_body: config.max_body.0,
            requires_length: config.require_content_length,
            max_headers: config.max_headers.map(|max| max.0),
        }))
    }
}

/// Counts a body while it passes.
struct Counter {
    max: u64,
    seen: u64,
}

impl BodyFilter for Counter {
    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        self.seen = self.seen.saturating_add(data.len() as u64);
        if self.seen > self.max {
            return Err(Abort::new("the body is larger than max_body", too_large(self.max)));
        }
        out.push(data);
        Ok(())
    }
}

fn too_large(max: u64) -> Reply {
    Reply::problem(StatusCode::PAYLOAD_TOO_LARGE, larger("body", ByteSize(max)))
}

fn larger(part: &str, max: impl Display) -> String {
    format!("the request's {part} must not be larger than {max}")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;
    use signalbox_plugin::BodyWish;
    use signalbox_plugin::testing::pass;

    use crate::testing::{Client, build, refused};

    #[test]
    fn what_is_announced_decides_at_once() {
        for (config, size, status) in [
            (json!({"max_body": 10}), Some(0), 200),
            (json!({"max_body": 10}), Some(10), 200),
            (json!({"max_body": 10}), Some(11), 413),
            (json!({"max_body": 10}), Some(u64::MAX), 413),
            (json!({"max_body": 10}), None, 200),
            (json!({"max_body": 0}), Some(0), 200),
            (json!({"max_body": 0}), Some(1), 413),
            (json!({"max_body": 10, "require_content_length": true}), None, 411),
            (json!({"max_body": 10, "require_content_length": true}), Some(10), 200),
            (json!({"max_body": 10, "require_content_length": true}), Some(0), 200),
        ] {
            let mut client = Client::new("POST", "/");
            client.body_size = size;
            let found = client.meets(&*build("request-size-limit", config.clone()));
            assert_eq!(found.map_or(200, |answer| answer.status), status, "{config} {size:?}");
        }
    }

    #[test]
    fn names_and_values_of_headers_are_counted() {
        let plugin = build("request-size-limit", json!({"max_body": 1, "max_headers": 10}));
        for (headers, status) in [
            (&[][..], 200),
            (&[("abc", "1234567")], 200),
            (&[("abc", "12345678")], 431),
            (&[("abc", "12"), ("abc", "12")], 200),
            (&[("abc", "12"), ("abc", "123")], 431),
        ] {
            let mut client = Client::new("GET", "/");
            for (name, value) in headers {
                client = client.header(name, value);
            }
            assert_eq!(client.meets(&*plugin).map_or(200, |answer| answer.status), status, "{headers:?}");
        }
    }

    #[test]
    fn a_body_of_unknown_length_is_counted_while_it_passes() {
        let plugin = build("request-size-limit", json!({"max_body": "5B"}));
        let passed = |parts: &[&'static str]| {
            let mut client = Client::new("POST", "/");
            client.body_size = None;
            let BodyWish::Filter(mut filter) = plugin.request_body(&mut client.request()) else {
                panic!("no filter")
            };
            pass(&mut *filter, parts.iter().map(|part| Bytes::from_static(part.as_bytes())))
        };
        assert_eq!(passed(&["abc", "de"]).unwrap().concat(), b"abcde");
        assert_eq!(passed(&["abc", "", "def"]).unwrap_err().reply.status(), 413);
        assert_eq!(passed(&["abcdef"]).unwrap_err().reply.status(), 413);
        let mut known = Client::new("POST", "/");
        known.body_size = Some(3);
        assert!(matches!(plugin.request_body(&mut known.request()), BodyWish::Pass));
    }

    #[test]
    fn bad_configurations_are_refused() {
        for (config, field) in [
            (json!({}), "max_body: "),
            (json!({"max_body": "-1"}), "max_body: "),
            (json!({"max_body": 1, "max_headers": 0}), "max_headers: "),
        ] {
            let errors = refused("request-size-limit", config.clone());
            assert!(errors.starts_with(field), "{config}: {errors}");
        }
    }
}
