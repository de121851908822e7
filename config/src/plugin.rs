use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Errors, FieldError, join};
use crate::key::ResourceKey;

/// A plugin as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginSpec {
    /// Unique among plugins.
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
    /// One of `GET /api/v1/plugin-types`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// A plugin that is not enabled is skipped wherever it is attached.
    #[serde(default = "enabled", skip_serializing_if = "Clone::clone")]
    pub enabled: bool,
    /// Whether it runs on every route.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub global: bool,
    /// Its place in the chain, the highest first; absent: the type's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<i32>,
    /// As the type's schema has it.
    #[serde(default = "empty_object")]
    pub config: Value,
}

/// A plugin whose configuration was accepted by its type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Plugin {
    /// Its type.
    pub type_name: Arc<str>,
    /// Skipped when not.
    pub enabled: bool,
    /// Runs on every route.
    pub global: bool,
    /// Its place in the chain, the highest first.
    pub order: i32,
    /// Its configuration, canonical JSON.
    pub config: Bytes,
    /// What its configuration refers to, each with the field that names it.
    pub references: Box<[(ResourceKey, String)]>,
}

/// The plugin types that exist, as far as this crate must know them.
pub trait PluginCatalog: Send + Sync {
    /// The default order of a type; `None` when there is no such type.
    fn default_order(&self, type_name: &str) -> Option<i32>;

    /// The names of all types, sorted.
    fn type_names(&self) -> Vec<&'static str>;

    /// What is wrong with `config`, the fields' paths within it. The type exists.
    fn check(&self, type_name: &str, config: &Value) -> Vec<FieldError>;

    /// What a `config` that was accepted refers to (a consumer), with the field's path within it.
    fn references(&self, type_name: &str, config: &Value) -> Vec<(ResourceKey, String)>;
}

impl PluginSpec {
    pub(crate) fn parse(&self, catalog: &dyn PluginCatalog) -> Result<Plugin, Vec<FieldError>> {
        let mut errors = Errors::default();
        let mut references = Vec::new();
        let default_order = catalog.default_order(&self.type_name);
        if default_order.is_some() {
            let wrong = catalog.check(&self.type_name, &self.config);
            if wrong.is_empty() {
                references = catalog.references(&self.type_name, &self.config);
            }
            errors.extend_below("config", wrong);
        } else {
            let known = catalog.type_names().join(", ");
            errors.push("type", format_args!("unknown plugin type {:?}; known are {known}", self.type_name));
        }
        errors.finish(default_order.map(|default_order| Plugin {
            type_name: self.type_name.as_str().into(),
            enabled: self.enabled,
            global: self.global,
            order: self.order.unwrap_or(default_order),
            config: serde_json::to_vec(&self.config).unwrap_or_default().into(),
            references: references.into_iter().map(|(key, field)| (key, join("config", &field))).collect(),
        }))
    }
}

pub(crate) fn enabled() -> bool {
    true
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}
