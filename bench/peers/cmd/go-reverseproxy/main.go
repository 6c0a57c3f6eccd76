// Go-reverseproxy is the yardstick: net/http/httputil.ReverseProxy and nothing
// else, TLS and HTTP/1.1 on both legs, the upstream's credentials and one
// fixed impersonated user set on every request.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address:port")
	cert := flag.String("cert", "", "serving certificate")
	key := flag.String("key", "", "its key")
	upstream := flag.String("upstream", "", "https://host:port")
	ca := flag.String("ca", "", "who signs the upstream's certificate; empty: not verified")
	clientCert := flag.String("client-cert", "", "client certificate for the upstream")
	clientKey := flag.String("client-key", "", "its key")
	token := flag.String("token", "", "bearer token for the upstream")
	user := flag.String("user", "", "Impersonate-User")
	groups := flag.String("groups", "", "Impersonate-Group, comma separated")
	flag.Parse()

	target, err := url.Parse(*upstream)
	if err != nil || target.Host == "" {
		log.Fatalf("--upstream: not an address: %q", *upstream)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			if *token != "" {
				r.Out.Header.Set("Authorization", "Bearer "+*token)
			}
			if *user != "" {
				r.Out.Header.Set("Impersonate-User", *user)
				for group := range strings.SplitSeq(*groups, ",") {
					r.Out.Header.Add("Impersonate-Group", group)
				}
			}
		},
		Transport: &http.Transport{
			TLSClientConfig: upstreamTLS(*ca, *clientCert, *clientKey),
			// The default of two would open a connection for most requests.
			MaxIdleConnsPerHost: 1024,
		},
	}
	server := &http.Server{
		Addr:    *listen,
		Handler: proxy,
		// HTTP/1.1 alone: upgrades do not run over HTTP/2.
		TLSConfig:    &tls.Config{NextProtos: []string{"http/1.1"}},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	log.Fatal(server.ListenAndServeTLS(*cert, *key))
}

func upstreamTLS(ca, cert, key string) *tls.Config {
	config := &tls.Config{InsecureSkipVerify: ca == ""}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			log.Fatal(err)
		}
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(pem)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			log.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config
}
