package driver

import (
	"testing"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// TestAttachWithoutMacvlan: attach=auto takes what the kernel has.
func TestAttachWithoutMacvlan(t *testing.T) {
	h := startHost(t)
	h.kernel.Lack(kernel.Macvlan)
	h.refused(h.create("n", []string{"10.1.0.0/16"}, "attach=macvlan"),
		"create network: option attach=macvlan: this host's kernel has no macvlan: load the module macvlan, or use -o attach=bridge")
	h.lacks("link is-")
	h.app()
	h.contains("link is-b4097 type bridge")
	h.run("e1", "app", "10.1.0.2/16")
	h.contains("type veth master is-b4097")
}
