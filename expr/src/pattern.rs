//! Regular expressions. They compile to a deterministic automaton, so that a match looks at each byte once, whatever the pattern
//! and the text are, and needs no memory.

use std::fmt;

use regex_automata::dfa::dense::{self, DFA};
use regex_automata::dfa::{Automaton as _, StartKind};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Input, MatchKind};

/// A compiled regular expression, which is looked for anywhere in a text.
pub(crate) struct Pattern(DFA<Vec<u32>>);

/// The largest pattern, bytes.
const MAX_LENGTH: usize = 1024;

/// The largest automaton, bytes, and the memory that making it may take beside.
const MAX_SIZE: usize = 256 << 10;

impl Pattern {
    pub(crate) fn new(pattern: &str) -> Result<Self, String> {
        if pattern.len() > MAX_LENGTH {
            return Err(format!("the pattern has {} bytes; at most {MAX_LENGTH}", pattern.len()));
        }
        let built = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .start_kind(StartKind::Unanchored)
                    .match_kind(MatchKind::All)
                    .dfa_size_limit(Some(MAX_SIZE))
                    .determinize_size_limit(Some(MAX_SIZE)),
            )
            .thompson(thompson::Config::new().nfa_size_limit(Some(MAX_SIZE)))
            .syntax(syntax::Config::new().nest_limit(32))
            .build(pattern);
        built.map(Self).map_err(|error| explain(pattern, &error))
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        // The automaton has no bytes at which it gives up, so a search cannot fail.
        matches!(self.0.try_search_fwd(&Input::new(text).earliest(true)), Ok(Some(_)))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pattern")
    }
}

fn explain(pattern: &str, error: &dense::BuildError) -> String {
    if let Err(error) = syntax::parse_with(pattern, &syntax::Config::new().nest_limit(32)) {
        // The library draws the place over several lines; its last line is the reason.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim();
        return format!("is not a regular expression: {}", reason.strip_prefix("error: ").unwrap_or(reason));
    }
    if error.is_size_limit_exceeded() {
        return format!(
            "the pattern is too complex: it compiles to more than {} KiB; classes like \\w are smaller as (?-u:\\w)",
            MAX_SIZE >> 10
        );
    }
    // The only other thing that an automaton cannot do.
    "\\b of Unicode is not supported; write (?-u:\\b)".to_owned()
}
