//! A check that a regular expression can match at least one of the texts that it is applied to.
//!
//! Routes match paths in their normal form, so a regular expression like `/caf%c3%a9` is never met: it would be accepted, and
//! guard nothing. The check is exact but for `\b` and its kind, which it takes for met: the expression's automaton is walked
//! side by side with one that accepts the texts that there can be, until both accept or nothing is left to be tried.

use std::sync::LazyLock;

use regex_automata::nfa::thompson::{NFA, State, WhichCaptures};
use regex_automata::util::look::Look;
use regex_automata::util::primitives::StateID;
use regex_syntax::ast::{self, Ast, Span};

use crate::path::{EscapedSlashes, encode, normalize};

/// The text that a regular expression is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// It must match a whole path in normal form.
    Path,
    /// It is looked for within such a path.
    WithinPath,
    /// It must match the whole value of a header, which has no white space at its ends and no control characters.
    Header,
    /// It must match a whole text that can be anything.
    Text,
}

/// Says what is wrong when `pattern` or one of its alternatives can match nothing. A pattern that cannot be compiled has
/// other errors, and passes.
pub(crate) fn check(pattern: &str, subject: Subject) -> Result<(), String> {
    let mut budget = MAX_STEPS;
    if !is_live(pattern, subject, &mut budget) {
        let instead = subject.spellings(pattern).find(|fixed| is_live(fixed, subject, &mut budget));
        let instead = instead.map(|fixed| format!("; write {fixed:?}")).unwrap_or_default();
        return Err(format!("{pattern:?} never matches: {}{instead}", subject.reason()));
    }
    for Alternative { text: alternative, context } in alternatives(pattern) {
        if !is_live(&context.whole(), subject, &mut budget) {
            let mut spellings = subject.spellings(alternative);
            let instead = spellings.find(|fixed| is_live(&context.with(fixed), subject, &mut budget));
            let instead = instead.map_or("leave it out".to_owned(), |fixed| format!("write {fixed:?}"));
            return Err(format!(
                "its alternative {alternative:?} never matches: {}; {instead}",
                subject.reason()
            ));
        }
    }
    Ok(())
}

/// The same for a text that a value of a header must be, or must begin with.
pub(crate) fn check_header_text(text: &str, is_prefix: bool) -> Result<(), String> {
    let behind = if is_prefix { "(?s:.*)" } else { "" };
    match is_live(&format!("{}{behind}", regex::escape(text)), Subject::Header, &mut MAX_STEPS.clone()) {
        true => Ok(()),
        false => Err(format!("{text:?} never matches: {}", Subject::Header.reason())),
    }
}

/// The most steps that all walks of one check take together, half a second's work. An expression that is not decided by then passes.
const MAX_STEPS: usize = 20_000_000;

impl Subject {
    /// For people: what it looks like.
    fn reason(self) -> &'static str {
        match self {
            Self::Path | Self::WithinPath => {
                "paths are matched in their normal form, which begins with '/', has no '//', '.' and '..' segments and no \
                 query, and percent-encodes, in upper case, only what has to be"
            }
            Self::Header => "values of headers have no control characters, and no white space at their ends",
            Self::Text => "no text fits it",
        }
    }

    /// Other spellings of a pattern that may be what was meant.
    fn spellings(self, pattern: &str) -> impl Iterator<Item = String> {
        let is_path = matches!(self, Self::Path | Self::WithinPath);
        let normal = is_path.then(|| normal_spelling(pattern));
        let with_slash = normal.as_ref().filter(|_| self == Self::Path).map(|normal| format!("/{normal}"));
        [normal.filter(|normal| normal != pattern), with_slash].into_iter().flatten()
    }

    fn texts(self) -> &'static Texts {
        static PATHS: LazyLock<Texts> = LazyLock::new(Texts::paths);
        static HEADERS: LazyLock<Texts> = LazyLock::new(Texts::headers);
        static ANY: LazyLock<Texts> = LazyLock::new(Texts::any);
        match self {
            Self::Path | Self::WithinPath => &PATHS,
            Self::Header => &HEADERS,
            Self::Text => &ANY,
        }
    }
}

/// A deterministic automaton. It begins in its first state; every state leads on to one that accepts.
struct Texts {
    states: Vec<TextState>,
}

struct TextState {
    accepts: bool,
    /// By byte; [`NOWHERE`]: there is no such text.
    next: [u8; 256],
}

const NOWHERE: u8 = u8::MAX;

impl Texts {
    fn with_states(accepting: &[bool]) -> Self {
        Self {
            states: accepting
                .iter()
                .map(|accepts| TextState { accepts: *accepts, next: [NOWHERE; 256] })
                .collect(),
        }
    }

    fn lead(&mut self, from: u8, byte: u8, to: u8) {
        self.states[usize::from(from)].next[usize::from(byte)] = to;
    }

    /// The paths that [`encode`] and [`normalize`] leave as they are.
    fn paths() -> Self {
        const START: u8 = 0;
        // `*`, of which nothing but OPTIONS asks.
        const STAR: u8 = 1;
        const SLASH: u8 = 2;
        const DOT: u8 = 3;
        const DOT_DOT: u8 = 4;
        const SEGMENT: u8 = 5;
        const PERCENT: u8 = 6;
        /// Behind the first digit of an encoded byte: 16 states.
        const DIGIT: u8 = 7;
        let mut accepting = [false; DIGIT as usize + 16];
        for state in [STAR, SLASH, SEGMENT] {
            accepting[usize::from(state)] = true;
        }
        let mut texts = Self::with_states(&accepting);
        let is_normal = |part: &str| {
            let path = format!("/x{part}x");
            encode(path.as_bytes()).is_none()
                && normalize(&path, EscapedSlashes::Keep).is_ok_and(|normal| *normal == path)
        };
        texts.lead(START, b'/', SLASH);
        texts.lead(START, b'*', STAR);
        for byte in
            (b'!'..=b'~').filter(|byte| !b"/.?#%".contains(byte) && is_normal(&char::from(*byte).to_string()))
        {
            for from in [SLASH, DOT, DOT_DOT, SEGMENT] {
                texts.lead(from, byte, SEGMENT);
            }
        }
        texts.lead(SEGMENT, b'/', SLASH);
        for (from, to) in [(SLASH, DOT), (DOT, DOT_DOT), (DOT_DOT, SEGMENT), (SEGMENT, SEGMENT)] {
            texts.lead(from, b'.', to);
        }
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        for (state, first) in (DIGIT..).zip(DIGITS) {
            for second in DIGITS {
                if is_normal(&format!("%{}{}", char::from(*first), char::from(*second))) {
                    for from in [SLASH, DOT, DOT_DOT, SEGMENT] {
                        texts.lead(from, b'%', PERCENT);
                    }
                    texts.lead(PERCENT, *first, state);
                    texts.lead(state, *second, SEGMENT);
                }
            }
        }
        texts
    }

    /// RFC 9110, section 5.5.
    fn headers() -> Self {
        const START: u8 = 0;
        const TEXT: u8 = 1;
        const SPACE: u8 = 2;
        let mut texts = Self::with_states(&[true, true, false]);
        for byte in (0x21..=0x7e).chain(0x80..=0xff) {
            for from in [START, TEXT, SPACE] {
                texts.lead(from, byte, TEXT);
            }
        }
        for byte in [b' ', b'\t'] {
            texts.lead(TEXT, byte, SPACE);
            texts.lead(SPACE, byte, SPACE);
        }
        texts
    }

    fn any() -> Self {
        let mut texts = Self::with_states(&[true]);
        texts.states[0].next = [0; 256];
        texts
    }
}

/// A place in both automata at once.
#[derive(Clone, Copy)]
struct Place {
    nfa: StateID,
    text: u8,
    /// The expression has said that the text ends here.
    ended: bool,
}

fn is_live(pattern: &str, subject: Subject, budget: &mut usize) -> bool {
    if *budget == 0 {
        return true;
    }
    let config = NFA::config().which_captures(WhichCaptures::None).nfa_size_limit(Some(MAX_NFA));
    match NFA::compiler().configure(config).build(pattern) {
        Ok(nfa) => {
            // The budget pays for the construction, too.
            *budget = budget.saturating_sub(nfa.states().len() * STEPS_TO_BUILD);
            walk(&nfa, subject, budget) != Walked::NoMatch
        }
        Err(_) => true,
    }
}

/// Larger ones pass.
const MAX_NFA: usize = 4 << 20;

/// The number of steps of a walk that take about as long as building a state.
const STEPS_TO_BUILD: usize = 50;

/// The result of a walk.
#[derive(Debug, PartialEq, Eq)]
enum Walked {
    /// This text matches, if all of `\b` and its kind are met.
    Match(Vec<u8>),
    NoMatch,
    GivenUp,
}

fn walk(nfa: &NFA, subject: Subject, budget: &mut usize) -> Walked {
    let texts = subject.texts();
    let within = subject == Subject::WithinPath;
    let mut seen = vec![false; nfa.states().len() * texts.states.len() * 2];
    // Each with the one that led to it, and by which byte.
    let mut places: Vec<(Place, usize, Option<u8>)> = Vec::new();
    let mut reach = |places: &mut Vec<_>, place: Place, from: usize, byte: Option<u8>| {
        let index = (place.nfa.as_usize() * texts.states.len() + usize::from(place.text)) * 2
            + usize::from(place.ended);
        if let Some(seen) = seen.get_mut(index).filter(|seen| !**seen) {
            *seen = true;
            places.push((place, from, byte));
        }
    };
    let starts = if within { texts.states.len() } else { 1 };
    for text in (0..).take(starts) {
        reach(&mut places, Place { nfa: nfa.start_anchored(), text, ended: false }, usize::MAX, None);
    }
    let mut at = 0;
    while let Some(&(place, ..)) = places.get(at) {
        let Place { nfa: state, text, ended } = place;
        let Some(known) = texts.states.get(usize::from(text)) else { break };
        let mut step = |places: &mut Vec<_>, first: u8, last: u8, next: StateID| {
            *budget = budget.saturating_sub(usize::from(last - first) + 1);
            for byte in first..=last {
                let text = known.next[usize::from(byte)];
                if text != NOWHERE && !ended {
                    reach(places, Place { nfa: next, text, ended }, at, Some(byte));
                }
            }
        };
        match nfa.state(state) {
            State::ByteRange { trans } => step(&mut places, trans.start, trans.end, trans.next),
            State::Sparse(sparse) => {
                sparse
                    .transitions
                    .iter()
                    .for_each(|trans| step(&mut places, trans.start, trans.end, trans.next));
            }
            State::Dense(dense) => {
                for (byte, next) in (0..=u8::MAX).zip(&dense.transitions) {
                    if *next != StateID::ZERO {
                        step(&mut places, byte, byte, *next);
                    }
                }
            }
            State::Look { look, next } => {
                let met = match look {
                    // No text has a line break that matters: paths and headers have none, and other texts may be anything.
                    Look::Start | Look::StartLF | Look::StartCRLF => subject == Subject::Text || text == 0,
                    Look::End | Look::EndLF | Look::EndCRLF => subject == Subject::Text || known.accepts,
                    _ => true,
                };
                let ends =
                    matches!(look, Look::End | Look::EndLF | Look::EndCRLF) && subject != Subject::Text;
                if met {
                    reach(&mut places, Place { nfa: *next, text, ended: ended || ends }, at, None);
                }
            }
            State::Union { alternates } => {
                for next in alternates {
                    reach(&mut places, Place { nfa: *next, ..place }, at, None);
                }
            }
            State::BinaryUnion { alt1, alt2 } => {
                for next in [alt1, alt2] {
                    reach(&mut places, Place { nfa: *next, ..place }, at, None);
                }
            }
            State::Capture { next, .. } => reach(&mut places, Place { nfa: *next, ..place }, at, None),
            State::Fail => {}
            State::Match { .. } if known.accepts || within => {
                let mut matched = Vec::new();
                let mut back = at;
                while let Some(&(_, from, byte)) = places.get(back) {
                    matched.extend(byte);
                    back = from;
                }
                matched.reverse();
                return Walked::Match(matched);
            }
            State::Match { .. } => {}
        }
        if *budget == 0 {
            return Walked::GivenUp;
        }
        *budget -= 1;
        at += 1;
    }
    Walked::NoMatch
}

/// An alternative of a pattern, and the pattern with nothing else in its place.
struct Alternative<'p> {
    text: &'p str,
    context: Context<'p>,
}

/// A part of a pattern, and what makes a pattern of it that matches only by this part.
#[derive(Clone)]
struct Context<'p> {
    before: String,
    part: &'p str,
    /// The place of the part in the whole pattern.
    start: usize,
    behind: String,
}

impl<'p> Context<'p> {
    fn whole(&self) -> String {
        self.with(self.part)
    }

    fn with(&self, part: &str) -> String {
        format!("{}(?:{part}){}", self.before, self.behind)
    }

    /// The same for a part of its part, in the place of `instead`.
    fn within(&self, part: Span, instead: Span, more: &str) -> Option<Self> {
        let get = |from: usize, to: usize| {
            self.part.get(from.checked_sub(self.start)?..to.checked_sub(self.start)?)
        };
        let before = get(self.start, instead.start.offset)?;
        let behind = get(instead.end.offset, self.start + self.part.len())?;
        let context = Self {
            before: format!("{}(?:{before}{more}", self.before),
            part: get(part.start.offset, part.end.offset)?,
            start: part.start.offset,
            behind: format!("{more}{behind}){}", self.behind),
        };
        (context.before.len() + context.behind.len() <= MAX_CONTEXT).then_some(context)
    }
}

/// Alternatives deeper within repetitions than this allows, bytes, are not looked at.
const MAX_CONTEXT: usize = 64 << 10;

/// Every alternative of a pattern. Those that match the empty text (`(/|$)`) are left out, and lists with flags, which hold for
/// the alternatives behind them too.
fn alternatives(pattern: &str) -> Vec<Alternative<'_>> {
    let mut found = Vec::new();
    if let Ok(tree) = ast::parse::Parser::new().parse(pattern) {
        let context = Context { before: String::new(), part: pattern, start: 0, behind: String::new() };
        gather(&tree, &context, &mut found);
    }
    found
}

/// The recursion is as deep as the pattern has groups, which the parser bounds.
fn gather<'p>(tree: &Ast, context: &Context<'p>, found: &mut Vec<Alternative<'p>>) {
    match tree {
        Ast::Group(group) => gather(&group.ast, context, found),
        Ast::Concat(concat) => concat.asts.iter().for_each(|tree| gather(tree, context, found)),
        Ast::Repetition(repetition) => {
            // An alternative is met in one turn, whatever the others are.
            let part = *repetition.ast.span();
            let text =
                part.start.offset.checked_sub(context.start).zip(part.end.offset.checked_sub(context.start));
            let Some(text) = text.and_then(|(start, end)| context.part.get(start..end)) else { return };
            let others = match repetition.op.kind {
                ast::RepetitionKind::ZeroOrOne => String::new(),
                _ => format!("(?:{text})*"),
            };
            if let Some(context) = context.within(part, repetition.span, &others) {
                gather(&repetition.ast, &context, found);
            }
        }
        Ast::Alternation(alternation) => {
            let has_flags = alternation.asts.iter().any(|tree| match tree {
                Ast::Flags(_) => true,
                Ast::Concat(concat) => concat.asts.iter().any(|tree| matches!(tree, Ast::Flags(_))),
                _ => false,
            });
            if has_flags {
                return;
            }
            for tree in &alternation.asts {
                let Some(context) = context.within(*tree.span(), alternation.span, "") else { continue };
                if !matches_nothing_too(context.part) {
                    found.push(Alternative { text: context.part, context: context.clone() });
                }
                gather(tree, &context, found);
            }
        }
        _ => {}
    }
}

/// True if it matches the empty text.
fn matches_nothing_too(pattern: &str) -> bool {
    regex_syntax::parse(pattern).is_ok_and(|hir| hir.properties().minimum_len() == Some(0))
}

/// The pattern with its percent-encoding, slashes and characters as a normal path has them, as far as that can be told from its
/// text alone.
fn normal_spelling(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let behind = rest.get(c.len_utf8()..).unwrap_or_default();
        let byte = behind
            .get(..2)
            .filter(|digits| c == '%' && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        if let Some(digits) = byte {
            match u8::from_str_radix(digits, 16) {
                Ok(b'.') => out.push_str("\\."),
                Ok(byte) if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) => {
                    out.push(char::from(byte));
                }
                _ => out.push_str(&format!("%{}", digits.to_ascii_uppercase())),
            }
            rest = behind.get(2..).unwrap_or_default();
            continue;
        }
        match c {
            '/' if out.ends_with('/') => {}
            '/' if out.is_empty() && behind.starts_with('/') => {}
            // A backslash makes a character that has a meaning in patterns stand for itself.
            '\\' if behind.starts_with(['^', '{', '|', '}']) => {
                let (c, behind) = behind.split_at(1);
                out.push_str(&encode(c.as_bytes()).unwrap_or_default());
                rest = behind;
                continue;
            }
            '^' | '{' | '|' | '}' => out.push(c),
            ' ' => out.push_str("%20"),
            c => {
                let text = c.to_string();
                out.push_str(encode(text.as_bytes()).as_ref().unwrap_or(&text));
            }
        }
        rest = behind;
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    fn path(pattern: &str) -> Result<(), String> {
        check(pattern, Subject::Path)
    }

    #[test]
    fn a_regex_that_no_normal_path_can_match_is_refused_with_what_to_write() {
        for (pattern, instead) in [
            ("/caf%c3%a9", "write \"/caf%C3%A9\""),
            ("/café/.*", "write \"/caf%C3%A9/.*\""),
            ("/%7Ebob", "write \"/~bob\""),
            ("/%61dmin(/.*)?", "write \"/admin(/.*)?\""),
            ("/a%2Eb", "write \"/a\\\\.b\""),
            ("/a//b", "write \"/a/b\""),
            ("//a", "write \"/a\""),
            ("admin/.*", "write \"/admin/.*\""),
            ("/a b", "write \"/a%20b\""),
            ("/a\"b", "write \"/a%22b\""),
            (r"/a\|b", "write \"/a%7Cb\""),
            (r"/a\{b\}", "write \"/a%7Bb%7D\""),
            (r"/a/\./b", ""),
            (r"/a/\.\./b", ""),
            (r"/a/\.\.", ""),
            (r"/a\?x=1", ""),
            ("/a#b", ""),
            (r"/a\\b", ""),
            ("/a%00", ""),
            ("/a%0[0-9A-F]", ""),
            ("/a%zz", ""),
            ("/a%", ""),
            (r"/a\n", ""),
            ("/a[^[:ascii:]]", ""),
            ("", "write \"/\""),
            ("[a-z]*", "write \"/[a-z]*\""),
            ("a$b", ""),
            ("/a$b", ""),
            ("/a^/b", ""),
            (r"\*a", "write \"/\\\\*a\""),
            (r"/[^\x00-\x7f]+", ""),
        ] {
            let error = path(pattern).expect_err(pattern);
            assert!(
                error.starts_with(&format!("{pattern:?} never matches: paths are matched in")),
                "{error}"
            );
            assert!(error.ends_with(instead), "{error}");
            assert!(instead.is_empty() != error.contains("; write"), "{error}");
        }
    }

    #[test]
    fn a_regex_that_some_normal_path_matches_is_accepted() {
        for pattern in [
            "/",
            ".*",
            "/.*",
            "/[a-z]/",
            ".*b",
            "/(a*)*(a|aa)+b",
            r"\*",
            "/caf%C3%A9",
            "(?i)/caf%c3%a9",
            "/a%20b",
            "/a%2Fb",
            "/+a/+b",
            "/?a?/",
            "^/a$",
            "(?m)^/a$",
            "/a(/|$)",
            r"/\.well-known/.*",
            r"/a/\.\.\.",
            r"/a/\..+",
            r"/\w+",
            r"/\bfoo\b.*",
            "/[^/]+/x",
            r"/[^\s]*",
            "/a(b|)",
            "/(a|/b)+",
            "/(a|/b)*",
            "/(a|/b){2}",
            "(a|/)+",
            "(/(a|b(/c|d)*))+",
            "/x|(?i)/y",
            "/(v1|v2)/users/[0-9]+",
            "(?x) /a # comment\n",
            "/ä?b",
            "/%[0-9a-fA-F]{2}",
        ] {
            assert_eq!(path(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn an_alternative_that_never_matches_is_refused_too() {
        for (pattern, alternative, instead) in [
            ("/(admin|caf%c3%a9)/.*", "caf%c3%a9", "write \"caf%C3%A9\""),
            ("/admin|/caf%c3%a9", "/caf%c3%a9", "write \"/caf%C3%A9\""),
            ("/admin|login", "login", "write \"/login\""),
            ("/a(/b|//c)", "//c", "write \"/c\""),
            ("/((a|%62)c|d)", "%62", "write \"b\""),
            (r"/(a|\.\.)/b", r"\.\.", "leave it out"),
            (r"/a|/b|\?c", r"\?c", "leave it out"),
            ("/(a|%62)?", "%62", "write \"b\""),
            ("/(a|b/|%62)+", "%62", "write \"b\""),
            ("(?i:/(a|%62))", "%62", "write \"b\""),
        ] {
            let error = path(pattern).expect_err(pattern);
            assert!(
                error.starts_with(&format!("its alternative {alternative:?} never matches: ")),
                "{error}"
            );
            assert!(error.ends_with(&format!("; {instead}")), "{error}");
        }
    }

    #[test]
    fn what_is_looked_for_within_a_path_may_begin_and_end_anywhere() {
        for good in ["a", "^/users/([0-9]+)$", "/v1", "b", "%2F", "C3", "/$", r"\.", r"\.\.", "^"] {
            assert_eq!(check(good, Subject::WithinPath), Ok(()), "{good}");
        }
        for bad in ["%c3", "//", "//+", "^a", "a$b", r"\?", "%7E", "é", r"/\.\./", " ", "%2e"] {
            assert!(check(bad, Subject::WithinPath).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_of_headers_have_no_ends_of_white_space_and_no_control_characters() {
        for good in ["", "a", "a b", ".*", r"a\s+b", "é", r"\s*a\s*", "a?"] {
            assert_eq!(check(good, Subject::Header), Ok(()), "{good}");
        }
        for bad in [" a", "a ", r"a\n", r"\r\na", r"a\x00b", r"\t", " "] {
            let error = check(bad, Subject::Header).expect_err(bad);
            assert!(error.contains("no white space at their ends"), "{error}");
        }
        for (pattern, is_good) in
            [(" a ", true), (r"a\nb", true), (r"[^\s\S]", false), ("a(b|[^\\s\\S])", false)]
        {
            assert_eq!(check(pattern, Subject::Text).is_ok(), is_good, "{pattern}");
        }
    }

    #[test]
    fn a_check_of_a_large_pattern_is_bounded() {
        let began = std::time::Instant::now();
        let many: Vec<_> = (0..600).map(|number| format!("a{number}")).collect();
        assert_eq!(path(&format!("/({})", many.join("|"))), Ok(()));
        assert_eq!(path(r"/(\w{50}|\w{40}|\w{30})*"), Ok(()));
        assert!(began.elapsed().as_secs() < 30);
    }

    /// Parts of patterns and of paths that meet often.
    const PARTS: [&str; 22] = [
        "/", "/", "/", "a", "b", ".", "..", "%2e", "%2E", "%61", "%c3", "%C3", "%25", "%7e", "~", "%2F", "*",
        "%00", "%", "ä", "\"", " ",
    ];

    fn parts() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop::sample::select(&PARTS[..]), 0..8)
            .prop_map(|parts| format!("/{}", parts.concat()))
    }

    /// The path as routes match it.
    fn normal_form(path: &str) -> Option<String> {
        let encoded = encode(path.as_bytes()).unwrap_or_else(|| path.to_owned());
        normalize(&encoded, EscapedSlashes::Keep).ok().map(std::borrow::Cow::into_owned)
    }

    proptest! {
        #[test]
        fn a_literal_path_that_is_accepted_matches_its_normal_form(text in parts()) {
            let pattern = regex::escape(&text);
            let anchored = Regex::new(&format!("^(?:{pattern})$")).unwrap();
            let normal = normal_form(&text);
            let accepted = path(&pattern).is_ok();
            if accepted {
                prop_assert!(normal.is_some_and(|normal| anchored.is_match(&normal)), "{text}");
            } else if let Some(normal) = normal {
                // Nothing is refused that could be met. No request has a space in its path.
                let is_met = !normal.contains(' ') && anchored.is_match(&normal);
                prop_assert!(!is_met, "{text}");
            }
        }

        #[test]
        fn a_pattern_is_accepted_exactly_if_a_normal_path_matches_it(
            pieces in proptest::collection::vec(
                (prop::sample::select(&PARTS[..]), prop::sample::select(&["", "", "", "?", "*", "+", "|"][..])),
                1..8,
            ),
            tries in proptest::collection::vec(parts(), 1..8),
        ) {
            let pattern: String = pieces.iter().map(|(part, behind)| format!("(?:{}){behind}", regex::escape(part))).collect();
            let anchored = Regex::new(&format!("^(?:{pattern})$")).unwrap();
            let nfa = NFA::new(&pattern).unwrap();
            match walk(&nfa, Subject::Path, &mut 1_000_000) {
                Walked::Match(text) => {
                    let text = String::from_utf8(text).unwrap();
                    prop_assert!(anchored.is_match(&text), "{pattern}: {text}");
                    prop_assert!(text == "*" || text.starts_with('/'));
                    prop_assert_eq!(normal_form(&text), Some(text));
                }
                Walked::NoMatch => {
                    for text in &tries {
                        let Some(normal) = normal_form(text) else { continue };
                        let is_met = normal.bytes().all(|byte| byte.is_ascii_graphic()) && anchored.is_match(&normal);
                        prop_assert!(!is_met, "{pattern} refused, but matches {normal}");
                    }
                }
                Walked::GivenUp => prop_assert!(false, "{pattern}"),
            }
        }
    }
}
