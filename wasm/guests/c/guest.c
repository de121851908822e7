// The C guest of the tests, without any library: it refuses requests without the header "x-token", and stamps responses.
// clang --target=wasm32 -nostdlib -O2 -Wl,--no-entry -o guest.wasm guest.c

typedef unsigned int u32;
typedef unsigned char u8;

#define IMPORT(name) __attribute__((import_module("env"), import_name(#name))) u32 name
#define EXPORT(name) __attribute__((export_name(#name))) name

IMPORT(proxy_log)(u32 level, const char *text, u32 size);
IMPORT(proxy_get_header_map_value)(u32 map, const char *key, u32 key_size, const u8 **value, u32 *size);
IMPORT(proxy_replace_header_map_value)(u32 map, const char *key, u32 key_size, const u8 *value, u32 size);
IMPORT(proxy_remove_header_map_value)(u32 map, const char *key, u32 key_size);
IMPORT(proxy_send_local_response)(u32 status, const char *details, u32 details_size, const char *body, u32 body_size,
                                  const u8 *headers, u32 headers_size, int grpc_status);
IMPORT(proxy_get_buffer_bytes)(u32 buffer, u32 start, u32 max, const u8 **value, u32 *size);

#define TEXT(literal) literal, sizeof(literal) - 1

// A value that the host gives lives until the next call of the module, so one buffer is enough.
static u8 heap[64 * 1024];
static u32 top;

static u8 stamp[64];
static u32 stamp_size;

void *EXPORT(proxy_on_memory_allocate)(u32 size) {
    if (size > sizeof heap - top) {
        return 0;
    }
    void *given = heap + top;
    top += (size + 7) & ~7u;
    return given;
}

void EXPORT(proxy_abi_version_0_2_0)(void) {}

u32 EXPORT(proxy_on_configure)(u32 context, u32 size) {
    const u8 *config;
    top = 0;
    if (size > sizeof stamp || proxy_get_buffer_bytes(7, 0, size, &config, &stamp_size) != 0) {
        return 0;
    }
    for (u32 i = 0; i < stamp_size; i++) {
        stamp[i] = config[i];
    }
    return 1;
}

u32 EXPORT(proxy_on_request_headers)(u32 context, u32 count, u32 end) {
    const u8 *token;
    u32 size;
    top = 0;
    if (proxy_get_header_map_value(0, TEXT("x-token"), &token, &size) != 0) {
        proxy_log(3, TEXT("a request has no token"));
        proxy_send_local_response(401, TEXT("no token"), TEXT("show a token\n"), 0, 0, -1);
        return 1;
    }
    proxy_replace_header_map_value(0, TEXT("x-was"), token, size);
    proxy_remove_header_map_value(0, TEXT("x-token"));
    return 0;
}

u32 EXPORT(proxy_on_response_headers)(u32 context, u32 count, u32 end) {
    top = 0;
    proxy_replace_header_map_value(2, TEXT("x-stamp"), stamp, stamp_size);
    return 0;
}
