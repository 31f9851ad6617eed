// Package transport carries everything that the hosts of a cluster say to each
// other over one port number: TCP for streams, UDP for membership packets and
// MTU probes.
//
// # Model
//
// A [Transport] owns both sockets. Streams are TLS 1.3 on both sides. The
// protocol of a stream is chosen by ALPN, and accepted streams arrive at the
// [Transport.Listener] of their protocol, but for RPC, which [Handle] and
// [HandleStream] serve. After the TLS handshake both ends exchange a prelude:
// wire version, cluster, host. Ends of two clusters part there, each with an
// error that names both clusters and the remedy.
//
// All keys derive from the one secret of the cluster by HKDF-SHA256: the key
// of a certificate authority, the membership key, the probe key. Each host
// signs the certificate of its own identity key with the derived authority, so
// to be let in is to know the secret, and to be a host is to hold its identity
// key: [Conn.Peer] is proven, not claimed. Verification knows no time; nothing
// expires, and a host without a clock may join.
//
// A host that Config.Admit turns away gets no stream but RPC, in either
// direction, and is told why. A question to a host of another cluster names no
// cluster ([Anonymous]).
//
// Without a secret the keys derive from a fixed public string. The code path
// is the same and streams are still encrypted, but anybody may join, and
// membership packets are in clear.
//
// # Binding
//
// Both sockets are bound to the wildcard address of both families, so that an
// address changed by DHCP breaks no listener. A host still speaks from
// Config.Address: streams and packets to peers of its family leave with that
// source while the host has it, and a probe is answered from the address that
// it was sent to. A loopback Config.Address is bound as it is, which lets many
// transports share one machine in tests.
//
// Both sockets are made for paths narrower than the links say: streams keep
// their segments below 1280-byte packets, and membership packets leave without
// DF. Control traffic therefore passes where full packets are lost, and can
// say so ([Transport.ProbeMTU]).
//
// # Traps
//
//   - The secret is not stretched. Whoever can connect can try to guess it
//     offline, so it must be random (32 bytes), not a word.
//   - A Conn that nobody accepts is closed after five seconds; so is one for a
//     protocol that has no listener.
//   - A peer that stops reading or answering is cut off after about ten
//     seconds (TCP user timeout and keepalive), in the middle of a write too.
//   - [Transport.Packets] drops when its reader is slow, as UDP does.
//   - Handlers must return when their context ends: Run waits for them.
package transport
