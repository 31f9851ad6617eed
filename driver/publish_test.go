package driver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// asks publishes ports of an endpoint as Docker does for -p 127.0.0.1:HOST:80.
func (h *host) asks(id string, ports ...uint16) error {
	var list []any
	for _, port := range ports {
		list = append(list, map[string]any{"Proto": 6, "Port": 80, "HostIP": "127.0.0.1", "HostPort": port, "HostPortEnd": port})
	}
	return h.ProgramExternalConnectivity(anyContext, &network.ProgramExternalConnectivityRequest{EndpointID: id, Options: map[string]any{portMapKey: list}})
}

// got is the one port that an endpoint has.
func (h *host) got(id string) kernel.Publish {
	h.t.Helper()
	list := h.store.intent().Published[id].Got
	h.check(len(list) == 1, fmt.Sprintf("published of %s: %v", id, list))
	return list[0]
}

// publishing is a host with endpoint e1, which has a port of the kernel's choice.
func publishing(t *testing.T) (*host, kernel.Publish) {
	t.Helper()
	h := startHost(t)
	h.ok(h.create("gw", []string{"10.1.0.0/16"}, "mode=routed"))
	h.run("e1", "gw", "10.1.0.2/16")
	h.ok(h.asks("e1", 0))
	return h, h.got("e1")
}

// A port that the kernel chose is the same after a restart; where another program
// took it meanwhile, that one keeps it, and status says so until it is free again.
func TestPublishedPortsOutliveTheProcess(t *testing.T) {
	h, p := publishing(t)
	h.awaitHas(p.String())
	dies := func() {
		h.stop()
		h.ports.release("e1") // as the end of a process does
	}
	dies()
	h.start(hasty)
	h.await("the next process holds the port", func() bool { return !free("tcp", p.Host.Port()) })
	h.contains(p.String())
	dies()
	taker, err := net.Listen("tcp", p.Host.String())
	h.start(hasty)
	h.ok(err)
	h.awaitNot(p.String())
	said := func() bool {
		for _, problem := range h.Status().Problems {
			if strings.Contains(problem.Cause, "lost its ports") && strings.Contains(problem.Cause, p.Host.String()+" is taken: by ") {
				return true
			}
		}
		return false
	}
	h.await("status names the port", said)
	h.ok(taker.Close())
	h.awaitHas(p.String())
	h.await("status is quiet", func() bool { return !said() })
	if h.got("e1") != p {
		t.Errorf("got %v, had %v", h.got("e1"), p)
	}
}

// What cannot be stored is not held, and what was before is.
func TestPublishWithoutADisk(t *testing.T) {
	h, before := publishing(t)
	var spare uint16
	h.ok(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			spare = netip.MustParseAddrPort(l.Addr().String()).Port()
			err = l.Close()
		}
		return err
	}())
	h.ok(h.db.Close())
	if err := h.asks("e1", spare); !errors.Is(err, bbolterrors.ErrDatabaseNotOpen) {
		t.Fatalf("error %v, want %v", err, bbolterrors.ErrDatabaseNotOpen)
	}
	if h.got("e1") != before || !free("tcp", spare) || free("tcp", before.Host.Port()) {
		t.Errorf("got %v, free: %d %t, %d %t", h.got("e1"), spare, free("tcp", spare), before.Host.Port(), free("tcp", before.Host.Port()))
	}
}
