//! Changes of JSON bodies. All that is not changed stays as it was written, to the last digit of its numbers.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Error, Value};

use super::edits::{Edits, Given, Made};
use crate::template::{Side, Template};

/// A place in a JSON document: the name of a member on the first level, or a JSON pointer (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer(Box<[Box<str>]>);

/// A JSON value that is neither a list nor an object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Scalar(Value);

impl JsonSchema for Scalar {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "number", "boolean", "null"],
            "description": "A text, a number, true, false or null",
        })
    }
}

/// The deepest pointer.
const MAX_DEPTH: usize = 32;

/// The most members and elements of one body that are looked at. They take 40 bytes each.
const MAX_NODES: usize = 1_000_000;

impl Pointer {
    /// Reads a name, or a pointer, which begins with `/`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return member_name(text).map(|name| Self([name].into()));
        };
        let token = |token: &str| {
            let is_escaped = token.split('~').skip(1).all(|behind| behind.starts_with(['0', '1']));
            let unescaped = || token.replace("~1", "/").replace("~0", "~").into();
            is_escaped.then(unescaped).ok_or("is no JSON pointer: behind ~ must be 0 or 1")
        };
        let tokens: Box<[Box<str>]> = rest.split('/').map(token).collect::<Result<_, _>>()?;
        if tokens.len() > MAX_DEPTH {
            return Err(format!("has {} levels; at most {MAX_DEPTH}", tokens.len()));
        }
        Ok(Self(tokens))
    }

    /// Reads the new name of a member.
    pub(crate) fn parse_new_name(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Err(
                "the new name of a member is a name, no JSON pointer: it stays where it is".to_owned()
            );
        }
        Self::parse(text)
    }

    fn last(&self) -> &str {
        self.0.last().map_or("", |name| name)
    }
}

/// A name that is not empty.
pub(crate) fn member_name(name: &str) -> Result<Box<str>, String> {
    if name.is_empty() { Err("a name must not be empty".to_owned()) } else { Ok(name.into()) }
}

/// Reads a value.
pub(crate) fn given_scalar(Scalar(value): &Scalar, side: Side) -> Result<Given<Box<RawValue>>, String> {
    let fixed = |value: &Value| serde_json::value::to_raw_value(value).map_err(|error| error.to_string());
    match value {
        Value::Array(_) | Value::Object(_) => Err("must be a text, a number, true, false or null".to_owned()),
        Value::String(text) => {
            let template = Template::parse(text, side)?;
            Ok(match template.as_fixed() {
                Some(text) => Given::Fixed(fixed(&text.into())?),
                None => Given::Template(template),
            })
        }
        value => fixed(value).map(Given::Fixed),
    }
}

/// The JSON text of what a template has become. Bytes that are no UTF-8 are replaced.
pub(crate) fn scalar_text(bytes: Vec<u8>) -> Option<Box<RawValue>> {
    let text = String::from_utf8(bytes);
    let text = text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    serde_json::value::to_raw_value(&text).ok()
}

/// True if the body is JSON, as far as the headers say.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let Some(text) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim();
    let ends_with = |suffix: &str| {
        let at = essence.len().saturating_sub(suffix.len());
        essence.contains('/') && essence.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
    };
    essence.eq_ignore_ascii_case("application/json") || ends_with("+json")
}

/// True if the body is encoded.
pub(crate) fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// The body with its members changed; `None` if nothing is changed. An error if it is no JSON.
pub(crate) fn edit_body<'a>(
    edits: &'a Edits<Pointer, Box<RawValue>>,
    made: &'a Made<Box<RawValue>>,
    body: &'a [u8],
) -> Result<Option<Bytes>, Error> {
    let mut document = Document { root: Node::Raw(serde_json::from_slice(body)?), left: MAX_NODES };
    let mut is_changed = false;
    for pointer in &edits.remove {
        is_changed |= document.visit(pointer, false, &mut |parent, _| Ok(parent.remove(pointer.last())))?;
    }
    for (old, new) in &edits.rename {
        is_changed |=
            document.visit(old, false, &mut |parent, _| Ok(parent.rename(old.last(), new.last())))?;
    }
    let given = |(pointer, value): &'a (Pointer, Given<Box<RawValue>>)| Some((pointer, &**value.of(made)?));
    for (pointer, value) in edits.replace.iter().filter_map(given) {
        is_changed |=
            document.visit(pointer, false, &mut |parent, _| Ok(parent.replace(pointer.last(), value)))?;
    }
    for (pointer, value) in edits.add.iter().filter_map(given) {
        is_changed |=
            document.visit(pointer, true, &mut |parent, _| Ok(parent.add(pointer.last(), value)))?;
    }
    for (pointer, value) in &edits.set {
        let (name, value) = (pointer.last(), value.of(made));
        is_changed |= document.visit(pointer, value.is_some(), &mut |parent, _| {
            Ok(match value {
                Some(value) => parent.replace(name, value) || parent.add(name, value),
                None => parent.remove(name),
            })
        })?;
    }
    for (pointer, value) in edits.append.iter().filter_map(given) {
        is_changed |=
            document.visit(pointer, true, &mut |parent, left| parent.append(pointer.last(), value, left))?;
    }
    match is_changed {
        true => Ok(Some(serde_json::to_vec(&document.root)?.into())),
        false => Ok(None),
    }
}

/// A document, opened as far as changes lead.
struct Document<'a> {
    root: Node<'a>,
    /// The members and elements that may still be looked at.
    left: usize,
}

/// A value, opened or as it was written.
enum Node<'a> {
    Raw(&'a RawValue),
    /// Members in their order; names may be there several times.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
    List(Vec<Node<'a>>),
}

/// A change of the object or list in which a pointer ends. True: something is different.
type Change<'c, 'a> = &'c mut dyn FnMut(&mut Node<'a>, &mut usize) -> Result<bool, Error>;

impl<'a> Document<'a> {
    /// Makes a change where `pointer` leads; in all places, if names on the way are there several times. With `creates`, objects that
    /// are missing on the way are made.
    fn visit(&mut self, pointer: &'a Pointer, creates: bool, change: Change<'_, 'a>) -> Result<bool, Error> {
        visit(&mut self.root, &pointer.0, creates, &mut self.left, change)
    }
}

fn visit<'a>(
    node: &mut Node<'a>,
    path: &'a [Box<str>],
    creates: bool,
    left: &mut usize,
    change: Change<'_, 'a>,
) -> Result<bool, Error> {
    node.open(left)?;
    let Some((first, rest)) = path.split_first() else { return Ok(false) };
    if rest.is_empty() {
        return change(node, left);
    }
    let mut is_changed = false;
    match node {
        Node::Raw(_) => {}
        Node::Object(members) => {
            if creates && !members.iter().any(|(name, _)| **name == **first) {
                members.push((Cow::Borrowed(first), Node::Object(Vec::new())));
            }
            for (_, child) in members.iter_mut().filter(|(name, _)| **name == **first) {
                is_changed |= visit(child, rest, creates, left, change)?;
            }
        }
        Node::List(items) => {
            if let Some(child) = index(first).and_then(|index| items.get_mut(index)) {
                is_changed = visit(child, rest, creates, left, change)?;
            }
        }
    }
    Ok(is_changed)
}

/// The place in a list that a part of a pointer means.
fn index(token: &str) -> Option<usize> {
    let is_number =
        token.bytes().all(|byte| byte.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
    token.parse().ok().filter(|_| is_number)
}

impl<'a> Node<'a> {
    /// Reads an object or a list that is as it was written.
    fn open(&mut self, left: &mut usize) -> Result<(), Error> {
        let Self::Raw(raw) = self else { return Ok(()) };
        let text: &'a str = raw.get();
        let (size, opened) = match text.as_bytes().first() {
            Some(b'{') => {
                let Members(members) = serde_json::from_str(text)?;
                (members.len(), Self::Object(members))
            }
            Some(b'[') => {
                let Items(items) = serde_json::from_str(text)?;
                (items.len(), Self::List(items))
            }
            _ => return Ok(()),
        };
        *left = left.checked_sub(size).ok_or_else(|| Error::custom("there are too many members"))?;
        *self = opened;
        Ok(())
    }

    fn remove(&mut self, last: &str) -> bool {
        match self {
            Self::Raw(_) => false,
            Self::Object(members) => {
                let before = members.len();
                members.retain(|(name, _)| *name != *last);
                members.len() < before
            }
            Self::List(items) => match index(last).filter(|index| *index < items.len()) {
                Some(index) => {
                    items.remove(index);
                    true
                }
                None => false,
            },
        }
    }

    fn rename(&mut self, old: &str, new: &'a str) -> bool {
        let Self::Object(members) = self else { return false };
        if old == new || !members.iter().any(|(name, _)| *name == *old) {
            return false;
        }
        members.retain(|(name, _)| *name != *new);
        for (name, _) in members.iter_mut().filter(|(name, _)| *name == *old) {
            *name = Cow::Borrowed(new);
        }
        true
    }

    /// Puts `value` in the place of what is there, once.
    fn replace(&mut self, last: &str, value: &'a RawValue) -> bool {
        let mut is_found = false;
        match self {
            Self::Raw(_) => {}
            Self::Object(members) => members.retain_mut(|(name, old)| {
                if *name != *last {
                    return true;
                }
                *old = Self::Raw(value);
                !std::mem::replace(&mut is_found, true)
            }),
            Self::List(items) => {
                if let Some(old) = index(last).and_then(|index| items.get_mut(index)) {
                    *old = Self::Raw(value);
                    is_found = true;
                }
            }
        }
        is_found
    }

    /// Adds a member unless it is there.
    fn add(&mut self, last: &'a str, value: &'a RawValue) -> bool {
        match self {
            Self::Object(members) if !members.iter().any(|(name, _)| *name == *last) => {
                members.push((Cow::Borrowed(last), Self::Raw(value)));
                true
            }
            _ => false,
        }
    }

    /// Appends to the list that is there, or makes one of what is there and `value`.
    fn append(&mut self, last: &'a str, value: &'a RawValue, left: &mut usize) -> Result<bool, Error> {
        let found = match self {
            Self::Raw(_) => return Ok(false),
            Self::Object(members) => members.iter_mut().find(|(name, _)| *name == *last).map(|(_, old)| old),
            Self::List(items) => match index(last).and_then(|index| items.get_mut(index)) {
                Some(old) => Some(old),
                None => return Ok(false),
            },
        };
        if let Some(old) = found {
            if matches!(old, Self::Raw(raw) if raw.get().starts_with('[')) {
                old.open(left)?;
            }
            match old {
                Self::List(items) => items.push(Self::Raw(value)),
                other => {
                    let before = std::mem::replace(other, Self::Raw(value));
                    *other = Self::List(vec![before, Self::Raw(value)]);
                }
            }
        } else if let Self::Object(members) = self {
            members.push((Cow::Borrowed(last), Self::List(vec![Self::Raw(value)])));
        }
        Ok(true)
    }
}

impl Serialize for Node<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Raw(raw) => raw.serialize(serializer),
            Self::Object(members) => {
                serializer.collect_map(members.iter().map(|(name, value)| (name, value)))
            }
            Self::List(items) => serializer.collect_seq(items),
        }
    }
}

/// The members of an object in their order, their values as they were written.
struct Members<'a>(Vec<(Cow<'a, str>, Node<'a>)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    if members.len() == MAX_NODES {
                        return Err(A::Error::custom("there are too many members"));
                    }
                    members.push((name, Node::Raw(value)));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// The elements of a list, as they were written.
struct Items<'a>(Vec<Node<'a>>);

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element::<&'de RawValue>()? {
                    if items.len() == MAX_NODES {
                        return Err(A::Error::custom("there are too many elements"));
                    }
                    items.push(Node::Raw(item));
                }
                Ok(Items(items))
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
