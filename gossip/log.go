package gossip

import (
	"io"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	logEvery   = time.Minute // one message of a class in this time
	logClasses = 256
)

// quiet passes memberlist's log on. It repeats itself while a peer is away, so
// messages that differ only in names, addresses and numbers count as one class
// and are passed once a minute. memberlist has no levels but prefixes.
type quiet struct {
	log logrus.FieldLogger

	mu     sync.Mutex
	passed map[string]time.Time
}

var _ io.Writer = (*quiet)(nil)

func newQuiet(log logrus.FieldLogger) *quiet {
	return &quiet{log: log, passed: map[string]time.Time{}}
}

func (q *quiet) Write(p []byte) (int, error) {
	text := strings.TrimSpace(string(p))
	level := ""
	if rest, ok := strings.CutPrefix(text, "["); ok {
		level, text, _ = strings.Cut(rest, "]")
	}
	text = strings.TrimPrefix(strings.TrimSpace(text), "memberlist: ")
	// It calls a peer that does not answer an error; here that is daily life.
	switch level {
	case "WARN", "ERR", "ERROR":
		if q.pass(text) {
			q.log.Warn("memberlist: " + text)
		}
	default:
		q.log.Debug("memberlist: " + text)
	}
	return len(p), nil
}

func (q *quiet) pass(text string) bool {
	class := classOf(text)
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if last, ok := q.passed[class]; ok && now.Sub(last) < logEvery {
		return false
	}
	if len(q.passed) >= logClasses {
		clear(q.passed)
	}
	q.passed[class] = now
	return true
}

// classOf keeps the words of a message that have no digit in them.
func classOf(text string) string {
	var words []string
	for w := range strings.FieldsSeq(text) {
		if !strings.ContainsAny(w, "0123456789") {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}
