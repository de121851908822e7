use std::fmt;

use http::HeaderName;

/// The reason why a text is not a condition, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionError {
    /// The line, from 1.
    pub line: usize,
    /// The column within the line, in characters, from 1.
    pub column: usize,
    /// The error, for a person.
    pub message: String,
    /// True if the text has more than one line.
    has_lines: bool,
}

/// An error at a byte of the text.
#[derive(Debug)]
pub(crate) struct ErrorAt {
    pub(crate) at: usize,
    pub(crate) message: String,
}

impl ErrorAt {
    pub(crate) fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }

    /// Finds line and column of the place in `text`.
    pub(crate) fn locate(self, text: &str) -> ExpressionError {
        let before = text.get(..text.floor_char_boundary(self.at)).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        ExpressionError {
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
            message: self.message,
            has_lines: text.trim_end().contains('\n'),
        }
    }
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.has_lines {
            write!(f, "line {}, ", self.line)?;
        }
        write!(f, "column {}: {}", self.column, self.message)
    }
}

impl std::error::Error for ExpressionError {}

/// The reason why a condition is neither true nor false for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault<'e> {
    /// The request does not have the header.
    NoHeader(&'e HeaderName),
    /// The header is there several times, so it has no one value.
    RepeatedHeader(&'e HeaderName),
    /// A quoted string in the list of the header has no end.
    OpenQuote(&'e HeaderName),
    /// The query does not have the parameter.
    NoParameter(&'e str),
    /// The parameter is there several times, so it has no one value.
    RepeatedParameter(&'e str),
    /// A header or a parameter is not UTF-8.
    NotText,
    /// A text of the request is longer than [`MAX_TEXT`](crate::MAX_TEXT).
    TooLong,
    /// No plugin has authenticated a consumer.
    NoConsumer,
    /// The client does not say how long the body is.
    NoSize,
    /// No route takes the request.
    NoRoute,
    /// This part of the request is not known to the caller: see [`NotKnown`](crate::NotKnown).
    Unknown(&'static str),
    /// `int()` of a text that is no whole number.
    NotANumber,
    /// A number or a time is too large.
    Overflow,
    /// A division by 0.
    DivisionByZero,
}

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader(name) => write!(f, "the request has no header {name}"),
            Self::RepeatedHeader(name) => write!(f, "the request has the header {name} more than once"),
            Self::OpenQuote(name) => write!(f, "a quoted string in the header {name} has no end"),
            Self::NoParameter(name) => write!(f, "the query has no parameter {name}"),
            Self::RepeatedParameter(name) => write!(f, "the query has the parameter {name} more than once"),
            Self::NotText => f.write_str("a header or parameter is not UTF-8"),
            Self::TooLong => f.write_str("a text of the request is too long"),
            Self::NoConsumer => f.write_str("no consumer is authenticated"),
            Self::NoSize => f.write_str("the client did not announce the size of the body"),
            Self::NoRoute => f.write_str("no route takes the request"),
            Self::Unknown(what) => write!(f, "{what} is not known"),
            Self::NotANumber => f.write_str("int() was given a text that is not a whole number"),
            Self::Overflow => f.write_str("a number is too large"),
            Self::DivisionByZero => f.write_str("a number is divided by 0"),
        }
    }
}
