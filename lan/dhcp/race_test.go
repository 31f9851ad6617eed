//go:build race

package dhcp_test

// raceEnabled: the race detector crashes on synctest bubbles with many timers
// before Go 1.27. Bubbles run without it, real sockets with it.
const raceEnabled = true
