package lab

import (
	"context"
	"fmt"
)

// Swarm joins all engines into one Swarm, host1 being the manager, and makes an
// attachable overlay network of that name: Docker's own way to join hosts, to
// compare with.
func (l *Lab) Swarm(ctx context.Context, network string) error {
	manager := l.Host(1)
	if _, err := manager.Docker(ctx, "swarm", "init", "--advertise-addr", manager.IP().String()); err != nil {
		return err
	}
	token, err := manager.Docker(ctx, "swarm", "join-token", "-q", "worker")
	if err != nil {
		return err
	}
	for _, h := range l.hosts[1:] {
		if _, err := h.Docker(ctx, "swarm", "join", "--advertise-addr", h.IP().String(), "--token", token, manager.IP().String()+":2377"); err != nil {
			return err
		}
	}
	if _, err := manager.Docker(ctx, "network", "create", "-d", "overlay", "--attachable", network); err != nil {
		return fmt.Errorf("form swarm: %w", err)
	}
	return nil
}

// LeaveSwarm undoes Swarm.
func (l *Lab) LeaveSwarm(ctx context.Context) error {
	for i := len(l.hosts); i >= 1; i-- {
		if _, err := l.Host(i).Docker(ctx, "swarm", "leave", "--force"); err != nil {
			return err
		}
	}
	return nil
}
