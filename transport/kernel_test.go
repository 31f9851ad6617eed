//go:build kernel

package transport

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is a network namespace without a name: it goes when its handle does.
type space struct{ ns netns.NsHandle }

func newSpace(t *testing.T) space {
	t.Helper()
	var s space
	done := make(chan error)
	go func() {
		// The thread is not unlocked: it ends with the goroutine.
		runtime.LockOSThread()
		var err error
		s.ns, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ns.Close() })
	s.in(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return s
}

// in runs fn within the namespace. Sockets that fn opens stay there.
func (s space) in(t *testing.T, fn func() error) {
	t.Helper()
	if err := s.try(fn); err != nil {
		t.Fatal(err)
	}
}

func (s space) try(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

// site is two hosts with a router between them; the link to the far host is
// the narrow one.
type site struct{ near, router, far space }

const (
	wideMTU   = 1500
	narrowMTU = 1350
)

func newSite(t *testing.T) site {
	t.Helper()
	s := site{newSpace(t), newSpace(t), newSpace(t)}
	s.router.in(t, func() error {
		return errors.Join(
			sysctl("ipv4/ip_forward", "1"),
			sysctl("ipv6/conf/all/forwarding", "1"),
			s.link(s.near, 1, wideMTU),
			s.link(s.far, 2, narrowMTU),
		)
	})
	return s
}

// link joins a host to the router as 10.0.n.2 and fd00:n::2. It runs in the
// router's namespace. Only the router's end has the given MTU: the host
// believes its link to be wide.
func (s site) link(host space, n, mtu int) error {
	name := fmt.Sprintf("r%d", n)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu}, PeerName: "eth0", PeerNamespace: netlink.NsFd(host.ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := address(name, fmt.Sprintf("10.0.%d.1/24", n), fmt.Sprintf("fd00:%d::1/64", n)); err != nil {
		return err
	}
	return host.try(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMTU(eth0, wideMTU); err != nil {
			return err
		}
		if err := address("eth0", fmt.Sprintf("10.0.%d.2/24", n), fmt.Sprintf("fd00:%d::2/64", n)); err != nil {
			return err
		}
		for _, via := range []string{fmt.Sprintf("10.0.%d.1", n), fmt.Sprintf("fd00:%d::1", n)} {
			if err := netlink.RouteAdd(&netlink.Route{Gw: netip.MustParseAddr(via).AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	})
}

func address(link string, prefixes ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		a, err := netlink.ParseAddr(p)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// mute makes the router keep its ICMP errors to itself.
func (s site) mute(t *testing.T) {
	t.Helper()
	s.router.in(t, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "mute"})
		chain := c.AddChain(&nftables.Chain{
			Name: "out", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		for proto, kind := range map[byte]byte{unix.IPPROTO_ICMP: 3, unix.IPPROTO_ICMPV6: 2} {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		return c.Flush()
	})
}

// open runs a transport in a namespace.
func (s space) open(t *testing.T, at string) node {
	t.Helper()
	var n node
	s.in(t, func() error {
		n = open(t, at, keyA, "c1")
		return nil
	})
	run(t, n)
	return n
}

func TestProbeAcrossANarrowPath(t *testing.T) {
	for _, muted := range []bool{false, true} {
		for _, hosts := range [][2]string{{"10.0.1.2:7950", "10.0.2.2:7950"}, {"[fd00:1::2]:7950", "[fd00:2::2]:7950"}} {
			t.Run(fmt.Sprintf("%s muted=%v", hosts[0], muted), func(t *testing.T) {
				s := newSite(t)
				if muted {
					s.mute(t)
				}
				near, far := s.near.open(t, hosts[0]), s.far.open(t, hosts[1])
				probe := func(from space, n node, to netip.AddrPort, size int) error {
					return from.try(func() error { return n.ProbeMTU(context.Background(), to, size) })
				}

				eventually(t, "the links carry packets", func() bool {
					return probe(s.near, near, far.Addr(), 1280) == nil
				})
				// Twice: the second time the kernel remembers the path's MTU
				// where the router told it, and must not cut or refuse.
				for range 2 {
					if err := probe(s.near, near, far.Addr(), narrowMTU); err != nil {
						t.Error(err)
					}
					err := probe(s.near, near, far.Addr(), narrowMTU+1)
					if err == nil {
						t.Fatal("a packet above the MTU of the path arrived")
					}
					if muted {
						wantText(t, "error", err.Error(), "no answer to 3 of them")
					} else if !errors.Is(err, syscall.EMSGSIZE) {
						t.Errorf("probe: %v", err)
					} else {
						wantText(t, "error", err.Error(), "exceeds the MTU of a link on the path")
					}
				}
				err := probe(s.near, near, far.Addr(), wideMTU+1)
				if !errors.Is(err, syscall.EMSGSIZE) {
					t.Errorf("probe: %v", err)
				} else {
					wantText(t, "error", err.Error(), "packet of 1501 bytes exceeds the MTU of the link")
				}
				s.near.in(t, func() error {
					fit, err := near.FitMTU(context.Background(), far.Addr(), 1280, wideMTU)
					if fit != narrowMTU {
						t.Errorf("fit %d, %v", fit, err)
					}
					return nil
				})

				// Control traffic passes, though full packets are lost.
				Handle(far.Transport, "echo", func(_ context.Context, _ cluster.HostID, s string) (string, error) { return s, nil })
				s.near.in(t, func() error {
					long := strings.Repeat("x", 500_000)
					got, err := Call[string, string](context.Background(), near.Transport, far.Addr(), "echo", long)
					if got != long {
						t.Errorf("echo of %d bytes, %v", len(got), err)
					}
					return nil
				})
				if netip.MustParseAddrPort(hosts[0]).Addr().Is4() { // routers fragment IPv4 alone
					if _, err := near.WritePacket(make([]byte, 1400), far.Addr()); err != nil {
						t.Fatal(err)
					}
					if p := receive(t, far); len(p.Data) != 1400 {
						t.Errorf("a packet of %d bytes", len(p.Data))
					}
				}
			})
		}
	}
}

func TestSpeaksFromTheAdvertisedAddressWhileItIsThere(t *testing.T) {
	for _, tt := range []struct{ second, plain, far string }{
		{"10.0.1.77/24", "10.0.1.2", "10.0.2.2:7950"},
		{"fd00:1::77/64", "fd00:1::2", "[fd00:2::2]:7950"},
	} {
		t.Run(tt.second, func(t *testing.T) {
			s := newSite(t)
			s.near.in(t, func() error { return address("eth0", tt.second) })
			own := netip.MustParsePrefix(tt.second).Addr()
			near := s.near.open(t, netip.AddrPortFrom(own, 7950).String())
			far := s.far.open(t, tt.far)
			l := far.Listener(Gossip)
			eventually(t, "the links carry packets", func() bool {
				return s.near.try(func() error { return near.ProbeMTU(context.Background(), far.Addr(), 1280) }) == nil
			})

			speaks := func(from netip.Addr) {
				t.Helper()
				if _, err := near.WritePacket([]byte("x"), far.Addr()); err != nil {
					t.Fatal(err)
				}
				if p := receive(t, far); p.From != netip.AddrPortFrom(from, 7950) {
					t.Errorf("a packet from %v, want %v", p.From, from)
				}
				s.near.in(t, func() error {
					c, err := near.Dial(context.Background(), far.Addr(), Gossip)
					if err != nil {
						return err
					}
					defer c.Close()
					accepted, err := l.Accept()
					if err != nil {
						return err
					}
					defer accepted.Close()
					if got := addrPortOf(accepted.RemoteAddr()).Addr(); got != from {
						t.Errorf("a stream from %v, want %v", got, from)
					}
					return near.ProbeMTU(context.Background(), far.Addr(), 1280)
				})
				s.far.in(t, func() error {
					return far.ProbeMTU(context.Background(), netip.AddrPortFrom(from, 7950), 1280)
				})
			}
			speaks(own)

			// DHCP takes the address away: the sockets live on.
			s.near.in(t, func() error {
				eth0, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				addr, err := netlink.ParseAddr(tt.second)
				if err != nil {
					return err
				}
				return netlink.AddrDel(eth0, addr)
			})
			speaks(netip.MustParseAddr(tt.plain))
		})
	}
}

func TestCutCableIsNoticedOnBothEnds(t *testing.T) {
	s := newSite(t)
	near, far := s.near.open(t, "10.0.1.2:7950"), s.far.open(t, "10.0.2.2:7950")
	alive, left, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	HandleStream(far.Transport, "follow", func(ctx context.Context, _ cluster.HostID, _ int, send func(any) error) error {
		defer close(left)
		if err := send(1); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	go func() {
		done <- s.near.try(func() error {
			return CallStream(context.Background(), near.Transport, far.Addr(), "follow", 0, func(int) error {
				close(alive)
				return nil
			})
		})
	}()
	<-alive
	s.router.in(t, func() error {
		r1, err := netlink.LinkByName("r1")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(r1)
	})
	deadline := time.After(15 * time.Second)
	for range 2 {
		select {
		case <-left:
			left = nil
		case err := <-done:
			if err == nil {
				t.Error("the stream ended as if all were said")
			}
			done = nil
		case <-deadline:
			t.Fatalf("after 15 s a dead peer is not noticed (server: %v, client: %v)", left == nil, done == nil)
		}
	}

	// What dials now is told what to look at.
	err := s.near.try(func() error {
		_, err := near.Dial(context.Background(), far.Addr(), Gossip)
		return err
	})
	var failed *DialError
	if !errors.As(err, &failed) || failed.Cause != Unreachable {
		t.Errorf("dial: %v", err)
	} else {
		wantText(t, "error", err.Error(), "firewall")
	}
}
