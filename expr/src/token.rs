//! The tokens of an expression.

use crate::error::ErrorAt;

/// A token. The place is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token<'t> {
    /// A name or a reserved word.
    Word(&'t str),
    /// A literal text, its escapes resolved.
    Text(String),
    /// A number without its sign.
    Number(u64),
    /// An operator or a bracket.
    Symbol(&'static str),
    /// The end of the expression.
    End,
}

impl Token<'_> {
    /// The token as an error names it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("{word:?}"),
            Self::Text(_) => "a text".to_owned(),
            Self::Number(number) => number.to_string(),
            Self::Symbol(symbol) => format!("{symbol:?}"),
            Self::End => "the end of the expression".to_owned(),
        }
    }
}

/// Longer symbols come before their beginnings.
const SYMBOLS: [&str; 23] = [
    "&&", "||", "==", "!=", "<=", ">=", "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "!", "<", ">", "+",
    "-", "*", "/",
];

/// Reads tokens from a text.
pub(crate) struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next token and the byte at which it begins.
    pub(crate) fn next(&mut self) -> Result<(usize, Token<'t>), ErrorAt> {
        self.skip_space();
        let at = self.at;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok((at, Token::End)) };
        let token = match first {
            'a'..='z' | 'A'..='Z' | '_' => self.word()?,
            '0'..='9' => self.number()?,
            '"' | '\'' => Token::Text(self.quoted(false)?),
            _ => Token::Symbol(self.symbol(first)?),
        };
        Ok((at, token))
    }

    /// Skips white space and comments.
    fn skip_space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn symbol(&mut self, first: char) -> Result<&'static str, ErrorAt> {
        let rest = self.rest();
        if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            self.at += symbol.len();
            return Ok(symbol);
        }
        if first == '%' {
            self.at += 1;
            return Ok("%");
        }
        let message = match first {
            '=' => "\"=\" is no operator; write \"==\"".to_owned(),
            '&' => "\"&\" is no operator; write \"&&\"".to_owned(),
            '|' => "\"|\" is no operator; write \"||\"".to_owned(),
            other => format!("{other:?} has no meaning here"),
        };
        Err(ErrorAt::new(self.at, message))
    }

    fn word(&mut self) -> Result<Token<'t>, ErrorAt> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default();
        if rest.get(end..).is_some_and(|behind| behind.starts_with(['"', '\''])) {
            match word {
                "r" | "R" => {
                    self.at += end;
                    return self.quoted(true).map(Token::Text);
                }
                "b" | "B" | "br" | "bR" | "Br" | "BR" | "rb" => {
                    return Err(ErrorAt::new(self.at, "bytes are not supported; write a text without the b"));
                }
                _ => {}
            }
        }
        self.at += end;
        Ok(Token::Word(word))
    }

    fn number(&mut self) -> Result<Token<'t>, ErrorAt> {
        let rest = self.rest();
        let error = |message: &str| Err(ErrorAt::new(self.at, message));
        let hexadecimal = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X"));
        let (digits, radix) = hexadecimal.map_or((rest, 10), |digits| (digits, 16));
        let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        let (number, behind) = digits.split_at(end);
        let mut behind = behind.chars();
        match (behind.next(), behind.next()) {
            (Some('u' | 'U'), _) => return error("unsigned numbers are not supported; leave out the u"),
            (Some('.'), Some('0'..='9')) | (Some('e' | 'E'), _) => {
                return error("numbers with a fraction are not supported");
            }
            (Some(c), _) if c.is_alphanumeric() || c == '_' => return error("is not a number"),
            _ => {}
        }
        let Ok(value) = u64::from_str_radix(number, radix) else {
            return error(if number.is_empty() { "is not a number" } else { "the number is too large" });
        };
        self.at += rest.len() - digits.len() + end;
        Ok(Token::Number(value))
    }

    /// Reads a text from its first quote to its last. In a raw one, a backslash stands for itself.
    fn quoted(&mut self, raw: bool) -> Result<String, ErrorAt> {
        let start = self.at;
        let rest = self.rest();
        let one = if rest.starts_with('"') { "\"" } else { "'" };
        let three = if rest.starts_with('"') { "\"\"\"" } else { "'''" };
        let quote = if rest.starts_with(three) { three } else { one };
        self.at += quote.len();
        let mut out = String::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                return Ok(out);
            }
            match rest.chars().next() {
                Some('\\') if !raw => out.push(self.escape()?),
                Some('\n' | '\r') if quote == one => {
                    return Err(ErrorAt::new(
                        self.at,
                        "a text with a line break needs three quotes at both ends",
                    ));
                }
                Some(c) => {
                    out.push(c);
                    self.at += c.len_utf8();
                }
                None => return Err(ErrorAt::new(start, format!("the text has no {quote} at its end"))),
            }
        }
    }

    fn escape(&mut self) -> Result<char, ErrorAt> {
        let rest = self.rest();
        let start = self.at;
        let kind = rest.chars().nth(1);
        let (digits, radix, skip) = match kind {
            Some('x' | 'X') => (2, 16, 2),
            Some('u') => (4, 16, 2),
            Some('U') => (8, 16, 2),
            Some('0'..='3') => (3, 8, 1),
            Some(c) => {
                let resolved = match c {
                    'a' => '\x07',
                    'b' => '\x08',
                    'f' => '\x0c',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'v' => '\x0b',
                    '\\' | '"' | '\'' | '`' | '?' => c,
                    _ => {
                        let message = format!(
                            "\"\\{c}\" is no escape; write \"\\\\{c}\", or r\"…\" for a text without escapes"
                        );
                        return Err(ErrorAt::new(start, message));
                    }
                };
                self.at += 2;
                return Ok(resolved);
            }
            None => return Err(ErrorAt::new(start, "the text has no end")),
        };
        let number = rest.get(skip..skip + digits).filter(|text| text.chars().all(|c| c.is_digit(radix)));
        let value = number.and_then(|text| u32::from_str_radix(text, radix).ok()).and_then(char::from_u32);
        let Some(value) = value else {
            return Err(ErrorAt::new(start, format!("the escape needs {digits} digits of a character")));
        };
        self.at += skip + digits;
        Ok(value)
    }
}
