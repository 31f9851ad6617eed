//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// A guest is a container, a host or another machine that meets others.
type guest struct {
	name     string
	dev      string // its interface, or an address of that
	ip4, ip6 string
	command  func(ctx context.Context, args ...string) *exec.Cmd
}

// guest makes one of a container.
func (b *box) guest(name string) guest {
	return guest{name: name, dev: b.ip4, ip4: b.ip4, ip6: b.ip6, command: func(ctx context.Context, args ...string) *exec.Cmd {
		return b.host.Command(ctx, append([]string{"docker", "exec", "-i", b.name}, args...)...)
	}}
}

// A hearing is one kind of word of one guest that another heard: broadcast,
// multicast4, multicast6, question4, question6, or answer4 and answer6, which are
// to questions of the one that heard it.
type hearing struct{ by, from, kind string }

func (h hearing) String() string { return h.by + " hears " + h.kind + " of " + h.from }

// talk is what one guest says and hears.
type talk struct {
	cmd    *exec.Cmd
	in     io.Closer
	stderr bytes.Buffer
	ready  chan struct{} // closed when it talks
	ended  chan struct{} // closed when it says no more
}

// meet lets all guests ask all others, and say something to everybody, at once.
// It waits until all that must be was heard, and then a while for what need not.
// Nobody may hear a word twice.
func (c company) meet(t *testing.T, must []hearing) map[hearing]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var mu sync.Mutex // guards heard and twice
	heard, twice := map[hearing]bool{}, []hearing{}
	talks, meeting := make([]*talk, len(c.guests)), rand.Text()
	for i, g := range c.guests {
		k, err := c.begin(ctx, g, meeting, func(h hearing, again bool) {
			mu.Lock()
			defer mu.Unlock()
			if heard[h] = true; again {
				twice = append(twice, h)
			}
		})
		if err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		talks[i] = k
	}
	for i, k := range talks {
		select {
		case <-k.ready:
		case <-k.ended:
			t.Fatalf("%s does not talk: %v: %s", c.guests[i].name, k.cmd.Wait(), k.stderr.String())
		}
	}
	// What is missing then is said by those who compare.
	_ = retry(15*time.Second+4*c.quiet, 50*time.Millisecond, func() error {
		mu.Lock()
		defer mu.Unlock()
		for _, h := range must {
			if !heard[h] {
				return fmt.Errorf("not yet: %v", h)
			}
		}
		return nil
	})
	time.Sleep(c.quiet) // a silence cannot be awaited
	for i, k := range talks {
		k.in.Close()
		<-k.ended
		if err := k.cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", c.guests[i].name, err, k.stderr.String())
		}
	}
	for _, h := range twice {
		t.Errorf("twice: %v", h)
	}
	return heard
}

// begin lets a guest talk, until its input is closed.
func (c company) begin(ctx context.Context, g guest, meeting string, tell func(h hearing, again bool)) (*talk, error) {
	args := []string{"box", "meet", g.name, "--meeting", meeting, "--iface", g.dev, "--interval", c.pace.String()}
	for _, other := range c.guests {
		if other.name == g.name {
			continue
		}
		args = append(args, other.ip4)
		if other.ip6 != "" && g.ip6 != "" {
			args = append(args, other.ip6)
		}
	}
	k := &talk{cmd: g.command(ctx, args...), ready: make(chan struct{}), ended: make(chan struct{})}
	k.cmd.Stderr = &k.stderr
	in, err := k.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := k.cmd.Start(); err != nil {
		return nil, err
	}
	k.in = in
	go func() {
		defer close(k.ended)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			var said struct {
				Ready      bool
				From, Kind string
				Twice      bool
			}
			if err := json.Unmarshal(scan.Bytes(), &said); err != nil {
				continue // its exit status tells
			}
			if said.Ready {
				close(k.ready)
				continue
			}
			tell(hearing{by: g.name, from: said.From, kind: said.Kind}, said.Twice)
		}
	}()
	return k, nil
}
