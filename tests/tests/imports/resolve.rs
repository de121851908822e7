//! Which file of a crate a path leads to.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::source::{Module, Written};

/// The files of a crate's library.
pub(crate) struct Crate {
    /// By path, such as `["store", "postgres"]`; the root has none.
    modules: BTreeMap<Vec<String>, Placed>,
}

struct Placed {
    module: Module,
    /// Below `src`.
    file: String,
}

/// One file's first path to an item of another.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    pub(crate) from: String,
    pub(crate) to: String,
    line: usize,
    path: String,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} imports {} from {}", self.from, self.line, self.path, self.to)
    }
}

/// Where a path leads.
enum Place {
    Module,
    /// An item of this file.
    Item(String),
    OtherCrate,
}

/// Names that stand for names, one behind the other, before it is taken for a mistake.
const MAX_DEPTH: usize = 16;

impl Crate {
    /// Reads `lib.rs` of `source` and all modules below it.
    pub(crate) fn read(source: &Path) -> Self {
        let mut modules = BTreeMap::new();
        read_file(source, "lib.rs", Vec::new(), &mut modules);
        Self { modules }
    }

    /// Each file, and the path of the module that it holds.
    pub(crate) fn modules_by_file(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        // A file comes before the modules that are written in it.
        for (path, placed) in &self.modules {
            found.entry(placed.file.clone()).or_insert_with(|| path.join("::"));
        }
        found
    }

    /// Every import, sorted.
    pub(crate) fn imports(&self) -> Vec<Import> {
        let mut found = Vec::new();
        for (module, placed) in &self.modules {
            let mut add = |written: &Written, to: &str| {
                if to != placed.file {
                    found.push(Import {
                        from: placed.file.clone(),
                        to: to.to_owned(),
                        line: written.line,
                        path: written.segments.join("::"),
                    });
                }
            };
            for (name, used) in &placed.module.names {
                // A file that only exports an item again has no use for it.
                if used.exported && !placed.module.words.contains(name) {
                    continue;
                }
                if let Place::Item(file) = self.follow(module, &used.path.segments, Some(name), 0) {
                    add(&used.path, &file);
                }
            }
            for written in &placed.module.paths {
                if let Place::Item(file) = self.follow(module, &written.segments, None, 0) {
                    add(written, &file);
                }
            }
            for written in &placed.module.globs {
                let mut path = written.segments.clone();
                path.push("*".to_owned());
                if let Place::Item(file) = self.follow(module, &path, None, 0) {
                    add(written, &file);
                }
            }
        }
        found.sort();
        found
    }

    /// Follows a path that is written in `module`, as the meaning of `name` if it is that of a `use`.
    fn follow(&self, module: &[String], path: &[String], name: Option<&str>, depth: usize) -> Place {
        let Some((first, rest)) = path.split_first().filter(|_| depth < MAX_DEPTH) else {
            return Place::OtherCrate;
        };
        match first.as_str() {
            "crate" => self.descend(&[], rest, depth),
            "self" => self.descend(module, rest, depth),
            "super" => {
                let mut parent = module;
                let mut rest = path;
                while let Some((_, behind)) = rest.split_first().filter(|(first, _)| *first == "super") {
                    parent = parent.split_last().map_or(parent, |(_, parent)| parent);
                    rest = behind;
                }
                self.descend(parent, rest, depth)
            }
            first => {
                let known = self.modules.get(module).is_some_and(|placed| {
                    let is_other = name != Some(first);
                    is_other && placed.module.names.contains_key(first)
                });
                if known || self.modules.contains_key(&child(module, first)) {
                    self.descend(module, path, depth)
                } else {
                    Place::OtherCrate
                }
            }
        }
    }

    /// Follows a path from `module` down.
    fn descend(&self, module: &[String], path: &[String], depth: usize) -> Place {
        let Some(placed) = self.modules.get(module) else { return Place::OtherCrate };
        let Some((first, rest)) = path.split_first() else { return Place::Module };
        let own = || Place::Item(placed.file.clone());
        let below = child(module, first);
        let has_module = self.modules.contains_key(&below);
        match placed.module.names.get(first) {
            Some(used) if !has_module || rest.is_empty() => {
                let path: Vec<String> = used.path.segments.iter().chain(rest).cloned().collect();
                match self.follow(module, &path, Some(first), depth + 1) {
                    Place::OtherCrate => own(),
                    place => place,
                }
            }
            _ if has_module => self.descend(&below, rest, depth),
            _ => own(),
        }
    }
}

fn child(module: &[String], name: &str) -> Vec<String> {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn read_file(source: &Path, file: &str, path: Vec<String>, modules: &mut BTreeMap<Vec<String>, Placed>) {
    let text = std::fs::read_to_string(source.join(file))
        .unwrap_or_else(|error| panic!("{} cannot be read: {error}", source.join(file).display()));
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
    place(source, file, module, path, modules);
}

/// Places a module and those that it declares.
fn place(
    source: &Path,
    file: &str,
    mut module: Module,
    path: Vec<String>,
    modules: &mut BTreeMap<Vec<String>, Placed>,
) {
    for (name, inner) in std::mem::take(&mut module.inline) {
        place(source, file, inner, child(&path, &name), modules);
    }
    for name in module.declared.iter().filter(|(_, is_test)| !**is_test).map(|(name, _)| name) {
        let below = child(&path, name);
        let flat = format!("{}.rs", below.join("/"));
        let nested = format!("{}/mod.rs", below.join("/"));
        let file = if source.join(&flat).is_file() { flat } else { nested };
        read_file(source, &file, below, modules);
    }
    modules.insert(path, Placed { module, file: file.to_owned() });
}
