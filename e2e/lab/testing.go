package lab

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// New makes a lab that ends with the test, or when the test is interrupted.
// When the test failed, the ends of the engines' logs are shown. Progress goes
// to the test's log.
func New(t testing.TB, c Config) *Lab {
	t.Helper()
	if c.Progress == nil {
		c.Progress = func(step string) { t.Log(step) }
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, os.Interrupt, syscall.SIGTERM)
	up, over := make(chan *Lab, 1), make(chan struct{})
	go func() {
		select {
		case <-interrupt:
		case <-over:
			return
		}
		cancel()
		if l := <-up; l != nil {
			l.Down()
		}
		os.Exit(1)
	}()
	l, err := Up(ctx, c)
	up <- l
	if err != nil {
		close(over)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer close(over)
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

// Must takes the answer of a command that has to succeed:
// lab.Must(t)(h.Docker(ctx, "ps")).
func Must(t testing.TB) func(answer string, err error) string {
	return func(answer string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
}
