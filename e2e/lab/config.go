package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
)

// Config says what lab to make. The zero value is three hosts with this
// machine's engine on an IPv4 and IPv6 underlay with an MTU of 1500 bytes.
type Config struct {
	// ID names the lab among those of the machine; drawn when empty.
	ID string `json:"id"`
	// Hosts is how many there are, 1 to 200.
	Hosts int `json:"hosts"`
	// IPv6Underlay leaves the hosts without an IPv4 address on the underlay.
	// Otherwise they have both, and know each other's names by IPv4.
	IPv6Underlay bool `json:"ipv6Underlay,omitempty"`
	// MTU of every underlay link in bytes.
	MTU int `json:"mtu"`
	// Engine is empty for docker.io as installed on the machine, the name of
	// the Debian release that it is taken from, such as trixie or sid, or moby
	// for the newest version, built from source.
	Engine string `json:"engine,omitempty"`
	// Detached labs stay up when the process that made them ends.
	Detached bool `json:"detached,omitempty"`
	// Progress is told of each long step. It may be nil.
	Progress func(step string) `json:"-"`
}

var idPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

func (c Config) checked() (Config, error) {
	if c.Hosts == 0 {
		c.Hosts = 3
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	switch {
	case c.ID != "" && !idPattern.MatchString(c.ID):
		return c, fmt.Errorf("make lab: id %q: use up to 31 of a-z, 0-9 and -", c.ID)
	case c.Hosts < 1 || c.Hosts > 200:
		return c, fmt.Errorf("make lab: %d hosts: use 1 to 200", c.Hosts)
	case c.MTU < 1280 || c.MTU > 65535:
		return c, fmt.Errorf("make lab: MTU %d: use 1280 to 65535", c.MTU)
	case c.Engine != "" && !idPattern.MatchString(c.Engine):
		return c, fmt.Errorf("make lab: engine %q: use the name of a Debian release, or moby", c.Engine)
	case os.Geteuid() != 0:
		return c, errors.New("make lab: need root, for namespaces and mounts")
	}
	return c, nil
}

// The underlay is the same in every lab. The switch is the hosts' default
// gateway, forwards nothing, and refuses their DNS queries at once.
var (
	underlay4 = netip.MustParsePrefix("10.99.0.0/24")
	underlay6 = netip.MustParsePrefix("fd99::/64")
)

const switchIndex = 254

func address(p netip.Prefix, index int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(index)
	a, _ := netip.AddrFromSlice(b)
	return a
}

func mac(index int) string { return fmt.Sprintf("02:00:0a:63:00:%02x", index) }

// runDir holds what is known of running labs; it is empty after the machine
// booted, as it must be.
const runDir = "/run/isthmus-lab"

// diskDir holds the hosts' disks. It must not lie on an overlay.
func diskDir() string {
	if dir := os.Getenv("ISTHMUS_LAB_DIR"); dir != "" {
		return dir
	}
	return "/var/tmp/isthmus-lab"
}

func statePath(id string) string  { return filepath.Join(runDir, id, "state.json") }
func labDir(id string) string     { return filepath.Join(diskDir(), id) }
func cgroupPath(id string) string { return "isthmus-lab-" + id }
