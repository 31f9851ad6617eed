//go:build race

package main

// raceEnabled: speakers of BGP in one process share variables of the library, which
// the race detector reports.
const raceEnabled = true
