package gossip

import (
	"errors"
	"fmt"
	"io"

	"github.com/isthmus-net/isthmus/cluster"
)

// Messages of an exchange, in order. The caller sends syn; the other end
// answers same, or its digest. Then the caller sends wants and updates, ends
// with done, and the other end sends updates and done. Each end writes only
// while the other reads, so full buffers block nobody.
const (
	msgSyn     byte = 1 + iota // flags, root
	msgSame                    // flags
	msgDigest                  // flags, summaries
	msgWants                   // summaries
	msgUpdates                 // updates
	msgDone                    // flags
)

const (
	flagComplete = 1 << iota // the sender has settled and published
	flagMore                 // the sender has more to send than the budget allows
)

const (
	// exchangeBudget bounds what each end sends in one exchange, but for the
	// last update. The next exchange resumes: what arrived is not wanted again.
	exchangeBudget = 2 << 20
	// frameBudget is where one message of updates ends and the next begins.
	frameBudget = 64 << 10
)

// replica is the table as an exchange needs it: each call is atomic. Tests
// exchange between bare tables.
type replica interface {
	root() [32]byte
	digest() []summary
	compare(theirs []summary) (wants, gives []summary)
	since(have summary) (update, bool)
	merge(u update) (bool, error)
}

// outcome is what one end knows after an exchange.
type outcome struct {
	peerComplete bool
	more         bool // either end has more to send
	learned      int  // streams that changed here
	bad          error
}

// session is one end of an exchange.
type session struct {
	io.ReadWriter
	replica
	complete bool // this end has settled and published
	budget   int
	dice     *dice
	outcome
}

func (s *session) flags() byte {
	if s.complete {
		return flagComplete
	}
	return 0
}

// call runs the caller's end.
func (s *session) call() error {
	root := s.root()
	if err := writeFrame(s, msgSyn, append([]byte{s.flags()}, root[:]...)); err != nil {
		return err
	}
	kind, body, err := readFrame(s)
	if err != nil {
		return err
	}
	d := decoder{b: body}
	s.peerComplete = d.byte()&flagComplete != 0
	if kind == msgSame && !d.failed {
		return nil
	}
	theirs := d.summaries()
	if kind != msgDigest || d.failed {
		return errMalformed
	}
	wants, gives := s.compare(theirs)
	if err := writeFrame(s, msgWants, appendSummaries(nil, wants)); err != nil {
		return err
	}
	if err := s.send(gives); err != nil {
		return err
	}
	_, err = s.receive()
	return err
}

// answer runs the other end.
func (s *session) answer() error {
	kind, body, err := readFrame(s)
	if err != nil {
		return err
	}
	d := decoder{b: body}
	s.peerComplete = d.byte()&flagComplete != 0
	root := d.bytes(32)
	if kind != msgSyn || d.failed {
		return errMalformed
	}
	if s.root() == [32]byte(root) {
		return writeFrame(s, msgSame, []byte{s.flags()})
	}
	if err := writeFrame(s, msgDigest, appendSummaries([]byte{s.flags()}, s.digest())); err != nil {
		return err
	}
	wants, err := s.receive()
	if err != nil {
		return err
	}
	return s.send(wants)
}

// send answers wants, in random order so that many peers of one host learn
// different things first.
func (s *session) send(wants []summary) error {
	s.dice.shuffle(len(wants), func(i, j int) { wants[i], wants[j] = wants[j], wants[i] })
	var frame []byte
	sent, flags := 0, byte(0)
	for _, w := range wants {
		if sent+len(frame) >= s.budget {
			flags, s.more = flagMore, true
			break
		}
		u, ok := s.since(w)
		if !ok {
			continue
		}
		b := appendUpdate(nil, u)
		if len(b) > maxFrame {
			s.bad = fmt.Errorf("send stream of %s: %d bytes exceed the limit of %d: too many records on one host", w.owner.Short(), len(b), maxFrame)
			continue
		}
		if len(frame)+len(b) > frameBudget && len(frame) > 0 {
			if err := writeFrame(s, msgUpdates, frame); err != nil {
				return err
			}
			sent += len(frame)
			frame = nil
		}
		frame = append(frame, b...)
	}
	if len(frame) > 0 {
		if err := writeFrame(s, msgUpdates, frame); err != nil {
			return err
		}
	}
	return writeFrame(s, msgDone, []byte{flags})
}

// receive takes in updates until the sender is done, and returns what it
// wants. An update that does not fit is noted and asked for again later.
func (s *session) receive() (wants []summary, err error) {
	for {
		kind, body, err := readFrame(s)
		if err != nil {
			return nil, err
		}
		d := decoder{b: body}
		switch kind {
		case msgWants:
			wants = d.summaries()
		case msgUpdates:
			for len(d.b) > 0 && !d.failed {
				if u := d.update(); !d.failed {
					s.take(u)
				}
			}
		case msgDone:
			s.more = s.more || d.byte()&flagMore != 0
		default:
			return nil, errMalformed
		}
		if d.failed {
			return nil, errMalformed
		}
		if kind == msgDone {
			return wants, nil
		}
	}
}

func (s *session) take(u update) {
	changed, err := s.merge(u)
	switch {
	case changed:
		s.learned++
	case errors.Is(err, errGap), errors.Is(err, errDiverged) && !u.full:
		s.more = true // the table moved on meanwhile, or needs a snapshot
	case err != nil:
		s.bad = fmt.Errorf("take in stream of %s: %w", cluster.HostIDOf(u.key).Short(), err)
	}
}
