//! Names of functions for addresses: from the debug information of a module, else from its table of symbols.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use addr2line::Context;
use gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};

use super::module::{Fields, Module, text_at};

/// A function at an address. Inlined functions share an address with the function that they are a part of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Function {
    /// The name as people read it.
    pub(super) name: String,
    /// The name in the program.
    pub(super) linked_name: String,
    /// Empty if it is not known.
    pub(super) file: String,
}

/// A place in a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) function: Function,
    /// 0 if it is not known.
    pub(super) line: u32,
}

/// The sections with debug information about functions and lines.
const SECTIONS: [SectionId; 9] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// Finds the functions at `addresses`, which are in memory: for each the innermost inlined one first. An address without a known
/// function is left out.
pub(super) fn resolve(module: &Module, addresses: &BTreeSet<u64>) -> BTreeMap<u64, Vec<Line>> {
    let symbols = Symbols::read(module);
    let sections: BTreeMap<&str, Vec<u8>> =
        SECTIONS.iter().filter_map(|id| Some((id.name(), module.section(id.name())?.1))).collect();
    let section = |id: SectionId| -> Result<_, gimli::Error> {
        let bytes = sections.get(id.name()).map_or(&[][..], Vec::as_slice);
        Ok(EndianSlice::new(bytes, LittleEndian))
    };
    let debug = Dwarf::load(section).and_then(Context::from_dwarf).ok();
    let resolve = |address: &u64| {
        let in_file = address.wrapping_sub(module.bias);
        let mut lines = debug.as_ref().map_or_else(Vec::new, |debug| debug_lines(debug, in_file));
        // The table has the whole name of the function that contains the others.
        if let Some(symbol) = symbols.at(in_file) {
            let name = function_name(symbol);
            match lines.last_mut() {
                Some(outer) => {
                    outer.function.name = name;
                    outer.function.linked_name = symbol.to_owned();
                }
                None => lines.push(Line {
                    function: Function { name, linked_name: symbol.to_owned(), file: String::new() },
                    line: 0,
                }),
            }
        }
        lines.retain(|line| !line.function.name.is_empty());
        (!lines.is_empty()).then_some((*address, lines))
    };
    addresses.iter().filter_map(resolve).collect()
}

fn debug_lines(debug: &Context<EndianSlice<'_, LittleEndian>>, address: u64) -> Vec<Line> {
    let mut lines = Vec::new();
    let Ok(mut frames) = debug.find_frames(address).skip_all_loads() else { return lines };
    while let Ok(Some(frame)) = frames.next() {
        let name = frame.function.as_ref().and_then(|function| function.raw_name().ok());
        let linked_name = name.unwrap_or(Cow::Borrowed("")).into_owned();
        let location = frame.location.as_ref();
        lines.push(Line {
            function: Function {
                name: function_name(&linked_name),
                linked_name,
                file: location.and_then(|location| location.file).unwrap_or_default().to_owned(),
            },
            line: location.and_then(|location| location.line).unwrap_or_default(),
        });
    }
    lines
}

/// The name as people read it, without the hash.
fn function_name(linked_name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(linked_name))
}

/// The functions in a module's table of symbols.
struct Symbols {
    /// Address, size, and the place of the name, by address.
    functions: Vec<(u64, u64, u32)>,
    names: Vec<u8>,
}

/// The size of an entry of the table, in bytes (ELF-64 Object File Format, figure 4).
const ENTRY: usize = 24;
const FUNCTION: u8 = 2;

impl Symbols {
    fn read(module: &Module) -> Self {
        let tables = [(".symtab", ".strtab"), (".dynsym", ".dynstr")];
        let found = tables
            .into_iter()
            .find_map(|(table, names)| Some((module.section(table)?.1, module.section(names)?.1)));
        let (table, names) = found.unwrap_or_default();
        let entries = table.chunks_exact(ENTRY).filter_map(|entry| {
            let kind = entry.get(4).copied().unwrap_or_default() & 0xf;
            let fields = Fields(entry.to_vec());
            let (address, size) = (fields.u64(8), fields.u64(16));
            (kind == FUNCTION && address > 0).then(|| (address, size, fields.u32(0)))
        });
        let mut functions: Vec<_> = entries.collect();
        functions.sort_unstable();
        Self { functions, names }
    }

    fn at(&self, address: u64) -> Option<&str> {
        let after = self.functions.partition_point(|(start, _, _)| *start <= address);
        let (start, size, name) = self.functions.get(after.checked_sub(1)?)?;
        // Functions in assembler often have no size.
        (*size == 0 || address - start < *size).then(|| text_at(&self.names, *name))
    }
}
