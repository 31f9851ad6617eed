//go:build kernel

package kernel_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// silence checks that none of the addresses is reached.
func silence(t *testing.T, from *space, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		if err := from.reach(a, 300*time.Millisecond); err == nil {
			t.Errorf("%s is reached", a)
		}
	}
}

// A device that goes down cuts its containers off; when it comes up again, they
// are where they were. The kernel forgot the neighbours meanwhile.
func TestLinuxDownAndUp(t *testing.T) {
	t.Parallel()
	kinds := []kernel.Kind{kernel.Macvlan, kernel.Veth}
	for _, kind := range spared(kinds, kinds[:1]) {
		t.Run(string(kind), func(t *testing.T) {
			a, b := newNodes(t, kind, "192.0.2.")
			mustReach(t, a.box, containerB...)
			a.box.echo(":81")
			fromB := []string{"10.32.0.11:81", "[fd32::11]:81"}
			mustReach(t, b.box, fromB...)
			// That the kernel made the link-local address, newer ones say.
			shown := func() string {
				return a.box.sh("ip -o link show eth0 | cut -d: -f1; ip -o addr show eth0 | sed 's/ proto kernel_ll//; s/ *\\(tentative\\|[\\\\]\\).*//'; ip route show; ip -6 route show")
			}
			before := shown()

			down := kernel.State{}
			for k, o := range a.want {
				if k.Type != "fdb" && k.Type != "neigh" {
					down[k] = o
				}
			}
			v := a.want[kernel.Link{Name: "is-v1"}.Key()].(kernel.Link)
			v.Down = true
			down.Put(v)
			for range spared(2, 1) {
				apply(t, a.k, down)
				contains(t, a.sh("ip link show is-v1"), "state DOWN")
				silence(t, a.box, containerB...)
				silence(t, b.box, fromB...)

				ops := apply(t, a.k, a.want)
				if n := strings.Count(text(ops), "neigh"); n != 3 {
					t.Errorf("%d neighbours put back:\n%s", n, text(ops))
				}
				if again := kernel.Recreated(ops); len(again) > 0 {
					t.Errorf("made anew: %q", again)
				}
				mustReach(t, a.box, containerB...)
				mustReach(t, b.box, fromB...)
			}
			after := shown()
			if after != before {
				t.Errorf("was\n%s\nis\n%s", before, after)
			}

			// A container that starts while the device is down, as Docker does it.
			a.box.sh("ip link set eth0 down; ip link set eth0 name is-c1; ip link set is-c1 netns %s", a.path())
			apply(t, a.k, down)
			a.start(t)
			silence(t, a.box, containerB...)
			apply(t, a.k, a.want)
			mustReach(t, a.box, containerB...)
		})
	}
}

// Frames of a host that is not admitted do not come in, at no address of this
// host; all others do.
func TestLinuxDropStrangers(t *testing.T) {
	t.Parallel()
	for i, underlay := range []string{"192.0.2.", "fd99::"} {
		kinds := []kernel.Kind{kernel.Macvlan, kernel.Veth}
		for _, kind := range spared(kinds, kinds[i:i+1]) {
			t.Run(string(kind)+" "+underlay, func(t *testing.T) {
				a, b := newNodes(t, kind, underlay)
				mustReach(t, a.box, containerB...)
				bits := map[bool]int{true: 64, false: 24}[strings.Contains(underlay, ":")]
				admit := kernel.Guard{Rule: kernel.Admit, Peer: addr(underlay + "1")}
				other := kernel.Guard{Rule: kernel.Admit, Peer: addr(underlay + "55")}
				dropped := func() (n int) {
					for line := range strings.Lines(b.sh("nft list chain inet isthmus input")) {
						if _, rest, ok := strings.Cut(line, "8475"); ok {
							_, rest, _ = strings.Cut(rest, "counter packets ")
							_, _ = fmt.Sscan(rest, &n)
						}
					}
					return n
				}
				stranger := kernel.State{}
				for k, o := range b.want {
					if k != admit.Key() {
						stranger[k] = o
					}
				}
				stranger.Put(other)
				for range spared(2, 1) {
					apply(t, b.k, stranger)
					silence(t, a.box, containerB...)
					if dropped() == 0 {
						t.Error("nothing was dropped: the test shows nothing")
					}
					apply(t, b.k, b.want)
					mustReach(t, a.box, containerB...)
				}

				// The kernel takes tunnels at all addresses, and so does the guard.
				b.sh("ip addr add %s77/%d dev u0 nodad", underlay, bits)
				for _, o := range a.want {
					if f, ok := o.(kernel.FDB); ok {
						delete(a.want, f.Key())
						f.Dst = addr(underlay + "77")
						a.want.Put(f)
					}
				}
				apply(t, a.k, a.want)
				mustReach(t, a.box, containerB...)
				apply(t, b.k, stranger)
				silence(t, a.box, containerB...)
				apply(t, b.k, b.want)
				mustReach(t, a.box, containerB...)

				// It is about the port of tunnels, and about nothing else.
				apply(t, b.k, stranger)
				at := netip.AddrPortFrom(addr(underlay+"2"), 9998)
				var socket net.PacketConn
				if err := b.in(func() (err error) { socket, err = net.ListenPacket("udp", at.String()); return err }); err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				await(t, "another port is open", func() error {
					err := a.in(func() error {
						c, err := net.Dial("udp", at.String())
						if err == nil {
							defer c.Close()
							_, err = c.Write([]byte("hello"))
						}
						return err
					})
					if err != nil {
						return err
					}
					_ = socket.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
					_, _, err = socket.ReadFrom(make([]byte, 10))
					return err
				})
			})
		}
	}
}

// What others send through this host is not its business.
func TestLinuxStrangersPassThrough(t *testing.T) {
	t.Parallel()
	left, router, right := newSpace(t), newSpace(t), newSpace(t)
	left.sh("ip link add u0 type veth peer name l0 netns %s; ip addr add 192.0.2.1/24 dev u0; ip link set u0 up; ip route add default via 192.0.2.254", router.path())
	right.sh("ip link add u0 type veth peer name r0 netns %s; ip addr add 198.51.100.1/24 dev u0; ip link set u0 up; ip route add default via 198.51.100.254", router.path())
	router.sh("ip addr add 192.0.2.254/24 dev l0; ip link set l0 up; ip addr add 198.51.100.254/24 dev r0; ip link set r0 up; echo 1 > /proc/sys/net/ipv4/ip_forward")
	k := router.open()
	end := netip.MustParseAddrPort("192.0.2.254:8475")
	apply(t, k, stateOf(kernel.Guard{Rule: kernel.NoTrack, Tunnel: end}, kernel.Guard{Rule: kernel.DropStrangers, Tunnel: end}))
	receive := func(at *space, address string) (get func() error, closeIt func()) {
		var socket net.PacketConn
		if err := at.in(func() (err error) { socket, err = net.ListenPacket("udp4", address); return err }); err != nil {
			t.Fatal(err)
		}
		return func() error {
			err := left.in(func() error {
				c, err := net.Dial("udp4", address)
				if err == nil {
					defer c.Close()
					_, err = c.Write([]byte("hello"))
				}
				return err
			})
			if err != nil {
				return err
			}
			_ = socket.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, _, err = socket.ReadFrom(make([]byte, 10))
			return err
		}, func() { socket.Close() }
	}
	through, end1 := receive(right, "198.51.100.1:8475")
	defer end1()
	await(t, "another host's tunnel passes", through)
	here, end2 := receive(router, "192.0.2.254:8475")
	defer end2()
	for range 3 {
		if here() == nil {
			t.Fatal("a stranger's packet came in")
		}
	}
	apply(t, k, stateOf(kernel.Guard{Rule: kernel.NoTrack, Tunnel: end}, kernel.Guard{Rule: kernel.DropStrangers, Tunnel: end}, kernel.Guard{Rule: kernel.Admit, Peer: addr("192.0.2.1")}))
	await(t, "an admitted one's does", here)
}

// An MTU that shrinks reaches into running containers; one that grows does not.
func TestLinuxLowersMTU(t *testing.T) {
	t.Parallel()
	kinds := []kernel.Kind{kernel.Macvlan, kernel.Veth}
	for _, kind := range spared(kinds, kinds[:1]) {
		t.Run(string(kind), func(t *testing.T) {
			a, _ := newNodes(t, kind, "192.0.2.")
			mustReach(t, a.box, containerB...)
			shrink := func(mtu int) {
				t.Helper()
				for k, o := range a.want {
					if l, ok := o.(kernel.Link); ok {
						l.MTU = mtu
						a.want[k] = l
					}
				}
				a.h.Link.MTU, a.h.Host.MTU = mtu, mtu
				apply(t, a.k, a.want)
				if made, err := a.k.Mend(context.Background(), a.h); made || err != nil {
					t.Errorf("mend: %v, %v", made, err)
				}
			}
			index := a.box.sh("cat /sys/class/net/eth0/ifindex 2>/dev/null || ip -o link show eth0 | cut -d: -f1")
			shrink(1300)
			contains(t, a.box.sh("ip link show eth0"), "mtu 1300")
			mustReach(t, a.box, containerB...)
			shrink(1400)
			contains(t, a.box.sh("ip link show eth0"), "mtu 1300")
			if now := a.box.sh("cat /sys/class/net/eth0/ifindex 2>/dev/null || ip -o link show eth0 | cut -d: -f1"); now != index {
				t.Errorf("made anew: index was %s, is %s", index, now)
			}
		})
	}
}
