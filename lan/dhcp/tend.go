package dhcp

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// tend does what a lease needs, unless somebody else speaks about it.
func (k *Keeper) tend(ctx context.Context, key Key, h *held) {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	default: // it is being given back, or asked for
		k.mu.Lock()
		h.next = time.Now().Add(time.Second)
		k.mu.Unlock()
		return
	}
	k.mu.Lock()
	old := h.Lease
	what, _ := due(old, h.condition, time.Now())
	bearer := h.bearer
	h.bearer = cluster.MAC{}
	if h.gone {
		what, bearer = wait, cluster.MAC{}
	}
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, speakTime)
	defer cancel()
	var fresh Lease
	var err error
	if !bearer.IsZero() && what != regain {
		borne := old
		borne.MAC = bearer
		if fresh, err = k.cfg.Client.Reboot(ctx, borne); err == nil {
			if err = k.cfg.Store.Put(key, fresh); err == nil {
				k.settle(key, h, confirm, fresh, nil)
				return
			}
		}
		k.cfg.Log.WithField("address", key.Addr.String()).WithError(err).Info("DHCP server keeps an address under another MAC than its container has")
	}
	switch what {
	case wait:
		return
	case confirm:
		fresh, err = k.cfg.Client.Reboot(ctx, old)
	case extend:
		fresh, err = k.cfg.Client.Renew(ctx, old)
	case rebind:
		fresh, err = k.cfg.Client.Rebind(ctx, old)
	case regain:
		fresh, err = k.cfg.Client.Regain(ctx, old)
	}
	if err == nil {
		err = k.cfg.Store.Put(key, fresh)
	}
	if errors.Is(err, context.Canceled) {
		return // the end of Run is nobody's fault
	}
	k.settle(key, h, what, fresh, err)
}

// settle takes note of how an action ended.
func (k *Keeper) settle(key Key, h *held, what action, fresh Lease, err error) {
	log := k.cfg.Log.WithFields(map[string]any{"address": key.Addr.String(), "interface": h.Interface})
	k.mu.Lock()
	now := time.Now()
	before, changed := h.lost || what == regain, false
	if err == nil {
		changed = before || h.problem != "" || !sameTerms(h.Lease, fresh)
		h.Lease, h.condition, h.problem = fresh, condition{sure: true}, ""
	} else {
		if nak := (*NAK)(nil); errors.As(err, &nak) && what != regain {
			h.lost, h.next = true, time.Time{} // ask for it anew at once
		} else {
			h.next = retry(h.Lease, h.lost, now)
		}
		changed = h.problem != err.Error()
		h.problem = err.Error()
	}
	k.mu.Unlock()
	switch {
	case err != nil && what == regain && changed:
		log.WithError(err).Error("address of a container belongs to the DHCP server again")
	case err != nil && changed:
		log.WithError(err).Warn("DHCP lease is not renewed")
	case err == nil && before:
		log.Info("DHCP lease is back")
	}
	if changed {
		k.tell()
	}
}

// sameTerms reports whether two leases differ in their times only.
func sameTerms(a, b Lease) bool {
	a.Granted, a.Renew, a.Rebind, a.Expires = b.Granted, b.Renew, b.Rebind, b.Expires
	return reflect.DeepEqual(a, b)
}
