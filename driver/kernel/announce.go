package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/frame"
)

// Announce implements Kernel. Frames to one container are unicast: a macvlan in
// bridge mode delivers them to its sibling, a bridge to the port of that MAC, and
// nothing reaches the wire; they are from the sending link's own MAC, of which no
// bridge learns anything. Those to a LAN leave by the parent.
func (k *Linux) Announce(ctx context.Context, list []Announcement) error {
	type device struct {
		index int
		mac   cluster.MAC
	}
	devices := map[string]device{}
	var errs []error
	for _, a := range list {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		d, ok := devices[a.Dev]
		if !ok {
			l, err := k.h.LinkByName(a.Dev)
			if err == nil && len(l.Attrs().HardwareAddr) == 6 {
				d = device{l.Attrs().Index, cluster.MAC(l.Attrs().HardwareAddr)}
			} else if err != nil {
				errs = append(errs, fmt.Errorf("announce from %s: %w", a.Dev, err))
			}
			devices[a.Dev] = d
		}
		if d.index == 0 {
			continue
		}
		if a.MAC.IsZero() {
			a.MAC = d.mac
		}
		if a.To.IsZero() {
			a.To, d.mac = frame.Everybody(a.IP), a.MAC
		}
		packet := frame.Announce(a.To, d.mac, a.IP, a.MAC)
		to := &unix.SockaddrLinklayer{Ifindex: d.index, Halen: 6}
		copy(to.Addr[:], a.To[:])
		if err := unix.Sendto(k.send, packet, 0, to); err != nil {
			errs = append(errs, fmt.Errorf("announce %s at %s to %s: %w", a.IP, a.MAC, a.To, err))
		}
	}
	return errors.Join(errs...)
}
