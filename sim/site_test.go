package sim

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// config is what a run starts from. Its text is in the head of a recording.
type config struct {
	hosts    int      // boxes with a host on them; there are two spare boxes more
	pools    []ground // in this order
	faults   []string // kinds of trouble that may come, see the table of events
	mutation string   // the rule that is defeated, "" for none
}

// ground is a pool, and the mode of the network on it.
type ground struct {
	prefix netip.Prefix
	mode   string
}

const spares = 2

func (c config) has(fault string) bool { return slices.Contains(c.faults, fault) }

func (c config) keys() map[string]string {
	var pools []string
	for _, g := range c.pools {
		pools = append(pools, g.prefix.String()+" "+g.mode)
	}
	out := map[string]string{"hosts": strconv.Itoa(c.hosts), "pools": strings.Join(pools, ", "), "faults": strings.Join(c.faults, " ")}
	if c.mutation != "" {
		out["defeated"] = c.mutation
	}
	return out
}

func configOf(keys map[string]string) (config, error) {
	c := config{faults: strings.Fields(keys["faults"]), mutation: keys["defeated"]}
	var err error
	if c.hosts, err = strconv.Atoi(keys["hosts"]); err != nil {
		return c, fmt.Errorf("parse hosts: %w", err)
	}
	for _, s := range strings.Split(keys["pools"], ", ") {
		prefix, mode, _ := strings.Cut(s, " ")
		p, err := netip.ParsePrefix(prefix)
		if err != nil {
			return c, fmt.Errorf("parse pools: %w", err)
		}
		c.pools = append(c.pools, ground{p, mode})
	}
	return c, nil
}

// site is a cluster: machines, the log, and what is between them.
type site struct {
	config
	boxes []*box
	log   *cluster.Registry
	raft  uint64 // the log's own newest position
	// past is every registry that the log had since its last rebuild, oldest
	// first: the copies of the hosts lie somewhere in it.
	past    []*cluster.Registry
	net     []message
	cut     [][]bool // by boxes: no way between them; the last row is the log's
	keys    []cluster.PoolKey
	runs    uint64
	births  int // identities made
	born    []cluster.HostID
	empty   *cluster.Registry
	founded int  // how many of past are never lost
	torn    bool // the registry itself was lost once
	dice    dice
	widest  int            // addresses of the largest pool
	tally   map[string]int // what came about, to see that the world tries enough
	wrong   string         // what a step found broken by itself
	checked *cluster.Registry
}

// message is a command on its way to the log, or an answer on its way back.
type message struct {
	answer bool
	kind   string
	box    int
	run    uint64
	seq    uint64 // of the client's attempt: an answer is for one attempt
	cmd    cluster.Command
	res    cluster.Result
}

const inFlight = 10

func newSite(c config) *site {
	s := &site{config: c, log: rules.New(), empty: rules.New(), tally: map[string]int{}, dice: c.loaded(nil)}
	for i := range c.hosts + spares {
		b := &box{site: s, at: i}
		hw := sha256.Sum256([]byte("machine " + letter(i)))
		b.machine = cluster.Machine{ID: fmt.Sprintf("%x", hw[:4]), UUID: fmt.Sprintf("%x", hw[4:8]), MAC: fmt.Sprintf("02:00:00:00:00:%02x", i)}
		vtep := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		b.vtep, b.address = vtep, netip.AddrPortFrom(vtep, 7950)
		if i < c.hosts {
			s.install(b)
			b.on = true
		}
		s.boxes = append(s.boxes, b)
	}
	s.cut = make([][]bool, len(s.boxes)+1)
	for i := range s.cut {
		s.cut[i] = make([]bool, len(s.boxes)+1)
	}
	// A host that takes no part keeps the networks alive.
	keeper := identityOf("keeper")
	s.apply(cluster.Command{Found: &cluster.Found{Cluster: "00000000c0ffee00"}})
	session := s.apply(cluster.Command{Host: keeper.id, Hello: &cluster.Hello{
		PublicKey: keeper.key, Nonce: 1, Name: "keeper", VTEP: netip.MustParseAddr("192.0.2.250"),
		Address: netip.MustParseAddrPort("192.0.2.250:7950"), Machine: cluster.Machine{ID: "keeper"},
	}}).Index
	request := uint64(0)
	do := func(cmd cluster.Command) {
		request++
		cmd.Host, cmd.Session, cmd.Request = keeper.id, session, request
		if res := s.apply(cmd); res.Refused != nil {
			panic(fmt.Sprintf("make the networks: %v", res.Refused))
		}
	}
	for _, g := range c.pools {
		key := cluster.PoolKey{Prefix: g.prefix}
		s.keys = append(s.keys, key)
		s.widest = max(s.widest, 1<<(32-g.prefix.Bits()))
		do(cluster.Command{AttachPool: &cluster.AttachPool{Prefix: g.prefix}})
		do(cluster.Command{AttachNetwork: &cluster.AttachNetwork{Pools: []cluster.PoolKey{key}, Def: cluster.Definition{Mode: g.mode}}})
	}
	s.founded = len(s.past)
	return s
}

// identity is what a host is known by; its private half is not needed here.
type identity struct {
	id  cluster.HostID
	key ed25519.PublicKey
}

func identityOf(name string) identity {
	seed := sha256.Sum256([]byte(name))
	key := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	return identity{cluster.HostIDOf(key), key}
}

// apply puts a command into the log.
func (s *site) apply(c cluster.Command) cluster.Result {
	s.raft++
	next, res := rules.Apply(s.log, c, s.raft)
	s.log = next
	s.past = append(s.past, next)
	return res
}

func (s *site) ground(key cluster.PoolKey) ground { return s.pools[slices.Index(s.keys, key)] }

// send puts a message on its way. A network that is full loses it.
func (s *site) send(m message) {
	if len(s.net) < inFlight {
		s.net = append(s.net, m)
	}
}

// reaches reports whether two boxes hear each other.
func (s *site) reaches(a, b int) bool { return !s.cut[a][b] }

func (s *site) reachesLog(a int) bool { return !s.cut[a][len(s.boxes)] }

// deliver brings the n-th message of a box and kind to where it goes; with
// again, it stays on its way as well.
func (s *site) deliver(kind string, at, n int, again bool) bool {
	i := s.find(kind, at, n)
	if i < 0 || !s.reachesLog(at) {
		return false
	}
	m := s.net[i]
	if again && m.answer {
		return false // an answer comes on a stream
	}
	if !again {
		s.net = slices.Delete(slices.Clone(s.net), i, i+1)
	}
	if m.answer {
		s.boxes[at].answered(m)
		return true
	}
	res := s.commit(m)
	s.send(message{answer: true, kind: "answer", box: m.box, run: m.run, seq: m.seq, res: res, cmd: m.cmd})
	return true
}

func (s *site) find(kind string, at, n int) int {
	for i, m := range s.net {
		if m.box == at && m.kind == kind {
			if n == 0 {
				return i
			}
			n--
		}
	}
	return -1
}

// nth is the inverse of find.
func (s *site) nth(i int) int {
	n := 0
	for _, m := range s.net[:i] {
		if m.box == s.net[i].box && m.kind == s.net[i].kind {
			n++
		}
	}
	return n
}

// commit is what the leader does with a command that arrived.
func (s *site) commit(m message) cluster.Result {
	c := m.cmd
	if c.Hello != nil {
		// The leader asks the registered address first: a run that is alive there
		// under the same identity is not to be ended by another one.
		if h, ok := s.log.Hosts[c.Host]; ok && h.Session != 0 && h.Nonce != c.Hello.Nonce && s.mutation != "clone check" {
			for _, b := range s.boxes {
				if b.address == h.Address && b.run != nil && b.run.nonce == h.Nonce && b.id == c.Host && s.reachesLog(b.at) {
					s.tally["hello refused: alive"]++
					return cluster.Result{Refused: cluster.Refuse(cluster.Clone, "host %s is alive elsewhere", h.Name)}
				}
			}
		}
	}
	c = s.alter(c)
	before := s.log
	undo := s.disguise(c)
	res := s.apply(c)
	undo()
	s.judge(before, c, res)
	if why := res.Refused; why != nil {
		s.tally[kindOfCommand(c)+" refused: "+string(why.Code)]++
	} else {
		s.tally[kindOfCommand(c)]++
	}
	return res
}

// judge holds one entry of the log against the rules that are about steps.
func (s *site) judge(before *cluster.Registry, c cluster.Command, res cluster.Result) {
	if s.mutation != "" {
		return // what is defeated is seen by its outcome
	}
	for id, l := range before.Leases {
		if _, still := s.log.Leases[id]; still {
			continue
		}
		switch {
		case c.Release != nil && c.Release.Lease == id && c.Host == l.Holder && c.Session == before.Hosts[c.Host].Session:
		case c.Forget != nil && c.Forget.Host == l.Holder:
		case c.Confirm != nil && c.Host == l.Holder && before.Hosts[c.Host].Tombstone:
		case c.Leave != nil && c.Host == l.Holder:
		default:
			s.fail("I4: lease %d of %s ended by %+v", id, before.HostName(l.Holder), c)
		}
	}
	for id, h := range before.Hosts {
		if now, ok := s.log.Hosts[id]; h.Tombstone && (!ok || !now.Tombstone || now.Session != 0) {
			s.fail("I5: host %s was forgotten and came back", h.Name)
		}
	}
}

func (s *site) fail(format string, args ...any) {
	if s.wrong == "" {
		s.wrong = fmt.Sprintf(format, args...)
	}
}
