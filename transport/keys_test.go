package transport

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"testing"
)

func TestKeysDeriveFromTheSecretAlone(t *testing.T) {
	a1, err1 := deriveKeys([]byte(keyA))
	a2, err2 := deriveKeys([]byte(keyA))
	b, err3 := deriveKeys([]byte(keyB))
	none, err4 := deriveKeys(nil)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a1.gossip, a2.gossip) || !bytes.Equal(a1.probe, a2.probe) || !a1.authority.Equal(a2.authority) {
		t.Error("one secret gave two sets of keys")
	}
	if len(a1.gossip) != 32 || none.gossip != nil {
		t.Errorf("membership keys of %d and %d bytes", len(a1.gossip), len(none.gossip))
	}
	distinct := [][]byte{a1.gossip, a1.probe, a1.authority.Seed(), b.gossip, b.probe, b.authority.Seed(), none.probe, none.authority.Seed()}
	for i, x := range distinct {
		for _, y := range distinct[:i] {
			if bytes.Equal(x, y) {
				t.Error("two uses share a key")
			}
		}
	}
}

func TestCertificateOfAnotherAuthorityIsRefused(t *testing.T) {
	a, _ := deriveKeys([]byte(keyA))
	b, _ := deriveKeys([]byte(keyB))
	id := identity(t)
	cert, err := a.certify(id)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	shown := tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	if key, err := a.verify(shown); err != nil || !key.Equal(id.Public()) {
		t.Errorf("verify = %x, %v", key, err)
	}
	if _, err := b.verify(shown); causeOf(err) != OtherKey {
		t.Errorf("verify under another key: %v", err)
	}
	leaf.RawTBSCertificate = append(bytes.Clone(leaf.RawTBSCertificate), 0)
	if _, err := a.verify(shown); causeOf(err) != OtherKey {
		t.Errorf("verify a forged certificate: %v", err)
	}
	if _, err := a.verify(tls.ConnectionState{}); causeOf(err) != NotIsthmus {
		t.Errorf("verify nothing: %v", err)
	}
}
