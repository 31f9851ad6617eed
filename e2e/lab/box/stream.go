package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
)

type streamCmd struct {
	target
	Over     string        `help:"tcp or udp." enum:"tcp,udp" default:"tcp"`
	Interval time.Duration `help:"Time between two messages." default:"10ms"`
	For      time.Duration `help:"How long; 0: until told to end."`
	Linger   time.Duration `help:"How long to wait for the last echoes." default:"1s"`
}

// flow is what became of a stream. Gaps are times in which nothing returned.
type flow struct {
	Sent       int      `json:"sent"`
	Received   int      `json:"received"` // distinct
	Duplicates int      `json:"duplicates"`
	Lost       int      `json:"lost"`
	LostRanges [][2]int `json:"lostRanges,omitempty"` // first and last number of each run
	MaxGap     float64  `json:"maxGapMillis"`
	Broken     string   `json:"broken,omitempty"` // why the connection ended early
}

const messageSize = 64

// Run prints {"ready":true} when the first echo returned, and the flow at the
// end. A TCP connection that breaks is not dialled again.
func (s *streamCmd) Run(ctx context.Context) error {
	if s.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.For)
		defer cancel()
	}
	c, err := net.DialTimeout(s.Over, s.port(echoPort), s.Timeout)
	if err != nil {
		return err
	}
	defer c.Close()

	echoes, broken := make(chan uint64, 1024), make(chan error, 1)
	go s.receive(c, echoes, broken)

	var f flow
	var missing []bool // by number: sent, but not returned
	last := time.Now()
	note := func(n uint64) {
		if n >= uint64(len(missing)) {
			return
		}
		if gap := float64(time.Since(last).Microseconds()) / 1000; f.Received > 0 && gap > f.MaxGap {
			f.MaxGap = gap
		}
		last = time.Now()
		if !missing[n] {
			f.Duplicates++
			return
		}
		missing[n] = false
		if f.Received++; f.Received == 1 {
			report(map[string]any{"ready": true})
		}
	}
	tick := time.NewTicker(s.Interval)
	defer tick.Stop()
	message := make([]byte, messageSize)
	sending, linger := true, (<-chan time.Time)(nil)
	end := func() {
		if sending {
			sending, linger = false, time.After(s.Linger)
			tick.Stop()
		}
	}
	done := ctx.Done()
loop:
	for {
		select {
		case <-done:
			done = nil
			end()
		case <-linger:
			break loop
		case n := <-echoes:
			note(n)
			if !sending && f.Received == f.Sent && !s.udp() {
				break loop
			}
		case err := <-broken:
			f.Broken = err.Error()
			break loop
		case <-tick.C:
			if !sending {
				continue
			}
			binary.BigEndian.PutUint64(message, uint64(f.Sent))
			missing = append(missing, true)
			f.Sent++
			// UDP reports an earlier datagram's ICMP error here; its loss is counted.
			if _, err := c.Write(message); err != nil && !s.udp() {
				f.Broken = err.Error()
				break loop
			}
		}
	}
	for n, lost := range missing {
		if !lost {
			continue
		}
		f.Lost++
		if k := len(f.LostRanges); k > 0 && f.LostRanges[k-1][1] == n-1 {
			f.LostRanges[k-1][1] = n
		} else {
			f.LostRanges = append(f.LostRanges, [2]int{n, n})
		}
	}
	report(f)
	return nil
}

func (s *streamCmd) udp() bool { return s.Over == "udp" }

func (s *streamCmd) receive(c net.Conn, echoes chan<- uint64, broken chan<- error) {
	b := make([]byte, messageSize)
	for {
		_, err := io.ReadFull(c, b)
		if err != nil && s.udp() && !errors.Is(err, net.ErrClosed) {
			continue // an ICMP error, reported once
		}
		if err != nil {
			broken <- err
			return
		}
		echoes <- binary.BigEndian.Uint64(b)
	}
}
