//! The tree of an expression as it is written, without types.

use crate::error::ErrorAt;
use crate::token::{Lexer, Token};

/// A part of an expression.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The byte of the text that errors point at: the operator of an operation, the beginning of everything else.
    pub(crate) at: usize,
    /// The number of parts on the longest way down, this one included.
    depth: usize,
    pub(crate) shape: Shape,
}

#[derive(Debug)]
pub(crate) enum Shape {
    Bool(bool),
    Int(i64),
    Text(String),
    Name(String),
    List(Vec<Tree>),
    /// `of.field`
    Select(Box<Tree>, String),
    /// `of[key]`
    Index(Box<[Tree; 2]>),
    /// A call, with the receiver of a method.
    Call(Option<Box<Tree>>, String, Vec<Tree>),
    Not(Box<Tree>),
    Negate(Box<Tree>),
    /// `a && b && …`
    All(Vec<Tree>),
    /// `a || b || …`
    Any(Vec<Tree>),
    Binary(Operator, Box<[Tree; 2]>),
    /// `condition ? then : otherwise`
    Choice(Box<[Tree; 3]>),
}

/// An operator with two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    And,
    Or,
    In,
    Compare(Comparator),
    Arithmetic(Arithmetic),
}

/// An operator that compares two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// An operator that computes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// The deepest nesting, of brackets and of the tree. Everything recursive relies on it.
const MAX_DEPTH: usize = 32;

/// The most parts of an expression.
const MAX_PARTS: usize = 512;

/// Reads an expression. The length of `text` was checked.
pub(crate) fn parse(text: &str) -> Result<Tree, ErrorAt> {
    let mut lexer = Lexer::new(text);
    let (at, token) = lexer.next()?;
    let mut parser = Parser { lexer, at, token, nesting: 0, parts: 0 };
    let tree = parser.expression()?;
    match parser.token {
        Token::End => Ok(tree),
        token => Err(ErrorAt::new(parser.at, format!("{} is not expected here", token.describe()))),
    }
}

struct Parser<'t> {
    lexer: Lexer<'t>,
    /// The current token, and its place.
    token: Token<'t>,
    at: usize,
    /// The brackets and choices around the current token.
    nesting: usize,
    parts: usize,
}

impl<'t> Parser<'t> {
    fn expression(&mut self) -> Result<Tree, ErrorAt> {
        if self.nesting >= MAX_DEPTH {
            return Err(too_deep(self.at));
        }
        self.nesting += 1;
        let condition = self.binary(0)?;
        let at = self.at;
        let tree = if self.take_symbol("?")? {
            let then = self.binary(0)?;
            self.expect(":")?;
            let otherwise = self.expression()?;
            self.tree(at, Shape::Choice(Box::new([condition, then, otherwise])))?
        } else {
            condition
        };
        self.nesting -= 1;
        Ok(tree)
    }

    /// Reads operands and the operators between them, of `lowest` precedence or higher. The precedence rises with each operator to
    /// the right that it goes down into, so the recursion is as deep as there are precedences.
    fn binary(&mut self, lowest: u8) -> Result<Tree, ErrorAt> {
        let mut left = self.unary()?;
        while let Some((operator, precedence)) = operator(&self.token).filter(|(_, it)| *it >= lowest) {
            let at = self.at;
            self.advance()?;
            let right = self.binary(precedence + 1)?;
            let shape = match (operator, left) {
                (Operator::And, Tree { shape: Shape::All(mut all), .. }) => {
                    all.push(right);
                    Shape::All(all)
                }
                (Operator::Or, Tree { shape: Shape::Any(mut any), .. }) => {
                    any.push(right);
                    Shape::Any(any)
                }
                (Operator::And, left) => Shape::All(vec![left, right]),
                (Operator::Or, left) => Shape::Any(vec![left, right]),
                (operator, left) => Shape::Binary(operator, Box::new([left, right])),
            };
            left = self.tree(at, shape)?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Tree, ErrorAt> {
        let mut signs = Vec::new();
        loop {
            let at = self.at;
            if self.take_symbol("!")? {
                signs.push((at, true));
            } else if self.take_symbol("-")? {
                signs.push((at, false));
            } else {
                break;
            }
            if signs.len() > MAX_DEPTH {
                return Err(too_deep(at));
            }
        }
        // The lowest number has no positive counterpart.
        let mut operand = match (signs.last(), &self.token) {
            (Some(&(at, false)), &Token::Number(number)) => {
                let number = 0_i64.checked_sub_unsigned(number).ok_or_else(|| too_large(at))?;
                signs.pop();
                self.advance()?;
                let literal = self.tree(at, Shape::Int(number))?;
                self.members(literal)?
            }
            _ => self.member()?,
        };
        for (at, negates) in signs.into_iter().rev() {
            let operand_of = Box::new(operand);
            operand =
                self.tree(at, if negates { Shape::Not(operand_of) } else { Shape::Negate(operand_of) })?;
        }
        Ok(operand)
    }

    fn member(&mut self) -> Result<Tree, ErrorAt> {
        let primary = self.primary()?;
        self.members(primary)
    }

    /// Reads the fields, keys and methods behind a value.
    fn members(&mut self, mut of: Tree) -> Result<Tree, ErrorAt> {
        loop {
            let at = self.at;
            if self.take_symbol(".")? {
                let place = self.at;
                let Token::Word(field) = self.token else {
                    let found = self.token.describe();
                    return Err(ErrorAt::new(at, format!("the name of a field is expected, not {found}")));
                };
                self.advance()?;
                of = if self.take_symbol("(")? {
                    let arguments = self.list_until(")")?;
                    self.tree(place, Shape::Call(Some(Box::new(of)), field.to_owned(), arguments))?
                } else {
                    self.tree(place, Shape::Select(Box::new(of), field.to_owned()))?
                };
            } else if self.take_symbol("[")? {
                let key = self.expression()?;
                self.expect("]")?;
                of = self.tree(at, Shape::Index(Box::new([of, key])))?;
            } else {
                return Ok(of);
            }
        }
    }

    fn primary(&mut self) -> Result<Tree, ErrorAt> {
        let at = self.at;
        let shape = match std::mem::replace(&mut self.token, Token::End) {
            Token::Text(text) => Shape::Text(text),
            Token::Number(number) => Shape::Int(i64::try_from(number).map_err(|_| too_large(at))?),
            Token::Word("true") => Shape::Bool(true),
            Token::Word("false") => Shape::Bool(false),
            Token::Word("null") => return Err(ErrorAt::new(at, "null is not supported; use has()")),
            Token::Word(word) if word != "in" => {
                self.advance()?;
                let shape = if self.take_symbol("(")? {
                    Shape::Call(None, word.to_owned(), self.list_until(")")?)
                } else {
                    Shape::Name(word.to_owned())
                };
                return self.tree(at, shape);
            }
            Token::Symbol("(") => {
                self.advance()?;
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => {
                self.advance()?;
                let entries = self.list_until("]")?;
                return self.tree(at, Shape::List(entries));
            }
            Token::Symbol("{") => return Err(ErrorAt::new(at, "maps are not supported")),
            token => {
                return Err(ErrorAt::new(at, format!("a value is expected, not {}", token.describe())));
            }
        };
        self.advance()?;
        self.tree(at, shape)
    }

    /// Reads expressions with commas between them, and `end`.
    fn list_until(&mut self, end: &'static str) -> Result<Vec<Tree>, ErrorAt> {
        let mut list = Vec::new();
        while !self.take_symbol(end)? {
            if !list.is_empty() {
                if !self.take_symbol(",")? {
                    let found = self.token.describe();
                    return Err(ErrorAt::new(self.at, format!("\",\" or {end:?} is expected, not {found}")));
                }
                // A list, but not a call, may end with a comma.
                if end == "]" && self.take_symbol(end)? {
                    break;
                }
            }
            list.push(self.expression()?);
        }
        Ok(list)
    }

    fn advance(&mut self) -> Result<(), ErrorAt> {
        (self.at, self.token) = self.lexer.next()?;
        Ok(())
    }

    fn take_symbol(&mut self, symbol: &str) -> Result<bool, ErrorAt> {
        let is_there = matches!(self.token, Token::Symbol(found) if found == symbol);
        if is_there {
            self.advance()?;
        }
        Ok(is_there)
    }

    fn expect(&mut self, symbol: &str) -> Result<(), ErrorAt> {
        if self.take_symbol(symbol)? {
            return Ok(());
        }
        Err(ErrorAt::new(self.at, format!("{symbol:?} is expected, not {}", self.token.describe())))
    }

    /// Makes a tree, if it is neither too deep nor one part too many.
    fn tree(&mut self, at: usize, shape: Shape) -> Result<Tree, ErrorAt> {
        let depth = 1 + shape.children().map(|child| child.depth).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err(too_deep(at));
        }
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(ErrorAt::new(at, format!("the expression has more than {MAX_PARTS} parts")));
        }
        Ok(Tree { at, depth, shape })
    }
}

impl Shape {
    fn children(&self) -> impl Iterator<Item = &Tree> {
        let (one, many): (Option<&Tree>, &[Tree]) = match self {
            Self::Bool(_) | Self::Int(_) | Self::Text(_) | Self::Name(_) => (None, &[]),
            Self::Select(of, _) | Self::Not(of) | Self::Negate(of) => (Some(of), &[]),
            Self::Call(receiver, _, arguments) => (receiver.as_deref(), arguments),
            Self::List(list) | Self::All(list) | Self::Any(list) => (None, list),
            Self::Index(pair) | Self::Binary(_, pair) => (None, &**pair),
            Self::Choice(three) => (None, &**three),
        };
        one.into_iter().chain(many)
    }
}

/// The operator that a token is, and its precedence.
fn operator(token: &Token<'_>) -> Option<(Operator, u8)> {
    use Arithmetic::{Add, Divide, Multiply, Remainder, Subtract};
    use Comparator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let symbol = match token {
        Token::Word("in") => return Some((Operator::In, 2)),
        Token::Symbol(symbol) => *symbol,
        _ => return None,
    };
    Some(match symbol {
        "||" => (Operator::Or, 0),
        "&&" => (Operator::And, 1),
        "==" => (Operator::Compare(Equal), 2),
        "!=" => (Operator::Compare(NotEqual), 2),
        "<" => (Operator::Compare(Less), 2),
        "<=" => (Operator::Compare(LessOrEqual), 2),
        ">" => (Operator::Compare(Greater), 2),
        ">=" => (Operator::Compare(GreaterOrEqual), 2),
        "+" => (Operator::Arithmetic(Add), 3),
        "-" => (Operator::Arithmetic(Subtract), 3),
        "*" => (Operator::Arithmetic(Multiply), 4),
        "/" => (Operator::Arithmetic(Divide), 4),
        "%" => (Operator::Arithmetic(Remainder), 4),
        _ => return None,
    })
}

fn too_deep(at: usize) -> ErrorAt {
    ErrorAt::new(at, format!("the expression is nested more than {MAX_DEPTH} levels deep"))
}

fn too_large(at: usize) -> ErrorAt {
    ErrorAt::new(at, "the number is too large")
}
