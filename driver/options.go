package driver

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Options is what a user asked of a network with -o and --internal.
// Empty fields were not mentioned. Options are comparable.
type Options struct {
	Mode     string `json:"mode"`
	MTU      int    `json:"mtu,omitempty"`      // inside, in bytes
	Underlay int    `json:"underlay,omitempty"` // MTU below, as Docker's overlay driver has it
	VNI      uint32 `json:"vni,omitempty"`
	Attach   string `json:"attach,omitempty"` // a Network's is macvlan or bridge
	ARP      string `json:"arp,omitempty"`
	BUM      string `json:"bum,omitempty"`
	Gateway  string `json:"gateway,omitempty"`
	Space    string `json:"space,omitempty"`
	Foreign  bool   `json:"foreign,omitempty"` // addresses come from another IPAM driver
	Internal bool   `json:"internal,omitempty"`

	// Of networks in a LAN.
	Parent       string `json:"parent,omitempty"` // of this host
	VLANProtocol string `json:"vlanProtocol,omitempty"`
	MacvlanMode  string `json:"macvlanMode,omitempty"`
	Source       string `json:"source,omitempty"` // MACs, sorted, joined by commas
	BCQueue      int    `json:"bcqueue,omitempty"`
	IPvlanMode   string `json:"ipvlanMode,omitempty"`
	IPvlanFlag   string `json:"ipvlanFlag,omitempty"`
	HostAccess   bool   `json:"hostAccess,omitempty"`

	// Of networks whose packets this host routes.
	Fallback string `json:"fallback,omitempty"`
	NoNAT    bool   `json:"noNAT,omitempty"` // what leaves the cluster keeps its source
	BGP      bool   `json:"bgp,omitempty"`
	RouteTo  string `json:"routeTo,omitempty"` // subnets, sorted, joined by commas
}

// local names and compares the options that need not be equal on all hosts,
// but must be for two Docker networks of one host that are the same network.
func (o Options) local() []setting {
	return []setting{
		{"attach", o.Attach},
		{"gateway", cmp.Or(o.Gateway, "docker")},
		{"internal", strconv.FormatBool(o.Internal)},
		{"ipam", map[bool]string{false: "isthmus", true: "foreign"}[o.Foreign]},
		{"parent", o.Parent},
		{"vlan_protocol", cmp.Or(o.VLANProtocol, "802.1q")},
		{"source", o.Source},
		{"bcqueue", strconv.Itoa(cmp.Or(o.BCQueue, 1000))},
		{"host_access", onOff(o.HostAccess)},
		{"nat", onOff(!o.NoNAT)},
		{"bgp", onOff(o.BGP)},
	}
}

func onOff(is bool) string {
	if is {
		return "on"
	}
	return "off"
}

type setting struct{ key, value string }

// option is one key of -o: where it belongs and what it may say.
type option struct {
	key    string
	modes  []string // none: all
	values []string // the default first; none: any that set accepts
	later  []string // patterns of values that have a name but are not built yet
	set    func(o *Options, value string) error
}

const (
	dockerPrefix = "com.docker.network."
	dockerMTU    = dockerPrefix + "driver.mtu"
	overlayVNI   = dockerPrefix + "driver.overlay.vxlanid_list"
)

// options lists all keys; the order is that of the documentation.
var options = []option{
	{key: "mode"}, // taken before the others, see ParseOptions
	{key: "mtu", set: func(o *Options, v string) (err error) { o.MTU, err = number(v, 68, 65535); return }},
	{key: "vni", modes: []string{"vxlan"}, set: setVNI},
	{key: "attach", modes: []string{"vxlan"}, values: []string{"auto", "macvlan", "bridge"}, set: func(o *Options, v string) error { o.Attach = v; return nil }},
	{key: "discovery", modes: []string{"vxlan"}, values: []string{"gossip"}, later: []string{"multicast"}},
	{key: "group", modes: []string{"vxlan"}, later: []string{"*"}},
	{key: "arp", modes: []string{"vxlan"}, values: []string{"suppress", "flood"}, set: func(o *Options, v string) error { o.ARP = v; return nil }},
	{key: "bum", modes: []string{"vxlan"}, values: []string{"replicate", "none"}, set: func(o *Options, v string) error { o.BUM = v; return nil }},
	{key: "encrypt", modes: []string{"vxlan", "host-gw", "routed"}, values: []string{"off"}, later: []string{"wireguard"}},
	{key: "encrypted", modes: []string{"vxlan", "host-gw", "routed"}, values: []string{"off", "false"}, later: []string{"", "on", "true"}},
	{key: "gateway", modes: []string{"vxlan"}, set: setGateway},
	{key: "parent", modes: []string{"macvlan", "ipvlan"}, set: func(o *Options, v string) error { o.Parent = v; return checkParent(v) }},
	{key: "vlan_protocol", modes: []string{"macvlan", "ipvlan"}, values: []string{"802.1q", "802.1ad"}, set: func(o *Options, v string) error { o.VLANProtocol = v; return nil }},
	{key: "macvlan_mode", modes: []string{"macvlan"}, values: []string{"bridge", "private", "vepa", "passthru", "source"}, set: func(o *Options, v string) error { o.MacvlanMode = v; return nil }},
	{key: "source", modes: []string{"macvlan"}, set: setSource},
	{key: "bcqueue", modes: []string{"macvlan"}, set: func(o *Options, v string) (err error) { o.BCQueue, err = number(v, 1, 1000000); return }},
	{key: "ipvlan_mode", modes: []string{"ipvlan"}, values: []string{"l2", "l3", "l3s"}, set: func(o *Options, v string) error { o.IPvlanMode = v; return nil }},
	{key: "ipvlan_flag", modes: []string{"ipvlan"}, values: []string{"bridge", "private", "vepa"}, set: func(o *Options, v string) error { o.IPvlanFlag = v; return nil }},
	{key: "host_access", values: []string{"off", "on"}, set: func(o *Options, v string) error { o.HostAccess = v == "on"; return nil }},
	{key: "fallback", modes: []string{"host-gw"}, values: []string{"vxlan", "ipip", "gre", "none"}, set: func(o *Options, v string) error { o.Fallback = v; return nil }},
	{key: "nat", modes: []string{"vxlan", "host-gw", "routed"}, values: []string{"on", "off"}, set: func(o *Options, v string) error { o.NoNAT = v == "off"; return nil }},
	{key: "bgp", modes: []string{"routed", "host-gw", "ipvlan"}, values: []string{"off", "on"}, set: func(o *Options, v string) error { o.BGP = v == "on"; return nil }},
	{key: "route_to", modes: []string{"vxlan", "host-gw", "routed"}, set: setRouteTo},
	{key: "ipam", values: []string{"isthmus", "foreign"}, set: func(o *Options, v string) error { o.Foreign = v == "foreign"; return nil }},
	{key: "space", set: func(o *Options, v string) error {
		if !spaceName.MatchString(v) {
			return fmt.Errorf("need a name of letters, digits, dots, dashes and underscores")
		}
		o.Space = v
		return nil
	}},
}

var spaceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// ParseOptions checks the -o options of a network. Every key and value is
// understood or refused, naming the keys that belong to the mode; of Docker's
// own keys (com.docker.network.*) those that mean something here are used. host
// names this host, for parent.HOST; empty for whoever makes no network himself.
func ParseOptions(in map[string]string, host string) (Options, error) {
	o := Options{Mode: cmp.Or(in["mode"], modes[0].Name)}
	if !built(o.Mode) {
		return o, fmt.Errorf("option mode=%s is unknown: the modes are %s", o.Mode, modeNames())
	}
	for _, key := range slices.Sorted(maps.Keys(in)) {
		var err error
		switch {
		case key == "mode":
		case key == dockerMTU:
			// Docker's overlay driver takes this for the MTU of the underlay.
			o.Underlay, err = number(in[key], 68, 65535)
		case key == overlayVNI:
			err = setVNI(&o, in[key])
		case strings.HasPrefix(key, dockerPrefix):
		default:
			err = o.parse(key, in[key])
			if err != nil {
				return o, err
			}
		}
		if err != nil {
			return o, fmt.Errorf("option %s=%s: %w", key, in[key], err)
		}
	}
	if host != "" && o.Parent != "" {
		var ok bool
		if o.Parent, ok = cmp.Or(in["parent."+host], in["parent"]), in["parent"] != "" || in["parent."+host] != ""; !ok {
			return o, fmt.Errorf("option parent: none is for this host: add -o parent.%s=INTERFACE, or -o parent=INTERFACE for all others", host)
		}
	}
	switch {
	case o.Source != "" && o.MacvlanMode != "source":
		return o, fmt.Errorf("option source belongs to -o macvlan_mode=source")
	case o.HostAccess && fenced(o.Mode) && !direct(o.Mode):
		return o, fmt.Errorf("option host_access=on is not built yet in this version for mode %s", o.Mode)
	case o.BGP && o.Mode == "ipvlan" && (o.IPvlanMode == "" || o.IPvlanMode == "l2"):
		return o, fmt.Errorf("option bgp=on does not work with ipvlan_mode=l2: there the LAN has its containers: use ipvlan_mode=l3 or l3s")
	case !direct(o.Mode) && !ours(o.Gateway) && (o.NoNAT || o.RouteTo != ""):
		return o, fmt.Errorf("options nat and route_to are for networks that hosts route for: add -o gateway=distributed")
	case o.Gateway == gatewayDistributed && o.ARP == "flood":
		return o, fmt.Errorf("option gateway=distributed does not work with arp=flood, by which all hosts would answer for the gateway: leave arp out")
	case ours(o.Gateway) && o.Attach == "macvlan":
		return o, fmt.Errorf("option gateway=%s does not work with attach=macvlan, since the gateway meets containers at a bridge: leave attach out", o.Gateway)
	case o.Foreign && ours(o.Gateway):
		return o, fmt.Errorf("option ipam=foreign does not work with gateway=%s, whose address all hosts must agree on: use isthmus as --ipam-driver", o.Gateway)
	case o.Foreign && direct(o.Mode):
		return o, fmt.Errorf("option ipam=foreign does not work with mode %s: hosts route the blocks of addresses that isthmus leases to them: use isthmus as --ipam-driver", o.Mode)
	}
	if o.MTU != 0 && o.Underlay != 0 {
		return o, fmt.Errorf("options mtu and %s both say the MTU, the second one that of the underlay: use one of them", dockerMTU)
	}
	return o, nil
}

func (o *Options) parse(key, value string) error {
	name, _, _ := strings.Cut(key, ".") // parent.HOST is parent
	i := slices.IndexFunc(options, func(p option) bool { return p.key == key || p.key == name && name == "parent" })
	if i < 0 {
		return fmt.Errorf("option %s is unknown: mode %s takes %s", key, o.Mode, keysOf(o.Mode))
	}
	p := options[i]
	if !p.in(o.Mode) {
		return fmt.Errorf("option %s belongs to mode %s, not to %s, which takes %s", key, orNotBuilt(p.modes), o.Mode, keysOf(o.Mode))
	}
	for _, later := range p.later {
		if match, _ := path.Match(later, value); match {
			return fmt.Errorf("option %s=%s is not built yet in this version", key, value)
		}
	}
	if p.values != nil && !slices.Contains(p.values, value) {
		return fmt.Errorf("option %s=%s is unknown: the values are %s", key, value, strings.Join(p.values, ", "))
	}
	if p.set == nil {
		return nil
	}
	if err := p.set(o, value); err != nil {
		return fmt.Errorf("option %s=%s: %w", key, value, err)
	}
	return nil
}

func (p option) in(mode string) bool { return p.modes == nil || slices.Contains(p.modes, mode) }

// keysOf lists the keys that belong to a mode, for people.
func keysOf(mode string) string {
	var keys []string
	for _, p := range options {
		if p.in(mode) {
			keys = append(keys, p.key)
		}
	}
	return strings.Join(append(keys, dockerMTU), ", ")
}

// orNotBuilt names modes, and says so when none of them is built.
func orNotBuilt(names []string) string {
	s := strings.Join(names, " or ")
	if !slices.ContainsFunc(names, built) {
		s += " (not built yet in this version)"
	}
	return s
}

func setVNI(o *Options, value string) error {
	n, err := number(value, 1, 1<<24-1)
	if err == nil && o.VNI != 0 && o.VNI != uint32(n) {
		err = fmt.Errorf("another option says %d", o.VNI)
	}
	o.VNI = uint32(n)
	return err
}

func setGateway(o *Options, value string) error {
	name, host := strings.CutPrefix(value, gatewayHost)
	if host && name == "" || !host && value != gatewayDocker && value != "none" && value != gatewayDistributed {
		return fmt.Errorf("the values are docker, distributed, host:NAME, none")
	}
	o.Gateway = value
	return nil
}

// setRouteTo takes subnets in any order.
func setRouteTo(o *Options, value string) error {
	var list []netip.Prefix
	for text := range strings.SplitSeq(value, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return fmt.Errorf("need subnets of other networks, joined by commas, and not %q", text)
		}
		list = append(list, p.Masked())
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	o.RouteTo = joinPrefixes(slices.Compact(list))
	return nil
}

func setSource(o *Options, value string) error {
	macs, err := parseMACs(value)
	o.Source = kernel.JoinMACs(macs)
	return err
}

func number(value string, least, most int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("need a number from %d to %d", least, most)
	}
	return n, nil
}
