// The Go guest of the tests: what it does is chosen by the path of a request.
package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"example.com/filter/proxywasm"
	"example.com/filter/proxywasm/body"
)

var config struct {
	Greeting string `json:"greeting"`
}

var (
	requests int
	counter  proxywasm.Counter
)

func init() {
	proxywasm.Run(proxywasm.Plugin{
		Configure: configure,
		NewStream: func(stream *proxywasm.Stream) any { return &exchange{Stream: stream} },
		Tick:      tick,
	})
}

func main() {}

func configure(text []byte) error {
	var err error
	if counter, err = proxywasm.NewCounter("requests"); err != nil {
		return err
	}
	if len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, &config)
}

func tick() {
	ticks, version, _ := proxywasm.Shared("ticks")
	count, _ := strconv.Atoi(string(ticks))
	proxywasm.SetShared("ticks", []byte(strconv.Itoa(count+1)), version)
}

type exchange struct {
	*proxywasm.Stream
	path string
}

func (e *exchange) text(status int, format string, arguments ...any) proxywasm.Action {
	if err := e.Respond(status, fmt.Sprintf(format, arguments...)); err != nil {
		panic(err)
	}
	return proxywasm.Pause
}

func (e *exchange) OnRequestHeaders(end bool) proxywasm.Action {
	requests++
	counter.Add(1)
	e.path = e.Request().Get(":path")
	switch e.path {
	case "/headers":
		for _, pair := range e.Request().All() {
			if !strings.HasPrefix(pair.Name, ":") {
				e.Request().Set("x-seen-"+pair.Name, pair.Value)
			}
		}
	case "/standard-library":
		// Clocks, randomness, goroutines, channels, garbage, environment, arguments and files.
		began := time.Now()
		random := make([]byte, 16)
		rand.Read(random)
		parts := make(chan int)
		for i := range 4 {
			go func() { parts <- i }()
		}
		sum := 0
		for range 4 {
			sum += <-parts
		}
		var garbage []byte
		for range 200 {
			garbage = append([]byte(nil), make([]byte, 100_000)...)
		}
		_, err := os.ReadFile("/etc/passwd")
		fmt.Println("printed by", len(os.Args), len(os.Environ()))
		return e.text(200, "%d %d %t %t %t", sum, len(garbage), err != nil, began.Year() > 2000, random[0]|random[1]|random[2] != 0)
	case "/call":
		call := proxywasm.Call{
			Upstream: "svc", Method: "POST", Host: "svc.internal", Path: "/check",
			Headers: []proxywasm.Pair{{Name: "x-user", Value: "ada"}}, Body: []byte("is it ada?"), Timeout: time.Second,
		}
		if err := e.Call(call, e.answered); err != nil {
			return e.text(502, "%v", err)
		}
		return proxywasm.Pause
	case "/panic":
		var nothing map[string]int
		nothing["boom"] = 1
	case "/loop":
		for {
		}
	case "/sleep":
		time.Sleep(time.Hour)
	case "/memory":
		var all [][]byte
		for {
			all = append(all, make([]byte, 1<<20))
		}
	case "/state":
		return e.text(200, "%s %d", config.Greeting, requests)
	case "/properties":
		address, _ := e.Property("source", "address")
		name, _ := e.Property("plugin_name")
		_, missing := e.Property("nonsense")
		return e.text(200, "%s %s %t", address, name, missing)
	case "/ticks":
		proxywasm.SetTickPeriod(20 * time.Millisecond)
		ticks, _, err := proxywasm.Shared("ticks")
		return e.text(200, "%s %v", ticks, err)
	case "/refused-header":
		return e.text(200, "%v %v", e.Request().Set("x-consumer-id", "root"), e.Request().Set("x-a", "1\r\nx-b: 2"))
	case "/body-first":
		return proxywasm.Pause
	}
	return proxywasm.Continue
}

func (e *exchange) answered(answer *proxywasm.Answer) {
	if !answer.OK() {
		e.Respond(504, "no answer")
		return
	}
	e.Request().Set("x-answer", fmt.Sprintf("%d %s %s", answer.Status(), answer.Get("x-role"), answer.Body))
	e.ResumeRequest()
}

func (e *exchange) OnRequestBody(part *body.Body, end bool) proxywasm.Action {
	switch e.path {
	case "/body-first":
		if !end {
			return proxywasm.Pause
		}
		e.Request().Set("x-length", strconv.Itoa(part.Size()))
		part.Set([]byte(strings.ToUpper(string(part.Bytes()))))
	case "/body-upper":
		part.Set([]byte(strings.ToUpper(string(part.Bytes()))))
	case "/body-refused":
		return e.text(422, "not this body")
	}
	return proxywasm.Continue
}

func (e *exchange) OnResponseHeaders(end bool) proxywasm.Action {
	e.Response().Set("x-guest", "go")
	if e.path == "/status" {
		e.Response().Set(":status", "418")
	}
	return proxywasm.Continue
}

func (e *exchange) OnResponseBody(part *body.Body, end bool) proxywasm.Action {
	if e.path == "/response-body" && part.Size() > 0 {
		part.Set(append([]byte("from go: "), part.Bytes()...))
	}
	return proxywasm.Continue
}

func (e *exchange) OnEnd() {
	ended, version, _ := proxywasm.Shared("ended")
	proxywasm.SetShared("ended", append(ended, '.'), version)
}
