package ledger

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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
//	dir.gone  on its way out; worth nothing
const (
	partSuffix = ".part"
	nextSuffix = ".next"
	goneSuffix = ".gone"
)

// writeLog puts a fresh log in the place of the one in dir. With a first
// command the log has this host as its only voter, and the command is its first;
// without, it is empty, and waits for the leader of another log to fill it. All
// that is ever in the log is of one generation of the registry, gen.
func writeLog(dir string, host cluster.HostID, gen uint64, first *cluster.Command) error {
	part := dir + partSuffix
	if err := writeGenesis(part, host, gen, first); err != nil {
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
	if err := errors.Join(os.RemoveAll(dir+partSuffix), os.RemoveAll(dir+goneSuffix)); err != nil {
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

// wipeLog deletes the log in dir: what was a voter is none any more. A crash
// leaves all of it or nothing: half a log would pass for a whole one.
func wipeLog(dir string) error {
	gone := dir + goneSuffix
	err := os.RemoveAll(gone)
	if err == nil {
		err = os.Rename(dir, gone)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(dir))
	}
	if err == nil {
		err = os.RemoveAll(gone)
	}
	if err != nil {
		return fmt.Errorf("delete the log: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeGenesis(dir string, host cluster.HostID, gen uint64, first *cluster.Command) error {
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
	err = s.begin(raft.ServerID(string(host)+"."+random()), gen, first)
	return errors.Join(err, s.Close(), syncDir(dir))
}

func random() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// begin writes what an empty log starts from. A sole voter commits at its
// start whatever is in its log.
func (s *store) begin(id raft.ServerID, gen uint64, first *cluster.Command) error {
	if err := errors.Join(s.SetUint64(genKey, gen), s.Set(serverKey, []byte(id))); err != nil || first == nil {
		return err
	}
	body, err := json.Marshal(first)
	if err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{ID: id, Address: serverAddress(id)}}}
	if err := s.SetUint64([]byte(termKey), 1); err != nil {
		return err
	}
	return s.StoreLogs([]*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone)},
		{Index: 2, Term: 1, Type: raft.LogCommand, Data: body},
	})
}
