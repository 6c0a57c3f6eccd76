package main

import (
	"encoding/json"
	"net/netip"
	"slices"

	"tailscale.com/tailcfg"
)

// Grant is one grant of a policy file, without its network half ("ip"): the
// network is open here.
//
// src and dst hold selectors: "*", a host name, an address, "tag:x", a login
// name, "autogroup:member" (nodes of users), "autogroup:tagged"; dst may also
// name a Service, "svc:x".
type Grant struct {
	Src []string                     `json:"src"`
	Dst []string                     `json:"dst"`
	App map[string][]json.RawMessage `json:"app"`
}

// grantRules is the part of a node's packet filter that carries what its
// peers may do to it. Only rules with this node (or a Service that it hosts)
// as their destination are sent to it.
func (t *Tailnet) grantRules(self *tailcfg.Node, all []*tailcfg.Node) []tailcfg.FilterRule {
	var rules []tailcfg.FilterRule
	for _, g := range t.grants {
		dsts := t.destinations(g, self)
		srcs := t.sources(g, all)
		if len(dsts) == 0 || len(srcs) == 0 {
			continue
		}
		caps := tailcfg.PeerCapMap{}
		for name, values := range g.App {
			raws := []tailcfg.RawMessage{}
			for _, v := range values {
				raws = append(raws, tailcfg.RawMessage(t.withRecorderAddrs(v, all)))
			}
			caps[tailcfg.PeerCapability(name)] = raws
		}
		rules = append(rules, tailcfg.FilterRule{
			SrcIPs:   srcs,
			CapGrant: []tailcfg.CapGrant{{Dsts: dsts, CapMap: caps}},
		})
	}
	return rules
}

func (t *Tailnet) destinations(g Grant, self *tailcfg.Node) (dsts []netip.Prefix) {
	if t.matchesAny(g.Dst, self) {
		dsts = append(dsts, self.Addresses...)
	}
	for name, s := range t.services {
		if t.matchesAny(s.Hosts, self) && (slices.Contains(g.Dst, string(name)) || slices.Contains(g.Dst, "*")) {
			for _, a := range serviceAddresses(s) {
				dsts = append(dsts, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return dsts
}

func (t *Tailnet) sources(g Grant, all []*tailcfg.Node) (srcs []string) {
	for _, n := range all {
		if t.matchesAny(g.Src, n) {
			for _, a := range n.Addresses {
				srcs = append(srcs, a.Addr().String())
			}
		}
	}
	return srcs
}

func (t *Tailnet) matchesAny(selectors []string, n *tailcfg.Node) bool {
	return slices.ContainsFunc(selectors, func(s string) bool { return t.matches(s, n) })
}

func (t *Tailnet) matches(selector string, n *tailcfg.Node) bool {
	switch {
	case selector == "*", selector == hostName(n), slices.Contains(n.Tags, selector):
		return true
	case selector == "autogroup:member":
		return len(n.Tags) == 0
	case selector == "autogroup:tagged":
		return len(n.Tags) > 0
	case len(n.Tags) == 0 && selector == t.loginName(n):
		return true
	}
	address, err := netip.ParseAddr(selector)
	return err == nil && slices.ContainsFunc(n.Addresses, func(p netip.Prefix) bool { return p.Addr() == address })
}

// withRecorderAddrs fills recorderAddrs from the tags in recorder, as the real
// service does it. A value that is not an object, or one that has addresses
// already, is left as the test wrote it.
func (t *Tailnet) withRecorderAddrs(value json.RawMessage, all []*tailcfg.Node) json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil || fields["recorderAddrs"] != nil {
		return value
	}
	var tags []string
	if json.Unmarshal(fields["recorder"], &tags) != nil || len(tags) == 0 {
		return value
	}
	addrs := []netip.AddrPort{}
	for _, n := range all {
		if t.matchesAny(tags, n) {
			for _, a := range n.Addresses {
				addrs = append(addrs, netip.AddrPortFrom(a.Addr(), t.recorderPort))
			}
		}
	}
	fields["recorderAddrs"], _ = json.Marshal(addrs)
	filled, _ := json.Marshal(fields)
	return filled
}
