package main

import (
	"encoding/json"
	"net/http"
	"net/netip"

	"tailscale.com/tailcfg"
)

// NodeInfo is a node as GET /nodes lists it.
type NodeInfo struct {
	Name      string               `json:"name"`
	DNSName   string               `json:"dns_name"`
	ID        tailcfg.NodeID       `json:"id"`
	StableID  tailcfg.StableNodeID `json:"stable_id"`
	User      string               `json:"user"`
	Tags      []string             `json:"tags"`
	Addresses []netip.Addr         `json:"addresses"`
	Online    bool                 `json:"online"`
}

// AdminAPI is the test's side:
//
//	GET    /nodes                 all nodes that ever logged in
//	PUT    /nodes/NAME            NodeSettings, also before NAME logs in
//	GET    /grants                the grants
//	PUT    /grants[?quiet=true]   replace them; quiet sends packet filters alone
//	PUT    /services/svc:NAME     a Service: address and hosts
//	DELETE /services/svc:NAME
//	PUT    /recorder-port         the port in recorderAddrs from now on
//
// A change is on its way to every connected node when the answer comes.
func (t *Tailnet) AdminAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, r *http.Request) {
		t.mu.Lock()
		defer t.mu.Unlock()
		infos := []NodeInfo{}
		for _, n := range t.control.AllNodes() {
			info := NodeInfo{
				Name: hostName(n), DNSName: n.Name, ID: n.ID, StableID: n.StableID,
				User: t.loginName(n), Tags: append([]string{}, n.Tags...), Online: t.online[n.Key] > 0,
			}
			for _, a := range n.Addresses {
				info.Addresses = append(info.Addresses, a.Addr())
			}
			infos = append(infos, info)
		}
		reply(w, infos)
	})
	mux.HandleFunc("PUT /nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		var s NodeSettings
		if !parse(w, r, &s) {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.settings[r.PathValue("name")] = &s
		t.wakeLocked(false)
		reply(w, s)
	})
	mux.HandleFunc("GET /grants", func(w http.ResponseWriter, r *http.Request) {
		t.mu.Lock()
		defer t.mu.Unlock()
		reply(w, t.grants)
	})
	mux.HandleFunc("PUT /grants", func(w http.ResponseWriter, r *http.Request) {
		grants := []Grant{}
		if !parse(w, r, &grants) {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.grants = grants
		t.wakeLocked(r.FormValue("quiet") == "true")
		reply(w, grants)
	})
	mux.HandleFunc("PUT /services/{name}", func(w http.ResponseWriter, r *http.Request) {
		var s Service
		if !parse(w, r, &s) {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.services[tailcfg.ServiceName(r.PathValue("name"))] = &s
		t.allowCertificatesLocked()
		t.wakeLocked(false)
		reply(w, s)
	})
	mux.HandleFunc("DELETE /services/{name}", func(w http.ResponseWriter, r *http.Request) {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.services, tailcfg.ServiceName(r.PathValue("name")))
		t.allowCertificatesLocked()
		t.wakeLocked(false)
		reply(w, struct{}{})
	})
	mux.HandleFunc("PUT /recorder-port", func(w http.ResponseWriter, r *http.Request) {
		var port uint16
		if !parse(w, r, &port) {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.recorderPort = port
		t.wakeLocked(false)
		reply(w, port)
	})
	return mux
}

// parse reads the body into v, or answers 400. An unknown field is a mistake
// in the test.
func parse(w http.ResponseWriter, r *http.Request, v any) bool {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
