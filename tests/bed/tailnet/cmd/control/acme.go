package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// lifetime of certificates: what the real authority gives, so that nodes
// renew when they would.
const lifetime = 90 * 24 * time.Hour

// Authority is a certificate authority that nodes talk to by ACME (RFC 8555),
// as they do to Let's Encrypt for `tailscale cert` and GET /localapi/v0/cert.
//
// It believes everything: signatures are not verified and challenges pass at
// once. What it signs is trusted by nobody but tests.
type Authority struct {
	base        string
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	PEM         []byte // the authority's own certificate

	mu       sync.Mutex
	accounts map[string]bool // by public key
	orders   []*order
}

type order struct {
	identifiers json.RawMessage
	names       []string
	chain       []byte // PEM, once issued
}

func NewAuthority() *Authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "bed ACME CA"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(2 * lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		log.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		log.Fatal(err)
	}
	return &Authority{
		key: key, certificate: certificate, accounts: map[string]bool{},
		PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}
}

// SetBaseURL says where the handler is served; the directory is at /directory.
func (a *Authority) SetBaseURL(base string) { a.base = base }

func (a *Authority) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /directory", func(w http.ResponseWriter, r *http.Request) {
		reply(w, map[string]string{
			"newNonce": a.base + "/nonce", "newAccount": a.base + "/account", "newOrder": a.base + "/order",
			"revokeCert": a.base + "/revoke", "keyChange": a.base + "/key",
		})
	})
	mux.HandleFunc("/nonce", func(w http.ResponseWriter, r *http.Request) {})
	mux.HandleFunc("POST /account", a.account)
	mux.HandleFunc("POST /order", a.newOrder)
	mux.HandleFunc("POST /order/{n}", a.order(a.showOrder))
	mux.HandleFunc("POST /order/{n}/authorization/{i}", a.order(a.authorization))
	mux.HandleFunc("POST /order/{n}/challenge/{i}", a.order(a.challenge))
	mux.HandleFunc("POST /order/{n}/finalize", a.order(a.finalize))
	mux.HandleFunc("POST /order/{n}/certificate", a.order(func(w http.ResponseWriter, r *http.Request, n int, o *order) {
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		w.Write(o.chain)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Replay-Nonce", rand.Text())
		a.mu.Lock()
		defer a.mu.Unlock()
		mux.ServeHTTP(w, r)
	})
}

// read takes a request out of its JSON Web Signature. Problems are the
// client's, and close enough to "malformed".
func read(r *http.Request, payload any) (key string) {
	var jws struct{ Protected, Payload string }
	json.NewDecoder(r.Body).Decode(&jws)
	decode := func(text string, v any) {
		if raw, err := base64.RawURLEncoding.DecodeString(text); err == nil && len(raw) > 0 {
			json.Unmarshal(raw, v)
		}
	}
	var header struct{ JWK json.RawMessage }
	decode(jws.Protected, &header)
	decode(jws.Payload, payload)
	return string(header.JWK)
}

func (a *Authority) account(w http.ResponseWriter, r *http.Request) {
	var payload struct{ OnlyReturnExisting bool }
	key := read(r, &payload)
	if payload.OnlyReturnExisting && !a.accounts[key] {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"type":"urn:ietf:params:acme:error:accountDoesNotExist","status":400}`)
		return
	}
	w.Header().Set("Location", a.base+"/account/1")
	if !a.accounts[key] {
		a.accounts[key] = true
		w.WriteHeader(http.StatusCreated)
	}
	reply(w, map[string]string{"status": "valid"})
}

func (a *Authority) newOrder(w http.ResponseWriter, r *http.Request) {
	var payload struct{ Identifiers json.RawMessage }
	read(r, &payload)
	var identifiers []struct{ Value string }
	json.Unmarshal(payload.Identifiers, &identifiers)
	o := &order{identifiers: payload.Identifiers}
	for _, i := range identifiers {
		o.names = append(o.names, i.Value)
	}
	a.orders = append(a.orders, o)
	n := len(a.orders) - 1
	w.Header().Set("Location", a.orderURL(n))
	w.WriteHeader(http.StatusCreated)
	a.showOrder(w, r, n, o)
}

func (a *Authority) orderURL(n int) string { return fmt.Sprintf("%s/order/%d", a.base, n) }

func (a *Authority) order(handle func(http.ResponseWriter, *http.Request, int, *order)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.PathValue("n"))
		if err != nil || n < 0 || n >= len(a.orders) {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Location", a.orderURL(n))
		handle(w, r, n, a.orders[n])
	}
}

func (a *Authority) showOrder(w http.ResponseWriter, r *http.Request, n int, o *order) {
	authorizations := []string{}
	for i := range o.names {
		authorizations = append(authorizations, fmt.Sprintf("%s/authorization/%d", a.orderURL(n), i))
	}
	shown := map[string]any{
		"status": "ready", "identifiers": o.identifiers,
		"authorizations": authorizations, "finalize": a.orderURL(n) + "/finalize",
	}
	if o.chain != nil {
		shown["status"], shown["certificate"] = "valid", a.orderURL(n)+"/certificate"
	}
	reply(w, shown)
}

func (a *Authority) authorization(w http.ResponseWriter, r *http.Request, n int, o *order) {
	i, _ := strconv.Atoi(r.PathValue("i"))
	reply(w, map[string]any{
		"status":     "pending",
		"identifier": map[string]string{"type": "dns", "value": o.names[i%len(o.names)]},
		"challenges": []any{a.challengeOf(n, i, "pending")},
	})
}

// challengeOf is a dns-01 challenge: the node asks the control server to set
// a TXT record for it, which nobody looks up.
func (a *Authority) challengeOf(n, i int, status string) map[string]string {
	return map[string]string{
		"type": "dns-01", "status": status, "token": fmt.Sprintf("token-%d-%d", n, i),
		"url": fmt.Sprintf("%s/challenge/%d", a.orderURL(n), i),
	}
}

func (a *Authority) challenge(w http.ResponseWriter, r *http.Request, n int, o *order) {
	i, _ := strconv.Atoi(r.PathValue("i"))
	reply(w, a.challengeOf(n, i, "valid"))
}

func (a *Authority) finalize(w http.ResponseWriter, r *http.Request, n int, o *order) {
	var payload struct{ CSR string }
	read(r, &payload)
	der, err := base64.RawURLEncoding.DecodeString(payload.CSR)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: o.names[0]},
		DNSNames:     o.names,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, a.certificate, csr.PublicKey, a.key)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	o.chain = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}), a.PEM...)
	a.showOrder(w, r, n, o)
}
