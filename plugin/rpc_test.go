package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/sirupsen/logrus"
)

func quiet() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

func testServer(t *testing.T, bound time.Duration, extra ...route) *httptest.Server {
	t.Helper()
	s := &server{gate: newGate(), bound: bound, log: quiet()}
	h := httptest.NewServer(s.handler(append(extra, routes...)))
	t.Cleanup(h.Close)
	return h
}

// ask posts as the engine does, and returns status and body.
func ask(t *testing.T, h *httptest.Server, method, body string) (int, string) {
	t.Helper()
	resp, err := http.Post(h.URL+"/"+method, "application/vnd.docker.plugins.v1.2+json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); got != sdk.DefaultContentTypeV1_1 {
		t.Errorf("%s: content type %q", method, got)
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

// wantError checks for a status and an error under both of its names.
func wantError(t *testing.T, code int, body string, wantCode int, want string) {
	t.Helper()
	var e struct{ Err, Error string }
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("body %q: %v", body, err)
	}
	if code != wantCode || e.Err != e.Error || !strings.Contains(e.Err, want) {
		t.Errorf("got %d %s, want %d and %q under Err and Error", code, body, wantCode, want)
	}
}

// TestStaticCalls: what the engine asks when it meets a driver is answered at
// once, whatever state the node is in.
func TestStaticCalls(t *testing.T) {
	h := testServer(t, time.Second)
	for _, tt := range []struct{ method, body, want string }{
		{"Plugin.Activate", "", `{"Implements": ["NetworkDriver", "IpamDriver"]}`},
		{"NetworkDriver.GetCapabilities", "", `{"Scope":"local","ConnectivityScope":"global","GwAllocChecker":false}`},
		{"NetworkDriver.GwAllocCheck", `{"Options":{"com.docker.network.generic":{}}}`, `{"SkipIPv4":false,"SkipIPv6":false}`},
		{"IpamDriver.GetCapabilities", "", `{"RequiresMACAddress":false,"RequiresRequestReplay":false}`},
		{"IpamDriver.GetDefaultAddressSpaces", "", `{"LocalDefaultAddressSpace":"isthmus","GlobalDefaultAddressSpace":"isthmus"}`},
	} {
		if code, body := ask(t, h, tt.method, tt.body); code != 200 || body != tt.want {
			t.Errorf("%s: %d %s, want %s", tt.method, code, body, tt.want)
		}
	}
}

// TestAllCalls: each call of engines 20.10 to 29 has a route; none acts on an
// empty body, or on one that is no JSON.
func TestAllCalls(t *testing.T) {
	h := testServer(t, time.Second)
	calls := strings.Fields(`
		NetworkDriver.GwAllocCheck NetworkDriver.AllocateNetwork NetworkDriver.FreeNetwork NetworkDriver.CreateNetwork
		NetworkDriver.DeleteNetwork NetworkDriver.CreateEndpoint NetworkDriver.DeleteEndpoint NetworkDriver.EndpointOperInfo
		NetworkDriver.Join NetworkDriver.Leave NetworkDriver.ProgramExternalConnectivity NetworkDriver.RevokeExternalConnectivity
		NetworkDriver.DiscoverNew NetworkDriver.DiscoverDelete
		IpamDriver.RequestPool IpamDriver.ReleasePool IpamDriver.RequestAddress IpamDriver.ReleaseAddress`)
	for _, method := range calls {
		code, body := ask(t, h, method, "")
		wantError(t, code, body, http.StatusBadRequest, "empty body")
		code, body = ask(t, h, method, "not json")
		wantError(t, code, body, http.StatusBadRequest, "decode request")
	}
	if want := len(calls) + 3; len(routes) != want {
		t.Errorf("there are %d routes, %d calls are tested", len(routes), want)
	}
}

func TestUnknownCall(t *testing.T) {
	h := testServer(t, time.Second)
	for _, method := range []string{"NetworkDriver.Teleport", "VolumeDriver.Create", "NetworkDriver.Join/x", ""} {
		code, body := ask(t, h, method, "{}")
		wantError(t, code, body, http.StatusNotFound, "isthmus does not have it")
	}
}

func TestOversizedCall(t *testing.T) {
	h := testServer(t, time.Second)
	code, body := ask(t, h, "NetworkDriver.Join", `"`+strings.Repeat("x", maxBody)+`"`)
	wantError(t, code, body, http.StatusBadRequest, "more than")
}

// TestNotReady: a call waits for a node, and then says what the node waits for.
func TestNotReady(t *testing.T) {
	h := testServer(t, 500*time.Millisecond)
	code, body := ask(t, h, "NetworkDriver.Join", `{"NetworkID":"n","EndpointID":"e","SandboxKey":"/var/run/docker/netns/1"}`)
	wantError(t, code, body, http.StatusInternalServerError, "isthmus is not ready: isthmus is starting")
}

func TestCallsGoWrong(t *testing.T) {
	released := make(chan struct{})
	t.Cleanup(func() { close(released) })
	do := func(fn func(ctx context.Context) (any, error)) call {
		return func(ctx context.Context, _ *server, _ []byte) (any, error) { return fn(ctx) }
	}
	h := testServer(t, 400*time.Millisecond,
		route{"Test.Panics", false, do(func(context.Context) (any, error) { panic("nil map") })},
		route{"Test.Minds", false, do(func(ctx context.Context) (any, error) { <-ctx.Done(); return nil, errors.New("ask the voter: gave up") })},
		route{"Test.Hangs", false, do(func(context.Context) (any, error) { <-released; return nil, nil })},
		route{"Test.Refuses", false, do(func(context.Context) (any, error) { return nil, errors.New("subnet in use") })},
	)
	for _, tt := range []struct{ method, want string }{
		{"Test.Panics", "internal error: nil map"},
		{"Test.Minds", "ask the voter: gave up"},
		{"Test.Hangs", "not done within 400ms"},
		{"Test.Refuses", "subnet in use"},
	} {
		start := time.Now()
		code, body := ask(t, h, tt.method, "{}")
		wantError(t, code, body, http.StatusInternalServerError, tt.want)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s took %s", tt.method, took)
		}
	}
}

func TestGateWakesCalls(t *testing.T) {
	g := newGate()
	got := make(chan *node)
	go func() {
		n, _ := g.Wait(context.Background())
		got <- n
	}()
	want := &node{}
	g.Shut(errors.New("not yet"))
	g.Open(want)
	if n := <-got; n != want {
		t.Errorf("got %p", n)
	}
	g.Shut(&refusedSettings{errors.New("the settings are refused")})
	if _, err := g.Wait(context.Background()); err == nil || err.Error() != "the settings are refused" {
		t.Errorf("got %v, want the refusal at once", err)
	}
}
