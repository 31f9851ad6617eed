//go:build kernel

package kernel_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// watcher is somebody who is told by Watch, until the test ends.
type watcher struct {
	t       *testing.T
	s       *space
	changed chan struct{}
}

func watch(t *testing.T, s *space, k *kernel.Linux) *watcher {
	t.Helper()
	w := &watcher{t, s, make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- k.Watch(ctx, w.changed) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if !w.woken(patience) {
		t.Fatal("not signalled at the start")
	}
	return w
}

// patience is how long what must happen may take on a machine that is emulated.
const patience = 20 * time.Second

func (w *watcher) woken(within time.Duration) bool {
	select {
	case <-w.changed:
		return true
	case <-time.After(within):
		return false
	}
}

// unread reports whether the kernel holds notifications that Watch did not read.
func (w *watcher) unread() bool {
	w.t.Helper()
	var table []byte
	err := w.s.in(func() (err error) { table, err = os.ReadFile("/proc/thread-self/net/netlink"); return err })
	if err != nil {
		w.t.Fatal(err)
	}
	for _, line := range strings.Split(string(table), "\n")[1:] {
		// sk Eth Pid Groups Rmem ...
		if f := strings.Fields(line); len(f) > 4 && f[3] != "00000000" && f[4] != "0" {
			return true
		}
	}
	return false
}

// quiet waits until Watch has read all there is, and reports whether it signalled.
func (w *watcher) quiet() (signalled bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); w.unread(); time.Sleep(time.Millisecond) { // polling a condition
		if time.Now().After(end) {
			w.t.Fatal("notifications are never read")
		}
	}
	return w.woken(30 * time.Millisecond) // between reading and signalling
}

// settle waits until there is nothing to signal.
func (w *watcher) settle() {
	w.t.Helper()
	for end := time.Now().Add(patience); w.quiet(); {
		if time.Now().After(end) {
			w.t.Fatal("signalled without end")
		}
	}
}

// wakes runs a command, and fails unless it is signalled.
func (w *watcher) wakes(command string) {
	w.t.Helper()
	w.settle()
	w.s.sh("%s", command)
	if !w.woken(patience) {
		w.t.Errorf("not signalled by %s", command)
	}
}

// ignores runs a command, which must do the same every time, and fails if it is
// signalled. What the kernel tells late of what was done before happens once.
func (w *watcher) ignores(command string) {
	w.t.Helper()
	for range 4 {
		w.settle()
		w.s.sh("%s", command)
		if !w.quiet() {
			return
		}
	}
	w.t.Errorf("signalled by %s", command)
}
