//go:build e2e && machine

package e2e

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestMachineVXLAN is what two hosts with a stock kernel must do: it loads what
// it lacks by itself, and leaves nothing behind.
func TestMachineVXLAN(t *testing.T) {
	s := newSite(t, lab.Config{Hosts: 2})
	before := snapshots(t, s)
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run("reach-"+attach, func(t *testing.T) { reachability(t, s, attach, "10.32.0.0/16", "fd32::/64") })
	}
	t.Run("nothing-left", func(t *testing.T) { nothingLeft(t, s, before) })
}

// TestMachineFallback: a host moves behind a router, and its containers are reached
// by the tunnels that only other kernels have: by nothing but these, as large as they
// may be, untracked, and by both families where they carry both.
func TestMachineFallback(t *testing.T) {
	r := &routes{site: newSite(t, lab.Config{Hosts: 2}), boxes: map[string][]*box{}}
	r.forwardIPv6(t)
	// What the kernel makes by itself once it has these kinds, in every namespace, stays: tunl0, gre0.
	lab.Must(t)(r.Host(1).Exec(t.Context(), "modprobe", "-a", "ipip", "ip_gre"))
	before := snapshots(t, r.site)
	var err error
	if r.machine, err = r.Station(t.Context(), "machine", netip.MustParsePrefix(outside+"/24")); err != nil {
		t.Fatal(err)
	}
	// What is inside: its first byte, protocol, and next header of IPv6.
	for _, f := range []struct {
		kind, subnet, number, echo, echo6 string
		mtu                               int
	}{
		{"ipip", "10.60.0.0/16", "4", "ip proto 4 and ip[20] & 0xf0 = 0x40 and ip[29] = 1", "", 1480},
		{"gre", "10.65.0.0/16", "47", "ip proto 47 and ip[24] & 0xf0 = 0x40 and ip[33] = 1", "ip proto 47 and ip[24] & 0xf0 = 0x60 and ip[30] = 58", 1476},
	} {
		t.Run(f.kind, func(t *testing.T) {
			network, args := "by-"+f.kind, "--subnet "+f.subnet+" -o mode=host-gw -o fallback="+f.kind
			if f.echo6 != "" {
				args += " --ipv6 --subnet fd60::/64"
			}
			r.create(t, network, args)
			a, b := r.boxes[network][0], r.boxes[network][1]
			r.reach(t)
			r.native(t, network, func(b *box) string { return b.ip4 }, "icmp")
			// only: three echoes and their answers are in the tunnel, and nothing else shows their addresses.
			only := func(echo, to string, header int) {
				t.Helper()
				seen := recorded(t, a.host, func() {
					a.must(t, "ping", "-c", "3", "-i", "0.2", "-W", "4", "-s", strconv.Itoa(f.mtu-header-8), to)
				}, echo, "udp port 8475 or host "+to)
				if len(seen[0]) != 6 || len(seen[1]) != 0 {
					t.Errorf("%d packets in a tunnel of %s and %d others, want 6 and 0: %v", len(seen[0]), f.kind, len(seen[1]), seen)
				}
			}
			r.moved(t, network, f.kind, func() {
				only(f.echo, b.ip4, 20)
				if f.echo6 != "" {
					only(f.echo6, b.ip6, 40)
				}
				for _, h := range r.Hosts() {
					flows := lab.Must(t)(h.Exec(t.Context(), "cat", "/proc/net/nf_conntrack"))
					if !strings.Contains(flows, b.ip4) || regexp.MustCompile(`(?m)^ipv4 +2 +\w+ +`+f.number+" ").MatchString(flows) {
						t.Errorf("packets of tunnels are tracked on %s, or nothing is:\n%s", h.Name, flows)
					}
				}
			})
			r.remove(t)
		})
	}
	t.Run("nothing-left", func(t *testing.T) {
		if err := r.machine.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, r.site, before)
	})
}

// Documentation/networking/ipvlan.rst of the kernel. That a host and what stands
// on its own link do not meet is written in docs/underlay.md; ipvlan.rst is silent
// of the host, and of a switch that returns its frames.
var ipvlanReach = []reach{
	// 4.1: "packets are switched and queued to the master device to send out. In
	// this mode the slaves will RX/TX multicast and broadcast." 5.1: "slaves can
	// cross-talk among themselves".
	{of: "l2 bridge",
		straight: "+ + + + - + + + +",
		hairpin:  "+ + + + ? + + + +"},
	// 5.2: "port won't allow cross communication between slaves". Kernels hold only
	// packets to one receiver to that.
	{of: "l2 private",
		straight: "- + + + - ! + + +",
		hairpin:  "- + + + ? ! + + +"},
	// 5.3: "port will offload switching functionality to the external entity as
	// described in 802.1Qbg". Kernels do so for packets to one receiver only.
	{of: "l2 vepa",
		straight: "- + + + - ! + + +",
		hairpin:  "+ + + + ? + + + +"},
	// 4.2: "routing from that instance [of the master] will be used before packets
	// are queued on the outbound device. In this mode the slaves will not receive
	// nor can send multicast / broadcast traffic." Machines of the LAN have routes
	// to the containers here, as docs/underlay.md asks for.
	{of: "l3 bridge", straight: "+ + + + - - - - -"},
	// 4.3: "very similar to the L3 mode except that iptables (conn-tracking) works".
	{of: "l3s bridge", straight: "+ + + + - - - - -"},
}

// TestMachineLAN is what a kernel must have for the modes of a LAN: ipvlan in all
// its modes and flags, VLANs, and networks without a parent. Who reaches whom is
// what is written of the mode.
func TestMachineLAN(t *testing.T) {
	l := newLAN(t, 4*time.Second, 250*time.Millisecond)
	l.stays(t)
	t.Run("isolated", func(t *testing.T) { l.bySwitch(t, isolatedReach, l.company(l.isolated)) })
	for _, r := range ipvlanReach {
		t.Run("ipvlan-"+strings.ReplaceAll(r.of, " ", "-"), func(t *testing.T) {
			mode, flag, _ := strings.Cut(r.of, " ")
			args := []string{"-o", "mode=ipvlan", "-o", "parent=eth0", "-o", "ipvlan_mode=" + mode, "-o", "ipvlan_flag=" + flag}
			if mode == "l2" {
				l.holds(t, r, args, "A", "B", "C")
			} else {
				l.routed(t, r, args)
			}
		})
	}
	t.Run("vlans", func(t *testing.T) { l.vlans(t) })
	t.Run("nothing-left", func(t *testing.T) { l.leaves(t) })
}

// routed is holds of a network whose containers are routed by their hosts. The
// hosts of the cluster know the way to all, the machine and the router are told.
func (l *lan) routed(t *testing.T, r reach, args []string) {
	network := "reach-" + strings.ReplaceAll(r.of, " ", "-")
	l.visit(t, network, append(args, "--subnet", routedSubnet), []string{"A", "B", "C"}, []string{routedSubnet}, func(boxes map[string]*box) {
		for _, b := range boxes {
			for _, s := range []*lab.Station{l.machine, l.router} {
				lab.Must(t)(s.Exec(t.Context(), "ip", "route", "replace", b.ip4, "via", b.host.IP().String()))
			}
		}
		l.bySwitch(t, r, l.company(boxes))
	})
}

// vlans: a network with a VLAN as its parent reaches machines in that VLAN, by
// one tag and by two, and no other.
func (l *lan) vlans(t *testing.T) {
	mate := l.station(t, "mate")
	stations := map[string]*lab.Station{"machine": l.machine, "outsider": l.router, "mate": mate}
	for _, v := range []struct {
		name, parent, elsewhere, subnet4, subnet6 string
		reach                                     reach
		args, boxes                               []string
	}{
		{"tag", "eth0.50", "eth0.60", "10.98.50.0/24", "fd98:50::/64",
			macvlanReach[0], []string{"-o", "mode=macvlan"}, []string{"A", "B", "C"}},
		{"two-tags", "eth0.50.7", "eth0.50", "10.98.57.0/24", "fd98:57::/64",
			ipvlanReach[0], []string{"-o", "mode=ipvlan"}, []string{"A", "C"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			address := func(subnet string, n byte) string {
				p := netip.MustParsePrefix(subnet)
				b := p.Addr().AsSlice()
				b[len(b)-1] = n
				a, _ := netip.AddrFromSlice(b)
				return a.String()
			}
			args := slices.Concat(v.args, []string{"-o", "parent=" + v.parent,
				"--subnet", v.subnet4, "--gateway", address(v.subnet4, 90), "--ipv6", "--subnet", v.subnet6, "--gateway", address(v.subnet6, 90)})
			l.visit(t, v.name, args, v.boxes, []string{v.subnet4, v.subnet6}, func(boxes map[string]*box) {
				c := l.containers(boxes)
				for i, name := range []string{"machine", "outsider", "mate"} {
					g := guest{name: name, dev: v.parent, ip4: address(v.subnet4, byte(90+i)), ip6: address(v.subnet6, byte(90+i)), command: stations[name].Command}
					if name != "machine" {
						g.dev = v.elsewhere
					}
					g.tag(t, stations[name])
					c.guests = append(c.guests, g)
				}
				c.holds(t, v.reach.straight)
			})
		})
	}
}

// tag makes the guest's interface, of which each number is a VLAN, where it is
// missing, with the guest's addresses.
func (g guest) tag(t *testing.T, s *lab.Station) {
	t.Helper()
	script := []string{"ip link set eth0 up"}
	parts := strings.Split(g.dev, ".")
	for i := 1; i < len(parts); i++ {
		below, dev := strings.Join(parts[:i], "."), strings.Join(parts[:i+1], ".")
		script = append(script, "ip link show "+dev+" >/dev/null 2>&1 || ip link add link "+below+" name "+dev+" type vlan id "+parts[i], "ip link set "+dev+" up")
	}
	script = append(script, "ip address add "+g.ip4+"/24 dev "+g.dev, "ip address add "+g.ip6+"/64 dev "+g.dev+" nodad")
	lab.Must(t)(s.Exec(t.Context(), "sh", "-ec", strings.Join(script, "\n")))
}
