package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

type serveCmd struct {
	Echo int `help:"Port of the TCP and UDP echo." default:"7000"`
	Sink int `help:"Port of the TCP sink." default:"7001"`
	HTTP int `help:"Port of the HTTP server, which answers with the host's name." default:"80"`

	Socket string `help:"Also accept connections on a unix socket, as the engine wants of a plugin."`
}

// Run serves IPv4 and IPv6 on all addresses until it is told to end.
func (s *serveCmd) Run(ctx context.Context) error {
	echo, err := net.Listen("tcp", portOf(s.Echo))
	if err != nil {
		return err
	}
	sink, err := net.Listen("tcp", portOf(s.Sink))
	if err != nil {
		return err
	}
	web, err := net.Listen("tcp", portOf(s.HTTP))
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", portOf(s.Echo))
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if s.Socket != "" {
		plugin, err := net.Listen("unix", s.Socket)
		if err != nil {
			return err
		}
		defer plugin.Close()
		go accept(plugin, echoTCP)
	}
	g.Go(func() error { return accept(echo, echoTCP) })
	g.Go(func() error { return accept(sink, measureSink) })
	g.Go(func() error { return echoUDP(packets) })
	g.Go(func() error {
		return http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s\n", name, r.RemoteAddr)
		}))
	})
	g.Go(func() error {
		<-ctx.Done()
		return errors.Join(echo.Close(), sink.Close(), web.Close(), packets.Close())
	})
	report(map[string]any{"ready": true, "name": name})
	if err := g.Wait(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func portOf(p int) string { return ":" + strconv.Itoa(p) }

func accept(l net.Listener, handle func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

func echoTCP(c net.Conn) {
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

func echoUDP(c net.PacketConn) error {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err == nil {
			c.WriteTo(b[:n], from) // a lost answer is the asker's to count
		}
	}
}

// received is what the sink measured of one connection.
type received struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Mbit    float64 `json:"mbitPerSecond"`
}

// measureSink reads to the end and answers with what came, timed here, where no
// send buffer flatters.
func measureSink(c net.Conn) {
	b := make([]byte, 256<<10)
	var total int64
	var first time.Time
	for {
		n, err := c.Read(b)
		if first.IsZero() {
			first = time.Now()
		}
		total += int64(n)
		if err != nil {
			break
		}
	}
	seconds := time.Since(first).Seconds()
	json.NewEncoder(c).Encode(received{Bytes: total, Seconds: seconds, Mbit: float64(total) * 8 / 1e6 / seconds})
}
