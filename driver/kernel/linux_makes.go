package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Makes implements Kernel. What probe asks for is refused as invalid (EINVAL) by a
// kernel that knows the kind, or as there already (EEXIST: a tunnel from anywhere to
// anywhere, which the module makes for itself), and as not supported by one that does
// not, after it tried to load the module (rtnl_newlink in net/core/rtnetlink.c). A host
// may keep modules from making that tunnel (net.core.fb_tunnels_only_for_init_net): then
// there is one now, which goes at once.
func (k *Linux) Makes(_ context.Context, kind Kind) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.makes(kind)
}

func (k *Linux) makes(kind Kind) (bool, error) {
	switch kind {
	case VXLAN, Bridge, Veth:
		return true, nil // without these nothing works at all
	}
	err := k.probe(kind)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EEXIST):
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err == nil:
		err = k.h.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: Prefix + "probe"}})
		if err == nil {
			return true, nil
		}
	}
	return false, fmt.Errorf("ask the kernel for %s: %w", kind, err)
}

// explain says what the kernel's refusal to create a link means.
func (k *Linux) explain(l Link, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		kind := l.Kind.Over(l.Local)
		if able, failed := k.makes(kind); failed == nil && !able {
			return fmt.Errorf("%w (%w)", Lacks(kind), err)
		}
	case l.Parent == "":
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is busy: it is a port of a bridge or bond, or macvlan and ipvlan links would meet on it; name the bridge or bond as the parent, or another one: %w", l.Parent, err)
	case errors.Is(err, unix.EINVAL) && l.Kind == Macvlan:
		return fmt.Errorf("%s takes no such link: it is no Ethernet, has a lower MTU, or one of it and its macvlan links is in mode passthru, which is alone on its parent: %w", l.Parent, err)
	}
	return err
}
