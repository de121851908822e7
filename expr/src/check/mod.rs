//! Gives every part of an expression its type, and adds up what the parts can cost.

mod functions;
mod operators;

use http::HeaderName;

use crate::error::ErrorAt;
use crate::syntax::{Shape, Tree};
use crate::typed::{Address, Bool, Choice, Int, MAX_TEXT, Text, Texts};

/// The properties that an expression needs, and its highest cost.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// The most that an evaluation can cost: about a nanosecond each.
    pub(crate) cost: u64,
    /// The part that costs most, and its place.
    pub(crate) dearest: (u64, usize),
    /// The headers that it reads.
    pub(crate) headers: Vec<HeaderName>,
    /// True if it reads a property of the consumer.
    pub(crate) reads_consumer: bool,
    /// The number of its regular expressions.
    patterns: usize,
}

/// A part with its type.
pub(super) struct Part {
    pub(super) at: usize,
    pub(super) value: Typed,
    /// The most bytes of a text, or entries of a list.
    pub(super) bound: usize,
}

pub(super) enum Typed {
    Bool(Bool),
    Int(Int),
    Text(Text),
    Address(Address),
    Timestamp(Int),
    Duration(Int),
    Texts(Texts),
    Ints(Vec<Int>),
    Headers,
    Query,
    Space(&'static Space),
}

/// A name that has fields but no value.
pub(super) struct Space {
    name: &'static str,
    fields: &'static [Field],
}

struct Field {
    name: &'static str,
    value: fn() -> Typed,
    bound: usize,
}

const fn field(name: &'static str, value: fn() -> Typed, bound: usize) -> Field {
    Field { name, value, bound }
}

/// The longest name of a resource, bytes.
const MAX_NAME: usize = 256;

/// The most groups of a consumer.
const MAX_GROUPS: usize = 1000;

static SPACES: [Space; 5] = [
    Space {
        name: "request",
        fields: &[
            field("method", || Typed::Text(Text::Method), MAX_TEXT),
            field("path", || Typed::Text(Text::Path), MAX_TEXT),
            field("host", || Typed::Text(Text::Host), MAX_TEXT),
            field("scheme", || Typed::Text(Text::Scheme), MAX_NAME),
            field("headers", || Typed::Headers, 0),
            field("query", || Typed::Query, 0),
            field("size", || Typed::Int(Int::Size), 0),
        ],
    },
    Space { name: "client", fields: &[field("ip", || Typed::Address(Address::Client), 0)] },
    Space {
        name: "consumer",
        fields: &[
            field("name", || Typed::Text(Text::ConsumerName), MAX_NAME),
            field("groups", || Typed::Texts(Texts::Groups), MAX_GROUPS),
        ],
    },
    Space { name: "route", fields: &[field("name", || Typed::Text(Text::Route), MAX_NAME)] },
    Space { name: "listener", fields: &[field("name", || Typed::Text(Text::Listener), MAX_NAME)] },
];

/// The cost of any step.
const STEP: u64 = 5;

/// The cost of finding a header by its name, without its value.
const HEADER: u64 = 20;

/// The cost of comparing or copying bytes, which a processor does by many at a time.
pub(super) fn scan(bytes: usize) -> u64 {
    bytes as u64 / 8
}

/// The cost of a search that looks at each byte.
pub(super) fn search(bytes: usize) -> u64 {
    bytes as u64
}

/// The cost of finding a parameter in a query.
pub(super) const QUERY: u64 = MAX_TEXT as u64;

impl Part {
    pub(super) fn new(at: usize, value: Typed) -> Self {
        Self { at, value, bound: 0 }
    }

    /// The type, as errors name it.
    pub(super) fn type_name(&self) -> &'static str {
        match &self.value {
            Typed::Bool(_) => "bool",
            Typed::Int(_) => "int",
            Typed::Text(_) => "string",
            Typed::Address(_) => "ip",
            Typed::Timestamp(_) => "timestamp",
            Typed::Duration(_) => "duration",
            Typed::Texts(_) => "list(string)",
            Typed::Ints(_) => "list(int)",
            Typed::Headers => "the headers as a whole",
            Typed::Query => "the query as a whole",
            Typed::Space(space) => space.name,
        }
    }

    /// The error that another type was expected.
    pub(super) fn mismatch<T>(&self, context: &str, expected: &str) -> Result<T, ErrorAt> {
        let found = self.type_name();
        Err(ErrorAt::new(self.at, format!("{context} must be {expected}, but is {found}")))
    }

    pub(super) fn into_bool(self, context: &str) -> Result<Bool, ErrorAt> {
        match self.value {
            Typed::Bool(value) => Ok(value),
            _ => self.mismatch(context, "bool"),
        }
    }

    /// The text and its bound.
    pub(super) fn into_text(self, context: &str) -> Result<(Text, usize), ErrorAt> {
        match self.value {
            Typed::Text(value) => Ok((value, self.bound)),
            _ => self.mismatch(context, "string"),
        }
    }
}

impl Checker {
    /// Gives `tree`, a whole expression, its type.
    pub(crate) fn condition(&mut self, tree: &Tree) -> Result<Bool, ErrorAt> {
        self.part(tree)?.into_bool("the condition")
    }

    pub(super) fn part(&mut self, tree: &Tree) -> Result<Part, ErrorAt> {
        let at = tree.at;
        self.pay(at, STEP);
        match &tree.shape {
            Shape::Bool(value) => Ok(Part::new(at, Typed::Bool(Bool::Literal(*value)))),
            Shape::Int(value) => Ok(Part::new(at, Typed::Int(Int::Literal(*value)))),
            Shape::Text(text) => {
                let value = Typed::Text(Text::Literal(text.as_str().into()));
                Ok(Part { at, value, bound: text.len() })
            }
            Shape::Name(name) => self.name(at, name),
            Shape::Select(of, field) => self.select(at, of, field),
            Shape::Index(pair) => {
                let [of, key] = &**pair;
                self.index(of, key)
            }
            Shape::Call(receiver, name, arguments) => self.call(at, receiver.as_deref(), name, arguments),
            Shape::List(entries) => self.list(at, entries),
            Shape::Not(operand) => {
                let operand = self.part(operand)?.into_bool("the operand of !")?;
                Ok(Part::new(at, Typed::Bool(Bool::Not(Box::new(operand)))))
            }
            Shape::Negate(operand) => self.negate(at, operand),
            Shape::All(parts) => {
                Ok(Part::new(at, Typed::Bool(Bool::All(self.bools(parts, "an operand of &&")?))))
            }
            Shape::Any(parts) => {
                Ok(Part::new(at, Typed::Bool(Bool::Any(self.bools(parts, "an operand of ||")?))))
            }
            Shape::Binary(operator, pair) => {
                let [left, right] = &**pair;
                self.binary(at, *operator, left, right)
            }
            Shape::Choice(parts) => {
                let [condition, then, otherwise] = &**parts;
                self.choice(at, condition, then, otherwise)
            }
        }
    }

    /// Adds what a part at `at` costs.
    pub(super) fn pay(&mut self, at: usize, cost: u64) {
        self.cost = self.cost.saturating_add(cost);
        if cost > self.dearest.0 {
            self.dearest = (cost, at);
        }
    }

    fn bools(&mut self, parts: &[Tree], context: &str) -> Result<Box<[Bool]>, ErrorAt> {
        parts.iter().map(|part| self.part(part)?.into_bool(context)).collect()
    }

    fn name(&mut self, at: usize, name: &str) -> Result<Part, ErrorAt> {
        if name == "time" {
            return Ok(Part::new(at, Typed::Timestamp(Int::Time)));
        }
        if let Some(space) = SPACES.iter().find(|space| space.name == name) {
            return Ok(Part::new(at, Typed::Space(space)));
        }
        let known = SPACES.iter().map(|space| space.name).collect::<Vec<_>>().join(", ");
        Err(ErrorAt::new(at, format!("there is no {name:?}; known are {known}, time")))
    }

    fn select(&mut self, at: usize, of: &Tree, field: &str) -> Result<Part, ErrorAt> {
        let of = self.part(of)?;
        match of.value {
            Typed::Headers => self.header(at, field),
            Typed::Query => self.parameter(at, field),
            Typed::Space(space) => {
                let Some(found) = space.fields.iter().find(|known| known.name == field) else {
                    let known: Vec<_> = space.fields.iter().map(|known| known.name).collect();
                    let (name, known) = (space.name, known.join(", "));
                    return Err(ErrorAt::new(
                        at,
                        format!("{name} has no field {field:?}; known are {known}"),
                    ));
                };
                self.reads_consumer |= space.name == "consumer";
                self.pay(at, scan(found.bound));
                Ok(Part { at, value: (found.value)(), bound: found.bound })
            }
            _ => Err(ErrorAt::new(at, format!("a value of type {} has no fields", of.type_name()))),
        }
    }

    fn index(&mut self, of: &Tree, key: &Tree) -> Result<Part, ErrorAt> {
        let of = self.part(of)?;
        match (&of.value, &key.shape) {
            (Typed::Headers, Shape::Text(name)) => self.header(key.at, name),
            (Typed::Query, Shape::Text(name)) => self.parameter(key.at, name),
            (Typed::Headers | Typed::Query, _) => {
                Err(ErrorAt::new(key.at, "the name in the brackets must be a literal text"))
            }
            (Typed::Texts(_) | Typed::Ints(_), _) => {
                Err(ErrorAt::new(of.at, "entries of lists have no numbers here; write \"entry in list\""))
            }
            _ => Err(ErrorAt::new(of.at, format!("a value of type {} has no entries", of.type_name()))),
        }
    }

    /// The one value of a header.
    fn header(&mut self, at: usize, name: &str) -> Result<Part, ErrorAt> {
        let name = self.header_name(at, name)?;
        self.pay(at, HEADER + scan(MAX_TEXT));
        Ok(Part { at, value: Typed::Text(Text::Header(name)), bound: MAX_TEXT })
    }

    /// The one value of a parameter.
    fn parameter(&mut self, at: usize, name: &str) -> Result<Part, ErrorAt> {
        self.pay(at, QUERY);
        Ok(Part { at, value: Typed::Text(Text::Parameter(name.into())), bound: MAX_TEXT })
    }

    pub(super) fn header_name(&mut self, at: usize, name: &str) -> Result<HeaderName, ErrorAt> {
        let parsed = name.parse::<HeaderName>();
        let parsed = parsed.map_err(|_| ErrorAt::new(at, format!("{name:?} is not the name of a header")))?;
        self.pay(at, HEADER);
        if !self.headers.contains(&parsed) {
            self.headers.push(parsed.clone());
        }
        Ok(parsed)
    }

    fn list(&mut self, at: usize, entries: &[Tree]) -> Result<Part, ErrorAt> {
        let (mut texts, mut ints, mut bound) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            let entry = self.part(entry)?;
            let is_mixed =
                if matches!(entry.value, Typed::Int(_)) { &texts.is_empty() } else { &ints.is_empty() };
            if !is_mixed {
                return entry
                    .mismatch("an entry of this list", if ints.is_empty() { "string" } else { "int" });
            }
            match entry.value {
                Typed::Text(text) => {
                    bound = bound.max(entry.bound);
                    texts.push(text);
                }
                Typed::Int(int) => ints.push(int),
                _ => return entry.mismatch("an entry of a list", "string or int"),
            }
        }
        let value = match (texts.is_empty(), ints.is_empty()) {
            (true, true) => return Err(ErrorAt::new(at, "the list is empty")),
            (true, false) => Typed::Ints(ints),
            (false, _) => Typed::Texts(Texts::Listed(texts.into())),
        };
        Ok(Part { at, value, bound })
    }

    fn choice(
        &mut self,
        at: usize,
        condition: &Tree,
        then: &Tree,
        otherwise: &Tree,
    ) -> Result<Part, ErrorAt> {
        let condition = self.part(condition)?.into_bool("the condition before ?")?;
        let (then, otherwise) = (self.part(then)?, self.part(otherwise)?);
        let bound = then.bound.max(otherwise.bound);
        let (one, other) = (then.type_name(), otherwise.type_name());
        let value = match (then.value, otherwise.value) {
            (Typed::Bool(then), Typed::Bool(otherwise)) => {
                Typed::Bool(Bool::Choice(Box::new(Choice { condition, then, otherwise })))
            }
            (Typed::Text(then), Typed::Text(otherwise)) => {
                Typed::Text(Text::Choice(Box::new(Choice { condition, then, otherwise })))
            }
            (Typed::Int(then), Typed::Int(otherwise)) => {
                Typed::Int(Int::Choice(Box::new(Choice { condition, then, otherwise })))
            }
            (Typed::Timestamp(then), Typed::Timestamp(otherwise)) => {
                Typed::Timestamp(Int::Choice(Box::new(Choice { condition, then, otherwise })))
            }
            (Typed::Duration(then), Typed::Duration(otherwise)) => {
                Typed::Duration(Int::Choice(Box::new(Choice { condition, then, otherwise })))
            }
            _ => {
                let message = format!(
                    "both results of ?: must be bool, string, int, timestamp or duration alike; they are {one} and {other}"
                );
                return Err(ErrorAt::new(at, message));
            }
        };
        Ok(Part { at, value, bound })
    }
}
