use std::fmt;
use std::sync::{Arc, LazyLock};

use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize as _, Deserializer, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;
use signalbox_config::{
    BlobId, Errors, FieldError, Name, PluginCatalog, ResourceKey, check_placeholders, check_structure,
};

use crate::blobs::Blobs;
use crate::context::Context;
use crate::hooks::{Hooked, Hooks};
use crate::plugin::Plugin;

/// A plugin type: what its file says of it.
pub trait Definition: Plugin + Hooked + Sized {
    /// The name of the type, `rate-limit`.
    const NAME: &'static str;
    /// One or two sentences for people who choose.
    const DESCRIPTION: &'static str;
    /// Its default place in the chain, the highest first.
    const ORDER: i32;
    /// Its place on the way back, where that is not the reverse of the place in the chain: the lowest first, so the highest is the
    /// last to see a response.
    const RESPONSE_ORDER: Option<i32> = None;
    /// The outcomes that it counts, beside [`Outcomes::ANSWERED`](crate::Outcomes::ANSWERED) and
    /// [`Outcomes::PANICKED`](crate::Outcomes::PANICKED), which the proxy counts.
    const OUTCOMES: &'static [&'static str] = &[];
    /// True if it answers every CORS preflight request that it sees. A route with such a plugin takes the preflights of the
    /// requests that it takes.
    const ANSWERS_PREFLIGHTS: bool = false;
    /// The treatment of a request for which the condition of a plugin is neither true nor false. A type that refuses requests
    /// keeps the default, so that nobody gets past it by a request that breaks the condition.
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Run;
    /// True if it can run in shadow. Its `on_request` then gets a copy of the request, and what it answers is counted and logged
    /// but not sent. No other hook is called, so a type whose other hooks matter cannot.
    const CAN_SHADOW: bool = false;

    /// Its configuration: serde reads it, `schemars` describes it, with `deny_unknown_fields`.
    type Config: DeserializeOwned + JsonSchema;

    /// Adds the errors of a configuration beyond its shape to `errors`.
    fn check(config: &Self::Config, errors: &mut Errors);

    /// Adds the errors for which a configuration is refused only when a person writes it: earlier versions accepted it, and stored ones
    /// keep working. What [`Self::check`] finds is no concern of it.
    fn check_written(_config: &Self::Config, _errors: &mut Errors) {}

    /// The resources that a configuration refers to, each with the field's path within the configuration.
    fn references(_config: &Self::Config) -> Vec<(ResourceKey, String)> {
        Vec::new()
    }

    /// The uploaded files that a configuration uses, each with the field's path within the configuration.
    fn blobs(_config: &Self::Config) -> Vec<(BlobId, String)> {
        Vec::new()
    }

    /// Checks the files of a configuration that was checked: the control plane calls it before it stores the configuration. The
    /// errors have paths within the configuration.
    fn check_blobs(_config: &Self::Config, _blobs: &Blobs, _errors: &mut Errors) {}

    /// Builds it once for each revision that changes it, from a configuration that was checked.
    fn build(config: Self::Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>>;
}

/// The treatment of a request for which the condition of a plugin is neither true nor false.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConditionError {
    /// The plugin runs.
    Run,
    /// The plugin does not run.
    Skip,
}

/// A plugin type, as a registry has it.
pub struct PluginType {
    /// The name of the type.
    pub name: &'static str,
    /// One or two sentences for people who choose.
    pub description: &'static str,
    /// Its default place in the chain, the highest first.
    pub default_order: i32,
    /// Its place on the way back, where that is not the reverse of the place in the chain.
    pub response_order: Option<i32>,
    /// The outcomes that it counts.
    pub outcomes: &'static [&'static str],
    /// The hooks it has.
    pub hooks: Hooks,
    /// True if it answers every CORS preflight request that it sees.
    pub answers_preflights: bool,
    /// The treatment of a request for which the condition of a plugin is neither true nor false.
    pub on_condition_error: OnConditionError,
    /// True if it can run in shadow.
    pub can_shadow: bool,
    schema: LazyLock<Schema>,
    check: fn(&Self, &Value) -> Vec<FieldError>,
    check_written: fn(&Value) -> Vec<FieldError>,
    references: fn(&Value) -> Vec<(ResourceKey, String)>,
    blobs: fn(&Value) -> Vec<(BlobId, String)>,
    check_blobs: fn(&Value, &Blobs) -> Vec<FieldError>,
    build: Build,
}

type Build = fn(&[u8], &Context<'_>) -> Result<Arc<dyn Plugin>, Vec<FieldError>>;

impl PluginType {
    /// The entry of `D`.
    pub const fn of<D: Definition>() -> Self {
        Self {
            name: D::NAME,
            description: D::DESCRIPTION,
            default_order: D::ORDER,
            response_order: D::RESPONSE_ORDER,
            outcomes: D::OUTCOMES,
            hooks: D::HOOKS,
            answers_preflights: D::ANSWERS_PREFLIGHTS,
            on_condition_error: D::ON_CONDITION_ERROR,
            can_shadow: D::CAN_SHADOW,
            schema: LazyLock::new(schema_of::<D::Config>),
            check: |this, config| check::<D>(this.schema(), config),
            check_written: |config| {
                let Ok(config) = D::Config::deserialize(config) else { return Vec::new() };
                let mut errors = Errors::default();
                D::check_written(&config, &mut errors);
                errors.finish(Some(())).err().unwrap_or_default()
            },
            references: |config| {
                D::Config::deserialize(config).map(|config| D::references(&config)).unwrap_or_default()
            },
            blobs: |config| {
                D::Config::deserialize(config).map(|config| D::blobs(&config)).unwrap_or_default()
            },
            check_blobs: |config, blobs| {
                let Ok(config) = D::Config::deserialize(config) else { return Vec::new() };
                let mut errors = Errors::default();
                D::check_blobs(&config, blobs, &mut errors);
                errors.finish(Some(())).err().unwrap_or_default()
            },
            build: |config, context| {
                let config: D::Config = serde_json::from_slice(config)
                    .map_err(|error| vec![FieldError::new("", error.to_string())])?;
                Ok(Arc::new(D::build(config, context)?))
            },
        }
    }

    /// The JSON schema of its configuration, for checks and for forms.
    ///
    /// Every field has a title and a description, and one that may be left out its default, where there is one. JSON
    /// objects have no order, so `x-order` lists the fields as the type has them: what matters most comes first.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The errors of a configuration, with paths of fields within it.
    pub fn check(&self, config: &Value) -> Vec<FieldError> {
        (self.check)(self, config)
    }

    /// The uploaded files that a configuration uses, each with the field's path within the configuration.
    pub fn blobs(&self, config: &Value) -> Vec<(BlobId, String)> {
        (self.blobs)(config)
    }

    /// The errors of the files that a configuration uses. All of them are among `blobs`.
    pub fn check_blobs(&self, config: &Value, blobs: &Blobs) -> Vec<FieldError> {
        (self.check_blobs)(config, blobs)
    }

    /// Builds a plugin from canonical JSON that [`signalbox_config::PluginCatalog::check`] accepted.
    pub fn build(&self, config: &[u8], context: &Context<'_>) -> Result<Arc<dyn Plugin>, Vec<FieldError>> {
        (self.build)(config, context)
    }
}

/// The plugin types that a program knows. A clone is cheap.
///
/// Both planes are given one when they start, and a proxy must know every type that its control plane knows.
#[derive(Clone, Default)]
pub struct Registry(Arc<[PluginType]>);

/// Why types cannot be in one registry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegistryError {
    /// Names of types are like those of resources.
    #[error("{0:?} is not the name of a plugin type")]
    Name(&'static str),
    /// Two types have one name.
    #[error("there are two plugin types {0:?}")]
    Twice(&'static str),
    /// There are more than [`Registry::MAX_TYPES`].
    #[error("there are {0} plugin types; at most {max} are possible", max = Registry::MAX_TYPES)]
    TooMany(usize),
}

impl Registry {
    /// The greatest number of types.
    pub const MAX_TYPES: usize = 128;

    /// A registry of these types, in any order.
    pub fn new(types: impl IntoIterator<Item = PluginType>) -> Result<Self, RegistryError> {
        let mut types: Vec<PluginType> = types.into_iter().collect();
        types.sort_by_key(|plugin_type| plugin_type.name);
        if types.len() > Self::MAX_TYPES {
            return Err(RegistryError::TooMany(types.len()));
        }
        if let Some(unnamed) = types.iter().find(|plugin_type| plugin_type.name.parse::<Name>().is_err()) {
            return Err(RegistryError::Name(unnamed.name));
        }
        if let Some(twice) = types.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(RegistryError::Twice(twice[0].name));
        }
        Ok(Self(types.into()))
    }

    /// All types, by name.
    pub fn types(&self) -> &[PluginType] {
        &self.0
    }

    /// The type of this name.
    pub fn find(&self, name: &str) -> Option<&PluginType> {
        self.0.get(self.position(name)?)
    }

    /// The place of the type of this name among [`Registry::types`].
    pub fn position(&self, name: &str) -> Option<usize> {
        self.0.binary_search_by_key(&name, |plugin_type| plugin_type.name).ok()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|plugin_type| plugin_type.name)).finish()
    }
}

/// The registry as the configuration crate sees it.
impl PluginCatalog for Registry {
    fn default_order(&self, type_name: &str) -> Option<i32> {
        self.find(type_name).map(|plugin_type| plugin_type.default_order)
    }

    fn can_shadow(&self, type_name: &str) -> bool {
        self.find(type_name).is_some_and(|plugin_type| plugin_type.can_shadow)
    }

    fn type_names(&self) -> Vec<&'static str> {
        self.0.iter().map(|plugin_type| plugin_type.name).collect()
    }

    fn check(&self, type_name: &str, config: &Value) -> Vec<FieldError> {
        match self.find(type_name) {
            Some(plugin_type) => plugin_type.check(config),
            None => vec![FieldError::new("", format!("unknown plugin type {type_name:?}"))],
        }
    }

    fn check_written(&self, type_name: &str, config: &Value) -> Vec<FieldError> {
        self.find(type_name).map(|plugin_type| (plugin_type.check_written)(config)).unwrap_or_default()
    }

    fn blobs(&self, type_name: &str, config: &Value) -> Vec<(BlobId, String)> {
        self.find(type_name).map(|plugin_type| plugin_type.blobs(config)).unwrap_or_default()
    }

    fn references(&self, type_name: &str, config: &Value) -> Vec<(ResourceKey, String)> {
        self.find(type_name).map(|plugin_type| (plugin_type.references)(config)).unwrap_or_default()
    }
}

fn schema_of<C: DeserializeOwned + JsonSchema>() -> Schema {
    let mut schema = schemars::schema_for!(C);
    schema.insert("x-order".to_owned(), FieldNames::of::<C>().into());
    unwrap_descriptions(&mut schema);
    schema
}

/// Doc comments are wrapped for the source; people who read a form want lines of their own width.
fn unwrap_descriptions(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace("\n\n", "\r").replace('\n', " ").replace('\r', "\n\n");
    }
    transform_subschemas(&mut unwrap_descriptions, schema);
}

/// Asks a type that serde reads for its fields, in the order in which it declares them.
struct FieldNames(&'static [&'static str]);

impl FieldNames {
    fn of<T: DeserializeOwned>() -> Vec<&'static str> {
        let mut names = Self(&[]);
        // It must fail: there is nothing to read.
        drop(T::deserialize(&mut names));
        names.0.to_vec()
    }
}

impl<'de> Deserializer<'de> for &mut FieldNames {
    type Error = serde::de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        self.0 = fields;
        Err(serde::de::Error::custom("only the names were wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("is not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn check<D: Definition>(schema: &Schema, config: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut value = config.clone();
    errors.extend_misshapen(check_placeholders(schema, config));
    errors.extend_misshapen(check_structure(schema, &mut value, &[]));
    // serde stops at the first value that it cannot read ("window: abc"); what is left is read without that field.
    loop {
        let error = match serde_path_to_error::deserialize::<_, D::Config>(value.clone()) {
            Ok(config) => {
                D::check(&config, &mut errors);
                break;
            }
            Err(error) => error,
        };
        let field = error.path().iter().find_map(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            _ => None,
        });
        if let Some(field) = &field {
            let path = error.path().to_string();
            // serde complains of what is missing at the whole.
            errors.push(if path == "." { field } else { &path }, error.inner());
        } else if errors.is_empty() {
            errors.push("", error.inner());
        }
        if field.and_then(|field| value.as_object_mut()?.remove(&field)).is_none() {
            break;
        }
    }
    errors.finish(Some(())).err().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks;

    struct Nothing;

    #[hooks]
    impl Plugin for Nothing {}

    #[derive(serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Config {}

    impl Definition for Nothing {
        const NAME: &'static str = "nothing";
        const DESCRIPTION: &'static str = "Does nothing.";
        const ORDER: i32 = 0;
        type Config = Config;

        fn check(_: &Config, _: &mut Errors) {}

        fn build(_: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
            Ok(Self)
        }
    }

    fn named(name: &'static str) -> PluginType {
        PluginType { name, ..PluginType::of::<Nothing>() }
    }

    #[test]
    fn types_are_found_by_name_whatever_their_order() {
        let registry = Registry::new([named("b"), named("c"), named("a")]).unwrap();
        assert_eq!(registry.type_names(), ["a", "b", "c"]);
        assert_eq!(registry.position("b"), Some(1));
        assert!(registry.find("d").is_none());
        assert_eq!(format!("{registry:?}"), r#"["a", "b", "c"]"#);
    }

    #[test]
    fn types_that_cannot_be_told_apart_are_refused() {
        let error = |types: Vec<PluginType>| Registry::new(types).unwrap_err();
        assert_eq!(error(vec![named("a"), named("a")]), RegistryError::Twice("a"));
        assert_eq!(error(vec![named("A b")]), RegistryError::Name("A b"));
        assert_eq!(error((0..129).map(|_| named("a")).collect()), RegistryError::TooMany(129));
    }
}
