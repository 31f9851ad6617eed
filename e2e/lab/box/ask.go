package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

// target is an address to ask, without the port that the answer comes from.
type target struct {
	Addr    string        `arg:"" help:"Address or name to talk to."`
	Port    int           `help:"Port, if not that of serve."`
	Timeout time.Duration `help:"How long to wait for an answer." default:"3s"`
}

func (t target) port(usual int) string {
	if t.Port == 0 {
		t.Port = usual
	}
	return net.JoinHostPort(t.Addr, strconv.Itoa(t.Port))
}

type tcpCmd struct {
	target
	Size int `help:"Bytes to send." default:"1000"`
}

func (t *tcpCmd) Run(ctx context.Context) error {
	begin := time.Now()
	c, err := (&net.Dialer{Timeout: t.Timeout}).DialContext(ctx, "tcp", t.port(echoPort))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(begin.Add(t.Timeout))
	sent, got := make([]byte, t.Size), make([]byte, t.Size)
	rand.Read(sent)
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		written <- err
	}()
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("read echo of %s: %w", t.Addr, err)
	}
	if err := <-written; err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("read echo of %s: other bytes returned than were sent", t.Addr)
	}
	report(map[string]any{"bytes": t.Size, "micros": time.Since(begin).Microseconds(), "local": c.LocalAddr().String()})
	return nil
}

type udpCmd struct {
	target
	Size     int           `help:"Bytes of each datagram, at least 16." default:"100"`
	Count    int           `help:"Datagrams to send." default:"1"`
	Interval time.Duration `help:"Time between two." default:"10ms"`
	Linger   time.Duration `help:"How long to wait for duplicates when all have returned." default:"200ms"`
}

// Run sends numbered datagrams that carry a token of this run.
func (u *udpCmd) Run(ctx context.Context) error {
	c, err := net.Dial("udp", u.port(echoPort))
	if err != nil {
		return err
	}
	defer c.Close()
	if u.Size < 16 {
		return errors.New("send datagrams: size must be 16 or more")
	}
	sent := make([]byte, u.Size)
	rand.Read(sent)
	failed := make(chan error, 1)
	go func() {
		for i := range u.Count {
			b := bytes.Clone(sent)
			binary.BigEndian.PutUint64(b, uint64(i))
			if _, err := c.Write(b); err != nil {
				failed <- err
				return
			}
			time.Sleep(u.Interval)
		}
	}()
	seen := map[uint64]int{}
	got := make([]byte, 64<<10)
	c.SetReadDeadline(time.Now().Add(u.Timeout + time.Duration(u.Count)*u.Interval))
	for {
		n, err := c.Read(got)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return fmt.Errorf("read echo of %s: %w", u.Addr, err)
		}
		if n != u.Size || !bytes.Equal(got[8:n], sent[8:]) {
			return fmt.Errorf("read echo of %s: other bytes returned than were sent", u.Addr)
		}
		seen[binary.BigEndian.Uint64(got)]++
		if len(seen) == u.Count {
			c.SetReadDeadline(time.Now().Add(u.Linger))
		}
	}
	select {
	case err := <-failed:
		return err
	default:
	}
	duplicates := 0
	for _, n := range seen {
		duplicates += n - 1
	}
	report(map[string]any{"sent": u.Count, "received": len(seen), "duplicates": duplicates})
	if len(seen) != u.Count || duplicates > 0 {
		return fmt.Errorf("read echo of %s: %d of %d returned, %d twice", u.Addr, len(seen), u.Count, duplicates)
	}
	return nil
}
