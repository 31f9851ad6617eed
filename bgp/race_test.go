//go:build race

package bgp

// raceEnabled: speakers of one process share variables of the library, which
// the race detector reports. Tests with two speakers run without it.
const raceEnabled = true
