// Command box is the program that the lab puts on its hosts and into its
// containers: it boots hosts, answers and asks over every kind of traffic,
// measures, and records what the kernel changes. What it saw it prints as JSON, one object a line; it exits with 0
// when all went as asked.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/isthmus-net/isthmus/e2e/lab/boot"
)

type commands struct {
	Serve      serveCmd      `cmd:"" help:"Answer: TCP and UDP echo, a TCP sink that measures, HTTP."`
	TCP        tcpCmd        `cmd:"" name:"tcp" help:"Send bytes to an echo server and compare what returns."`
	UDP        udpCmd        `cmd:"" name:"udp" help:"Send datagrams to an echo server and count what returns."`
	Get        getCmd        `cmd:"" help:"Fetch from an HTTP server."`
	Recv       recvCmd       `cmd:"" help:"Print each datagram to a port, unicast, broadcast or of a multicast group."`
	Send       sendCmd       `cmd:"" help:"Send datagrams to an address, a broadcast address or a multicast group."`
	Meet       meetCmd       `cmd:"" help:"Talk to others that do the same, until the input ends; print who is heard, and how."`
	Stream     streamCmd     `cmd:"" help:"Keep a numbered flow to an echo server; report loss, duplicates and gaps at the end."`
	Throughput throughputCmd `cmd:"" help:"Measure TCP throughput to the sink of serve."`
	RR         rrCmd         `cmd:"" name:"rr" help:"Measure TCP request-response times to the echo of serve."`
	Frame      frameCmd      `cmd:"" help:"Send one Ethernet frame."`
	RA         raCmd         `cmd:"" name:"ra" help:"Send one IPv6 router advertisement."`
	Record     recordCmd     `cmd:"" help:"Print each change of links and forwarding entries with its time, missing none."`
	Idle       idleCmd       `cmd:"" help:"Print each time that this process had to wait for a CPU."`
}

// The ports of serve.
const (
	echoPort = 7000
	sinkPort = 7001
	httpPort = 80
)

func main() {
	boot.Main(os.Args[1:])
	var c commands
	parsed := kong.Parse(&c, kong.Name("box"), kong.UsageOnError())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parsed.BindTo(ctx, (*context.Context)(nil))
	if err := parsed.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		os.Exit(1)
	}
}

// report prints one line of JSON.
func report(v any) { json.NewEncoder(os.Stdout).Encode(v) }
