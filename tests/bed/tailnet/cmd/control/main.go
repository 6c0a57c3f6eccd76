// Control is a whole coordination service for one small tailnet on one
// machine: Tailscale's own test control server, a DERP relay, an authority for
// certificates, and a small admin API over loopback HTTP with which a test names users and changes
// grants while nodes are connected.
//
// The test server keeps keys, addresses and endpoints. What it cannot express
// (named users, tagged nodes' stand-in user, who is online, grants between
// particular nodes) is written into each netmap on its way out; see Tailnet.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	listen := flag.String("listen", "127.0.0.1", "address that the nodes reach; the ports are the kernel's choice")
	domain := flag.String("domain", "tail.example.ts.net", "MagicDNS name of the tailnet")
	recorderPort := flag.Uint("recorder-port", 80, "port put into recorderAddrs where a grant names recorders by tag")
	verbose := flag.Bool("verbose", false, "log every message")
	flag.Parse()

	derpMap := runDERP(*listen)
	tailnet := NewTailnet(*domain, derpMap, uint16(*recorderPort), *verbose)
	coordination := serve(*listen, tailnet.Control())
	tailnet.SetBaseURL("http://" + coordination)
	// The admin API decides who may do what: it never leaves loopback.
	admin := serve("127.0.0.1", tailnet.AdminAPI())
	authority := NewAuthority()
	acme := "http://" + serve(*listen, authority.Handler())
	authority.SetBaseURL(acme)

	// One line for the driver: it is printed when everything listens.
	json.NewEncoder(os.Stdout).Encode(map[string]string{
		"control": "http://" + coordination,
		"admin":   "http://" + admin,
		"domain":  *domain,
		"acme":    acme + "/directory",
		"acme_ca": string(authority.PEM),
	})
	select {}
}

// serve serves handler on a free port of address and returns "host:port".
func serve(address string, handler http.Handler) string {
	ln, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.Serve(ln, handler)) }()
	return ln.Addr().String()
}

// runDERP starts a relay with a STUN server and returns the map that leads to it. Two userspace
// nodes find a direct path over UDP as well, but the first packets and every
// node in a network namespace of its own need the relay.
func runDERP(address string) *tailcfg.DERPMap {
	relay := derpserver.New(key.NewNode(), logger.Discard)
	ln, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewUnstartedServer(derpserver.Handler(relay))
	server.Listener.Close()
	server.Listener = ln
	server.Config.ErrorLog = logger.StdLogger(logger.Discard)
	server.StartTLS()
	// Without STUN a node waits three seconds for it before it settles on the
	// relay and calls itself running.
	stun := stunserver.New(context.Background())
	if err := stun.Listen(net.JoinHostPort(address, "0")); err != nil {
		log.Fatal(err)
	}
	go stun.Serve()
	return &tailcfg.DERPMap{
		OmitDefaultRegions: true,
		Regions: map[int]*tailcfg.DERPRegion{
			1: {
				RegionID:   1,
				RegionCode: "bed",
				RegionName: "Bed",
				Nodes: []*tailcfg.DERPNode{{
					Name:             "1a",
					RegionID:         1,
					HostName:         address,
					IPv4:             address,
					IPv6:             "none",
					STUNPort:         stun.LocalAddr().(*net.UDPAddr).Port,
					STUNTestIP:       address, // a private address is refused otherwise
					DERPPort:         ln.Addr().(*net.TCPAddr).Port,
					InsecureForTests: true, // its certificate is made up
				}},
			},
		},
	}
}
