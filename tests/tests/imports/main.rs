//! The direction of imports between the files of each crate: no circle, and no import against the layers.
//!
//! An import is a path to an item of another file of the same crate, in a `use` or in the middle of code. A `mod`
//! declaration is none, and a `pub use` stands for the file that it takes the item from. Test modules are left out.

// Clippy lets only the tests themselves unwrap, not what they share.
#![allow(clippy::unwrap_used)]

mod circle;
mod layers;
mod resolve;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use circle::shortest_circles;
use layers::{CRATES, Layer};
use resolve::{Crate, Import};

/// The folders of the workspace that hold a crate.
fn crates() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        if folder.join("Cargo.toml").is_file() && folder.join("src/lib.rs").is_file() {
            found.push((folder.file_name().unwrap().to_str().unwrap().to_owned(), folder.join("src")));
        }
    }
    found.sort();
    assert!(found.len() >= 8, "the workspace's crates were not found in {}: {found:?}", root.display());
    found
}

/// Files that import each other in a circle, each circle as a text that names every import of it.
fn circles(imports: &[Import]) -> Vec<String> {
    let mut edges = BTreeMap::<&str, BTreeMap<&str, &Import>>::new();
    for import in imports {
        edges.entry(&import.from).or_default().entry(&import.to).or_insert(import);
    }
    let graph = edges.iter().map(|(from, to)| (*from, to.keys().copied().collect())).collect();
    let describe = |circle: Vec<&str>| {
        let next = circle.iter().cycle().skip(1);
        let steps = circle.iter().zip(next).map(|(from, to)| edges[from][to].to_string());
        steps.collect::<Vec<_>>().join("\n  ")
    };
    shortest_circles(&graph).into_iter().map(describe).collect()
}

/// Imports of a file in a higher layer, and files that no layer holds.
fn against_layers(imports: &[Import], modules: &BTreeMap<String, String>, layers: &[Layer]) -> Vec<String> {
    let height = |module: &str| {
        let depth = |known: &str| {
            let inside =
                module.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
            inside.then_some(known.len())
        };
        let placed = layers.iter().enumerate().flat_map(|(height, (_, modules))| {
            modules.iter().filter_map(move |known| Some((depth(known)?, height)))
        });
        placed.max().map(|(_, height)| height)
    };
    // The crate's root declares modules; nothing may import what it defines.
    let of_file = |file: &str| match modules[file].as_str() {
        "" => Some(layers.len()),
        module => height(module),
    };
    let name = |height: usize| layers.get(height).map_or("the crate's root", |(name, _)| name);
    let mut wrong = Vec::new();
    for file in modules.keys().filter(|file| of_file(file).is_none()) {
        wrong.push(format!("{file} has no place among the layers yet"));
    }
    for import in imports {
        if let (Some(from), Some(to)) = (of_file(&import.from), of_file(&import.to))
            && from < to
        {
            wrong.push(format!("{import}\n  {} must not import from {}", name(from), name(to)));
        }
    }
    wrong
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut found = Vec::new();
    for (name, source) in crates() {
        let circles = circles(&Crate::read(&source).imports());
        found.extend(circles.into_iter().map(|circle| format!("{name}:\n  {circle}")));
    }
    assert!(found.is_empty(), "{} circles of imports:\n\n{}", found.len(), found.join("\n\n"));
}

#[test]
fn imports_follow_the_layers() {
    for (name, source) in crates() {
        let Some((_, layers)) = CRATES.iter().find(|(known, _)| *known == name) else { continue };
        let read = Crate::read(&source);
        let wrong = against_layers(&read.imports(), &read.modules_by_file(), layers);
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn every_crate_with_layers_exists() {
    let known: Vec<String> = crates().into_iter().map(|(name, _)| name).collect();
    for name in CRATES.iter().map(|(name, _)| *name) {
        assert!(known.iter().any(|known| known == name), "there is no crate {name}");
    }
}

/// Writes `files` to a folder and reads them as a crate.
fn crate_of(files: &[(&str, &str)]) -> Crate {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Crate::read(folder.path())
}

/// Every import of a crate made of `files`, as `FROM -> TO`.
fn imports_of(files: &[(&str, &str)]) -> Vec<String> {
    let mut found: Vec<String> =
        crate_of(files).imports().iter().map(|import| format!("{} -> {}", import.from, import.to)).collect();
    found.dedup();
    found
}

#[test]
fn every_way_to_write_an_import_is_seen() {
    let root = ("lib.rs", "mod a;\nmod b;");
    let b = ("b.rs", "pub struct B; pub fn b() {}");
    for a in [
        "use crate::b::B;",
        "use crate::{b::{B as C, b}};",
        "use super::b::B;",
        "use crate::b; fn a() { b::b() }",
        "use crate::b::{self}; fn a() { b::b() }",
        "use crate::b::*;",
        "fn a() { crate::b::b() }",
        "fn a() { super::b::b() }",
        "fn a() { println!(\"{}\", crate::b::b()) }",
        "fn a() -> Option<<crate::b::B as Iterator>::Item> { None }",
        "mod inner { use super::super::b::B; }",
        "fn a() { use crate::b::b; }",
        "#[cfg(not(test))] use crate::b::B;",
    ] {
        assert_eq!(imports_of(&[root, ("a.rs", a), b]), ["a.rs -> b.rs"], "{a}");
    }
}

#[test]
fn what_is_no_import_is_not_taken_for_one() {
    let root = ("lib.rs", "mod a;\nmod b;");
    let b = ("b.rs", "pub struct B;");
    for a in [
        "mod c;",
        "use b::B;",
        "use crate::b;",
        "// crate::b::B",
        "const A: &str = \"crate::b::B\";",
        "#[cfg(test)] mod tests { use crate::b::B; }",
        "#[cfg(test)] use crate::b::B;",
        "#[cfg(test)] fn a() { crate::b::b() }",
        "#[cfg(test)] mod tests;",
        "use ::b::B;",
        "fn a(x: X) { x.b::<u8>() }",
    ] {
        let files = [root, ("a.rs", a), ("a/c.rs", ""), ("a/tests.rs", "use crate::b::B;"), b];
        assert_eq!(imports_of(&files), Vec::<String>::new(), "{a}");
    }
}

#[test]
fn an_item_that_is_exported_again_is_imported_from_its_own_file() {
    let root = ("lib.rs", "mod a;\nmod b;");
    let facade = ("b/mod.rs", "mod inner;\npub use inner::B;");
    let inner = ("b/inner.rs", "pub struct B;");
    let a = ("a.rs", "use crate::b::B;");
    assert_eq!(imports_of(&[root, a, facade, inner]), ["a.rs -> b/inner.rs"]);
    let user = ("b/mod.rs", "mod inner;\npub use inner::B;\nfn b(_: B) {}");
    assert_eq!(imports_of(&[root, a, user, inner]), ["a.rs -> b/inner.rs", "b/mod.rs -> b/inner.rs"]);
}

#[test]
fn a_circle_is_named_file_by_file() {
    let files = [
        ("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;"),
        ("a.rs", "use crate::b::B;\npub struct A;"),
        ("b.rs", "pub struct B;\nfn b() { crate::c::c() }"),
        ("c.rs", "use crate::a::A;\nuse crate::d::D;\npub fn c() {}"),
        ("d.rs", "pub struct D;"),
    ];
    let circles = circles(&crate_of(&files).imports());
    let named: Vec<Vec<&str>> = circles.iter().map(|circle| circle.split("\n  ").collect()).collect();
    assert_eq!(
        named,
        [[
            "a.rs:1 imports crate::b::B from b.rs",
            "b.rs:2 imports crate::c::c from c.rs",
            "c.rs:1 imports crate::a::A from a.rs"
        ]]
    );
}

#[test]
fn an_import_against_the_layers_is_told() {
    let files = [
        ("lib.rs", "mod low;\nmod high;\nmod new;"),
        ("low.rs", "use crate::high::inner::A;"),
        ("high/mod.rs", "pub mod inner;"),
        ("high/inner.rs", "pub struct A;"),
        ("new.rs", ""),
    ];
    let read = crate_of(&files);
    let layers: &[Layer] = &[("storage", &["low"]), ("service", &["high"])];
    let wrong = against_layers(&read.imports(), &read.modules_by_file(), layers);
    assert_eq!(
        wrong,
        [
            "new.rs has no place among the layers yet",
            "low.rs:1 imports crate::high::inner::A from high/inner.rs\n  storage must not import from service"
        ]
    );
}
