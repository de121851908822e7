use std::sync::{Arc, LazyLock};

use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize as _, Deserializer};
use serde_json::Value;
use serde_path_to_error::Segment;
use signalbox_config::{Errors, FieldError, ResourceKey, check_placeholders, check_structure};

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
    /// True if it answers every CORS preflight request that it sees. A route with such a plugin takes the preflights of the
    /// requests that it takes.
    const ANSWERS_PREFLIGHTS: bool = false;

    /// Its configuration: serde reads it, `schemars` describes it, with `deny_unknown_fields`.
    type Config: DeserializeOwned + JsonSchema;

    /// Adds the errors of a configuration beyond its shape to `errors`.
    fn check(config: &Self::Config, errors: &mut Errors);

    /// The resources that a configuration refers to, each with the field's path within the configuration.
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
    /// True if it answers every CORS preflight request that it sees.
    pub answers_preflights: bool,
    schema: LazyLock<Schema>,
    pub(crate) check: fn(&Self, &Value) -> Vec<FieldError>,
    pub(crate) references: fn(&Value) -> Vec<(ResourceKey, String)>,
    build: Build,
}

type Build = fn(&[u8], &Context<'_>) -> Result<Arc<dyn Plugin>, Vec<FieldError>>;

impl PluginType {
    /// The registry's entry of `D`.
    pub const fn of<D: Definition>() -> Self {
        Self {
            name: D::NAME,
            description: D::DESCRIPTION,
            default_order: D::ORDER,
            phases: D::PHASES,
            answers_preflights: D::ANSWERS_PREFLIGHTS,
            schema: LazyLock::new(schema_of::<D::Config>),
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

    /// The JSON schema of its configuration, for checks and for forms.
    ///
    /// Every field has a title and a description, and one that may be left out its default, where there is one. JSON
    /// objects have no order, so `x-order` lists the fields as the type has them: what matters most comes first.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Builds a plugin from canonical JSON that [`signalbox_config::PluginCatalog::check`] accepted.
    pub fn build(&self, config: &[u8], context: &Context<'_>) -> Result<Arc<dyn Plugin>, Vec<FieldError>> {
        (self.build)(config, context)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;
    use signalbox_config::PluginCatalog as _;

    use super::*;
    use crate::context::States;
    use crate::testing::{build, name};
    use crate::{Catalog, TYPES};

    /// The default order of the types that are designed, so that users' own `order`s stay right when one is added.
    const ORDERS: [(&str, i32); 20] = [
        ("request-id", 100_000),
        ("bot-detection", 2500),
        ("cors", 2000),
        ("ip-restriction", 1990),
        ("request-size-limit", 1951),
        ("jwt", 1450),
        ("hmac-auth", 1430),
        ("basic-auth", 1400),
        ("key-auth", 1350),
        ("ext-auth", 1300),
        ("acl", 950),
        ("rate-limit", 910),
        ("concurrency-limit", 905),
        ("request-transform", 801),
        ("response-transform", 800),
        ("grpc-web", 700),
        ("grpc-json", 690),
        ("cache", 100),
        ("compress", 90),
        ("logs", 10),
    ];

    fn examples(plugin_type: &PluginType) -> Vec<Value> {
        plugin_type.schema().get("examples").and_then(Value::as_array).cloned().unwrap_or_default()
    }

    #[test]
    fn names_are_sorted_and_unique_and_orders_are_the_documented_ones() {
        let names: Vec<_> = TYPES.iter().map(|plugin_type| plugin_type.name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        assert_eq!(Catalog.type_names(), names);
        for plugin_type in &TYPES {
            assert!(plugin_type.name.parse::<signalbox_config::Name>().is_ok());
            if let Some((_, order)) = ORDERS.iter().find(|(name, _)| *name == plugin_type.name) {
                assert_eq!(plugin_type.default_order, *order, "{}", plugin_type.name);
            }
            assert_eq!(Catalog.default_order(plugin_type.name), Some(plugin_type.default_order));
            assert!(plugin_type.description.ends_with('.'), "{}", plugin_type.name);
            assert!(!plugin_type.phases.is_empty());
        }
    }

    #[test]
    fn every_example_is_accepted_and_built() {
        for plugin_type in &TYPES {
            let examples = examples(plugin_type);
            assert!(!examples.is_empty(), "{} has no example", plugin_type.name);
            for example in examples {
                build(plugin_type.name, example);
            }
        }
    }

    #[test]
    fn every_default_can_be_written_out_and_changes_nothing_that_is_checked() {
        for plugin_type in &TYPES {
            let Some(mut config) = examples(plugin_type).into_iter().next() else { panic!("no example") };
            let properties = plugin_type.schema().get("properties").and_then(Value::as_object).unwrap();
            let mut defaults = 0;
            for (field, schema) in properties {
                if let Some(default) = schema.get("default") {
                    config[field] = default.clone();
                    defaults += 1;
                }
            }
            assert!(defaults > 0, "{} has no default", plugin_type.name);
            build(plugin_type.name, config);
        }
    }

    /// Every object schema has titles and descriptions for its fields, and refuses others, unless it is a map.
    fn check_forms(schema: &Value, path: &str) {
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            assert_eq!(
                schema.get("additionalProperties"),
                Some(&json!(false)),
                "{path} takes unknown fields"
            );
            for (field, property) in properties {
                for word in ["title", "description"] {
                    let text = property.get(word).and_then(Value::as_str).unwrap_or_default();
                    assert!(
                        !text.is_empty() && !text.contains('\n'),
                        "{path}.{field} has no {word}: {text:?}"
                    );
                }
            }
        }
        match schema {
            Value::Object(object) => {
                for (word, inner) in object {
                    check_forms(inner, &format!("{path}.{word}"));
                }
            }
            Value::Array(items) => items.iter().for_each(|inner| check_forms(inner, path)),
            _ => {}
        }
    }

    #[test]
    fn every_field_of_every_form_says_what_it_is() {
        for plugin_type in &TYPES {
            let schema = plugin_type.schema();
            assert!(schema.get("title").is_some(), "{}", plugin_type.name);
            check_forms(schema.as_value(), plugin_type.name);
            let fields: BTreeSet<&str> =
                schema.get("properties").unwrap().as_object().unwrap().keys().map(String::as_str).collect();
            let order = schema.get("x-order").unwrap().as_array().unwrap();
            assert_eq!(order.iter().map(|name| name.as_str().unwrap()).collect::<BTreeSet<_>>(), fields);
        }
        let order = PluginType::find("rate-limit").unwrap().schema().get("x-order").unwrap();
        assert_eq!(order[0], "limit");
    }

    #[test]
    fn what_is_wrong_is_named_by_field_and_all_at_once() {
        for plugin_type in &TYPES {
            let mut config = examples(plugin_type)[0].clone();
            config["no-such-field"] = json!(1);
            let errors = Catalog.check(plugin_type.name, &config);
            assert_eq!(errors, [FieldError::new("no-such-field", "unknown field")]);
            assert!(!Catalog.check(plugin_type.name, &json!([])).is_empty());
        }
        let errors = Catalog.check("rate-limit", &json!({"window": "abc", "by": "moon", "burst": 1}));
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["by", "window", "limit", "burst"]);
        let errors =
            Catalog.check("rate-limit", &json!({"limit": 1, "window": "abc", "header": "x", "burst": 1}));
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["window", "burst", "header"]);
    }

    #[test]
    fn a_configuration_that_was_never_checked_is_refused_not_built() {
        let (name, states) = (name("p"), States::default());
        let context = Context { name: &name, states: &states };
        for (type_name, config) in [
            ("cors", "{\"credentials\": true}"),
            ("key-auth", "{\"anonymous\": \"A B\"}"),
            ("rate-limit", "{\"limit\": 1, \"store\": \"redis\"}"),
            ("rate-limit", "{}"),
            ("request-transform", "{\"max_body\": 0}"),
            ("request-transform", "not JSON"),
        ] {
            assert!(
                PluginType::find(type_name).unwrap().build(config.as_bytes(), &context).is_err(),
                "{config}"
            );
        }
        assert!(PluginType::find("moon").is_none());
        assert_eq!(Catalog.check("moon", &json!({}))[0].message, "unknown plugin type \"moon\"");
    }
}
