package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Settings is what a user may say, as text. An empty field means its default.
type Settings struct {
	AS              string // BGP_AS: number of this host's AS
	RouterID        string // BGP_ROUTER_ID: an IPv4 address
	Listen          string // BGP_LISTEN: off, or ADDRESS:PORT
	Peers           string // BGP_PEERS: ROUTER as=N [port=N] [source=ADDRESS] [multihop=N], ...
	Passwords       string // the password file: one for all, or lines ROUTER PASSWORD
	Communities     string // BGP_COMMUNITIES: 65001:100, 65001:1:2, no-export, ...
	Hold            string // BGP_HOLD: seconds, as 90s
	TTLSecurity     string // BGP_TTL_SECURITY: off, on
	GracefulRestart string // BGP_GRACEFUL_RESTART: off, or a time as 120s
	BFD             string // BGP_BFD: off, on
	Import          string // BGP_IMPORT: prefixes; with + also what lies inside
	ImportMax       string // BGP_IMPORT_MAX: number
}

const (
	defaultPort       = 179
	defaultHold       = 90 * time.Second
	defaultRestart    = 120 * time.Second
	defaultImportMax  = 1000
	defaultReceiveMax = 100_000
	maxImport         = 10_000
	maxPassword       = 80 // bytes, of the kernel
	asTrans           = 23456
)

// Parse turns what the user said into a Config. It touches nothing. All that
// is wrong is reported at once, one line each. Without peers there is nothing
// to do, and any other setting is an error.
func Parse(s Settings) (Config, error) {
	if strings.TrimSpace(s.Peers) == "" {
		if s != (Settings{Peers: s.Peers}) {
			return Config{}, errors.New("read BGP settings: BGP_PEERS is empty; name a router, or clear the others")
		}
		return Config{}, nil
	}
	c := Config{ReceiveMax: defaultReceiveMax}
	var errs []error
	field := func(name, text string, parse func(string) error) {
		if err := parse(strings.TrimSpace(text)); err != nil {
			errs = append(errs, fmt.Errorf("read %s: %w", name, err))
		}
	}
	field("BGP_AS", s.AS, func(text string) (err error) {
		c.AS, err = parseAS(text)
		return err
	})
	field("BGP_ROUTER_ID", s.RouterID, func(text string) (err error) {
		c.RouterID, err = parseRouterID(text)
		return err
	})
	field("BGP_LISTEN", s.Listen, func(text string) (err error) {
		c.Listen, err = parseListen(text)
		return err
	})
	var ttlSecurity bool
	field("BGP_TTL_SECURITY", s.TTLSecurity, func(text string) (err error) {
		ttlSecurity, err = parseSwitch(text)
		return err
	})
	field("BGP_PEERS", s.Peers, func(text string) (err error) {
		c.Peers, err = parsePeers(text, c.AS, ttlSecurity)
		return err
	})
	field("the BGP password file", s.Passwords, func(text string) error { return setPasswords(c.Peers, text) })
	field("BGP_COMMUNITIES", s.Communities, func(text string) (err error) {
		c.Communities, c.Large, err = parseCommunities(text)
		return err
	})
	field("BGP_HOLD", s.Hold, func(text string) (err error) {
		c.Hold, err = parseSeconds(text, defaultHold, 3, 65535)
		return err
	})
	field("BGP_BFD", s.BFD, func(text string) (err error) {
		c.BFD, err = parseSwitch(text)
		return err
	})
	field("BGP_GRACEFUL_RESTART", s.GracefulRestart, func(text string) (err error) {
		c.Restart, err = parseRestart(text, c.BFD)
		return err
	})
	field("BGP_IMPORT", s.Import, func(text string) (err error) {
		c.Import, err = parseImport(text)
		return err
	})
	field("BGP_IMPORT_MAX", s.ImportMax, func(text string) (err error) {
		c.ImportMax, err = parseNumber(text, defaultImportMax, 1, maxImport)
		return err
	})
	if len(errs) > 0 {
		return Config{}, errors.Join(errs...)
	}
	return c, nil
}

func parseAS(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 || n == 1<<32-1 || n == asTrans {
		return 0, fmt.Errorf("%q is not the number of an AS, such as 65001", text)
	}
	return uint32(n), nil
}

func parseRouterID(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("%q is not an IPv4 address", text)
	}
	return a, nil
}

func parseListen(text string) (netip.AddrPort, error) {
	if text == "" || text == "off" {
		return netip.AddrPort{}, nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is neither off nor ADDRESS:PORT, such as 0.0.0.0:179", text)
	}
	return a, nil
}

func parseSwitch(text string) (bool, error) {
	switch text {
	case "", "off":
		return false, nil
	case "on":
		return true, nil
	}
	return false, fmt.Errorf("%q is none of off, on", text)
}

func parseNumber(text string, fallback, low, high int) (int, error) {
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%q is not a number from %d to %d", text, low, high)
	}
	return n, nil
}

func parseSeconds(text string, fallback time.Duration, low, high int) (time.Duration, error) {
	if text == "" {
		return fallback, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d%time.Second != 0 || d < time.Duration(low)*time.Second || d > time.Duration(high)*time.Second {
		return 0, fmt.Errorf("%q is not a time in whole seconds from %ds to %ds", text, low, high)
	}
	return d, nil
}

// parseRestart knows that BFD and graceful restart are opposites.
func parseRestart(text string, bfd bool) (time.Duration, error) {
	if text == "off" || text == "" && bfd {
		return 0, nil
	}
	d, err := parseSeconds(text, defaultRestart, 1, 4095)
	if err != nil {
		return 0, fmt.Errorf("%w, nor off", err)
	}
	if bfd {
		return 0, errors.New("routers drop at once what BFD reports dead, so that nothing restarts gracefully; choose one of BGP_BFD and BGP_GRACEFUL_RESTART")
	}
	return d, nil
}

// linkName is what the kernel takes as the name of an interface, and no address.
var linkName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)

func parsePeers(text string, as uint32, ttlSecurity bool) ([]Peer, error) {
	var peers []Peer
	seen := map[string]bool{}
	for item := range strings.SplitSeq(text, ",") {
		p, err := parsePeer(item, as, ttlSecurity)
		if err != nil {
			return nil, err
		}
		if seen[p.Name()] {
			return nil, fmt.Errorf("%s is named twice", p.Name())
		}
		seen[p.Name()] = true
		peers = append(peers, p)
	}
	return peers, nil
}

func parsePeer(text string, as uint32, ttlSecurity bool) (Peer, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return Peer{}, errors.New("a router is missing between two commas")
	}
	p := Peer{Port: defaultPort, TTLSecurity: ttlSecurity}
	if a, err := netip.ParseAddr(words[0]); err == nil {
		p.Addr = a
	} else if linkName.MatchString(words[0]) {
		p.Interface = words[0]
	} else {
		return Peer{}, fmt.Errorf("%q is neither an address nor an interface", words[0])
	}
	switch {
	case p.Interface != "":
	case p.Addr.IsUnspecified() || p.Addr.IsMulticast() || p.Addr.Is4In6():
		return Peer{}, fmt.Errorf("%s is not the address of a router", p.Addr)
	case p.Addr.Is6() && p.Addr.IsLinkLocalUnicast() && p.Addr.Zone() == "":
		return Peer{}, fmt.Errorf("%s exists on every link; name the interface, as %s%%eth0", p.Addr, p.Addr)
	}
	for _, word := range words[1:] {
		if err := p.set(word); err != nil {
			return Peer{}, fmt.Errorf("%s: %w", p.Name(), err)
		}
	}
	switch {
	case p.AS == 0:
		return Peer{}, fmt.Errorf("%s: no AS; write %s as=NUMBER", p.Name(), p.Name())
	case p.Multihop > 0 && p.TTLSecurity:
		return Peer{}, fmt.Errorf("%s: multihop contradicts BGP_TTL_SECURITY=on, which is for direct neighbours", p.Name())
	case p.Multihop > 0 && p.AS == as:
		return Peer{}, fmt.Errorf("%s: multihop is for routers of another AS; leave it out", p.Name())
	case p.Multihop > 0 && p.Interface != "":
		return Peer{}, fmt.Errorf("%s: what is found on an interface is a direct neighbour; leave multihop out", p.Name())
	case p.Source.IsValid() && p.Interface != "":
		return Peer{}, fmt.Errorf("%s: the source on an interface is its link-local address; leave source out", p.Name())
	case p.Source.IsValid() && p.Source.Is4() != p.Addr.Is4():
		return Peer{}, fmt.Errorf("%s: source %s is of the other family", p.Name(), p.Source)
	}
	return p, nil
}

// set takes one word of a peer, as key=value.
func (p *Peer) set(word string) error {
	key, value, _ := strings.Cut(word, "=")
	if value == "" {
		return fmt.Errorf("%q is not KEY=VALUE; separate routers by commas", word)
	}
	var err error
	var n int
	switch key {
	case "as":
		p.AS, err = parseAS(value)
	case "port":
		n, err = parseNumber(value, 0, 1, 65535)
		p.Port = uint16(n)
	case "multihop":
		n, err = parseNumber(value, 0, 1, 255)
		p.Multihop = uint8(n)
	case "source":
		p.Source, err = netip.ParseAddr(value)
	default:
		return fmt.Errorf("unknown key %q; there are as, port, source, multihop", key)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// setPasswords reads the password file. No error names a password.
func setPasswords(peers []Peer, text string) error {
	if text == "" {
		return nil
	}
	if words := strings.Fields(text); len(words) == 1 {
		for i := range peers {
			peers[i].Password = Secret(words[0])
		}
		return checkPassword(words[0], 1)
	}
	for i, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) != 2 {
			return fmt.Errorf("line %d is not ROUTER PASSWORD", i+1)
		}
		if err := checkPassword(words[1], i+1); err != nil {
			return err
		}
		found := false
		for j := range peers {
			if peers[j].Name() == words[0] {
				found = true
				peers[j].Password = Secret(words[1])
			}
		}
		if !found {
			return fmt.Errorf("line %d begins with no router of BGP_PEERS", i+1)
		}
	}
	for _, p := range peers {
		if p.Password == "" {
			return fmt.Errorf("no line for %s; with a password per router, each has one", p.Name())
		}
	}
	return nil
}

func checkPassword(password string, line int) error {
	if len(password) > maxPassword {
		return fmt.Errorf("line %d has a password of %d bytes; the kernel takes %d", line, len(password), maxPassword)
	}
	return nil
}

var wellKnown = map[string]uint32{
	"no-export":     0xffffff01,
	"no-advertise":  0xffffff02,
	"no-export-sub": 0xffffff03,
	"no-peer":       0xffffff04,
}

func parseCommunities(text string) (plain []uint32, large []LargeCommunity, err error) {
	if text == "" {
		return nil, nil, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if c, ok := wellKnown[item]; ok {
			plain = append(plain, c)
			continue
		}
		parts := strings.Split(item, ":")
		bits := map[int]int{2: 16, 3: 32}[len(parts)]
		var n [3]uint64
		bad := bits == 0
		for i := 0; i < len(parts) && !bad; i++ {
			n[i], err = strconv.ParseUint(parts[i], 10, bits)
			bad = err != nil
		}
		switch {
		case bad:
			return nil, nil, fmt.Errorf("%q is none of N:N (to 65535), N:N:N, no-export, no-advertise, no-export-sub, no-peer", item)
		case bits == 16:
			plain = append(plain, uint32(n[0]<<16|n[1]))
		default:
			large = append(large, LargeCommunity{uint32(n[0]), uint32(n[1]), uint32(n[2])})
		}
	}
	return plain, large, nil
}

func parseImport(text string) ([]Match, error) {
	if text == "" {
		return nil, nil
	}
	var out []Match
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		prefix, within := strings.CutSuffix(item, "+")
		p, err := netip.ParsePrefix(prefix)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is not a prefix, such as 0.0.0.0/0, or 10.0.0.0/8+ for all inside of it", item)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%q has host bits; write %s", item, p.Masked())
		}
		out = append(out, Match{Prefix: p, Within: within})
	}
	return out, nil
}
