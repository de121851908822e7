//! The conditions of plugins, evaluated for a request that a person describes.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use http::{HeaderMap, header};
use schemars::JsonSchema;
use serde::Serialize;
use signalbox_config::router::RequestParts;
use signalbox_expr::{Condition, ConsumerFacts, Facts, Fault, NotKnown};
use signalbox_plugin::OnConditionError;

/// The condition of a plugin, and its value for the request.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct PluginCondition {
    /// The condition, as the plugin has it.
    when: String,
    /// The value for the request.
    outcome: Outcome,
    /// The reason why the condition is neither met nor unmet. Null: it is one of them.
    reason: Option<String>,
}

/// The value of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// The request meets the condition.
    Met,
    /// The request does not meet the condition.
    Unmet,
    /// The condition is neither true nor false for the request.
    Error,
    /// It depends on what only a proxy knows: the client's address, the consumer, the time.
    Unknown,
}

impl PluginCondition {
    /// Evaluates `condition` of a plugin whose type has this treatment of errors. Returns also the reason why the plugin does not
    /// run, if it certainly does not.
    pub(super) fn new(
        condition: &Condition,
        on_error: OnConditionError,
        facts: &DescribedRequest<'_>,
    ) -> (Self, Option<String>) {
        let (outcome, reason) = match condition.evaluate(facts) {
            Ok(true) => (Outcome::Met, None),
            Ok(false) => (Outcome::Unmet, None),
            Err(fault @ Fault::Unknown(_)) => (Outcome::Unknown, Some(fault.to_string())),
            Err(fault) => (Outcome::Error, Some(fault.to_string())),
        };
        let skipped = match (outcome, &reason, on_error) {
            (Outcome::Unmet, ..) => Some("the request does not meet its condition".to_owned()),
            (Outcome::Error, Some(reason), OnConditionError::Skip) => {
                Some(format!("its condition cannot be evaluated: {reason}"))
            }
            _ => None,
        };
        (Self { when: condition.text().to_owned(), outcome, reason }, skipped)
    }
}

/// A request as far as it is described.
pub(super) struct DescribedRequest<'r> {
    pub(super) parts: RequestParts<'r>,
    pub(super) https: bool,
    /// The route that takes it.
    pub(super) route: Option<&'r str>,
}

impl Facts for DescribedRequest<'_> {
    fn method(&self) -> &str {
        self.parts.method.as_str()
    }

    fn path(&self) -> &str {
        self.parts.path
    }

    fn query(&self) -> Option<&str> {
        self.parts.query
    }

    fn host(&self) -> Cow<'_, str> {
        self.parts.host.into()
    }

    fn scheme(&self) -> &str {
        if self.https { "https" } else { "http" }
    }

    fn headers(&self) -> &HeaderMap {
        self.parts.headers
    }

    fn body_size(&self) -> Result<Option<u64>, NotKnown> {
        let length = self.parts.headers.get(header::CONTENT_LENGTH).ok_or(NotKnown)?;
        Ok(length.to_str().ok().and_then(|length| length.parse().ok()))
    }

    fn client(&self) -> Result<IpAddr, NotKnown> {
        Err(NotKnown)
    }

    fn consumer(&self) -> Result<Option<ConsumerFacts<'_>>, NotKnown> {
        Err(NotKnown)
    }

    fn route(&self) -> Option<&str> {
        self.route
    }

    fn listener(&self) -> &str {
        self.parts.listener
    }

    fn time(&self) -> Result<SystemTime, NotKnown> {
        Err(NotKnown)
    }
}
