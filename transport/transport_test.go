package transport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	keyA = "4f0b35a1c2d94e7788b6a0d1e2f3c4b5"
	keyB = "a9e8d7c6b5a493827160f1e2d3c4b5a6"
)

// node is a running transport on loopback.
type node struct {
	*Transport
	log *journal
}

// journal collects log lines.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func identity(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func open(t *testing.T, at, secret string, id cluster.ID) node {
	t.Helper()
	log := logrus.New()
	j := &journal{}
	log.SetOutput(j)
	tr, err := Listen(Config{
		Address:  netip.MustParseAddrPort(at),
		Secret:   []byte(secret),
		Identity: identity(t),
		Cluster:  func() cluster.ID { return id },
		Log:      log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return node{tr, j}
}

// start runs a transport until the test ends.
func start(t *testing.T, secret string, id cluster.ID) node {
	t.Helper()
	n := open(t, "127.0.0.1:0", secret, id)
	run(t, n)
	return n
}

// run returns what stops the transport and waits for it.
func run(t *testing.T, n node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func wantText(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("%s = %q, lacks %q", what, got, p)
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
