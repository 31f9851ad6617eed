package driver

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// options is what the sdk decodes of JSON.
func portOptions(t *testing.T, text string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParsePorts(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		name, list string
		want       []portRequest
		err        string
	}{
		{"none", `null`, nil, ""},
		{"empty", `[]`, nil, ""},
		{"as engine 26 sends it", `[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]`, []portRequest{{Proto: "tcp", Port: 80, First: 8080, Last: 8080}}, ""},
		{"any port", `[{"Proto":17,"Port":53,"HostIP":"","HostPort":0,"HostPortEnd":0}]`, []portRequest{{Proto: "udp", Port: 53}}, ""},
		{"without an end", `[{"Proto":132,"Port":1,"HostPort":2}]`, []portRequest{{Proto: "sctp", Port: 1, First: 2, Last: 2}}, ""},
		{"one of a range", `[{"Proto":6,"Port":80,"HostPort":8000,"HostPortEnd":8010}]`, []portRequest{{Proto: "tcp", Port: 80, First: 8000, Last: 8010}}, ""},
		{"host address", `[{"Proto":6,"Port":80,"HostIP":"127.0.0.1","HostPort":80}]`, []portRequest{{Proto: "tcp", Port: 80, Host: local, First: 80, Last: 80}}, ""},
		{"IPv6", `[{"Proto":6,"Port":80,"HostIP":"::","HostPort":80}]`, []portRequest{{Proto: "tcp", Port: 80, Host: netip.IPv6Unspecified(), First: 80, Last: 80}}, ""},
		{"IPv4 as IPv6", `[{"Proto":6,"Port":80,"HostIP":"::ffff:127.0.0.1","HostPort":80}]`, []portRequest{{Proto: "tcp", Port: 80, Host: local, First: 80, Last: 80}}, ""},
		{"twice", `[{"Proto":6,"Port":80,"HostPort":80},{"Proto":6,"Port":80,"HostPort":80}]`, []portRequest{{Proto: "tcp", Port: 80, First: 80, Last: 80}}, ""},
		{"a field of tomorrow", `[{"Proto":6,"Port":80,"HostPort":80,"Colour":"red"}]`, []portRequest{{Proto: "tcp", Port: 80, First: 80, Last: 80}}, ""},
		{"protocol", `[{"Proto":1,"Port":80,"HostPort":80}]`, nil, "protocol 1 is none of tcp"},
		{"no port", `[{"Proto":6,"HostPort":80}]`, nil, "tcp/80 has no port of the container"},
		{"backwards", `[{"Proto":6,"Port":80,"HostPort":80,"HostPortEnd":79}]`, nil, "80-79 is no range"},
		{"from nowhere", `[{"Proto":6,"Port":80,"HostPortEnd":79}]`, nil, "0-79 is no range"},
		{"no address", `[{"Proto":6,"Port":80,"HostIP":"localhost","HostPort":80}]`, nil, `host address "localhost" is none`},
		{"zone", `[{"Proto":6,"Port":80,"HostIP":"fe80::1%eth0","HostPort":80}]`, nil, "is none"},
		{"too large", `[{"Proto":6,"Port":70000,"HostPort":80}]`, nil, "read option com.docker.network.portmap"},
		{"fraction", `[{"Proto":6,"Port":80.5,"HostPort":80}]`, nil, "read option com.docker.network.portmap"},
		{"text", `"80:80"`, nil, "read option com.docker.network.portmap"},
		{"object", `{"80/tcp":[]}`, nil, "read option com.docker.network.portmap"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parsePorts(portOptions(t, `{"com.docker.network.portmap":`+c.list+`}`))
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
	if got, err := parsePorts(nil); got != nil || err != nil {
		t.Errorf("without the option: %v, %v", got, err)
	}
}

var (
	loopback  = netip.MustParseAddr("127.0.0.1")
	container = []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")}
)

func asking(proto string, host netip.Addr, first, last uint16) portRequest {
	return portRequest{Proto: proto, Port: 80, Host: host, First: first, Last: last}
}

// mustHold holds what fits, and returns the host's port of the first.
func mustHold(t *testing.T, p *ports, owner string, before []kernel.Publish, wants ...portRequest) ([]kernel.Publish, uint16) {
	t.Helper()
	got, err := p.hold(owner, wants, container, before)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.release(owner) })
	return got, got[0].Host.Port()
}

// free reports whether somebody else can listen there.
func free(network string, port uint16) bool {
	if network == "udp" {
		c, err := net.ListenPacket(network, fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	l, err := net.Listen(network, fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		l.Close()
	}
	return err == nil
}

// A published port is nobody else's until it is released.
func TestPortsHold(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		t.Run(proto, func(t *testing.T) {
			var p ports
			got, port := mustHold(t, &p, "one", nil, asking(proto, loopback, 0, 0))
			want := kernel.Publish{Proto: proto, Host: netip.AddrPortFrom(loopback, port), To: netip.MustParseAddrPort("10.1.0.2:80")}
			if len(got) != 1 || got[0] != want || port == 0 {
				t.Fatalf("got %v, want %v", got, want)
			}
			if free(proto, port) {
				t.Error("another program gets the port")
			}
			// The same again, and by a caller that remembers, is the same.
			again, _ := mustHold(t, &p, "one", got, asking(proto, loopback, 0, 0))
			if !slices.Equal(got, again) {
				t.Errorf("got %v, then %v", got, again)
			}
			// Of somebody else it is refused, by any address that overlaps.
			for _, host := range []netip.Addr{loopback, {}, netip.IPv4Unspecified()} {
				_, err := p.hold("two", []portRequest{asking(proto, host, port, port)}, container, nil)
				if err == nil || !strings.Contains(err.Error(), "it is published for container endpoint one on 10.1.0.2") {
					t.Errorf("by %v: %v", host, err)
				}
			}
			if got := p.owners(); !slices.Equal(got, []string{"one"}) {
				t.Errorf("owners %v", got)
			}
			p.release("one")
			p.release("one")
			if !free(proto, port) {
				t.Error("still held")
			}
		})
	}
}

// A port that another program has is refused with its name, and nothing is held then.
func TestPortsConflict(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := netip.MustParseAddrPort(l.Addr().String()).Port()
	var p ports
	kept, port := mustHold(t, &p, "one", nil, asking("tcp", loopback, 0, 0))
	_, err = p.hold("one", []portRequest{asking("udp", loopback, port, port), asking("tcp", loopback, taken, taken)}, container, nil)
	want := fmt.Sprintf("publish 127.0.0.1 port %d/tcp for 80: 127.0.0.1:%d is taken: by driver.test (process ", taken, taken)
	if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "choose another host port, or stop that program") {
		t.Errorf("error %v, want %s...", err, want)
	}
	if !free("udp", port) {
		t.Error("half of what failed is held")
	}
	if free("tcp", port) {
		t.Error("what was held before is not any more")
	}
	if again, _ := mustHold(t, &p, "one", nil, asking("tcp", loopback, port, port)); !slices.Equal(again, kept) {
		t.Errorf("got %v, want %v", again, kept)
	}
	// The next one of a range is taken instead, and if there is none, it says so.
	if taken < 65535 && free("tcp", taken+1) {
		got, err := p.hold("two", []portRequest{asking("tcp", loopback, taken, taken+1)}, container, nil)
		if err != nil || got[0].Host.Port() != taken+1 {
			t.Errorf("of a range: %v, %v", got, err)
		}
		if _, err := p.hold("three", []portRequest{asking("tcp", loopback, taken, taken+1)}, container, nil); err == nil || !strings.Contains(err.Error(), "no port of the range is free") {
			t.Errorf("of a full range: %v", err)
		}
		p.release("two")
	}
}

// What a caller asks anew replaces what he had.
func TestPortsReplace(t *testing.T) {
	var p ports
	_, first := mustHold(t, &p, "one", nil, asking("tcp", loopback, 0, 0))
	_, second := mustHold(t, &p, "one", nil, asking("udp", loopback, 0, 0))
	if !free("tcp", first) || free("udp", second) {
		t.Error("the old port is held, or the new one is not")
	}
	if got, err := p.hold("one", nil, container, nil); err != nil || len(got) != 0 || len(p.owners()) != 0 || !free("udp", second) {
		t.Errorf("nothing: %v, %v, %v", got, err, p.owners())
	}
}

// Without an address it is all of them, in each family that the container has,
// with the same port.
func TestPortsFamilies(t *testing.T) {
	var p ports
	got, port := mustHold(t, &p, "one", nil, asking("tcp", netip.Addr{}, 0, 0))
	if got[0].Host.Port() != port || got[len(got)-1].Host.Port() != port {
		t.Errorf("different ports: %v", got)
	}
	if got[0].Host.Addr() != netip.IPv4Unspecified() || got[0].To != netip.MustParseAddrPort("10.1.0.2:80") {
		t.Errorf("IPv4: %v", got)
	}
	l, err := net.Listen("tcp6", "[::1]:0")
	if err == nil { // the machine has IPv6
		l.Close()
		if len(got) != 2 || got[1].Host.Addr() != netip.IPv6Unspecified() || got[1].To != netip.MustParseAddrPort("[fd01::2]:80") {
			t.Errorf("IPv6: %v", got)
		}
	}
	for _, c := range []struct {
		request portRequest
		addrs   []netip.Addr
		want    string
	}{
		{asking("tcp", loopback, 0, 0), container[1:], "the container has no ipv4 address in this network"},
		{asking("tcp", netip.IPv6Unspecified(), 0, 0), container[:1], "the container has no ipv6 address in this network"},
		{asking("tcp", netip.MustParseAddr("198.51.100.7"), 0, 0), container, "198.51.100.7 is no address of this host"},
	} {
		if _, err := p.hold("two", []portRequest{c.request}, c.addrs, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %s", c.request, err, c.want)
		}
	}
	other := asking("tcp", loopback, port, port)
	other.Port = 81
	if _, err := p.hold("one", []portRequest{asking("tcp", netip.Addr{}, port, port), other}, container, nil); err == nil || !strings.Contains(err.Error(), "is published twice, for ports 80 and 81") {
		t.Errorf("one port for two: %v", err)
	}
}

// SCTP is published whether the host's kernel has it or not.
func TestPortsSCTP(t *testing.T) {
	var p ports
	got, _ := mustHold(t, &p, "one", nil, asking("sctp", loopback, 45678, 45678))
	if len(got) != 1 || got[0].Host.Port() != 45678 {
		t.Errorf("got %v", got)
	}
	if _, err := p.hold("two", []portRequest{asking("sctp", loopback, 45678, 45678)}, container, nil); err == nil {
		t.Error("held twice")
	}
}
