package proxywasm

import "unsafe"

// The functions of the host, by the proxy-wasm ABI 0.2.1. Strings are passed as address and length.

//go:wasmimport env proxy_log
func proxyLog(level uint32, text string) uint32

//go:wasmimport env proxy_get_buffer_bytes
func proxyGetBufferBytes(id, start, max uint32, place, size unsafe.Pointer) uint32

//go:wasmimport env proxy_set_buffer_bytes
func proxySetBufferBytes(id, start, size uint32, value string) uint32

//go:wasmimport env proxy_get_header_map_pairs
func proxyGetHeaderMapPairs(id uint32, place, size unsafe.Pointer) uint32

//go:wasmimport env proxy_get_header_map_value
func proxyGetHeaderMapValue(id uint32, key string, place, size unsafe.Pointer) uint32

//go:wasmimport env proxy_add_header_map_value
func proxyAddHeaderMapValue(id uint32, key, value string) uint32

//go:wasmimport env proxy_replace_header_map_value
func proxyReplaceHeaderMapValue(id uint32, key, value string) uint32

//go:wasmimport env proxy_remove_header_map_value
func proxyRemoveHeaderMapValue(id uint32, key string) uint32

//go:wasmimport env proxy_get_property
func proxyGetProperty(path string, place, size unsafe.Pointer) uint32

//go:wasmimport env proxy_continue_stream
func proxyContinueStream(direction uint32) uint32

//go:wasmimport env proxy_send_local_response
func proxySendLocalResponse(status uint32, details, body, headers string, grpcStatus int32) uint32

//go:wasmimport env proxy_http_call
func proxyHTTPCall(upstream, headers, body, trailers string, timeout uint32, id unsafe.Pointer) uint32

//go:wasmimport env proxy_set_effective_context
func proxySetEffectiveContext(id uint32) uint32

//go:wasmimport env proxy_set_tick_period_milliseconds
func proxySetTickPeriod(period uint32) uint32

//go:wasmimport env proxy_get_shared_data
func proxyGetSharedData(key string, place, size, version unsafe.Pointer) uint32

//go:wasmimport env proxy_set_shared_data
func proxySetSharedData(key, value string, version uint32) uint32

//go:wasmimport env proxy_define_metric
func proxyDefineMetric(kind uint32, name string, id unsafe.Pointer) uint32

//go:wasmimport env proxy_increment_metric
func proxyIncrementMetric(id uint32, by int64) uint32

// given is the memory into which the host writes what a function returns.
var given []byte

//go:wasmexport proxy_on_memory_allocate
func onMemoryAllocate(size uint32) unsafe.Pointer {
	given = make([]byte, size)
	return unsafe.Pointer(unsafe.SliceData(given))
}

// take returns what the host has returned by the call that f makes.
func take(f func(place, size unsafe.Pointer) uint32) ([]byte, error) {
	var place, size uint32
	given = nil
	status := f(unsafe.Pointer(&place), unsafe.Pointer(&size))
	taken := given
	given = nil
	if status != 0 {
		return nil, Status(status)
	}
	return taken[:size], nil
}

func check(status uint32) error {
	if status == 0 {
		return nil
	}
	return Status(status)
}

// text is a string that shares the memory of bytes, which must not change meanwhile.
func text(bytes []byte) string {
	return unsafe.String(unsafe.SliceData(bytes), len(bytes))
}

//go:wasmexport proxy_abi_version_0_2_1
func abiVersion() {}

//go:wasmexport proxy_on_context_create
func onContextCreate(id, parent uint32) {
	if parent != 0 {
		streams[id] = plugin.NewStream(&Stream{id: id})
	}
}

//go:wasmexport proxy_on_configure
func onConfigure(_, size uint32) uint32 {
	if plugin.Configure == nil {
		return 1
	}
	config, _ := buffer(7, size)
	if err := plugin.Configure(config); err != nil {
		Log(Error, "the configuration is refused: "+err.Error())
		return 0
	}
	return 1
}

//go:wasmexport proxy_on_tick
func onTick(uint32) {
	if plugin.Tick != nil {
		plugin.Tick()
	}
}

//go:wasmexport proxy_on_request_headers
func onRequestHeaders(id, _, end uint32) uint32 {
	if handler, ok := streams[id].(RequestHandler); ok {
		return uint32(handler.OnRequestHeaders(end != 0))
	}
	return uint32(Continue)
}

//go:wasmexport proxy_on_response_headers
func onResponseHeaders(id, _, end uint32) uint32 {
	if handler, ok := streams[id].(ResponseHandler); ok {
		return uint32(handler.OnResponseHeaders(end != 0))
	}
	return uint32(Continue)
}

//go:wasmexport proxy_on_http_call_response
func onHTTPCallResponse(_, id, headers, bodySize, _ uint32) {
	call, ok := calls[id]
	if !ok {
		return
	}
	delete(calls, id)
	answer := &Answer{}
	if headers > 0 {
		answer.Headers = pairs(6)
		answer.Body, _ = buffer(4, bodySize)
	}
	if call.stream != 0 && proxySetEffectiveContext(call.stream) != 0 {
		return
	}
	call.then(answer)
}

//go:wasmexport proxy_on_delete
func onDelete(id uint32) {
	if handler, ok := streams[id].(EndHandler); ok {
		handler.OnEnd()
	}
	delete(streams, id)
}
