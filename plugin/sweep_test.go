package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
)

func TestSweep(t *testing.T) {
	type step struct {
		name   string
		listed []string // nil: the engine does not answer
		known  []string
		want   []string // forgotten
	}
	steps := []step{
		{"all there", []string{"a", "b", "x"}, []string{"a", "b"}, nil},
		{"b missing once", []string{"a"}, []string{"a", "b"}, nil},
		{"b was only being created", []string{"a", "b"}, []string{"a", "b"}, nil},
		{"b missing", []string{"a"}, []string{"a", "b"}, nil},
		{"the engine does not answer: no listing", nil, []string{"a", "b"}, nil},
		{"b missing in the next listing", []string{"a"}, []string{"a", "b"}, []string{"b"}},
		{"gone", []string{"a"}, []string{"a"}, nil},
		{"all missing", []string{}, []string{"a", "c"}, nil},
		{"a and c missing again", []string{}, []string{"a", "c"}, []string{"a", "c"}},
	}
	var now step
	var forgotten []string
	s := sweeper{
		list: func(context.Context) (map[string]bool, error) {
			if now.listed == nil {
				return nil, errors.New("no answer")
			}
			ids := map[string]bool{}
			for _, id := range now.listed {
				ids[id] = true
			}
			return ids, nil
		},
		known:  func() []string { return now.known },
		forget: func(_ context.Context, id string) error { forgotten = append(forgotten, id); return nil },
		log:    quiet(),
	}
	for _, now = range steps {
		forgotten = nil
		err := s.sweep(context.Background())
		if (err != nil) != (now.listed == nil) {
			t.Errorf("%s: %v", now.name, err)
		}
		if !slices.Equal(forgotten, now.want) {
			t.Errorf("%s: forgot %v, want %v", now.name, forgotten, now.want)
		}
	}
}

// TestSweepTriesAgain: what could not be forgotten is not taken for new.
func TestSweepTriesAgain(t *testing.T) {
	tries := 0
	s := sweeper{
		list:   func(context.Context) (map[string]bool, error) { return map[string]bool{}, nil },
		known:  func() []string { return []string{"a"} },
		forget: func(context.Context, string) error { tries++; return errors.New("disk full") },
		log:    quiet(),
	}
	for range 3 {
		_ = s.sweep(context.Background())
	}
	if tries != 2 {
		t.Errorf("tried %d times in three sweeps, want 2", tries)
	}
}

func TestEngineNetworks(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	if isSocket(socket) || isSocket("/dev/null") {
		t.Error("takes anything for a socket")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	answer := `[{"Name":"bridge","Id":"5f1c","Driver":"bridge"},{"Name":"app","Id":"77aa","Driver":"isthmus:latest"}]`
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/networks" {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprint(w, answer)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	if !isSocket(socket) {
		t.Error("does not see the socket")
	}
	list := engineNetworks(socket)
	got, err := list(context.Background())
	if err != nil || len(got) != 2 || !got["5f1c"] || !got["77aa"] {
		t.Errorf("got %v, %v", got, err)
	}
	answer = `{"message":"starting"`
	if _, err := list(context.Background()); err == nil {
		t.Error("takes half an answer for a complete listing")
	}
}
