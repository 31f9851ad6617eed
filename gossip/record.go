package gossip

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// The key of an entry begins with its kind. Hosts of an older version pass on
// kinds, and trailing bytes of values, that they do not know.
const (
	addressKey = "a" // where the host is reached, for hosts that never met it
	infoKey    = "i"
	leftKey    = "l" // the host left; it holds nothing
	recordKind = 'r'
	claimKind  = 'c'
)

const (
	maxKey   = 64
	maxValue = 4096
	maxName  = 255
)

// entriesOf makes the entries of a stream, by key. Of two records with one key
// the later one counts.
func entriesOf(info cluster.HostInfo, records []cluster.Record) []entry {
	entries := make([]entry, 0, len(records)+3)
	for _, r := range records {
		entries = append(entries, entry{keyOf(r.Key()), encodeRecord(r)})
	}
	// A struct of strings, numbers and an address always marshals.
	b, _ := json.Marshal(info)
	return sorted(append(entries, entry{infoKey, string(b)}))
}

// sorted puts entries in order, the last one of each key.
func sorted(entries []entry) []entry {
	slices.Reverse(entries)
	slices.SortStableFunc(entries, byKey)
	return slices.CompactFunc(entries, func(a, b entry) bool { return a.key == b.key })
}

func keyOf(k cluster.RecordKey) string {
	b := make([]byte, 0, 21)
	if k.Claim != 0 {
		return string(binary.BigEndian.AppendUint64(append(b, claimKind), k.Claim))
	}
	b = append(b, recordKind)
	b = binary.BigEndian.AppendUint32(b, k.Network)
	return string(append(b, k.Endpoint[:]...))
}

func encodeRecord(r cluster.Record) string {
	b := make([]byte, 0, 64)
	if r.Claim.Lease != 0 {
		b = appendText(b, r.Claim.Pool.Space)
		b = appendPrefix(appendPrefix(b, r.Claim.Pool.Prefix), r.Claim.Block)
		return string(binary.AppendUvarint(b, r.Claim.Without))
	}
	b = append(b, r.MAC[:]...)
	b = appendAddr(b, r.IPv4)
	b = appendAddr(b, r.IPv6)
	b = binary.AppendUvarint(b, r.Lease4)
	b = binary.AppendUvarint(b, r.Lease6)
	name := r.Name[:min(len(r.Name), maxName)]
	b = binary.AppendUvarint(b, uint64(len(name)))
	return string(append(b, name...))
}

func appendAddr(b []byte, a netip.Addr) []byte {
	s := a.AsSlice()
	return append(append(b, byte(len(s))), s...)
}

func appendPrefix(b []byte, p netip.Prefix) []byte {
	return append(appendAddr(b, p.Addr()), byte(p.Bits()))
}

// recordKeyOf reports false for the key of an entry that is no record.
func recordKeyOf(key string) (k cluster.RecordKey, ok bool) {
	if len(key) == 9 && key[0] == claimKind {
		k.Claim = binary.BigEndian.Uint64([]byte(key[1:]))
		return k, k.Claim != 0
	}
	if len(key) != 21 || key[0] != recordKind {
		return k, false
	}
	k.Network = binary.BigEndian.Uint32([]byte(key[1:5]))
	copy(k.Endpoint[:], key[5:])
	return k, true
}

// decodeRecord reports false for a value that is none.
func decodeRecord(k cluster.RecordKey, value string) (cluster.Record, bool) {
	r := cluster.Record{Network: k.Network, Endpoint: k.Endpoint}
	d := decoder{b: []byte(value)}
	if k.Claim != 0 {
		r.Claim = cluster.Claim{Lease: k.Claim, Pool: cluster.PoolKey{Space: d.text(maxName), Prefix: d.prefix()}, Block: d.prefix(), Without: d.uvarint()}
		return r, !d.failed
	}
	copy(r.MAC[:], d.bytes(6))
	r.IPv4 = d.addr()
	r.IPv6 = d.addr()
	r.Lease4 = d.uvarint()
	r.Lease6 = d.uvarint()
	r.Name = d.text(maxName)
	return r, !d.failed
}

// viewOf decodes entries on top of an earlier view. Broken ones are left out:
// their owner signed them, and nobody else can mend them.
func viewOf(owner cluster.HostID, v version, was cluster.Stream, changes []entry) cluster.Stream {
	s := cluster.Stream{Owner: owner, Epoch: v.epoch, Seq: v.seq, Info: was.Info, Records: maps.Clone(was.Records)}
	if s.Records == nil {
		s.Records = make(map[cluster.RecordKey]cluster.Record, len(changes))
	}
	for _, e := range changes {
		if e.key == infoKey {
			// What does not parse leaves the zero value.
			s.Info = cluster.HostInfo{}
			_ = json.Unmarshal([]byte(e.value), &s.Info)
		} else if k, ok := recordKeyOf(e.key); ok {
			delete(s.Records, k)
			if r, ok := decodeRecord(k, e.value); ok {
				s.Records[k] = r
			}
		}
	}
	return s
}
