// Loadgen sends the same GET over keep-alive connections, each waiting for its
// answer, for a time or a number of requests, and prints one JSON object.
// With --prime every connection gets one answer first, and a line of its own
// says when all have: what is measured then begins, on connections that are known.
// With --cold every request has a connection of its own, as each run of kubectl
// has: dialed, with a TLS handshake, and closed after its answer.
// With --watches it opens that many streams instead, says on a first line when
// all have had their first byte, and holds them.
//
//	loadgen --url https://127.0.0.1:8443/small --connections 16 --duration 5s
//	loadgen --url https://proxy.tail.example.ts.net:8443/small --socks5 127.0.0.1:1055 ...   as a node of the bed
//	loadgen --url http://127.0.0.1:80/small --proxy-source 100.64.0.2 ...                    behind a PROXY v2 header
//	loadgen --url https://127.0.0.1:8443/watch --watches 1000 --duration 10s
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/proxy"
)

// Result is what is printed. Latencies are from the request's first byte (with
// --cold, from the connection's) to the answer's last.
type Result struct {
	Requests  int     `json:"requests"`
	Errors    int     `json:"errors"`
	LastError string  `json:"last_error,omitempty"`
	Seconds   float64 `json:"seconds"`
	RPS       float64 `json:"rps"`
	P50       float64 `json:"p50_ms"`
	P90       float64 `json:"p90_ms"`
	P99       float64 `json:"p99_ms"`
	Max       float64 `json:"max_ms"`
	MiB       float64 `json:"mib"`
	MiBPerS   float64 `json:"mib_per_s"`
}

type headers []string

func (h *headers) String() string     { return strings.Join(*h, ", ") }
func (h *headers) Set(v string) error { *h = append(*h, v); return nil }

type client struct {
	url     *url.URL
	tls     *tls.Config
	dialer  proxy.Dialer
	source  string // of the PROXY header; empty: none
	request []byte
}

func main() {
	log.SetFlags(0)
	target := flag.String("url", "", "what to get")
	connections := flag.Int("connections", 1, "at the same time")
	duration := flag.Duration("duration", 5*time.Second, "for how long")
	count := flag.Int64("count", 0, "requests in all, instead of a duration")
	prime := flag.Bool("prime", false, "one request on each connection before the clock starts")
	cold := flag.Bool("cold", false, "a new connection for each request")
	watches := flag.Int("watches", 0, "hold this many streams for the duration, instead of sending requests")
	ca := flag.String("ca", "", "who signs the certificate; empty: not verified")
	clientCert := flag.String("client-cert", "", "client certificate")
	clientKey := flag.String("client-key", "", "its key")
	socks5 := flag.String("socks5", "", "SOCKS5 server to dial through")
	source := flag.String("proxy-source", "", "begin each connection with a PROXY v2 header that names this IPv4 address")
	var extra headers
	flag.Var(&extra, "header", "\"Name: value\", may be repeated")
	flag.Parse()

	c := newClient(*target, *ca, *clientCert, *clientKey, *socks5, *source, extra)
	if *watches > 0 {
		c.hold(*watches, *duration)
		return
	}
	json.NewEncoder(os.Stdout).Encode(c.run(*connections, *duration, *count, *prime, *cold))
}

func newClient(target, ca, cert, key, socks5, source string, extra []string) *client {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" {
		log.Fatalf("--url: not an address: %q", target)
	}
	c := &client{url: u, source: source, dialer: proxy.Direct}
	c.tls = &tls.Config{ServerName: u.Hostname(), InsecureSkipVerify: ca == "", NextProtos: []string{"http/1.1"}}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			log.Fatal(err)
		}
		c.tls.RootCAs = x509.NewCertPool()
		c.tls.RootCAs.AppendCertsFromPEM(pem)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			log.Fatal(err)
		}
		c.tls.Certificates = []tls.Certificate{pair}
	}
	if socks5 != "" {
		if c.dialer, err = proxy.SOCKS5("tcp", socks5, nil, nil); err != nil {
			log.Fatal(err)
		}
	}
	var request bytes.Buffer
	fmt.Fprintf(&request, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: loadgen\r\nAccept: application/json\r\n", u.RequestURI(), u.Host)
	for _, header := range extra {
		fmt.Fprintf(&request, "%s\r\n", header)
	}
	request.WriteString("\r\n")
	c.request = request.Bytes()
	return c
}

func (c *client) dial() (net.Conn, error) {
	port := c.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[c.url.Scheme]
	}
	conn, err := c.dialer.Dial("tcp", net.JoinHostPort(c.url.Hostname(), port))
	if err != nil {
		return nil, err
	}
	if c.source != "" {
		local, _ := netip.ParseAddrPort(conn.LocalAddr().String())
		if _, err := conn.Write(proxyHeader(c.source, local.Port())); err != nil {
			return nil, err
		}
	}
	if c.url.Scheme == "https" {
		secured := tls.Client(conn, c.tls)
		if err := secured.Handshake(); err != nil {
			conn.Close()
			return nil, err
		}
		conn = secured
	}
	return conn, nil
}

// proxyHeader is version 2 of the PROXY protocol: signature, PROXY command,
// TCP over IPv4, twelve bytes of addresses.
func proxyHeader(source string, port uint16) []byte {
	header := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11, 0, 12)
	header = append(header, netip.MustParseAddr(source).AsSlice()...)
	header = append(header, 100, 64, 255, 1)
	header = binary.BigEndian.AppendUint16(header, port)
	return binary.BigEndian.AppendUint16(header, 443)
}

func (c *client) run(connections int, duration time.Duration, count int64, prime, cold bool) Result {
	var (
		mu        sync.Mutex
		latencies []time.Duration
		result    Result
		bytesIn   int64
		issued    atomic.Int64
		running   sync.WaitGroup
	)
	// Everybody is connected before the clock starts: handshakes are not requests.
	dialed := time.Now()
	conns := make([]net.Conn, connections)
	for i := range conns {
		if cold {
			continue
		}
		conn, err := c.dial()
		if err != nil {
			log.Fatal(err)
		}
		conns[i] = conn
	}
	if prime {
		c.prime(conns, dialed)
	}
	begin := time.Now()
	end := begin.Add(duration)
	more := func() bool {
		if count > 0 {
			return issued.Add(1) <= count
		}
		return time.Now().Before(end)
	}
	for _, conn := range conns {
		running.Go(func() {
			var own []time.Duration
			var ownBytes int64
			var failures int
			var lastError error
			reader := bufio.NewReaderSize(conn, 64<<10) // conn: nil with --cold
			for more() {
				start := time.Now()
				if cold {
					n, err := c.visit(reader)
					ownBytes += n
					if err != nil {
						failures++
						lastError = err
						continue
					}
					own = append(own, time.Since(start))
					continue
				}
				n, err := c.exchange(conn, reader)
				ownBytes += n
				if err == nil {
					own = append(own, time.Since(start))
					continue
				}
				failures++
				lastError = err
				conn.Close()
				if conn, err = c.dial(); err != nil {
					lastError = err
					break
				}
				reader.Reset(conn)
			}
			if conn != nil {
				conn.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			latencies = append(latencies, own...)
			bytesIn += ownBytes
			result.Errors += failures
			if lastError != nil {
				result.LastError = lastError.Error()
			}
		})
	}
	running.Wait()
	result.Seconds = time.Since(begin).Seconds()
	slices.Sort(latencies)
	at := func(q float64) float64 {
		if len(latencies) == 0 {
			return 0
		}
		return float64(latencies[int(q*float64(len(latencies)-1))].Microseconds()) / 1000
	}
	result.Requests = len(latencies)
	result.RPS = float64(len(latencies)) / result.Seconds
	result.P50, result.P90, result.P99, result.Max = at(0.5), at(0.9), at(0.99), at(1)
	result.MiB = float64(bytesIn) / (1 << 20)
	result.MiBPerS = result.MiB / result.Seconds
	return result
}

// prime gets one answer on each connection, on all at the same time, and says
// so, with the time since the first was dialed.
func (c *client) prime(conns []net.Conn, dialed time.Time) {
	var primed sync.WaitGroup
	for _, conn := range conns {
		primed.Go(func() {
			if _, err := c.exchange(conn, bufio.NewReaderSize(conn, 64<<10)); err != nil {
				log.Fatal(err)
			}
		})
	}
	primed.Wait()
	json.NewEncoder(os.Stdout).Encode(map[string]any{"state": "primed", "seconds": time.Since(dialed).Seconds()})
}

// visit is a whole connection: dialed, asked once, closed.
func (c *client) visit(reader *bufio.Reader) (int64, error) {
	conn, err := c.dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	reader.Reset(conn)
	return c.exchange(conn, reader)
}

// exchange sends the request and reads its answer; n counts the body.
func (c *client) exchange(conn net.Conn, reader *bufio.Reader) (n int64, err error) {
	if _, err := conn.Write(c.request); err != nil {
		return 0, err
	}
	length, err := readHead(reader)
	if err != nil {
		return 0, err
	}
	if length >= 0 {
		discarded, err := io.CopyN(io.Discard, reader, length)
		return discarded, err
	}
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return n, err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return n, err
		}
		if _, err := io.CopyN(io.Discard, reader, size+2); err != nil { // with its CRLF
			return n, err
		}
		n += size
		if size == 0 {
			return n, nil
		}
	}
}

// readHead reads the head of an answer: the body's length, or -1 where it is
// chunked. Anything but a 200 is an error.
func readHead(reader *bufio.Reader) (length int64, err error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 || string(line[9:12]) != "200" {
		return 0, fmt.Errorf("answer: %s", bytes.TrimSpace(line))
	}
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		name, value, more := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		switch {
		case !more && len(name) == 0:
			return length, nil
		case strings.EqualFold(string(name), "content-length"):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return 0, err
			}
		case strings.EqualFold(string(name), "transfer-encoding"):
			length = -1
		}
	}
}

// hold opens streams and keeps them. First line: how many are open; last: how
// many of them have ended on their own.
func (c *client) hold(count int, duration time.Duration) {
	begin := time.Now()
	var ended atomic.Int64
	slots := make(chan struct{}, 32) // handshakes at the same time
	var opening sync.WaitGroup
	var opened, failed atomic.Int64
	for range count {
		slots <- struct{}{}
		opening.Go(func() {
			defer func() { <-slots }()
			conn, reader, err := c.open()
			if err != nil {
				failed.Add(1)
				log.Print(err)
				return
			}
			opened.Add(1)
			go func() {
				io.Copy(io.Discard, reader)
				ended.Add(1)
				conn.Close()
			}()
		})
	}
	opening.Wait()
	report := func(extra map[string]any) {
		extra["open"], extra["failed"] = opened.Load()-ended.Load(), failed.Load()
		extra["seconds"] = time.Since(begin).Seconds()
		json.NewEncoder(os.Stdout).Encode(extra)
	}
	report(map[string]any{"state": "open"})
	time.Sleep(duration)
	report(map[string]any{"state": "held", "ended": ended.Load()})
}

func (c *client) open() (net.Conn, *bufio.Reader, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, nil, err
	}
	if _, err := conn.Write(c.request); err != nil {
		return nil, nil, err
	}
	reader := bufio.NewReaderSize(conn, 512) // thousands of them are held
	if _, err := readHead(reader); err != nil {
		return nil, nil, err
	}
	if _, err := reader.Peek(1); err != nil {
		return nil, nil, errors.Join(errors.New("no first byte"), err)
	}
	return conn, reader, nil
}
