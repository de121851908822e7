//! Operators: comparisons, arithmetic and `in`.

use super::{Checker, HEADER, MAX_NAME, Part, QUERY, Typed, scan};
use crate::error::ErrorAt;
use crate::syntax::{Arithmetic, Comparator, Operator, Shape, Tree};
use crate::typed::{Bool, Comparison, Int, MAX_TEXT, Text, Texts};

impl Checker {
    pub(super) fn binary(
        &mut self,
        at: usize,
        operator: Operator,
        left: &Tree,
        right: &Tree,
    ) -> Result<Part, ErrorAt> {
        match operator {
            Operator::In => self.within(at, left, right),
            Operator::Compare(comparator) => self.compare(at, comparator, left, right),
            Operator::Arithmetic(operator) => self.arithmetic(at, operator, left, right),
            // The parser makes lists of these.
            Operator::And | Operator::Or => Err(ErrorAt::new(at, "is not expected here")),
        }
    }

    fn compare(
        &mut self,
        at: usize,
        comparator: Comparator,
        left: &Tree,
        right: &Tree,
    ) -> Result<Part, ErrorAt> {
        let (left, right) = (self.part(left)?, self.part(right)?);
        let (one, other) = (left.type_name(), right.type_name());
        let orders = !matches!(comparator, Comparator::Equal | Comparator::NotEqual);
        self.pay(at, scan(left.bound.min(right.bound)));
        let value = match (left.value, right.value) {
            (Typed::Bool(left), Typed::Bool(right)) if !orders => {
                Bool::Bools(Box::new(Comparison { comparator, left, right }))
            }
            (Typed::Text(left), Typed::Text(right)) => {
                Bool::Texts(Box::new(Comparison { comparator, left, right }))
            }
            (Typed::Int(left), Typed::Int(right))
            | (Typed::Timestamp(left), Typed::Timestamp(right))
            | (Typed::Duration(left), Typed::Duration(right)) => {
                Bool::Ints(Box::new(Comparison { comparator, left, right }))
            }
            (Typed::Address(left), Typed::Address(right)) if !orders => {
                Bool::Addresses(Box::new(Comparison { comparator, left, right }))
            }
            (Typed::Address(_), Typed::Text(_)) | (Typed::Text(_), Typed::Address(_)) => {
                let message =
                    "an ip is not compared with a string; write ip(\"…\") or inCidr(client.ip, \"…\")";
                return Err(ErrorAt::new(at, message));
            }
            (Typed::Texts(_) | Typed::Ints(_), _) | (_, Typed::Texts(_) | Typed::Ints(_)) => {
                return Err(ErrorAt::new(at, "lists are not compared; write \"entry in list\""));
            }
            _ if one == other => {
                return Err(ErrorAt::new(at, format!("values of type {one} are not compared like this")));
            }
            _ => {
                let message =
                    format!("both sides of a comparison must have one type; they are {one} and {other}");
                return Err(ErrorAt::new(at, message));
            }
        };
        Ok(Part::new(at, Typed::Bool(value)))
    }

    fn within(&mut self, at: usize, left: &Tree, right: &Tree) -> Result<Part, ErrorAt> {
        let right = self.part(right)?;
        if let Typed::Headers | Typed::Query = right.value {
            let Shape::Text(name) = &left.shape else {
                return Err(ErrorAt::new(left.at, "the name before \"in\" must be a literal text"));
            };
            let value = self.presence(left.at, &right, name)?;
            return Ok(Part::new(at, Typed::Bool(value)));
        }
        let entry = self.part(left)?;
        let bound = entry.bound;
        let value = match (entry.value, right.value) {
            (Typed::Text(text), Typed::Texts(list)) => {
                self.pay_for(at, &list, bound, right.bound);
                Bool::TextIn(text, Box::new(list))
            }
            (Typed::Int(int), Typed::Ints(list)) => Bool::IntIn(int, list.into()),
            (value, Typed::Texts(_)) => {
                return Part::new(left.at, value).mismatch("an entry of a list(string)", "string");
            }
            (value, Typed::Ints(_)) => {
                return Part::new(left.at, value).mismatch("an entry of a list(int)", "int");
            }
            (_, value) => {
                let right = Part::new(right.at, value);
                return right
                    .mismatch("the right side of \"in\"", "a list, request.headers or request.query");
            }
        };
        Ok(Part::new(at, Typed::Bool(value)))
    }

    /// Tests that a header or parameter is there. `of` is the headers or the query.
    pub(super) fn presence(&mut self, at: usize, of: &Part, name: &str) -> Result<Bool, ErrorAt> {
        match of.value {
            Typed::Headers => Ok(Bool::HasHeader(self.header_name(at, name)?)),
            _ => {
                self.pay(at, QUERY);
                Ok(Bool::HasParameter(name.into()))
            }
        }
    }

    /// Pays for going through a list, and comparing its entries with a text of at most `bound` bytes.
    pub(super) fn pay_for(&mut self, at: usize, list: &Texts, bound: usize, list_bound: usize) {
        let cost = match list {
            Texts::Listed(texts) => texts.len() as u64 * scan(bound.min(list_bound)),
            Texts::Groups => list_bound as u64 * (2 + scan(bound.min(MAX_NAME))),
            // Its separators are looked for byte by byte, and so are its quotes.
            Texts::Header(_) => HEADER + 2 * MAX_TEXT as u64,
            Texts::Parameter(_) => QUERY,
        };
        self.pay(at, cost);
    }

    pub(super) fn negate(&mut self, at: usize, operand: &Tree) -> Result<Part, ErrorAt> {
        let operand = self.part(operand)?;
        let value = match operand.value {
            Typed::Int(int) => Typed::Int(Int::Negate(Box::new(int))),
            Typed::Duration(int) => Typed::Duration(Int::Negate(Box::new(int))),
            _ => return operand.mismatch("the operand of -", "int or duration"),
        };
        Ok(Part::new(at, value))
    }

    fn arithmetic(
        &mut self,
        at: usize,
        operator: Arithmetic,
        left: &Tree,
        right: &Tree,
    ) -> Result<Part, ErrorAt> {
        use Arithmetic::{Add, Subtract};
        let (left, right) = (self.part(left)?, self.part(right)?);
        let (one, other) = (left.type_name(), right.type_name());
        let of = |left, right| Int::Arithmetic(operator, Box::new([left, right]));
        let value = match (left.value, operator, right.value) {
            (Typed::Int(left), _, Typed::Int(right)) => Typed::Int(of(left, right)),
            (Typed::Text(left_text), Add, Typed::Text(right_text)) => {
                let bound = left.bound + right.bound;
                self.pay(at, scan(bound) + ALLOCATION);
                let value = Typed::Text(Text::Join(Box::new([left_text, right_text])));
                return Ok(Part { at, value, bound });
            }
            (Typed::Timestamp(left), Add | Subtract, Typed::Duration(right))
            | (Typed::Duration(left), Add, Typed::Timestamp(right)) => Typed::Timestamp(of(left, right)),
            (Typed::Timestamp(left), Subtract, Typed::Timestamp(right))
            | (Typed::Duration(left), Add | Subtract, Typed::Duration(right)) => {
                Typed::Duration(of(left, right))
            }
            _ => {
                let message = format!("this operator does not take {one} and {other}");
                return Err(ErrorAt::new(at, message));
            }
        };
        Ok(Part::new(at, value))
    }
}

/// The cost of a text that has to be made.
pub(super) const ALLOCATION: u64 = 50;
