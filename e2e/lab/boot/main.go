package boot

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main runs the command that args name and does not return if it is one of
// this package's; otherwise it returns false.
//
//	enter CMD ARG...        run a command among the host's processes
//	enter -log FILE CMD...  start it in the background, print its process id
func Main(args []string) bool {
	if len(args) == 0 {
		return false
	}
	var err error
	switch args[0] {
	case stageCgroup:
		err = bootCgroup(args[1])
	case stageHost:
		err = bootHost()
	case stageEnter:
		err = enter(args[1:])
	default:
		return false
	}
	// A first process that fails is read by Start; all others by a person.
	out := os.Stdout
	if args[0] == stageEnter {
		out = os.Stderr
	}
	fmt.Fprintln(out, err)
	os.Exit(127)
	return true
}

func bootCgroup(path string) error {
	runtime.LockOSThread()
	if err := joinCgroups(path); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare cgroup namespace: %w", err)
	}
	err := syscall.Exec("/proc/self/exe", []string{"box", stageHost}, os.Environ())
	return fmt.Errorf("run second stage: %w", err)
}

func bootHost() error {
	var c Config
	in := json.NewDecoder(os.Stdin)
	if err := in.Decode(&c); err != nil {
		return fmt.Errorf("read host's configuration: %w", err)
	}
	if err := mountAll(c); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	// Docker sets its FORWARD policy to DROP only when it is the one that
	// enables forwarding; a new namespace may inherit it enabled.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		return fmt.Errorf("disable forwarding: %w", err)
	}
	if !c.Detached {
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	if _, err := os.Stdout.WriteString(ready); err != nil {
		return err
	}
	os.Stdout.Close()
	for range children {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}
