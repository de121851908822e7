//! The functions of the proxy-wasm ABI that modules call.

use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use signalbox_config::Name;
use wasmtime::{Caller, Linker};

use crate::context::{Done, ROOT};
use crate::headers::{self, Change, MapMut};
use crate::memory::{bytes, give, split, write_u32, write_u64};
use crate::shared::MetricType;
use crate::state::{Call, State};
use crate::status::{Refusal, Status, returned};
use crate::{pairs, properties};

/// The longest line that a module logs, in bytes.
const MAX_LINE: usize = 4 << 10;
/// The longest time that a call may take, and the most calls that one callback begins.
const MAX_CALL: Duration = Duration::from_secs(60);
const MAX_CALLS: usize = 16;
/// The shortest time between two ticks.
const MIN_TICK: u32 = 10;
/// The level of the log, `INFO`: lines below it are dropped.
const LEVEL: u32 = 2;
/// The largest set of properties of a context, in bytes.
const MAX_PROPERTIES: usize = 16 << 10;

type Result<T = ()> = std::result::Result<T, Refusal>;

/// Defines functions of the module `env`, each with its parameters, all of type `u32` unless they say otherwise.
macro_rules! functions {
    ($linker:ident; $($name:literal => $function:path [$($parameter:ident $(: $type:ty)?),* $(,)?]),* $(,)?) => {
        $($linker.func_wrap("env", $name, |mut caller: Caller<'_, State>, $($parameter: functions!(@ $($type)?)),*| {
            returned($function(&mut caller, $($parameter),*))
        })?;)*
    };
    (@) => { u32 };
    (@ $type:ty) => { $type };
}

/// Adds all functions.
pub(crate) fn add_to(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    functions! { linker;
        "proxy_log" => log [level, text, size],
        "proxy_get_log_level" => get_log_level [out],
        "proxy_get_current_time_nanoseconds" => get_current_time [out],
        "proxy_set_tick_period_milliseconds" => set_tick_period [period],
        "proxy_get_buffer_bytes" => get_buffer_bytes [id, start, max, place, size],
        "proxy_set_buffer_bytes" => set_buffer_bytes [id, start, size, value, length],
        "proxy_get_buffer_status" => get_buffer_status [id, size, flags],
        "proxy_get_header_map_size" => get_header_map_size [id, size],
        "proxy_get_header_map_pairs" => get_header_map_pairs [id, place, size],
        "proxy_set_header_map_pairs" => set_header_map_pairs [id, text, size],
        "proxy_get_header_map_value" => get_header_map_value [id, key, key_size, place, size],
        "proxy_add_header_map_value" => add_header_map_value [id, key, key_size, value, size],
        "proxy_replace_header_map_value" => replace_header_map_value [id, key, key_size, value, size],
        "proxy_remove_header_map_value" => remove_header_map_value [id, key, key_size],
        "proxy_get_property" => get_property [path, path_size, place, size],
        "proxy_set_property" => set_property [path, path_size, value, size],
        "proxy_continue_stream" => continue_stream [stream],
        "proxy_close_stream" => close_stream [stream],
        "proxy_get_status" => get_status [code, place, size],
        "proxy_send_local_response" =>
            send_local_response [status, details, details_size, body, body_size, headers, headers_size, grpc],
        "proxy_http_call" => http_call
            [upstream, upstream_size, headers, headers_size, body, body_size, trailers, trailers_size, timeout, out],
        "proxy_set_effective_context" => set_effective_context [id],
        "proxy_done" => done [],
        "proxy_get_shared_data" => get_shared_data [key, key_size, place, size, cas],
        "proxy_set_shared_data" => set_shared_data [key, key_size, value, size, cas],
        "proxy_define_metric" => define_metric [metric_type, name, size, out],
        "proxy_record_metric" => record_metric [id, value: u64],
        "proxy_increment_metric" => increment_metric [id, by: i64],
        "proxy_get_metric" => get_metric [id, out],
        "proxy_call_foreign_function" =>
            call_foreign_function [name, name_size, arguments, arguments_size, place, size],
        // There are no queues, and no calls over gRPC.
        "proxy_register_shared_queue" => unimplemented_3 [name, size, out],
        "proxy_resolve_shared_queue" => unimplemented_5 [vm, vm_size, name, size, out],
        "proxy_enqueue_shared_queue" => unimplemented_3 [id, value, size],
        "proxy_dequeue_shared_queue" => unimplemented_3 [id, place, size],
        "proxy_grpc_call" => unimplemented_12 [a, b, c, d, e, f, g, h, i, j, k, l],
        "proxy_grpc_stream" => unimplemented_9 [a, b, c, d, e, f, g, h, i],
        "proxy_grpc_send" => unimplemented_4 [id, message, size, end],
        "proxy_grpc_cancel" => unimplemented_1 [id],
        "proxy_grpc_close" => unimplemented_1 [id],
    }
    // The abort of AssemblyScript's standard library.
    linker.func_wrap(
        "env",
        "abort",
        |_: Caller<'_, State>, _: u32, _: u32, line: u32, column: u32| -> wasmtime::Result<()> {
            Err(wasmtime::Error::msg(format!("it aborted at {line}:{column}")))
        },
    )?;
    // The notice of Emscripten's standard library, which C++ modules send.
    linker.func_wrap("env", "emscripten_notify_memory_growth", |_: Caller<'_, State>, _: u32| {})?;
    Ok(())
}

/// Defines functions that do nothing.
macro_rules! unimplemented_functions {
    ($($name:ident [$($parameter:ident),*])*) => {
        $(#[allow(clippy::too_many_arguments, reason = "the ABI has them")]
        fn $name(_: &mut Caller<'_, State>, $($parameter: u32),*) -> Result {
            let _ = ($($parameter,)*);
            Err(Status::Unimplemented.into())
        })*
    };
}

unimplemented_functions! {
    unimplemented_1 [a]
    unimplemented_3 [a, b, c]
    unimplemented_4 [a, b, c, d]
    unimplemented_5 [a, b, c, d, e]
    unimplemented_9 [a, b, c, d, e, f, g, h, i]
    unimplemented_12 [a, b, c, d, e, f, g, h, i, j, k, l]
}

fn log(caller: &mut Caller<'_, State>, level: u32, text: u32, size: u32) -> Result {
    let (memory, state) = split(caller)?;
    if level > 5 {
        return Err(Status::BadArgument.into());
    }
    write_log(state, level, bytes(memory, text, size)?);
    Ok(())
}

/// Writes a line to the program's log, with its control characters escaped.
pub(crate) fn write_log(state: &State, level: u32, line: &[u8]) {
    if level < LEVEL {
        return;
    }
    let line = String::from_utf8_lossy(line.get(..MAX_LINE).unwrap_or(line));
    let line = line.trim_end_matches('\n');
    let mut escaped = String::with_capacity(line.len());
    for character in line.chars() {
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    let log = &state.setup.lines;
    match level {
        0..=2 => log.info(format_args!("module: {escaped}")),
        _ => log.warn(format_args!("module: {escaped}")),
    }
}

fn get_log_level(caller: &mut Caller<'_, State>, out: u32) -> Result {
    let (memory, _) = split(caller)?;
    Ok(write_u32(memory, out, LEVEL)?)
}

fn get_current_time(caller: &mut Caller<'_, State>, out: u32) -> Result {
    let (memory, state) = split(caller)?;
    Ok(write_u64(memory, out, wall_nanoseconds(state))?)
}

pub(crate) fn wall_nanoseconds(state: &State) -> u64 {
    let since = state.setup.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn set_tick_period(caller: &mut Caller<'_, State>, period: u32) -> Result {
    let period = if period == 0 { 0 } else { period.max(MIN_TICK) };
    caller.data_mut().tick = Duration::from_millis(period.into());
    Ok(())
}

fn get_buffer_bytes(
    caller: &mut Caller<'_, State>,
    id: u32,
    start: u32,
    max: u32,
    place: u32,
    size: u32,
) -> Result {
    let buffer = caller.data().buffer(id)?;
    let end = start.checked_add(max).ok_or(Status::BadArgument)? as usize;
    let start = (start as usize).min(buffer.len());
    let part = buffer.slice(start..end.min(buffer.len()).max(start));
    give(caller, &part, place, size)
}

fn get_buffer_status(caller: &mut Caller<'_, State>, id: u32, size: u32, flags: u32) -> Result {
    let length = u32::try_from(caller.data().buffer(id)?.len()).unwrap_or(u32::MAX);
    let (memory, _) = split(caller)?;
    bytes(memory, flags, 4)?;
    write_u32(memory, size, length)?;
    Ok(write_u32(memory, flags, 0)?)
}

fn set_buffer_bytes(
    caller: &mut Caller<'_, State>,
    id: u32,
    start: u32,
    size: u32,
    value: u32,
    length: u32,
) -> Result {
    let (memory, state) = split(caller)?;
    let value = bytes(memory, value, length)?;
    let before = state.buffer(id)?;
    if id > 1 {
        return Err(Status::BadArgument.into());
    }
    let start = (start as usize).min(before.len());
    let end = start.saturating_add(size as usize).min(before.len());
    let (head, tail) = (&before[..start], &before[end..]);
    if head.len() + value.len() + tail.len() > state.setup.max_body.max(before.len()) {
        return Err(Status::BadArgument.into());
    }
    let mut after = BytesMut::with_capacity(head.len() + value.len() + tail.len());
    for part in [head, value, tail] {
        after.extend_from_slice(part);
    }
    state.view.bodies[id as usize] = Some(after.freeze());
    Ok(())
}

fn get_header_map_size(caller: &mut Caller<'_, State>, id: u32, size: u32) -> Result {
    let length = encoded(caller.data(), id)?.len();
    let (memory, _) = split(caller)?;
    Ok(write_u32(memory, size, u32::try_from(length).unwrap_or(u32::MAX))?)
}

fn get_header_map_pairs(caller: &mut Caller<'_, State>, id: u32, place: u32, size: u32) -> Result {
    let encoded = encoded(caller.data(), id)?;
    give(caller, &encoded, place, size)
}

fn encoded(state: &State, id: u32) -> std::result::Result<Vec<u8>, Status> {
    let Some(map) = state.map(id)? else { return Ok(Vec::new()) };
    Ok(pairs::encode(map.pairs().iter().copied()))
}

fn get_header_map_value(
    caller: &mut Caller<'_, State>,
    id: u32,
    key: u32,
    key_size: u32,
    place: u32,
    size: u32,
) -> Result {
    let (memory, state) = split(caller)?;
    let key = bytes(memory, key, key_size)?;
    let value = state.map(id)?.and_then(|map| map.get(key)).ok_or(Status::NotFound)?;
    give(caller, &value, place, size)
}

/// Changes a map, if it is there and may be changed now.
fn change(
    state: &mut State,
    id: u32,
    change: impl FnOnce(MapMut<'_>) -> std::result::Result<(), Status>,
) -> Result {
    let is_own = state.view.owner == state.effective;
    let view = &mut state.view;
    let [requests, responses] = view.writable;
    let map = match id {
        _ if !is_own => None,
        0 => view.request.as_mut().filter(|_| requests).map(MapMut::Request),
        1 => view.trailers[0].as_mut().map(MapMut::Fields),
        2 => view.response.as_mut().filter(|_| responses).map(MapMut::Response),
        3 => view.trailers[1].as_mut().map(MapMut::Fields),
        _ => None,
    };
    change(map.ok_or(Status::BadArgument)?)?;
    view.has_changed_request |= id == 0;
    Ok(())
}

fn set_header_map_pairs(caller: &mut Caller<'_, State>, id: u32, text: u32, size: u32) -> Result {
    let (memory, state) = split(caller)?;
    let pairs = pairs::decode(bytes(memory, text, size)?)?;
    change(state, id, |mut map| map.set_all(&pairs))
}

fn add_header_map_value(
    caller: &mut Caller<'_, State>,
    id: u32,
    key: u32,
    key_size: u32,
    value: u32,
    size: u32,
) -> Result {
    let (memory, state) = split(caller)?;
    let (key, value) = (bytes(memory, key, key_size)?, bytes(memory, value, size)?);
    change(state, id, |mut map| map.change(Change::Add, key, value))
}

fn replace_header_map_value(
    caller: &mut Caller<'_, State>,
    id: u32,
    key: u32,
    key_size: u32,
    value: u32,
    size: u32,
) -> Result {
    let (memory, state) = split(caller)?;
    let (key, value) = (bytes(memory, key, key_size)?, bytes(memory, value, size)?);
    change(state, id, |mut map| map.change(Change::Replace, key, value))
}

fn remove_header_map_value(caller: &mut Caller<'_, State>, id: u32, key: u32, key_size: u32) -> Result {
    let (memory, state) = split(caller)?;
    let key = bytes(memory, key, key_size)?;
    change(state, id, |mut map| map.change(Change::Remove, key, b""))
}

fn get_property(caller: &mut Caller<'_, State>, path: u32, path_size: u32, place: u32, size: u32) -> Result {
    let (memory, state) = split(caller)?;
    let value = properties::get(state, bytes(memory, path, path_size)?).ok_or(Status::NotFound)?;
    give(caller, &value, place, size)
}

fn set_property(caller: &mut Caller<'_, State>, path: u32, path_size: u32, value: u32, size: u32) -> Result {
    let (memory, state) = split(caller)?;
    let (path, value) = (bytes(memory, path, path_size)?, bytes(memory, value, size)?);
    let context = state.context().ok_or(Status::NotFound)?;
    context.properties.retain(|(before, _)| **before != *path);
    let used: usize = context.properties.iter().map(|(path, value)| path.len() + value.len()).sum();
    if used + path.len() + value.len() > MAX_PROPERTIES {
        return Err(Status::InternalFailure.into());
    }
    context.properties.push((path.into(), Bytes::copy_from_slice(value)));
    Ok(())
}

fn continue_stream(caller: &mut Caller<'_, State>, stream: u32) -> Result {
    match stream {
        0 | 1 => {
            let context = caller.data_mut().context().ok_or(Status::BadArgument)?;
            context.resumed[stream as usize] = true;
            context.wake();
            Ok(())
        }
        2 | 3 => Err(Status::Unimplemented.into()),
        _ => Err(Status::BadArgument.into()),
    }
}

fn close_stream(caller: &mut Caller<'_, State>, stream: u32) -> Result {
    match stream {
        0 | 1 => {
            let context = caller.data_mut().context().ok_or(Status::BadArgument)?;
            context.is_closed = true;
            context.wake();
            Ok(())
        }
        2 | 3 => Err(Status::Unimplemented.into()),
        _ => Err(Status::BadArgument.into()),
    }
}

fn get_status(caller: &mut Caller<'_, State>, code: u32, place: u32, size: u32) -> Result {
    let status = caller.data().view.answer.as_ref().map_or(0, |answer| answer.status.as_u16().into());
    let (memory, _) = split(caller)?;
    write_u32(memory, code, status)?;
    give(caller, b"", place, size)
}

#[allow(clippy::too_many_arguments, reason = "the ABI has them")]
fn send_local_response(
    caller: &mut Caller<'_, State>,
    status: u32,
    details: u32,
    details_size: u32,
    body: u32,
    body_size: u32,
    headers: u32,
    headers_size: u32,
    _grpc: u32,
) -> Result {
    let (memory, state) = split(caller)?;
    bytes(memory, details, details_size)?;
    let body = bytes(memory, body, body_size)?;
    if body.len() > state.setup.max_body {
        return Err(Status::BadArgument.into());
    }
    let pairs = pairs::decode(bytes(memory, headers, headers_size)?)?;
    let response = headers::local_response(status, &pairs, Bytes::copy_from_slice(body))?;
    let context = state.context().ok_or(Status::BadArgument)?;
    context.reply = Some(response);
    context.wake();
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "the ABI has them")]
fn http_call(
    caller: &mut Caller<'_, State>,
    upstream: u32,
    upstream_size: u32,
    headers: u32,
    headers_size: u32,
    body: u32,
    body_size: u32,
    trailers: u32,
    trailers_size: u32,
    timeout: u32,
    out: u32,
) -> Result {
    let (memory, state) = split(caller)?;
    let upstream = bytes(memory, upstream, upstream_size)?;
    let pairs = pairs::decode(bytes(memory, headers, headers_size)?)?;
    let body = bytes(memory, body, body_size)?;
    pairs::decode(bytes(memory, trailers, trailers_size)?)?;
    bytes(memory, out, 4)?;
    let named = std::str::from_utf8(upstream).ok();
    let upstream: &Name = named
        .and_then(|named| state.setup.upstreams.iter().find(|upstream| upstream.as_str() == named))
        .ok_or(Status::BadArgument)?;
    if body.len() > state.setup.max_body {
        return Err(Status::BadArgument.into());
    }
    let request = headers::call_request(&pairs, Bytes::copy_from_slice(body))?;
    if state.calls.len() >= MAX_CALLS {
        return Err(Status::InternalFailure.into());
    }
    state.last_call = state.last_call.wrapping_add(1);
    let timeout = Duration::from_millis(timeout.into());
    let call = Call {
        owner: if state.contexts.contains_key(&state.effective) { state.effective } else { ROOT },
        id: state.last_call,
        upstream: upstream.clone(),
        request,
        timeout: if timeout.is_zero() { MAX_CALL } else { timeout.min(MAX_CALL) },
    };
    write_u32(memory, out, call.id)?;
    state.calls.push(call);
    Ok(())
}

fn set_effective_context(caller: &mut Caller<'_, State>, id: u32) -> Result {
    let state = caller.data_mut();
    if id != ROOT && !state.contexts.contains_key(&id) {
        return Err(Status::BadArgument.into());
    }
    state.effective = id;
    Ok(())
}

fn done(caller: &mut Caller<'_, State>) -> Result {
    let state = caller.data_mut();
    let id = state.effective;
    let context = state.context().filter(|context| context.done == Done::Waiting).ok_or(Status::NotFound)?;
    context.done = Done::Finished;
    // The end is told when this call of the module has returned.
    state.finished.push(id);
    Ok(())
}

fn get_shared_data(
    caller: &mut Caller<'_, State>,
    key: u32,
    key_size: u32,
    place: u32,
    size: u32,
    cas: u32,
) -> Result {
    let (memory, state) = split(caller)?;
    let (value, version) = state.setup.shared.get(bytes(memory, key, key_size)?).ok_or(Status::NotFound)?;
    write_u32(memory, cas, version)?;
    give(caller, &value, place, size)
}

fn set_shared_data(
    caller: &mut Caller<'_, State>,
    key: u32,
    key_size: u32,
    value: u32,
    size: u32,
    cas: u32,
) -> Result {
    let (memory, state) = split(caller)?;
    let (key, value) = (bytes(memory, key, key_size)?, bytes(memory, value, size)?);
    Ok(state.setup.shared.set(key, value, cas)?)
}

fn define_metric(caller: &mut Caller<'_, State>, metric_type: u32, name: u32, size: u32, out: u32) -> Result {
    let (memory, state) = split(caller)?;
    let metric_type = match metric_type {
        0 => MetricType::Counter,
        1 => MetricType::Gauge,
        2 => MetricType::Histogram,
        _ => return Err(Status::BadArgument.into()),
    };
    bytes(memory, out, 4)?;
    let id = state.setup.shared.define(metric_type, bytes(memory, name, size)?)?;
    Ok(write_u32(memory, out, id)?)
}

fn record_metric(caller: &mut Caller<'_, State>, id: u32, value: u64) -> Result {
    Ok(caller.data().setup.shared.record(id, value)?)
}

fn increment_metric(caller: &mut Caller<'_, State>, id: u32, by: i64) -> Result {
    Ok(caller.data().setup.shared.increment(id, by)?)
}

fn get_metric(caller: &mut Caller<'_, State>, id: u32, out: u32) -> Result {
    let (memory, state) = split(caller)?;
    let value = state.setup.shared.read(id)?;
    Ok(write_u64(memory, out, value)?)
}

#[allow(clippy::too_many_arguments, reason = "the ABI has them")]
fn call_foreign_function(
    caller: &mut Caller<'_, State>,
    name: u32,
    name_size: u32,
    arguments: u32,
    arguments_size: u32,
    _place: u32,
    _size: u32,
) -> Result {
    let (memory, _) = split(caller)?;
    bytes(memory, name, name_size)?;
    bytes(memory, arguments, arguments_size)?;
    Err(Status::NotFound.into())
}
