//! Finds the callers in a copied stack, by the tables that the compiler writes for panics (`.eh_frame`). So neither the programs nor
//! the system's libraries need frame pointers.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Register, RegisterRule,
    UnwindContext, UnwindSection as _,
};

use super::module::Module;
use super::signal::{REGISTERS, STACK_POINTER, Sample};

/// The number of frames of a stack at most.
const MAX_FRAMES: usize = 256;

/// The number of remembered rules at most; a program has some thousand places at which it calls or is interrupted.
const MAX_RULES: usize = 100_000;

/// The DWARF number of the register in which, or as which, the caller's address is found.
#[cfg(target_arch = "x86_64")]
const RETURN_ADDRESS: usize = 16;
#[cfg(target_arch = "aarch64")]
const RETURN_ADDRESS: usize = 30;

/// The bits of an address; above them aarch64 may have a signature.
const ADDRESS_BITS: u64 = 0x0000_ffff_ffff_ffff;

/// Finds the callers in copied stacks.
pub(super) struct Unwinder {
    modules: Vec<(Module, Option<Tables>)>,
    rules: HashMap<u64, Option<Rule>>,
    context: UnwindContext<usize>,
}

/// The tables of a module.
struct Tables {
    frames: Vec<u8>,
    index: Vec<u8>,
    bases: BaseAddresses,
}

/// The way from a frame to its caller's.
#[derive(Clone)]
struct Rule {
    /// The caller's stack pointer: a register and an offset.
    frame: (usize, i64),
    /// The caller's registers that are on the stack, by their offset from the caller's stack pointer.
    saved: Vec<(usize, i64)>,
    /// True if there is no caller.
    is_last: bool,
}

impl Unwinder {
    pub(super) fn new(modules: Vec<Module>) -> Self {
        let with_tables = |module: Module| {
            let tables = Tables::read(&module);
            (module, tables)
        };
        Self {
            modules: modules.into_iter().map(with_tables).collect(),
            rules: HashMap::new(),
            context: UnwindContext::new(),
        }
    }

    /// The modules again, when all stacks were read.
    pub(super) fn into_modules(self) -> Vec<Module> {
        self.modules.into_iter().map(|(module, _)| module).collect()
    }

    /// Returns the addresses of a sample's frames, the innermost first. Those of callers are of their calls, and not of what
    /// follows them. The list ends early at code without tables.
    pub(super) fn frames(&mut self, sample: &Sample) -> Vec<u64> {
        let mut registers = sample.registers;
        let bottom = sample.registers.get(STACK_POINTER).copied().unwrap_or_default();
        let stack = sample.stack();
        let read = |address: u64| -> Option<u64> {
            let at = usize::try_from(address.checked_sub(bottom)?).ok()?;
            stack.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
        };
        let mut frames = Vec::with_capacity(48);
        frames.extend(registers.last());
        while frames.len() < MAX_FRAMES {
            let Some(at) = frames.last().copied() else { break };
            let is_innermost = frames.len() == 1;
            let Some(rule) = self.rule(at).filter(|rule| !rule.is_last) else { break };
            let base = registers.get(rule.frame.0).copied().unwrap_or_default();
            let frame = base.wrapping_add_signed(rule.frame.1);
            if frame < bottom
                || !is_innermost && registers.get(STACK_POINTER).is_some_and(|own| frame <= *own)
            {
                break;
            }
            let mut next = registers;
            let mut returns_to = None;
            for (register, offset) in &rule.saved {
                let Some(value) = read(frame.wrapping_add_signed(*offset)) else { return frames };
                if let Some(known) = next.get_mut(*register) {
                    *known = value;
                }
                if *register == RETURN_ADDRESS {
                    returns_to = Some(value);
                }
            }
            // A function that calls none keeps it in its register, where there is such a register.
            if returns_to.is_none() && is_innermost && RETURN_ADDRESS + 1 < REGISTERS {
                returns_to = registers.get(RETURN_ADDRESS).copied();
            }
            let caller = returns_to.map_or(0, |address| address & ADDRESS_BITS);
            if caller == 0 {
                break;
            }
            if let Some(pointer) = next.get_mut(STACK_POINTER) {
                *pointer = frame;
            }
            registers = next;
            frames.push(caller - 1);
        }
        frames
    }

    fn rule(&mut self, address: u64) -> Option<&Rule> {
        if !self.rules.contains_key(&address) {
            if self.rules.len() >= MAX_RULES {
                self.rules.clear();
            }
            let found = self.modules.iter().find(|(module, _)| (module.start..module.end).contains(&address));
            let rule = found.and_then(|(module, tables)| {
                tables.as_ref()?.rule(address.wrapping_sub(module.bias), &mut self.context)
            });
            self.rules.insert(address, rule);
        }
        self.rules.get(&address)?.as_ref()
    }
}

impl Tables {
    fn read(module: &Module) -> Option<Self> {
        let (frames_at, frames) = module.section(".eh_frame")?;
        let (index_at, index) = module.section(".eh_frame_hdr")?;
        let bases = BaseAddresses::default()
            .set_eh_frame(frames_at.address)
            .set_eh_frame_hdr(index_at.address)
            .set_text(module.address_of(".text"));
        Some(Self { frames, index, bases })
    }

    /// The rule for an address in the file.
    fn rule(&self, address: u64, context: &mut UnwindContext<usize>) -> Option<Rule> {
        let frames = EhFrame::from(EndianSlice::new(&self.frames, LittleEndian));
        let index = EhFrameHdr::new(&self.index, LittleEndian).parse(&self.bases, 8).ok()?;
        let entry =
            index.table()?.fde_for_address(&frames, &self.bases, address, EhFrame::cie_from_offset).ok()?;
        let row = entry.unwind_info_for_address(&frames, &self.bases, context, address).ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { return None };
        let mut rule = Rule { frame: (number(register), offset), saved: Vec::new(), is_last: false };
        for (register, saved) in row.registers() {
            match saved {
                RegisterRule::Offset(offset) => rule.saved.push((number(*register), *offset)),
                RegisterRule::Undefined if number(*register) == RETURN_ADDRESS => rule.is_last = true,
                _ => {}
            }
        }
        Some(rule)
    }
}

fn number(register: Register) -> usize {
    usize::from(register.0)
}
