package main

import (
	"cmp"
	"context"
	"log"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// keepAlive is how often a silent stream says that it lives; nodes give up
// after two minutes.
const keepAlive = 50 * time.Second

// taggedDevices is the user that the real service shows for a tagged node.
const taggedDevices = tailcfg.UserID(1)

// Tailnet turns the test server's netmaps into those of a tailnet with named
// users and grants.
//
// Every stream is woken when anything changes and then sends the whole netmap
// again: the tailnets here are small, and a whole netmap cannot go stale.
type Tailnet struct {
	domain       string
	recorderPort uint16
	control      *testcontrol.Server

	mu       sync.Mutex
	changed  chan struct{}            // closed and replaced when any netmap changes
	whole    int                      // counts the changes that were not quiet
	settings map[string]*NodeSettings // by host name
	users    map[string]tailcfg.UserID
	online   map[key.NodePublic]int // streams open per node
	services map[tailcfg.ServiceName]*Service
	grants   []Grant
}

// NodeSettings is what a test decides about a node, by its host name. It may
// be set before the node first logs in.
type NodeSettings struct {
	User      string    `json:"user,omitempty"`      // login name
	KeyExpiry time.Time `json:"key_expiry,omitzero"` // as its peers see it
	Removed   bool      `json:"removed,omitempty"`   // gone from its peers' netmaps
}

// Service is a Tailscale Service: an address of its own, served by some nodes.
type Service struct {
	Address netip.Addr `json:"address"`
	Hosts   []string   `json:"hosts"` // node selectors, as in a grant
}

func NewTailnet(domain string, derpMap *tailcfg.DERPMap, recorderPort uint16, verbose bool) *Tailnet {
	t := &Tailnet{
		domain:       domain,
		recorderPort: recorderPort,
		changed:      make(chan struct{}),
		settings:     map[string]*NodeSettings{},
		users:        map[string]tailcfg.UserID{"tagged-devices": taggedDevices},
		online:       map[key.NodePublic]int{},
		services:     map[tailcfg.ServiceName]*Service{},
	}
	logf := logger.Logf(logger.Discard)
	if verbose {
		logf = log.Printf
	}
	t.control = &testcontrol.Server{
		Logf:           logf,
		Verbose:        verbose,
		DERPMap:        derpMap,
		MagicDNSDomain: domain,
		DNSConfig: &tailcfg.DNSConfig{
			Proxied: true,
			Domains: []string{domain},
		},
		// Not nil, so that --advertise-tags is honoured. Nothing is looked
		// up in it: any node may log in with any tag.
		TagOwners: map[string][]string{},
	}
	t.control.AltMapStream = t.serveMap
	return t
}

func (t *Tailnet) Control() http.Handler  { return t.control }
func (t *Tailnet) SetBaseURL(base string) { t.control.ExplicitBaseURL = base }

// wakeLocked makes every stream send its netmap again. A quiet change goes
// out as a packet filter and nothing else, as the real service does it: no
// peer is mentioned, so a node's bus may tell its watchers nothing.
func (t *Tailnet) wakeLocked(quiet bool) {
	if !quiet {
		t.whole++
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// serveMap answers one map request: an update of the node about itself
// (endpoints, host information), or the long stream of netmaps.
func (t *Tailnet) serveMap(ctx context.Context, w testcontrol.MapStreamWriter, req *tailcfg.MapRequest) {
	if !req.Stream {
		t.takeUpdate(req)
		if req.OmitPeers {
			w.SendMapMessage(&tailcfg.MapResponse{})
			return
		}
		if res := t.netmap(req); res != nil {
			w.SendMapMessage(res)
		}
		return
	}

	t.setOnline(req.NodeKey, +1)
	defer t.setOnline(req.NodeKey, -1)
	ticker := time.NewTicker(keepAlive)
	defer ticker.Stop()
	sent := -1 // the last change that went out as a whole netmap
	for {
		t.mu.Lock()
		changed, whole := t.changed, t.whole
		t.mu.Unlock()
		res := t.netmap(req)
		if res == nil {
			return
		}
		if whole == sent {
			res = &tailcfg.MapResponse{PacketFilter: res.PacketFilter}
		}
		if err := w.SendMapMessage(res); err != nil {
			return
		}
		sent = whole
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if err := w.SendMapMessage(&tailcfg.MapResponse{KeepAlive: true}); err != nil {
					return
				}
			case <-changed:
				waiting = false
			}
		}
	}
}

func (t *Tailnet) setOnline(node key.NodePublic, delta int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.online[node] += delta
	t.wakeLocked(false)
}

// takeUpdate stores what a node says about itself. Streams carry no news
// (tailcfg.MapRequest.Stream): only these requests do.
func (t *Tailnet) takeUpdate(req *tailcfg.MapRequest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	node := t.control.Node(req.NodeKey)
	if node == nil || req.ReadOnly {
		return
	}
	node.Endpoints = slices.DeleteFunc(slices.Clone(req.Endpoints), func(e netip.AddrPort) bool {
		// Link-local endpoints need a zone, which a peer does not know.
		return e.Addr().Zone() != "" || e.Addr().Is6() && e.Addr().IsLinkLocalUnicast()
	})
	node.DiscoKey = req.DiscoKey
	node.Cap = req.Version
	if req.Hostinfo != nil {
		node.Hostinfo = req.Hostinfo.View()
		if ni := req.Hostinfo.NetInfo; ni != nil && ni.PreferredDERP != 0 {
			node.HomeDERP = ni.PreferredDERP
		}
	}
	t.control.UpdateNode(node)
	t.wakeLocked(false)
}

// netmap is the whole netmap of the asking node, or nil where it is unknown.
func (t *Tailnet) netmap(req *tailcfg.MapRequest) *tailcfg.MapResponse {
	res, err := t.control.MapResponse(req)
	if err != nil || res == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	now := time.Now()
	res.ControlTime = &now // the test server's is in 2020, which confuses key expiry
	res.Domain = "example.com"
	res.Health = []string{}
	all := append([]*tailcfg.Node{res.Node}, res.Peers...)
	profiles := map[tailcfg.UserID]tailcfg.UserProfile{}
	for _, n := range all {
		login := t.loginName(n)
		n.User = t.userID(login)
		n.Online = new(t.online[n.Key] > 0)
		if s := t.settings[hostName(n)]; s != nil && !s.KeyExpiry.IsZero() && n != res.Node {
			n.KeyExpiry = s.KeyExpiry
		}
		display, _, _ := strings.Cut(login, "@")
		if n.User == taggedDevices {
			display = "Tagged Devices"
		}
		profiles[n.User] = tailcfg.UserProfile{ID: n.User, LoginName: login, DisplayName: display}
		t.addServices(n, n == res.Node)
	}
	res.UserProfiles = res.UserProfiles[:0]
	for _, p := range profiles {
		res.UserProfiles = append(res.UserProfiles, p)
	}
	res.Node.CapMap = t.selfCapMap(res.Node)
	t.addServiceNames(res)
	res.Peers = slices.DeleteFunc(res.Peers, func(n *tailcfg.Node) bool { return t.removed(n) })

	// The network is open to everybody: the grants alone decide.
	res.PacketFilter = slices.Clone(tailcfg.FilterAllowAll)
	res.PacketFilter = append(res.PacketFilter, t.grantRules(res.Node, all)...)
	return res
}

func (t *Tailnet) selfCapMap(n *tailcfg.Node) tailcfg.NodeCapMap {
	caps := tailcfg.NodeCapMap{
		tailcfg.CapabilityHTTPS: nil, // `tailscale serve` and certificates
	}
	hosted := tailcfg.ServiceIPMappings{}
	for name, s := range t.services {
		if t.matchesAny(s.Hosts, n) {
			hosted[name] = serviceAddresses(s)
		}
	}
	if len(hosted) > 0 {
		raw, err := tailcfg.MarshalCapJSON(hosted)
		if err != nil {
			log.Fatal(err)
		}
		caps[tailcfg.NodeAttrServiceHost] = []tailcfg.RawMessage{raw}
	}
	return caps
}

// addServices routes a Service's address to the first online node that hosts
// it. A host does not route to itself, and one node at a time is what a
// client sees of the real service as well.
func (t *Tailnet) addServices(n *tailcfg.Node, self bool) {
	if self {
		return
	}
	for name, s := range t.services {
		if t.serviceHost(name) == n.Key {
			for _, a := range serviceAddresses(s) {
				n.AllowedIPs = append(n.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
}

func (t *Tailnet) serviceHost(name tailcfg.ServiceName) (host key.NodePublic) {
	for _, n := range t.control.AllNodes() {
		if t.online[n.Key] > 0 && t.matchesAny(t.services[name].Hosts, n) {
			return n.Key
		}
	}
	return host
}

// addServiceNames gives every node the Services' DNS names, and their hosts
// the right to certificates for them.
func (t *Tailnet) addServiceNames(res *tailcfg.MapResponse) {
	if res.DNSConfig == nil {
		return
	}
	for name, s := range t.services {
		full := t.serviceDNSName(name)
		for _, a := range serviceAddresses(s) {
			res.DNSConfig.ExtraRecords = append(res.DNSConfig.ExtraRecords, tailcfg.DNSRecord{Name: full + ".", Value: a.String()})
		}
		if !t.matchesAny(s.Hosts, res.Node) {
			res.DNSConfig.CertDomains = slices.DeleteFunc(res.DNSConfig.CertDomains, func(d string) bool { return d == full })
		}
	}
}

func (t *Tailnet) serviceDNSName(name tailcfg.ServiceName) string {
	return name.WithoutPrefix() + "." + t.domain
}

// allowCertificatesLocked tells the test server which names beside their own
// nodes may prove to be theirs. Its lock is out of reach, so that the
// configuration is replaced and never changed in place.
func (t *Tailnet) allowCertificatesLocked() {
	config := t.control.DNSConfig.Clone()
	config.CertDomains = nil
	for name := range t.services {
		config.CertDomains = append(config.CertDomains, t.serviceDNSName(name))
	}
	t.control.DNSConfig = config
}

func serviceAddresses(s *Service) []netip.Addr { return []netip.Addr{s.Address} }

func (t *Tailnet) removed(n *tailcfg.Node) bool {
	s := t.settings[hostName(n)]
	return s != nil && s.Removed
}

// loginName is the user a node belongs to. Tags take the user's place, as
// they do in the real service.
func (t *Tailnet) loginName(n *tailcfg.Node) string {
	if len(n.Tags) > 0 {
		return "tagged-devices"
	}
	if s := t.settings[hostName(n)]; s != nil && s.User != "" {
		return s.User
	}
	return cmp.Or(hostName(n), "nobody") + "@example.com"
}

func (t *Tailnet) userID(login string) tailcfg.UserID {
	id, ok := t.users[login]
	if !ok {
		id = tailcfg.UserID(len(t.users) + 1)
		t.users[login] = id
	}
	return id
}

// hostName is the first label of the node's name: what the admin API and the
// grants know it by.
func hostName(n *tailcfg.Node) string {
	first, _, _ := strings.Cut(n.Name, ".")
	return first
}
