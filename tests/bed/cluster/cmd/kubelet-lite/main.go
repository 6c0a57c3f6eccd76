// Kubelet-lite is as much of a kubelet as it takes for pods to run, be
// attached to, be copied from and be logged, with no container engine and no
// privileges: a "container" is a plain process group with a directory of its
// own. The streaming half is Kubernetes' own package, the paths are the
// kubelet's, so the API server cannot tell the difference.
//
// It is its node's scheduler too: pods without a node are bound to it.
//
// What a container does not have here: an image, a root file system, a
// network or a user of its own. Images are names; init containers, probes and
// volumes are not looked at.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address:port of the kubelet API; the address is the node's and the pods'")
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	nodeName := flag.String("node-name", "bed", "name of the Node")
	root := flag.String("root-dir", "", "where containers get their directories and logs")
	certFile := flag.String("tls-cert-file", "", "serving certificate")
	keyFile := flag.String("tls-private-key-file", "", "its key")
	clientCA := flag.String("client-ca-file", "", "who signs the API server's client certificate")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	ln, err := net.Listen("tcp", *listen)
	check(err)
	address, portText, err := net.SplitHostPort(ln.Addr().String())
	check(err)
	port, err := strconv.Atoi(portText)
	check(err)

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	check(err)
	config.QPS, config.Burst = 200, 400 // a test that makes many pods should not wait here
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(config, "kubelet-lite"))
	check(err)

	runtime := NewRuntime(*root, address)
	go serve(ln, NewServer(runtime), *certFile, *keyFile, *clientCA)
	agent := &Agent{client: client, nodeName: *nodeName, address: address, port: int32(port), runtime: runtime}
	if err := agent.Run(ctx); err != nil {
		klog.ErrorS(err, "Agent stopped")
	}
	runtime.StopAll()
}

// serve answers nobody but holders of a certificate from the client CA: it
// runs whatever commands it is given.
func serve(ln net.Listener, handler http.Handler, certFile, keyFile, clientCA string) {
	pem, err := os.ReadFile(clientCA)
	check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	server := &http.Server{
		Handler: handler,
		TLSConfig: &tls.Config{
			ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs:  pool,
			NextProtos: []string{"http/1.1"}, // upgrades do not run over HTTP/2
		},
	}
	check(server.ServeTLS(ln, certFile, keyFile))
}

func check(err error) {
	if err != nil {
		klog.ErrorS(err, "Cannot go on")
		klog.FlushAndExit(klog.ExitFlushTimeout, 1)
	}
}
