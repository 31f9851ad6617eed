// Package e2e tests isthmus end to end: real Docker engines on several hosts
// of the lab, the managed plugin installed from a registry, real packets and
// real faults. Build tag e2e, root; see scripts/test.
package e2e
