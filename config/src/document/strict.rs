//! Reads values in which no object has two fields of one name, and which are not too large.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess};
use serde_json::{Map, Number, Value};

/// Reads JSON in which no object has two fields of one name: which of them counts would be anyone's guess. What has
/// more than [`MAX_VALUES`] values is refused.
pub fn parse_json(text: &str) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict(&Cell::new(0)).deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// The most values of one resource, each object, list and scalar counted: far more than any needs, and few enough for a tree of
/// them to be held in memory.
pub const MAX_VALUES: usize = 100_000;

/// Reads any value, but no object with two fields of one name, and counts what it reads.
#[derive(Clone, Copy)]
pub(super) struct Strict<'c>(pub(super) &'c Cell<usize>);

impl Strict<'_> {
    fn one<E: de::Error>(self, value: Value) -> Result<Value, E> {
        self.0.set(self.0.get() + 1);
        if self.0.get() > MAX_VALUES { Err(too_many()) } else { Ok(value) }
    }
}

pub(super) fn too_many<E: de::Error>() -> E {
    E::custom(format_args!("there is a resource with more than {MAX_VALUES} values"))
}

pub(super) fn twice<E: de::Error>(name: &str) -> E {
    E::custom(format_args!("the field {name:?} is there twice"))
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.one(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.one(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.one(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.one(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.one(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.one(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        self.one(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        self.one(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(twice(&name));
            }
            let value = fields.next_value_seed(self)?;
            object.insert(name, value);
        }
        self.one(Value::Object(object))
    }
}
