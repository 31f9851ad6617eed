package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
)

// A log is written aside and put in its place by renaming, so that a crash
// leaves the old log or the new one:
//
//	dir.part  being written; worth nothing
//	dir.next  complete; takes the place of dir, at the next start if not now
const (
	partSuffix = ".part"
	nextSuffix = ".next"
)

// writeLog puts a fresh log in the place of the one in dir. With a first
// command the log has this host as its only voter, and the command is its first;
// without, it is empty, and waits for the leader of another log to fill it.
func writeLog(dir string, host cluster.HostID, address netip.AddrPort, first *cluster.Command) error {
	part := dir + partSuffix
	if err := writeGenesis(part, host, address, first); err != nil {
		return errors.Join(fmt.Errorf("write a fresh log: %w", err), os.RemoveAll(part))
	}
	if err := os.RemoveAll(dir + nextSuffix); err != nil {
		return fmt.Errorf("write a fresh log: %w", err)
	}
	if err := os.Rename(part, dir+nextSuffix); err != nil {
		return fmt.Errorf("write a fresh log: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("write a fresh log: %w", err)
	}
	return finishLog(dir)
}

// finishLog completes what writeLog began before a crash.
func finishLog(dir string) error {
	if err := os.RemoveAll(dir + partSuffix); err != nil {
		return fmt.Errorf("put a fresh log in its place: %w", err)
	}
	if _, err := os.Stat(dir + nextSuffix); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := wipeLog(dir); err != nil {
		return err
	}
	if err := os.Rename(dir+nextSuffix, dir); err != nil {
		return fmt.Errorf("put a fresh log in its place: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}

// hasLog reports whether there is a log in dir, or one to be put there.
func hasLog(dir string) bool {
	_, err := os.Stat(dir + nextSuffix)
	return err == nil || hasReplica(dir)
}

// wipeLog deletes the log in dir: what was a voter is none any more.
func wipeLog(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("delete the log: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeGenesis(dir string, host cluster.HostID, address netip.AddrPort, first *cluster.Command) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	s, err := openStore(filepath.Join(dir, logFile))
	if err != nil {
		return err
	}
	err = s.begin(raft.ServerID(string(host)+"."+random()), raft.ServerAddress(address.String()), first)
	return errors.Join(err, s.Close(), syncDir(dir))
}

// begin writes what an empty log starts from. A sole voter commits at its
// start whatever is in its log.
func (s *store) begin(id raft.ServerID, address raft.ServerAddress, first *cluster.Command) error {
	if err := s.Set(serverKey, []byte(id)); err != nil || first == nil {
		return err
	}
	body, err := json.Marshal(first)
	if err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{ID: id, Address: address}}}
	if err := s.SetUint64([]byte(termKey), 1); err != nil {
		return err
	}
	return s.StoreLogs([]*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone)},
		{Index: 2, Term: 1, Type: raft.LogCommand, Data: body},
	})
}
