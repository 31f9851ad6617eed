package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c commands
	k := kong.Must(&c, kong.Name("isthmus"), kong.UsageOnError(),
		kong.Description("One Docker network across many hosts. Without serve: ask the plugin on this host."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	parsed, err := k.Parse(os.Args[1:])
	k.FatalIfErrorf(err)
	parsed.BindTo(ctx, (*context.Context)(nil))
	parsed.Bind(&console{out: os.Stdout, json: c.JSON, socket: c.Socket})
	if err := parsed.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "isthmus: %v\n", err)
		os.Exit(1)
	}
}

// gcPercent trades processor time, of which the plugin uses little, for memory, which
// the host's containers need: 10 MB of 65 with a thousand endpoints.
const gcPercent = 50

type serveCommand struct {
	Settings
}

// Run is the plugin. Settings that are refused end a plain install; a managed
// plugin stays up to say so, because Docker shows nobody its exit.
func (s *serveCommand) Run(ctx context.Context, c *console) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	cfg, refused := s.Check()
	if c.socket != "" {
		cfg.Socket = c.socket
	}
	log := newLogger(cfg)
	if refused != nil && !managed() {
		return refused
	}
	log.WithField("version", version).WithField("key", cfg.Secret.String()).Info("isthmus begins")
	return newServer(cfg, func() (kernel.Kernel, error) {
		return kernel.Open(kernel.Config{Log: log.WithField("part", "kernel")})
	}, log).Run(ctx, refused)
}

// managed reports whether this is the managed plugin, by a mount that only its
// manifest makes.
func managed() bool { return exists("/host/proc/1") }

func newLogger(cfg Config) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	if cfg.LogLevel != 0 {
		log.SetLevel(cfg.LogLevel)
	}
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	if cfg.LogJSON {
		log.SetFormatter(&logrus.JSONFormatter{})
	}
	return log
}
