package transport

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestBothEndsJudgeAPreludeAlike(t *testing.T) {
	for _, clusters := range [][2]cluster.ID{{"a", "a"}, {"a", "b"}, {"", "a"}, {"", ""}} {
		for _, p := range protocols {
			x := prelude{Version: 1, Cluster: clusters[0], Host: "hx"}
			y := prelude{Version: 1, Cluster: clusters[1], Host: "hy"}
			there, back := x.check(y, p, "hy"), y.check(x, p, "hx")
			if causeOf(there) != causeOf(back) || (there == nil) != (back == nil) {
				t.Errorf("%v %s: %v, but %v", clusters, p, there, back)
			}
			want := Cause("")
			switch {
			case clusters[0] != "" && clusters[0] != clusters[1]:
				want = OtherCluster
			case clusters[0] == "" && p != RPC:
				want = NoCluster
			}
			if causeOf(there) != want {
				t.Errorf("%v %s: %v, want %q", clusters, p, there, want)
			}
		}
	}
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	if err := writeJSON(&b, 10, "12345678"); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(b.Bytes())
	if got, err := readFrame(iotest.OneByteReader(&b), 10); string(got) != `"12345678"` || err != nil {
		t.Errorf("read %s, %v", got, err)
	}
	if err := writeJSON(&b, 10, "123456789"); err == nil || b.Len() != 0 {
		t.Errorf("wrote beyond the limit: %v", err)
	}
	if _, err := readFrame(bytes.NewReader(whole), 9); err == nil {
		t.Error("read beyond the limit")
	}
	for n := range whole {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, err := readFrame(bytes.NewReader(whole[:n]), 10); !errors.Is(err, want) {
			t.Errorf("read %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func FuzzPrelude(f *testing.F) {
	var b bytes.Buffer
	if err := writeJSON(&b, preludeLimit, prelude{Version: 1, Cluster: "c1", Host: "h1"}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	own := prelude{Version: wireVersion, Cluster: "c1", Host: "h0"}
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := readFrame(bytes.NewReader(b), preludeLimit)
		if err != nil {
			return
		}
		if len(frame) > preludeLimit {
			t.Fatalf("frame of %d bytes", len(frame))
		}
		p, err := parsePrelude(frame)
		if err != nil {
			return
		}
		if own.check(p, Gossip, "h1") == nil && (p.Cluster != "c1" || p.Host != "h1" || p.Version != wireVersion) {
			t.Errorf("let in %+v", p)
		}
	})
}
