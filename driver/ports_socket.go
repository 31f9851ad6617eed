package driver

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// socket holds a port.
type socket interface {
	port() uint16
	Close()
}

var (
	errTaken    = errors.New("port is taken")
	errNoFamily = errors.New("the host has no IPv6")
)

// fd is a bound socket.
type fd int

func (f fd) Close() { _ = unix.Close(int(f)) }

func (f fd) port() uint16 {
	at, err := unix.Getsockname(int(f))
	if err != nil {
		return 0
	}
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return uint16(at.Port)
	case *unix.SockaddrInet6:
		return uint16(at.Port)
	}
	return 0
}

// nobody stands for a port that no program can have: the kernel lacks SCTP, and
// forwards it even so.
type nobody uint16

func (n nobody) port() uint16 { return uint16(n) }
func (n nobody) Close()       {}

// bind takes a port of the host in the calling process's network namespace; of
// port 0 one of the kernel's choice. The socket takes no connections. errTaken says
// that somebody has it.
func bind(proto string, at netip.AddrPort) (socket, error) {
	f, err := bound(proto, at, false)
	if proto == "tcp" && errors.Is(err, unix.EADDRINUSE) {
		// Connections that ended may still be in TIME_WAIT there. Who listens is in
		// the way of this as well; and who was not allowed to share the port cannot
		// share it with one that listens.
		f, err = bound(proto, at, true)
	}
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, errTaken
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EADDRNOTAVAIL) && at.Addr() == netip.IPv6Unspecified():
		return nil, errNoFamily
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s is no address of this host", at.Addr())
	case errors.Is(err, unix.EPROTONOSUPPORT) && proto == "sctp":
		if at.Port() == 0 {
			return nil, errors.New("the kernel of this host has no SCTP to choose a port: name one")
		}
		return nobody(at.Port()), nil
	}
	return nil, fmt.Errorf("bind %s %s: %w", proto, at, err)
}

func bound(proto string, at netip.AddrPort, listen bool) (fd, error) {
	family, typ, number := unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch proto {
	case "udp":
		typ, number = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case "sctp":
		number = unix.IPPROTO_SCTP
	}
	var name unix.Sockaddr = &unix.SockaddrInet4{Port: int(at.Port()), Addr: [4]byte(at.Addr().AsSlice())}
	if at.Addr().Is6() {
		family, name = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	n, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, number)
	if err != nil {
		return 0, err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(n, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && listen {
		err = unix.SetsockoptInt(n, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil && typ == unix.SOCK_DGRAM {
		_ = unix.SetsockoptInt(n, unix.SOL_SOCKET, unix.SO_RCVBUF, 0) // the least that there is: nobody reads
	}
	if err == nil {
		err = unix.Bind(n, name)
	}
	if err == nil && listen {
		err = unix.Listen(n, 0)
	}
	if err != nil {
		_ = unix.Close(n)
		return 0, err
	}
	return fd(n), nil
}

// whoHolds names the program that has a port, as far as this process sees it: a
// managed plugin sees no processes of the host, and says the user.
func whoHolds(proto string, at netip.AddrPort) string {
	ask := map[string]string{"tcp": "ss -Hlntp", "udp": "ss -Hlnup", "sctp": "ss -HlnSp"}[proto]
	remedy := fmt.Sprintf("on the host, %s 'sport = :%d' names it", ask, at.Port())
	// Of this thread: the process's first one may be in a container's namespace just now.
	for _, table := range []string{"/proc/thread-self/net/" + proto, "/proc/thread-self/net/" + proto + "6"} {
		uid, inode := lookInTable(table, at)
		if inode == "" {
			continue
		}
		if name := processWith("socket:[" + inode + "]"); name != "" {
			return "by " + name
		}
		return fmt.Sprintf("by a program of the user with id %s (%s)", uid, remedy)
	}
	return "by another program (" + remedy + ")"
}

// lookInTable finds the owner and the inode of the socket that stands in the way
// of at, in a table as /proc/net/tcp. A listener goes before others.
func lookInTable(file string, at netip.AddrPort) (uid, inode string) {
	f, err := os.Open(file)
	if err != nil {
		return "", ""
	}
	defer f.Close()
	const local, state, owner, number = 1, 3, 7, 9
	for s := bufio.NewScanner(f); s.Scan(); {
		col := strings.Fields(s.Text())
		if len(col) <= number {
			continue
		}
		addr, ok := parseTableAddr(col[local])
		if !ok || addr.Port() != at.Port() {
			continue
		}
		one, other := addr.Addr().Unmap(), at.Addr()
		// A socket of :: may be for IPv4 as well.
		if one != other && !one.IsUnspecified() && !(other.IsUnspecified() && one.Is4() == other.Is4()) {
			continue
		}
		const listening, timeWait = "0A", "06"
		if col[state] != timeWait && (inode == "" || col[state] == listening) {
			uid, inode = col[owner], col[number]
		}
	}
	return uid, inode
}

// parseTableAddr reads "0100007F:1F90": words of the machine, and a port.
func parseTableAddr(text string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	p, err2 := hex.DecodeString(port)
	if err != nil || err2 != nil || len(p) != 2 || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		for i := 0; i < len(b); i += 4 {
			slices.Reverse(b[i : i+4])
		}
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(p[0])<<8|uint16(p[1])), ok
}

// processWith names a process that has a file open, of those in sight.
func processWith(target string) string {
	list, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, file := range list {
		if to, err := os.Readlink(file); err != nil || to != target {
			continue
		}
		pid := strings.Split(file, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

func sortedOwners(held map[string][]heldPort) []string {
	return slices.Sorted(maps.Keys(held))
}
