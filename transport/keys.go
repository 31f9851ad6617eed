package transport

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// publicSecret stands in for the secret of a cluster that has none: the same
// code path without authentication.
const publicSecret = "isthmus: no cluster key"

// organization marks certificates as ours, so that another key can be told
// from a service that is no isthmus at all.
const organization = "isthmus"

// keys are everything that derives from the secret. The secret itself is not
// kept.
type keys struct {
	authority ed25519.PrivateKey
	gossip    []byte // nil without a secret
	probe     []byte
	secret    bool // there is one
}

func deriveKeys(secret []byte) (keys, error) {
	k := keys{secret: len(secret) > 0}
	if !k.secret {
		secret = []byte(publicSecret)
	}
	var err error
	derive := func(use string) []byte {
		b, e := hkdf.Key(sha256.New, secret, nil, "isthmus/1 "+use, 32)
		err = errors.Join(err, e)
		return b
	}
	seed := derive("certificate authority")
	k.probe = derive("probe")
	if k.secret {
		k.gossip = derive("gossip")
	}
	if err != nil {
		return keys{}, fmt.Errorf("derive keys: %w", err)
	}
	k.authority = ed25519.NewKeyFromSeed(seed)
	return k, nil
}

// public is the authority of clusters without a secret.
var publicAuthority = func() ed25519.PublicKey {
	k, err := deriveKeys(nil)
	if err != nil {
		panic(err) // constant input
	}
	return k.authority.Public().(ed25519.PublicKey)
}()

// certify makes the certificate of an identity. Its times are filled in
// because X.509 wants some; nobody reads them.
func (k keys) certify(identity ed25519.PrivateKey) (tls.Certificate, error) {
	name := pkix.Name{Organization: []string{organization}}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      name,
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(nil, leaf, &x509.Certificate{Subject: name}, identity.Public(), k.authority)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate of this host: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: identity}, nil
}

// verify checks the certificate that a peer showed and returns its identity
// key. That the peer holds the key is TLS's own proof.
func (k keys) verify(state tls.ConnectionState) (ed25519.PublicKey, error) {
	if len(state.PeerCertificates) == 0 {
		return nil, errNotIsthmus("it shows no certificate")
	}
	cert := state.PeerCertificates[0]
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || cert.SignatureAlgorithm != x509.PureEd25519 ||
		len(cert.Issuer.Organization) != 1 || cert.Issuer.Organization[0] != organization {
		return nil, errNotIsthmus("its certificate is of another service")
	}
	signedBy := func(authority ed25519.PublicKey) bool {
		return ed25519.Verify(authority, cert.RawTBSCertificate, cert.Signature)
	}
	switch {
	case signedBy(k.authority.Public().(ed25519.PublicKey)):
		return key, nil
	case !k.secret:
		return nil, &fault{cause: OtherKey, text: "the peer holds a cluster key and this host has none (set CLUSTER_KEY or the key file)"}
	case signedBy(publicAuthority):
		return nil, &fault{cause: OtherKey, text: "the peer has no cluster key and this host has one (set CLUSTER_KEY or the key file there)"}
	default:
		return nil, &fault{cause: OtherKey, text: "the peer holds another cluster key (CLUSTER_KEY or key file differ)"}
	}
}
