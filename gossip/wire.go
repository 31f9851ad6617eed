package gossip

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// errMalformed is all that a receiver needs to know of bytes that it cannot
// read.
var errMalformed = errors.New("malformed message")

// decoder reads fields from the front of b; after the first failure it returns
// zero values.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) bytes(n int) []byte {
	if d.failed || n < 0 || n > len(d.b) {
		d.failed = true
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if d.failed || n <= 0 {
		d.failed = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

// text reads a length and that many bytes, at most limit.
func (d *decoder) text(limit int) string {
	n := d.uvarint()
	if n > uint64(limit) {
		d.failed = true
		return ""
	}
	return string(d.bytes(int(n)))
}

func (d *decoder) addr() netip.Addr {
	n := int(d.byte())
	if n == 0 {
		return netip.Addr{}
	}
	a, ok := netip.AddrFromSlice(d.bytes(n))
	if !ok {
		d.failed = true
	}
	return a
}

// prefix reads one in canonical form.
func (d *decoder) prefix() netip.Prefix {
	p := netip.PrefixFrom(d.addr(), int(d.byte()))
	if !p.IsValid() || p != p.Masked() {
		d.failed = true
	}
	return p
}

func (d *decoder) epoch() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.failed = true
	}
	return uint32(v)
}

func (d *decoder) host() cluster.HostID { return cluster.HostID(hex.EncodeToString(d.bytes(16))) }

func appendHost(b []byte, id cluster.HostID) []byte {
	raw, err := hex.DecodeString(string(id))
	if err != nil || len(raw) != 16 {
		raw = make([]byte, 16) // no host has it
	}
	return append(b, raw...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendUpdate(b []byte, u update) []byte {
	b = append(b, u.key...)
	b = binary.AppendUvarint(b, uint64(u.epoch))
	b = binary.AppendUvarint(b, u.seq)
	b = append(b, u.hash[:]...)
	b = append(b, u.sig...)
	full := byte(0)
	if u.full {
		full = 1
	}
	b = append(b, full)
	b = binary.AppendUvarint(b, u.from)
	b = binary.AppendUvarint(b, uint64(len(u.ops)))
	for _, e := range u.ops {
		b = appendText(appendText(b, e.key), e.value)
	}
	return b
}

func (d *decoder) update() update {
	var u update
	u.key = append(u.key, d.bytes(32)...)
	u.epoch = d.epoch()
	u.seq = d.uvarint()
	copy(u.hash[:], d.bytes(32))
	u.sig = append(u.sig, d.bytes(64)...)
	u.full = d.byte() == 1
	u.from = d.uvarint()
	n := d.uvarint()
	if n > uint64(len(d.b))/2 { // an entry takes two bytes at least
		d.failed = true
	}
	if d.failed {
		return update{}
	}
	u.ops = make([]entry, 0, n)
	for range n {
		u.ops = append(u.ops, entry{d.text(maxKey), d.text(maxValue)})
	}
	return u
}

// summaries are all that a message holds, so they need no count.
func appendSummaries(b []byte, list []summary) []byte {
	for _, s := range list {
		b = appendHost(b, s.owner)
		b = binary.AppendUvarint(b, uint64(s.epoch))
		b = binary.AppendUvarint(b, s.seq)
		b = append(b, s.mark[:]...)
	}
	return b
}

func (d *decoder) summaries() []summary {
	var list []summary
	for !d.failed && len(d.b) > 0 {
		var s summary
		s.owner = d.host()
		s.epoch = d.epoch()
		s.seq = d.uvarint()
		copy(s.mark[:], d.bytes(len(s.mark)))
		list = append(list, s)
	}
	return list
}

// maxFrame bounds one message of an exchange.
const maxFrame = 4 << 20

// writeFrame sends one message: length (4 bytes), kind, body.
func writeFrame(w io.Writer, kind byte, body []byte) error {
	if len(body) > maxFrame {
		return fmt.Errorf("send message: %d bytes exceed the limit of %d", len(body), maxFrame)
	}
	b := make([]byte, 0, 5+len(body))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, kind)
	_, err := w.Write(append(b, body...))
	return err
}

// readFrame receives one message. Memory grows with what arrives, not with
// what the length promises.
func readFrame(r io.Reader) (kind byte, body []byte, err error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[:4])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("receive message: %d bytes exceed the limit of %d", n, maxFrame)
	}
	body, err = io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return h[4], body, err
}
