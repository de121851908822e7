//! The Rust guest of the tests, without an SDK: it counts requests by header, and writes the count into responses.
//! rustc --target wasm32-unknown-unknown --crate-type cdylib -O -o guest.wasm guest.rs

use std::cell::RefCell;
use std::collections::HashMap;

#[link(wasm_import_module = "env")]
extern "C" {
    fn proxy_get_header_map_value(map: u32, key: *const u8, size: usize, value: *mut *mut u8, length: *mut usize) -> u32;
    fn proxy_replace_header_map_value(map: u32, key: *const u8, size: usize, value: *const u8, length: usize) -> u32;
    fn proxy_set_effective_context(id: u32) -> u32;
}

thread_local! {
    static COUNTS: RefCell<HashMap<String, u32>> = RefCell::new(HashMap::new());
    static STREAMS: RefCell<HashMap<u32, String>> = RefCell::new(HashMap::new());
}

fn header(map: u32, name: &str) -> Option<String> {
    let (mut value, mut length) = (std::ptr::null_mut(), 0);
    let status = unsafe { proxy_get_header_map_value(map, name.as_ptr(), name.len(), &mut value, &mut length) };
    match status {
        0 if value.is_null() => Some(String::new()),
        0 => Some(String::from_utf8(unsafe { Vec::from_raw_parts(value, length, length) }).unwrap()),
        1 => None,
        status => panic!("status {}", status),
    }
}

#[no_mangle]
pub extern "C" fn proxy_abi_version_0_2_1() {}

#[no_mangle]
pub extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    let mut memory = Vec::with_capacity(size);
    let start = memory.as_mut_ptr();
    std::mem::forget(memory);
    start
}

#[no_mangle]
pub extern "C" fn proxy_on_request_headers(id: u32, _: u32, _: u32) -> u32 {
    let client = header(0, "x-client").expect("a request has no client");
    COUNTS.with(|counts| *counts.borrow_mut().entry(client.clone()).or_default() += 1);
    STREAMS.with(|streams| streams.borrow_mut().insert(id, client));
    0
}

#[no_mangle]
pub extern "C" fn proxy_on_response_headers(id: u32, _: u32, _: u32) -> u32 {
    assert_eq!(unsafe { proxy_set_effective_context(id) }, 0);
    let client = STREAMS.with(|streams| streams.borrow()[&id].clone());
    let count = COUNTS.with(|counts| counts.borrow()[&client]).to_string();
    let name = "x-count";
    let status =
        unsafe { proxy_replace_header_map_value(2, name.as_ptr(), name.len(), count.as_ptr(), count.len()) };
    assert_eq!(status, 0);
    0
}

#[no_mangle]
pub extern "C" fn proxy_on_delete(id: u32) {
    STREAMS.with(|streams| streams.borrow_mut().remove(&id));
}
