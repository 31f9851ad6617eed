package transport

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// preludeLimit bounds what a peer may say before it is known which cluster it
// belongs to.
const preludeLimit = 1 << 10

// prelude is what each end says first, inside TLS: the dialer, then the
// acceptor.
type prelude struct {
	Version int            `json:"version"`
	Cluster cluster.ID     `json:"cluster"`
	Host    cluster.HostID `json:"host"`
	Refusal string         `json:"refusal,omitempty"` // of the acceptor: why not, where the rest does not show it
	Cause   Cause          `json:"cause,omitempty"`   // of Refusal
}

// printable makes a reason fit to stand in a prelude.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), preludeLimit/2)]
}

func parsePrelude(b []byte) (prelude, error) {
	var p prelude
	if err := json.Unmarshal(b, &p); err != nil {
		return prelude{}, errNotIsthmus("its greeting is garbled")
	}
	// These are shown to people.
	for _, s := range []string{string(p.Cluster), string(p.Host), p.Refusal, string(p.Cause)} {
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			return prelude{}, errNotIsthmus("its greeting is garbled")
		}
	}
	return p, nil
}

// check compares the peer's prelude with this host's own. Both ends come to
// the same answer.
func (own prelude) check(peer prelude, p Protocol, proven cluster.HostID) error {
	switch {
	case peer.Version != own.Version:
		return &fault{cause: OtherVersion, text: fmt.Sprintf("the peer speaks wire version %d and this host %d (run one isthmus release on both)", peer.Version, own.Version)}
	case peer.Host != proven:
		return errNotIsthmus("it claims to be another host than its key proves")
	case peer.Cluster != "" && own.Cluster != "" && peer.Cluster != own.Cluster:
		return &fault{cause: OtherCluster, text: fmt.Sprintf("the peer belongs to cluster %s and this host to cluster %s (run `isthmus reset` on the one that should join the other)", peer.Cluster, own.Cluster)}
	case p == RPC:
		return nil
	case own.Cluster == "":
		return &fault{cause: NoCluster, text: "this host belongs to no cluster yet"}
	case peer.Cluster == "":
		return &fault{cause: NoCluster, text: "the peer belongs to no cluster yet"}
	}
	return nil
}

// writeJSON sends v as a frame.
func writeJSON(w io.Writer, limit int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(w, limit, body)
}

// writeFrame sends its parts behind their common length, in one write.
func writeFrame(w io.Writer, limit int, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > limit {
		return fmt.Errorf("message of %d bytes exceeds the limit of %d", n, limit)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+n), uint32(n))
	for _, p := range parts {
		b = append(b, p...)
	}
	_, err := w.Write(b)
	return err
}

// readFrame reads one message of at most limit bytes. Memory grows with what
// arrives, not with what the length promises.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(limit) {
		return nil, fmt.Errorf("message of %d bytes exceeds the limit of %d", n, limit)
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b.Bytes(), nil
}
