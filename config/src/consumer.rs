use std::collections::{BTreeMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Errors, FieldError};
use crate::key::{Name, ResourceKey};
use crate::kind::Kind;
use crate::names::parse_names;
use crate::secret::{REDACTED, ReferenceSpec, Secret, SecretSpec, hex};
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

/// One credential: an object with one field, which names its type.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CredentialSpec {
    /// An API key.
    KeyAuth(KeyAuthSpec),
}

/// An API key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyAuthSpec {
    /// An identifier of the key, unique within the consumer. It is sent to targets as `X-Credential-Identifier`. Absent: it is derived
    /// from the key's hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The key, or a reference: `{env: NAME}` or `{file: PATH}` on the proxy's host. Of a literal key only the SHA-256 is stored and
    /// sent.
    pub key: SecretSpec,
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
    /// Its API keys.
    pub keys: Box<[KeyCredential]>,
    /// Plugins that run on its requests.
    pub plugins: Box<[Name]>,
}

/// An API key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyCredential {
    /// Sent as `X-Credential-Identifier`.
    pub id: Box<str>,
    /// The key.
    pub key: Secret,
}

/// The most groups or credentials.
const MAX_LISTED: usize = 1000;

impl Specification for ConsumerSpec {
    type Parsed = Consumer;

    const TITLE: &'static str = "Consumer";
    const TITLES: &'static str = "Consumers";
    const ABOUT: &'static str = "A consumer is a known caller with credentials.";
    const AUDIENCE: Audience = Audience::Proxies { wire_tag: 5 };
    const PLANNED: &'static [&'static str] =
        &["credentials.basic_auth", "credentials.jwt", "credentials.hmac_auth"];

    common_fields!(ConsumerSpec);

    fn references(consumer: &Consumer) -> Vec<(ResourceKey, String)> {
        references_of_list(Kind::Plugin, &consumer.plugins, "plugins").collect()
    }

    fn claims(consumer: &Consumer) -> Vec<(String, String)> {
        let keys = consumer.keys.iter().enumerate();
        keys.filter_map(|(index, credential)| match &credential.key {
            Secret::Hash(hash) => Some((
                format!("API key with SHA-256 {}", hex(hash)),
                format!("credentials[{index}].key_auth.key"),
            )),
            Secret::Env(_) | Secret::File(_) => None,
        })
        .collect()
    }

    /// Hashes literal keys, and fills in identifiers.
    fn canonical(mut self) -> Self {
        for CredentialSpec::KeyAuth(spec) in &mut self.credentials {
            spec.id = Some(spec.id());
            spec.key = spec.key.hashed();
        }
        self
    }

    fn parse(&self, context: &Context<'_>) -> Result<Consumer, Vec<FieldError>> {
        let mut errors = Errors::default();
        let header_text = |text: &str| {
            !text.is_empty() && text.len() <= 256 && text.bytes().all(|b| (0x20..0x7f).contains(&b))
        };
        if let Some(custom_id) = self.custom_id.as_deref().filter(|id| !header_text(id)) {
            errors.push(
                "custom_id",
                format_args!("{custom_id:?} cannot be sent in a header: 1 to 256 printable ASCII characters"),
            );
        }
        for (index, group) in self.groups.iter().enumerate() {
            if !header_text(group) || group.contains(',') {
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
        let mut keys: Vec<KeyCredential> = Vec::new();
        let mut ids: HashSet<String> = HashSet::new();
        let mut known: HashSet<Secret> = HashSet::new();
        for (index, CredentialSpec::KeyAuth(spec)) in self.credentials.iter().enumerate() {
            let field = format!("credentials[{index}].key_auth");
            let key = match spec.key.parse() {
                Ok(key) if !known.insert(key.clone()) => {
                    errors.push(format_args!("{field}.key"), "is the key of another of its credentials");
                    None
                }
                Ok(key) => Some(key),
                Err(message) => {
                    errors.push(format_args!("{field}.key"), message);
                    None
                }
            };
            // One that is made from a key is as good as the key.
            if spec.id.is_none() && key.is_none() {
                continue;
            }
            let id = spec.id();
            if !header_text(&id) {
                errors.push(format_args!("{field}.id"), "must be 1 to 256 printable ASCII characters");
            } else if !ids.insert(id.clone()) {
                errors.push(format_args!("{field}.id"), format_args!("{id:?} is used twice"));
            }
            keys.extend(key.map(|key| KeyCredential { id: id.into(), key }));
        }
        let plugins = parse_names(&self.plugins, "plugins", &mut errors);
        errors.finish(Some(Consumer {
            name: context.name.clone(),
            custom_id: self.custom_id.as_deref().map(Into::into),
            groups: self.groups.iter().map(|group| group.as_str().into()).collect(),
            keys: keys.into(),
            plugins,
        }))
    }

    fn redact(&mut self) {
        for CredentialSpec::KeyAuth(spec) in &mut self.credentials {
            if let SecretSpec::Reference(ReferenceSpec::Sha256(_)) | SecretSpec::Literal(_) = spec.key {
                spec.key = SecretSpec::Literal(REDACTED.to_owned());
            }
        }
    }

    /// Puts what is stored in the place of [`REDACTED`] in a new specification: by `id`, or the only one where no
    /// `id` is given. What has no counterpart stays, and is an error when it is parsed. The new one may be wrong in
    /// any way: what is not understood stays too.
    ///
    /// An `id` that was made from a stored key is taken out beside another key, so that one is made from that.
    fn restore(&self, new: &mut Value) {
        let Some(credentials) = new.get_mut("credentials").and_then(Value::as_array_mut) else { return };
        for credential in credentials {
            let Some(spec) = credential.get_mut("key_auth").and_then(Value::as_object_mut) else { continue };
            if spec.get("key").and_then(Value::as_str) != Some(REDACTED) {
                if self.has_derived_id_of_another_key(spec) {
                    spec.remove("id");
                }
                continue;
            }
            let id = spec.get("id").filter(|id| !id.is_null());
            let found = match (id, self.credentials.as_slice()) {
                (Some(id), all) => {
                    all.iter().find(|CredentialSpec::KeyAuth(old)| id.as_str() == Some(&old.id()))
                }
                (None, [only]) => Some(only),
                (None, _) => None,
            };
            if let Some(CredentialSpec::KeyAuth(old)) = found {
                spec.insert("id".to_owned(), old.id().into());
                spec.insert("key".to_owned(), serde_json::to_value(&old.key).unwrap_or(Value::Null));
            }
        }
    }
}

impl ConsumerSpec {
    /// True if the `id` of a new credential was derived from a stored key, but its own key is another one.
    fn has_derived_id_of_another_key(&self, new: &Map<String, Value>) -> bool {
        let Some(id) = new.get("id").and_then(Value::as_str) else { return false };
        let key = new.get("key").and_then(|key| serde_json::from_value::<SecretSpec>(key.clone()).ok());
        let Some(key) = key else { return false };
        let stored = self.credentials.iter().map(|CredentialSpec::KeyAuth(stored)| derived_id(&stored.key));
        stored.into_iter().any(|derived| derived == id) && derived_id(&key) != id
    }
}

impl KeyAuthSpec {
    fn id(&self) -> String {
        self.id.clone().unwrap_or_else(|| derived_id(&self.key))
    }
}

/// The identifier of a key for which none is given.
fn derived_id(key: &SecretSpec) -> String {
    match key.hashed() {
        SecretSpec::Reference(ReferenceSpec::Sha256(digits)) => digits.chars().take(12).collect(),
        SecretSpec::Reference(ReferenceSpec::Env(name)) => format!("env:{name}"),
        SecretSpec::Reference(ReferenceSpec::File(path)) => format!("file:{path}"),
        SecretSpec::Literal(_) => String::new(),
    }
}
