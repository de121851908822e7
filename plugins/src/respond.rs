//! Answers every request with a fixed response.
//!
//! It is the action `respond` of a route as a plugin: on a consumer it switches the consumer off, globally it closes
//! everything for maintenance. Plugins with a higher order run before it, so that authentication, limits and CORS apply.
//!
//! The response to a `HEAD` request has the headers and no body.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError, Respond as Fixed, RespondSpec};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, Reply, hooks};

/// The response.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Fixed response", example = serde_json::json!({
    "status": 503, "body": "{\"title\": \"closed for maintenance\"}",
    "headers": {"content-type": "application/problem+json", "retry-after": "600"},
}))]
pub(crate) struct Config {
    /// The status, from 200 to 599.
    #[serde(default = "default_status")]
    #[schemars(title = "Status", range(min = 200, max = 599))]
    status: u16,
    /// The body, at most 64 KiB.
    #[serde(default)]
    #[schemars(title = "Body")]
    body: String,
    /// The headers. The default of `content-type` is `text/plain; charset=utf-8`.
    #[serde(default)]
    #[schemars(title = "Headers")]
    headers: BTreeMap<String, String>,
}

/// Answers every request with a fixed response.
pub(crate) struct Respond(Fixed);

#[hooks]
impl Plugin for Respond {
    fn on_request<'a>(&'a self, _: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let Self(fixed) = self;
        let mut response = Response::new(Bytes::clone(&fixed.body));
        *response.status_mut() = fixed.status;
        for (name, value) in &fixed.headers {
            response.headers_mut().append(name, value.clone());
        }
        Reply::Response(response).into()
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for Respond {
    const NAME: &'static str = "respond";
    const DESCRIPTION: &'static str = "Answers every request with a fixed response.";
    const ORDER: i32 = 778;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        parse(config, errors);
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let fixed = parse(&config, &mut errors);
        errors.finish(Some(Self(fixed)))
    }
}

fn parse(config: &Config, errors: &mut Errors) -> Fixed {
    let Config { status, body, headers } = config;
    let spec = RespondSpec { status: Some(*status), body: Some(body.clone()), headers: headers.clone() };
    spec.parse("", errors)
}

fn default_status() -> u16 {
    StatusCode::OK.as_u16()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{Client, build, refused};

    #[test]
    fn the_response_is_the_configured_one() {
        for (config, status, body, content_type) in [
            (json!({}), 200, "", None),
            (json!({"body": "ok"}), 200, "ok", Some("text/plain; charset=utf-8")),
            (
                json!({"status": 503, "body": "<p>", "headers": {"Content-Type": "text/html"}}),
                503,
                "<p>",
                Some("text/html"),
            ),
        ] {
            let answer = Client::new("GET", "/").meets(&*build("respond", config)).unwrap();
            assert_eq!((answer.status, answer.detail.as_str()), (status, body));
            assert_eq!(answer.headers.get("content-type").map(|it| it.to_str().unwrap()), content_type);
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        for (config, field) in [
            (json!({"status": 199}), "status: "),
            (json!({"status": 600}), "status: "),
            (json!({"status": 204, "body": "x"}), "body: "),
            (json!({"body": "x".repeat((64 << 10) + 1)}), "body: "),
            (json!({"headers": {"a b": "x"}}), "headers.a b: "),
            (json!({"headers": {"x": "a\r\nb: c"}}), "headers.x: "),
            (json!({"headers": {"content-length": "1"}}), "headers.content-length: "),
        ] {
            let errors = refused("respond", config.clone());
            assert!(errors.starts_with(field), "{config}: {errors}");
        }
    }
}
