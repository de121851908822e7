//! Conditions over requests, written in a subset of [CEL](https://cel.dev): `request.method == "POST" && "vip" in consumer.groups`.
//!
//! A [`Condition`] is parsed, type-checked and bounded in cost once. It is then evaluated over the [`Facts`] of each request,
//! without an allocation in the routine case. Three steps make one: [`syntax`] reads the text into a tree, [`check`] gives every
//! part of it a type and a cost, and the [`typed`] tree that results cannot be wrong in its types, so evaluation checks none.
//!
//! Nothing in an expression can take more than a bounded time or memory:
//!
//! - its text, its nesting and its parts are limited, before anything recursive looks at them;
//! - there are no loops: macros like `exists` and `map` are not part of the subset;
//! - regular expressions are literals, and compile to automata that look at each byte once;
//! - each text of a request is looked at up to [`MAX_TEXT`] bytes, and the sum of all steps is limited when it is parsed.
//!
//! An evaluation can fail with a [`Fault`]: a header is not there, the consumer is not known. A fault is neither true nor false. As in
//! CEL, `&&` and `||` absorb it when the other side alone decides.

#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod calendar;
mod check;
mod condition;
mod error;
mod evaluate;
mod facts;
mod pattern;
mod query;
mod syntax;
mod token;
mod typed;

pub use condition::{Condition, MAX_COST, MAX_LENGTH};
pub use error::{ExpressionError, Fault};
pub use facts::{ConsumerFacts, Facts, NotKnown};
pub use typed::MAX_TEXT;
