//! Texts of a route: paths, regular expressions, and what replaces their matches.

use std::sync::Arc;

use regex::Regex;

/// The longest text, bytes.
pub(super) const MAX_TEXT: usize = 4096;
/// Compiled size of one regular expression; the crate's default is 10 MiB.
const MAX_REGEX: usize = 1 << 20;

/// A path that can stand in a request line.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("{path:?} must start with '/'"));
    }
    if path.len() > MAX_TEXT {
        return Err(format!("has {} bytes; at most {MAX_TEXT}", path.len()));
    }
    if let Some(bad) = path.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '?' | '#')) {
        return Err(format!(
            "{path:?} has the character {bad:?}; a path has printable ASCII only (others percent-encoded), without '?' and '#'"
        ));
    }
    Ok(())
}

/// Checks the replacement of a pattern's matches: text of a path, and groups that the pattern has.
pub(super) fn check_substitution(text: &str, pattern: &Regex) -> Result<(), String> {
    if text.len() > MAX_TEXT {
        return Err(format!("has {} bytes; at most {MAX_TEXT}", text.len()));
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        return Err(format!("{text:?} has the character {bad:?}, which no path has"));
    }
    let mut parts = text.split('$').skip(1);
    while let Some(part) = parts.next() {
        let group = match part.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((group, _)) => group,
            None => {
                let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                part.get(..end.unwrap_or(part.len())).unwrap_or_default()
            }
        };
        if group.is_empty() {
            // `$$` is a dollar.
            if part.is_empty() && parts.next().is_some() {
                continue;
            }
            return Err(format!("{text:?} has a $ that names no group; $$ is a dollar"));
        }
        let is_there = match group.parse::<usize>() {
            Ok(number) => number < pattern.captures_len(),
            Err(_) => pattern.capture_names().flatten().any(|name| name == group),
        };
        if !is_there {
            return Err(format!(
                "{text:?} refers to the group {group:?}, which the pattern does not have; ${{1}} ends where its brace does"
            ));
        }
    }
    Ok(())
}

/// A regular expression that must match the whole.
pub(super) fn anchored(text: &str) -> Result<Arc<Regex>, String> {
    regex(text)?;
    regex(&format!("^(?:{text})$")).map(Arc::new)
}

pub(super) fn regex(text: &str) -> Result<Regex, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("has {} bytes; at most {MAX_TEXT}", text.len()));
    }
    regex::RegexBuilder::new(text).size_limit(MAX_REGEX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("compiles to more than {limit} bytes"),
        // The library draws the place over several lines; its last line is the reason.
        error => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim();
            format!("is not a regular expression: {}", reason.strip_prefix("error: ").unwrap_or(reason))
        }
    })
}
