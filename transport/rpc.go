package transport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

const (
	requestLimit  = 1 << 20
	responseLimit = 64 << 20

	// handlerTime bounds a handler of Handle, by its context.
	handlerTime = 10 * time.Second
	// answerWait is how long a caller hears nothing before it gives up: the
	// handler's time and some for the way.
	answerWait = handlerTime + 5*time.Second
	// heartbeat is the longest silence of a stream whose server lives, and
	// silence the longest that its client bears.
	heartbeat = 3 * time.Second
	silence   = 10 * time.Second
)

type request struct {
	Method string          `json:"method"`
	Stream bool            `json:"stream,omitempty"`
	Body   json.RawMessage `json:"body"`
}

// A frame from server to client begins with what it is.
const (
	isMessage   = 'm' // and JSON
	isHeartbeat = 'h'
	isRefusal   = 'r' // and the cluster.Refusal as JSON; the last frame
	isError     = 'e' // and its text; the last frame
	isEnd       = '.' // the last frame
)

type handler struct {
	stream bool
	serve  func(ctx context.Context, from cluster.HostID, body json.RawMessage, send func(any) error) error
}

// Handle serves a method: one request, one response, both JSON, at most 1 MiB
// and 64 MiB. from is proven. ctx ends after ten seconds, when the caller
// gives up, or when Run ends. A *cluster.Refusal in the error arrives as such,
// any other error as its text. A method has one handler; a second one panics.
func Handle[Req, Resp any](t *Transport, method string, fn func(ctx context.Context, from cluster.HostID, req Req) (Resp, error)) {
	t.handle(method, handler{serve: func(ctx context.Context, from cluster.HostID, body json.RawMessage, send func(any) error) error {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, handlerTime)
		defer cancel()
		resp, err := fn(ctx, from, req)
		if err != nil {
			return err
		}
		return send(resp)
	}})
}

// HandleStream serves a method that pushes messages for as long as it likes.
// ctx ends within about ten seconds of the caller's death, at once when the
// caller gives up, and when Run ends. send blocks while the caller is slow and
// fails once it is gone; messages may be sent from several goroutines, but not
// after fn returned. Errors travel as with Handle.
func HandleStream[Req any](t *Transport, method string, fn func(ctx context.Context, from cluster.HostID, req Req, send func(any) error) error) {
	t.handle(method, handler{stream: true, serve: func(ctx context.Context, from cluster.HostID, body json.RawMessage, send func(any) error) error {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		return fn(ctx, from, req, send)
	}})
}

func (t *Transport) handle(method string, h handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.handlers[method]; ok {
		panic("transport: method " + method + " has a handler already")
	}
	t.handlers[method] = h
}

// serve answers the one request of an RPC stream.
func (t *Transport) serve(ctx context.Context, c *Conn) {
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(handshakeTime))
	var req request
	b, err := readFrame(c, requestLimit)
	if err == nil {
		err = json.Unmarshal(b, &req)
	}
	c.SetReadDeadline(time.Time{})
	out := &replies{w: steady{c, silence}}
	if err != nil {
		out.finish(fmt.Errorf("read request: %w", err))
		return
	}
	t.mu.Lock()
	h, ok := t.handlers[req.Method]
	t.mu.Unlock()
	if !ok || h.stream != req.Stream {
		out.finish(errors.New("no such method on this host (run one isthmus release on both)"))
		return
	}

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	// The caller has nothing more to say: whatever Read returns, it is gone.
	wg.Go(func() {
		c.Read(make([]byte, 1))
		cancel()
	})
	if h.stream {
		wg.Go(func() { out.beat(ctx, cancel) })
	}
	out.finish(h.serve(ctx, c.Peer(), req.Body, out.send))
	cancel()
	c.Close()
	wg.Wait()
}

// replies writes the messages of one call, one at a time.
type replies struct {
	mu sync.Mutex
	w  steady
}

func (r *replies) write(kind byte, body []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return writeFrame(r.w, responseLimit, []byte{kind}, body)
}

func (r *replies) send(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return r.write(isMessage, body)
}

// finish ends the call. A caller that is gone does not hear it, which is all
// that the error would say.
func (r *replies) finish(err error) {
	if err == nil {
		_ = r.write(isEnd, nil)
		return
	}
	if refusal := (*cluster.Refusal)(nil); errors.As(err, &refusal) {
		if body, err := json.Marshal(refusal); err == nil {
			_ = r.write(isRefusal, body)
			return
		}
	}
	_ = r.write(isError, []byte(err.Error()))
}

// beat keeps the caller sure of this host, and ends the call when nothing can
// be written any more.
func (r *replies) beat(ctx context.Context, cancel context.CancelFunc) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if r.write(isHeartbeat, nil) != nil {
				cancel()
				return
			}
		}
	}
}

// Call asks a peer and waits for its response, at most until ctx ends or
// nothing was heard for 15 s. The error is a *cluster.Refusal (errors.As) when
// the handler refused, a *DialError when the peer was not reached; otherwise
// it is not known whether the handler ran.
func Call[Req, Resp any](ctx context.Context, t *Transport, to netip.AddrPort, method string, req Req) (Resp, error) {
	var resp Resp
	got := false
	err := t.call(ctx, to, method, false, req, answerWait, func(body json.RawMessage) error {
		if err := json.Unmarshal(body, &resp); err != nil {
			return fmt.Errorf("call %s at %s: read response: %w", method, to, err)
		}
		got = true
		return nil
	})
	if err == nil && !got {
		err = fmt.Errorf("call %s at %s: no response", method, to)
	}
	return resp, err
}

// CallStream asks a peer and calls each for every message that it pushes, one
// after the other. It returns nil when the handler there ended without error,
// the error of each as it is, and an error like Call's otherwise: a peer that
// died is noticed within ten seconds. A slow each slows the peer down.
func CallStream[Req, Msg any](ctx context.Context, t *Transport, to netip.AddrPort, method string, req Req, each func(Msg) error) error {
	return t.call(ctx, to, method, true, req, silence, func(body json.RawMessage) error {
		var msg Msg
		if err := json.Unmarshal(body, &msg); err != nil {
			return fmt.Errorf("call %s at %s: read message: %w", method, to, err)
		}
		return each(msg)
	})
}

func (t *Transport) call(ctx context.Context, to netip.AddrPort, method string, stream bool, req any, wait time.Duration, each func(json.RawMessage) error) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("call %s: write request: %w", method, err)
	}
	c, err := t.Dial(ctx, to, RPC)
	if err != nil {
		return fmt.Errorf("call %s: %w", method, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, c.abort)()

	fail := func(err error) error {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("call %s at %s: %w", method, to, err)
	}
	s := steady{c, wait}
	if err := writeJSON(s, requestLimit, request{Method: method, Stream: stream, Body: body}); err != nil {
		return fail(err)
	}
	for {
		b, err := readFrame(s, responseLimit)
		if err != nil {
			return fail(fmt.Errorf("connection lost: %w", err))
		}
		if len(b) == 0 {
			return fail(errors.New("read message: it is empty"))
		}
		switch kind, body := b[0], b[1:]; kind {
		case isHeartbeat:
		case isMessage:
			if err := each(body); err != nil {
				return err
			}
		case isRefusal:
			refusal := &cluster.Refusal{}
			if err := json.Unmarshal(body, refusal); err != nil {
				return fail(fmt.Errorf("read refusal: %w", err))
			}
			return fail(refusal)
		case isError:
			return fail(errors.New(string(body)))
		case isEnd:
			return nil
		default:
			return fail(fmt.Errorf("read message: unknown kind %q", kind))
		}
	}
}

// steady bounds how long a stream may stand still, not how long a message may
// take.
type steady struct {
	c    *Conn
	wait time.Duration
}

func (s steady) Read(b []byte) (int, error) {
	s.c.SetReadDeadline(time.Now().Add(s.wait))
	return s.c.Read(b)
}

func (s steady) Write(b []byte) (int, error) {
	const chunk = 64 << 10
	sent := 0
	for sent < len(b) {
		s.c.SetWriteDeadline(time.Now().Add(s.wait))
		n, err := s.c.Write(b[sent:min(sent+chunk, len(b))])
		if sent += n; err != nil {
			return sent, err
		}
	}
	return sent, nil
}
