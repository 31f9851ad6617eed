package driver

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// portMapKey is the option of ProgramExternalConnectivity that says what -p and -P
// ask for. The engine sends it as JSON of its own types.
const portMapKey = dockerPrefix + "portmap"

// protocolNames are those that Docker knows, by their numbers in IP.
var protocolNames = map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}

// portRequest is one port of a container that shall be one of the host's.
type portRequest struct {
	Proto string     // tcp, udp or sctp
	Port  uint16     // of the container
	Host  netip.Addr // of this host; invalid: all of them
	// First and Last bound the host's port: one port where they are equal, any of
	// them where not, and any free one of the kernel's choice where both are zero.
	First, Last uint16
}

func (r portRequest) String() string {
	host, ports := "", "any port"
	if r.Host.IsValid() {
		host = r.Host.String() + " "
	}
	switch {
	case r.First == 0:
	case r.First == r.Last:
		ports = fmt.Sprintf("port %d", r.First)
	default:
		ports = fmt.Sprintf("ports %d-%d", r.First, r.Last)
	}
	return fmt.Sprintf("%s%s/%s for %d", host, ports, r.Proto, r.Port)
}

// parsePorts reads what is to be published. Ranges arrive taken apart, a port
// each, so that HostPortEnd bounds a choice. What is asked twice counts once. Fields
// that it does not know are ignored: a newer engine may send more.
func parsePorts(options map[string]any) ([]portRequest, error) {
	var list []struct {
		Proto       uint8
		Port        uint16
		HostIP      string
		HostPort    uint16
		HostPortEnd uint16
	}
	if err := readOption(options, portMapKey, &list); err != nil {
		return nil, err
	}
	var out []portRequest
	for _, p := range list {
		r := portRequest{Proto: protocolNames[p.Proto], Port: p.Port, First: p.HostPort, Last: max(p.HostPort, p.HostPortEnd)}
		switch {
		case r.Proto == "":
			return nil, fmt.Errorf("read published ports: protocol %d is none of tcp (6), udp (17) and sctp (132)", p.Proto)
		case r.Port == 0:
			return nil, fmt.Errorf("read published ports: %s/%d has no port of the container", r.Proto, p.HostPort)
		case p.HostPortEnd != 0 && p.HostPortEnd < p.HostPort, p.HostPortEnd != 0 && p.HostPort == 0:
			return nil, fmt.Errorf("read published ports: %d-%d is no range", p.HostPort, p.HostPortEnd)
		}
		if p.HostIP != "" {
			host, err := netip.ParseAddr(p.HostIP)
			if err != nil || host.Zone() != "" {
				return nil, fmt.Errorf("read published ports: host address %q is none", p.HostIP)
			}
			// -p 0.0.0.0:80:80 is for IPv4, and -p 80:80 for both.
			r.Host = host.Unmap()
		}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out, nil
}

// readOption reads an option that was decoded without its type; one that is not
// there leaves into as it is.
func readOption(options map[string]any, key string, into any) error {
	raw, err := json.Marshal(options[key])
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		return fmt.Errorf("read option %s: %w", key, err)
	}
	return nil
}
