package frame

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func mac(last byte) cluster.MAC { return cluster.MAC{2, 0, 0, 0, 0, last} }

// The checksums (RFC 4443 section 2.3) were computed elsewhere.
func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"ARP probe", Probe(mac(1), addr("192.0.2.9")), `ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 c0000209
			000000000000000000000000000000000000`},
		{"solicitation", Probe(mac(1), addr("fd00::1:2:3")), `3333ff020003 020000000001 86dd 60000000 0018 3a ff 00000000000000000000000000000000
			ff0200000000000000000001ff020003 8700 7d9c 00000000 fd000000000000000000000100020003`},
		{"ARP to one", Announce(mac(7), mac(1), addr("192.0.2.9"), mac(9)), `020000000007 020000000001 0806 0001 0800 06 04 0002 020000000009 c0000209 020000000009 c0000209`},
		{"advertisement to all", Announce(Everybody(addr("fd00::9")), mac(9), addr("fd00::9"), mac(9)), `333300000001 020000000009 86dd 60000000 0020 3a ff
			fd000000000000000000000000000009 ff020000000000000000000000000001 8800 5a83 20000000 fd000000000000000000000000000009 0201 020000000009`},
	} {
		want, err := hex.DecodeString(strings.Join(strings.Fields(c.want), ""))
		if err != nil {
			t.Fatal(err)
		}
		if string(c.got) != string(want) {
			t.Errorf("%s\n%x\nwant\n%x", c.name, c.got, want)
		}
	}
}

func TestChecksum(t *testing.T) {
	// RFC 1071 section 3; an odd last byte counts as if a zero followed.
	if got := Checksum([]byte{0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7}); got != 0x220d {
		t.Errorf("%#x", got)
	}
	if Checksum([]byte{0xab}) != Checksum([]byte{0xab, 0}) {
		t.Error("an odd length differs from one padded by zero")
	}
}
