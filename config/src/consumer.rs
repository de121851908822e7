use std::collections::{BTreeMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Errors, FieldError};
use crate::key::Name;
use crate::route::parse_names;
use crate::secret::{REDACTED, ReferenceSpec, Secret, SecretSpec};

/// A consumer as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsumerSpec {
    /// Unique among consumers.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// For people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Which fleets get it; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// What the backends know it by; sent as `X-Consumer-Custom-ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    /// Sent as `X-Consumer-Groups`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What it proves itself with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialSpec>,
    /// Plugins that run on its requests, in the place of the route's of the same type.
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
    /// Tells a consumer's keys apart, and is sent as `X-Credential-Identifier`; absent: made from the key's hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The key, or `{env: NAME}` or `{file: PATH}` on the proxy's host. A literal is stored and sent as its SHA-256
    /// only.
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

impl ConsumerSpec {
    /// The specification as it is stored and sent: literal keys hashed, identifiers filled in.
    pub(crate) fn canonical(mut self) -> Self {
        for CredentialSpec::KeyAuth(spec) in &mut self.credentials {
            spec.id = Some(spec.id());
            spec.key = spec.key.hashed();
        }
        self
    }

    pub(crate) fn parse(&self, name: &Name) -> Result<Consumer, Vec<FieldError>> {
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
            name: name.clone(),
            custom_id: self.custom_id.as_deref().map(Into::into),
            groups: self.groups.iter().map(|group| group.as_str().into()).collect(),
            keys: keys.into(),
            plugins,
        }))
    }

    /// The specification without what is secret.
    pub(crate) fn redact(&mut self) {
        for CredentialSpec::KeyAuth(spec) in &mut self.credentials {
            if let SecretSpec::Reference(ReferenceSpec::Sha256(_)) | SecretSpec::Literal(_) = spec.key {
                spec.key = SecretSpec::Literal(REDACTED.to_owned());
            }
        }
    }

    /// Puts what is stored in the place of [`REDACTED`] in a new specification: by `id`, or the only one where no
    /// `id` is given. What has no counterpart stays, and is an error when it is parsed. The new one may be wrong in
    /// any way: what is not understood stays too.
    pub(crate) fn restore(&self, new: &mut Value) {
        let Some(credentials) = new.get_mut("credentials").and_then(Value::as_array_mut) else { return };
        for credential in credentials {
            let Some(spec) = credential.get_mut("key_auth").and_then(Value::as_object_mut) else { continue };
            if spec.get("key").and_then(Value::as_str) != Some(REDACTED) {
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

impl KeyAuthSpec {
    fn id(&self) -> String {
        match (&self.id, self.key.hashed()) {
            (Some(id), _) => id.clone(),
            (None, SecretSpec::Reference(ReferenceSpec::Sha256(digits))) => digits.chars().take(12).collect(),
            (None, SecretSpec::Reference(ReferenceSpec::Env(name))) => format!("env:{name}"),
            (None, SecretSpec::Reference(ReferenceSpec::File(path))) => format!("file:{path}"),
            (None, SecretSpec::Literal(_)) => String::new(),
        }
    }
}
