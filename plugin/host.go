package main

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// machine reads what tells this machine from its clones. What cannot be read
// stays empty.
func machine(underlayMAC string) cluster.Machine {
	read := func(path string) string {
		b, _ := os.ReadFile(path)
		return strings.TrimSpace(string(b))
	}
	return cluster.Machine{
		ID:   read(hostFile("/etc/machine-id")),
		UUID: read("/sys/class/dmi/id/product_uuid"),
		MAC:  underlayMAC,
	}
}

const identityType = "ISTHMUS IDENTITY"

// identity returns this host's key, and makes one in a host that has none. A
// key that cannot be read is an error, never replaced: with it the host would
// lose its name in the cluster and the blocks that it holds.
func identity(dir string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, "identity")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newIdentity(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != identityType || len(block.Bytes) != ed25519.SeedSize {
		return nil, fmt.Errorf("read identity %s: it is damaged; restore it, or make this a new host with: isthmus reset", path)
	}
	return ed25519.NewKeyFromSeed(block.Bytes), nil
}

func newIdentity(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: identityType, Bytes: key.Seed()})
	if err := writeFile(path, text); err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	return key, nil
}

// writeFile writes a file that is whole or not there, after a power loss too.
func writeFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
