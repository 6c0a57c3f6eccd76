// Recsink is a recorder that keeps nothing: both versions of the wire, acks
// every 100 ms and at the end, a count of what came. It is what recorded
// sessions are streamed to where their senders are measured, so that no
// recorder's disk or CPU stands between two of them.
//
//	recsink --listen 127.0.0.1:8080
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

var (
	sessions, events, bytesIn atomic.Int64
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address:port")
	flag.Parse()
	mux := http.NewServeMux()
	mux.HandleFunc("HEAD /v2/record", func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			http.Error(w, "HTTP/2 only", http.StatusHTTPVersionNotSupported)
		}
	})
	mux.HandleFunc("POST /v2/record", recordV2)
	mux.HandleFunc("POST /record", func(w http.ResponseWriter, r *http.Request) {
		sessions.Add(1)
		n, _ := io.Copy(io.Discard, r.Body)
		bytesIn.Add(n)
	})
	mux.HandleFunc("HEAD /v2/event", func(w http.ResponseWriter, r *http.Request) {})
	mux.HandleFunc("POST /v2/event", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		events.Add(1)
	})
	mux.HandleFunc("GET /counts", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]int64{
			"sessions": sessions.Load(), "events": events.Load(), "bytes": bytesIn.Load()})
	})
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: mux, Protocols: &protocols}
	log.Fatal(server.Serve(listener))
}

// recordV2 acks what it has read, as a recorder does that writes it somewhere.
func recordV2(w http.ResponseWriter, r *http.Request) {
	sessions.Add(1)
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher)
	flush.Flush()
	var got atomic.Int64
	over := make(chan struct{})
	go func() {
		defer close(over)
		reader := bufio.NewReaderSize(r.Body, 256<<10)
		buffer := make([]byte, 256<<10)
		for {
			n, err := reader.Read(buffer)
			got.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	acked := int64(-1)
	ack := func() {
		if n := got.Load(); n != acked {
			acked = n
			fmt.Fprintf(w, "{\"ack\":%d}\n", n)
			flush.Flush()
		}
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			ack()
		case <-over:
			ack()
			bytesIn.Add(acked)
			return
		}
	}
}
