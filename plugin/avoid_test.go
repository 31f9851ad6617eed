package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"

	"github.com/isthmus-net/isthmus/cluster"
)

// TestAvoidRoutesOfMembers: what any member routes is avoided, also when the
// member is down by then, and a member that hangs holds nobody up.
func TestAvoidRoutesOfMembers(t *testing.T) {
	log, _ := test.NewNullLogger()
	member := func(id string, last byte) cluster.Member {
		return cluster.Member{ID: cluster.HostID(id), State: cluster.Alive, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 7950)}
	}
	members := []cluster.Member{member("self", 1), member("b", 2), member("c", 3)}
	prefix := netip.MustParsePrefix
	answers := map[netip.AddrPort][]netip.Prefix{
		members[1].Address: {prefix("172.20.0.0/16"), prefix("10.0.0.0/8")},
	}
	a := avoided{
		own:     func(context.Context) ([]netip.Prefix, error) { return []netip.Prefix{prefix("10.0.0.0/8")}, nil },
		members: func() []cluster.Member { return members },
		ask: func(ctx context.Context, at netip.AddrPort) ([]netip.Prefix, error) {
			if r, ok := answers[at]; ok {
				return r, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		},
		self:  "self",
		bound: 20 * time.Millisecond,
		log:   log,
	}
	want := []netip.Prefix{prefix("10.0.0.0/8"), prefix("172.20.0.0/16")}
	got, err := a.Routes(t.Context())
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("avoids %v, %v; want %v", got, err, want)
	}
	members[1].State, members[2].State = cluster.Failed, cluster.Failed
	if got, err := a.Routes(t.Context()); err != nil || !slices.Equal(got, want) {
		t.Errorf("with the member down it avoids %v, %v; want %v", got, err, want)
	}
	a.own = func(context.Context) ([]netip.Prefix, error) { return nil, errors.New("no netlink") }
	if _, err := a.Routes(t.Context()); err == nil {
		t.Error("a host that cannot read its own routes picked a pool")
	}
}
