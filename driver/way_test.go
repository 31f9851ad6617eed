package driver

import (
	"net/netip"
	"testing"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// TestVerdicts: a way is believed after two answers in a row and given up after three
// misses in a row; another next hop begins anew.
func TestVerdicts(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.254")
	for _, tc := range []struct {
		name, answers string // + answered, - missed, > the next hop changes
		native, known bool
	}{
		{"none", "", false, false},
		{"one answer", "+", false, false},
		{"two answers", "++", true, true},
		{"a miss between", "+-+", false, false},
		{"a lost packet", "++-+", true, true},
		{"two lost packets", "++--+", true, true},
		{"gone", "++---", false, true},
		{"never there", "---", false, true},
		{"one answer is no return", "++---+-+", false, true},
		{"back", "++---++", true, true},
		{"another next hop", "++>+", false, false},
		{"another next hop answers", "++>++", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var j verdict
			via := a
			for _, c := range tc.answers {
				if c == '>' {
					via = b
					continue
				}
				j = j.judge(via, c == '+')
			}
			if j.native != tc.native || j.known != tc.known {
				t.Errorf("native %v, known %v", j.native, j.known)
			}
		})
	}
}

// TestSeed: a restarted process believes the routes that it finds.
func TestSeed(t *testing.T) {
	via := netip.MustParseAddr("192.0.2.2")
	probe := kernel.FIB{Dst: netip.MustParsePrefix("10.1.0.8/32"), Via: via, Dev: "eth0"}
	block := kernel.FIB{Dst: netip.MustParsePrefix("10.1.0.8/29"), Via: via, Dev: "eth0"}
	detour := kernel.FIB{Dst: netip.MustParsePrefix("10.1.0.8/29"), Via: via, Dev: "is-v9", Onlink: true}
	for name, tc := range map[string]struct {
		have   kernel.Object
		native bool
	}{"probe route": {probe, false}, "block": {block, true}, "tunnel": {detour, false}} {
		have := kernel.State{}
		have.Put(tc.have)
		if got := seed(have, via); got.native != tc.native || got.via != via {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
