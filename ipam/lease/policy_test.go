package lease

import (
	"testing"
	"time"
)

func TestBlocksDoubleUpTo64(t *testing.T) {
	for held, want := range []int{8, 16, 32, 64, 64, 64} {
		if got := BlockSize(held); got != want {
			t.Errorf("BlockSize(%d) = %d, want %d", held, got, want)
		}
	}
	if got := BlockSize(1000); got != 64 {
		t.Errorf("BlockSize(1000) = %d", got)
	}
}

func TestLowWater(t *testing.T) {
	for _, c := range []struct{ peak, share, want int }{
		{0, 100, 4}, {16, 100, 4}, {17, 100, 5}, {100, 1000, 25}, // a quarter of the peak, at least 4
		{0, 2, 2}, {100, 3, 3}, {0, 0, 1}, // in a small pool the fair share
	} {
		if got := LowWater(c.peak, c.share); got != c.want {
			t.Errorf("LowWater(%d, %d) = %d, want %d", c.peak, c.share, got, c.want)
		}
	}
}

func TestPeakFades(t *testing.T) {
	at := time.Unix(1e9, 0)
	p := Peak{}.Step(at, 40)
	for _, c := range []struct {
		after time.Duration
		used  int
		want  int
	}{
		{time.Minute, 10, 40},
		{29 * time.Minute, 10, 40},
		{31 * time.Minute, 10, 40}, // last period
		{62 * time.Minute, 10, 10},
		{10 * time.Hour, 3, 3},
	} {
		if p = p.Step(at.Add(c.after), c.used); p.Value() != c.want {
			t.Errorf("after %s with %d used: peak %d, want %d", c.after, c.used, p.Value(), c.want)
		}
	}
}
