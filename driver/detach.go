package driver

import (
	"context"
	"fmt"
)

// SetDetached cuts this host's endpoints off from those of other hosts, for a
// reason that people are told, with the remedy; "" lets them in again. While
// they are cut off, their devices are down but stay, and those in a LAN are muted,
// so that running containers recover by themselves; others are told of no endpoint; and no container
// starts.
func (d *Driver) SetDetached(reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.detached == reason {
		return
	}
	if reason != "" {
		d.log.WithField("reason", reason).Warn("this host's containers are cut off from other hosts")
	} else {
		d.log.Info("this host's containers are let in again")
	}
	d.detached = reason
	close(d.attached)
	d.attached = make(chan struct{})
	d.loop.wake()
}

// attachable waits a moment, which it takes after a start, until endpoints of
// this host may take part, and says why not.
func (d *Driver) attachable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.pace.attach)
	defer cancel()
	for {
		d.mu.Lock()
		reason, changed := d.detached, d.attached
		d.mu.Unlock()
		if reason == "" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("this host's containers are cut off from other hosts: %s", reason)
		}
	}
}
