use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use signalbox_expr::Condition;

use crate::arrival;
use crate::blob::BlobId;
use crate::catalog::PluginCatalog;
use crate::error::{Errors, FieldError, join};
use crate::key::ResourceKey;
use crate::narrowing::Narrowing;
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
    /// A condition over the request in a subset of CEL, like `request.method == "POST"`. The plugin runs only for requests that meet
    /// it. Absent: the plugin runs for every request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Runs the plugin without effect: what it would do is counted and logged, and changes nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
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
    /// It runs for requests that meet this condition; `None`: for all.
    pub when: Option<Condition>,
    /// It runs without effect.
    pub shadow: bool,
    /// Its configuration, canonical JSON.
    pub config: Bytes,
    /// The resources that its configuration refers to, each with the field that names it.
    pub references: Box<[(ResourceKey, String)]>,
    /// The uploaded files that its configuration uses, each with the field that names it.
    pub files: Box<[(BlobId, String)]>,
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
        let (mut references, mut files) = (Vec::new(), Vec::new());
        let default_order = catalog.default_order(&self.type_name);
        if default_order.is_some() {
            let wrong = catalog.check(&self.type_name, &self.config);
            if wrong.is_empty() {
                references = catalog.references(&self.type_name, &self.config);
                files = catalog.blobs(&self.type_name, &self.config);
            }
            errors.extend_below("config", wrong);
        } else {
            let known = catalog.type_names().join(", ");
            errors.push("type", format_args!("unknown plugin type {:?}; known are {known}", self.type_name));
        }
        if self.shadow && default_order.is_some() && !catalog.can_shadow(&self.type_name) {
            let type_names = catalog.type_names().into_iter();
            let able = type_names.filter(|name| catalog.can_shadow(name)).collect::<Vec<_>>().join(", ");
            let name = &self.type_name;
            errors.push(
                "shadow",
                format_args!("plugins of type {name} cannot run in shadow; those that can are {able}"),
            );
        }
        let when = self.when.as_deref().and_then(|text| parse_condition(text, "when", &mut errors));
        errors.finish(default_order.map(|default_order| Plugin {
            type_name: self.type_name.as_str().into(),
            enabled: self.enabled,
            global: self.global,
            order: self.order.unwrap_or(default_order),
            when,
            shadow: self.shadow,
            config: serde_json::to_vec(&self.config).unwrap_or_default().into(),
            references: references.into_iter().map(|(key, field)| (key, join("config", &field))).collect(),
            files: files.into_iter().map(|(id, field)| (id, join("config", &field))).collect(),
        }))
    }

    /// Refuses null in every field of the configuration, because this crate does not know which of them narrow something down, and
    /// what its type refuses.
    fn check_written(&self, catalog: &dyn PluginCatalog) -> Vec<FieldError> {
        let config = self.config.as_object().into_iter().flatten();
        let nulls = config.filter(|(_, value)| value.is_null());
        let nulls = nulls
            .map(|(name, _)| FieldError::new(name.clone(), "must not be null; leave it out for its default"));
        let mut errors = Errors::default();
        let of_type = catalog.check_written(&self.type_name, &self.config);
        errors.extend_below("config", nulls.chain(of_type));
        errors.finish(Some(())).err().unwrap_or_default()
    }

    fn narrowing(_: &Value) -> &'static [Narrowing] {
        const { &[Narrowing::not_null(&["when"], "for every request")] }
    }

    fn references(plugin: &Plugin) -> Vec<(ResourceKey, String)> {
        plugin.references.to_vec()
    }
}

/// Reads a condition of a plugin. `field` is where it stands.
pub fn parse_condition(text: &str, field: &str, errors: &mut Errors) -> Option<Condition> {
    if text.trim().is_empty() {
        errors.push(field, "must not be empty; leave it out for every request");
        return None;
    }
    let condition = Condition::parse(text).map_err(|error| errors.push(field, error)).ok()?;
    // Plugins write these headers, some of them only behind the last plugin.
    if let Some(claimed) = condition.headers().iter().find(|name| arrival::CONSUMER.contains(name)) {
        errors.push(
            field,
            format_args!("must not read the header {claimed}; use consumer.name or consumer.groups"),
        );
    }
    Some(condition)
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A catalog with one type that can run in shadow, and one that cannot.
    struct TwoTypes;

    impl PluginCatalog for TwoTypes {
        fn default_order(&self, type_name: &str) -> Option<i32> {
            self.type_names().contains(&type_name).then_some(100)
        }

        fn type_names(&self) -> Vec<&'static str> {
            vec!["auth", "transform"]
        }

        fn can_shadow(&self, type_name: &str) -> bool {
            type_name == "auth"
        }

        fn check(&self, _: &str, _: &Value) -> Vec<FieldError> {
            Vec::new()
        }

        fn references(&self, _: &str, _: &Value) -> Vec<(ResourceKey, String)> {
            Vec::new()
        }
    }

    fn parse(written: &Value) -> Result<Plugin, String> {
        let spec: PluginSpec = serde_json::from_value(written.clone()).unwrap();
        let name = spec.name.parse().unwrap();
        let parsed = spec.parse(&Context { name: &name, catalog: &TwoTypes });
        parsed.map_err(|errors| errors.iter().map(FieldError::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn a_condition_is_parsed_and_its_errors_name_the_field_and_the_column() {
        let plugin = |when: &str| parse(&json!({"name": "p", "type": "auth", "when": when}));
        let condition = plugin("request.method == \"POST\"").unwrap().when.unwrap();
        assert_eq!(condition.text(), "request.method == \"POST\"");
        assert!(parse(&json!({"name": "p", "type": "auth"})).unwrap().when.is_none());
        for (when, expected) in [
            ("", "when: must not be empty; leave it out for every request"),
            (" \n", "when: must not be empty; leave it out for every request"),
            ("request.path", "when: column 9: the condition must be bool, but is string"),
            (
                "\"x-consumer-groups\" in request.headers",
                "when: must not read the header x-consumer-groups; use consumer.name or consumer.groups",
            ),
        ] {
            assert_eq!(plugin(when).unwrap_err(), expected);
        }
    }

    #[test]
    fn only_types_without_lasting_effect_run_in_shadow() {
        assert!(parse(&json!({"name": "p", "type": "auth", "shadow": true})).unwrap().shadow);
        assert_eq!(
            parse(&json!({"name": "p", "type": "transform", "shadow": true})).unwrap_err(),
            "shadow: plugins of type transform cannot run in shadow; those that can are auth"
        );
    }
}
