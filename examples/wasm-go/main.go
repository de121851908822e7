// A plugin that lets in who knows a token, and stamps responses. Its configuration is {"token": "...", "stamp": "..."}.
package main

import (
	"crypto/subtle"
	"encoding/json"
	"errors"

	"example.com/filter/proxywasm"
)

var config struct {
	Token string `json:"token"`
	Stamp string `json:"stamp"`
}

func init() {
	proxywasm.Run(proxywasm.Plugin{
		Configure: func(text []byte) error {
			if err := json.Unmarshal(text, &config); err != nil {
				return err
			}
			if config.Token == "" {
				return errors.New("token is missing")
			}
			return nil
		},
		NewStream: func(stream *proxywasm.Stream) any { return &request{stream} },
	})
}

func main() {}

type request struct{ *proxywasm.Stream }

func (r *request) OnRequestHeaders(end bool) proxywasm.Action {
	token := r.Request().Get("x-token")
	if subtle.ConstantTimeCompare([]byte(token), []byte(config.Token)) == 0 {
		r.Respond(401, "the token is wrong\n", proxywasm.Pair{Name: "content-type", Value: "text/plain"})
		return proxywasm.Pause
	}
	r.Request().Remove("x-token")
	return proxywasm.Continue
}

func (r *request) OnResponseHeaders(end bool) proxywasm.Action {
	if config.Stamp != "" {
		r.Response().Set("x-stamp", config.Stamp)
	}
	return proxywasm.Continue
}
