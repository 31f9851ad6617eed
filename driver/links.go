package driver

import (
	"context"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// lodgers is what stands on links of this host from inside the sandboxes, by
// kernel.Device.Index, and when that was seen.
type lodgers struct {
	of   map[int][]kernel.Child
	seen time.Time
}

// lookAtLinks refreshes what is known of this host's links, where a network in a
// LAN, or one that this host routes for, needs it: one of intent, or one that only a container speaks for. What is
// in the sandboxes may be as old as age: that is a visit to each of them. Of a
// link that was made anew nothing old is believed, as it has another index.
func (d *Driver) lookAtLinks(ctx context.Context, age time.Duration) error {
	d.mu.Lock()
	needed, inside := slices.ContainsFunc(d.strangers, Tenant.lan), d.lodgers
	d.mu.Unlock()
	var links []kernel.Device
	var err error
	switch in := d.store.intent(); {
	case needed || in.lan():
		links, inside, err = d.links(ctx, inside, age)
	case in.led(): // by which of them the world is reached
		links, err = d.cfg.Kernel.Links(ctx)
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.devices, d.lodgers = links, inside
	return nil
}

// links lists the links of this host with all that stands on them, where what was
// seen in the sandboxes is not older than age, and what it saw there.
func (d *Driver) links(ctx context.Context, inside lodgers, age time.Duration) ([]kernel.Device, lodgers, error) {
	if now := time.Now(); inside.seen.IsZero() || now.Sub(inside.seen) >= age {
		of, err := d.cfg.Kernel.Lodgers(ctx)
		if err != nil {
			return nil, inside, err
		}
		inside = lodgers{of, now}
	}
	links, err := d.cfg.Kernel.Links(ctx)
	if err != nil {
		return nil, inside, err
	}
	for i := range links {
		links[i].Children = slices.Concat(links[i].Children, inside.of[links[i].Index])
	}
	return links, inside, nil
}
