//! The description of a kind of resource. Each kind gives its own, by an implementation of [`Specification`] in its file.
//! `table.rs` makes them available by [`Kind`](crate::Kind).

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::catalog::PluginCatalog;
use crate::error::{Errors, FieldError};
use crate::key::{Name, ResourceKey};
use crate::names::parse_names;
use crate::narrowing::Narrowing;

/// A specification as people write it: loose, with a JSON schema. Its type is the one description of a kind's fields.
pub(crate) trait Specification: Serialize + DeserializeOwned + JsonSchema + Sized + 'static {
    /// The domain type, which cannot be wrong.
    type Parsed;

    /// One resource of the kind, as the UI and the docs have it: `Route`.
    const TITLE: &'static str;

    /// Several of the kind: `Routes`.
    const TITLES: &'static str;

    /// One sentence for people that says what a resource of the kind is.
    const ABOUT: &'static str;

    /// The audience of the resources of the kind.
    const AUDIENCE: Audience;

    /// True if only administrators may write resources of the kind.
    const FOR_ADMINISTRATORS: bool = false;

    /// The fields of a specification in which a secret may stand as it is: `private_key`, or `credentials[].jwt.secret` for a field of
    /// the entries of a list. A specification with one is encrypted in the store, and an export hides it.
    const CLEAR_SECRETS: &'static [&'static str] = &[];

    /// Fields of the design that this version refuses by name, so that nobody takes them for working.
    const PLANNED: &'static [&'static str] = &[];

    /// The fields that all specifications have.
    fn common(&self) -> Common<'_>;

    /// The JSON schema, derived once.
    fn schema() -> &'static Schema;

    /// Reads what a person or another part of Signalbox wrote. All errors come back at once.
    fn parse(&self, context: &Context<'_>) -> Result<Self::Parsed, Vec<FieldError>>;

    /// The fields of `written` that narrow something down, so that a person must not write them empty.
    fn narrowing(_written: &Value) -> &'static [Narrowing] {
        &[]
    }

    /// Checks what only a person must not write. A specification that is stored already is served without this check, for an
    /// earlier version may have accepted it.
    fn check_written(&self, _catalog: &dyn PluginCatalog) -> Vec<FieldError> {
        Vec::new()
    }

    /// Replaces passwords by their hashes, which takes a moment for each, before the specification is parsed. What a person wrote
    /// has passwords only where [`Specification::hash_passwords_of`] was not called.
    fn hash_passwords(&mut self) {}

    /// The same for a specification that was not read yet, and may be wrong in any way. A password that is the `stored` one keeps
    /// the stored hash, so that to write it again changes nothing.
    fn hash_passwords_of(_new: &mut Value, _stored: Option<&Self>) {}

    /// The specification as it is stored and sent.
    fn canonical(self) -> Self {
        self
    }

    /// The resources that one cannot do without, each with the field that names it.
    fn references(_parsed: &Self::Parsed) -> Vec<(ResourceKey, String)> {
        Vec::new()
    }

    /// Things that only one resource may have, each with the field that claims it: an address, an API key, a server name.
    fn claims(_parsed: &Self::Parsed) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Puts [`REDACTED`](crate::REDACTED) in the place of secrets.
    fn redact(&mut self) {}

    /// Puts the stored secrets in the place of [`REDACTED`](crate::REDACTED) in a new specification. The new one may be wrong in
    /// any way: a placeholder without a counterpart stays, and is an error when it is parsed.
    fn restore(&self, _new: &mut Value) {}
}

/// The audience of the resources of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Proxies get them over the wire.
    Proxies {
        /// The number of the field of `signalbox.config.v1.Resource` that holds a specification of the kind. It identifies the
        /// kind on the wire for good.
        wire_tag: u32,
    },
    /// Only control planes know them. No proxy gets one, and what proxies get may not refer to one.
    ControlPlane,
}

/// The context in which a specification is parsed.
pub(crate) struct Context<'a> {
    /// The name of the resource.
    pub(crate) name: &'a Name,
    pub(crate) catalog: &'a dyn PluginCatalog,
}

/// The fields that all specifications have.
pub(crate) struct Common<'a> {
    pub(crate) name: &'a str,
    pub(crate) description: Option<&'a str>,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) fleets: Option<&'a [String]>,
}

impl Common<'_> {
    pub(crate) fn check(&self, errors: &mut Errors) {
        if self.description.is_some_and(|text| text.len() > 4096) {
            errors.push("description", "must have at most 4096 bytes");
        }
        if self.labels.len() > 64 {
            errors.push("labels", format_args!("has {} entries; at most 64", self.labels.len()));
        }
        for (key, value) in self.labels {
            if key.is_empty() || key.len() > 128 || value.len() > 256 || key.contains(['=', ',']) {
                errors.push(
                    format_args!("labels.{key}"),
                    "a key has 1 to 128 bytes without '=' and ',', a value up to 256",
                );
            }
        }
        if let Some(fleets) = self.fleets {
            if fleets.is_empty() {
                errors.push("fleets", "must not be empty; leave it out for all fleets");
            }
            parse_names(fleets, "fleets", errors);
        }
    }
}

/// The names in `list`, resources of `kind`, as references from the entries of the list `field`.
pub(crate) fn references_of_list(
    kind: crate::kind::Kind,
    list: &[Name],
    field: &str,
) -> impl Iterator<Item = (ResourceKey, String)> {
    let entries = list.iter().enumerate();
    entries.map(move |(index, name)| (ResourceKey::new(kind, name.clone()), format!("{field}[{index}]")))
}

/// Writes the parts of a [`Specification`] that are the same for every kind whose resources have fleets.
macro_rules! common_fields {
    ($spec:ty) => {
        fn common(&self) -> $crate::specification::Common<'_> {
            $crate::specification::Common {
                name: &self.name,
                description: self.description.as_deref(),
                labels: &self.labels,
                fleets: self.fleets.as_deref(),
            }
        }

        fn schema() -> &'static schemars::Schema {
            static SCHEMA: std::sync::LazyLock<schemars::Schema> =
                std::sync::LazyLock::new(|| schemars::schema_for!($spec));
            &SCHEMA
        }
    };
}
pub(crate) use common_fields;
