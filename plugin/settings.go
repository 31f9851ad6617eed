package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/bgp"
)

// Settings is what a user may say, as flags of the binary and as environment
// of the managed plugin. Fields with a mount tag are files that a managed
// plugin gets by a mount of that name. All are strings, so that an empty
// variable (docker plugin set NAME=) means the default for each of them.
type Settings struct {
	Join       string `env:"JOIN" placeholder:"HOST[:PORT],..." help:"Members to join. Empty: found a cluster. May list this host itself."`
	Advertise  string `env:"ADVERTISE" placeholder:"ADDRESS|INTERFACE|PREFIX" help:"The underlay: an address, an interface, or a prefix that picks an address. Empty: the address of the default route."`
	NodeName   string `env:"NODE_NAME" placeholder:"NAME" help:"Name of this host for people. Empty: the hostname."`
	ClusterKey string `env:"CLUSTER_KEY" placeholder:"SECRET" help:"The cluster's secret as a value, for trials: docker plugin inspect shows it."`
	GossipPort string `env:"GOSSIP_PORT" default:"7950" placeholder:"PORT" help:"TCP and UDP port between hosts (${default})."`
	VXLANPort  string `name:"vxlan-port" env:"VXLAN_PORT" default:"8475" placeholder:"PORT" help:"UDP port of VXLAN, the same in the whole cluster (${default})."`
	StrictBoot string `env:"STRICT_BOOT" default:"off" placeholder:"off|on" help:"After a boot, use no stored block before the cluster confirmed it (${default})."`
	Found      string `env:"FOUND" default:"auto" placeholder:"auto|force" help:"force: found a cluster although members of JOIN do not answer (${default})."`
	Scope      string `env:"SCOPE" default:"local" placeholder:"local|global" help:"global: be driven by Swarm (${default})."`
	Metrics    string `env:"METRICS" placeholder:"ADDRESS:PORT" help:"Where to serve metrics for Prometheus. Empty: nowhere."`
	LogLevel   string `env:"LOG_LEVEL" default:"info" placeholder:"LEVEL" help:"trace, debug, info, warn or error (${default})."`
	LogFormat  string `env:"LOG_FORMAT" default:"text" placeholder:"text|json" help:"text or json (${default})."`

	Forward            string `env:"FORWARD" default:"off" placeholder:"off|on" help:"on: have the links by which the world is reached forward what they receive, where containers need it, and see to the sysctls (${default})."`
	BGPPeers           string `env:"BGP_PEERS" placeholder:"ROUTER as=N,..." help:"Routers that are told of the blocks of this host, each an address (or an interface) with as=N, and port=N, source=ADDRESS, multihop=N where needed. Empty: no BGP."`
	BGPAS              string `env:"BGP_AS" placeholder:"NUMBER" help:"Autonomous system of this host."`
	BGPRouterID        string `env:"BGP_ROUTER_ID" placeholder:"ADDRESS" help:"BGP identifier, an IPv4 address. Empty: the underlay address."`
	BGPListen          string `env:"BGP_LISTEN" placeholder:"off|ADDRESS:PORT" help:"Where routers may connect. Empty: nowhere."`
	BGPCommunities     string `env:"BGP_COMMUNITIES" placeholder:"N:N,..." help:"Communities of all that is announced."`
	BGPHold            string `env:"BGP_HOLD" placeholder:"TIME" help:"Hold time of sessions. Empty: 90s."`
	BGPTTLSecurity     string `env:"BGP_TTL_SECURITY" placeholder:"off|on" help:"on: take packets of direct neighbours only (RFC 5082)."`
	BGPGracefulRestart string `env:"BGP_GRACEFUL_RESTART" placeholder:"off|TIME" help:"How long routers keep the routes while the plugin restarts. Empty: 120s."`
	BGPBFD             string `env:"BGP_BFD" placeholder:"off|on" help:"on: notice a dead path within a second. Excludes graceful restart."`
	BGPImport          string `env:"BGP_IMPORT" placeholder:"PREFIX[+],..." help:"Prefixes that are taken from routers; with + what lies inside, too. Empty: none."`
	BGPImportMax       string `env:"BGP_IMPORT_MAX" placeholder:"NUMBER" help:"How many of these at most. Empty: 1000."`

	BGPPasswordFile string `name:"bgp-passwords" mount:"bgp" default:"/run/isthmus/bgp" placeholder:"FILE" help:"File with the password of BGP sessions, one for all or lines ROUTER PASSWORD (${default}). None: no TCP MD5 signatures."`
	KeyFile         string `mount:"key" default:"/run/isthmus/key" placeholder:"FILE" help:"File with the secret that every member shares (${default}). None: no encryption."`
	DockerSocket    string `mount:"docker" default:"/run/isthmus/docker.sock" placeholder:"FILE" help:"The engine's socket, never used inside a driver call (${default}). None: do without."`
	State           string `default:"/var/lib/isthmus" placeholder:"DIR" help:"Where state is kept (${default})."`
}

// The fixed paths inside a managed plugin; a plain install uses the same ones.
const (
	defaultKeyFile      = "/run/isthmus/key"
	defaultBGPFile      = "/run/isthmus/bgp"
	defaultPluginSocket = "/run/docker/plugins/isthmus.sock"
)

// minSecret is the least length of the cluster's secret, in bytes.
const minSecret = 16

// Secret is the cluster's secret. It prints as whether it is set.
type Secret []byte

func (s Secret) String() string {
	if len(s) == 0 {
		return "none"
	}
	return "set"
}

// GoString and MarshalText keep the secret out of %#v and JSON.
func (s Secret) GoString() string             { return s.String() }
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Config is Settings after the check: all that the plugin goes by.
type Config struct {
	Join         []string
	Advertise    Advertise
	Name         string
	Secret       Secret
	GossipPort   uint16
	VXLANPort    uint16
	FoundForce   bool
	StrictBoot   bool
	LogLevel     logrus.Level
	LogJSON      bool
	DockerSocket string
	Socket       string
	State        string
	Forward      bool
	BGP          bgp.Config // without peers: none
	Warnings     []string   // what works but should be changed; for status
}

// Advertise says how the underlay address is picked: at most one field is set,
// none means by the default route.
type Advertise struct {
	Addr      netip.Addr
	Interface string
	Prefix    netip.Prefix
}

// value returns what the user said.
func (a Advertise) value() string {
	switch {
	case a.Addr.IsValid():
		return a.Addr.String()
	case a.Prefix.IsValid():
		return a.Prefix.String()
	}
	return a.Interface
}

// Check turns what the user said into a Config. It reads the key file and the
// hostname, and touches nothing. All that is wrong is reported at once, one
// line each.
func (s Settings) Check() (Config, error) {
	s.fillDefaults()
	c := Config{DockerSocket: s.DockerSocket, Socket: defaultPluginSocket, State: s.State}
	var errs []error
	check := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	var err error
	c.Join, err = parseJoin(s.Join)
	check(err)
	c.Advertise, err = parseAdvertise(s.Advertise)
	check(err)
	c.Name, err = nodeName(s.NodeName)
	check(err)
	c.GossipPort, err = parsePort("GOSSIP_PORT", s.GossipPort)
	check(err)
	c.VXLANPort, err = parsePort("VXLAN_PORT", s.VXLANPort)
	check(err)
	if err == nil && c.GossipPort == c.VXLANPort {
		check(fmt.Errorf("read GOSSIP_PORT and VXLAN_PORT: both are %d, and both use UDP; choose two ports", c.VXLANPort))
	}
	check(oneOf("FOUND", s.Found, "auto", "force"))
	c.FoundForce = s.Found == "force"
	check(oneOf("LOG_FORMAT", s.LogFormat, "text", "json"))
	c.LogJSON = s.LogFormat == "json"
	if c.LogLevel, err = logrus.ParseLevel(s.LogLevel); err != nil {
		check(fmt.Errorf("read LOG_LEVEL: %q is none of trace, debug, info, warn, error", s.LogLevel))
	}
	check(oneOf("STRICT_BOOT", s.StrictBoot, "off", "on"))
	c.StrictBoot = s.StrictBoot == "on"
	check(oneOf("FORWARD", s.Forward, "off", "on"))
	c.Forward = s.Forward == "on"
	check(oneOf("SCOPE", s.Scope, "local", "global"))
	if s.Scope == "global" {
		check(notBuilt("SCOPE=global", "leave it local"))
	}
	if s.Metrics != "" {
		check(notBuilt("METRICS", "leave it empty"))
	}
	c.BGP, err = s.bgp()
	check(err)
	var warnings []string
	c.Secret, warnings, err = readSecret(s.KeyFile, s.ClusterKey)
	check(err)
	c.Warnings = append(c.Warnings, warnings...)
	return c, errors.Join(errs...)
}

// bgp reads the settings of BGP, and the file of passwords, which need not be there.
func (s Settings) bgp() (bgp.Config, error) {
	passwords, err := os.ReadFile(s.BGPPasswordFile)
	if err != nil && !(errors.Is(err, fs.ErrNotExist) && s.BGPPasswordFile == defaultBGPFile) {
		return bgp.Config{}, fmt.Errorf("read the BGP password file: %w; give a readable file, or none", err)
	}
	return bgp.Parse(bgp.Settings{
		AS: s.BGPAS, RouterID: s.BGPRouterID, Listen: s.BGPListen, Peers: s.BGPPeers, Passwords: string(passwords),
		Communities: s.BGPCommunities, Hold: s.BGPHold, TTLSecurity: s.BGPTTLSecurity, GracefulRestart: s.BGPGracefulRestart,
		BFD: s.BGPBFD, Import: s.BGPImport, ImportMax: s.BGPImportMax,
	})
}

// fillDefaults gives empty fields their defaults: kong does so only for
// variables that are absent.
func (s *Settings) fillDefaults() {
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.String() == "" {
			f.SetString(v.Type().Field(i).Tag.Get("default"))
		}
	}
}

func notBuilt(what, remedy string) error {
	return fmt.Errorf("read %s: this version does not have it yet; %s", what, remedy)
}

func oneOf(name, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("read %s: %q is none of %s", name, value, strings.Join(allowed, ", "))
}

func parsePort(name, s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("read %s: %q is no port; need a number from 1 to 65535", name, s)
	}
	return uint16(n), nil
}

// parseJoin splits the list; whether the entries resolve is seen later, again
// and again.
func parseJoin(s string) ([]string, error) {
	var out []string
	for _, e := range strings.Split(s, ",") {
		if e = strings.TrimSpace(e); e == "" {
			continue
		}
		if strings.ContainsAny(e, " \t/@") {
			return nil, fmt.Errorf("read JOIN: entry %q is not host[:port]", e)
		}
		out = append(out, e)
	}
	return out, nil
}

func parseAdvertise(s string) (Advertise, error) {
	if s == "" {
		return Advertise{}, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return Advertise{Prefix: p.Masked()}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		if a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.IsLinkLocalUnicast() {
			return Advertise{}, fmt.Errorf("read ADVERTISE: %s cannot be reached from other hosts; name an address of this host", a)
		}
		return Advertise{Addr: a}, nil
	}
	if len(s) > 15 || strings.ContainsAny(s, "/: \t") {
		return Advertise{}, fmt.Errorf("read ADVERTISE: %q is neither an address, nor an interface name, nor a prefix", s)
	}
	return Advertise{Interface: s}, nil
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62})$`)

// nodeName checks the name that the user gave, or finds the hostname. A
// managed plugin lives in a UTS namespace of its own that starts as a copy of
// the host's, so that the system call is right there, too; /host/etc is for
// hosts that were not yet named when the plugin started.
func nodeName(s string) (string, error) {
	if s != "" {
		if !namePattern.MatchString(s) {
			return "", fmt.Errorf("read NODE_NAME: %q: need up to 63 letters, digits, dots, dashes and underscores, a letter or digit first", s)
		}
		return s, nil
	}
	name, _ := os.Hostname()
	if !isName(name) {
		b, _ := os.ReadFile(hostFile("/etc/hostname"))
		name = strings.TrimSpace(string(b))
	}
	if !isName(name) {
		return "", fmt.Errorf("read NODE_NAME: this host's name is %q, which tells it from no other; set NODE_NAME", name)
	}
	return name, nil
}

func isName(s string) bool {
	return namePattern.MatchString(s) && s != "localhost" && s != "localhost.localdomain"
}

// hostFile returns where a file of the host lies: below /host in a managed
// plugin, else at its own path.
func hostFile(path string) string {
	if in := filepath.Join("/host", path); exists(in) {
		return in
	}
	return path
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// readSecret takes the secret from the key file or from the value. A missing
// file is an error only where the user named another than the default: in a
// plain install nothing lies there, and in a managed plugin the mount always
// does.
func readSecret(file, value string) (Secret, []string, error) {
	value = strings.TrimSpace(value)
	b, err := os.ReadFile(file)
	if err != nil && !(errors.Is(err, fs.ErrNotExist) && file == defaultKeyFile) {
		return nil, nil, fmt.Errorf("read key file: %w; give a readable file, or none for no encryption", err)
	}
	var warnings []string
	key := strings.TrimSpace(string(b))
	if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && key != "" && info.Mode().Perm()&0o077 != 0 {
		warnings = append(warnings, fmt.Sprintf("the key file may be read by others (mode %04o): chmod 0600 it", info.Mode().Perm()))
	}
	switch {
	case key != "" && value != "" && key != value:
		return nil, nil, errors.New("read the cluster's key: the key file and CLUSTER_KEY differ; give one of them")
	case key == "":
		key = value
	}
	if key != "" && len(key) < minSecret {
		return nil, nil, fmt.Errorf("read the cluster's key: it has %d bytes, need at least %d; make one with: head -c 32 /dev/urandom | base64", len(key), minSecret)
	}
	return Secret(key), warnings, nil
}
