package driver

import (
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// Who the way out of a network is, as isthmus networks says it.
func TestGatewayStatus(t *testing.T) {
	v := View{Members: []cluster.Member{{ID: "one", Info: cluster.HostInfo{Name: "host1"}}, {ID: "two", Info: cluster.HostInfo{Name: "host2"}}}}
	for _, c := range []struct {
		gateway, option string
		router          cluster.HostID
		want            string
	}{
		{"", "", "", "docker"},
		{"", "none", "", "none"},
		{"distributed", "distributed", "", "distributed"},
		{"host:host2", "host:host2", "two", "host:host2"},
		{"host:host2", "host:host2", "one", "host:host2, now host1"},
		{"host:host2", "host:host2", "", "host:host2"}, // nobody holds the network
	} {
		s := &segment{held: held{Network: Network{Def: cluster.Definition{Gateway: c.gateway}, Options: Options{Gateway: c.option}}}, Router: c.router}
		if got := s.gatewayStatus(v); got != c.want {
			t.Errorf("%+v: %q, want %q", c, got, c.want)
		}
	}
}
