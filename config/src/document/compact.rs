//! The resources of a document, in a form that takes little more memory than its text.

use std::collections::HashMap;

use serde_json::Value;

use crate::error::{Errors, FieldError, join};
use crate::kind::Kind;

/// One resource of a document, not parsed further.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The kind.
    pub kind: Kind,
    /// The specification.
    pub spec: Value,
    /// The path in the document, as field errors name it: `routes[3]`, or `document[2]` of several.
    pub path: String,
}

/// The resources of a document, in a compact form.
#[derive(Debug, Default)]
pub struct Document {
    /// The specifications one behind the other, canonical JSON.
    pub(super) text: String,
    /// The end of each specification in `text`.
    pub(super) ends: Vec<u32>,
    /// The groups of resources that stand together, in the order of `ends`.
    pub(super) runs: Vec<Run>,
    /// Lists of a kind that are there without being a list: `routes:` and nothing more.
    pub(super) null_lists: Vec<String>,
    /// True if it has a resource or a list for a kind.
    pub(super) names_something: bool,
}

/// Resources that stand together: a list of one kind, or a single one.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) kind: Kind,
    /// Index of its first resource.
    pub(super) first: u32,
    /// The path of the list, or of the single resource.
    pub(super) path: Box<str>,
    pub(super) is_list: bool,
}

/// A hash of kind and name, and the resource that has them.
pub(super) type NameOfSlot = (u64, u32);

/// The error of a document without content.
pub(super) const EMPTY: &str = "is empty: a document without resources is `routes: []`";

impl Document {
    /// The number of resources.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True if there are no resources.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Each resource, read when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.runs.iter().enumerate().flat_map(move |(at, run)| {
            let next = self.runs.get(at + 1).map_or(self.ends.len(), |next| next.first as usize);
            (run.first as usize..next).map(move |slot| Entry {
                kind: run.kind,
                // It was written by this module, so it can be read.
                spec: serde_json::from_str(self.spec(slot)).unwrap_or(Value::Null),
                path: run.path_of(slot),
            })
        })
    }

    /// Refuses what cannot stand for a whole set: a document that names neither a resource nor a list, and one with a
    /// list that is there and is none, as a file that was cut off behind `routes:` has it. Whoever removes all that a
    /// document does not have must ask this first.
    pub fn check_whole(&self) -> Result<(), Vec<FieldError>> {
        if !self.names_something && self.null_lists.is_empty() {
            return Err(vec![FieldError::new("", EMPTY)]);
        }
        let mut errors = Errors::default();
        for path in &self.null_lists {
            errors.push(path, "must be a list, is null; without resources it is `[]`");
        }
        errors.finish(Some(()))
    }

    pub(super) fn spec(&self, slot: usize) -> &str {
        let start = match slot.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or_default(),
            None => 0,
        };
        let end = self.ends.get(slot).copied().unwrap_or_default();
        self.text.get(start as usize..end as usize).unwrap_or_default()
    }

    fn path(&self, slot: usize) -> String {
        let run = self.runs.partition_point(|run| run.first as usize <= slot);
        run.checked_sub(1).and_then(|at| self.runs.get(at)).map_or_else(String::new, |run| run.path_of(slot))
    }

    fn kind(&self, slot: usize) -> Option<Kind> {
        let run = self.runs.partition_point(|run| run.first as usize <= slot);
        Some(self.runs.get(run.checked_sub(1)?)?.kind)
    }

    pub(super) fn refuse_duplicates(&self, mut names: Vec<NameOfSlot>, errors: &mut Errors) {
        names.sort_unstable();
        let mut twice: Vec<(u32, u32)> = Vec::new();
        for same in names.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
            // Different names with one hash are told apart by their texts.
            let mut first: HashMap<(Option<Kind>, String), u32> = HashMap::new();
            for (_, slot) in same {
                let slot = *slot;
                let spec: Value = serde_json::from_str(self.spec(slot as usize)).unwrap_or_default();
                let Some(name) = spec.get("name").and_then(Value::as_str) else { continue };
                let first = *first.entry((self.kind(slot as usize), name.to_owned())).or_insert(slot);
                if first != slot {
                    twice.push((slot, first));
                }
            }
        }
        twice.sort_unstable();
        for (slot, first) in twice {
            let (slot, first) = (slot as usize, first as usize);
            let spec: Value = serde_json::from_str(self.spec(slot)).unwrap_or_default();
            let name = spec.get("name").and_then(Value::as_str).unwrap_or_default();
            let kind = self.kind(slot).map_or_else(String::new, |kind| kind.to_string());
            errors.push(
                join(&self.path(slot), "name"),
                format_args!("{kind} {name:?} is in the document twice, first at {}", self.path(first)),
            );
        }
    }
}

impl Run {
    fn path_of(&self, slot: usize) -> String {
        match self.is_list {
            true => format!("{}[{}]", self.path, slot.saturating_sub(self.first as usize)),
            false => self.path.to_string(),
        }
    }
}
