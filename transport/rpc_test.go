package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

type question struct{ Text string }
type answer struct {
	Text string
	From cluster.HostID
}

func TestCall(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, ""), start(t, keyA, "c1")
	Handle(b.Transport, "echo", func(_ context.Context, from cluster.HostID, q question) (answer, error) {
		return answer{q.Text, from}, nil
	})
	Handle(b.Transport, "nothing", func(context.Context, cluster.HostID, struct{}) (*answer, error) { return nil, nil })
	Handle(b.Transport, "refuse", func(context.Context, cluster.HostID, question) (answer, error) {
		r := cluster.Refuse(cluster.Held, "address is held")
		r.Holders = []cluster.HostID{"h1"}
		return answer{}, errors.Join(errors.New("apply"), r)
	})
	Handle(b.Transport, "fail", func(context.Context, cluster.HostID, question) (answer, error) {
		return answer{}, errors.New("disk full")
	})
	Handle(b.Transport, "large", func(_ context.Context, _ cluster.HostID, n int) (string, error) {
		return strings.Repeat("x", n), nil
	})

	got, err := Call[question, answer](t.Context(), a.Transport, b.Addr(), "echo", question{"hi"})
	if err != nil || got != (answer{"hi", a.Host()}) {
		t.Errorf("echo = %v, %v", got, err)
	}
	if got, err := Call[struct{}, *answer](t.Context(), a.Transport, b.Addr(), "nothing", struct{}{}); got != nil || err != nil {
		t.Errorf("nothing = %v, %v", got, err)
	}

	_, err = Call[question, answer](t.Context(), a.Transport, b.Addr(), "refuse", question{})
	var refusal *cluster.Refusal
	if !errors.As(err, &refusal) || refusal.Code != cluster.Held || refusal.Text != "address is held" || len(refusal.Holders) != 1 {
		t.Errorf("refuse: %v", err)
	}

	for method, says := range map[string]string{
		"fail":    "call fail at " + b.Addr().String() + ": disk full",
		"unknown": "call unknown at " + b.Addr().String() + ": no such method",
	} {
		_, err := Call[question, answer](t.Context(), a.Transport, b.Addr(), method, question{})
		if err == nil {
			t.Errorf("%s succeeded", method)
			continue
		}
		wantText(t, "error", err.Error(), says)
	}
	if _, err := Call[string, answer](t.Context(), a.Transport, b.Addr(), "echo", "no struct"); err == nil {
		t.Error("a request of another type was understood")
	} else {
		wantText(t, "error", err.Error(), "read request")
	}

	if _, err := Call[question, answer](t.Context(), a.Transport, b.Addr(), "echo", question{strings.Repeat("x", requestLimit)}); err == nil {
		t.Error("a request above the limit was sent")
	} else {
		wantText(t, "error", err.Error(), "exceeds the limit")
	}
	large, err := Call[int, string](t.Context(), a.Transport, b.Addr(), "large", 8<<20)
	if err != nil || len(large) != 8<<20 {
		t.Errorf("large = %d bytes, %v", len(large), err)
	}
	if err := (&replies{}).write(isMessage, make([]byte, responseLimit)); err == nil {
		t.Error("a response above the limit was sent")
	} else {
		wantText(t, "error", err.Error(), "exceeds the limit")
	}
}

func TestCallFailsAsDialDoes(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyB, "c1")
	_, err := Call[question, answer](t.Context(), a.Transport, b.Addr(), "echo", question{})
	var failed *DialError
	if !errors.As(err, &failed) || failed.Cause != OtherKey {
		t.Errorf("call: %v", err)
	}
}

func TestHandlerEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c1")
	entered, left := make(chan time.Duration, 1), make(chan error, 1)
	Handle(b.Transport, "wait", func(ctx context.Context, _ cluster.HostID, _ question) (answer, error) {
		deadline, ok := ctx.Deadline()
		if !ok {
			t.Error("a handler without a deadline")
		}
		entered <- time.Until(deadline)
		<-ctx.Done()
		left <- context.Cause(ctx)
		return answer{}, ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Call[question, answer](ctx, a.Transport, b.Addr(), "wait", question{})
		done <- err
	}()
	if d := <-entered; d > handlerTime {
		t.Errorf("the handler has %v", d)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("call: %v", err)
	}
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("handler left with %v", err)
	}
}

func TestStreamPush(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c1")
	HandleStream(b.Transport, "count", func(ctx context.Context, from cluster.HostID, n int, send func(any) error) error {
		for i := range n {
			if err := send(i); err != nil {
				return err
			}
		}
		if from != a.Host() {
			return errors.New("another peer")
		}
		if n == 3 {
			return cluster.Refuse(cluster.Invalid, "no three")
		}
		return nil
	})
	HandleStream(b.Transport, "follow", func(ctx context.Context, _ cluster.HostID, _ int, send func(any) error) error {
		for i := 0; ; i++ {
			if err := send(i); err != nil {
				return err
			}
		}
	})
	next := 0
	count := func(i int) error {
		if i != next {
			t.Errorf("message %d, want %d", i, next)
		}
		next++
		return nil
	}
	if err := CallStream(t.Context(), a.Transport, b.Addr(), "count", 1000, count); err != nil || next != 1000 {
		t.Errorf("%d messages, %v", next, err)
	}
	next = 0
	err := CallStream(t.Context(), a.Transport, b.Addr(), "count", 3, count)
	if refusal := (*cluster.Refusal)(nil); !errors.As(err, &refusal) || next != 3 {
		t.Errorf("%d messages, %v", next, err)
	}
	stop := errors.New("enough")
	if err := CallStream(t.Context(), a.Transport, b.Addr(), "follow", 0, func(i int) error {
		if i == 10 {
			return stop
		}
		return nil
	}); err != stop {
		t.Errorf("stream: %v", err)
	}
	if _, err := Call[int, int](t.Context(), a.Transport, b.Addr(), "count", 1); err == nil {
		t.Error("a stream was called as a call")
	}
}

// cable carries bytes between a dialer and a transport until it is cut, after
// which it swallows them: neither end hears of the other's death.
type cable struct {
	addr netip.AddrPort
	cut  atomic.Bool
}

func newCable(t *testing.T, to netip.AddrPort) *cable {
	t.Helper()
	c := &cable{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var ends []net.Conn
	ended := false
	keep := func(n net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		if ends = append(ends, n); ended {
			n.Close()
		}
	}
	c.addr = service(t, func(in net.Conn) {
		out, err := net.Dial("tcp", to.String())
		if err != nil {
			return
		}
		keep(in)
		keep(out)
		wg.Go(func() { c.pass(out, in) })
		c.pass(in, out)
		wg.Wait()
	})
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
		for _, n := range ends {
			n.Close()
		}
	})
	return c
}

func (c *cable) pass(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !c.cut.Load() {
			to.Write(buf[:n])
		}
		if err != nil {
			if !c.cut.Load() {
				to.Close()
			}
			return
		}
	}
}

func TestStreamNoticesADeadServer(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c1")
	HandleStream(b.Transport, "follow", func(ctx context.Context, _ cluster.HostID, _ int, send func(any) error) error {
		if err := send(1); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	way := newCable(t, b.Addr())
	alive := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- CallStream(t.Context(), a.Transport, way.addr, "follow", 0, func(int) error {
			close(alive)
			return nil
		})
	}()
	<-alive
	select { // longer than one heartbeat: a silent handler is not a dead one
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	case <-time.After(heartbeat + time.Second):
	}
	way.cut.Store(true)
	select {
	case err := <-done:
		wantText(t, "error", err.Error(), "call follow at", "connection lost")
	case <-time.After(15 * time.Second):
		t.Error("a dead server is not noticed")
	}
}

func TestStreamNoticesALeavingClient(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c1")
	left := make(chan error, 1)
	HandleStream(b.Transport, "follow", func(ctx context.Context, _ cluster.HostID, _ int, send func(any) error) error {
		if err := send(1); err != nil {
			return err
		}
		<-ctx.Done()
		left <- send(2)
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	err := CallStream(ctx, a.Transport, b.Addr(), "follow", 0, func(int) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("stream: %v", err)
	}
	select {
	case <-left:
	case <-time.After(5 * time.Second):
		t.Error("the handler is not told")
	}
}

func TestStreamEndsWithTheServersRun(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), open(t, "127.0.0.1:0", keyA, "c1")
	stop := run(t, b)
	HandleStream(b.Transport, "follow", func(ctx context.Context, _ cluster.HostID, _ int, send func(any) error) error {
		if err := send(1); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	alive, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- CallStream(t.Context(), a.Transport, b.Addr(), "follow", 0, func(int) error {
			close(alive)
			return nil
		})
	}()
	<-alive
	stop()
	if err := <-done; err == nil {
		t.Error("the stream ended as if all were said")
	}
}

func TestOversizeRequestIsRefused(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c1")
	c, err := a.Dial(t.Context(), b.Addr(), RPC)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte{0x7f, 0xff, 0xff, 0xff})
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, "reply", string(got), "exceeds the limit")
}

func TestSecondHandlerPanics(t *testing.T) {
	t.Parallel()
	a := start(t, keyA, "c1")
	echo := func(_ context.Context, _ cluster.HostID, s string) (string, error) { return s, nil }
	Handle(a.Transport, "m", echo)
	defer func() {
		if recover() == nil {
			t.Error("a method was handled twice")
		}
	}()
	Handle(a.Transport, "m", echo)
}
