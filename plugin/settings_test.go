package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sirupsen/logrus"
)

// check parses arguments and environment as the binary does, and checks them.
func check(t *testing.T, args ...string) (Config, error) {
	t.Helper()
	var c commands
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Parse(append([]string{"serve"}, args...)); err != nil {
		t.Fatalf("parse %v: %v", args, err)
	}
	return c.Serve.Check()
}

func TestSettingsDefaults(t *testing.T) {
	got, err := check(t, "--node-name=host1")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Name: "host1", GossipPort: 7950, VXLANPort: 8475, LogLevel: logrus.InfoLevel,
		DockerSocket: "/run/isthmus/docker.sock", Socket: "/run/docker/plugins/isthmus.sock", State: "/var/lib/isthmus",
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestSettingsRead(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("  0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		see  func(c Config) any
		want any
	}{
		{"join list", []string{"--join= host1, host2:7000 ,,[fd00::1]:7950"}, func(c Config) any { return fmt.Sprint(c.Join) }, "[host1 host2:7000 [fd00::1]:7950]"},
		{"advertise address", []string{"--advertise=10.0.0.1"}, func(c Config) any { return c.Advertise }, Advertise{Addr: netip.MustParseAddr("10.0.0.1")}},
		{"advertise IPv6 address", []string{"--advertise=fd00::1"}, func(c Config) any { return c.Advertise }, Advertise{Addr: netip.MustParseAddr("fd00::1")}},
		{"advertise prefix", []string{"--advertise=10.0.3.7/16"}, func(c Config) any { return c.Advertise }, Advertise{Prefix: netip.MustParsePrefix("10.0.0.0/16")}},
		{"advertise interface", []string{"--advertise=eth0.50"}, func(c Config) any { return c.Advertise }, Advertise{Interface: "eth0.50"}},
		{"key file, trimmed", []string{"--key-file=" + key}, func(c Config) any { return string(c.Secret) }, "0123456789abcdef"},
		{"key value", []string{"--cluster-key=fedcba9876543210"}, func(c Config) any { return string(c.Secret) }, "fedcba9876543210"},
		{"the same key twice", []string{"--cluster-key=0123456789abcdef", "--key-file=" + key}, func(c Config) any { return string(c.Secret) }, "0123456789abcdef"},
		{"no key by /dev/null", []string{"--key-file=/dev/null"}, func(c Config) any { return len(c.Secret) }, 0},
		{"no key by default file", nil, func(c Config) any { return len(c.Secret) }, 0},
		{"strict boot", []string{"--strict-boot=on"}, func(c Config) any { return c.StrictBoot }, true},
		{"found", []string{"--found=force"}, func(c Config) any { return c.FoundForce }, true},
		{"log", []string{"--log-format=json", "--log-level=debug"}, func(c Config) any { return fmt.Sprint(c.LogJSON, c.LogLevel) }, "true debug"},
		{"what is not built, at its default", []string{"--strict-boot=off", "--scope=local", "--metrics="}, func(c Config) any { return "ok" }, "ok"},
		{"empty means default", []string{"--gossip-port=", "--scope=", "--log-level=", "--key-file="}, func(c Config) any { return c.GossipPort }, uint16(7950)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := check(t, append(tt.args, "--node-name=host1")...)
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.see(c); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestSettingsRefused(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "short")
	long := filepath.Join(dir, "long")
	for path, text := range map[string]string{short: "fifteen bytes..", long: "sixteen bytes..."} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		arg  string
		want string
	}{
		{"strict boot nonsense", "--strict-boot=maybe", `STRICT_BOOT: "maybe" is none of off, on`},
		{"scope", "--scope=global", "SCOPE=global: this version does not have it yet"},
		{"metrics", "--metrics=:9100", "METRICS: this version does not have it yet"},
		{"found", "--found=always", `FOUND: "always" is none of auto, force`},
		{"gossip port", "--gossip-port=http", `GOSSIP_PORT: "http" is no port`},
		{"gossip port zero", "--gossip-port=0", `GOSSIP_PORT: "0" is no port`},
		{"vxlan port", "--vxlan-port=65536", `VXLAN_PORT: "65536" is no port`},
		{"one port for both", "--vxlan-port=7950", "choose two ports"},
		{"join with a scheme", "--join=tcp://host1", `JOIN: entry "tcp://host1" is not host[:port]`},
		{"advertise loopback of all", "--advertise=0.0.0.0", "cannot be reached from other hosts"},
		{"advertise multicast", "--advertise=224.0.0.1", "cannot be reached from other hosts"},
		{"advertise link-local", "--advertise=fe80::1", "cannot be reached from other hosts"},
		{"advertise nonsense", "--advertise=10.0.0.1:7950", "neither an address, nor an interface name, nor a prefix"},
		{"node name", "--node-name=host one", `NODE_NAME: "host one"`},
		{"log level", "--log-level=loud", `LOG_LEVEL: "loud"`},
		{"log format", "--log-format=xml", `LOG_FORMAT: "xml" is none of text, json`},
		{"short key", "--key-file=" + short, "it has 15 bytes, need at least 16"},
		{"short key value", "--cluster-key=123456789", "it has 9 bytes, need at least 16"},
		{"missing key file", "--key-file=" + dir + "/none", "read key file"},
		{"unreadable key file", "--key-file=" + dir, "read key file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := []string{tt.arg}
			if !strings.HasPrefix(tt.arg, "--node-name") {
				args = append(args, "--node-name=host1")
			}
			_, err := check(t, args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to say %q", err, tt.want)
			}
		})
	}
	t.Run("two keys", func(t *testing.T) {
		_, err := check(t, "--cluster-key=0123456789abcdef", "--key-file="+long, "--node-name=a")
		if err == nil || !strings.Contains(err.Error(), "differ") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("all at once", func(t *testing.T) {
		_, err := check(t, "--scope=global", "--gossip-port=x", "--node-name=a")
		if err == nil || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("got %v, want two lines", err)
		}
	})
}

// TestSecretStaysSecret: no way of printing a Config shows the key, and no
// refusal quotes it.
func TestSecretStaysSecret(t *testing.T) {
	const key = "correct horse battery staple"
	c, err := check(t, "--cluster-key="+key, "--node-name=a")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), c.Secret.String(), fmt.Sprintf("%x", c.Secret), string(text)} {
		if strings.Contains(s, "horse") || strings.Contains(s, fmt.Sprintf("%x", "horse")) {
			t.Errorf("shows the key: %s", s)
		}
	}
	if _, err := check(t, "--cluster-key=horse", "--node-name=a"); err == nil || strings.Contains(err.Error(), "horse") {
		t.Errorf("refusal of a short key: %v", err)
	}
}

func TestKeyFileMode(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("0123456789abcdef"), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := check(t, "--key-file="+key, "--node-name=a")
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "chmod 0600") {
		t.Errorf("got %v, %v; want a warning about the mode", c.Warnings, err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("GOSSIP_PORT", "7000")
	t.Setenv("VXLAN_PORT", "") // docker plugin set VXLAN_PORT=
	t.Setenv("NODE_NAME", "from-env")
	c, err := check(t)
	if err != nil || c.GossipPort != 7000 || c.VXLANPort != 8475 || c.Name != "from-env" {
		t.Errorf("got %+v, %v", c, err)
	}
}
