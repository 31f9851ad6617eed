// Command lab makes Docker hosts on this machine and works with them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

type commands struct {
	ID string `help:"Name of the lab." default:"demo" env:"ISTHMUS_LAB"`

	Up     upCmd     `cmd:"" help:"Start hosts, each with its own Docker engine; they stay up until down."`
	Down   downCmd   `cmd:"" help:"End the hosts and remove their disks."`
	List   listCmd   `cmd:"" help:"List the labs of this machine."`
	Exec   execCmd   `cmd:"" help:"Run a command on a host."`
	Docker dockerCmd `cmd:"" help:"Run docker on a host."`
	Push   pushCmd   `cmd:"" help:"Push a managed plugin to the lab's registry, and print its reference."`
	Reboot rebootCmd `cmd:"" help:"Power a host off and on; its disk stays."`
	Cut    cutCmd    `cmd:"" help:"Drop all frames between two hosts."`
	Heal   healCmd   `cmd:"" help:"Undo every cut."`
	Logs   logsCmd   `cmd:"" help:"Print what a host's engine and plugins logged."`
	Sweep  sweepCmd  `cmd:"" help:"Remove what is left of labs whose owner is gone."`

	Machine machineCmd `cmd:"" help:"Run tests or a command on another kernel, in a machine that qemu emulates."`
}

func main() {
	var c commands
	parsed := kong.Parse(&c, kong.Name("lab"), kong.UsageOnError(),
		kong.Description("Docker hosts on this machine: namespaces with an engine each, joined by a switch."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parsed.BindTo(ctx, (*context.Context)(nil))
	if err := parsed.Run(&c); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

type upCmd struct {
	Hosts        int    `help:"How many." default:"3"`
	Engine       string `help:"Debian release to take the engine from; none: this machine's docker.io."`
	MTU          int    `help:"MTU of the underlay in bytes." default:"1500"`
	IPv6Underlay bool   `name:"ipv6-underlay" help:"No IPv4 on the underlay."`
}

func (u *upCmd) Run(ctx context.Context, c *commands) error {
	begin := time.Now()
	l, err := lab.Up(ctx, lab.Config{
		ID: c.ID, Hosts: u.Hosts, Engine: u.Engine, MTU: u.MTU, IPv6Underlay: u.IPv6Underlay, Detached: true,
		Progress: func(step string) { fmt.Printf("%6.1fs  %s\n", time.Since(begin).Seconds(), step) },
	})
	if err != nil {
		return err
	}
	fmt.Printf("%6.1fs  lab %s is up\n", time.Since(begin).Seconds(), l.ID())
	for _, h := range l.Hosts() {
		fmt.Printf("         %s  %s\n", h.Name, h.IP())
	}
	return nil
}

type downCmd struct{}

func (*downCmd) Run(c *commands) error {
	l, err := lab.Attach(c.ID)
	if err != nil {
		return err
	}
	return l.Down()
}

type listCmd struct{}

func (*listCmd) Run() error {
	labs, err := lab.List()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tHOSTS\tENGINE\tSTATE\tSINCE")
	for _, l := range labs {
		state := "ends with its test"
		switch {
		case !l.Live:
			state = "left behind: lab sweep"
		case !l.Made:
			state = "starting"
		case l.Detached:
			state = "up"
		}
		engine := l.Engine
		if engine == "" {
			engine = "installed"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", l.ID, l.Hosts, engine, state, l.Since.Format(time.DateTime))
	}
	return w.Flush()
}

// host finds host1, or 1.
func (c *commands) host(name string) (*lab.Lab, *lab.Host, error) {
	l, err := lab.Attach(c.ID)
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, h := range l.Hosts() {
		if h.Name == name || h.Name == "host"+name {
			return l, h, nil
		}
		names = append(names, h.Name)
	}
	return nil, nil, fmt.Errorf("find host %q: lab %s has %s", name, c.ID, strings.Join(names, ", "))
}

type execCmd struct {
	Host string   `arg:"" help:"host1, or 1."`
	Args []string `arg:"" passthrough:"" help:"Command and its arguments."`
}

func (e *execCmd) Run(ctx context.Context, c *commands) error {
	_, h, err := c.host(e.Host)
	if err != nil {
		return err
	}
	// In place of this process, so that a terminal is the command's own.
	cmd := h.Command(ctx, e.Args...)
	if cmd.Err != nil {
		return cmd.Err
	}
	return syscall.Exec(cmd.Path, cmd.Args, append(cmd.Env, "TERM="+os.Getenv("TERM")))
}

type dockerCmd struct {
	Host string   `arg:"" help:"host1, or 1."`
	Args []string `arg:"" passthrough:"" help:"Arguments of docker."`
}

func (d *dockerCmd) Run(ctx context.Context, c *commands) error {
	e := execCmd{Host: d.Host, Args: append([]string{"docker"}, d.Args...)}
	return e.Run(ctx, c)
}

type pushCmd struct {
	Dir  string `arg:"" type:"existingdir" help:"Directory with config.json and rootfs."`
	Name string `help:"Name and tag in the registry." default:"isthmus:latest"`
}

func (p *pushCmd) Run(ctx context.Context, c *commands) error {
	l, err := lab.Attach(c.ID)
	if err != nil {
		return err
	}
	ref, err := l.PushPluginAs(ctx, p.Dir, p.Name)
	if err == nil {
		fmt.Println(ref)
	}
	return err
}

type rebootCmd struct {
	Host   string `arg:"" help:"host1, or 1."`
	Engine bool   `help:"Start the engine again." default:"true" negatable:""`
}

func (r *rebootCmd) Run(ctx context.Context, c *commands) error {
	_, h, err := c.host(r.Host)
	if err != nil {
		return err
	}
	if r.Engine {
		return h.Reboot(ctx)
	}
	return h.Boot(ctx)
}

type cutCmd struct {
	From   string `arg:"" help:"host1, or 1."`
	To     string `arg:"" help:"host2, or 2."`
	OneWay bool   `help:"Only what the first sends."`
	Loss   int    `help:"Percentage of frames to drop, both ways." default:"100"`
}

func (k *cutCmd) Run(c *commands) error {
	l, from, err := c.host(k.From)
	if err != nil {
		return err
	}
	_, to, err := c.host(k.To)
	if err != nil {
		return err
	}
	if k.OneWay {
		return l.CutOneWay(from.Index, to.Index)
	}
	return l.Loss(from.Index, to.Index, k.Loss)
}

type healCmd struct{}

func (*healCmd) Run(c *commands) error {
	l, err := lab.Attach(c.ID)
	if err != nil {
		return err
	}
	return l.Heal()
}

type logsCmd struct {
	Host string `arg:"" help:"host1, or 1."`
}

func (g *logsCmd) Run(c *commands) error {
	_, h, err := c.host(g.Host)
	if err != nil {
		return err
	}
	fmt.Print(h.Logs())
	return nil
}

type sweepCmd struct{}

func (*sweepCmd) Run(ctx context.Context) error {
	swept, err := lab.Sweep(ctx)
	for _, id := range swept {
		fmt.Println("removed", id)
	}
	return err
}
