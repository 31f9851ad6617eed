package bgp

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// TestCauses holds what users read of each failure. That the library's log
// says what causes expects, the tests with two speakers hold.
func TestCauses(t *testing.T) {
	plain := Peer{Addr: addr("10.0.0.1"), AS: 65000, Port: 179, Source: addr("10.0.0.9")}
	signed := plain
	signed.Password = "x"
	dial := func(err string) map[string]slog.Value {
		return map[string]slog.Value{"Error": slog.StringValue("dial tcp 10.0.0.9:0->10.0.0.1:179: " + err)}
	}
	notification := func(code, subcode int) map[string]slog.Value {
		return map[string]slog.Value{"Code": slog.IntValue(code), "Subcode": slog.IntValue(subcode)}
	}
	for _, tt := range []struct {
		line   string
		peer   Peer
		fields map[string]slog.Value
		want   string
	}{
		{"failed to connect", plain, dial("connect: connection refused"), "add this host as its neighbour"},
		{"failed to connect", plain, dial("i/o timeout"), "or expects a password"},
		{"failed to connect", signed, dial("i/o timeout"), "compare the passwords"},
		{"failed to connect", plain, dial("connect: no route to host"), "no route to it, or nobody there"},
		{"failed to connect", plain, dial("connect: network is unreachable"), "no route to it, or nobody there"},
		{"failed to connect", plain, dial("bind: cannot assign requested address"), "does not have the address 10.0.0.9; correct source="},
		{"failed to connect", plain, dial("connect: permission denied"), "connect to 10.0.0.1 port 179: permission denied"},
		{"outgoing connection IO error", plain, nil, "refused the session: it does not expect AS 65001 from this address"},
		{"sent notification", plain, notification(2, 2), "not of AS 65000; correct as="},
		{"sent notification", plain, notification(2, 3), "set BGP_ROUTER_ID to another"},
		{"sent notification", plain, notification(4, 0), "nothing was heard for the hold time"},
		{"sent notification", plain, notification(5, 1), "does not expect AS 65001 from this address"},
		{"sent notification", plain, notification(6, 4), "BFD hears nothing"},
		{"received notification", plain, notification(2, 2), "does not expect AS 65001 of this host; correct BGP_AS"},
		{"received notification", plain, notification(6, 1), "raise its maximum-prefix"},
		{"received notification", plain, notification(6, 2), "shut down or reconfigured there"},
		{"received notification", plain, notification(3, 1), "10.0.0.1 closed the session: "},
		{"failed to set md5", signed, map[string]slog.Value{"Err": slog.StringValue("invalid argument")}, "set the password of 10.0.0.1: invalid argument"},
		{"cannot set TTL", plain, map[string]slog.Value{"Error": slog.StringValue("invalid argument")}, "set the TTL towards 10.0.0.1: invalid argument"},
	} {
		explain, ok := causes[tt.line]
		if !ok {
			t.Errorf("no cause for %q", tt.line)
			continue
		}
		if got := explain(tt.peer, 65001, func(key string) slog.Value { return tt.fields[key] }); !strings.Contains(got, tt.want) {
			t.Errorf("%s %v: %q, want %q", tt.line, tt.fields, got, tt.want)
		}
	}
	for reason, want := range map[api.PeerState_DisconnectReason]string{
		api.PeerState_DISCONNECT_REASON_READ_FAILED:        "without a word",
		api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:   "without a word",
		api.PeerState_DISCONNECT_REASON_HOLD_TIMER_EXPIRED: "for the hold time",
	} {
		if got := lost(plain, reason); !strings.Contains(got, want) {
			t.Errorf("%v: %q, want %q", reason, got, want)
		}
	}
	if got := lost(plain, api.PeerState_DISCONNECT_REASON_NOTIFICATION_RECEIVED); got != "" {
		t.Errorf("a notification is explained twice: %q", got)
	}
}

func TestNextHop(t *testing.T) {
	reach := func(family bgp.Family, hop string) bgp.PathAttributeInterface {
		nlri, err := bgp.NewIPAddrPrefix(prefix("fd00::/64"))
		if err != nil {
			t.Fatal(err)
		}
		a, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, addr(hop))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	plain, err := bgp.NewPathAttributeNextHop(addr("192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		attr bgp.PathAttributeInterface
		want string
	}{
		{plain, "192.0.2.1"},
		{reach(bgp.RF_IPv6_UC, "2001:db8::1"), "2001:db8::1"},
		{reach(bgp.RF_IPv4_UC, "fe80::1"), "fe80::1%eth7"},
	} {
		got := nextHop(&apiutil.Path{PeerAddress: addr("fe80::9%eth7"), Attrs: []bgp.PathAttributeInterface{tt.attr}})
		if got != addr(tt.want) {
			t.Errorf("next hop %v, want %s", got, tt.want)
		}
	}
	if got := nextHop(&apiutil.Path{}); got != (netip.Addr{}) {
		t.Errorf("next hop of nothing: %v", got)
	}
}
