package transport

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

func TestRefusalsAreFewAndLoggedSparingly(t *testing.T) {
	log, j := logrus.New(), &journal{}
	log.SetOutput(j)
	rs := refusals{log: log}
	lines := func() int { return strings.Count(j.String(), "\n") }
	peer := func(i, port int) netip.AddrPort {
		return netip.MustParseAddrPort(fmt.Sprintf("10.0.%d.%d:%d", i/256, i%256, port))
	}
	now := time.Unix(1_000_000, 0)
	add := func(p netip.AddrPort, outgoing bool, c Cause) {
		rs.add(Refusal{Time: now, Peer: p, Outgoing: outgoing, Cause: c, Reason: "because"})
	}

	for port := range 5 { // one peer, a new source port each time
		add(peer(1, 40000+port), false, OtherKey)
	}
	add(peer(2, 7950), true, OtherKey) // its caller has the error
	add(peer(3, 7950), false, NoCluster)
	add(peer(3, 7950), true, Unreachable)
	add(peer(3, 7950), true, "")
	if got := rs.list(now); len(got) != 2 || got[0].Count+got[1].Count != 6 || lines() != 1 {
		t.Errorf("%d lines, %+v", lines(), got)
	}
	now = now.Add(logEvery)
	add(peer(1, 50000), false, OtherKey)
	if lines() != 2 {
		t.Errorf("%d lines, want a second one after a minute", lines())
	}

	for i := range 1000 { // a scan from everywhere
		add(peer(i+10, 1), false, NotIsthmus)
	}
	if got := len(rs.list(now)); got != refusalsKept {
		t.Errorf("%d are kept", got)
	}
	if lines() > 2+logBurst {
		t.Errorf("%d lines in a minute", lines())
	}
	now = now.Add(time.Second)
	add(peer(9, 1), false, OtherKey)
	if got := rs.list(now)[0]; got.Peer != peer(9, 1) {
		t.Errorf("newest first, not %+v", got)
	}
	rs.clear(peer(9, 2), false)
	if got := rs.list(now)[0]; got.Peer == peer(9, 1) {
		t.Error("still listed after it got through")
	}
	if got := rs.list(now.Add(refusalAge)); len(got) != 0 {
		t.Errorf("%d old ones are listed", len(got))
	}
}
