use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Errors, FieldError, join};
use crate::key::ResourceKey;
use crate::specification::{Audience, Context, Specification, common_fields};
use crate::values::enabled;

/// A plugin as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginSpec {
    /// The name of the plugin, unique among plugins.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The fleets that get the plugin. Absent: all fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// The type of the plugin: one of `GET /api/v1/plugin-types`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Enables the plugin. A plugin that is not enabled is skipped wherever it is attached.
    #[serde(default = "enabled", skip_serializing_if = "Clone::clone")]
    pub enabled: bool,
    /// Runs the plugin on every route.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub global: bool,
    /// The place of the plugin in the chain: higher numbers run first. Absent: the default of its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<i32>,
    /// The configuration, which has the schema of the plugin's type.
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
    /// The resources that its configuration refers to, each with the field that names it.
    pub references: Box<[(ResourceKey, String)]>,
}

impl Specification for PluginSpec {
    type Parsed = Plugin;

    const TITLE: &'static str = "Plugin";
    const TITLES: &'static str = "Plugins";
    const ABOUT: &'static str = "A plugin is a named, configured step in the processing of requests.";
    const AUDIENCE: Audience = Audience::Proxies { wire_tag: 4 };

    common_fields!(PluginSpec);

    fn parse(&self, context: &Context<'_>) -> Result<Plugin, Vec<FieldError>> {
        let catalog = context.catalog;
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

    /// Refuses null in every field of the configuration, because this crate does not know which of them narrow something down.
    fn check_written(&self) -> Vec<FieldError> {
        let config = self.config.as_object().into_iter().flatten();
        let nulls = config.filter(|(_, value)| value.is_null());
        nulls
            .map(|(name, _)| {
                FieldError::new(join("config", name), "must not be null; leave it out for its default")
            })
            .collect()
    }

    fn references(plugin: &Plugin) -> Vec<(ResourceKey, String)> {
        plugin.references.to_vec()
    }
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}
