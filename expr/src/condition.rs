use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::HeaderName;

use crate::check::Checker;
use crate::error::{ErrorAt, ExpressionError, Fault};
use crate::evaluate::Evaluate as _;
use crate::facts::Facts;
use crate::syntax;
use crate::typed::Bool;

/// The longest expression, bytes.
pub const MAX_LENGTH: usize = 4096;

/// The most that an evaluation may cost. A unit is about a nanosecond.
pub const MAX_COST: u64 = 1_000_000;

/// A condition over a request. A clone is cheap.
///
/// Two conditions are equal if their texts are.
#[derive(Clone)]
pub struct Condition(Arc<Parsed>);

struct Parsed {
    text: Box<str>,
    root: Bool,
    cost: u64,
    headers: Box<[HeaderName]>,
    reads_consumer: bool,
}

impl Condition {
    /// Reads a condition, checks its types and limits its cost.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        Self::read(text).map_err(|error| error.locate(text))
    }

    fn read(text: &str) -> Result<Self, ErrorAt> {
        if text.len() > MAX_LENGTH {
            let message = format!("the expression has {} bytes; at most {MAX_LENGTH}", text.len());
            return Err(ErrorAt::new(0, message));
        }
        let tree = syntax::parse(text)?;
        let mut checker = Checker::default();
        let root = checker.condition(&tree)?;
        let Checker { cost, dearest: (_, dearest), headers, reads_consumer, .. } = checker;
        if cost > MAX_COST {
            let message = format!(
                "the expression may take {cost} steps for a request; at most {MAX_COST}. This part takes most"
            );
            return Err(ErrorAt::new(dearest, message));
        }
        let headers = headers.into();
        Ok(Self(Arc::new(Parsed { text: text.into(), root, cost, headers, reads_consumer })))
    }

    /// True if the request meets the condition.
    #[inline]
    pub fn evaluate<'e>(&'e self, facts: &'e impl Facts) -> Result<bool, Fault<'e>> {
        self.0.root.evaluate(facts)
    }

    /// The text that it was read from.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// The most that an evaluation can cost: about a nanosecond each, up to [`MAX_COST`].
    pub fn cost(&self) -> u64 {
        self.0.cost
    }

    /// The headers that it reads.
    pub fn headers(&self) -> &[HeaderName] {
        &self.0.headers
    }

    /// True if it reads a property of the consumer, who is known only after authentication.
    pub fn reads_consumer(&self) -> bool {
        self.0.reads_consumer
    }
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Condition {}

impl Hash for Condition {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.0.text).finish()
    }
}
