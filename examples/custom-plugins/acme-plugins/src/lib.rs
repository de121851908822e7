//! The plugins of Acme.

pub mod stamp;

use signalbox_plugin::{PluginType, Registry, RegistryError};

/// The types that both programs of Acme know: the built-in ones and our own.
pub fn registry() -> Result<Registry, RegistryError> {
    Registry::new(signalbox_plugins::types().chain([PluginType::of::<stamp::Stamp>()]))
}
