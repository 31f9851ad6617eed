package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

const (
	backupFormat = 1
	backupLimit  = 256 << 20
)

// backup is the registry as a file: no secrets, and no memory of requests.
type backup struct {
	Format   int             `json:"format"`
	Cluster  cluster.ID      `json:"cluster"`
	Gen      uint64          `json:"gen"`
	Index    uint64          `json:"index"`
	Checksum string          `json:"checksum"` // SHA-256 of the registry, without white space
	Registry json.RawMessage `json:"registry"`
}

// Backup writes this host's copy of the registry as JSON: hosts, pools,
// networks and leases, with their public keys and addresses, but no secret. A
// host without a cluster has none.
func (l *Ledger) Backup(_ context.Context, to io.Writer) error {
	r := *l.Registry()
	if r.Cluster == "" {
		return errors.New("back up the registry: this host has no copy of one yet")
	}
	r.Requests = nil
	body, err := json.Marshal(&r)
	if err != nil {
		return fmt.Errorf("back up the registry: %w", err)
	}
	sum := sha256.Sum256(body)
	out, err := json.MarshalIndent(backup{backupFormat, r.Cluster, r.Gen, r.Index, hex.EncodeToString(sum[:]), body}, "", "  ")
	if err != nil {
		return fmt.Errorf("back up the registry: %w", err)
	}
	if _, err := to.Write(append(out, '\n')); err != nil {
		return fmt.Errorf("back up the registry: %w", err)
	}
	return nil
}

func readBackup(from io.Reader) (*cluster.Registry, error) {
	b, err := io.ReadAll(io.LimitReader(from, backupLimit+1))
	if err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	if len(b) > backupLimit {
		return nil, fmt.Errorf("read the backup: it is larger than %d bytes", backupLimit)
	}
	var file backup
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("read the backup: it is not one, or was cut short: %w", err)
	}
	if file.Format != backupFormat {
		return nil, fmt.Errorf("read the backup: its format is %d, and this version knows %d: use the version of isthmus that wrote it, or a later one", file.Format, backupFormat)
	}
	var body bytes.Buffer
	if err := json.Compact(&body, file.Registry); err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	if sum := sha256.Sum256(body.Bytes()); hex.EncodeToString(sum[:]) != file.Checksum {
		return nil, errors.New("read the backup: its checksum is wrong: the file was changed or damaged; take another")
	}
	r, err := rules.Decode(body.Bytes())
	if err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	switch err := rules.Check(r); {
	case err != nil:
		return nil, fmt.Errorf("read the backup: %w", err)
	case r.Cluster == "" || r.Cluster != file.Cluster || r.Gen != file.Gen || r.Index != file.Index:
		return nil, errors.New("read the backup: its head does not belong to its registry")
	case r.Dissolved != "":
		return nil, fmt.Errorf("read the backup: cluster %s had dissolved into cluster %s: join that one", r.Cluster, r.Dissolved)
	}
	return r, nil
}
