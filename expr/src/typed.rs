//! The tree of an expression with its types. It is evaluated as it stands: there is no type to check any more.

use std::net::IpAddr;

use http::HeaderName;
use ipnet::IpNet;

use crate::calendar::Part;
use crate::pattern::Pattern;
use crate::syntax::{Arithmetic, Comparator};

/// The most bytes of a text of a request that a condition looks at. A longer one is a [`Fault`](crate::Fault).
pub const MAX_TEXT: usize = 64 << 10;

#[derive(Debug)]
pub(crate) enum Bool {
    Literal(bool),
    Not(Box<Bool>),
    /// False if one is false, whatever faults the others have.
    All(Box<[Bool]>),
    /// True if one is true, whatever faults the others have.
    Any(Box<[Bool]>),
    Choice(Box<Choice<Bool>>),
    Bools(Box<Comparison<Bool>>),
    Texts(Box<Comparison<Text>>),
    /// Numbers, timestamps and durations.
    Ints(Box<Comparison<Int>>),
    Addresses(Box<Comparison<Address>>),
    StartsWith(Box<[Text; 2]>),
    EndsWith(Box<[Text; 2]>),
    Contains(Text, Needle),
    Matches(Text, Box<Pattern>),
    TextIn(Text, Box<Texts>),
    IntIn(Int, Box<[Int]>),
    InNetworks(Address, Box<[IpNet]>),
    HasHeader(HeaderName),
    HasParameter(Box<str>),
    HasConsumer,
    HasSize,
}

#[derive(Debug)]
pub(crate) enum Text {
    Literal(Box<str>),
    Method,
    Path,
    Host,
    Scheme,
    Route,
    Listener,
    ConsumerName,
    Header(HeaderName),
    Parameter(Box<str>),
    LowerAscii(Box<Text>),
    Join(Box<[Text; 2]>),
    Choice(Box<Choice<Text>>),
}

/// A number; a timestamp in nanoseconds since 1970; or a duration in nanoseconds.
#[derive(Debug)]
pub(crate) enum Int {
    Literal(i64),
    Size,
    Time,
    /// The number of characters.
    Length(Text),
    /// The number of entries.
    Count(Box<Texts>),
    /// The number that a text spells.
    Parsed(Text),
    /// A part of a timestamp, at an offset from UTC in seconds.
    Part(Part, Box<Int>, i64),
    Negate(Box<Int>),
    Arithmetic(Arithmetic, Box<[Int; 2]>),
    Choice(Box<Choice<Int>>),
}

#[derive(Debug)]
pub(crate) enum Address {
    Literal(IpAddr),
    Client,
}

/// A list of texts.
#[derive(Debug)]
pub(crate) enum Texts {
    Listed(Box<[Text]>),
    Groups,
    /// The elements of all lines of a header.
    Header(HeaderName),
    /// The values of all parameters of a name.
    Parameter(Box<str>),
}

#[derive(Debug)]
pub(crate) struct Comparison<T> {
    pub(crate) comparator: Comparator,
    pub(crate) left: T,
    pub(crate) right: T,
}

#[derive(Debug)]
pub(crate) struct Choice<T> {
    pub(crate) condition: Bool,
    pub(crate) then: T,
    pub(crate) otherwise: T,
}

/// A text that is looked for in another.
#[derive(Debug)]
pub(crate) enum Needle {
    /// It is prepared once, so that a search looks at each byte once.
    Literal(Box<memchr::memmem::Finder<'static>>),
    Computed(Text),
}
