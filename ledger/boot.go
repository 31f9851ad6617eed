package ledger

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

var standingKey = []byte("session") // standing

// standing is what this host knows on its own of its newest session, and of the
// machine that it ran on. The nonce is stored before the Hello is said, and the
// session before it is used: who knows of a newer session under another nonce
// knows more than this disk.
type standing struct {
	Session uint64          `json:"session"`
	Nonce   uint64          `json:"nonce"`
	Machine cluster.Machine `json:"machine"`
	// Forgotten is what the cluster said when it had taken this host out; "" while
	// it has not. It is stored before Confirm leaves.
	Forgotten string `json:"forgotten,omitempty"`
}

// boot is what a run found out about the disk that it started from.
type boot struct {
	settled  bool     // the first round of questions is over
	bare     bool     // nothing is stored that could be old
	standing standing // as it was at the start
	machine  string   // why this may be a copy on another machine
	seen     string   // why this may be an older state
	witness  cluster.Witness
}

// openBoot looks at what the disk alone says.
func (l *Ledger) openBoot() error {
	if err := l.read(standingKey, &l.boot.standing); err != nil {
		return err
	}
	l.stands = l.boot.standing
	l.boot.bare = l.id == "" && l.boot.standing == (standing{})
	l.boot.machine = otherMachine(l.boot.standing.Machine, l.cfg.Self.Machine)
	switch h := l.Registry().Hosts[l.cfg.Host]; {
	case l.stands.Forgotten != "":
		l.refused = cluster.Refuse(cluster.Forgotten, "%s", l.stands.Forgotten)
	case h.Tombstone:
		l.refused = rules.Forgotten(h)
	}
	if h, ok := l.Registry().Hosts[l.cfg.Host]; ok {
		l.boot.machine = cmp.Or(l.boot.machine, otherMachine(h.Machine, l.cfg.Self.Machine))
		if h.Session > l.boot.standing.Session {
			l.boot.standing.Session, l.boot.standing.Nonce = h.Session, h.Nonce
		}
	}
	return nil
}

// otherMachine says by what a machine is another than the one that was, as far
// as both are known. It is stricter than the rule by which the cluster tells a
// clone: a doubt ends with the Hello, a refusal does not.
func otherMachine(was, is cluster.Machine) string {
	for _, f := range []struct{ what, was, is string }{
		{"machine id", was.ID, is.ID}, {"product UUID", was.UUID, is.UUID}, {"MAC address", was.MAC, is.MAC},
	} {
		if f.was != "" && f.is != "" && f.was != f.is {
			return fmt.Sprintf("its %s is %s, and was %s when the cluster last heard of it", f.what, f.is, f.was)
		}
	}
	return ""
}

// Boot says what this host may believe of its own disk in this run. It changes
// with time, which Subscribe tells: a start is Settled within 1.2 s after Run
// began, at once when there is nobody to ask (JOIN is empty, and neither the
// registry nor UpdateAddresses knows another host), or nothing is stored; a Suspect may come
// later, with who testifies it, and ends when the cluster has confirmed the run
// ([Ledger.Fresh]).
func (l *Ledger) Boot() cluster.Boot {
	fresh := l.Fresh()
	l.mu.Lock()
	settled := fresh || l.boot.settled
	l.mu.Unlock()
	settled = settled || len(l.witnesses()) == 0
	l.mu.Lock()
	defer l.mu.Unlock()
	out := cluster.Boot{Settled: settled, Witness: l.boot.witness}
	if fresh {
		return out
	}
	// The cluster's own word says more than what raised the doubt, and what to do.
	if r := l.refused; r != nil && (r.Code == cluster.Clone || r.Code == cluster.Forgotten) {
		out.Suspect = r.Text
		return out
	}
	var why []string
	if l.boot.machine != "" {
		why = append(why, "this may be a copy of the host on another machine: "+l.boot.machine)
	}
	if l.boot.seen != "" {
		why = append(why, l.boot.seen)
	}
	if l.cfg.Strict {
		why = append(why, "STRICT_BOOT is on, and the cluster has not confirmed this host since it started")
	}
	out.Suspect = strings.Join(why, "; ")
	return out
}

// keepStanding is called before a Hello is said (session 0), and with the
// session that it opened before that one is used. What cannot be written makes
// the next start suspect, no more.
func (l *Ledger) keepStanding(session uint64) {
	err := l.stand(func(s *standing) {
		s.Nonce = l.nonce
		if session != 0 { // the cluster took this machine for the host's
			*s = standing{Session: session, Nonce: l.nonce, Machine: l.cfg.Self.Machine}
		}
	})
	if err != nil {
		l.log.WithError(err).Warn("the next start will wait for the cluster")
	}
}

// keepForgotten stores that the cluster took this host out, so that no later
// start trusts anything here: a copy may be on disk that does not tell.
func (l *Ledger) keepForgotten() error {
	l.mu.Lock()
	why := l.refused
	l.mu.Unlock()
	if why == nil || why.Code != cluster.Forgotten {
		return cluster.Refuse(cluster.Invalid, "this host was not told that it was removed from the cluster, so it has nothing to confirm: to take it out, run `isthmus leave` here")
	}
	if err := l.stand(func(s *standing) { s.Forgotten = why.Text }); err != nil {
		return fmt.Errorf("store that this host was removed: %w", err)
	}
	return nil
}

// stand changes what is on disk of this host's standing. The caller holds the
// turn, so that no other change comes between.
func (l *Ledger) stand(change func(*standing)) error {
	l.mu.Lock()
	now := l.stands
	l.mu.Unlock()
	next := now
	if change(&next); next == now {
		return nil
	}
	if err := l.write(standingKey, next); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stands = next
	return nil
}
