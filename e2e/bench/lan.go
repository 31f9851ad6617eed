package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// A lanKind is a way to put containers into a LAN, by Docker's driver of that
// name and by isthmus in the mode of that name.
type lanKind struct {
	name   string
	parent string // an interface of its own: one has children of one kind, and the plain path is by one without
	subnet string // of the LAN, without its last number
}

// lanKinds are in their default modes: bridge, and l2.
var lanKinds = []lanKind{
	{"macvlan", "eth1", "10.97.1."},
	{"ipvlan", "eth2", "10.97.2."},
}

// lan measures each kind beside Docker's own, and that twice, with containers of
// their own: how far two equal paths are apart is how far the rest can be
// trusted.
func lan(ctx context.Context, o options, kinds []lanKind) (err error) {
	l, err := lab.Up(ctx, lab.Config{Hosts: 2, Progress: progress})
	if err != nil {
		return err
	}
	defer func() {
		if downErr := l.Down(); err == nil {
			err = downErr
		}
	}()
	ref, err := l.PushPlugin(ctx, o.plugin)
	if err != nil {
		return err
	}
	progress("installing the plugin")
	for _, h := range l.Hosts() {
		if err := h.InstallPlugin(ctx, ref, "JOIN=host1,host2", "CLUSTER_KEY=only for the benchmark"); err != nil {
			return err
		}
	}
	plain, err := hostPath(ctx, l)
	if err != nil {
		return err
	}
	paths, compare := []*path{plain}, []ratio(nil)
	for _, k := range kinds {
		has, err := k.prepare(ctx, l)
		if err != nil {
			return err
		}
		if !has {
			progress(fmt.Sprintf("this kernel lacks %s, which is left out; -machine has one with it", k.name))
			continue
		}
		var three [3]*path
		for i, p := range []struct{ name, network string }{
			{"Docker's " + k.name, "docker-" + k.name},
			{"Docker's " + k.name + " again", "docker-" + k.name},
			{"isthmus " + k.name, "isthmus-" + k.name},
		} {
			if three[i], err = containerPath(ctx, l, p.name, p.network); err != nil {
				return err
			}
		}
		docker, again, ours := three[0], three[1], three[2]
		paths = append(paths, docker, again, ours)
		compare = append(compare, ratio{docker, plain}, ratio{ours, plain}, ratio{again, docker}, ratio{ours, docker})
	}
	if len(compare) == 0 {
		return nil
	}
	return report(ctx, o, l, paths, compare)
}

// prepare gives both hosts the parent and both networks, or says that the kernel
// has not got the kind.
func (k lanKind) prepare(ctx context.Context, l *lab.Lab) (bool, error) {
	for i, h := range l.Hosts() {
		if err := l.AddLink(ctx, h.Index, k.parent); err != nil {
			return false, err
		}
		if has, err := k.known(ctx, h); !has {
			return false, err
		}
		// Docker gives each host's first container the same address, unless each is told a part of its own.
		common := []string{"--subnet", k.subnet + "0/24", "--gateway", k.subnet + "254", "-o", "parent=" + k.parent}
		for _, args := range [][]string{
			append([]string{"-d", k.name, "--ip-range", fmt.Sprintf("%s%d/28", k.subnet, 16+16*i)}, append(common, "docker-"+k.name)...),
			append([]string{"-d", driver, "--ipam-driver", driver, "--ip-range", k.subnet + "128/26", "-o", "mode=" + k.name},
				append(common, "isthmus-"+k.name)...),
		} {
			if _, err := h.Docker(ctx, append([]string{"network", "create"}, args...)...); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// known makes a link of the kind, which loads its module, and removes it.
func (k lanKind) known(ctx context.Context, h *lab.Host) (bool, error) {
	_, err := h.Exec(ctx, "ip", "link", "add", "link", k.parent, "name", "probe", "type", k.name)
	if err != nil {
		lacks := strings.Contains(err.Error(), "Unknown device type") || strings.Contains(err.Error(), "not supported")
		if lacks {
			err = nil
		}
		return false, err
	}
	_, err = h.Exec(ctx, "ip", "link", "del", "probe")
	return true, err
}
