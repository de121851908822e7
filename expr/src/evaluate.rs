//! Evaluation. Its recursion is as deep as the tree, which the parser bounds.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue};

use crate::error::Fault;
use crate::facts::{ConsumerFacts, Facts, NotKnown};
use crate::query;
use crate::syntax::{Arithmetic, Comparator};
use crate::typed::{Address, Bool, Choice, Comparison, Int, MAX_TEXT, Needle, Text, Texts};

/// A part of an expression that has a value for a request.
pub(crate) trait Evaluate {
    type Value<'e>: PartialOrd
    where
        Self: 'e;

    fn evaluate<'e>(&'e self, facts: &'e impl Facts) -> Result<Self::Value<'e>, Fault<'e>>;
}

impl Evaluate for Bool {
    type Value<'e> = bool;

    fn evaluate<'e>(&'e self, facts: &'e impl Facts) -> Result<bool, Fault<'e>> {
        match self {
            Self::Literal(value) => Ok(*value),
            Self::Not(inner) => Ok(!inner.evaluate(facts)?),
            Self::All(parts) => absorb(parts, false, facts),
            Self::Any(parts) => absorb(parts, true, facts),
            Self::Choice(choice) => choice.taken(facts)?.evaluate(facts),
            Self::Bools(comparison) => comparison.evaluate(facts),
            Self::Texts(comparison) => comparison.evaluate(facts),
            Self::Ints(comparison) => comparison.evaluate(facts),
            Self::Addresses(comparison) => comparison.evaluate(facts),
            Self::StartsWith(texts) => {
                let [text, start] = &**texts;
                Ok(text.evaluate(facts)?.starts_with(&*start.evaluate(facts)?))
            }
            Self::EndsWith(texts) => {
                let [text, end] = &**texts;
                Ok(text.evaluate(facts)?.ends_with(&*end.evaluate(facts)?))
            }
            Self::Contains(text, needle) => {
                let text = text.evaluate(facts)?;
                Ok(match needle {
                    Needle::Literal(finder) => finder.find(text.as_bytes()).is_some(),
                    Needle::Computed(needle) => {
                        memchr::memmem::find(text.as_bytes(), needle.evaluate(facts)?.as_bytes()).is_some()
                    }
                })
            }
            Self::Matches(text, pattern) => Ok(pattern.is_match(&text.evaluate(facts)?)),
            Self::TextIn(text, list) => {
                let wanted = text.evaluate(facts)?;
                list.any(facts, |found| *found == *wanted)
            }
            Self::IntIn(number, list) => {
                let wanted = number.evaluate(facts)?;
                // A list with a fault is a fault, as in CEL.
                list.iter().try_fold(false, |is_in, entry| Ok(is_in | (entry.evaluate(facts)? == wanted)))
            }
            Self::InNetworks(address, networks) => {
                let address = address.evaluate(facts)?;
                Ok(networks.iter().any(|network| network.contains(&address)))
            }
            Self::HasHeader(name) => Ok(facts.headers().contains_key(name)),
            Self::HasParameter(name) => Ok(query::values(query_of(facts)?, name).next().is_some()),
            Self::HasConsumer => Ok(known(facts.consumer(), "consumer")?.is_some()),
            Self::HasSize => Ok(known(facts.body_size(), "request.size")?.is_some()),
        }
    }
}

/// Looks for a part whose value is `decides`. If there is none, the first fault counts.
fn absorb<'e>(parts: &'e [Bool], decides: bool, facts: &'e impl Facts) -> Result<bool, Fault<'e>> {
    let mut result = Ok(!decides);
    for part in parts {
        match part.evaluate(facts) {
            Ok(value) if value == decides => return Ok(value),
            Ok(_) => {}
            Err(fault) => result = result.and(Err(fault)),
        }
    }
    result
}

impl<T: Evaluate> Comparison<T> {
    fn evaluate<'e>(&'e self, facts: &'e impl Facts) -> Result<bool, Fault<'e>> {
        let (left, right) = (self.left.evaluate(facts)?, self.right.evaluate(facts)?);
        Ok(match self.comparator {
            Comparator::Equal => left == right,
            Comparator::NotEqual => left != right,
            Comparator::Less => left < right,
            Comparator::LessOrEqual => left <= right,
            Comparator::Greater => left > right,
            Comparator::GreaterOrEqual => left >= right,
        })
    }
}

impl<T> Choice<T> {
    fn taken<'e>(&'e self, facts: &'e impl Facts) -> Result<&'e T, Fault<'e>> {
        Ok(if self.condition.evaluate(facts)? { &self.then } else { &self.otherwise })
    }
}

impl Evaluate for Text {
    type Value<'e> = Cow<'e, str>;

    fn evaluate<'e>(&'e self, facts: &'e impl Facts) -> Result<Cow<'e, str>, Fault<'e>> {
        match self {
            Self::Literal(text) => Ok(Cow::Borrowed(text)),
            Self::Method => bounded(facts.method()),
            Self::Path => bounded(facts.path()),
            Self::Host => Ok(facts.host()).and_then(bounded),
            Self::Scheme => bounded(facts.scheme()),
            Self::Route => facts.route().ok_or(Fault::NoRoute).map(Cow::Borrowed),
            Self::Listener => Ok(Cow::Borrowed(facts.listener())),
            Self::ConsumerName => Ok(Cow::Borrowed(consumer_of(facts)?.name)),
            Self::Header(name) => {
                let mut lines = facts.headers().get_all(name).iter();
                let value = lines.next().ok_or(Fault::NoHeader(name))?;
                if lines.next().is_some() {
                    return Err(Fault::RepeatedHeader(name));
                }
                text_of(value).map(Cow::Borrowed)
            }
            Self::Parameter(name) => {
                let mut values = query::values(query_of(facts)?, name);
                let value = values.next().ok_or(Fault::NoParameter(name))?;
                if values.next().is_some() {
                    return Err(Fault::RepeatedParameter(name));
                }
                value.map_err(|_| Fault::NotText)
            }
            Self::LowerAscii(text) => {
                let mut text = text.evaluate(facts)?;
                if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    text.to_mut().make_ascii_lowercase();
                }
                Ok(text)
            }
            Self::Join(texts) => {
                let [left, right] = &**texts;
                let left = left.evaluate(facts)?;
                let right = right.evaluate(facts)?;
                Ok(if right.is_empty() { left } else { left + right })
            }
            Self::Choice(choice) => choice.taken(facts)?.evaluate(facts),
        }
    }
}

fn known<'e, T>(value: Result<T, NotKnown>, name: &'static str) -> Result<T, Fault<'e>> {
    value.map_err(|NotKnown| Fault::Unknown(name))
}

fn consumer_of(facts: &impl Facts) -> Result<ConsumerFacts<'_>, Fault<'_>> {
    known(facts.consumer(), "consumer")?.ok_or(Fault::NoConsumer)
}

/// A text of the request, if it is not too long.
fn bounded<'e>(text: impl Into<Cow<'e, str>>) -> Result<Cow<'e, str>, Fault<'e>> {
    let text = text.into();
    if text.len() > MAX_TEXT { Err(Fault::TooLong) } else { Ok(text) }
}

fn text_of(value: &HeaderValue) -> Result<&str, Fault<'_>> {
    if value.len() > MAX_TEXT {
        return Err(Fault::TooLong);
    }
    std::str::from_utf8(value.as_bytes()).map_err(|_| Fault::NotText)
}

fn query_of(facts: &impl Facts) -> Result<Option<&str>, Fault<'_>> {
    match facts.query() {
        Some(query) if query.len() > MAX_TEXT => Err(Fault::TooLong),
        query => Ok(query),
    }
}

impl Texts {
    /// True if an entry is `wanted`. As in CEL, an entry with a fault is a fault of the whole list.
    fn any<'e>(&'e self, facts: &'e impl Facts, wanted: impl Fn(&str) -> bool) -> Result<bool, Fault<'e>> {
        let mut is_found = false;
        match self {
            Self::Listed(texts) => {
                for text in texts {
                    is_found |= wanted(&text.evaluate(facts)?);
                }
            }
            Self::Groups => {
                is_found = consumer_of(facts)?.groups.iter().any(|group| wanted(group));
            }
            Self::Header(name) => {
                for element in elements(facts, name) {
                    is_found |= wanted(element?);
                }
            }
            Self::Parameter(name) => {
                for value in query::values(query_of(facts)?, name) {
                    is_found |= wanted(&value.map_err(|_| Fault::NotText)?);
                }
            }
        }
        Ok(is_found)
    }

    fn count<'e>(&'e self, facts: &'e impl Facts) -> Result<usize, Fault<'e>> {
        match self {
            Self::Listed(texts) => Ok(texts.len()),
            Self::Groups => Ok(consumer_of(facts)?.groups.len()),
            Self::Header(name) => {
                elements(facts, name).try_fold(0, |count, element| element.map(|_| count + 1))
            }
            Self::Parameter(name) => Ok(query::values(query_of(facts)?, name).count()),
        }
    }
}

/// The elements of all lines of a header, which commas separate (RFC 9110, section 5.6.1). A comma in a quoted string separates
/// nothing. Empty elements are left out.
fn elements<'e>(
    facts: &'e impl Facts,
    name: &'e HeaderName,
) -> impl Iterator<Item = Result<&'e str, Fault<'e>>> {
    let mut left = MAX_TEXT;
    facts.headers().get_all(name).iter().flat_map(move |value| {
        let line = match left.checked_sub(value.len()) {
            Some(rest) => {
                left = rest;
                text_of(value).and_then(|text| match has_open_quote(text) {
                    true => Err(Fault::OpenQuote(name)),
                    false => Ok(text),
                })
            }
            None => Err(Fault::TooLong),
        };
        let (text, fault) = match line {
            Ok(text) => (text, None),
            Err(fault) => ("", Some(Err(fault))),
        };
        let mut quoting = Quoting::default();
        let separated = text.split(move |c: char| !quoting.is_open_after(c) && c == ',');
        let elements = separated.map(|element| element.trim_matches([' ', '\t']));
        fault.into_iter().chain(elements.filter(|element| !element.is_empty()).map(Ok))
    })
}

/// The place within a text with quoted strings.
#[derive(Default)]
struct Quoting {
    is_open: bool,
    is_escaped: bool,
}

impl Quoting {
    /// True if a quoted string is open behind the next character.
    fn is_open_after(&mut self, c: char) -> bool {
        let was_escaped = std::mem::take(&mut self.is_escaped);
        match c {
            '\\' if self.is_open && !was_escaped => self.is_escaped = true,
            '"' if !was_escaped => self.is_open = !self.is_open,
            _ => {}
        }
        self.is_open
    }
}

/// True if a quoted string has no end. Programs disagree about where the elements of such a list end.
fn has_open_quote(text: &str) -> bool {
    let mut quoting = Quoting::default();
    memchr::memchr(b'"', text.as_bytes()).is_some()
        && text.chars().fold(false, |_, c| quoting.is_open_after(c))
}

impl Evaluate for Int {
    type Value<'e> = i64;

    fn evaluate<'e>(&'e self, facts: &'e impl Facts) -> Result<i64, Fault<'e>> {
        match self {
            Self::Literal(number) => Ok(*number),
            Self::Size => {
                let size = known(facts.body_size(), "request.size")?.ok_or(Fault::NoSize)?;
                i64::try_from(size).map_err(|_| Fault::Overflow)
            }
            Self::Time => nanos_of(known(facts.time(), "time")?),
            Self::Length(text) => {
                i64::try_from(text.evaluate(facts)?.chars().count()).map_err(|_| Fault::Overflow)
            }
            Self::Count(list) => i64::try_from(list.count(facts)?).map_err(|_| Fault::Overflow),
            Self::Parsed(text) => text.evaluate(facts)?.parse().map_err(|_| Fault::NotANumber),
            Self::Part(part, timestamp, offset) => Ok(part.of(timestamp.evaluate(facts)?, *offset)),
            Self::Negate(number) => number.evaluate(facts)?.checked_neg().ok_or(Fault::Overflow),
            Self::Arithmetic(operator, operands) => {
                let [left, right] = &**operands;
                let (left, right) = (left.evaluate(facts)?, right.evaluate(facts)?);
                let result = match operator {
                    Arithmetic::Add => left.checked_add(right),
                    Arithmetic::Subtract => left.checked_sub(right),
                    Arithmetic::Multiply => left.checked_mul(right),
                    Arithmetic::Divide | Arithmetic::Remainder if right == 0 => {
                        return Err(Fault::DivisionByZero);
                    }
                    Arithmetic::Divide => left.checked_div(right),
                    Arithmetic::Remainder => left.checked_rem(right),
                };
                result.ok_or(Fault::Overflow)
            }
            Self::Choice(choice) => choice.taken(facts)?.evaluate(facts),
        }
    }
}

/// Nanoseconds since 1970.
fn nanos_of(time: SystemTime) -> Result<i64, Fault<'static>> {
    let nanos = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()),
        Err(before) => i64::try_from(before.duration().as_nanos()).map(i64::wrapping_neg),
    };
    nanos.map_err(|_| Fault::Overflow)
}

impl Evaluate for Address {
    type Value<'e> = IpAddr;

    fn evaluate<'e>(&'e self, facts: &'e impl Facts) -> Result<IpAddr, Fault<'e>> {
        match self {
            Self::Literal(address) => Ok(*address),
            // A client of IPv4 on a socket of IPv6 has a mapped address.
            Self::Client => Ok(known(facts.client(), "client.ip")?.to_canonical()),
        }
    }
}
