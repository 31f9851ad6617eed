package ledger

import (
	"fmt"
	"io"
	"log"

	"github.com/hashicorp/go-hclog"
	"github.com/sirupsen/logrus"
)

// raftLog passes raft's messages on, one level lower than raft means them:
// what matters of them to people reaches them through Status.
type raftLog struct {
	log  logrus.FieldLogger
	name string
	args []any
}

var _ hclog.Logger = (*raftLog)(nil)

func (l *raftLog) Log(level hclog.Level, msg string, args ...any) {
	entry := l.log.WithField("part", l.name)
	args = append(l.args[:len(l.args):len(l.args)], args...)
	for i := 0; i+1 < len(args); i += 2 {
		entry = entry.WithField(fmt.Sprint(args[i]), fmt.Sprint(args[i+1]))
	}
	switch {
	case level >= hclog.Error:
		entry.Warn(msg)
	case level == hclog.Warn:
		entry.Info(msg)
	default:
		entry.Debug(msg)
	}
}

func (l *raftLog) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLog) IsTrace() bool { return false }
func (l *raftLog) IsDebug() bool { return true }
func (l *raftLog) IsInfo() bool  { return true }
func (l *raftLog) IsWarn() bool  { return true }
func (l *raftLog) IsError() bool { return true }

func (l *raftLog) ImpliedArgs() []any { return l.args }
func (l *raftLog) With(args ...any) hclog.Logger {
	return &raftLog{l.log, l.name, append(l.args[:len(l.args):len(l.args)], args...)}
}
func (l *raftLog) Name() string { return l.name }
func (l *raftLog) Named(name string) hclog.Logger {
	return &raftLog{l.log, l.name + "." + name, l.args}
}
func (l *raftLog) ResetNamed(name string) hclog.Logger { return &raftLog{l.log, name, l.args} }
func (l *raftLog) SetLevel(hclog.Level)                {}
func (l *raftLog) GetLevel() hclog.Level               { return hclog.Debug }

func (l *raftLog) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}
func (l *raftLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return raftLogWriter{l} }

type raftLogWriter struct{ l *raftLog }

func (w raftLogWriter) Write(b []byte) (int, error) {
	w.l.Info(string(b))
	return len(b), nil
}
