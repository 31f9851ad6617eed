package ledger

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// The disk of a host is set back to before its copy was written the first time:
// the copy knows nobody who could be asked. JOIN does, and so does the address
// book.
func TestBootWithACopyThatKnowsNobody(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	founder, host, witness := nodes[0].start().fresh(), nodes[1], nodes[2].start(join[0]).fresh()
	host.start(join[0]).fresh().kill()
	old := host.image()
	host.start(join[0]).fresh()
	session := host.Registry().Hosts[host.id()].Session
	witness.await("it knows of the newer run", func() bool { return witness.Registry().Hosts[host.id()].Session == session })
	host.kill()
	founder.kill()
	host.dir = old
	host.loseCopy()
	for _, tt := range []struct {
		what string
		join []string
		book map[cluster.HostID]netip.AddrPort
	}{
		{"JOIN", []string{join[2]}, nil},
		{"the address book", nil, map[cluster.HostID]netip.AddrPort{witness.id(): witness.addr}},
	} {
		host.book = tt.book
		host.start(tt.join...)
		var b cluster.Boot
		host.await("it is settled", func() bool { b = host.Boot(); return b.Settled })
		if !strings.Contains(b.Suspect, "the disk was set back") {
			t.Errorf("%s: settled with %+v", tt.what, b)
		}
		host.kill()
	}
	// With neither there is nobody to wait for.
	host.book = nil
	if b := host.start().Boot(); !b.Settled || b.Suspect != "" {
		t.Errorf("nobody to ask: %+v", b)
	}
}

// The very host runs elsewhere, where JOIN finds it.
func TestBootBesideItself(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	host := nodes[1].start(join[0]).fresh()
	host.kill()
	clone := &node{t: t, name: host.name, dir: host.image(), key: host.key, addr: nextAddr()}
	t.Cleanup(clone.kill)
	clone.loseCopy()
	host.start(join[0]).fresh()
	nodes[0].kill()
	clone.start(join[1]).await("it is settled", func() bool { return clone.Boot().Settled })
	if b := clone.Boot(); !strings.Contains(b.Suspect, "runs already at "+host.addr.String()) {
		t.Errorf("%+v", b)
	}
}

// The copy of a witness may not include yet what the witness keeps itself.
func TestAWitnessSaysWhatItKeeps(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[0].start().fresh()
	host, witness := nodes[1].start(join[0]).fresh(), nodes[2].start(join[0]).fresh()
	host.kill()
	nodes[0].kill()
	key := cluster.PoolKey{Prefix: netip.MustParsePrefix(pool)}
	claim := func(lease uint64, block string) map[uint64]cluster.Claim {
		return map[uint64]cluster.Claim{lease: {Lease: lease, Pool: key, Block: netip.MustParsePrefix(block)}}
	}
	keep := func(n *node, c map[uint64]cluster.Claim) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.kept = c
	}
	keep(host, claim(1000, "10.1.0.0/29"))
	for _, tt := range []struct {
		kept map[uint64]cluster.Claim
		says string
	}{
		{claim(1001, "10.1.0.4/32"), "host3 was leased addresses of the block 10.1.0.0/29 after this host"},
		{claim(999, "10.1.0.4/32"), ""},  // then it is the other that is behind
		{claim(1001, "10.1.0.8/32"), ""}, // beside it
	} {
		keep(witness, tt.kept)
		host.start(join[2]).await("it is settled", func() bool { return host.Boot().Settled })
		if got := host.Boot().Suspect; !strings.Contains(got, tt.says) || (got == "") != (tt.says == "") {
			t.Errorf("beside %+v: %q, want %q", tt.kept, got, tt.says)
		}
		host.kill()
	}
}
