// Package ledger keeps what the cluster agreed about: hosts, pools, networks
// and address blocks.
package ledger
