package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/driver/kernel"

	"github.com/sirupsen/logrus"
)

// commands is the command line. Those that later versions will have are named,
// so that asking for them says so.
type commands struct {
	JSON   bool   `help:"Print JSON."`
	Socket string `env:"ISTHMUS_SOCKET" placeholder:"FILE" help:"The plugin's socket; with serve, where to open it."`

	Serve     serveCommand     `cmd:"" help:"Be the plugin."`
	Status    statusCommand    `cmd:"" help:"This host, members, networks and health on one screen."`
	Members   membersCommand   `cmd:"" help:"The hosts of the cluster."`
	Networks  networksCommand  `cmd:"" help:"The networks of this host."`
	Endpoints endpointsCommand `cmd:"" help:"The endpoints of these networks, on all hosts."`
	Ipam      ipamCommand      `cmd:"" help:"Address pools: who owns which block, what is used and free."`
	Node      nodeCommand      `cmd:"" help:"Take another host out of the cluster."`
	Leave     leaveCommand     `cmd:"" help:"Take this host out of the cluster, and give back all that it holds."`
	Recover   recoverCommand   `cmd:"" help:"Go on from this host when the majority of the voters is lost for good."`
	Backup    backupCommand    `cmd:"" help:"Write what the cluster agreed about to a file."`
	Restore   restoreCommand   `cmd:"" help:"Go on from a backup when no host has a newer copy."`
	Reset     resetCommand     `cmd:"" help:"Clear this host of all that isthmus made, and make it a new host."`
	Version   versionCommand   `cmd:"" help:"The version of this command and of the plugin."`

	Doctor laterCommand `cmd:"" hidden:""`
	Trace  laterCommand `cmd:"" hidden:""`
	Watch  laterCommand `cmd:"" hidden:""`
	Key    laterCommand `cmd:"" hidden:""`
}

// errNotWell makes the exit status say what the tables said.
var errNotWell = errors.New("not all is well, see above")

// console is where a command's answer goes.
type console struct {
	out    io.Writer
	json   bool
	socket string
}

// show prints v, as JSON or as the table that render draws.
func (c *console) show(v any, render func(io.Writer)) error {
	if !c.json {
		render(c.out)
		return nil
	}
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// report asks the plugin for name, shows it, and ends well only if well does.
func report[T any](ctx context.Context, c *console, name string, render func(io.Writer, T), well func(T) bool) error {
	plugin, err := connect(ctx, c.socket)
	if err != nil {
		return err
	}
	var v T
	if err := plugin.get(ctx, name, &v); err != nil {
		return err
	}
	if err := c.show(v, func(w io.Writer) { render(w, v) }); err != nil {
		return err
	}
	if !well(v) {
		return errNotWell
	}
	return nil
}

type statusCommand struct{}

func (statusCommand) Run(ctx context.Context, c *console) error {
	return report(ctx, c, "status", renderStatus, func(s Status) bool { return s.Ready && len(s.Problems) == 0 })
}

type membersCommand struct{}

func (membersCommand) Run(ctx context.Context, c *console) error {
	return report(ctx, c, "members", renderMembers, func(ms []cluster.Member) bool {
		return !anyOf(ms, func(m cluster.Member) bool { return m.State == cluster.Failed })
	})
}

type networksCommand struct {
	List   networksList   `cmd:"" default:"1" help:"List them."`
	Forget networksForget `cmd:"" help:"Drop a network that Docker has no more, with its addresses."`
}

type networksList struct{}

func (networksList) Run(ctx context.Context, c *console) error {
	return report(ctx, c, "networks", renderNetworksWith, func(ns []driver.NetworkStatus) bool {
		return !anyOf(ns, func(n driver.NetworkStatus) bool { return len(n.Problems) > 0 })
	})
}

type networksForget struct {
	What string `arg:"" help:"Docker network id or its beginning, VNI, or subnet."`
}

func (f networksForget) Run(ctx context.Context, c *console) error {
	return change(ctx, c, "networks/forget", ForgetRequest(f), renderForget)
}

type endpointsCommand struct{}

func (endpointsCommand) Run(ctx context.Context, c *console) error {
	return report(ctx, c, "endpoints", renderEndpoints, func([]driver.EndpointStatus) bool { return true })
}

type ipamCommand struct{}

func (ipamCommand) Run(ctx context.Context, c *console) error {
	return report(ctx, c, "ipam", renderPools, func(ps []PoolReport) bool {
		return !anyOf(ps, func(p PoolReport) bool {
			lost := anyOf(p.DHCP, func(l LeaseReport) bool { return l.Lost || l.Problem != "" })
			return p.Problem != "" || len(p.Alarms)+len(p.Conflicts) > 0 || lost
		})
	})
}

type resetCommand struct {
	Force bool   `help:"Although containers are attached, or this is the cluster's only voter."`
	State string `default:"/var/lib/isthmus" placeholder:"DIR" help:"State of a plain install, where no plugin answers (${default})."`
}

func (r resetCommand) Run(ctx context.Context, c *console) error {
	plugin, err := connect(ctx, c.socket)
	if errors.Is(err, errNoPlugin) && c.socket == "" {
		log := logrus.New()
		log.SetLevel(logrus.WarnLevel)
		k, err := kernel.Open(kernel.Config{Log: log})
		if err != nil {
			return err
		}
		defer k.Close()
		if err := resetWithout(ctx, k, r.State); err != nil {
			return err
		}
		return c.show(ResetReport{}, func(w io.Writer) {
			fmt.Fprintf(w, "No plugin is running: cleared the kernel and %s.\n", r.State)
			fmt.Fprintln(w, "The state of a managed plugin goes with docker plugin rm.")
		})
	}
	if err != nil {
		return err
	}
	var done ResetReport
	if err := plugin.post(ctx, "reset", ResetRequest{Force: r.Force}, &done); err != nil {
		return err
	}
	return c.show(done, func(w io.Writer) { renderReset(w, done) })
}

type nodeCommand struct {
	Rm nodeRemove `cmd:"" help:"Remove a host for good, with all that it holds. It must be reset before it can join again."`
}

type nodeRemove struct {
	What string `arg:"" help:"The host's name, its id, or the first eight digits of that."`
	Dead bool   `help:"It is off and will not come back: what it had may be used by others at once."`
}

func (r nodeRemove) Run(ctx context.Context, c *console) error {
	return change(ctx, c, "node/rm", RemoveRequest(r), renderRemove)
}

type leaveCommand struct{}

func (leaveCommand) Run(ctx context.Context, c *console) error {
	return change(ctx, c, "leave", struct{}{}, renderLeave)
}

type recoverCommand struct{}

func (recoverCommand) Run(ctx context.Context, c *console) error {
	return change(ctx, c, "recover", struct{}{}, renderRebuilt)
}

type backupCommand struct {
	File string `arg:"" optional:"" default:"-" help:"Where to write it; - is the standard output."`
}

// Run writes the backup beside the file first: one that is cut short must not
// take the place of one that is whole.
func (b backupCommand) Run(ctx context.Context, c *console) error {
	plugin, err := connect(ctx, c.socket)
	if err != nil {
		return err
	}
	var copied json.RawMessage
	if err := plugin.get(ctx, "backup", &copied); err != nil {
		return err
	}
	if b.File == "-" {
		_, err := fmt.Fprintf(c.out, "%s\n", copied)
		return err
	}
	if err := writeFile(b.File, copied); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	return nil
}

type restoreCommand struct {
	File string `arg:"" help:"What isthmus backup wrote; - is the standard input."`
}

func (r restoreCommand) Run(ctx context.Context, c *console) error {
	from := io.Reader(os.Stdin)
	if r.File != "-" {
		f, err := os.Open(r.File)
		if err != nil {
			return fmt.Errorf("read backup: %w", err)
		}
		defer f.Close()
		from = f
	}
	b, err := io.ReadAll(io.LimitReader(from, maxBackup))
	if err != nil {
		return fmt.Errorf("read backup: %w", err)
	}
	if !json.Valid(b) {
		return fmt.Errorf("read backup: %s is not what isthmus backup writes", r.File)
	}
	return change(ctx, c, "restore", json.RawMessage(b), renderRebuilt)
}

// change asks the plugin to do something, and shows what it did.
func change[Req, Resp any](ctx context.Context, c *console, name string, req Req, render func(io.Writer, Resp)) error {
	plugin, err := connect(ctx, c.socket)
	if err != nil {
		return err
	}
	var done Resp
	if err := plugin.post(ctx, name, req, &done); err != nil {
		return err
	}
	return c.show(done, func(w io.Writer) { render(w, done) })
}

type versionCommand struct{}

// Run answers without a plugin, too.
func (versionCommand) Run(ctx context.Context, c *console) error {
	v := struct {
		Command string `json:"command"`
		Plugin  string `json:"plugin,omitempty"`
	}{Command: version}
	if plugin, err := connect(ctx, c.socket); err == nil {
		var s Status
		if err := plugin.get(ctx, "status", &s); err == nil {
			v.Plugin = s.Version
		}
	}
	return c.show(v, func(w io.Writer) {
		fmt.Fprintf(w, "isthmus %s\n", v.Command)
		if v.Plugin != "" && v.Plugin != v.Command {
			fmt.Fprintf(w, "plugin  %s\n", v.Plugin)
		}
	})
}

type laterCommand struct {
	Args []string `arg:"" optional:"" passthrough:""`
}

func (laterCommand) Run() error {
	return errors.New("this version does not have this command yet; isthmus --help lists those that it has")
}

func anyOf[T any](s []T, f func(T) bool) bool {
	for _, v := range s {
		if f(v) {
			return true
		}
	}
	return false
}
