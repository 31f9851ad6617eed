// Package machine runs tests on another kernel: a Debian release's own, as users
// have it, with that release's engine, in a machine that qemu emulates. The
// kernel that tests are started on may lack ipvlan, 802.1q, dummy and more.
//
// A machine has no network. It starts from a disk of the cache, on which its
// writes are not kept, and gets what it is to do on a second disk: programs that
// need nothing else, and the list of them. It works that off and powers off.
//
//	cache: vmlinuz, initrd, disk ──┐
//	                               qemu ── port ── what the jobs print, how they end
//	payload: tests, plugin, tool ──┘  └─ console ── what the kernel says
//
// Labs are made inside it as everywhere else: hosts are namespaces of the
// machine. So a test is the same on either kernel; see [Test].
//
// Traps: emulated processors are some ten times slower than real ones, and time
// passes in the machine as outside. It ends with the process that started it.
package machine
