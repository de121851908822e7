// The AssemblyScript guest of the tests: it copies the header "x-in" to "x-out", and appends to the body of responses.
// asc guest.ts -o guest.wasm --runtime minimal --exportRuntime

@external("env", "proxy_get_header_map_value")
declare function getHeader(map: u32, key: usize, keySize: u32, value: usize, size: usize): u32;
@external("env", "proxy_replace_header_map_value")
declare function setHeader(map: u32, key: usize, keySize: u32, value: usize, size: u32): u32;
@external("env", "proxy_set_buffer_bytes")
declare function setBuffer(buffer: u32, start: u32, size: u32, value: usize, length: u32): u32;

// The host writes here the address and the size of what it gives.
const place = memory.data(8);
// The memory that it gives lives until the next call of the module.
const given = memory.data(65536);
let top: u32 = 0;

function copy(from: string, to: string): void {
  const key = String.UTF8.encode(from);
  if (getHeader(0, changetype<usize>(key), key.byteLength, place, place + 4) != 0) return;
  const name = String.UTF8.encode(to);
  setHeader(0, changetype<usize>(name), name.byteLength, load<u32>(place), load<u32>(place + 4));
}

export function proxy_abi_version_0_2_1(): void {}

export function proxy_on_memory_allocate(size: u32): usize {
  if (size > 65536 - top) return 0;
  const at = given + top;
  top += size;
  return at;
}

export function proxy_on_request_headers(context: u32, count: u32, end: u32): u32 {
  top = 0;
  copy("x-in", "x-out");
  __collect();
  return 0;
}

export function proxy_on_response_body(context: u32, size: u32, end: u32): u32 {
  if (end) {
    const text = String.UTF8.encode(" and more");
    setBuffer(1, u32.MAX_VALUE, 0, changetype<usize>(text), text.byteLength);
  }
  __collect();
  return 0;
}
