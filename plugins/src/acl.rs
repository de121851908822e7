//! Lets consumers in by their groups.
//!
//! With `allow`, a consumer passes that is in at least one of the groups; with `deny`, one that is in none of them. A
//! configuration has exactly one of the two. Everyone else is answered `403`.
//!
//! A request without a consumer is answered `401`, and so is one of the anonymous consumer that the groups do not let
//! pass: with a credential it might. An authentication plugin has to run before this one, which it does with the default
//! orders.
//!
//! The groups are those of the consumer in the configuration. What a client sends as `X-Consumer-Groups` is removed before
//! any plugin runs. The groups of a consumer that is changed count from the next request on, on open connections too.

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Context, Definition, Flow, KnownConsumer, Plugin, PluginRequest, Reply, hooks};

/// The groups of consumers that pass, or those that do not.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Access by group", example = serde_json::json!({"allow": ["admins", "staff"]}),
    example = serde_json::json!({"deny": ["suspended"]}))]
pub(crate) struct Config {
    /// The groups of which a consumer must have at least one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(title = "Allowed groups")]
    allow: Vec<String>,
    /// The groups of which a consumer must have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(title = "Denied groups")]
    deny: Vec<String>,
}

/// Lets consumers in by their groups.
pub(crate) struct Acl {
    groups: Box<[Box<str>]>,
    /// True if the groups are those that pass.
    allows: bool,
}

#[hooks]
impl Plugin for Acl {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let identity = request.exchange.identity.as_ref();
        match identity {
            Some(identity) if self.admits(&identity.consumer) => Flow::Continue,
            Some(identity) if identity.credential.is_some() => {
                Reply::problem(StatusCode::FORBIDDEN, "the consumer's groups do not allow this").into()
            }
            Some(_) | None => Reply::problem(StatusCode::UNAUTHORIZED, "authentication is required").into(),
        }
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for Acl {
    const NAME: &'static str = "acl";
    const DESCRIPTION: &'static str = "Lets consumers in by their groups.";
    const ORDER: i32 = 950;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        match (config.allow.is_empty(), config.deny.is_empty()) {
            (true, true) => errors.push("", "needs one of allow and deny, with at least one group"),
            (false, false) => errors.push("deny", "cannot stand beside allow"),
            (true, false) | (false, true) => {}
        }
        for (field, groups) in [("allow", &config.allow), ("deny", &config.deny)] {
            for (index, group) in groups.iter().enumerate() {
                if !signalbox_config::is_group(group) {
                    errors.push(
                        format_args!("{field}[{index}]"),
                        "no consumer can have this group: 1 to 256 printable ASCII characters without a comma",
                    );
                }
            }
        }
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let allows = !config.allow.is_empty();
        let groups = if allows { config.allow } else { config.deny };
        errors.finish(Some(Self { groups: groups.into_iter().map(Into::into).collect(), allows }))
    }
}

impl Acl {
    fn admits(&self, consumer: &KnownConsumer) -> bool {
        self.groups.iter().any(|group| consumer.is_in_group(group)) == self.allows
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{Client, build, consumers, refused};

    #[test]
    fn groups_decide_who_passes() {
        let known = consumers(&[("alice", &["key"])]);
        for (config, with_credential, as_anonymous) in [
            (json!({"allow": ["staff"]}), 200, 200),
            (json!({"allow": ["admins", "staff"]}), 200, 200),
            (json!({"allow": ["admins"]}), 403, 401),
            // Neither a part of a name nor another case of it is the group.
            (json!({"allow": ["sta", "staffs", "Staff"]}), 403, 401),
            (json!({"deny": ["admins"]}), 200, 200),
            (json!({"deny": ["admins", "staff"]}), 403, 401),
        ] {
            let plugin = build("acl", config.clone());
            let status = |mut client: Client| client.meets(&*plugin).map_or(200, |answer| answer.status);
            let mut alice = Client::new("GET", "/").knowing(&known);
            alice.exchange.identity = known.by_key(&signalbox_config::sha256(b"key")).cloned();
            assert_eq!(status(alice), with_credential, "{config}");
            let mut anonymous = Client::new("GET", "/").knowing(&known);
            anonymous.exchange.identity = known.anonymous("alice");
            assert_eq!(status(anonymous), as_anonymous, "{config}");
            let nobody = Client::new("GET", "/").header("x-consumer-groups", "staff,admins");
            assert_eq!(status(nobody), 401, "{config}");
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        for config in [json!({}), json!({"allow": []}), json!({"allow": [], "deny": []})] {
            assert_eq!(refused("acl", config), "needs one of allow and deny, with at least one group");
        }
        assert!(refused("acl", json!({"allow": ["a"], "deny": ["b"]})).starts_with("deny: "));
        assert!(refused("acl", json!({"deny": ["a", "b,c"]})).starts_with("deny[1]: "));
        assert!(refused("acl", json!({"allow": [""]})).starts_with("allow[0]: "));
    }
}
