//! The modules and paths of one file, read from its tokens.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree};

/// A module: a file, or one written inside a file.
#[derive(Default)]
pub(crate) struct Module {
    /// Names that `use` brings in, with the paths as they are written.
    pub(crate) names: BTreeMap<String, Use>,
    /// Modules that are declared here without a body, and whether only tests have them.
    pub(crate) declared: BTreeMap<String, bool>,
    /// Modules with a body in this file.
    pub(crate) inline: BTreeMap<String, Module>,
    /// Paths in the middle of code.
    pub(crate) paths: Vec<Written>,
    /// Paths of `use` that end in `*`.
    pub(crate) globs: Vec<Written>,
    /// Words that begin a path, or stand alone, outside of `use`.
    pub(crate) words: BTreeSet<String>,
}

pub(crate) struct Use {
    pub(crate) path: Written,
    pub(crate) exported: bool,
}

/// A path as it is written, and its line.
#[derive(Clone)]
pub(crate) struct Written {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

impl Module {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let tokens: TokenStream = text.parse().map_err(|error| format!("{error}"))?;
        let mut module = Self::default();
        module.read(tokens);
        Ok(module)
    }

    fn read(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = self.read_one(&tokens, at);
        }
    }

    /// Reads what begins at `at`, and returns where the next begins.
    fn read_one(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        if is_punct(tokens.get(at), '#')
            && matches!(tokens.get(at + 1), Some(TokenTree::Group(group)) if is_test_attribute(group))
        {
            return self.skip_item(tokens, at + 2);
        }
        match (&tokens[at], tokens.get(at + 1)) {
            (TokenTree::Group(group), _) => {
                self.read(group.stream());
                at + 1
            }
            (TokenTree::Ident(word), Some(TokenTree::Ident(name))) if word == "mod" => {
                match tokens.get(at + 2) {
                    Some(TokenTree::Group(body)) => {
                        let inner = self.inline.entry(name.to_string()).or_default();
                        inner.read(body.stream());
                    }
                    _ => {
                        self.declared.insert(name.to_string(), false);
                    }
                }
                at + 3
            }
            (TokenTree::Ident(word), next) if word == "use" && !is_punct(next, '<') => {
                let exported = at > 0 && is_visibility(tokens, at - 1);
                let end = end_of_use(tokens, at + 1);
                self.read_use(&tokens[at + 1..end], &[], exported);
                end
            }
            (TokenTree::Ident(_), _) => self.read_path(tokens, at),
            _ => at + 1,
        }
    }

    /// Passes an item that only tests have.
    fn skip_item(&mut self, tokens: &[TokenTree], mut at: usize) -> usize {
        while let Some(token) = tokens.get(at) {
            if let (TokenTree::Ident(word), Some(TokenTree::Ident(name))) = (token, tokens.get(at + 1))
                && word == "mod"
                && is_punct(tokens.get(at + 2), ';')
            {
                self.declared.insert(name.to_string(), true);
            }
            at += 1;
            let is_body = matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace);
            if is_body || is_punct(Some(token), ';') {
                break;
            }
        }
        at
    }

    fn read_path(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let (segments, end) = segments(tokens, at);
        // `value.method::<T>()`, `<T as Trait>::NAME`, `::name` of another crate.
        let goes_on = at > 0 && (is_punct(tokens.get(at - 1), '.') || is_punct(tokens.get(at - 1), ':'));
        let is_type =
            at > 0 && is_punct(tokens.get(at - 1), ':') && !is_separator(tokens, at.wrapping_sub(2));
        if !goes_on || is_type {
            self.words.extend(segments.first().cloned());
            if segments.len() > 1 {
                self.paths.push(Written { segments, line: line_of(&tokens[at]) });
            }
        }
        end
    }

    /// Reads the tree behind `use`, or a part of it behind `prefix`.
    fn read_use(&mut self, tokens: &[TokenTree], prefix: &[String], exported: bool) {
        // `use ::name` names another crate.
        if tokens.is_empty() || is_separator(tokens, 0) {
            return;
        }
        let line = line_of(&tokens[0]);
        let (mut path, mut at) = (prefix.to_vec(), 0);
        if matches!(tokens[0], TokenTree::Ident(_)) {
            let (segments, end) = segments(tokens, 0);
            path.extend(segments);
            at = end;
        }
        if is_separator(tokens, at) {
            at += 2;
        }
        match tokens.get(at) {
            Some(TokenTree::Group(group)) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for part in inner.split(|token| is_punct(Some(token), ',')) {
                    self.read_use(part, &path, exported);
                }
            }
            Some(token) if is_punct(Some(token), '*') => {
                self.globs.push(Written { segments: path, line });
            }
            rest => {
                if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                    path.pop();
                }
                let renamed = match (rest, tokens.get(at + 1)) {
                    (Some(TokenTree::Ident(_)), Some(TokenTree::Ident(name))) => Some(name.to_string()),
                    _ => None,
                };
                let last = path.last().cloned();
                // An item that is brought in as `_` is imported all the same.
                let name = renamed.or(last).filter(|name| name != "_");
                let name = name.unwrap_or_else(|| format!("_ {}", path.join("::")));
                self.names.insert(name, Use { path: Written { segments: path, line }, exported });
            }
        }
    }
}

/// The words of a path that begins at `at`, and where it ends.
fn segments(tokens: &[TokenTree], mut at: usize) -> (Vec<String>, usize) {
    let mut segments = Vec::new();
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        segments.push(word.to_string());
        at += 1;
        if !is_separator(tokens, at) || !matches!(tokens.get(at + 2), Some(TokenTree::Ident(_))) {
            break;
        }
        at += 2;
    }
    (segments, at)
}

fn end_of_use(tokens: &[TokenTree], from: usize) -> usize {
    let length = tokens.iter().skip(from).position(|token| is_punct(Some(token), ';'));
    length.map_or(tokens.len(), |length| from + length)
}

/// `::`
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let joint =
        |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.spacing() == Spacing::Joint);
    is_punct(tokens.get(at), ':') && tokens.get(at).is_some_and(joint) && is_punct(tokens.get(at + 1), ':')
}

/// `pub`, or the bracket of `pub(crate)`.
fn is_visibility(tokens: &[TokenTree], at: usize) -> bool {
    let is_pub = |at: usize| matches!(&tokens[at], TokenTree::Ident(word) if word == "pub");
    match &tokens[at] {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Parenthesis => at > 0 && is_pub(at - 1),
        _ => is_pub(at),
    }
}

fn is_test_attribute(group: &Group) -> bool {
    group.stream().to_string().replace(' ', "") == "cfg(test)"
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

fn line_of(token: &TokenTree) -> usize {
    token.span().start().line
}
