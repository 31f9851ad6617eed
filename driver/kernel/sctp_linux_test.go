//go:build kernel

package kernel_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Chunks of RFC 9260, section 3.2.
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpPacket is a packet of one chunk with its checksum (RFC 9260, section 6.8,
// appendix A).
func sctpPacket(from, to uint16, tag uint32, chunk byte, cookie string) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0)
	var parameter []byte
	if cookie != "" { // state cookie, section 3.3.3.1
		parameter = binary.BigEndian.AppendUint16([]byte{0, 7}, uint16(4+len(cookie)))
		parameter = append(parameter, cookie...)
	}
	b = append(b, chunk, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(parameter)))
	b = append(b, 0, 0, 0, chunk, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1) // its tag, window, streams, first number
	b = append(b, parameter...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// readSCTP takes sctpPacket apart.
func readSCTP(b []byte) (from, to uint16, chunk byte, cookie string, err error) {
	if len(b) < 32 {
		return 0, 0, 0, "", fmt.Errorf("%d bytes", len(b))
	}
	zeroed := slices.Clone(b)
	clear(zeroed[8:12])
	if got, want := binary.LittleEndian.Uint32(b[8:]), crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)); got != want {
		return 0, 0, 0, "", fmt.Errorf("checksum %#x, want %#x", got, want)
	}
	if end := 12 + int(binary.BigEndian.Uint16(b[14:])); end > 36 && end <= len(b) {
		cookie = string(b[36:end])
	}
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[12], cookie, nil
}

// sctp answers those who open an association at a port as whoami does. The machine's
// own kernel may lack SCTP, so both ends are raw sockets.
func (s *space) sctp(name string, port uint16) {
	s.t.Helper()
	for _, network := range []string{"ip4:132", "ip6:132"} {
		var c net.PacketConn
		if err := s.in(func() (err error) { c, err = net.ListenPacket(network, ""); return err }); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { c.Close() })
		go func() {
			b := make([]byte, 1500)
			for {
				n, peer, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				if from, to, chunk, _, err := readSCTP(b[:n]); err == nil && to == port && chunk == sctpInit {
					_, _ = c.WriteTo(sctpPacket(port, from, sctpInit, sctpInitAck, name+" "+peer.String()), peer)
				}
			}
		}()
	}
}

// opens demands the answer of sctp.
func (s *space) opens(address, want string) {
	s.t.Helper()
	to := netip.MustParseAddrPort(address)
	network := "ip4:132"
	if to.Addr().Is6() {
		network = "ip6:132"
	}
	const port = 5000
	await(s.t, "sctp "+address, func() error {
		return s.in(func() error {
			c, err := net.Dial(network, to.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(fast))
			if _, err := c.Write(sctpPacket(port, to.Port(), 0, sctpInit, "")); err != nil {
				return err
			}
			b := make([]byte, 1500)
			for {
				n, _, err := c.(*net.IPConn).ReadFrom(b) // without the header of IPv4
				if err != nil {
					return err
				}
				from, back, chunk, cookie, err := readSCTP(b[:n])
				switch {
				case err != nil:
					return err
				case chunk != sctpInitAck:
					continue // its own, where both are on one machine
				case from != to.Port() || back != port || cookie != want:
					return fmt.Errorf("%q from port %d to %d, want %q", cookie, from, back, want)
				}
				return nil
			}
		})
	})
}

// SCTP is published as TCP and UDP are.
func TestLinuxPublishSCTP(t *testing.T) {
	t.Parallel()
	eachSite(t, func(t *testing.T, s *site) {
		s.one.sctp("one", 80)
		s.want.Put(publish("sctp", "0.0.0.0:8080", "10.1.0.2:80"), publish("sctp", "[::]:8080", "[fd01::2]:80"))
		apply(t, s.k, s.want)
		s.world.opens("192.0.2.1:8080", "one 192.0.2.2")       // another machine
		s.world.opens("[2001:db8::1]:8080", "one 2001:db8::2") // by IPv6
		s.opens("192.0.2.1:8080", "one 192.0.2.1")             // the host itself
		s.two.opens("192.0.2.1:8080", "one 10.2.0.2")          // another network
		s.mate.opens("192.0.2.1:8080", "one 10.1.0.1")         // a neighbour
		delete(s.want, publish("sctp", "0.0.0.0:8080", "10.1.0.2:80").Key())
		apply(t, s.k, s.want)
		await(t, "no answer", func() error {
			return s.world.in(func() error {
				c, err := net.Dial("ip4:132", "192.0.2.1")
				if err != nil {
					return err
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(fast))
				if _, err := c.Write(sctpPacket(5000, 8080, 0, sctpInit, "")); err != nil {
					return err
				}
				if n, err := c.Read(make([]byte, 1500)); err == nil {
					return fmt.Errorf("answered with %d bytes", n)
				}
				return nil
			})
		})
	})
}
