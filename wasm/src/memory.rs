//! The memory of a module, as hostcalls read and write it.

use wasmtime::Caller;

use crate::state::State;
use crate::status::{Refusal, Status};

/// The bytes of a range of a module's memory.
pub(crate) fn bytes(memory: &[u8], start: u32, size: u32) -> Result<&[u8], Status> {
    let end = start.checked_add(size).ok_or(Status::InvalidMemoryAccess)?;
    memory.get(start as usize..end as usize).ok_or(Status::InvalidMemoryAccess)
}

/// The same, to write them.
pub(crate) fn bytes_mut(memory: &mut [u8], start: u32, size: u32) -> Result<&mut [u8], Status> {
    let end = start.checked_add(size).ok_or(Status::InvalidMemoryAccess)?;
    memory.get_mut(start as usize..end as usize).ok_or(Status::InvalidMemoryAccess)
}

pub(crate) fn read_u32(memory: &[u8], at: u32) -> Result<u32, Status> {
    let array = bytes(memory, at, 4)?.try_into().map_err(|_| Status::InvalidMemoryAccess)?;
    Ok(u32::from_le_bytes(array))
}

pub(crate) fn write_u32(memory: &mut [u8], at: u32, value: u32) -> Result<(), Status> {
    bytes_mut(memory, at, 4)?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

pub(crate) fn write_u64(memory: &mut [u8], at: u32, value: u64) -> Result<(), Status> {
    bytes_mut(memory, at, 8)?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// The memory of the module that calls, and the state of its host.
pub(crate) fn split<'c>(caller: &'c mut Caller<'_, State>) -> Result<(&'c mut [u8], &'c mut State), Status> {
    let memory = caller.data().memory.ok_or(Status::InvalidMemoryAccess)?;
    Ok(memory.data_and_store_mut(caller))
}

/// Puts `content` into memory that the module allocates, and writes its place and size to `place` and `size`.
///
/// The module's allocator is the only function of a module that a hostcall calls; the ABI has no other way to return bytes.
pub(crate) fn give(
    caller: &mut Caller<'_, State>,
    content: &[u8],
    place: u32,
    size: u32,
) -> Result<(), Refusal> {
    let length = u32::try_from(content.len()).map_err(|_| Status::InvalidMemoryAccess)?;
    let (memory, state) = split(caller)?;
    bytes(memory, place, 4)?;
    bytes(memory, size, 4)?;
    let mut start = 0;
    if length > 0 {
        let allocate = state.allocate.clone().ok_or(Status::InvalidMemoryAccess)?;
        start = allocate.call(&mut *caller, length)?;
        if start == 0 {
            return Err(Status::InvalidMemoryAccess.into());
        }
    }
    let (memory, _) = split(caller)?;
    bytes_mut(memory, start, length)?.copy_from_slice(content);
    write_u32(memory, place, start)?;
    write_u32(memory, size, length)?;
    Ok(())
}
