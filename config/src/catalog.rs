//! The interface by which this crate asks for the plugin types, which another crate has.

use serde_json::Value;

use crate::blob::BlobId;
use crate::error::FieldError;
use crate::key::ResourceKey;

/// The plugin types that exist.
pub trait PluginCatalog: Send + Sync {
    /// The default order of a type; `None` when there is no such type.
    fn default_order(&self, type_name: &str) -> Option<i32>;

    /// The names of all types, sorted.
    fn type_names(&self) -> Vec<&'static str>;

    /// True if plugins of the type can run without effect.
    fn can_shadow(&self, _type_name: &str) -> bool {
        false
    }

    /// The errors of `config`, with paths of fields within it. The type exists.
    fn check(&self, type_name: &str, config: &Value) -> Vec<FieldError>;

    /// The errors for which a `config` is only refused when a person writes it, see `Specification::check_written`.
    fn check_written(&self, _type_name: &str, _config: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// The uploaded files that an accepted `config` uses, with the path of the field within it.
    fn blobs(&self, _type_name: &str, _config: &Value) -> Vec<(BlobId, String)> {
        Vec::new()
    }

    /// The resources that an accepted `config` refers to (a consumer), with the path of the field within it.
    fn references(&self, type_name: &str, config: &Value) -> Vec<(ResourceKey, String)>;
}

/// A catalog without plugin types, for tests of kinds that have no plugins.
#[cfg(test)]
pub(crate) struct NoPlugins;

#[cfg(test)]
impl PluginCatalog for NoPlugins {
    fn default_order(&self, _: &str) -> Option<i32> {
        None
    }

    fn type_names(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn check(&self, _: &str, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    fn references(&self, _: &str, _: &Value) -> Vec<(ResourceKey, String)> {
        Vec::new()
    }
}
