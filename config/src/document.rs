//! Declarative documents: several resources in one text, YAML or JSON.
//!
//! A document may be large, and wrong all over. It is read in one pass into one text of canonical JSON and a place for
//! each resource ([`Document`]), which takes about as much memory as the document itself. Each resource becomes a tree
//! of values only when its turn comes.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess};
use serde_json::{Map, Number, Value};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use crate::error::{Errors, FieldError, join as join_paths};
use crate::key::Kind;
use crate::resource::Resource;

/// One resource of a document, not parsed further.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its specification.
    pub spec: Value,
    /// Where in the document, as field errors name it: `routes[3]`, or `document[2]` of several.
    pub path: String,
}

/// The resources of a document, in a compact form.
#[derive(Debug, Default)]
pub struct Document {
    /// The specifications one behind the other, canonical JSON.
    text: String,
    /// Where each specification ends in `text`.
    ends: Vec<u32>,
    /// Which resources stand together, in the order of `ends`.
    runs: Vec<Run>,
    /// Lists of a kind that are there without being a list: `routes:` and nothing more.
    null_lists: Vec<String>,
    /// Whether it has a resource or a list for a kind.
    names_something: bool,
}

/// Resources that stand together: a list of one kind, or a single one.
#[derive(Debug)]
struct Run {
    kind: Kind,
    /// Index of its first resource.
    first: u32,
    /// The path of the list, or of the single resource.
    path: Box<str>,
    is_list: bool,
}

/// Splits a document into its resources: one or several YAML documents `{kind: route, name: …}`, a list of such, or
/// one document with a list for each kind. JSON is YAML.
pub fn split(text: &str) -> Result<Vec<Entry>, Vec<FieldError>> {
    Ok(read(text)?.iter().collect())
}

/// Reads a document as [`split`] does, into a form that takes little more memory than the text.
pub fn read(text: &str) -> Result<Document, Vec<FieldError>> {
    let mut parts = if text.trim_start().starts_with(['{', '[']) && !text.contains("\n---") {
        // JSON first: its errors say line and column, and it is much faster for large documents.
        match serde_json::from_str::<Parts>(text) {
            Ok(parts) => parts,
            Err(json_error) => parse_yaml(text)
                .map_err(|_| vec![FieldError::new("", format!("is not JSON: {json_error}"))])?,
        }
    } else {
        parse_yaml(text).map_err(|error| vec![FieldError::new("", format!("is not YAML: {error}"))])?
    };
    if parts.is_null {
        // Half written, perhaps. Taken for a set of nothing, it would remove everything.
        return Err(vec![FieldError::new("", EMPTY)]);
    }
    parts.document.refuse_duplicates(parts.names, &mut parts.errors);
    parts.errors.finish(Some(parts.document))
}

const EMPTY: &str = "is empty: a document without resources is `routes: []`";

impl Document {
    /// How many resources it has.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether it has no resource.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Each resource, read when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.runs.iter().enumerate().flat_map(move |(at, run)| {
            let next = self.runs.get(at + 1).map_or(self.ends.len(), |next| next.first as usize);
            (run.first as usize..next).map(move |slot| Entry {
                kind: run.kind,
                // It was written by this module, so it can be read.
                spec: serde_json::from_str(self.spec(slot)).unwrap_or(Value::Null),
                path: run.path_of(slot),
            })
        })
    }

    /// Refuses what cannot stand for a whole set: a document that names neither a resource nor a list, and one with a
    /// list that is there and is none, as a file that was cut off behind `routes:` has it. Whoever removes all that a
    /// document does not have must ask this first.
    pub fn check_whole(&self) -> Result<(), Vec<FieldError>> {
        if !self.names_something && self.null_lists.is_empty() {
            return Err(vec![FieldError::new("", EMPTY)]);
        }
        let mut errors = Errors::default();
        for path in &self.null_lists {
            errors.push(path, "must be a list, is null; without resources it is `[]`");
        }
        errors.finish(Some(()))
    }

    fn spec(&self, slot: usize) -> &str {
        let start = match slot.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or_default(),
            None => 0,
        };
        let end = self.ends.get(slot).copied().unwrap_or_default();
        self.text.get(start as usize..end as usize).unwrap_or_default()
    }

    fn path(&self, slot: usize) -> String {
        let run = self.runs.partition_point(|run| run.first as usize <= slot);
        run.checked_sub(1).and_then(|at| self.runs.get(at)).map_or_else(String::new, |run| run.path_of(slot))
    }

    fn kind(&self, slot: usize) -> Option<Kind> {
        let run = self.runs.partition_point(|run| run.first as usize <= slot);
        Some(self.runs.get(run.checked_sub(1)?)?.kind)
    }

    fn refuse_duplicates(&self, mut names: Vec<NameOfSlot>, errors: &mut Errors) {
        names.sort_unstable();
        let mut twice: Vec<(u32, u32)> = Vec::new();
        for same in names.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
            // What differs and has one hash is told apart by its text.
            let mut first: HashMap<(Option<Kind>, String), u32> = HashMap::new();
            for (_, slot) in same {
                let slot = *slot;
                let spec: Value = serde_json::from_str(self.spec(slot as usize)).unwrap_or_default();
                let Some(name) = spec.get("name").and_then(Value::as_str) else { continue };
                let first = *first.entry((self.kind(slot as usize), name.to_owned())).or_insert(slot);
                if first != slot {
                    twice.push((slot, first));
                }
            }
        }
        twice.sort_unstable();
        for (slot, first) in twice {
            let (slot, first) = (slot as usize, first as usize);
            let spec: Value = serde_json::from_str(self.spec(slot)).unwrap_or_default();
            let name = spec.get("name").and_then(Value::as_str).unwrap_or_default();
            let kind = self.kind(slot).map_or_else(String::new, |kind| kind.to_string());
            errors.push(
                join_paths(&self.path(slot), "name"),
                format_args!("{kind} {name:?} is in the document twice, first at {}", self.path(first)),
            );
        }
    }
}

impl Run {
    fn path_of(&self, slot: usize) -> String {
        match self.is_list {
            true => format!("{}[{}]", self.path, slot.saturating_sub(self.first as usize)),
            false => self.path.to_string(),
        }
    }
}

/// The whole set as one document with a list for each kind; without what is secret.
pub fn join<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Value {
    join_with(resources, |resource, _| resource.redacted())
}

/// The same with resources as `write` writes them, which is told the path of each in the document. Without resources every
/// kind has an empty list, so that the document may stand for a whole set.
pub fn join_with<'a>(
    resources: impl IntoIterator<Item = &'a Resource>,
    mut write: impl FnMut(&Resource, &str) -> Value,
) -> Value {
    let mut lists: BTreeMap<Kind, Vec<Value>> = BTreeMap::new();
    for resource in resources {
        let kind = resource.key().kind;
        let list = lists.entry(kind).or_default();
        let spec = write(resource, &format!("{}[{}]", kind.plural(), list.len()));
        list.push(spec);
    }
    if lists.is_empty() {
        lists.extend(Kind::ALL.map(|kind| (kind, Vec::new())));
    }
    let lists = lists.into_iter().map(|(kind, list)| (kind.plural().to_owned(), Value::Array(list)));
    Value::Object(lists.collect::<Map<_, _>>())
}

/// `value` as YAML.
pub fn to_yaml(value: &Value) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}

/// Reads JSON in which no object has two fields of one name: which of them counts would be anyone's guess. What has
/// more than [`MAX_VALUES`] values is refused.
pub fn parse_json(text: &str) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict(&Cell::new(0)).deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// How many values one resource may have, each object, list and scalar counted: far more than any needs, and few enough
/// for a tree of them to be held in memory.
pub const MAX_VALUES: usize = 100_000;

/// A set of 100,000 routes fits; what expands to more than it says is refused early, for that is how a document of a
/// few lines would fill the memory.
fn parse_yaml(text: &str) -> Result<Parts, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 200_000,
            max_nodes: 10_000_000,
            max_events: 25_000_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
        // As YAML 1.2 has it: `no`, `007` and `1_000` are texts.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    let read = serde_saphyr::from_str_multiple_with_options::<Parts, Documents>(text, options);
    read.map(Documents::into_parts).map_err(|error| {
        let place = match error.location() {
            Some(place) => format!("line {} column {}: ", place.line(), place.column()),
            None => String::new(),
        };
        let reason = match error.without_snippet() {
            serde_saphyr::Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
                "is nested too deep".to_owned()
            }
            serde_saphyr::Error::Budget { .. } => "is too large".to_owned(),
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("the field {key:?} is there twice")
            }
            error => UserMessageFormatter.format_message(error).replace(char::is_control, " "),
        };
        place + &reason
    })
}

/// A hash of kind and name, and the resource that has them.
type NameOfSlot = (u64, u32);

/// What is read of a text, or of one YAML document in it.
#[derive(Debug, Default)]
struct Parts {
    document: Document,
    names: Vec<NameOfSlot>,
    errors: Errors,
    is_null: bool,
}

/// The YAML documents of a text, joined as they are read.
#[derive(Debug, Default)]
struct Documents {
    joined: Option<Parts>,
    /// Index of the first that is not null.
    first: usize,
    several: bool,
    count: usize,
}

impl Documents {
    fn into_parts(self) -> Parts {
        self.joined.unwrap_or(Parts { is_null: true, ..Parts::default() })
    }
}

impl Extend<Parts> for Documents {
    fn extend<I: IntoIterator<Item = Parts>>(&mut self, documents: I) {
        for mut parts in documents {
            let index = self.count;
            self.count += 1;
            if parts.is_null {
                continue;
            }
            let Some(joined) = &mut self.joined else {
                (self.joined, self.first) = (Some(parts), index);
                continue;
            };
            // A single document has no index in its paths.
            if !self.several {
                self.several = true;
                joined.put_below(&format!("document[{}]", self.first));
            }
            parts.put_below(&format!("document[{index}]"));
            joined.append(parts);
        }
    }
}

impl Parts {
    /// Puts all paths below `prefix`.
    fn put_below(&mut self, prefix: &str) {
        for run in &mut self.document.runs {
            run.path = join_paths(prefix, &run.path).into();
        }
        for path in &mut self.document.null_lists {
            *path = join_paths(prefix, path);
        }
        let mut errors = Errors::default();
        errors.append_below(prefix, std::mem::take(&mut self.errors));
        self.errors = errors;
    }

    fn append(&mut self, other: Self) {
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
            Some(Err(message)) => self.errors.push(join_paths(path, "kind"), message),
            None => self.errors.push(join_paths(path, "kind"), "must be a string"),
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
                    let path = join_paths(path, &name);
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
                Listed::Other(Value::Null) => parts.document.null_lists.push(join_paths(path, &name)),
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
            parts.errors.push(join_paths(path, &name), message);
        }
        Ok(())
    }
}

/// What the field of a kind's list has.
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

/// Reads any value, but no object with two fields of one name, and counts what it reads.
#[derive(Clone, Copy)]
struct Strict<'c>(&'c Cell<usize>);

impl Strict<'_> {
    fn one<E: de::Error>(self, value: Value) -> Result<Value, E> {
        self.0.set(self.0.get() + 1);
        if self.0.get() > MAX_VALUES { Err(too_many()) } else { Ok(value) }
    }
}

fn too_many<E: de::Error>() -> E {
    E::custom(format_args!("there is a resource with more than {MAX_VALUES} values"))
}

fn twice<E: de::Error>(name: &str) -> E {
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
