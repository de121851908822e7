//! The part of WASI (`wasi_snapshot_preview1`) that the standard libraries of guest languages need.
//!
//! A module has no files, no sockets, no arguments and no environment. What it prints goes to the log.

use wasmtime::{Caller, FuncType, Linker, Val, ValType};

use crate::abi::{wall_nanoseconds, write_log};
use crate::fault::Exit;
use crate::memory::{bytes, bytes_mut, read_u32, split, write_u32, write_u64};
use crate::state::State;
use crate::status::Status;

const MODULE: &str = "wasi_snapshot_preview1";

/// Error numbers of WASI.
const SUCCESS: u32 = 0;
const BADF: u32 = 8;
const FAULT: u32 = 21;
const INVAL: u32 = 28;
const NOSYS: u32 = 52;
const NOTSUP: u32 = 58;

/// The longest line that is collected from what a module prints.
const MAX_LINE: usize = 4 << 10;
/// The most bytes of randomness at once, and the most events.
const MAX_RANDOM: u32 = 64 << 10;
const MAX_EVENTS: u32 = 64;

/// Functions that only return an error, with their parameters: `i` is `i32` and `l` is `i64`.
const ABSENT: [(&str, &str, u32); 31] = [
    ("fd_advise", "illi", BADF),
    ("fd_allocate", "ill", BADF),
    ("fd_close", "i", BADF),
    ("fd_datasync", "i", BADF),
    ("fd_fdstat_set_flags", "ii", BADF),
    ("fd_fdstat_set_rights", "ill", BADF),
    ("fd_filestat_get", "ii", BADF),
    ("fd_filestat_set_size", "il", BADF),
    ("fd_filestat_set_times", "illi", BADF),
    ("fd_pread", "iiili", BADF),
    ("fd_prestat_dir_name", "iii", BADF),
    ("fd_prestat_get", "ii", BADF),
    ("fd_pwrite", "iiili", BADF),
    ("fd_read", "iiii", BADF),
    ("fd_readdir", "iiili", BADF),
    ("fd_renumber", "ii", BADF),
    ("fd_seek", "ilii", BADF),
    ("fd_sync", "i", BADF),
    ("fd_tell", "ii", BADF),
    ("path_create_directory", "iii", BADF),
    ("path_filestat_get", "iiiii", BADF),
    ("path_filestat_set_times", "iiiilli", BADF),
    ("path_link", "iiiiiii", BADF),
    ("path_open", "iiiiillii", BADF),
    ("path_readlink", "iiiiii", BADF),
    ("path_remove_directory", "iii", BADF),
    ("path_rename", "iiiiii", BADF),
    ("path_symlink", "iiiii", BADF),
    ("path_unlink_file", "iii", BADF),
    ("proc_raise", "i", NOSYS),
    ("sock_accept", "iii", NOSYS),
];

/// Functions of sockets, which do not exist either.
const SOCKETS: [(&str, &str); 3] = [("sock_recv", "iiiiii"), ("sock_send", "iiiii"), ("sock_shutdown", "ii")];

type Errno = Result<u32, Status>;

fn errno(result: Errno) -> u32 {
    result.unwrap_or(FAULT)
}

/// Adds all functions.
pub(crate) fn add_to(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let absent = ABSENT.iter().copied();
    for (name, parameters, error) in absent.chain(SOCKETS.map(|(name, parameters)| (name, parameters, NOSYS)))
    {
        let parameters = parameters.chars().map(|code| if code == 'l' { ValType::I64 } else { ValType::I32 });
        let function = FuncType::new(linker.engine(), parameters, [ValType::I32]);
        linker.func_new(MODULE, name, function, move |_, _, results| {
            if let Some(result) = results.first_mut() {
                *result = Val::I32(error.cast_signed());
            }
            Ok(())
        })?;
    }
    linker.func_wrap(MODULE, "sched_yield", |_: Caller<'_, State>| SUCCESS)?;
    linker.func_wrap(MODULE, "proc_exit", |_: Caller<'_, State>, status: u32| -> wasmtime::Result<()> {
        Err(wasmtime::Error::new(Exit(status)))
    })?;
    for name in ["args_get", "environ_get"] {
        linker.func_wrap(MODULE, name, |_: Caller<'_, State>, _: u32, _: u32| SUCCESS)?;
    }
    for name in ["args_sizes_get", "environ_sizes_get"] {
        linker.func_wrap(MODULE, name, |mut caller: Caller<'_, State>, count: u32, size: u32| {
            errno(no_texts(&mut caller, count, size))
        })?;
    }
    linker.func_wrap(
        MODULE,
        "clock_time_get",
        |mut caller: Caller<'_, State>, id: u32, _: u64, out: u32| {
            errno(clock_time_get(&mut caller, id, out))
        },
    )?;
    linker.func_wrap(MODULE, "clock_res_get", |mut caller: Caller<'_, State>, id: u32, out: u32| {
        errno(split(&mut caller).and_then(|(memory, _)| match id {
            0 | 1 => write_u64(memory, out, 1).map(|()| SUCCESS),
            _ => Ok(NOTSUP),
        }))
    })?;
    linker.func_wrap(MODULE, "random_get", |mut caller: Caller<'_, State>, out: u32, size: u32| {
        errno(random_get(&mut caller, out, size))
    })?;
    linker.func_wrap(
        MODULE,
        "fd_write",
        |mut caller: Caller<'_, State>, fd: u32, vectors: u32, count: u32, out: u32| {
            errno(fd_write(&mut caller, fd, vectors, count, out))
        },
    )?;
    linker.func_wrap(MODULE, "fd_fdstat_get", |mut caller: Caller<'_, State>, fd: u32, out: u32| {
        errno(fd_fdstat_get(&mut caller, fd, out))
    })?;
    linker.func_wrap(
        MODULE,
        "poll_oneoff",
        |mut caller: Caller<'_, State>, subscriptions: u32, events: u32, count: u32, out: u32| {
            errno(poll_oneoff(&mut caller, subscriptions, events, count, out))
        },
    )?;
    Ok(())
}

fn no_texts(caller: &mut Caller<'_, State>, count: u32, size: u32) -> Errno {
    let (memory, _) = split(caller)?;
    write_u32(memory, count, 0)?;
    write_u32(memory, size, 0)?;
    Ok(SUCCESS)
}

fn clock_time_get(caller: &mut Caller<'_, State>, id: u32, out: u32) -> Errno {
    let (memory, state) = split(caller)?;
    let time = match id {
        0 => wall_nanoseconds(state),
        1 => u64::try_from(state.setup.clock.monotonic().as_nanos()).unwrap_or(u64::MAX),
        _ => return Ok(NOTSUP),
    };
    write_u64(memory, out, time)?;
    Ok(SUCCESS)
}

fn random_get(caller: &mut Caller<'_, State>, out: u32, size: u32) -> Errno {
    if size > MAX_RANDOM {
        return Ok(INVAL);
    }
    let (memory, _) = split(caller)?;
    match getrandom::fill(bytes_mut(memory, out, size)?) {
        Ok(()) => Ok(SUCCESS),
        Err(_) => Ok(NOTSUP),
    }
}

/// The most bytes that one call writes, and the most pieces that they may be in.
const MAX_WRITE: u32 = 4 << 10;
const MAX_VECTORS: u32 = 256;

fn fd_write(caller: &mut Caller<'_, State>, fd: u32, vectors: u32, count: u32, out: u32) -> Errno {
    let (1 | 2) = fd else { return Ok(BADF) };
    let (memory, state) = split(caller)?;
    // Nothing interrupts the host, so it takes only a part of what is too much; the module comes again with the rest.
    let array = bytes(memory, vectors, count.min(MAX_VECTORS) * 8)?;
    let mut line = std::mem::take(&mut state.lines[fd as usize - 1]);
    let mut written = 0_u32;
    for vector in array.as_chunks::<8>().0 {
        let length = read_u32(vector, 4)?.min(MAX_WRITE - written);
        let text = bytes(memory, read_u32(vector, 0)?, length)?;
        written += length;
        for piece in text.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE.saturating_sub(line.len());
            line.extend_from_slice(piece.get(..room).unwrap_or(piece));
            if piece.ends_with(b"\n") {
                // Standard output is information, standard error is an error.
                write_log(state, if fd == 1 { 2 } else { 4 }, &line);
                line.clear();
            }
        }
    }
    state.lines[fd as usize - 1] = line;
    let (memory, _) = split(caller)?;
    write_u32(memory, out, written)?;
    Ok(SUCCESS)
}

/// Standard streams are character devices that may only be written to.
fn fd_fdstat_get(caller: &mut Caller<'_, State>, fd: u32, out: u32) -> Errno {
    const CHARACTER_DEVICE: u8 = 2;
    const MAY_WRITE: u64 = 1 << 6;
    let (0..=2) = fd else { return Ok(BADF) };
    let (memory, _) = split(caller)?;
    let stat = bytes_mut(memory, out, 24)?;
    stat.fill(0);
    if let Some(kind) = stat.first_mut() {
        *kind = CHARACTER_DEVICE;
    }
    write_u64(stat, 8, MAY_WRITE)?;
    Ok(SUCCESS)
}

/// Clocks are over at once, because a module cannot wait; nothing else can be waited for.
fn poll_oneoff(
    caller: &mut Caller<'_, State>,
    subscriptions: u32,
    events: u32,
    count: u32,
    out: u32,
) -> Errno {
    const SUBSCRIPTION: u32 = 48;
    const EVENT: u32 = 32;
    if count == 0 || count > MAX_EVENTS {
        return Ok(INVAL);
    }
    let (memory, _) = split(caller)?;
    for index in 0..count {
        let from = subscriptions.checked_add(index * SUBSCRIPTION).ok_or(Status::InvalidMemoryAccess)?;
        let subscription = bytes(memory, from, SUBSCRIPTION)?;
        let kind = subscription.get(8).copied().unwrap_or_default();
        let mut event = [0; EVENT as usize];
        event[..8].copy_from_slice(bytes(subscription, 0, 8)?);
        event[8] = if kind == 0 { 0 } else { BADF as u8 };
        event[10] = kind;
        let to = events.checked_add(index * EVENT).ok_or(Status::InvalidMemoryAccess)?;
        bytes_mut(memory, to, EVENT)?.copy_from_slice(&event);
    }
    write_u32(memory, out, count)?;
    Ok(SUCCESS)
}
