package founding

import (
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestMeet(t *testing.T) {
	for _, tt := range []struct {
		own        cluster.ID
		empty      bool
		other      cluster.ID
		otherEmpty bool
		want, back Verdict
	}{
		{"a", false, "b", false, Apart, Apart},
		{"a", true, "b", false, Dissolve, Stay},
		{"b", true, "a", false, Dissolve, Stay},
		{"a", true, "b", true, Stay, Dissolve},
	} {
		if got := Meet(tt.own, tt.empty, tt.other, tt.otherEmpty); got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
		if got := Meet(tt.other, tt.otherEmpty, tt.own, tt.empty); got != tt.back {
			t.Errorf("%+v, the other way round: %s", tt, got)
		}
	}
}
