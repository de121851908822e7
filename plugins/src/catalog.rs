//! The plugin types by name.

use serde_json::Value;
use signalbox_config::{FieldError, PluginCatalog, ResourceKey};

use crate::TYPES;
use crate::registry::PluginType;

impl PluginType {
    /// The type of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        TYPES.iter().find(|plugin_type| plugin_type.name == name)
    }
}

/// The registry as the configuration crate sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Catalog;

impl PluginCatalog for Catalog {
    fn default_order(&self, type_name: &str) -> Option<i32> {
        PluginType::find(type_name).map(|plugin_type| plugin_type.default_order)
    }

    fn type_names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = TYPES.iter().map(|plugin_type| plugin_type.name).collect();
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
