//go:build kernel

package driver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// stage is a host, a machine of its LAN and a container, as network namespaces
// of the real kernel. Everything but that is faked.
type stage struct {
	*host
	t                   *testing.T
	self, lan, web, dir string
}

// sh runs a shell command; %H, %L and %W are the namespaces.
func (s *stage) try(command string) (string, error) {
	text := strings.NewReplacer("%H", s.self, "%L", s.lan, "%W", s.web).Replace(command)
	out, err := exec.Command("sh", "-ec", text).CombinedOutput()
	return string(out), err
}

func (s *stage) sh(command string) string {
	s.t.Helper()
	out, err := s.try(command)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// cable connects eth1 of the host with the LAN, where 10.1.0.1 answers, in VLAN 50
// if that is asked for. Containers that send packets are not asked for by ARP: the
// LAN knows the way to them by the host's address.
func (s *stage) cable(vlan, routed bool) {
	s.t.Helper()
	s.sh(`ip -n %H link add eth1 type veth peer name port netns %L
		ip -n %L addr add 10.1.0.1/16 dev port; ip -n %L link set port up; ip -n %H link set eth1 up`)
	if vlan {
		s.sh(`ip -n %L addr flush dev port; ip -n %L link add port.50 link port type vlan id 50
			ip -n %L addr add 10.1.0.1/16 dev port.50; ip -n %L link set port.50 up`)
	}
	if routed {
		s.sh("ip -n %H addr add 10.1.255.1/16 dev eth1; ip -n %L route add 10.1.0.2 via 10.1.255.1")
	}
}

// until waits until a command succeeds.
func (s *stage) until(what, command string) {
	s.t.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) { // polling a condition
		out, err := s.try(command)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			all, _ := s.try("ip -n %H -d addr; ip -n %H route; ip -n %W -d addr; ip -n %W route")
			s.t.Fatalf("waited in vain: %s: %v\n%s\nproblems %v\n%s", what, err, out, s.Status(), all)
		}
	}
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, dir: t.TempDir()}
	s.self, s.lan, s.web = fmt.Sprintf("isthmus-host-%d", os.Getpid()), fmt.Sprintf("isthmus-lan-%d", os.Getpid()), fmt.Sprintf("isthmus-web-%d", os.Getpid())
	for _, ns := range []string{s.self, s.lan, s.web} {
		t.Cleanup(func() { _, _ = s.try("ip netns del " + ns) })
		s.sh("ip netns add " + ns + "; ip -n " + ns + " link set lo up")
	}
	sandbox := filepath.Join(s.dir, "web")
	t.Cleanup(func() { _, _ = s.try("umount " + sandbox) })
	s.sh("touch " + sandbox + "; mount --bind /run/netns/%W " + sandbox)
	h := newHost(t, t.TempDir())
	log := logrus.New()
	log.SetOutput(t.Output())
	opened := make(chan error)
	var k *kernel.Linux
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		opened <- func() (err error) {
			ns, err := os.Open("/run/netns/" + s.self)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			k, err = kernel.Open(kernel.Config{Log: log, Sandboxes: s.dir})
			return err
		}()
	}()
	h.ok(<-opened)
	t.Cleanup(k.Close)
	h.door = k
	p := hasty
	p.audit, p.sandbox = 500*time.Millisecond, 500*time.Millisecond
	h.start(p)
	t.Cleanup(func() { h.stop() })
	s.host = h
	return s
}

// TestLANOnThisKernel runs a container in each kind of network: it reaches the
// LAN and its host, survives its parent, follows its MTU, and leaves nothing.
func TestLANOnThisKernel(t *testing.T) {
	networks := []string{
		"mode=macvlan parent=eth1 host_access=on",
		"mode=macvlan parent=eth1.50 host_access=on",
		"mode=macvlan parent=eth1 macvlan_mode=passthru",
		"mode=ipvlan parent=eth1 host_access=on",
		"mode=ipvlan parent=eth1 ipvlan_mode=l3 host_access=on",
		"mode=ipvlan parent=eth1 ipvlan_mode=l3s ipvlan_flag=private",
	}
	if !testing.Short() { // they differ from one above by a word
		networks = append(networks, "mode=macvlan parent=eth1 macvlan_mode=private bcqueue=2000", "mode=ipvlan parent=eth1.50")
	}
	for _, options := range networks {
		t.Run(options, func(t *testing.T) {
			s := newStage(t)
			vlan, routed := strings.Contains(options, ".50"), strings.Contains(options, "l3")
			kinds := []kernel.Kind{kernel.Macvlan}
			if strings.Contains(options, "ipvlan") {
				kinds[0] = kernel.IPvlan
			}
			if vlan {
				kinds = append(kinds, kernel.VLAN)
			}
			for i := len(kinds) - 1; i >= 0; i-- { // the VLAN is asked for first
				able, err := s.door.Makes(anyContext, kinds[i])
				s.ok(err)
				if !able {
					s.sh("ip -n %H link add eth1 type veth peer name port netns %L; ip -n %H link set eth1 up")
					err := s.create("n", []string{"10.1.0.0/16"}, strings.Fields(options)...)
					s.refused(err, "create network: "+kernel.Lacks(kinds[i]).Error())
					return
				}
			}
			s.cable(vlan, routed)
			s.ok(s.create("n", []string{"10.1.0.0/16"}, strings.Fields(options)...))
			s.ok(s.endpoint("web", "n", "10.1.0.2/16"))
			j, err := s.Join(anyContext, &network.JoinRequest{EndpointID: "web", SandboxKey: filepath.Join(s.dir, "web")})
			s.ok(err)
			// Docker's part.
			s.sh("ip -n %H link set " + j.InterfaceName.SrcName + " netns %W name eth0; ip -n %W addr add 10.1.0.2/16 dev eth0; ip -n %W link set eth0 up")
			if routed {
				s.sh("ip -n %W route add default dev eth0")
			}
			s.await("it is seen", func() bool { return s.store.intent().Endpoints["web"].Inside == "eth0" })
			reach := func() {
				t.Helper()
				s.until("the container reaches the LAN", "ip netns exec %W ping -c1 -W1 10.1.0.1")
				if strings.Contains(options, "host_access") {
					s.until("the host reaches the container", "ip netns exec %H ping -c1 -W1 10.1.0.2")
					s.until("the container reaches the host", "ip netns exec %W ping -c1 -W1 10.1.0.9")
				}
			}
			reach()
			s.ok(s.Sync(anyContext, 0))
			have, err := s.door.Dump(anyContext)
			s.ok(err)
			if ops := kernel.Diff(have, Plan(s.store.intent(), s.view()).State, kernel.Options{}); len(ops) > 0 {
				t.Fatalf("never as planned: %v", ops)
			}
			for _, mtu := range []string{"1400", "1500"} {
				s.sh("ip -n %L link set port mtu " + mtu + "; ip -n %H link set eth1 mtu " + mtu)
				s.until("the MTU follows", "ip -n %W link show eth0 | grep -q 'mtu "+mtu+" '")
			}
			s.sh("ip -n %H link del eth1")
			s.await("it is a problem", s.problem("does not exist on this host"))
			s.cable(vlan, routed)
			reach()
			s.await("all is well", func() bool { return len(s.Status().Problems) == 0 && s.Status().Error == "" })
			s.ok(s.Leave(anyContext, &network.LeaveRequest{EndpointID: "web"}))
			s.sh("ip -n %W link set eth0 down; ip -n %W link set eth0 name " + j.InterfaceName.SrcName + "; ip -n %W link set " + j.InterfaceName.SrcName + " netns %H")
			s.ok(s.DeleteEndpoint(anyContext, &network.DeleteEndpointRequest{EndpointID: "web"}))
			s.ok(s.delete("n"))
			s.sh("ip -n %H addr flush dev eth1 scope global")
			left := s.sh("ip -n %H -o link | cut -d: -f2; ip -n %H route; ip -n %H -6 route show proto 105")
			if names := strings.Fields(left); len(names) != 2 || names[0] != "lo" || !strings.HasPrefix(names[1], "eth1@") {
				t.Fatalf("left on the host:\n%s", left)
			}
			have, err = s.door.Dump(anyContext)
			s.ok(err)
			if len(have) > 0 {
				t.Fatalf("left: %v", have)
			}
		})
	}
}
