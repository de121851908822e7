// Package proxywasm is a small binding of the proxy-wasm ABI 0.2 for plugins in Go. It needs nothing but the Go toolchain, 1.24
// or newer. Copy it, and change it as you like.
//
// A plugin registers itself in an init function, for main is not called:
//
//	func init() { proxywasm.Run(proxywasm.Plugin{NewStream: newStream}) }
//	func main() {}
//
// Each worker of the proxy has one instance of the module. An instance is called by one request at a time, and each call must
// return soon: a goroutine does not run on after it.
package proxywasm

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unsafe"
)

// Plugin is what a module does.
type Plugin struct {
	// Configure reads the configuration, once for each instance. It may be nil.
	Configure func(config []byte) error
	// NewStream makes the handler of a request. The handler implements those of RequestHandler, ResponseHandler and EndHandler,
	// and of the handlers of package body, whose calls it wants.
	NewStream func(*Stream) any
	// Tick is called in the period that SetTickPeriod has set. It may be nil.
	Tick func()
}

// RequestHandler sees the headers of requests.
type RequestHandler interface {
	// OnRequestHeaders is called when the headers of a request are there. end: it has no body.
	OnRequestHeaders(end bool) Action
}

// ResponseHandler sees the headers of responses.
type ResponseHandler interface {
	// OnResponseHeaders is called when the headers of a response are there. end: it has no body.
	OnResponseHeaders(end bool) Action
}

// EndHandler sees the end of exchanges.
type EndHandler interface {
	// OnEnd is called when the exchange is over, however it has ended.
	OnEnd()
}

// Action is what becomes of a message after a callback.
type Action uint32

const (
	// Continue lets the message go on.
	Continue Action = 0
	// Pause holds it: until Resume is called, or until its body has been seen.
	Pause Action = 1
)

// Status is an error of the host.
type Status uint32

func (s Status) Error() string {
	names := map[Status]string{
		1: "not found", 2: "bad argument", 6: "invalid memory access", 7: "empty", 8: "the version is another",
		10: "internal failure", 12: "not implemented",
	}
	if name, ok := names[s]; ok {
		return name
	}
	return "status " + strconv.Itoa(int(s))
}

// The levels of the log.
const (
	Info  = 2
	Warn  = 3
	Error = 4
)

var (
	plugin  Plugin
	streams = map[uint32]any{}
	calls   = map[uint32]call{}
)

type call struct {
	stream uint32
	then   func(*Answer)
}

// Run registers the plugin. Call it in an init function.
func Run(p Plugin) { plugin = p }

// Handler returns the handler of a context. It is for package body.
func Handler(id uint32) any { return streams[id] }

// Log writes to the proxy's log.
func Log(level uint32, text string) { proxyLog(level, text) }

// Logf writes to the proxy's log.
func Logf(level uint32, format string, arguments ...any) {
	Log(level, fmt.Sprintf(format, arguments...))
}

// SetTickPeriod sets the period of ticks. Zero ends them.
func SetTickPeriod(period time.Duration) { proxySetTickPeriod(uint32(period.Milliseconds())) }

// Stream is the exchange of a request and its response.
type Stream struct{ id uint32 }

// Headers are the headers of a message. Besides the fields there are ":method", ":path", ":authority" and ":scheme" in those of a
// request, and ":status" in those of a response.
type Headers struct{ id uint32 }

// Pair is a header.
type Pair struct{ Name, Value string }

// Request is the headers of the request, for as long as they are held.
func (s *Stream) Request() Headers { return Headers{0} }

// Response is the headers of the response, for as long as they are held.
func (s *Stream) Response() Headers { return Headers{2} }

// Get returns a value, several joined by commas; empty if there is none.
func (h Headers) Get(name string) string {
	value, _ := h.Lookup(name)
	return value
}

// Lookup returns a value, several joined by commas, and if there is one.
func (h Headers) Lookup(name string) (string, bool) {
	value, err := take(func(place, size unsafe.Pointer) uint32 {
		return proxyGetHeaderMapValue(h.id, name, place, size)
	})
	return text(value), err == nil
}

// All returns all headers.
func (h Headers) All() []Pair { return pairs(h.id) }

// Set puts a value in the place of all values of a name.
func (h Headers) Set(name, value string) error {
	return check(proxyReplaceHeaderMapValue(h.id, name, value))
}

// Add adds a value.
func (h Headers) Add(name, value string) error {
	return check(proxyAddHeaderMapValue(h.id, name, value))
}

// Remove removes all values of a name.
func (h Headers) Remove(name string) error { return check(proxyRemoveHeaderMapValue(h.id, name)) }

// Property returns a property of the exchange, such as Property("source", "address").
func (s *Stream) Property(path ...string) ([]byte, bool) {
	value, err := take(func(place, size unsafe.Pointer) uint32 {
		return proxyGetProperty(strings.Join(path, "\x00"), place, size)
	})
	return value, err == nil
}

// Respond answers the request in the place of the upstream. Return Pause afterwards.
func (s *Stream) Respond(status int, body string, headers ...Pair) error {
	return check(proxySendLocalResponse(uint32(status), "", body, text(encode(headers)), -1))
}

// ResumeRequest lets a request go on that is held.
func (s *Stream) ResumeRequest() { proxyContinueStream(0) }

// ResumeResponse lets a response go on that is held.
func (s *Stream) ResumeResponse() { proxyContinueStream(1) }

// Answer is the answer of a service; without headers, the call has failed.
type Answer struct {
	Headers []Pair
	Body    []byte
}

// OK is true if the service has answered.
func (a *Answer) OK() bool { return len(a.Headers) > 0 }

// Status is the status of the answer; zero if there is none.
func (a *Answer) Status() int {
	status, _ := strconv.Atoi(a.Get(":status"))
	return status
}

// Get returns the first value of a header.
func (a *Answer) Get(name string) string {
	for _, pair := range a.Headers {
		if strings.EqualFold(pair.Name, name) {
			return pair.Value
		}
	}
	return ""
}

// Call is a request to a service.
type Call struct {
	// Upstream is one of the plugin's upstreams.
	Upstream     string
	Method, Host string
	Path         string
	Headers      []Pair
	Body         []byte
	Timeout      time.Duration
}

// Call begins a call, and calls then when it has come to its end. Return Pause to hold the message until then, and let it go with
// ResumeRequest or ResumeResponse.
func (s *Stream) Call(c Call, then func(*Answer)) error { return begin(s.id, c, then) }

// BeginCall begins a call beside requests, in Configure or Tick.
func BeginCall(c Call, then func(*Answer)) error { return begin(0, c, then) }

func begin(stream uint32, c Call, then func(*Answer)) error {
	headers := append([]Pair{{":method", c.Method}, {":path", c.Path}, {":authority", c.Host}}, c.Headers...)
	var id uint32
	status := proxyHTTPCall(
		c.Upstream, text(encode(headers)), text(c.Body), "", uint32(c.Timeout.Milliseconds()), unsafe.Pointer(&id))
	if status != 0 {
		return Status(status)
	}
	calls[id] = call{stream, then}
	return nil
}

// Shared returns a value that all instances share, and its version.
func Shared(key string) (value []byte, version uint32, err error) {
	value, err = take(func(place, size unsafe.Pointer) uint32 {
		return proxyGetSharedData(key, place, size, unsafe.Pointer(&version))
	})
	return value, version, err
}

// SetShared sets a value that all instances share, if version is zero or the version that is there.
func SetShared(key string, value []byte, version uint32) error {
	return check(proxySetSharedData(key, text(value), version))
}

// Counter is a counter that all instances share.
type Counter uint32

// NewCounter returns the counter of a name.
func NewCounter(name string) (Counter, error) {
	var id uint32
	err := check(proxyDefineMetric(0, name, unsafe.Pointer(&id)))
	return Counter(id), err
}

// Add adds to the counter.
func (c Counter) Add(by int64) { proxyIncrementMetric(uint32(c), by) }

// Buffer returns a body. It is for package body.
func Buffer(id, size uint32) ([]byte, error) { return buffer(id, size) }

// SetBuffer replaces a body. It is for package body.
func SetBuffer(id uint32, value []byte) error {
	return check(proxySetBufferBytes(id, 0, 1<<31-1, text(value)))
}

func buffer(id, size uint32) ([]byte, error) {
	return take(func(place, length unsafe.Pointer) uint32 {
		return proxyGetBufferBytes(id, 0, size, place, length)
	})
}

func pairs(id uint32) []Pair {
	encoded, err := take(func(place, size unsafe.Pointer) uint32 { return proxyGetHeaderMapPairs(id, place, size) })
	if err != nil || len(encoded) < 4 {
		return nil
	}
	count := int(binary.LittleEndian.Uint32(encoded))
	at := 4 + 8*count
	next := func(size uint32) string {
		end := at + int(size)
		piece := text(encoded[at:end])
		at = end + 1
		return piece
	}
	all := make([]Pair, count)
	for i := range all {
		sizes := encoded[4+8*i:]
		name, value := binary.LittleEndian.Uint32(sizes), binary.LittleEndian.Uint32(sizes[4:])
		all[i] = Pair{next(name), next(value)}
	}
	return all
}

func encode(all []Pair) []byte {
	if len(all) == 0 {
		return nil
	}
	encoded := binary.LittleEndian.AppendUint32(nil, uint32(len(all)))
	for _, pair := range all {
		encoded = binary.LittleEndian.AppendUint32(encoded, uint32(len(pair.Name)))
		encoded = binary.LittleEndian.AppendUint32(encoded, uint32(len(pair.Value)))
	}
	for _, pair := range all {
		encoded = append(append(encoded, pair.Name...), 0)
		encoded = append(append(encoded, pair.Value...), 0)
	}
	return encoded
}
