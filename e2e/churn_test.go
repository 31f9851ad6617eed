//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// churn: 50 starts on each host at once, then their removal. No address twice,
// and every endpoint is in the other hosts' FDB within 1 s of its Join.
func churn(t *testing.T, s *site) {
	const each50 = 50
	s.createNetwork(t, "churn", []string{"--subnet", "10.37.0.0/16"})
	dev := map[string]string{}
	for _, h := range s.Hosts() {
		dev[h.Name] = vxlanOf(t, h, "10.37.0.0/16")
	}
	var mu sync.Mutex
	var boxes []*box
	late := map[string]time.Duration{}
	each(t, s.Hosts(), func(h *lab.Host) error {
		slots := make(chan struct{}, 4) // an engine on two shared cores starts no more at once
		var wait sync.WaitGroup
		errs := make([]error, each50)
		for i := range each50 {
			wait.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				b, err := start(t.Context(), h, fmt.Sprintf("churn-%s-%d", h.Name, i), "churn")
				if err != nil {
					errs[i] = err
					return
				}
				mu.Lock()
				boxes = append(boxes, b)
				mu.Unlock()
			})
		}
		wait.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		return nil
	})
	addresses := map[string]string{}
	for _, b := range boxes {
		if other, twice := addresses[b.ip4]; twice {
			t.Errorf("%s and %s both have %s", b.name, other, b.ip4)
		}
		addresses[b.ip4] = b.name
	}
	// One more on each host by itself: the time until the others know it.
	for _, h := range s.Hosts() {
		b := run(t, h, "churn-late-"+h.Name, "churn")
		joined := time.Now() // after Join at any rate: docker run has returned
		for _, other := range s.Hosts() {
			if other == h {
				continue
			}
			eventually(t, time.Second, func() error {
				out, err := other.Exec(t.Context(), "bridge", "fdb", "show", "dev", dev[other.Name])
				if err == nil && !strings.Contains(out, b.mac+" dst "+h.IP().String()) {
					err = fmt.Errorf("%s lacks %s of %s", other.Name, b.mac, b.name)
				}
				return err
			})
			late[h.Name+"->"+other.Name] = time.Since(joined).Round(time.Millisecond)
		}
		boxes = append(boxes, b)
	}
	t.Logf("seen in the FDB of others after docker run returned: %v", late)
	for _, h := range s.Hosts() {
		eventually(t, 5*time.Second, func() error {
			out, err := h.Exec(t.Context(), "bridge", "fdb", "show", "dev", dev[h.Name])
			if err != nil {
				return err
			}
			for _, b := range boxes {
				if b.host != h && !strings.Contains(out, b.mac+" dst "+b.host.IP().String()) {
					return fmt.Errorf("%s lacks %s of %s", h.Name, b.mac, b.name)
				}
			}
			return nil
		})
	}
	each(t, s.Hosts(), func(h *lab.Host) error {
		var names []string
		for _, b := range boxes {
			if b.host == h {
				names = append(names, b.name)
			}
		}
		_, err := h.Docker(t.Context(), slices.Concat([]string{"rm", "-f"}, names)...)
		return err
	})
	for _, h := range s.Hosts() {
		eventually(t, 10*time.Second, func() error {
			out, err := h.Exec(t.Context(), "bridge", "fdb", "show", "dev", dev[h.Name])
			if err != nil {
				return err
			}
			for _, b := range boxes {
				if b.mac != "" && strings.Contains(out, b.mac) {
					return fmt.Errorf("%s still has %s of %s", h.Name, b.mac, b.name)
				}
			}
			return nil
		})
	}
	s.removeNetwork(t, "churn")
}

// moves: an address that moves to another host is reached there within 2 s, by
// containers that talked to it before, on every host.
func moves(t *testing.T, s *site) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			s.createNetwork(t, "moving", []string{"--subnet", "10.38.0.0/24", "--ipv6", "--subnet", "fd38::/64", "-o", "attach=" + attach})
			watchers := s.oneOnEach(t, "moving")
			defer func() {
				removeBoxes(t, watchers...)
				s.removeNetwork(t, "moving")
			}()
			for _, to := range []int{1, 2, 3, 1} {
				b := run(t, s.Host(to), "nomad", "moving", "--ip", "10.38.0.200", "--ip6", "fd38::200")
				took := make([]time.Duration, len(watchers))
				each(t, s.Hosts(), func(h *lab.Host) error {
					begun := time.Now()
					for {
						_, err := watchers[h.Index-1].exec(t.Context(), "sh", "-ec", "ping -c 1 -W 1 "+b.ip4+"; ping -c 1 -W 1 "+b.ip6)
						took[h.Index-1] = time.Since(begun).Round(time.Millisecond)
						if err == nil || took[h.Index-1] > 2*time.Second {
							return err
						}
					}
				})
				t.Logf("on host%d, reached from host1, host2 and host3 after %v", to, took)
				removeBoxes(t, b)
			}
		})
	}
}
