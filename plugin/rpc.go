package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/sirupsen/logrus"
)

// callBound is how long a call of Docker may take, callWait how much of that
// it may wait for the parts to be ready. Docker itself waits for ever, and
// holds locks meanwhile.
const (
	callBound = 10 * time.Second
	callWait  = 8 * time.Second
	// answerMargin is kept for the answer to get out within callBound.
	answerMargin = 250 * time.Millisecond
	maxBody      = 4 << 20
)

// call is one call of Docker, decoded: it returns what is to be encoded.
// body is nil where the request had none.
type call func(ctx context.Context, s *server, body []byte) (any, error)

// route is one line of the protocol.
type route struct {
	method   string // as in "NetworkDriver.Join"
	bodiless bool   // the request has no body by right
	call     call
}

// badRequest is an error of the caller, not of ours.
type badRequest struct{ error }

// answer makes a call that needs the node: it waits for one, then asks fn of
// one part of it.
func answer[Part, Req, Resp any](part func(*node) Part, fn func(Part, context.Context, *Req) (Resp, error)) call {
	return func(ctx context.Context, s *server, body []byte) (any, error) {
		req, err := decode[Req](body)
		if err != nil {
			return nil, err
		}
		n, err := s.gate.Wait(ctx)
		if err != nil {
			return nil, err
		}
		return fn(part(n), ctx, req)
	}
}

// act is answer for calls that answer with nothing but success.
func act[Part, Req any](part func(*node) Part, fn func(Part, context.Context, *Req) error) call {
	return answer(part, func(p Part, ctx context.Context, req *Req) (struct{}, error) {
		return struct{}{}, fn(p, ctx, req)
	})
}

// static makes a call whose answer is known beforehand, node or not.
func static(v any) call {
	return func(context.Context, *server, []byte) (any, error) { return v, nil }
}

func decode[Req any](body []byte) (*Req, error) {
	req := new(Req)
	if err := json.Unmarshal(body, req); err != nil {
		return nil, badRequest{fmt.Errorf("decode request: %w", err)}
	}
	return req, nil
}

// serveCall answers one request: it never hangs, never panics and never acts
// on a body that is not there (the engine retries with an empty one).
func (s *server) serveCall(w http.ResponseWriter, r *http.Request, rt route) {
	start := time.Now()
	log := s.log.WithField("call", rt.method)
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		err = badRequest{fmt.Errorf("read request: %w", err)}
	case len(body) > maxBody:
		err = badRequest{fmt.Errorf("read request: more than %d bytes", maxBody)}
	case len(body) == 0 && !rt.bodiless:
		err = badRequest{errors.New("read request: empty body, as in a retry of the engine after a lost connection; do it again")}
	}
	var resp any
	if err == nil {
		resp, err = s.run(rt, body, log)
	}
	log = log.WithField("took", time.Since(start).Round(time.Millisecond))
	if err != nil {
		log.WithError(err).Warn("call refused")
		encodeError(w, err)
		return
	}
	log.Debug("call answered")
	sdk.EncodeResponse(w, resp, false)
}

// run does the call on a goroutine of its own, so that its bound holds even
// where a part does not mind its context. What such a part does afterwards is
// harmless: the engine repeats or undoes what failed, and all calls bear both.
func (s *server) run(rt route, body []byte, log logrus.FieldLogger) (any, error) {
	// Not the request's context: what has begun should end well although the
	// user pressed ^C.
	ctx, cancel := context.WithTimeout(context.Background(), s.bound-answerMargin)
	type result struct {
		v   any
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer cancel()
		defer func() {
			if p := recover(); p != nil {
				log.WithField("panic", p).WithField("stack", string(debug.Stack())).Error("call panicked")
				done <- result{err: fmt.Errorf("answer %s: internal error: %v; the plugin's log has more", rt.method, p)}
			}
		}()
		v, err := rt.call(ctx, s, body)
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-time.After(s.bound):
		return nil, fmt.Errorf("answer %s: not done within %s; see isthmus status, then try again", rt.method, s.bound)
	}
}

// encodeError answers with the error under both names: the engine reads Err
// for network calls, and Error for IPAM calls that answer with status 200.
func encodeError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if errors.As(err, new(badRequest)) {
		status = http.StatusBadRequest
	}
	encodeStatus(w, status, err.Error())
}

func encodeStatus(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"Err": text, "Error": text})
}
