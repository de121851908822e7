//! Tells the upstream which gateway a request came through, and its number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, PluginResponse, hooks};

/// The header that the upstream gets.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Stamp", example = serde_json::json!({"header": "x-gateway"}))]
pub struct Config {
    /// The header that carries the number.
    #[serde(default = "default_header")]
    #[schemars(title = "Header")]
    header: String,
}

/// Stamps requests and their responses.
pub struct Stamp {
    header: HeaderName,
    count: Arc<AtomicU64>,
}

/// The number of this request, for the hooks that come later.
struct Number(u64);

#[hooks]
impl Plugin for Stamp {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        request.head.headers.insert(self.header.clone(), HeaderValue::from(number));
        request.exchange.insert(Number(number));
        request.count("stamped");
        Flow::Continue
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        if let Some(Number(number)) = response.exchange.get() {
            response.head.headers.insert(self.header.clone(), HeaderValue::from(*number));
        }
        Flow::Continue
    }
}

impl Definition for Stamp {
    const NAME: &'static str = "stamp";
    const DESCRIPTION: &'static str = "Numbers requests for the upstream and the client.";
    const ORDER: i32 = 800;
    const OUTCOMES: &'static [&'static str] = &["stamped"];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        if config.header.parse::<HeaderName>().is_err() {
            errors.push("header", "is not the name of a header");
        }
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let header = config.header.parse().map_err(|_| vec![FieldError::new("header", "is not a header")])?;
        // It counts on over all revisions, as long as there is a plugin of this name.
        Ok(Self { header, count: context.state(&(), AtomicU64::default) })
    }
}

fn default_header() -> String {
    "x-stamp".to_owned()
}

#[cfg(test)]
mod tests {
    use http::Response;
    use serde_json::json;
    use signalbox_plugin::testing::{Client, build, check_type, refused};
    use signalbox_plugin::{Origin, PluginType};

    use super::*;

    #[test]
    fn requests_and_responses_have_the_same_number() {
        let plugin = build::<Stamp>(json!({"header": "x-gateway"}));
        for number in ["0", "1"] {
            let mut client = Client::new("GET", "/").counting::<Stamp>();
            assert!(client.meets(&*plugin).is_none());
            assert_eq!(client.head.headers["x-gateway"], number);
            assert_eq!(client.counted("stamped"), 1);
            let response = client.receives(&*plugin, Origin::Upstream, Response::new("hello".into()));
            assert_eq!(response.headers()["x-gateway"], number);
        }
    }

    #[test]
    fn the_type_is_complete() {
        check_type(&PluginType::of::<Stamp>());
        assert_eq!(
            refused(&PluginType::of::<Stamp>(), json!({"header": "a b"})),
            "header: is not the name of a header"
        );
    }
}
