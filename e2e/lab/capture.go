package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// markerType is the EtherType of the frame that ends a capture: one of those
// that IEEE 802 keeps for experiments.
const markerType = "0x88b5"

// Capture is a tcpdump that runs on a host.
type Capture struct {
	host  *Host
	iface string
	cmd   *exec.Cmd
	end   context.CancelFunc

	mu      sync.Mutex
	packets []string
	marked  chan struct{} // closed when the marker was seen
	done    chan struct{} // closed when tcpdump ended
}

// Capture records the packets of an interface of the host's that match a filter
// of pcap-filter(7), until Stop. It returns when recording has begun. eth0 is
// the underlay.
func (h *Host) Capture(ctx context.Context, iface, filter string) (*Capture, error) {
	expression := "ether proto " + markerType
	if filter != "" {
		expression += " or (" + filter + ")"
	}
	ctx, end := context.WithCancel(ctx)
	cmd := h.tool(ctx, "tcpdump", "-i", iface, "-nn", "-e", "-v", "-l", "-tt", "--immediate-mode", expression)
	c := &Capture{host: h, iface: iface, cmd: cmd, end: end, marked: make(chan struct{}), done: make(chan struct{})}
	fail := func(err error) (*Capture, error) {
		end()
		return nil, fmt.Errorf("capture on %s of %s: %w", iface, h.Name, err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fail(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fail(err)
	}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	var said strings.Builder
	errLines := bufio.NewScanner(stderr)
	for errLines.Scan() {
		said.WriteString(errLines.Text() + "\n")
		if strings.Contains(errLines.Text(), "listening on") {
			go io.Copy(io.Discard, stderr)
			go c.read(stdout)
			return c, nil
		}
	}
	end()
	return fail(errors.Join(cmd.Wait(), errors.New(said.String())))
}

// read collects packets; tcpdump indents the lines that continue one.
func (c *Capture) read(stdout io.Reader) {
	defer close(c.done)
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		text := lines.Text()
		c.mu.Lock()
		switch {
		case text == "": // its last word
		case strings.Contains(text, "ethertype Unknown ("+markerType+")"):
			select {
			case <-c.marked:
			default:
				close(c.marked)
			}
		case (strings.HasPrefix(text, " ") || strings.HasPrefix(text, "\t")) && len(c.packets) > 0:
			c.packets[len(c.packets)-1] += " " + strings.TrimSpace(text)
		default:
			c.packets = append(c.packets, text)
		}
		c.mu.Unlock()
	}
}

// Packets returns what was seen so far, one packet each, as tcpdump -nn -e -v
// prints it on one line.
func (c *Capture) Packets() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.packets)
}

// Stop ends the capture and returns all packets. None that passed before the
// call is missing: a frame is sent after them, and awaited.
func (c *Capture) Stop(ctx context.Context) ([]string, error) {
	defer c.end()
	_, err := c.host.run(c.host.tool(ctx, c.host.lab.toolPath(), "frame", c.iface), []string{"box", "frame", c.iface})
	if err == nil {
		select {
		case <-c.marked:
		case <-c.done:
			err = errors.New("tcpdump ended early")
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM)
	<-c.done
	c.cmd.Wait()
	if err != nil {
		return nil, fmt.Errorf("end capture on %s of %s: %w", c.iface, c.host.Name, err)
	}
	// What came after the marker is of the time after the call.
	return c.Packets(), nil
}
