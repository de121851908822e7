//! All that the program says of a kind is in the kind's own file: there is no second list of kinds anywhere.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use signalbox_config::Kind;

/// Files that may name every kind: the list of kinds, and the UI's views. Generated files are not searched, nor is the proxy, which
/// does another thing for each kind.
const LISTS: [&str; 2] = ["config/src/lib.rs", "admin-ui/src/kinds.tsx"];
const GENERATED: [&str; 2] = ["admin-ui/src/api/kinds.ts", "admin-ui/src/api/schema.d.ts"];

#[test]
fn no_other_file_names_every_kind() {
    let files = sources();
    assert!(files.len() > 100, "{} files", files.len());
    let searched =
        files.iter().filter(|(path, _)| !path.starts_with("proxy/") && !LISTS.contains(&path.as_str()));
    for (path, text) in searched {
        let missing = Kind::ALL.iter().filter(|kind| !names(text, **kind)).count();
        assert!(missing > 0, "{path} is another list of the kinds; make it from `Kind::ALL`");
    }
    for list in LISTS {
        let text = &files.iter().find(|(path, _)| path == list).unwrap_or_else(|| panic!("no file {list}")).1;
        assert!(Kind::ALL.iter().all(|kind| names(text, *kind)), "{list} no longer names every kind");
    }
}

#[test]
fn nothing_is_decided_by_a_match_over_kinds() {
    for (path, text) in sources() {
        for kind in Kind::ALL {
            let variant = format!("Kind::{}", kind.schema_name());
            for arm in [format!("{variant} =>"), format!("{variant} | ")] {
                assert!(!text.contains(&arm), "{path} has `{arm}`; say it in the kind's own file");
            }
        }
    }
}

/// True if a text names a kind in any of the forms that a program would use.
fn names(text: &str, kind: Kind) -> bool {
    let variant = kind.schema_name();
    let forms = [
        format!("Kind::{variant}"),
        format!("{variant}Spec"),
        format!("Body::{variant}"),
        format!("\"{kind}\""),
        format!("\"{}\"", kind.plural()),
        format!("  {}: {{", kind.plural()),
    ];
    forms.iter().any(|form| text.contains(form.as_str()))
}

/// All sources of the programs and of the UI, without their tests.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for folder in ["config", "plugins", "process", "control-plane", "proxy", "admin-ui"] {
        collect(&root.join(folder).join("src"), &mut found);
    }
    let relative = |path: &PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    let searched = found.iter().filter(|path| !GENERATED.contains(&relative(path).as_str()));
    searched
        .map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let programs = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            (relative(path), programs.to_owned())
        })
        .collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "rs" || extension == "ts" || extension == "tsx")
        {
            found.push(path);
        }
    }
}
