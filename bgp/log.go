package bgp

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

// bridge carries what the library logs to the log of the program, one level
// lower than the library has it: what matters of a session, the speaker says
// itself. Some failures are told nowhere but in the library's log; hear gets
// those that name a router.
type bridge struct {
	log   logrus.FieldLogger
	debug bool         // the log takes debug lines
	ended *atomic.Bool // what the library says now means nothing any more
	hear  func(router netip.Addr, message string, field func(string) slog.Value)
	attrs []slog.Attr
}

func newBridge(log logrus.FieldLogger, ended *atomic.Bool, hear func(netip.Addr, string, func(string) slog.Value)) *bridge {
	b := &bridge{log: log, ended: ended, hear: hear}
	switch l := log.(type) {
	case *logrus.Logger:
		b.debug = l.IsLevelEnabled(logrus.DebugLevel)
	case *logrus.Entry:
		b.debug = l.Logger.IsLevelEnabled(logrus.DebugLevel)
	}
	return b
}

// Enabled lets all pass: failures to connect are debug lines.
func (b *bridge) Enabled(context.Context, slog.Level) bool { return true }

func (b *bridge) Handle(_ context.Context, r slog.Record) error {
	if b.ended.Load() {
		return nil
	}
	if _, ok := causes[r.Message]; ok {
		b.tell(r)
	}
	if r.Level < slog.LevelInfo || r.Level < slog.LevelWarn && !b.debug {
		return nil
	}
	fields := logrus.Fields{}
	add := func(a slog.Attr) bool {
		fields[a.Key] = a.Value.String()
		return true
	}
	for _, a := range b.attrs {
		add(a)
	}
	r.Attrs(add)
	log := b.log.WithFields(fields)
	switch {
	case r.Level >= slog.LevelError:
		log.Warn("gobgp: " + r.Message)
	case r.Level >= slog.LevelWarn:
		log.Info("gobgp: " + r.Message)
	default:
		log.Debug("gobgp: " + r.Message)
	}
	return nil
}

// tell hands on a line that names a router.
func (b *bridge) tell(r slog.Record) {
	fields := map[string]slog.Value{}
	for _, a := range b.attrs {
		fields[a.Key] = a.Value
	}
	r.Attrs(func(a slog.Attr) bool {
		fields[a.Key] = a.Value
		return true
	})
	if router, err := netip.ParseAddr(fields["Key"].String()); err == nil {
		b.hear(router, r.Message, func(key string) slog.Value { return fields[key] })
	}
}

func (b *bridge) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *b
	c.attrs = append(slices.Clip(b.attrs), attrs...)
	return &c
}

// WithGroup is not used by the library; fields keep their names.
func (b *bridge) WithGroup(string) slog.Handler { return b }
