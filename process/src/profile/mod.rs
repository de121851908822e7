//! CPU profiles of this process, in the format of pprof.
//!
//! A signal interrupts each thread after some of its own CPU time; its handler copies the registers and the top of the stack
//! ([`signal`]). Everything else happens on the thread that takes the profile: it finds the callers ([`unwind`]) and, at the end, the
//! names of the functions ([`symbols`]).
//!
//! pprof-rs does all of it in the handler, with frame pointers, for 23 more crates; its handlers share a lock. Events of perf need a
//! permission that containers do not have. This takes no crate that the programs did not have, and works without frame pointers.

mod encode;
mod module;
mod signal;
mod symbols;
#[cfg(test)]
mod tests;
mod unwind;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use encode::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};

use self::encode::Texts;
use self::module::Module;
use self::signal::Sampling;
use self::unwind::Unwinder;
use crate::procfs;

/// The frequency in Hz that is used if none is asked for: no multiple of the frequencies with which other things happen.
pub const DEFAULT_HZ: u32 = 99;
/// The highest frequency in Hz.
pub const MAX_HZ: u32 = 100;

/// The interval at which samples are read.
const DRAIN: Duration = Duration::from_millis(10);
/// The interval at which new threads are found.
const FOLLOW: Duration = Duration::from_millis(100);

/// The number of different stacks of a profile at most; others count as one without frames.
const MAX_STACKS: usize = 50_000;

/// Held while a profile is taken.
static TAKING: Mutex<()> = Mutex::new(());

/// The reasons why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Another profile is being taken.
    #[error("another profile is being taken; only one is taken at a time")]
    Busy,
    /// The caller no longer wants it.
    #[error("the profile was cancelled")]
    Cancelled,
    /// The system refuses it.
    #[error("the system does not let this process sample its threads")]
    System(#[from] io::Error),
}

/// Takes a profile of all other threads for `length`, `hz` times in a second of CPU time. Blocks. It ends early when `cancelled`
/// becomes true.
pub fn take(length: Duration, hz: u32, cancelled: &AtomicBool) -> Result<Profile, ProfileError> {
    let _taking = match TAKING.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return Err(ProfileError::Busy),
    };
    let interval = Duration::from_secs(1) / hz.clamp(1, MAX_HZ);
    let began_at = SystemTime::now();
    let mut stacks = Stacks::new(Module::all()?);
    let began = Instant::now();
    let lost = stacks.collect(began + length, interval, cancelled)?;
    if cancelled.load(Ordering::Relaxed) {
        return Err(ProfileError::Cancelled);
    }
    let mut profile = stacks.into_profile(interval, lost);
    profile.time_nanos = nanos(began_at.duration_since(UNIX_EPOCH).unwrap_or_default());
    profile.duration_nanos = nanos(length);
    Ok(profile)
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The stacks that were seen, with the number of times.
struct Stacks {
    unwinder: Unwinder,
    seen: HashMap<(i32, Vec<u64>), u64>,
    /// The names of threads.
    threads: BTreeMap<i32, String>,
}

impl Stacks {
    fn new(modules: Vec<Module>) -> Self {
        Self { unwinder: Unwinder::new(modules), seen: HashMap::new(), threads: BTreeMap::new() }
    }

    /// Samples until `end`. Returns the number of samples that were lost.
    fn collect(&mut self, end: Instant, interval: Duration, cancelled: &AtomicBool) -> io::Result<u64> {
        let mut sampling = Sampling::start(interval)?;
        let mut followed = Instant::now();
        loop {
            let now = Instant::now();
            if now >= end || cancelled.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(DRAIN.min(end - now));
            sampling.drain(|sample| self.add(sample));
            if followed.elapsed() >= FOLLOW {
                sampling.follow_threads()?;
                followed = Instant::now();
            }
        }
        sampling.drain(|sample| self.add(sample));
        Ok(sampling.lost())
    }

    fn add(&mut self, sample: &signal::Sample) {
        self.threads.entry(sample.thread).or_insert_with(|| procfs::thread_name(sample.thread));
        let frames = self.unwinder.frames(sample);
        let mut key = (sample.thread, frames);
        if self.seen.len() >= MAX_STACKS && !self.seen.contains_key(&key) {
            key.1.clear();
        }
        *self.seen.entry(key).or_default() += 1;
    }

    fn into_profile(self, interval: Duration, lost: u64) -> Profile {
        let Self { unwinder, seen, threads } = self;
        let addresses: BTreeSet<u64> = seen.keys().flat_map(|(_, frames)| frames.iter().copied()).collect();
        let mut texts = Texts::new();
        let mut code = Code::default();
        for module in unwinder.into_modules() {
            let own: BTreeSet<u64> = addresses.range(module.start..module.end).copied().collect();
            if !own.is_empty() {
                code.add(&module, &own, &mut texts);
            }
        }
        for address in addresses {
            code.location(address, 0);
        }
        let thread = texts.place("thread");
        let sample = seen.into_iter().map(|((id, frames), count)| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let name = threads.get(&id).map_or("", String::as_str);
            Sample {
                location_id: frames.iter().filter_map(|frame| code.ids.get(frame).copied()).collect(),
                value: vec![count, count.saturating_mul(nanos(interval))],
                label: vec![Label { key: thread, str: texts.place(name) }],
            }
        });
        let sample = sample.collect();
        let mut value_type = |kind, unit| ValueType { r#type: texts.place(kind), unit: texts.place(unit) };
        let (samples, cpu) = (value_type("samples", "count"), value_type("cpu", "nanoseconds"));
        let comment = match lost {
            0 => Vec::new(),
            lost => vec![texts.place(&format!("{lost} samples were lost"))],
        };
        Profile {
            sample_type: vec![samples, cpu.clone()],
            sample,
            mapping: code.mappings,
            location: code.locations,
            function: code.functions,
            string_table: texts.into_table(),
            period_type: Some(cpu),
            period: nanos(interval),
            comment,
            ..Profile::default()
        }
    }
}

/// The places in the code, as a profile lists them.
#[derive(Default)]
struct Code {
    mappings: Vec<Mapping>,
    locations: Vec<Location>,
    functions: Vec<Function>,
    /// The numbers of locations by their address.
    ids: BTreeMap<u64, u64>,
    function_ids: BTreeMap<symbols::Function, u64>,
}

impl Code {
    fn add(&mut self, module: &Module, addresses: &BTreeSet<u64>, texts: &mut Texts) {
        let mapping = self.mappings.len() as u64 + 1;
        self.mappings.push(Mapping {
            id: mapping,
            memory_start: module.start,
            memory_limit: module.end,
            file_offset: module.offset,
            filename: texts.place(&module.path),
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
        });
        for (address, lines) in symbols::resolve(module, addresses) {
            let lines = lines.into_iter().map(|line| Line {
                line: i64::from(line.line),
                function_id: self.function(line.function, texts),
            });
            let lines = lines.collect();
            self.location(address, mapping).line = lines;
        }
        for address in addresses {
            self.location(*address, mapping);
        }
    }

    /// The location of an address; it is made if there is none yet.
    fn location(&mut self, address: u64, mapping_id: u64) -> &mut Location {
        let next = self.locations.len() as u64 + 1;
        let id = *self.ids.entry(address).or_insert(next);
        if id == next {
            self.locations.push(Location { id, mapping_id, address, line: Vec::new() });
        }
        let index = usize::try_from(id - 1).unwrap_or_default();
        &mut self.locations[index]
    }

    fn function(&mut self, function: symbols::Function, texts: &mut Texts) -> u64 {
        let next = self.functions.len() as u64 + 1;
        if let Some(id) = self.function_ids.get(&function) {
            return *id;
        }
        self.functions.push(Function {
            id: next,
            name: texts.place(&function.name),
            system_name: texts.place(&function.linked_name),
            filename: texts.place(&function.file),
        });
        self.function_ids.insert(function, next);
        next
    }
}
