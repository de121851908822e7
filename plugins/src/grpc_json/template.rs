//! The path templates of `google.api.http`, and the tree that finds the template of a path.
//!
//! `/v1/{name=shelves/*/books/**}:publish`: segments are literals, `*` (one segment) or, at the end, `**` (any number); a variable
//! binds one or several of them, and a verb may follow.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;

/// A template, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) segments: Vec<Segment>,
    pub(super) verb: Option<String>,
    pub(super) variables: Vec<Variable>,
}

/// One part of a path between slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(String),
    /// `*`
    One,
    /// `**`
    Rest,
}

/// The field that gets a part of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    /// `a.b`
    pub(super) field: String,
    /// The first of its segments.
    start: usize,
    /// The number of its segments; `None`: to the end of the path.
    count: Option<usize>,
    /// True if it may have several segments: then a slash that is percent-encoded stays so.
    is_path: bool,
}

/// A path that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadEscape;

struct Parser<'t> {
    rest: &'t str,
    template: Template,
}

impl Template {
    /// Parses a template.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or("must begin with /")?;
        let template = Self { segments: Vec::new(), verb: None, variables: Vec::new() };
        let mut parser = Parser { rest, template };
        parser.segments(false)?;
        if let Some(verb) = parser.rest.strip_prefix(':') {
            if verb.is_empty() || verb.contains(['/', '{', '}', '*']) {
                return Err(format!("has the verb {verb:?}, which must be a plain word at the end"));
            }
            parser.template.verb = Some(verb.to_owned());
        } else if !parser.rest.is_empty() {
            return Err(format!("cannot be read from {:?} on", parser.rest));
        }
        let template = parser.template;
        if template.segments.iter().rev().skip(1).any(|segment| *segment == Segment::Rest) {
            return Err("has ** before its end".to_owned());
        }
        for (at, variable) in template.variables.iter().enumerate() {
            if template.variables.iter().take(at).any(|other| other.field == variable.field) {
                return Err(format!("binds {} twice", variable.field));
            }
        }
        Ok(template)
    }

    /// The values of the variables in a path that matched, decoded. `segments` are those of the path without the verb.
    pub(super) fn bind<'v>(&'v self, segments: &[&str]) -> Result<Vec<(&'v str, String)>, BadEscape> {
        let bind = |variable: &'v Variable| {
            let end = variable.count.map_or(segments.len(), |count| variable.start + count);
            let bound = segments.get(variable.start..end).unwrap_or_default();
            let decoded: Result<Vec<String>, BadEscape> =
                bound.iter().map(|segment| decode(segment, variable.is_path)).collect();
            Ok((variable.field.as_str(), decoded?.join("/")))
        };
        self.variables.iter().map(bind).collect()
    }
}

impl Parser<'_> {
    /// Segments up to a verb or the end; within a variable, up to its brace.
    fn segments(&mut self, is_inner: bool) -> Result<(), String> {
        loop {
            self.segment(is_inner)?;
            match self.rest.strip_prefix('/') {
                Some(rest) => self.rest = rest,
                None => return Ok(()),
            }
        }
    }

    fn segment(&mut self, is_inner: bool) -> Result<(), String> {
        if let Some(rest) = self.rest.strip_prefix("**") {
            self.rest = rest;
            self.template.segments.push(Segment::Rest);
            return Ok(());
        }
        if let Some(rest) = self.rest.strip_prefix('*') {
            self.rest = rest;
            self.template.segments.push(Segment::One);
            return Ok(());
        }
        if let Some(rest) = self.rest.strip_prefix('{') {
            if is_inner {
                return Err("has a variable within a variable".to_owned());
            }
            self.rest = rest;
            return self.variable();
        }
        let end = self.rest.find(['/', ':', '{', '}', '*']).unwrap_or(self.rest.len());
        let (literal, rest) = self.rest.split_at(end);
        if literal.is_empty() {
            return Err("has an empty segment".to_owned());
        }
        self.rest = rest;
        self.template.segments.push(Segment::Literal(literal.to_owned()));
        Ok(())
    }

    /// A variable behind its brace.
    fn variable(&mut self) -> Result<(), String> {
        let end = self.rest.find(['=', '}']).ok_or("has a variable that does not end")?;
        let (field, rest) = self.rest.split_at(end);
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !field.split('.').all(is_name) {
            return Err(format!("has the variable {field:?}, which is not the path of a field"));
        }
        let start = self.template.segments.len();
        self.rest = rest;
        if let Some(rest) = rest.strip_prefix('=') {
            self.rest = rest;
            self.segments(true)?;
        } else {
            self.template.segments.push(Segment::One);
        }
        self.rest = self.rest.strip_prefix('}').ok_or("has a variable that does not end")?;
        let bound = self.template.segments.get(start..).unwrap_or_default();
        let is_open = bound.contains(&Segment::Rest);
        let count = (!is_open).then_some(bound.len());
        let is_path = is_open || bound.len() > 1;
        self.template.variables.push(Variable { field: field.to_owned(), start, count, is_path });
        Ok(())
    }
}

/// Decodes a segment. `keeps_slashes`: `%2F` stays.
fn decode(segment: &str, keeps_slashes: bool) -> Result<String, BadEscape> {
    let bytes = segment.as_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let digits = bytes.get(at + 1..at + 3).ok_or(BadEscape)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(BadEscape);
        }
    }
    let decode = |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| BadEscape);
    if !keeps_slashes {
        return decode(segment);
    }
    let mut decoded = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some(at) = rest.as_bytes().windows(3).position(|window| window.eq_ignore_ascii_case(b"%2f")) {
        let (before, from) = rest.split_at(at);
        let (slash, after) = from.split_at(3);
        decoded.push_str(&decode(before)?);
        decoded.push_str(slash);
        rest = after;
    }
    decoded.push_str(&decode(rest)?);
    Ok(decoded)
}

/// Finds the rule of a path: at each segment a literal comes before `*`, and that before `**`; a rule with a verb comes before one
/// without.
#[derive(Debug)]
pub(super) struct Tree<R> {
    root: Node<R>,
}

#[derive(Debug)]
struct Node<R> {
    literals: HashMap<Box<str>, Node<R>>,
    one: Option<Box<Node<R>>>,
    /// The rules that end here, and those that end with `**`.
    ends: Vec<End<R>>,
    rests: Vec<End<R>>,
}

#[derive(Debug)]
struct End<R> {
    /// The method of HTTP; `None`: any.
    method: Option<String>,
    verb: Option<String>,
    rule: R,
}

impl<R> Default for Tree<R> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<R> Default for Node<R> {
    fn default() -> Self {
        Self { literals: HashMap::new(), one: None, ends: Vec::new(), rests: Vec::new() }
    }
}

impl<R> Tree<R> {
    /// Adds a rule. Returns the one that takes the same requests, if there is one.
    pub(super) fn insert(&mut self, method: Option<&str>, template: &Template, rule: R) -> Option<&R> {
        let mut node = &mut self.root;
        let mut is_open = false;
        for segment in &template.segments {
            match segment {
                Segment::Literal(literal) => node = node.literals.entry(literal.as_str().into()).or_default(),
                Segment::One => node = node.one.get_or_insert_default(),
                Segment::Rest => is_open = true,
            }
        }
        let ends = if is_open { &mut node.rests } else { &mut node.ends };
        let is_same =
            |end: &End<R>| end.method.as_deref() == method && end.verb.as_deref() == template.verb.as_deref();
        if let Some(at) = ends.iter().position(is_same) {
            return ends.get(at).map(|end| &end.rule);
        }
        ends.push(End { method: method.map(str::to_owned), verb: template.verb.clone(), rule });
        None
    }

    /// The rule for a request, and the segments of its path without the verb.
    pub(super) fn find<'p>(&self, method: &str, path: &'p str) -> Option<(&R, Vec<&'p str>)> {
        let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let (last, before) = segments.split_last()?;
        if let Some((name, verb)) = last.rsplit_once(':') {
            let mut without: Vec<&str> = before.to_vec();
            without.push(name);
            if let Some(rule) = self.root.find(method, &without, Some(verb)) {
                return Some((rule, without));
            }
        }
        let rule = self.root.find(method, &segments, None)?;
        Some((rule, segments))
    }
}

impl<R> Node<R> {
    fn find(&self, method: &str, segments: &[&str], verb: Option<&str>) -> Option<&R> {
        let Some((first, rest)) = segments.split_first() else {
            return taken(&self.ends, method, verb).or_else(|| taken(&self.rests, method, verb));
        };
        let by_literal = self.literals.get(*first).and_then(|node| node.find(method, rest, verb));
        by_literal
            .or_else(|| self.one.as_ref().filter(|_| !first.is_empty())?.find(method, rest, verb))
            .or_else(|| taken(&self.rests, method, verb))
    }
}

fn taken<'r, R>(ends: &'r [End<R>], method: &str, verb: Option<&str>) -> Option<&'r R> {
    let mut fitting = ends.iter().filter(|end| end.verb.as_deref() == verb);
    let exact = fitting.clone().find(|end| end.method.as_deref() == Some(method));
    exact.or_else(|| fitting.find(|end| end.method.is_none())).map(|end| &end.rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(template: &str, path: &str) -> Option<Vec<(String, String)>> {
        let template = Template::parse(template).unwrap();
        let mut tree = Tree::default();
        assert!(tree.insert(Some("GET"), &template, ()).is_none());
        let (_, segments) = tree.find("GET", path)?;
        let bound = template.bind(&segments).unwrap();
        Some(bound.into_iter().map(|(field, value)| (field.to_owned(), value)).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(pairs.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn variables_are_bound() {
        for (template, path, expected) in [
            ("/v1/users", "/v1/users", pairs(&[])),
            ("/v1/users", "/v1/users/", None),
            ("/v1/users/{id}", "/v1/users/7", pairs(&[("id", "7")])),
            ("/v1/users/{id}", "/v1/users/", None),
            ("/v1/users/{id}", "/v1/users/7/x", None),
            ("/v1/users/{user.id}/x", "/v1/users/a%2Fb/x", pairs(&[("user.id", "a/b")])),
            (
                "/v1/{name=shelves/*/books/*}",
                "/v1/shelves/1/books/2",
                pairs(&[("name", "shelves/1/books/2")]),
            ),
            ("/v1/{name=shelves/*/books/*}", "/v1/shelves/1/books", None),
            ("/v1/{name=files/**}", "/v1/files/a/b%2Fc/%64", pairs(&[("name", "files/a/b%2Fc/d")])),
            ("/v1/{name=**}", "/v1", pairs(&[("name", "")])),
            ("/v1/{a}/{b}:cancel", "/v1/x/y:cancel", pairs(&[("a", "x"), ("b", "y")])),
            ("/v1/{a}:cancel", "/v1/x", None),
            // A value may have a colon.
            ("/v1/{a}", "/v1/x:y", pairs(&[("a", "x:y")])),
            ("/v1/{a}:get", "/v1/x:y:get", pairs(&[("a", "x:y")])),
            ("/v1/{a}", "/v1/%E4%BD%A0", pairs(&[("a", "你")])),
        ] {
            assert_eq!(bound(template, path), expected, "{template} {path}");
        }
    }

    #[test]
    fn the_more_specific_rule_comes_first() {
        let mut tree = Tree::default();
        let templates = [
            "/v1/{name=**}",
            "/v1/{name=users/*}",
            "/v1/users/me",
            "/v1/users/{id}:stop",
            "/v1/{a}/{b}",
            "/v1/users/me/{x}",
        ];
        for template in templates {
            assert!(tree.insert(Some("GET"), &Template::parse(template).unwrap(), template).is_none());
        }
        assert!(tree.insert(None, &Template::parse("/v1/any").unwrap(), "any").is_none());
        let same = tree.insert(Some("GET"), &Template::parse("/v1/users/{other}").unwrap(), "same");
        assert_eq!(same, Some(&"/v1/{name=users/*}"));
        let found = |method: &str, path: &str| tree.find(method, path).map(|(rule, _)| *rule);
        assert_eq!(found("GET", "/v1/users/me"), Some("/v1/users/me"));
        assert_eq!(found("GET", "/v1/users/7"), Some("/v1/{name=users/*}"));
        assert_eq!(found("GET", "/v1/users/7:stop"), Some("/v1/users/{id}:stop"));
        assert_eq!(found("GET", "/v1/users/7:other"), Some("/v1/{name=users/*}"));
        assert_eq!(found("GET", "/v1/x/7"), Some("/v1/{a}/{b}"));
        // A path that begins like a literal may still be another rule's.
        assert_eq!(found("GET", "/v1/users/me/1/2"), Some("/v1/{name=**}"));
        assert_eq!(found("POST", "/v1/any"), Some("any"));
        assert_eq!(found("POST", "/v1/users/me"), None);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for (wrong, reason) in [
            ("v1", "begin with /"),
            ("", "begin with /"),
            ("/", "empty segment"),
            ("/v1//x", "empty segment"),
            ("/v1/{a", "does not end"),
            ("/v1/{a=b", "does not end"),
            ("/v1/{a={b}}", "within a variable"),
            ("/v1/{}", "not the path of a field"),
            ("/v1/{a.}", "not the path of a field"),
            ("/v1/**/x", "before its end"),
            ("/v1/x:", "plain word"),
            ("/v1/x:a/b", "plain word"),
            ("/v1/a{b}", "cannot be read"),
            ("/v1/{a}/{a}", "twice"),
        ] {
            let error = Template::parse(wrong).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_bad_escape_is_an_error() {
        let template = Template::parse("/v1/{a}").unwrap();
        for bad in ["%", "%2", "%zz", "%FF"] {
            assert_eq!(template.bind(&["v1", bad]), Err(BadEscape), "{bad}");
        }
    }
}
