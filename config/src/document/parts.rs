//! Reads a text, or one YAML document in it, into the compact form as it comes.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess};
use serde_json::{Map, Value};

use super::compact::{Document, NameOfSlot, Run};
use super::strict::{MAX_VALUES, Strict, too_many, twice};
use crate::error::{Errors, join};
use crate::kind::Kind;

/// The content of a text, or of one YAML document in it.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) document: Document,
    pub(super) names: Vec<NameOfSlot>,
    pub(super) errors: Errors,
    pub(super) is_null: bool,
}

impl Parts {
    /// Puts all paths below `prefix`.
    pub(super) fn put_below(&mut self, prefix: &str) {
        for run in &mut self.document.runs {
            run.path = join(prefix, &run.path).into();
        }
        for path in &mut self.document.null_lists {
            *path = join(prefix, path);
        }
        let mut errors = Errors::default();
        errors.append_below(prefix, std::mem::take(&mut self.errors));
        self.errors = errors;
    }

    pub(super) fn append(&mut self, other: Self) {
        let Document { text, ends, runs, mut null_lists, names_something } = other.document;
        let document = &mut self.document;
        let (slots, bytes) = (document.ends.len() as u32, document.text.len() as u32);
        document.text.push_str(&text);
        document.ends.extend(ends.iter().map(|end| bytes + end));
        document.runs.extend(runs.into_iter().map(|run| Run { first: slots + run.first, ..run }));
        document.null_lists.append(&mut null_lists);
        document.names_something |= names_something;
        self.names.extend(other.names.into_iter().map(|(hash, slot)| (hash, slots + slot)));
        self.errors.append_below("", other.errors);
    }

    /// Adds a resource to the last run.
    fn push<E: de::Error>(&mut self, kind: Kind, spec: &Value) -> Result<(), E> {
        let Document { text, ends, .. } = &mut self.document;
        let slot = ends.len() as u32;
        text.push_str(&serde_json::to_string(spec).map_err(E::custom)?);
        ends.push(u32::try_from(text.len()).map_err(|_| E::custom("is too large"))?);
        if let Some(name) = spec.get("name").and_then(Value::as_str) {
            let hasher = BuildHasherDefault::<DefaultHasher>::default();
            self.names.push((hasher.hash_one((kind, name)), slot));
        }
        Ok(())
    }

    fn begin_run(&mut self, kind: Kind, path: &str, is_list: bool) {
        let first = self.document.ends.len() as u32;
        self.document.runs.push(Run { kind, first, path: path.into(), is_list });
        self.document.names_something = true;
    }

    /// Takes the resources from `slot` on out again; `runs` is the number of runs before them.
    fn truncate(&mut self, slot: usize, runs: usize) {
        let document = &mut self.document;
        document.ends.truncate(slot);
        document.text.truncate(document.ends.last().copied().unwrap_or_default() as usize);
        document.runs.truncate(runs);
        while self.names.pop_if(|(_, named)| *named as usize >= slot).is_some() {}
    }

    /// Adds an object with a `kind`.
    fn push_single<E: de::Error>(&mut self, spec: Map<String, Value>, path: &str) -> Result<(), E> {
        match spec.get("kind").and_then(Value::as_str).map(str::parse::<Kind>) {
            Some(Ok(kind)) => {
                self.begin_run(kind, path, false);
                self.push(kind, &Value::Object(spec))?;
            }
            Some(Err(message)) => self.errors.push(join(path, "kind"), message),
            None => self.errors.push(join(path, "kind"), "must be a string"),
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut parts = Self::default();
        Item { parts: &mut parts, path: "" }.deserialize(deserializer)?;
        Ok(parts)
    }
}

/// Reads one item of a document, or the whole of it: a resource, lists by kind, or a list of items.
struct Item<'a> {
    parts: &'a mut Parts,
    path: &'a str,
}

impl Item<'_> {
    fn refuse<E>(self) -> Result<(), E> {
        let message = "must be an object with a kind, or with a list for each kind";
        self.parts.errors.push(self.path, message);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Item<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.parts.is_null |= self.path.is_empty();
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.refuse()
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.refuse()
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.refuse()
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.refuse()
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.refuse()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0_usize.. {
            let path = format!("{}[{index}]", self.path);
            if items.next_element_seed(Item { parts: &mut *self.parts, path: &path })?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Lists by kind are taken in as they come. When it turns out that the object is one resource, which may have fields
    /// of the same names (`plugins`), they are put back.
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let Self { parts, path } = self;
        let (slot, runs) = (parts.document.ends.len(), parts.document.runs.len());
        let named_something = parts.document.names_something;
        let values = Cell::new(0);
        let mut others: Map<String, Value> = Map::new();
        let mut lists: Vec<(String, Listed)> = Vec::new();
        while let Some(name) = fields.next_key::<String>()? {
            if others.contains_key(&name) || lists.iter().any(|(known, _)| *known == name) {
                return Err(twice(&name));
            }
            match Kind::from_plural(&name).filter(|_| !others.contains_key("kind")) {
                Some(kind) => {
                    let path = join(path, &name);
                    let seed = List { parts: &mut *parts, kind, path: &path, values: &values };
                    lists.push((name, fields.next_value_seed(seed)?));
                }
                None => drop(others.insert(name, fields.next_value_seed(Strict(&values))?)),
            }
        }
        if others.contains_key("kind") {
            for (name, listed) in lists {
                let value = match listed {
                    Listed::Slots(first, after) if after - first > MAX_VALUES => return Err(too_many()),
                    Listed::Slots(first, after) => {
                        let specs =
                            (first..after).map(|slot| serde_json::from_str(parts.document.spec(slot)));
                        Value::Array(specs.collect::<Result<_, _>>().map_err(de::Error::custom)?)
                    }
                    Listed::Other(value) => value,
                };
                others.insert(name, value);
            }
            parts.truncate(slot, runs);
            parts.document.names_something = named_something;
            return parts.push_single(others, path);
        }
        let mut wrong: Vec<(String, String)> = Vec::new();
        for (name, listed) in lists {
            match listed {
                Listed::Slots(..) => {}
                Listed::Other(Value::Null) => parts.document.null_lists.push(join(path, &name)),
                Listed::Other(_) => wrong.push((name, "must be a list".to_owned())),
            }
        }
        if !others.is_empty() {
            let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.plural()).collect();
            let message =
                format!("unknown field; known are kind (of a single resource), {}", known.join(", "));
            wrong.extend(others.into_iter().map(|(name, _)| (name, message.clone())));
        }
        wrong.sort_unstable();
        for (name, message) in wrong {
            parts.errors.push(join(path, &name), message);
        }
        Ok(())
    }
}

/// The content of a field that should have the list of a kind.
enum Listed {
    /// The resources from the first of these slots up to the second.
    Slots(usize, usize),
    /// Something else.
    Other(Value),
}

/// Reads the list of a kind, one resource at a time.
struct List<'a> {
    parts: &'a mut Parts,
    kind: Kind,
    path: &'a str,
    /// Counts what is not in a list.
    values: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Listed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Listed, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for List<'_> {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<Listed, E> {
        Ok(Listed::Other(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Listed, E> {
        Ok(Listed::Other(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Listed, A::Error> {
        let first = self.parts.document.ends.len();
        self.parts.begin_run(self.kind, self.path, true);
        while let Some(spec) = items.next_element_seed(Strict(&Cell::new(0)))? {
            self.parts.push(self.kind, &spec)?;
        }
        Ok(Listed::Slots(first, self.parts.document.ends.len()))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Listed, A::Error> {
        de::Visitor::visit_map(Strict(self.values), fields).map(Listed::Other)
    }
}
