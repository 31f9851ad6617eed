package gossip

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// The key of an entry begins with its kind. Hosts of an older version pass on
// kinds, and trailing bytes of values, that they do not know.
const (
	addressKey = "a" // where the host is reached, for hosts that never met it
	infoKey    = "i"
	leftKey    = "l" // the host left; it holds nothing
	recordKind = 'r'
)

const (
	maxKey   = 64
	maxValue = 4096
	maxName  = 255
)

// entriesOf makes the entries of a stream.
func entriesOf(info cluster.HostInfo, records []cluster.Record) map[string]string {
	entries := make(map[string]string, len(records)+1)
	// A struct of strings, numbers and an address always marshals.
	b, _ := json.Marshal(info)
	entries[infoKey] = string(b)
	for _, r := range records {
		entries[keyOf(r.Key())] = encodeRecord(r)
	}
	return entries
}

func keyOf(k cluster.RecordKey) string {
	b := make([]byte, 0, 21)
	b = append(b, recordKind)
	b = binary.BigEndian.AppendUint32(b, k.Network)
	return string(append(b, k.Endpoint[:]...))
}

func encodeRecord(r cluster.Record) string {
	b := make([]byte, 0, 64)
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

// decodeRecord reports false for an entry that is no record, or a broken one.
func decodeRecord(key, value string) (cluster.Record, bool) {
	if len(key) != 21 || key[0] != recordKind {
		return cluster.Record{}, false
	}
	r := cluster.Record{Network: binary.BigEndian.Uint32([]byte(key[1:5]))}
	copy(r.Endpoint[:], key[5:])
	d := decoder{b: []byte(value)}
	copy(r.MAC[:], d.bytes(6))
	r.IPv4 = d.addr()
	r.IPv6 = d.addr()
	r.Lease4 = d.uvarint()
	r.Lease6 = d.uvarint()
	r.Name = d.text(maxName)
	return r, !d.failed
}

// viewOf decodes the entries of a stream. Broken ones are left out: their
// owner signed them, and nobody else can mend them.
func viewOf(owner cluster.HostID, v version, entries []entry) cluster.Stream {
	s := cluster.Stream{
		Owner: owner, Epoch: v.epoch, Seq: v.seq,
		Records: make(map[cluster.RecordKey]cluster.Record, len(entries)),
	}
	for _, e := range entries {
		if e.key == infoKey {
			// What does not parse leaves the zero value.
			_ = json.Unmarshal([]byte(e.value), &s.Info)
		} else if r, ok := decodeRecord(e.key, e.value); ok {
			s.Records[r.Key()] = r
		}
	}
	return s
}
