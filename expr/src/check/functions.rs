//! Functions and methods.

use std::net::IpAddr;

use ipnet::IpNet;
use memchr::memmem::Finder;

use super::operators::ALLOCATION;
use super::{Checker, Part, QUERY, Typed, scan, search};
use crate::calendar::{self, Part as TimePart};
use crate::error::ErrorAt;
use crate::pattern::Pattern;
use crate::syntax::{Shape, Tree};
use crate::typed::{Address, Bool, Int, MAX_TEXT, Needle, Text, Texts};

/// The most regular expressions of a condition. Their automata take memory, and making them takes time.
const MAX_PATTERNS: usize = 16;

impl Checker {
    pub(super) fn call(
        &mut self,
        at: usize,
        receiver: Option<&Tree>,
        name: &str,
        arguments: &[Tree],
    ) -> Result<Part, ErrorAt> {
        match (name, receiver, arguments) {
            ("has", None, [of]) => self.has(at, of),
            ("size", None, [of]) | ("size", Some(of), []) => self.size(at, of),
            ("int", None, [of]) => {
                let of = self.part(of)?;
                let (text, bound) = of.into_text("the argument of int()")?;
                self.pay(at, search(bound));
                Ok(Part::new(at, Typed::Int(Int::Parsed(text))))
            }
            ("inCidr", None, [address, networks]) => self.in_cidr(at, address, networks),
            ("ip", None, [of]) => {
                let address = literal(of, "ip()")?.parse::<IpAddr>();
                let address = address.map_err(|_| ErrorAt::new(of.at, "is not an IP address"))?;
                Ok(Part::new(at, Typed::Address(Address::Literal(address.to_canonical()))))
            }
            ("timestamp", None, [of]) => {
                let nanos = calendar::timestamp(literal(of, "timestamp()")?).ok_or_else(|| {
                    ErrorAt::new(of.at, "is not a timestamp from 1678 to 2261; write 2026-01-31T12:00:00Z")
                })?;
                Ok(Part::new(at, Typed::Timestamp(Int::Literal(nanos))))
            }
            ("duration", None, [of]) => {
                let nanos = calendar::duration(literal(of, "duration()")?)
                    .ok_or_else(|| ErrorAt::new(of.at, "is not a duration; write 1h30m, 10s or 500ms"))?;
                Ok(Part::new(at, Typed::Duration(Int::Literal(nanos))))
            }
            ("startsWith" | "endsWith" | "contains", Some(of), [other]) => self.search(at, name, of, other),
            ("matches", Some(of), [pattern]) | ("matches", None, [of, pattern]) => {
                self.matches(at, of, pattern)
            }
            ("lowerAscii", Some(of), []) => {
                let (text, bound) = self.part(of)?.into_text("the text of lowerAscii")?;
                self.pay(at, search(bound) + ALLOCATION);
                Ok(Part { at, value: Typed::Text(Text::LowerAscii(Box::new(text))), bound })
            }
            ("all", Some(of), [name]) => self.all_values(at, of, name),
            (method, Some(of), [] | [_]) if TimePart::of_method(method).is_some() => {
                self.time_part(at, method, of, arguments.first())
            }
            _ => Err(unknown_call(at, name, receiver.is_some())),
        }
    }

    fn has(&mut self, at: usize, of: &Tree) -> Result<Part, ErrorAt> {
        let Shape::Select(parent, field) = &of.shape else {
            let message = match &of.shape {
                Shape::Index(_) => "has() takes a field; write \"name\" in request.headers",
                Shape::Name(name) if name == "consumer" => "has() takes a field; write has(consumer.name)",
                _ => "has() takes a field, as in has(consumer.name)",
            };
            return Err(ErrorAt::new(of.at, message));
        };
        let parent = self.part(parent)?;
        if let Typed::Headers | Typed::Query = parent.value {
            let value = self.presence(of.at, &parent, field)?;
            return Ok(Part::new(at, Typed::Bool(value)));
        }
        let value = match self.part(of)?.value {
            Typed::Text(Text::ConsumerName) | Typed::Texts(Texts::Groups) => Bool::HasConsumer,
            Typed::Int(Int::Size) => Bool::HasSize,
            _ => return Err(ErrorAt::new(of.at, format!("{field:?} is always there"))),
        };
        Ok(Part::new(at, Typed::Bool(value)))
    }

    fn size(&mut self, at: usize, of: &Tree) -> Result<Part, ErrorAt> {
        let of = self.part(of)?;
        let bound = of.bound;
        let value = match of.value {
            Typed::Text(text) => {
                self.pay(at, scan(bound));
                Int::Length(text)
            }
            Typed::Texts(list) => {
                self.pay_for(at, &list, 0, bound);
                Int::Count(Box::new(list))
            }
            _ => return of.mismatch("the argument of size()", "string or list(string)"),
        };
        Ok(Part::new(at, Typed::Int(value)))
    }

    fn in_cidr(&mut self, at: usize, address: &Tree, networks: &Tree) -> Result<Part, ErrorAt> {
        let address = self.part(address)?;
        let Typed::Address(address) = address.value else {
            return address.mismatch("the first argument of inCidr()", "ip");
        };
        let list = match &networks.shape {
            Shape::List(list) if !list.is_empty() => list.as_slice(),
            _ => std::slice::from_ref(networks),
        };
        let network =
            |of: &Tree| network(literal(of, "inCidr()")?).map_err(|message| ErrorAt::new(of.at, message));
        let networks: Box<[IpNet]> = list.iter().map(network).collect::<Result<_, _>>()?;
        self.pay(at, networks.len() as u64);
        Ok(Part::new(at, Typed::Bool(Bool::InNetworks(address, networks))))
    }

    fn search(&mut self, at: usize, name: &str, of: &Tree, other: &Tree) -> Result<Part, ErrorAt> {
        let (text, bound) = self.part(of)?.into_text(&format!("the text of {name}"))?;
        let (other, other_bound) = self.part(other)?.into_text(&format!("the argument of {name}()"))?;
        self.pay(at, scan(bound.min(other_bound)));
        let value = match name {
            "startsWith" => Bool::StartsWith(Box::new([text, other])),
            "endsWith" => Bool::EndsWith(Box::new([text, other])),
            _ => {
                self.pay(at, search(bound) + search(other_bound));
                let needle = match other {
                    Text::Literal(literal) => {
                        Needle::Literal(Box::new(Finder::new(literal.as_bytes()).into_owned()))
                    }
                    computed => Needle::Computed(computed),
                };
                Bool::Contains(text, needle)
            }
        };
        Ok(Part::new(at, Typed::Bool(value)))
    }

    fn matches(&mut self, at: usize, of: &Tree, pattern: &Tree) -> Result<Part, ErrorAt> {
        let (text, bound) = self.part(of)?.into_text("the text of matches")?;
        self.patterns += 1;
        if self.patterns > MAX_PATTERNS {
            let message =
                format!("the expression has more than {MAX_PATTERNS} regular expressions; join some with |");
            return Err(ErrorAt::new(at, message));
        }
        let compiled = Pattern::new(literal(pattern, "matches()")?);
        let compiled = compiled.map_err(|message| ErrorAt::new(pattern.at, message))?;
        self.pay(at, search(bound));
        Ok(Part::new(at, Typed::Bool(Bool::Matches(text, Box::new(compiled)))))
    }

    /// `request.headers.all("x-role")`
    fn all_values(&mut self, at: usize, of: &Tree, name: &Tree) -> Result<Part, ErrorAt> {
        let of = self.part(of)?;
        let values = match of.value {
            Typed::Headers => Texts::Header(self.header_name(name.at, literal(name, "all()")?)?),
            Typed::Query => {
                self.pay(at, QUERY);
                Texts::Parameter(literal(name, "all()")?.into())
            }
            Typed::Texts(_) | Typed::Ints(_) => return Err(no_macros(at)),
            _ => return of.mismatch("the left side of all()", "request.headers or request.query"),
        };
        Ok(Part { at, value: Typed::Texts(values), bound: MAX_TEXT })
    }

    fn time_part(
        &mut self,
        at: usize,
        method: &str,
        of: &Tree,
        zone: Option<&Tree>,
    ) -> Result<Part, ErrorAt> {
        let of = self.part(of)?;
        let Typed::Timestamp(timestamp) = of.value else {
            return of.mismatch(&format!("the left side of {method}()"), "timestamp");
        };
        let offset = match zone {
            None => 0,
            Some(zone) => calendar::offset(literal(zone, method)?).ok_or_else(|| {
                ErrorAt::new(
                    zone.at,
                    "is not an offset from UTC; write +02:00. Names of zones are not supported",
                )
            })?,
        };
        let Some(part) = TimePart::of_method(method) else { return Err(unknown_call(at, method, true)) };
        Ok(Part::new(at, Typed::Int(Int::Part(part, Box::new(timestamp), offset))))
    }
}

/// Reads a range of addresses. One that misleads about the addresses in it is refused.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network
        .map_err(|_| format!("{text:?} is not a range of addresses; write 10.0.0.0/8 or 2001:db8::/32"))?;
    if network.addr().to_canonical() != network.addr() {
        return Err(format!("{text:?} must be written as IPv4 addresses"));
    }
    match network.trunc() {
        first if first == network => Ok(network),
        first => Err(format!("{text:?} has bits beyond its prefix; write {first}")),
    }
}

/// The text of a literal, which `function` asks for so that it is checked and compiled once.
fn literal<'t>(tree: &'t Tree, function: &str) -> Result<&'t str, ErrorAt> {
    match &tree.shape {
        Shape::Text(text) => Ok(text),
        _ => Err(ErrorAt::new(tree.at, format!("{function} takes a literal text"))),
    }
}

/// The calls that there are, as people write them.
const KNOWN: &str = "has(field), size(text), int(text), ip(\"…\"), inCidr(ip, \"…\"), timestamp(\"…\"), duration(\"…\"), \
    text.startsWith(text), endsWith, contains, matches(\"…\"), lowerAscii(), request.headers.all(\"…\"), request.query.all(\"…\"), \
    time.getHours() and its kind";

fn unknown_call(at: usize, name: &str, is_method: bool) -> ErrorAt {
    if is_method && ["exists", "exists_one", "filter", "map"].contains(&name) {
        return no_macros(at);
    }
    let kind = if is_method { "method" } else { "function" };
    ErrorAt::new(at, format!("there is no {kind} {name:?} with these arguments; known are {KNOWN}"))
}

fn no_macros(at: usize) -> ErrorAt {
    ErrorAt::new(at, "macros over lists are not supported; write \"entry in list\"")
}
