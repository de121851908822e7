//! Helpers that the plugins' tests share: the harness of `signalbox-plugin` with types by name.

use std::sync::Arc;

use serde_json::Value;
use signalbox_plugin::testing::{self, Services};
pub(crate) use signalbox_plugin::testing::{
    Client, block_on, consumer_of, consumers, consumers_of, name, parse_consumer,
};
use signalbox_plugin::{Plugin, PluginType, States};

use crate::builtin;

fn find(type_name: &str) -> &'static PluginType {
    builtin().find(type_name).expect("a type of this crate")
}

/// Builds a plugin as both planes do.
pub(crate) fn build(type_name: &str, config: Value) -> Arc<dyn Plugin> {
    testing::build_type(find(type_name), &Services::default(), &States::default(), config)
}

/// The same with the state of earlier revisions.
pub(crate) fn build_in(states: &States, type_name: &str, config: Value) -> Arc<dyn Plugin> {
    testing::build_type(find(type_name), &Services::default(), states, config)
}

/// The same under this name.
pub(crate) fn build_as(states: &States, plugin: &str, type_name: &str, config: &Value) -> Arc<dyn Plugin> {
    assert_eq!(find(type_name).check(config), [], "{config}");
    let (name, services) = (name(plugin), Services::default());
    find(type_name).build(config.to_string().as_bytes(), &services.context(&name, states)).unwrap()
}

/// The errors of a configuration: `field: message`, one a line.
#[track_caller]
pub(crate) fn refused(type_name: &str, config: Value) -> String {
    testing::refused(find(type_name), config)
}
