package dhcp

import (
	"encoding/json"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"go.etcd.io/bbolt"
	"golang.org/x/net/bpf"

	"github.com/isthmus-net/isthmus/cluster"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var (
	zero = time.Unix(1.7e9, 0).UTC()
	some = Lease{
		Request: Request{Interface: "eth0", ClientID: Identity("web"), MAC: cluster.MAC{2, 0, 0, 0, 0, 9}, Hostname: "web", Addr: addr("192.0.2.9")},
		Prefix:  netip.MustParsePrefix("192.0.2.9/24"), Router: addr("192.0.2.1"), DNS: []netip.Addr{addr("192.0.2.2")}, Domain: "example.org", MTU: 1400,
		Server: addr("192.0.2.1"), ServerMAC: cluster.MAC{2, 0, 0, 0, 0, 1},
		Granted: zero, Renew: zero.Add(30 * time.Minute), Rebind: zero.Add(52 * time.Minute), Expires: zero.Add(time.Hour),
	}
)

func TestDue(t *testing.T) {
	forever := some
	forever.Renew, forever.Rebind, forever.Expires = time.Time{}, time.Time{}, time.Time{}
	at := func(m int) time.Time { return zero.Add(time.Duration(m) * time.Minute) }
	for _, c := range []struct {
		name  string
		l     Lease
		c     condition
		now   int // minutes
		want  action
		until time.Time
	}{
		{"fresh", some, condition{sure: true}, 1, wait, some.Renew},
		{"T1", some, condition{sure: true}, 30, extend, at(30)},
		{"T2", some, condition{sure: true}, 52, rebind, at(52)},
		{"expired", some, condition{sure: true}, 60, regain, at(60)},
		{"refused", some, condition{sure: true, lost: true}, 1, regain, at(1)},
		{"of an earlier run", some, condition{}, 1, confirm, at(1)},
		{"of an earlier run, in T2", some, condition{}, 55, confirm, at(55)},
		{"of an earlier run, expired", some, condition{}, 90, regain, at(90)},
		{"to be tried later", some, condition{next: at(40)}, 35, wait, at(40)},
		{"to be tried now", some, condition{sure: true, next: at(40)}, 40, extend, at(40)},
		{"for ever", forever, condition{sure: true}, 1e6, wait, time.Time{}},
		{"for ever, of an earlier run", forever, condition{}, 1, confirm, at(1)},
	} {
		if got, until := due(c.l, c.c, at(c.now)); got != c.want || !until.Equal(c.until) {
			t.Errorf("%s: %s until %s, want %s until %s", c.name, got, until, c.want, c.until)
		}
	}
}

func TestRetry(t *testing.T) {
	for _, c := range []struct {
		name      string
		lost      bool
		now, want time.Duration
	}{
		{"half of the rest of T1 to T2", false, 30 * time.Minute, 41 * time.Minute},
		{"no sooner than a minute", false, 50*time.Minute + 30*time.Second, 51*time.Minute + 30*time.Second},
		{"but not over T2", false, 51*time.Minute + 30*time.Second, 52 * time.Minute},
		{"half of the rest to the end", false, 52 * time.Minute, 56 * time.Minute},
		{"not over the end", false, 59*time.Minute + 30*time.Second, time.Hour},
		{"expired", false, 70 * time.Minute, 71 * time.Minute},
		{"refused", true, 2 * time.Minute, 3 * time.Minute},
	} {
		if got := retry(some, c.lost, zero.Add(c.now)).Sub(zero); got != c.want {
			t.Errorf("%s: again at %s, want %s", c.name, got, c.want)
		}
	}
}

// The wall clock may be set while the process runs.
func TestReached(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name    string
		now, at time.Time
		want    bool
	}{
		{"before", now, now.Add(time.Second), false},
		{"at", now, now, true},
		{"stored, before", now, now.Add(time.Second).Round(0), false},
		{"stored, after", now, now.Add(-time.Second).Round(0), true},
	} {
		if reached(c.now, c.at) != c.want {
			t.Errorf("%s: %v", c.name, !c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web", "my_app-web.1": "my-app-web-1", "-x-": "x", "": "", "___": "", "Grüße": "Gr--e",
		"a123456789012345678901234567890123456789012345678901234567890123456789": "a12345678901234567890123456789012345678901234567890123456789012",
	} {
		if got := hostname(in); got != want {
			t.Errorf("hostname of %q: %q, want %q", in, got, want)
		}
	}
	a, b := Identity("net", "web"), Identity("netw", "eb")
	if string(a) == string(b) || string(a) != string(Identity("net", "web")) || a[0] != 0 || len(a) != 17 {
		t.Errorf("identities %x and %x", a, b)
	}
	if m := MACOf(a); m[0]&3 != 2 || m != MACOf(a) || m == MACOf(b) {
		t.Errorf("MAC %s", m)
	}
	if id := MACIdentity(cluster.MAC{2, 0, 0, 0, 0, 9}); string(id) != "\x01\x02\x00\x00\x00\x00\x09" {
		t.Errorf("identity of a MAC: %x", id)
	}
}

func TestLeaseJSON(t *testing.T) {
	b, err := json.Marshal(some)
	if err != nil {
		t.Fatal(err)
	}
	var got Lease
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, some) {
		t.Errorf("%s\nread back as %+v", b, got)
	}
}

func TestBolt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	open := func() Bolt {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return Bolt{db}
	}
	s := open()
	other := some
	other.Hostname = "db"
	keys := []Key{{"lab|192.0.2.0/24", addr("192.0.2.9")}, {"lab|192.0.2.0/24", addr("192.0.2.10")}, {"", addr("192.0.2.9")}}
	for _, k := range keys {
		if err := s.Put(k, some); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(keys[0], other); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Delete(keys[1]); err != nil {
			t.Fatal(err)
		}
	}
	s.DB.Close()
	s = open()
	got, err := s.Load()
	if want := map[Key]Lease{keys[0]: other, keys[2]: some}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []struct{ key, value string }{{"no key of ours", "{}"}, {"x\x00192.0.2.9", "no JSON"}} {
		err := s.DB.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(bad.key), []byte(bad.value)) })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); err == nil {
			t.Errorf("key %q with %q is read without complaint", bad.key, bad.value)
		}
		if err := s.DB.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete([]byte(bad.key)) }); err != nil {
			t.Fatal(err)
		}
	}
}

// What the filter and unwrap let pass: only whole UDP datagrams to port 68.
func TestUnwrap(t *testing.T) {
	e := ends{fromMAC: cluster.MAC{2, 0, 0, 0, 0, 9}, toMAC: broadcastMAC, from: anyIP, to: broadcastIP}
	good := wrap(e, []byte("hello"))
	good[34], good[35], good[36], good[37] = 0, serverPort, 0, clientPort
	longer := append(append(append([]byte{}, good[:34]...), 1, 1, 1, 0), good[34:]...) // an IP option
	longer[14], longer[17] = 0x46, longer[17]+4
	change := func(at int, to byte) []byte {
		b := append([]byte(nil), good...)
		b[at] = to
		return b
	}
	vm, err := bpf.NewVM(answers)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		frame    []byte
		passes   bool
		filtered bool
	}{
		{"good", good, true, false},
		{"with IP options", longer, true, false},
		{"padded", append(append([]byte{}, good...), 0, 0, 0, 0), true, false},
		{"to a server", change(37, serverPort), false, true},
		{"TCP", change(14+9, 6), false, true},
		{"IPv6", change(12, 0x86), false, true},
		{"fragment", change(14+7, 1), false, true},
		{"more fragments", change(14+6, 0x20), false, true},
		{"not fragmented", change(14+6, 0x40), true, false},
		{"longer than the frame", change(14+3, 200), false, false},
		{"UDP longer than IP", change(39, 200), false, false},
		{"UDP shorter than its header", change(39, 7), false, false},
		{"IP header too short", change(14, 0x44), false, false},
		{"cut short", good[:30], false, true},
	} {
		payload, from, ok := unwrap(c.frame)
		if ok != c.passes || ok && (string(payload) != "hello" || from != e) {
			t.Errorf("%s: %q from %v, %v", c.name, payload, from, ok)
		}
		n, err := vm.Run(c.frame)
		if err != nil {
			n = 0 // the kernel drops what is too short for a load
		}
		if c.name != "IP header too short" && (n == 0) != c.filtered {
			t.Errorf("%s: the filter passes %d bytes", c.name, n)
		}
	}
}

// Any frame at all is read without harm, and a lease that comes of it makes
// sense.
func FuzzAnswer(f *testing.F) {
	a := discover(some.Request)
	reply, err := dhcpv4.New(dhcpv4.WithHwAddr(a.MAC[:]), dhcpv4.WithYourIP(net.IP{192, 0, 2, 9}), dhcpv4.WithMessageType(dhcpv4.MessageTypeAck),
		dhcpv4.WithLeaseTime(3600), dhcpv4.WithNetmask(net.IPMask{255, 255, 255, 0}))
	if err != nil {
		f.Fatal(err)
	}
	reply.OpCode, reply.TransactionID = dhcpv4.OpcodeBootReply, dhcpv4.TransactionID{1}
	seed := wrap(ends{to: broadcastIP, from: anyIP}, reply.ToBytes())
	seed[36], seed[37] = 0, clientPort
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := answerTo(a, dhcpv4.TransactionID{1}, b)
		if !ok {
			return
		}
		l, err := got.lease(a.Request, zero)
		if err != nil {
			return
		}
		if !l.Addr.Is4() || l.Prefix.Addr() != l.Addr || l.Prefix.Bits() < 1 {
			t.Errorf("lease of %s, %s", l.Addr, l.Prefix)
		}
		if !l.Expires.IsZero() && (l.Renew.After(l.Rebind) || !l.Rebind.Before(l.Expires) || l.Renew.Before(zero)) {
			t.Errorf("times %s, %s, %s", l.Renew, l.Rebind, l.Expires)
		}
	})
}

func TestLeaseTimes(t *testing.T) {
	for _, c := range []struct {
		name                   string
		whole, t1, t2          time.Duration
		renew, rebind, expires time.Duration
	}{
		{"none named", time.Hour, 0, 0, 30 * time.Minute, 52*time.Minute + 30*time.Second, time.Hour},
		{"named", time.Hour, 10 * time.Minute, 20 * time.Minute, 10 * time.Minute, 20 * time.Minute, time.Hour},
		{"nonsense", time.Hour, 50 * time.Minute, 40 * time.Minute, 30 * time.Minute, 40 * time.Minute, time.Hour},
		{"T2 early", time.Hour, 0, 20 * time.Minute, 20 * time.Minute, 20 * time.Minute, time.Hour},
		{"T2 late", time.Hour, 10 * time.Minute, 2 * time.Hour, 10 * time.Minute, 52*time.Minute + 30*time.Second, time.Hour},
	} {
		m, err := dhcpv4.New(dhcpv4.WithYourIP(net.IP{192, 0, 2, 9}), dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(c.whole)))
		if err != nil {
			t.Fatal(err)
		}
		if c.t1 > 0 {
			m.UpdateOption(dhcpv4.OptRenewTimeValue(c.t1))
		}
		if c.t2 > 0 {
			m.UpdateOption(dhcpv4.OptRebindingTimeValue(c.t2))
		}
		l, err := answer{m, ends{from: addr("192.0.2.1")}}.lease(some.Request, zero)
		if err != nil {
			t.Fatal(err)
		}
		if l.Renew.Sub(zero) != c.renew || l.Rebind.Sub(zero) != c.rebind || l.Expires.Sub(zero) != c.expires {
			t.Errorf("%s: %s, %s, %s", c.name, l.Renew.Sub(zero), l.Rebind.Sub(zero), l.Expires.Sub(zero))
		}
	}
	m, _ := dhcpv4.New(dhcpv4.WithYourIP(net.IP{192, 0, 2, 9}), dhcpv4.WithLeaseTime(0xffffffff))
	if l, err := (answer{m, ends{from: addr("192.0.2.1")}}).lease(some.Request, zero); err != nil || !l.Expires.IsZero() || l.Prefix.Bits() != 32 || l.Server != addr("192.0.2.1") {
		t.Errorf("for ever: %+v, %v", l, err)
	}
	m, _ = dhcpv4.New(dhcpv4.WithYourIP(net.IP{192, 0, 2, 9}))
	if _, err := (answer{m, ends{}}).lease(some.Request, zero); err == nil {
		t.Error("an answer without a lease time is taken")
	}
	m, _ = dhcpv4.New(dhcpv4.WithLeaseTime(60))
	if _, err := (answer{m, ends{}}).lease(some.Request, zero); err == nil {
		t.Error("an answer without an address is taken")
	}
}
