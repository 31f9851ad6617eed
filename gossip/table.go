package gossip

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

var (
	// errGap: the update builds on a version that is not here; ask for it.
	errGap = errors.New("update does not follow on the version held")
	// errDiverged: the update does not lead to the content that its owner
	// signed. Either it was changed on its way, or the version held is a fork
	// of the owner's (its disk was rolled back): ask for a snapshot.
	errDiverged = errors.New("update leads to another content than its owner signed")
	// errForged: not signed by the owner.
	errForged = errors.New("update is not signed by its owner")
)

// logSize is how many changes of a stream are kept to make deltas of.
const logSize = 1024

// version orders the states of one stream. The hash of the content decides
// between two forks that have the same epoch and seq, so that all hosts choose
// the same one.
type version struct {
	epoch uint32
	seq   uint64
	hash  [32]byte
}

func (v version) compare(w version) int {
	return cmp.Or(cmp.Compare(v.epoch, w.epoch), cmp.Compare(v.seq, w.seq), bytes.Compare(v.hash[:], w.hash[:]))
}

// head is a version as its owner signed it. The key hashes to the owner's id.
type head struct {
	version
	key ed25519.PublicKey
	sig []byte
}

func (h head) owner() cluster.HostID { return cluster.HostIDOf(h.key) }

func (v version) signed() []byte {
	b := []byte("isthmus/1 stream")
	b = binary.BigEndian.AppendUint32(b, v.epoch)
	b = binary.BigEndian.AppendUint64(b, v.seq)
	return append(b, v.hash[:]...)
}

func (h head) genuine() bool {
	return len(h.key) == ed25519.PublicKeySize && ed25519.Verify(h.key, h.signed(), h.sig)
}

// entry is one fact of a stream. As a change, an empty value deletes.
type entry struct{ key, value string }

func byKey(a, b entry) int { return cmp.Compare(a.key, b.key) }

// update leads to the version of its head: full ones from anywhere, others
// from any version of the epoch with a seq of at least from. Each change
// raises seq by one.
type update struct {
	head
	full bool
	from uint64
	ops  []entry
}

// summary is what a digest says of a stream.
type summary struct {
	owner cluster.HostID
	epoch uint32
	seq   uint64
	mark  [8]byte // first bytes of the content's hash
}

func (s summary) compare(t summary) int {
	return cmp.Or(cmp.Compare(s.epoch, t.epoch), cmp.Compare(s.seq, t.seq), bytes.Compare(s.mark[:], t.mark[:]))
}

// stream is one owner's entries at one version. It is never changed, only
// replaced.
type stream struct {
	head
	entries []entry // by key
	log     []entry // the newest changes; log[i] led to seq floor+1+i
	floor   uint64
	view    cluster.Stream // entries, decoded; not of the own stream
}

// get returns the value of an entry, empty if there is none.
func (s *stream) get(key string) string {
	if i, ok := slices.BinarySearchFunc(s.entries, entry{key: key}, byKey); ok {
		return s.entries[i].value
	}
	return ""
}

func (s *stream) summary(owner cluster.HostID) summary {
	return summary{owner, s.epoch, s.seq, [8]byte(s.hash[:])}
}

// table is the streams of all hosts that were heard of. It knows no clock, no
// network and no other goroutine.
type table struct {
	self     cluster.HostID
	identity ed25519.PrivateKey
	epoch    uint32 // of the own stream, which begins with the first publish
	seen     uint32 // highest epoch of the own stream that others showed
	streams  map[cluster.HostID]*stream
	forked   map[cluster.HostID]bool // to be asked for in full
	hash     [32]byte                // root, valid unless stale
	stale    bool
}

func newTable(identity ed25519.PrivateKey, epoch uint32) *table {
	return &table{
		self:     cluster.HostIDOf(identity.Public().(ed25519.PublicKey)),
		identity: identity,
		epoch:    epoch,
		streams:  map[cluster.HostID]*stream{},
		forked:   map[cluster.HostID]bool{},
		stale:    true,
	}
}

func (t *table) put(owner cluster.HostID, s *stream) {
	t.streams[owner] = s
	delete(t.forked, owner)
	t.stale = true
}

// drop forgets a stream.
func (t *table) drop(owner cluster.HostID) bool {
	_, ok := t.streams[owner]
	delete(t.streams, owner)
	delete(t.forked, owner)
	t.stale = true
	return ok
}

// publish makes the own stream hold exactly these entries, given by key, and
// reports whether that changed it. The first version of an epoch has no
// history.
func (t *table) publish(entries []entry) bool {
	own := t.streams[t.self]
	next := &stream{entries: entries, floor: 1}
	next.seq = 1
	if own != nil && own.epoch == t.epoch {
		ops := difference(own.entries, entries)
		if len(ops) == 0 {
			return false
		}
		next = own.with(ops)
	}
	next.epoch = t.epoch
	next.hash = hashOf(next.entries)
	next.key = t.identity.Public().(ed25519.PublicKey)
	next.sig = ed25519.Sign(t.identity, next.signed())
	t.put(t.self, next)
	return true
}

// difference lists the changes that lead from one set of entries to another,
// both by key.
func difference(from, to []entry) (ops []entry) {
	for len(from) > 0 || len(to) > 0 {
		switch {
		case len(to) == 0 || len(from) > 0 && from[0].key < to[0].key:
			ops = append(ops, entry{key: from[0].key})
			from = from[1:]
		case len(from) == 0 || to[0].key < from[0].key:
			ops = append(ops, to[0])
			to = to[1:]
		default:
			if from[0].value != to[0].value {
				ops = append(ops, to[0])
			}
			from, to = from[1:], to[1:]
		}
	}
	return ops
}

// with applies changes; the caller fills in the head.
func (s *stream) with(ops []entry) *stream {
	next := &stream{floor: s.floor, log: append(slices.Clip(s.log), ops...)}
	next.seq = s.seq + uint64(len(ops))
	next.entries = patch(s.entries, ops)
	// A delta longer than the snapshot is worth nothing.
	if extra := len(next.log) - min(logSize, max(64, len(next.entries))); extra > 0 {
		next.log = slices.Clone(next.log[extra:])
		next.floor += uint64(extra)
	}
	return next
}

// patch merges changes into entries by key. Of several changes of one key the
// last one counts.
func patch(entries, ops []entry) []entry {
	out := make([]entry, 0, len(entries)+len(ops))
	for _, o := range sorted(slices.Clone(ops)) {
		for len(entries) > 0 && entries[0].key < o.key {
			out = append(out, entries[0])
			entries = entries[1:]
		}
		if len(entries) > 0 && entries[0].key == o.key {
			entries = entries[1:]
		}
		if o.value != "" {
			out = append(out, o)
		}
	}
	return append(out, entries...)
}

func hashOf(entries []entry) [32]byte {
	h := sha256.New()
	b := make([]byte, 0, 8192)
	for _, e := range entries {
		if b = appendText(appendText(b, e.key), e.value); len(b) > 4096 {
			h.Write(b)
			b = b[:0]
		}
	}
	h.Write(b)
	return [32]byte(h.Sum(nil))
}

// merge takes an update in, and reports whether it changed the table. What is
// not newer than the version held changes nothing and is no error. An update
// of the own stream is never taken in, but its epoch is noted.
func (t *table) merge(u update) (bool, error) {
	owner := u.owner()
	have := t.streams[owner]
	if have != nil && u.version.compare(have.version) <= 0 {
		return false, nil
	}
	if !u.genuine() {
		return false, errForged
	}
	if owner == t.self {
		if u.epoch >= t.epoch {
			t.seen = max(t.seen, u.epoch)
		}
		return false, nil
	}
	next := &stream{entries: u.ops, floor: u.seq}
	var was cluster.Stream
	changes := u.ops
	if !u.full {
		if have == nil || have.epoch != u.epoch || have.seq < u.from || u.seq-u.from != uint64(len(u.ops)) {
			return false, errGap
		}
		was, changes = have.view, u.ops[have.seq-u.from:]
		next = have.with(changes)
	} else if !slices.IsSortedFunc(u.ops, byKey) {
		return false, errDiverged
	}
	next.head = u.head
	if hashOf(next.entries) != u.hash {
		t.forked[owner] = true
		return false, errDiverged
	}
	next.view = viewOf(owner, next.version, was, changes)
	t.put(owner, next)
	return true, nil
}

// outdated reports that the own stream was seen in a version that this run did
// not make: it needs a higher epoch than seen.
func (t *table) outdated() bool { return t.seen >= t.epoch }

// raise begins the own stream anew in a higher epoch, with the same content.
func (t *table) raise(epoch uint32) {
	own := t.streams[t.self]
	t.epoch = epoch
	if own == nil {
		return
	}
	t.publish(own.entries)
}

// root is one hash over all streams.
func (t *table) root() [32]byte {
	if t.stale {
		t.hash = sha256.Sum256(appendSummaries(nil, t.summaries()))
		t.stale = false
	}
	return t.hash
}

// digest lists all streams, by owner, for a peer to compare with. Of a stream
// that is to be had in full it claims to hold nothing.
func (t *table) digest() []summary {
	list := t.summaries()
	for i, s := range list {
		if t.forked[s.owner] {
			list[i] = summary{owner: s.owner}
		}
	}
	return list
}

func (t *table) summaries() []summary {
	list := make([]summary, 0, len(t.streams))
	for owner, s := range t.streams {
		list = append(list, s.summary(owner))
	}
	slices.SortFunc(list, func(a, b summary) int { return cmp.Compare(a.owner, b.owner) })
	return list
}

// compare sets the table against another's digest. Both lists name streams at
// the version held by the side that is behind: wants are what this table asks
// for, gives what the other will want.
func (t *table) compare(theirs []summary) (wants, gives []summary) {
	known := make(map[cluster.HostID]bool, len(theirs))
	for _, their := range theirs {
		known[their.owner] = true
		mine := summary{owner: their.owner}
		if s := t.streams[their.owner]; s != nil {
			mine = s.summary(their.owner)
		} else if their.owner == t.self && their.epoch < t.epoch {
			continue // what this host said before it restarted
		}
		switch mine.compare(their) {
		case -1:
			if t.forked[their.owner] {
				mine = summary{owner: their.owner}
			}
			wants = append(wants, mine)
		case 1:
			gives = append(gives, their)
		}
	}
	for owner := range t.streams {
		if !known[owner] {
			gives = append(gives, summary{owner: owner})
		}
	}
	return wants, gives
}

// since makes the update that leads from the version have to the one held.
func (t *table) since(have summary) (update, bool) {
	s := t.streams[have.owner]
	if s == nil || s.summary(have.owner).compare(have) <= 0 {
		return update{}, false
	}
	if have.epoch == s.epoch && have.seq >= s.floor && have.seq < s.seq {
		return update{head: s.head, from: have.seq, ops: s.log[have.seq-s.floor:]}, true
	}
	return update{head: s.head, full: true, ops: s.entries}, true
}

// newest makes an update of a stream that is at most limit bytes long: the
// whole of it if that fits, else as many of its newest changes as do.
func (t *table) newest(owner cluster.HostID, limit int) (update, bool) {
	s := t.streams[owner]
	if s == nil {
		return update{}, false
	}
	const overhead = 32 + 5 + 10 + 32 + 64 + 1 + 10 + 5
	fits := func(list []entry) (n int) {
		for size := overhead; n < len(list); n++ {
			e := list[len(list)-1-n]
			if size += 4 + len(e.key) + len(e.value); size > limit {
				break
			}
		}
		return n
	}
	if fits(s.entries) == len(s.entries) {
		return update{head: s.head, full: true, ops: s.entries}, true
	}
	n := fits(s.log)
	return update{head: s.head, from: s.seq - uint64(n), ops: s.log[len(s.log)-n:]}, true
}
