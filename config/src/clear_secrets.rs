//! The fields of specifications in which a secret may stand as it is.

use serde_json::Value;

use crate::error::join;

/// Calls `visit` with every value of `spec` at `pattern` and its path. A pattern is the path of a field, with `[]` for all entries
/// of a list: `credentials[].jwt.secret`.
pub(crate) fn visit(spec: &mut Value, pattern: &str, visit: &mut dyn FnMut(&str, &mut Value)) {
    walk(spec, pattern, "", visit);
}

fn walk(value: &mut Value, pattern: &str, path: &str, visit: &mut dyn FnMut(&str, &mut Value)) {
    if pattern.is_empty() {
        return visit(path, value);
    }
    let (step, rest) = pattern.split_once('.').unwrap_or((pattern, ""));
    match step.strip_suffix("[]") {
        None => {
            if let Some(field) = value.get_mut(step) {
                walk(field, rest, &join(path, step), visit);
            }
        }
        Some(list) => {
            let entries = value.get_mut(list).and_then(Value::as_array_mut);
            for (index, entry) in entries.into_iter().flatten().enumerate() {
                walk(entry, rest, &format!("{}[{index}]", join(path, list)), visit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_value_at_a_pattern_is_visited() {
        let mut spec =
            json!({"key": "a", "list": [{"x": {"s": "b"}}, {"y": 1}, {"x": {"s": "c"}}], "x": {"s": "d"}});
        for (pattern, expected) in [
            ("key", &["key=a"][..]),
            ("list[].x.s", &["list[0].x.s=b", "list[2].x.s=c"]),
            ("x.s", &["x.s=d"]),
            ("nothing", &[]),
            ("key[].s", &[]),
            ("key.s", &[]),
        ] {
            let mut seen = Vec::new();
            visit(&mut spec, pattern, &mut |path, value| {
                seen.push(format!("{path}={}", value.as_str().unwrap()));
            });
            assert_eq!(seen, expected, "{pattern}");
        }
    }
}
