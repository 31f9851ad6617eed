package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

type recordCmd struct{}

type idleCmd struct{}

const idleTick = 10 * time.Millisecond

// Run prints {"ready":true}, sleeps again and again, and prints each time that
// it was kept from waking: when it woke, and how much too late.
func (idleCmd) Run(ctx context.Context) error {
	report(map[string]any{"ready": true})
	for ctx.Err() == nil {
		begun := time.Now()
		time.Sleep(idleTick)
		if late := time.Since(begun) - idleTick; late > idleTick/2 {
			report(map[string]any{"at": time.Now().UnixNano(), "late": late.Nanoseconds()})
		}
	}
	return nil
}

// change is one that the kernel told of: of a link, or of an entry in the
// forwarding database of a device that sends to other hosts.
type change struct {
	At   int64      `json:"at"`   // nanoseconds of the machine's clock, when it was read
	What string     `json:"what"` // link or fdb
	Gone bool       `json:"gone,omitempty"`
	MAC  string     `json:"mac"`
	Name string     `json:"name,omitempty"` // of a link
	Dst  netip.Addr `json:"dst,omitzero"`   // of an entry: the host to send to
}

// recordBuffer holds what the kernel says while this process waits for a CPU.
const recordBuffer = 64 << 20

// Run prints {"ready":true} when it listens, and then every change until it is
// told to end. It fails rather than miss one.
func (recordCmd) Run(ctx context.Context) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH)
	if err != nil {
		return fmt.Errorf("record changes: %w", err)
	}
	defer context.AfterFunc(ctx, s.Close)()
	if err := s.SetReceiveBufferSize(recordBuffer, true); err != nil {
		return fmt.Errorf("record changes: %w", err)
	}
	report(map[string]any{"ready": true})
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil, errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			return errors.New("record changes: some were missed: they came faster than they could be read")
		case err != nil:
			return fmt.Errorf("record changes: %w", err)
		}
		at := time.Now().UnixNano()
		for _, m := range msgs {
			c, err := changeOf(unix.NlMsghdr(m.Header), m.Data)
			if err != nil {
				return fmt.Errorf("record changes: %w", err)
			}
			if c.At = at; c.What != "" {
				report(c)
			}
		}
	}
}

// changeOf reads a notification; What is empty when it tells of something else.
func changeOf(h unix.NlMsghdr, data []byte) (change, error) {
	switch h.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, err := netlink.LinkDeserialize(&h, data)
		if err != nil {
			return change{}, err
		}
		a := l.Attrs()
		return change{What: "link", Gone: h.Type == unix.RTM_DELLINK, MAC: a.HardwareAddr.String(), Name: a.Name}, nil
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := netlink.NeighDeserialize(data)
		if err != nil || n.Family != unix.AF_BRIDGE || n.IP == nil {
			return change{}, err
		}
		return change{What: "fdb", Gone: h.Type == unix.RTM_DELNEIGH, MAC: n.HardwareAddr.String(), Dst: unmapped(n.IP)}, nil
	}
	return change{}, nil
}

func unmapped(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
