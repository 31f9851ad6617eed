//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// held is an address that a running container has, as its engine says.
type held struct {
	host      *lab.Host
	container string // id
	name      string
	network   string
	ip        string
}

func (h held) String() string { return fmt.Sprintf("%s on %s", h.name, h.host.Name) }

// holdings asks all engines of the hosts at once which addresses their running
// containers have. A host whose engine does not answer has none to show.
func holdings(ctx context.Context, hosts []*lab.Host) []held {
	all := make([][]held, len(hosts))
	var wait sync.WaitGroup
	for i, h := range hosts {
		wait.Go(func() { all[i], _ = holdingsOf(ctx, h) })
	}
	wait.Wait()
	return slices.Concat(all...)
}

func holdingsOf(ctx context.Context, h *lab.Host) ([]held, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/containers/json", nil)
	if err != nil {
		return nil, err
	}
	res, err := h.Client().Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var list []struct {
		ID              string `json:"Id"`
		Names           []string
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress, GlobalIPv6Address string }
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		return nil, fmt.Errorf("list containers of %s: %w", h.Name, err)
	}
	var out []held
	for _, c := range list {
		for network, n := range c.NetworkSettings.Networks {
			for _, ip := range []string{n.IPAddress, n.GlobalIPv6Address} {
				if ip != "" {
					out = append(out, held{h, c.ID, fmt.Sprint(c.Names), network, ip})
				}
			}
		}
	}
	return out, nil
}

// twice finds addresses of a network that two containers hold at one moment.
// The engines are asked one after the other, so an address that moved between
// two answers shows up twice: it counts when the one that was seen first still
// has it after the other was seen.
func twice(ctx context.Context, hosts []*lab.Host, network string) []string {
	first := holdings(ctx, hosts)
	byIP := map[string][]held{}
	for _, h := range first {
		if h.network == network {
			byIP[h.ip] = append(byIP[h.ip], h)
		}
	}
	var found []string
	for ip, all := range byIP {
		if len(all) < 2 {
			continue
		}
		again := holdings(ctx, hosts)
		still := slices.DeleteFunc(slices.Clone(all), func(h held) bool {
			return !slices.ContainsFunc(again, func(a held) bool { return a.container == h.container && a.ip == ip && a.network == network })
		})
		if len(still) > 1 {
			found = append(found, fmt.Sprintf("%s is held by %v", ip, still))
		}
	}
	return found
}

// pools is what isthmus ipam says of one pool.
type poolReport struct {
	Pool   string
	Blocks []struct {
		Block      string
		Holder     string // its id
		Host       string
		Here       bool
		Used, Free int
	}
	Used   []struct{ Addr, Name string }
	Shares []struct {
		Name      string
		Addresses int
	}
}

func poolOf(ctx context.Context, h *lab.Host, subnet string) (poolReport, error) {
	out, err := isthmus(ctx, h, "ipam", "--json")
	if err != nil {
		return poolReport{}, err
	}
	var all []poolReport
	if err := decode(out, &all); err != nil {
		return poolReport{}, err
	}
	for _, p := range all {
		if p.Pool == subnet {
			return p, nil
		}
	}
	return poolReport{}, fmt.Errorf("%s has no pool %s: %s", h.Name, subnet, out)
}
