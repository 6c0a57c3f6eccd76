// Ts-apiproxy runs Tailscale's own API server proxy (the package behind its
// Kubernetes operator and k8s-proxy) as a node of the bed's tailnet, so that
// both can be measured in front of the same API server.
//
// The package listens on localhost:80 (root, or a network namespace of one's
// own, or net.ipv4.ip_unprivileged_port_start) and demands a PROXY v2 header:
// in production tailscaled terminates TLS in front of it and sends one. With
// --front this program does what tailscaled does there, for one peer whose
// address is given, so that kubectl and any load generator can use it.
package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"flag"
	"io"
	"log"
	"net"
	"net/netip"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"
	"k8s.io/client-go/tools/clientcmd"
	apiproxy "tailscale.com/k8s-operator/api-proxy"
	"tailscale.com/kube/kubetypes"
	"tailscale.com/tsnet"
)

// behind is where the package listens; it cannot be told otherwise.
const behind = "localhost:80"

func main() {
	controlURL := flag.String("control-url", "", "the bed's control server")
	hostname := flag.String("hostname", "ts-apiproxy", "name of the node")
	tags := flag.String("tag", "tag:k8s", "its tag")
	dir := flag.String("dir", "", "state directory")
	kubeconfig := flag.String("kubeconfig", "", "account that may impersonate")
	front := flag.String("front", "", "address:port of a TLS listener in front; empty: none")
	cert := flag.String("front-cert", "", "its certificate")
	key := flag.String("front-key", "", "its key")
	peer := flag.String("front-peer", "", "tailnet address of the node whose connections the front passes on")
	verbose := flag.Bool("verbose", false, "log what the package logs")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	node := &tsnet.Server{
		ControlURL:    *controlURL,
		Hostname:      *hostname,
		Dir:           *dir,
		AuthKey:       "any",
		AdvertiseTags: []string{*tags},
	}
	defer node.Close()
	if _, err := node.Up(ctx); err != nil {
		log.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	logger := zap.NewNop()
	if *verbose {
		logger, _ = zap.NewDevelopment()
	}
	proxy, err := apiproxy.NewAPIServerProxy(logger.Sugar(), config, node, kubetypes.APIServerProxyModeAuth, false)
	if err != nil {
		log.Fatal(err)
	}
	if *front != "" {
		source, err := netip.ParseAddr(*peer)
		if err != nil {
			log.Fatal(err)
		}
		go serveFront(*front, *cert, *key, source)
	}
	if err := proxy.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

func serveFront(address, certFile, keyFile string, source netip.Addr) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go pass(conn.(*tls.Conn), source)
	}
}

func pass(client *tls.Conn, source netip.Addr) {
	defer client.Close()
	conn, err := net.DialTimeout("tcp", behind, 5*time.Second)
	if err != nil {
		return
	}
	defer conn.Close()
	port := client.RemoteAddr().(*net.TCPAddr).Port
	conn.Write(proxyHeader(netip.AddrPortFrom(source, uint16(port)), netip.MustParseAddrPort("100.64.255.1:443")))
	go func() {
		io.Copy(conn, client)
		conn.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(client, conn)
}

// proxyHeader is version 2 of the PROXY protocol: signature, PROXY command,
// TCP over IPv4, twelve bytes of addresses.
func proxyHeader(source, destination netip.AddrPort) []byte {
	header := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11, 0, 12)
	header = append(header, source.Addr().AsSlice()...)
	header = append(header, destination.Addr().AsSlice()...)
	header = binary.BigEndian.AppendUint16(header, source.Port())
	return binary.BigEndian.AppendUint16(header, destination.Port())
}
