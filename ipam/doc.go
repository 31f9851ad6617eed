// Package ipam answers Docker's IpamDriver calls from blocks of addresses that
// this host alone hands out.
package ipam
