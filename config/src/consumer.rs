use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::credential::{self, Credential, CredentialSpec, is_header_text, parse_credentials};
use crate::error::{Errors, FieldError};
use crate::key::{Name, ResourceKey};
use crate::kind::Kind;
use crate::names::parse_names;
use crate::specification::{Audience, Context, Specification, common_fields, references_of_list};

/// A consumer as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsumerSpec {
    /// The name of the consumer, unique among consumers.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The fleets that get the consumer. Absent: all fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// The name by which targets know the consumer. It is sent to them as `X-Consumer-Custom-ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    /// The groups of the consumer. They are sent to targets as `X-Consumer-Groups`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The credentials by which the consumer authenticates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialSpec>,
    /// The names of plugins that run on the consumer's requests. They replace the route's plugins of the same type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
}

/// A consumer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Consumer {
    /// Its name; sent as `X-Consumer-Username`.
    pub name: Name,
    /// Sent as `X-Consumer-Custom-ID`.
    pub custom_id: Option<Box<str>>,
    /// Sent as `X-Consumer-Groups`.
    pub groups: Box<[Box<str>]>,
    /// Its credentials, as written.
    pub credentials: Box<[Credential]>,
    /// Plugins that run on its requests.
    pub plugins: Box<[Name]>,
}

/// The most groups or credentials.
const MAX_LISTED: usize = 1000;

impl Specification for ConsumerSpec {
    type Parsed = Consumer;

    const TITLE: &'static str = "Consumer";
    const TITLES: &'static str = "Consumers";
    const ABOUT: &'static str = "A consumer is a known caller with credentials.";
    const AUDIENCE: Audience = Audience::Proxies { wire_tag: 5 };
    const CLEAR_SECRETS: &'static [&'static str] =
        &["credentials[].jwt.secret", "credentials[].hmac_auth.secret"];

    common_fields!(ConsumerSpec);

    fn references(consumer: &Consumer) -> Vec<(ResourceKey, String)> {
        references_of_list(Kind::Plugin, &consumer.plugins, "plugins").collect()
    }

    fn claims(consumer: &Consumer) -> Vec<(String, String)> {
        let credentials = consumer.credentials.iter().enumerate();
        credentials
            .filter_map(|(index, credential)| credential.claim(&format!("credentials[{index}]")))
            .collect()
    }

    fn hash_passwords(&mut self) {
        for credential in &mut self.credentials {
            credential.hash_password();
        }
    }

    /// Hashes literal keys, and fills in identifiers of keys.
    fn canonical(mut self) -> Self {
        for credential in &mut self.credentials {
            credential.make_canonical();
        }
        self
    }

    fn parse(&self, context: &Context<'_>) -> Result<Consumer, Vec<FieldError>> {
        let mut errors = Errors::default();
        if let Some(custom_id) = self.custom_id.as_deref().filter(|id| !is_header_text(id)) {
            errors.push(
                "custom_id",
                format_args!("{custom_id:?} cannot be sent in a header: 1 to 256 printable ASCII characters"),
            );
        }
        for (index, group) in self.groups.iter().enumerate() {
            if !is_group(group) {
                errors.push(
                    format_args!("groups[{index}]"),
                    "must be 1 to 256 printable ASCII characters without a comma",
                );
            }
        }
        for (field, len) in [("groups", self.groups.len()), ("credentials", self.credentials.len())] {
            if len > MAX_LISTED {
                errors.push(field, format_args!("has {len} entries; at most {MAX_LISTED}"));
            }
        }
        let credentials = parse_credentials(&self.credentials, &mut errors);
        let plugins = parse_names(&self.plugins, "plugins", &mut errors);
        errors.finish(Some(Consumer {
            name: context.name.clone(),
            custom_id: self.custom_id.as_deref().map(Into::into),
            groups: self.groups.iter().map(|group| group.as_str().into()).collect(),
            credentials,
            plugins,
        }))
    }

    fn redact(&mut self) {
        for credential in &mut self.credentials {
            credential.redact();
        }
    }

    fn restore(&self, new: &mut Value) {
        for credential in credentials_of(new) {
            credential::restore(&self.credentials, credential);
        }
    }

    fn hash_passwords_of(new: &mut Value, stored: Option<&Self>) {
        let stored = stored.map_or(&[][..], |stored| &stored.credentials);
        for credential in credentials_of(new) {
            credential::hash_password_of(stored, credential);
        }
    }
}

/// The credentials of a specification that may be wrong in any way.
fn credentials_of(spec: &mut Value) -> impl Iterator<Item = &mut Value> {
    spec.get_mut("credentials").and_then(Value::as_array_mut).into_iter().flatten()
}

/// True if a consumer can have the group `text`. Groups are sent in one header, with commas between them.
pub fn is_group(text: &str) -> bool {
    is_header_text(text) && !text.contains(',')
}
