package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Makes implements Kernel. What probe asks for is refused as invalid (EINVAL) by a
// kernel that knows the kind, and as not supported by one that does not, after
// it tried to load the module (rtnl_newlink in net/core/rtnetlink.c).
func (k *Linux) Makes(_ context.Context, kind Kind) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.makes(kind)
}

func (k *Linux) makes(kind Kind) (bool, error) {
	switch kind {
	case Macvlan, IPvlan, VLAN, Dummy, IPIP, GRE:
	default:
		return true, nil // without the others nothing works at all
	}
	err := k.probe(kind)
	switch {
	case errors.Is(err, unix.EINVAL):
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err == nil:
		err = errors.Join(errors.New("it made one without an address"), k.h.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: Prefix + "probe"}}))
	}
	return false, fmt.Errorf("ask the kernel for %s: %w", kind, err)
}

// explain says what the kernel's refusal to create a link means.
func (k *Linux) explain(l Link, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		if able, failed := k.makes(l.Kind); failed == nil && !able {
			return fmt.Errorf("%w (%w)", Lacks(l.Kind), err)
		}
	case l.Parent == "":
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is busy: it is a port of a bridge or bond, or macvlan and ipvlan links would meet on it; name the bridge or bond as the parent, or another one: %w", l.Parent, err)
	case errors.Is(err, unix.EINVAL) && l.Kind == Macvlan:
		return fmt.Errorf("%s takes no such link: it is no Ethernet, has a lower MTU, or one of it and its macvlan links is in mode passthru, which is alone on its parent: %w", l.Parent, err)
	}
	return err
}
