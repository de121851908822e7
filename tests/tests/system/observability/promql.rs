//! Finds the names in expressions of PromQL.

/// The names of an expression.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// The metrics, each with the labels by which it is selected.
    pub(super) metrics: Vec<(String, Vec<String>)>,
    /// The labels by which series are grouped or joined.
    pub(super) labels: Vec<String>,
}

/// Words before a list of labels.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Words between expressions.
const BETWEEN: [&str; 5] = ["and", "or", "unless", "offset", "bool"];

/// Reads an expression, in which variables have been replaced.
pub(super) fn names(expression: &str) -> Names {
    let mut names = Names::default();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || first == '_' || first == ':' {
            let word =
                prefix(rest, |letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':');
            rest = rest[word.len()..].trim_start();
            if BEFORE_LABELS.contains(&word) {
                let (list, after) = enclosed(rest, '(', ')').expect("labels in parentheses");
                names.labels.extend(items(list).map(str::to_owned));
                rest = after;
            } else if !is_called(rest) && !BETWEEN.contains(&word) {
                let (selector, after) = enclosed(rest, '{', '}').unwrap_or(("", rest));
                names.metrics.push((word.to_owned(), selected(selector)));
                rest = after;
            }
        } else if first.is_ascii_digit() {
            // A number, or a duration with its unit.
            rest = &rest[prefix(rest, |letter| letter.is_ascii_alphanumeric() || letter == '.').len()..];
        } else if let Some((_, after)) = enclosed(rest, '[', ']').or_else(|| quoted(rest)) {
            rest = after;
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    names
}

/// True if the word before `rest` is a function or an aggregation: `rate (…)`, `sum by (…) (…)`.
fn is_called(rest: &str) -> bool {
    rest.starts_with('(') || ["by", "without"].contains(&prefix(rest, |letter| letter.is_ascii_alphabetic()))
}

/// The names of labels in the inner part of a selector.
fn selected(mut selector: &str) -> Vec<String> {
    let mut labels = Vec::new();
    loop {
        selector = selector.trim_start_matches([',', ' ']);
        let label = prefix(selector, |letter| letter.is_ascii_alphanumeric() || letter == '_');
        if label.is_empty() {
            return labels;
        }
        labels.push(label.to_owned());
        let value = selector[label.len()..].trim_start_matches(['=', '!', '~', ' ']);
        selector = quoted(value).expect("the value of a label is a string").1;
    }
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn prefix(text: &str, belongs: impl Fn(char) -> bool) -> &str {
    &text[..text.find(|letter| !belongs(letter)).unwrap_or(text.len())]
}

/// A string without its quotes, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\'' | '`'))?;
    text[1..].split_once(quote)
}

/// Splits a text that begins with brackets into their content and the rest. Brackets in strings do not count.
fn enclosed(text: &str, open: char, close: char) -> Option<(&str, &str)> {
    let inner = text.strip_prefix(open)?;
    let mut at = 0;
    while let Some(next) = inner[at..].chars().next() {
        if next == close {
            return Some((&inner[..at], &inner[at + 1..]));
        }
        at += quoted(&inner[at..]).map_or(next.len_utf8(), |(string, _)| string.len() + 2);
    }
    None
}

#[test]
fn names_are_found_in_every_form() {
    let found = names(
        r#"histogram_quantile(0.99, sum by (le, fleet) (rate(a_bucket{x=~"} or b", y!="z"}[5m])))
           and on (fleet, instance) group_left () (c:d == 1e3 or label_replace(e offset 10m, "f", "$1", "g", ".*"))"#,
    );
    let metric = |name: &str, labels: &[&str]| {
        (name.to_owned(), labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(found.metrics, [metric("a_bucket", &["x", "y"]), metric("c:d", &[]), metric("e", &[])]);
    assert_eq!(found.labels, ["le", "fleet", "fleet", "instance"]);
}
