//! The operations on one part of a message, and those on its headers.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use signalbox_config::Errors;
use smallvec::SmallVec;

use crate::template::{Encoding, Side, Template, Values};

/// The operations on one part of a message, in their order.
#[derive(Debug)]
pub(crate) struct Edits<N, V> {
    pub(crate) remove: Vec<N>,
    pub(crate) rename: Vec<(N, N)>,
    pub(crate) replace: Vec<(N, Given<V>)>,
    pub(crate) add: Vec<(N, Given<V>)>,
    pub(crate) set: Vec<(N, Given<V>)>,
    pub(crate) append: Vec<(N, Given<V>)>,
    templates: Vec<Template>,
}

/// A value as it is configured.
#[derive(Debug)]
pub(crate) enum Given<V> {
    /// The same for every message.
    Fixed(V),
    /// One of [`Made`].
    Template(Template),
    /// The place of the template among those of all operations.
    Made(usize),
}

/// The values that templates have for one message; `None`: it has none. Then the operation is left out, and `set` removes what has the
/// name.
pub(crate) type Made<V> = SmallVec<[Option<V>; 4]>;

impl<N, V> Edits<N, V> {
    pub(crate) fn is_empty(&self) -> bool {
        let Self { remove, rename, replace, add, set, append, .. } = self;
        remove.is_empty()
            && rename.is_empty()
            && replace.is_empty()
            && add.is_empty()
            && set.is_empty()
            && append.is_empty()
    }

    /// The values of all templates for one message. `convert` makes a value of a text.
    pub(crate) fn render<'v>(
        &self,
        values: impl FnOnce() -> Values<'v>,
        convert: fn(Vec<u8>) -> Option<V>,
    ) -> Made<V> {
        if self.templates.is_empty() {
            return Made::new();
        }
        let values = values();
        let render = |template: &Template| template.render(&values, Encoding::Plain).and_then(convert);
        self.templates.iter().map(render).collect()
    }
}

impl<V> Given<V> {
    /// The value for a message; `None`: it has none.
    pub(crate) fn of<'v>(&'v self, made: &'v Made<V>) -> Option<&'v V> {
        match self {
            Self::Fixed(value) => Some(value),
            Self::Made(index) => made.get(*index)?.as_ref(),
            Self::Template(_) => None,
        }
    }
}

/// Changes headers. Nothing is allocated but the room for more headers.
pub(crate) fn edit_headers(
    edits: &Edits<HeaderName, HeaderValue>,
    made: &Made<HeaderValue>,
    headers: &mut HeaderMap,
) {
    for name in &edits.remove {
        headers.remove(name);
    }
    for (old, new) in &edits.rename {
        let values: SmallVec<[HeaderValue; 4]> = headers.get_all(old).iter().cloned().collect();
        if !values.is_empty() {
            headers.remove(old);
            headers.remove(new);
            for value in values {
                headers.append(new.clone(), value);
            }
        }
    }
    for (name, value) in &edits.replace {
        if let Some(value) = value.of(made).filter(|_| headers.contains_key(name)) {
            headers.insert(name.clone(), value.clone());
        }
    }
    for (name, value) in &edits.add {
        if let Some(value) = value.of(made).filter(|_| !headers.contains_key(name)) {
            headers.insert(name.clone(), value.clone());
        }
    }
    for (name, value) in &edits.set {
        match value.of(made) {
            Some(value) => drop(headers.insert(name.clone(), value.clone())),
            // Nobody else speaks in its place.
            None => drop(headers.remove(name)),
        }
    }
    for (name, value) in &edits.append {
        if let Some(value) = value.of(made) {
            headers.append(name.clone(), value.clone());
        }
    }
}

/// Reads the operations on one part of a message.
pub(crate) struct Parser<'e, N, V> {
    /// The part, as it is named in the configuration.
    pub(crate) part: &'static str,
    /// Reads a name.
    pub(crate) name: ReadName<N>,
    /// Reads the new name of `rename`.
    pub(crate) new_name: ReadName<N>,
    /// Reads a value.
    pub(crate) value: V,
    pub(crate) errors: &'e mut Errors,
}

/// Reads a name.
type ReadName<N> = fn(&str) -> Result<N, String>;

impl<N, V> Parser<'_, N, V> {
    /// Reads the operations. Those that are wrong are missing from the result.
    pub(crate) fn edits<Text, Value>(
        &mut self,
        remove: &[String],
        rename: &BTreeMap<String, String>,
        [replace, add, set, append]: [&BTreeMap<String, Text>; 4],
    ) -> Edits<N, Value>
    where
        V: Fn(&Text) -> Result<Given<Value>, String>,
    {
        let mut templates = Vec::new();
        Edits {
            remove: remove
                .iter()
                .enumerate()
                .filter_map(|(index, name)| {
                    let name = (self.name)(name);
                    self.note(&format!("remove.{}[{index}]", self.part), name)
                })
                .collect(),
            rename: rename
                .iter()
                .filter_map(|(old, new)| {
                    let field = format!("rename.{}.{old}", self.part);
                    let (old, new) = ((self.name)(old), (self.new_name)(new));
                    self.note(&field, old).zip(self.note(&field, new))
                })
                .collect(),
            replace: self.values("replace", replace, &mut templates),
            add: self.values("add", add, &mut templates),
            set: self.values("set", set, &mut templates),
            append: self.values("append", append, &mut templates),
            templates,
        }
    }

    fn values<Text, Value>(
        &mut self,
        operation: &str,
        values: &BTreeMap<String, Text>,
        templates: &mut Vec<Template>,
    ) -> Vec<(N, Given<Value>)>
    where
        V: Fn(&Text) -> Result<Given<Value>, String>,
    {
        values
            .iter()
            .filter_map(|(name, value)| {
                let field = format!("{operation}.{}.{name}", self.part);
                let (name, value) = ((self.name)(name), (self.value)(value));
                let (name, value) = self.note(&field, name).zip(self.note(&field, value))?;
                let value = match value {
                    Given::Template(template) => {
                        templates.push(template);
                        Given::Made(templates.len() - 1)
                    }
                    fixed => fixed,
                };
                Some((name, value))
            })
            .collect()
    }

    fn note<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.errors.push(field, message)).ok()
    }
}

/// Reads the value of a header.
pub(crate) fn given_header(text: &str, side: Side) -> Result<Given<HeaderValue>, String> {
    let template = Template::parse(text, side)?;
    let is_fit = |text: &str| HeaderValue::from_str(text).is_ok();
    match template.as_fixed() {
        Some(text) => {
            HeaderValue::from_str(text).map(Given::Fixed).map_err(|_| "cannot be sent in a header".to_owned())
        }
        None if template.texts().all(is_fit) => Ok(Given::Template(template)),
        None => Err("cannot be sent in a header".to_owned()),
    }
}

/// The value of a header that a template has become; `None`: no header can have it.
pub(crate) fn header_value(bytes: Vec<u8>) -> Option<HeaderValue> {
    HeaderValue::try_from(bytes).ok()
}

/// Reads a value that is a text.
pub(crate) fn given_text(text: &str, side: Side) -> Result<Given<Box<str>>, String> {
    let template = Template::parse(text, side)?;
    Ok(match template.as_fixed() {
        Some(text) => Given::Fixed(text.into()),
        None => Given::Template(template),
    })
}
