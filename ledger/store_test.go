package ledger

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

func TestStoreKeepsLogs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	s, err := openStore(path)
	if err != nil {
		t.Fatal(err)
	}
	if first, err := s.FirstIndex(); first != 0 || err != nil {
		t.Errorf("first index of an empty log: %d %v", first, err)
	}
	var log raft.Log
	if err := s.GetLog(1, &log); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("an entry that is not there: %v", err)
	}
	entries := []*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: []byte("config")},
		{Index: 2, Term: 1, Type: raft.LogNoop},
		{Index: 3, Term: 1 << 40, Type: raft.LogCommand, Data: []byte("x"), Extensions: []byte("ext"), AppendedAt: time.Unix(5, 7)},
		{Index: 300, Term: 1 << 40, Data: []byte("y")},
	}
	if err := s.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLog(&raft.Log{Index: 301, Data: []byte("z")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = openStore(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, want := range entries {
		if err := s.GetLog(want.Index, &log); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(*want, log); diff != "" {
			t.Error(diff)
		}
	}
	if err := s.DeleteRange(2, 3); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteRange(301, 400); err != nil {
		t.Fatal(err)
	}
	if err := s.GetLog(3, &log); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("a deleted entry: %v", err)
	}
	if first, _ := s.FirstIndex(); first != 1 {
		t.Errorf("first index %d", first)
	}
	if last, _ := s.LastIndex(); last != 300 {
		t.Errorf("last index %d", last)
	}
}

func TestStoreDeletesLongRanges(t *testing.T) {
	s, err := openStore(filepath.Join(t.TempDir(), "log.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var entries []*raft.Log
	for i := range uint64(500) {
		entries = append(entries, &raft.Log{Index: i + 1, Data: make([]byte, 300)})
	}
	if err := s.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteRange(1, 450); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(500) {
		var log raft.Log
		if err := s.GetLog(i+1, &log); (err == nil) != (i+1 > 450) {
			t.Errorf("entry %d: %v", i+1, err)
		}
	}
}

func TestStoreKeepsStableValues(t *testing.T) {
	s, err := openStore(filepath.Join(t.TempDir(), "log.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, err := s.GetUint64([]byte("term")); n != 0 || err != nil {
		t.Errorf("unknown number: %d %v", n, err)
	}
	if b, err := s.Get([]byte("vote")); len(b) != 0 || err != nil {
		t.Errorf("unknown value: %q %v", b, err)
	}
	if err := errors.Join(s.SetUint64([]byte("term"), 1<<60), s.Set([]byte("vote"), []byte("me"))); err != nil {
		t.Fatal(err)
	}
	if n, err := s.GetUint64([]byte("term")); n != 1<<60 || err != nil {
		t.Errorf("number: %d %v", n, err)
	}
	if _, err := s.GetUint64([]byte("vote")); err == nil {
		t.Error("a value that is no number was read as one")
	}
}
