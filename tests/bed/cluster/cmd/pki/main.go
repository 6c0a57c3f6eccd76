// Pki makes the bed's certificates: Python's standard library cannot, and an
// openssl command is not on every machine.
//
//	pki ca    --dir DIR                                  ca.crt, ca.key; sa.key, sa.pub for service accounts
//	pki issue --dir DIR --name NAME [--cn CN] [--org O] [--dns D] [--ip IP]  NAME.crt, NAME.key, good for both ends
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// lifetime is long enough for a bed that somebody forgot, and short enough
// for its keys to be worth nothing.
const lifetime = 7 * 24 * time.Hour

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: pki ca|issue ...")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	dir := flags.String("dir", ".", "where files are read and written")
	name := flags.String("name", "", "base name of the files")
	cn := flags.String("cn", "", "common name: the user, for a client of the API server")
	var orgs, dns, ips list
	flags.Var(&orgs, "org", "organisation: a group of the user; may be repeated")
	flags.Var(&dns, "dns", "DNS name; may be repeated")
	flags.Var(&ips, "ip", "address; may be repeated")
	flags.Parse(os.Args[2:])

	switch os.Args[1] {
	case "ca":
		makeCA(*dir)
	case "issue":
		issue(*dir, *name, *cn, orgs, dns, ips)
	default:
		log.Fatalf("unknown command %q", os.Args[1])
	}
}

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func makeCA(dir string) {
	template := newTemplate("bed CA", nil)
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	k := newKey()
	write(dir, "ca.crt", "CERTIFICATE", sign(template, template, k.Public(), k))
	writeKey(dir, "ca.key", k)

	accounts := newKey()
	writeKey(dir, "sa.key", accounts)
	public := must(x509.MarshalPKIXPublicKey(accounts.Public()))
	write(dir, "sa.pub", "PUBLIC KEY", public)
}

func issue(dir, name, cn string, orgs, dns, ips []string) {
	pair := must(tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")))
	template := newTemplate(cn, orgs)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.DNSNames = dns
	for _, text := range ips {
		ip := net.ParseIP(text)
		if ip == nil {
			log.Fatalf("not an address: %q", text)
		}
		template.IPAddresses = append(template.IPAddresses, ip)
	}
	k := newKey()
	write(dir, name+".crt", "CERTIFICATE", sign(template, pair.Leaf, k.Public(), pair.PrivateKey))
	writeKey(dir, name+".key", k)
}

func newTemplate(cn string, orgs []string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))),
		Subject:      pkix.Name{CommonName: cn, Organization: orgs},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(lifetime),
	}
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer any) []byte {
	return must(x509.CreateCertificate(rand.Reader, template, parent, public, signer))
}

func writeKey(dir, name string, k *ecdsa.PrivateKey) {
	write(dir, name, "EC PRIVATE KEY", must(x509.MarshalECPrivateKey(k)))
}

func write(dir, name, kind string, der []byte) {
	block := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, name), block, 0o600); err != nil {
		log.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}
