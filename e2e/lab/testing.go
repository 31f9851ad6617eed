package lab

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// New makes a lab that ends with the test. When the test failed, the ends of
// the engines' logs are shown. Progress goes to the test's log.
func New(t testing.TB, c Config) *Lab {
	t.Helper()
	if c.Progress == nil {
		c.Progress = func(step string) { t.Log(step) }
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := Up(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range l.hosts {
				t.Logf("engine of %s:\n%s", h.Name, tail(h.Logs(), 40))
			}
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Must fails the test unless err is nil, and returns the value; for calls such
// as lab.Must(t)(h.Docker(ctx, "ps")).
func Must(t testing.TB) func(string, error) string {
	return func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

