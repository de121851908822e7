use std::sync::{Arc, LazyLock};

use schemars::{JsonSchema, Schema};
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;
use signalbox_config::{Errors, FieldError, PluginCatalog, ResourceKey, check_structure};

use crate::context::Context;
use crate::plugin::{Phase, Plugin};

/// A plugin type: what its file says of it.
pub trait Definition: Plugin + Sized {
    /// The name of the type, `rate-limit`.
    const NAME: &'static str;
    /// One or two sentences for people who choose.
    const DESCRIPTION: &'static str;
    /// Its default place in the chain, the highest first.
    const ORDER: i32;
    /// The phases it can take part in.
    const PHASES: &'static [Phase];

    /// Its configuration: serde reads it, `schemars` describes it, with `deny_unknown_fields`.
    type Config: DeserializeOwned + JsonSchema;

    /// What is wrong with a configuration beyond its shape.
    fn check(config: &Self::Config, errors: &mut Errors);

    /// What a configuration refers to, with the field's path within it.
    fn references(_config: &Self::Config) -> Vec<(ResourceKey, String)> {
        Vec::new()
    }

    /// Builds it once for each revision that changes it, from a configuration that was checked.
    fn build(config: Self::Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>>;
}

/// A plugin type in the registry.
pub struct PluginType {
    /// The name of the type.
    pub name: &'static str,
    /// One or two sentences for people who choose.
    pub description: &'static str,
    /// Its default place in the chain, the highest first.
    pub default_order: i32,
    /// The phases it can take part in.
    pub phases: &'static [Phase],
    schema: LazyLock<Schema>,
    check: fn(&Self, &Value) -> Vec<FieldError>,
    references: fn(&Value) -> Vec<(ResourceKey, String)>,
    build: fn(&[u8], &Context<'_>) -> Result<Arc<dyn Plugin>, Vec<FieldError>>,
}

impl PluginType {
    /// The registry's entry of `D`.
    pub const fn of<D: Definition>() -> Self {
        Self {
            name: D::NAME,
            description: D::DESCRIPTION,
            default_order: D::ORDER,
            phases: D::PHASES,
            schema: LazyLock::new(|| schemars::schema_for!(D::Config)),
            check: |this, config| check::<D>(this.schema(), config),
            references: |config| {
                D::Config::deserialize(config).map(|config| D::references(&config)).unwrap_or_default()
            },
            build: |config, context| {
                let config: D::Config = serde_json::from_slice(config)
                    .map_err(|error| vec![FieldError::new("", error.to_string())])?;
                Ok(Arc::new(D::build(config, context)?))
            },
        }
    }

    /// The type of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        crate::TYPES.iter().find(|plugin_type| plugin_type.name == name)
    }

    /// The JSON schema of its configuration.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Builds a plugin from canonical JSON that [`PluginCatalog::check`] accepted.
    pub fn build(&self, config: &[u8], context: &Context<'_>) -> Result<Arc<dyn Plugin>, Vec<FieldError>> {
        (self.build)(config, context)
    }
}

fn check<D: Definition>(schema: &Schema, config: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut value = config.clone();
    errors.extend_below("", check_structure(schema, &mut value, D::NAME));
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

/// The registry as the configuration crate sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Catalog;

impl PluginCatalog for Catalog {
    fn default_order(&self, type_name: &str) -> Option<i32> {
        PluginType::find(type_name).map(|plugin_type| plugin_type.default_order)
    }

    fn type_names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = crate::TYPES.iter().map(|plugin_type| plugin_type.name).collect();
        names.sort_unstable();
        names
    }

    fn check(&self, type_name: &str, config: &Value) -> Vec<FieldError> {
        match PluginType::find(type_name) {
            Some(plugin_type) => (plugin_type.check)(plugin_type, config),
            None => vec![FieldError::new("", format!("unknown plugin type {type_name:?}"))],
        }
    }

    fn references(&self, type_name: &str, config: &Value) -> Vec<(ResourceKey, String)> {
        PluginType::find(type_name).map(|plugin_type| (plugin_type.references)(config)).unwrap_or_default()
    }
}

/// Declares the modules of the plugins and the table of them: `file::Type`.
macro_rules! plugins {
    ($($module:ident :: $type:ident),* $(,)?) => {
        $(mod $module;)*

        /// Every plugin type there is, by name.
        pub static TYPES: [PluginType; [$(stringify!($type)),*].len()] =
            [$(PluginType::of::<$module::$type>()),*];
    };
}
pub(crate) use plugins;
