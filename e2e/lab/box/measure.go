package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

type throughputCmd struct {
	target
	For     time.Duration `help:"How long." default:"5s"`
	Streams int           `help:"Connections at once." default:"1"`
}

// Run prints the sum over all connections of what the other end received.
func (t *throughputCmd) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	results := make([]received, t.Streams)
	for i := range results {
		g.Go(func() error { return t.stream(ctx, &results[i]) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var sum received
	for _, r := range results {
		sum.Bytes += r.Bytes
		sum.Mbit += r.Mbit
		sum.Seconds = max(sum.Seconds, r.Seconds)
	}
	report(sum)
	return nil
}

func (t *throughputCmd) stream(ctx context.Context, r *received) error {
	c, err := (&net.Dialer{Timeout: t.Timeout}).DialContext(ctx, "tcp", t.port(sinkPort))
	if err != nil {
		return err
	}
	defer c.Close()
	var over atomic.Bool
	timer := time.AfterFunc(t.For, func() { over.Store(true) })
	defer timer.Stop()
	c.SetDeadline(time.Now().Add(t.For + 10*time.Second))
	b := make([]byte, 128<<10)
	for !over.Load() && ctx.Err() == nil {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	return json.NewDecoder(c).Decode(r)
}

type rrCmd struct {
	target
	For  time.Duration `help:"How long." default:"5s"`
	Size int           `help:"Bytes of request and of response." default:"1"`
}

// roundTrips are times in microseconds.
type roundTrips struct {
	Count int     `json:"count"`
	Mean  float64 `json:"meanMicros"`
	P50   float64 `json:"p50Micros"`
	P99   float64 `json:"p99Micros"`
}

func (r *rrCmd) Run(ctx context.Context) error {
	c, err := (&net.Dialer{Timeout: r.Timeout}).DialContext(ctx, "tcp", r.port(echoPort))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(r.For + 10*time.Second))
	b := make([]byte, r.Size)
	times := make([]time.Duration, 0, 1<<20)
	begin := time.Now()
	for now := begin; now.Sub(begin) < r.For && ctx.Err() == nil; {
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		after := time.Now()
		times = append(times, after.Sub(now))
		now = after
	}
	if len(times) == 0 {
		return errors.New("measure round trips: none was made")
	}
	slices.Sort(times)
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	report(roundTrips{
		Count: len(times),
		Mean:  micros(time.Since(begin)) / float64(len(times)),
		P50:   micros(times[len(times)/2]),
		P99:   micros(times[len(times)*99/100]),
	})
	return nil
}
