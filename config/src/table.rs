//! The table of kinds, by [`Kind`]. It is made from the implementations of [`Specification`] in the kinds' own files.

use std::sync::Arc;

use schemars::{Schema, SchemaGenerator};
use serde_json::Value;

use crate::catalog::PluginCatalog;
use crate::clear_secrets;
use crate::error::{Errors, FieldError};
use crate::key::ResourceKey;
use crate::kind::Kind;
use crate::reading::{ReadSpec, Source, read};
use crate::secret::SECRET_TYPES;
use crate::specification::{Audience, Specification};

/// A specification as far as it could be read, or why its shape does not allow that.
type ReadResult = Result<ReadSpec<Body>, Vec<FieldError>>;

/// One row of the table.
pub(crate) struct Row {
    title: &'static str,
    titles: &'static str,
    about: &'static str,
    audience: Audience,
    for_administrators: bool,
    clear_secrets: &'static [&'static str],
    hash_passwords: fn(&mut Value, Option<&[u8]>),
    schema: fn() -> &'static Schema,
    subschema: fn(&mut SchemaGenerator) -> Schema,
    spec_name: fn() -> String,
    /// Returns true if a value has the shape of a specification.
    pub(crate) fits: fn(&Value) -> bool,
    pub(crate) read: fn(Source<'_>, Errors, &dyn PluginCatalog) -> ReadResult,
    pub(crate) redact: fn(&[u8]) -> Value,
    pub(crate) restore: fn(&[u8], &mut Value),
}

impl Row {
    const fn of<S: Specification>() -> Self
    where
        Body: From<S::Parsed>,
    {
        Self {
            title: S::TITLE,
            titles: S::TITLES,
            about: S::ABOUT,
            audience: S::AUDIENCE,
            for_administrators: S::FOR_ADMINISTRATORS,
            clear_secrets: S::CLEAR_SECRETS,
            hash_passwords: hash_passwords::<S>,
            schema: S::schema,
            subschema: SchemaGenerator::subschema_for::<S>,
            spec_name: || S::schema_name().into_owned(),
            fits: |value| S::deserialize(value).is_ok(),
            read: read::<S, Body>,
            redact: redact::<S>,
            restore: restore::<S>,
        }
    }
}

macro_rules! define_table {
    ($($(#[$doc:meta])* $kind:ident $name:literal $plural:literal $module:ident::$spec:ident $(, cfg($cfg:meta))?;)*) => {
        /// A resource in parsed form. None is in place: else each of 100,000 routes takes as much memory as the largest of the
        /// others. They are shared, so that a proxy can keep a route where its requests look first.
        #[derive(Debug)]
        pub enum Body {
            $(
                $(#[$doc])*
                $(#[cfg($cfg)])?
                $kind(Arc<crate::$module::$kind>),
            )*
        }

        impl Body {
            /// The resources that this one cannot do without, each with the field that names it.
            pub(crate) fn references(&self) -> Vec<(ResourceKey, String)> {
                match self {
                    $($(#[cfg($cfg)])? Self::$kind(parsed) => crate::$module::$spec::references(parsed),)*
                }
            }

            /// Things that only one resource may have, each with the field that claims it.
            pub(crate) fn claims(&self) -> Vec<(String, String)> {
                match self {
                    $($(#[cfg($cfg)])? Self::$kind(parsed) => crate::$module::$spec::claims(parsed),)*
                }
            }
        }

        $(
            $(#[cfg($cfg)])?
            impl From<crate::$module::$kind> for Body {
                fn from(parsed: crate::$module::$kind) -> Self {
                    Self::$kind(Arc::new(parsed))
                }
            }
        )*

        impl Kind {
            pub(crate) fn row(self) -> &'static Row {
                match self {
                    $($(#[cfg($cfg)])? Self::$kind => {
                        static ROW: Row = Row::of::<crate::$module::$spec>();
                        &ROW
                    })*
                }
            }
        }
    };
}

for_each_kind!(define_table);

impl Kind {
    /// One resource of the kind, as the UI and the docs have it: `Route`.
    pub fn title(self) -> &'static str {
        self.row().title
    }

    /// Several of the kind, as the UI and the docs have it: `Routes`.
    pub fn titles(self) -> &'static str {
        self.row().titles
    }

    /// One sentence for people that says what a resource of the kind is.
    pub fn about(self) -> &'static str {
        self.row().about
    }

    /// The audience of the resources of the kind.
    pub fn audience(self) -> Audience {
        self.row().audience
    }

    /// True if proxies get resources of the kind.
    pub fn is_for_proxies(self) -> bool {
        matches!(self.audience(), Audience::Proxies { .. })
    }

    /// True if only administrators may write resources of the kind.
    pub fn is_for_administrators(self) -> bool {
        self.row().for_administrators
    }

    /// The kind whose specifications the field `tag` holds on the wire.
    pub(crate) fn of_wire_tag(tag: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.audience() == Audience::Proxies { wire_tag: tag })
    }

    /// The JSON schema of a specification.
    pub fn schema(self) -> &'static Schema {
        (self.row().schema)()
    }

    /// The schema of a specification within the document that `generator` makes.
    pub fn subschema(self, generator: &mut SchemaGenerator) -> Schema {
        (self.row().subschema)(generator)
    }

    /// The name of the schema of a specification: `RouteSpec`.
    pub fn spec_name(self) -> String {
        (self.row().spec_name)()
    }

    /// True if a specification of this kind may hold a secret, in clear or not.
    pub fn has_secrets(self) -> bool {
        has_secrets(self.schema())
    }

    /// Calls `visit` with every field of `spec` in which a secret may stand as it is, and its path.
    pub fn visit_clear_secrets(self, spec: &mut Value, visit: &mut dyn FnMut(&str, &mut Value)) {
        for pattern in self.row().clear_secrets {
            clear_secrets::visit(spec, pattern, visit);
        }
    }

    /// Replaces the passwords in `spec`, which a person wrote, by their hashes. A password that is that of `stored`, the canonical
    /// JSON of the resource as it is, keeps the stored hash. It takes some 20 ms for each, so it is done before anything waits.
    pub fn hash_passwords(self, spec: &mut Value, stored: Option<&[u8]>) {
        (self.row().hash_passwords)(spec, stored);
    }

    /// True if `spec`, canonical JSON of a resource of this kind, holds a secret in clear. It is then stored encrypted.
    pub fn holds_secret(self, spec: &[u8]) -> bool {
        if self.row().clear_secrets.is_empty() {
            return false;
        }
        let mut spec: Value = serde_json::from_slice(spec).unwrap_or_default();
        let mut holds = false;
        self.visit_clear_secrets(&mut spec, &mut |_, value| holds |= value.is_string());
        holds
    }
}

/// True if a schema has a field whose type is one of secrets.
fn has_secrets(schema: &Schema) -> bool {
    schema
        .get("$defs")
        .is_some_and(|definitions| SECRET_TYPES.iter().any(|name| definitions.get(name).is_some()))
}

fn hash_passwords<S: Specification>(spec: &mut Value, stored: Option<&[u8]>) {
    if has_secrets(S::schema()) {
        let stored = stored.and_then(|stored| serde_json::from_slice::<S>(stored).ok());
        S::hash_passwords_of(spec, stored.as_ref());
    }
}

fn redact<S: Specification>(spec: &[u8]) -> Value {
    if !has_secrets(S::schema()) {
        return serde_json::from_slice(spec).unwrap_or(Value::Null);
    }
    // A resource was parsed from these bytes, so they can be read again; if not, nothing is shown.
    let Ok(mut spec) = serde_json::from_slice::<S>(spec) else { return Value::Null };
    spec.redact();
    serde_json::to_value(spec).unwrap_or(Value::Null)
}

fn restore<S: Specification>(stored: &[u8], new: &mut Value) {
    if has_secrets(S::schema())
        && let Ok(stored) = serde_json::from_slice::<S>(stored)
    {
        stored.restore(new);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_titles_and_wire_tags_are_unique() {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for kind in Kind::ALL {
            for name in [kind.as_str(), kind.plural()] {
                assert!(seen.insert(name.to_owned()), "{name}");
                assert_eq!(name, name.to_lowercase());
            }
            for title in [kind.title(), kind.titles()] {
                assert!(seen.insert(title.to_owned()), "{title}");
            }
            assert_eq!(kind.spec_name(), format!("{}Spec", kind.schema_name()));
            assert!(kind.about().ends_with('.'), "{kind}");
            if let Audience::Proxies { wire_tag } = kind.audience() {
                assert!(seen.insert(wire_tag.to_string()), "{wire_tag}");
                assert_eq!(Kind::of_wire_tag(wire_tag), Some(kind));
            }
        }
    }

    #[test]
    fn fields_with_secrets_are_fields() {
        for kind in Kind::ALL {
            for pattern in kind.row().clear_secrets {
                let field = pattern.split(['.', '[']).next().unwrap();
                assert!(kind.schema().get("properties").is_some_and(|all| all.get(field).is_some()));
                assert!(kind.has_secrets());
            }
        }
        assert!(Kind::Consumer.has_secrets() && Kind::Certificate.has_secrets());
        assert!(!Kind::Route.has_secrets() && !Kind::Listener.has_secrets());
    }
}
