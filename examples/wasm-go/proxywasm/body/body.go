// Package body adds the callbacks for bodies. Import it only in a plugin that wants bodies: without it they do not pass the module.
package body

import "example.com/filter/proxywasm"

// RequestHandler sees the bodies of requests.
type RequestHandler interface {
	// OnRequestBody sees a part of the body, or all of it that is held. end: nothing follows.
	OnRequestBody(body *Body, end bool) proxywasm.Action
}

// ResponseHandler sees the bodies of responses.
type ResponseHandler interface {
	// OnResponseBody sees a part of the body, or all of it that is held. end: nothing follows.
	OnResponseBody(body *Body, end bool) proxywasm.Action
}

// Body is the part of a body that a callback sees.
type Body struct{ id, size uint32 }

// Size is its size, in bytes.
func (b *Body) Size() int { return int(b.size) }

// Bytes returns it.
func (b *Body) Bytes() []byte {
	bytes, _ := proxywasm.Buffer(b.id, b.size)
	return bytes
}

// Set puts other bytes in its place.
func (b *Body) Set(bytes []byte) error { return proxywasm.SetBuffer(b.id, bytes) }

//go:wasmexport proxy_on_request_body
func onRequestBody(id, size, end uint32) uint32 {
	if handler, ok := proxywasm.Handler(id).(RequestHandler); ok {
		return uint32(handler.OnRequestBody(&Body{0, size}, end != 0))
	}
	return 0
}

//go:wasmexport proxy_on_response_body
func onResponseBody(id, size, end uint32) uint32 {
	if handler, ok := proxywasm.Handler(id).(ResponseHandler); ok {
		return uint32(handler.OnResponseBody(&Body{1, size}, end != 0))
	}
	return 0
}
