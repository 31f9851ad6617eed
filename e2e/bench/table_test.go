package main

import (
	"os"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		name   string
		values []float64
		part   float64
		want   float64
	}{
		{"one value", []float64{7}, 0.25, 7},
		{"median of an odd number", []float64{9, 1, 5}, 0.5, 5},
		{"median of an even number", []float64{4, 1, 3, 2}, 0.5, 2.5},
		{"quarter between two", []float64{10, 20, 30, 40}, 0.25, 17.5},
		{"least", []float64{3, 2}, 0, 2},
		{"most", []float64{3, 2}, 1, 3},
	} {
		if got := quantile(c.values, c.part); got != c.want {
			t.Errorf("%s: %g of %v is %g, not %g", c.name, c.part, c.values, got, c.want)
		}
	}
	values := []float64{3, 1, 2}
	if quantile(values, 0.5); values[0] != 3 {
		t.Errorf("quantile sorts what it was given: %v", values)
	}
}

// A round in which all was slow does not show in the ratio.
func TestRatiosAreOfRounds(t *testing.T) {
	if got := spread(ratios([]float64{50, 10, 110}, []float64{100, 20, 100}), "%.2f"); got != "0.50 (0.50–0.80)" {
		t.Errorf("ratio is %s", got)
	}
}

func TestTables(t *testing.T) {
	docker, ours := &path{name: "Docker's macvlan"}, &path{name: "isthmus macvlan"}
	for m := range measures {
		docker.figures[m] = []float64{100, 200, 300}
		ours.figures[m] = []float64{110, 190, 300}
	}
	got := tables([]*path{docker, ours}, []ratio{{ours, docker}}, 4)
	want, err := os.ReadFile("testdata/tables.md")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the tables are\n%s\nnot\n%s", got, want)
	}
}
