package lan

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/frame"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func mac(last byte) cluster.MAC { return cluster.MAC{2, 0, 0, 0, 0, last} }

func raw(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What the filter lets pass and claim reads, against hand-made frames.
func TestClaims(t *testing.T) {
	const v6 = "86dd 60000000 0018 3a ff "
	for _, c := range []struct {
		name, frame string
		ip          string // "": no claim
		mac         cluster.MAC
		filtered    bool // dropped by the filter already
	}{
		{"ARP reply", "020000000001 020000000009 0806 0001 0800 06 04 0002 020000000009 c0000209 020000000001 00000000", "192.0.2.9", mac(9), false},
		{"ARP request of the holder", "ffffffffffff 020000000009 0806 0001 0800 06 04 0001 020000000009 c0000209 000000000000 c0000201", "192.0.2.9", mac(9), false},
		{"another's ARP probe", "ffffffffffff 020000000009 0806 0001 0800 06 04 0001 020000000009 00000000 000000000000 c0000209", "192.0.2.9", mac(9), false},
		{"own ARP probe come back", "ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 c0000209", "", mac(0), false},
		{"own ARP probe through a bridge that rewrites", "ffffffffffff 020000000008 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 c0000209", "", mac(0), false},
		{"ARP reply without sender", "020000000001 020000000009 0806 0001 0800 06 04 0002 020000000009 00000000 020000000001 00000000", "", mac(0), false},
		{"ARP of another network", "020000000001 020000000009 0806 0006 0800 06 04 0002 020000000009 c0000209 020000000001 00000000", "", mac(0), false},
		{"ARP cut short", "020000000001 020000000009 0806 0001 0800 06 04 0002 020000000009 c0000209", "", mac(0), false},
		{"advertisement", "333300000001 020000000009 " + v6 + "fd000000000000000000000000000009 ff020000000000000000000000000001 8800 0000 20000000 fd000000000000000000000000000009", "fd00::9", mac(9), false},
		{"advertisement with the holder's MAC", "333300000001 020000000009 86dd 60000000 0020 3a ff fd000000000000000000000000000009 ff020000000000000000000000000001 8800 0000 20000000 fd000000000000000000000000000009 0201 020000000007", "fd00::9", mac(7), false},
		{"another's duplicate address detection", "3333ff000009 020000000009 " + v6 + "00000000000000000000000000000000 ff0200000000000000000001ff000009 8700 0000 00000000 fd000000000000000000000000000009", "fd00::9", mac(9), false},
		{"own, come back", "3333ff000009 020000000001 " + v6 + "00000000000000000000000000000000 ff0200000000000000000001ff000009 8700 0000 00000000 fd000000000000000000000000000009", "", mac(0), false},
		{"solicitation of one who looks for it", "3333ff000009 020000000008 " + v6 + "fd000000000000000000000000000008 ff0200000000000000000001ff000009 8700 0000 00000000 fd000000000000000000000000000009", "", mac(0), false},
		{"advertisement that was routed", "333300000001 020000000009 86dd 60000000 0018 3a fe fd000000000000000000000000000009 ff020000000000000000000000000001 8800 0000 20000000 fd000000000000000000000000000009", "", mac(0), false},
		{"echo reply", "020000000001 020000000009 " + v6 + "fd000000000000000000000000000009 fd000000000000000000000000000001 8100 0000 00000000 fd000000000000000000000000000009", "", mac(0), true},
		{"IPv4", "020000000001 020000000009 0800 45000000", "", mac(0), true},
		{"UDP over IPv6", "020000000001 020000000009 86dd 60000000 0018 11 ff fd000000000000000000000000000009 fd000000000000000000000000000001 8800 0000 20000000 fd000000000000000000000000000009", "", mac(0), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := raw(t, c.frame)
			ip, who, ok := claim(frame, mac(1))
			if ok != (c.ip != "") || ok && (ip != addr(c.ip) || who != c.mac) {
				t.Errorf("claim: %s by %s, %v; want %q by %s", ip, who, ok, c.ip, c.mac)
			}
			vm, err := bpf.NewVM(probes)
			if err != nil {
				t.Fatal(err)
			}
			n, err := vm.Run(frame)
			if err != nil {
				t.Fatal(err)
			}
			if (n == 0) != c.filtered {
				t.Errorf("filter passes %d bytes", n)
			}
		})
	}
}

func FuzzClaim(f *testing.F) {
	f.Add(frame.Probe(mac(2), addr("192.0.2.9")))
	f.Add(frame.Probe(mac(2), addr("fd00::9")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ip, who, ok := claim(b, mac(1)); ok && (!ip.IsValid() || ip.IsUnspecified() && ip.Is4() || who == mac(1)) {
			t.Errorf("claim of %s by %s", ip, who)
		}
	})
}
