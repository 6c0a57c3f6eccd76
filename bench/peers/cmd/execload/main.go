// Execload runs kubectl's own exec (k8s.io/client-go/tools/remotecommand)
// many times over, and prints one JSON object.
//
//	--mode output    one session after the other, each to the end of its output; bytes a second
//	--mode sessions  --concurrency sessions at a time for --duration; sessions a second
//	--mode echo      one session running cat; a byte is sent when the last one has come back; latencies
//	--mode idle      --concurrency sessions that wait: "ready" is printed when all run, they end with stdin
//
//	execload --url https://127.0.0.1:8443/api/v1/namespaces/default/pods/web/exec --ca ca.pem --mode output -- head -c 100000000 /dev/zero
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// Result is what is printed. Latencies are in milliseconds.
type Result struct {
	Sessions    int     `json:"sessions"`
	Errors      int     `json:"errors"`
	LastError   string  `json:"last_error,omitempty"`
	Seconds     float64 `json:"seconds"`
	PerSecond   float64 `json:"sessions_per_s"`
	Bytes       int64   `json:"bytes"`
	MBPerSecond float64 `json:"mb_per_s"`
	P50         float64 `json:"p50_ms"`
	P99         float64 `json:"p99_ms"`
}

type headers []string

func (h *headers) String() string     { return strings.Join(*h, ", ") }
func (h *headers) Set(v string) error { *h = append(*h, v); return nil }

type load struct {
	config  *rest.Config
	url     *url.URL
	spdy    bool
	command []string
}

func main() {
	target := flag.String("url", "", "of the pod's exec subresource, without a query")
	ca := flag.String("ca", "", "CA of the server")
	source := flag.String("proxy-source", "", "begin each connection with a PROXY v2 header that names this IPv4 address")
	spdy := flag.Bool("spdy", false, "SPDY and not WebSocket")
	mode := flag.String("mode", "output", "output, sessions, echo or idle")
	concurrency := flag.Int("concurrency", 1, "sessions at a time")
	duration := flag.Duration("duration", 5*time.Second, "of --mode sessions")
	count := flag.Int("count", 1, "sessions of --mode output, bytes of --mode echo")
	var extra headers
	flag.Var(&extra, "header", "\"Name: value\", may be repeated")
	flag.Parse()
	u, err := url.Parse(*target)
	if err != nil || u.Host == "" {
		log.Fatalf("--url: not an address: %q", *target)
	}
	if *source != "" {
		u.Host = front(u.Host, *source)
	}
	config := &rest.Config{Host: u.Scheme + "://" + u.Host}
	if u.Scheme == "https" {
		config.TLSClientConfig = rest.TLSClientConfig{CAFile: *ca, Insecure: *ca == ""}
	}
	for _, header := range extra {
		name, value, _ := strings.Cut(header, ": ")
		config.Wrap(withHeader(name, value))
	}
	l := &load{config: config, url: u, spdy: *spdy, command: flag.Args()}
	var result Result
	switch *mode {
	case "output":
		result = l.output(*count)
	case "sessions":
		result = l.sessions(*concurrency, *duration)
	case "echo":
		result = l.echo(*count)
	case "idle":
		result = l.idle(*concurrency)
	default:
		log.Fatalf("--mode: %q", *mode)
	}
	json.NewEncoder(os.Stdout).Encode(result)
}

// front is a listener of our own that begins every connection to the target
// with a PROXY header: remotecommand's transports make their connections
// themselves. What is copied in the kernel (splice) costs little.
func front(target, source string) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go forward(client.(*net.TCPConn), target, source)
		}
	}()
	return listener.Addr().String()
}

func forward(client *net.TCPConn, target, source string) {
	defer client.Close()
	conn, err := net.Dial("tcp", target)
	if err != nil {
		log.Print(err)
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	local := server.LocalAddr().(*net.TCPAddr)
	header := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11, 0, 12)
	header = append(header, netip.MustParseAddr(source).AsSlice()...)
	header = append(header, 100, 64, 255, 1)
	header = binary.BigEndian.AppendUint16(header, uint16(local.Port))
	header = binary.BigEndian.AppendUint16(header, 443)
	if _, err := server.Write(header); err != nil {
		return
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		io.Copy(server, client)
		server.CloseWrite()
	}()
	io.Copy(client, server)
	client.CloseWrite()
	<-over
}

func (l *load) executor(stdin bool) (remotecommand.Executor, error) {
	query := url.Values{"command": l.command, "stdout": {"true"}}
	if stdin {
		query.Set("stdin", "true")
	}
	u := *l.url
	u.RawQuery = query.Encode()
	if l.spdy {
		return remotecommand.NewSPDYExecutor(l.config, "POST", &u)
	}
	return remotecommand.NewWebSocketExecutor(l.config, "GET", u.String())
}

type counter struct {
	n     atomic.Int64
	first func()
	once  sync.Once
}

func (c *counter) Write(p []byte) (int, error) {
	if c.first != nil {
		c.once.Do(c.first)
	}
	c.n.Add(int64(len(p)))
	return len(p), nil
}

func (l *load) run(stdin io.Reader, stdout io.Writer) error {
	executor, err := l.executor(stdin != nil)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout})
}

func (l *load) output(count int) Result {
	var out counter
	var result Result
	began := time.Now()
	for range count {
		if err := l.run(nil, &out); err != nil {
			result.Errors++
			result.LastError = err.Error()
		}
	}
	result.Sessions = count
	result.Seconds = time.Since(began).Seconds()
	result.Bytes = out.n.Load()
	result.MBPerSecond = float64(result.Bytes) / 1e6 / result.Seconds
	return result
}

func (l *load) sessions(concurrency int, duration time.Duration) Result {
	var mu sync.Mutex
	var result Result
	var running sync.WaitGroup
	began := time.Now()
	for range concurrency {
		running.Add(1)
		go func() {
			defer running.Done()
			for time.Since(began) < duration {
				err := l.run(nil, io.Discard)
				mu.Lock()
				result.Sessions++
				if err != nil {
					result.Errors++
					result.LastError = err.Error()
				}
				mu.Unlock()
			}
		}()
	}
	running.Wait()
	result.Seconds = time.Since(began).Seconds()
	result.PerSecond = float64(result.Sessions-result.Errors) / result.Seconds
	return result
}

func (l *load) echo(count int) Result {
	var result Result
	in, typed := io.Pipe()
	screen, out := io.Pipe()
	over := make(chan error, 1)
	go func() { over <- l.run(in, out) }()
	latencies := make([]float64, 0, count)
	one := make([]byte, 1)
	const warmUp = 50
	for i := range count + warmUp {
		began := time.Now()
		if _, err := typed.Write([]byte{'x'}); err != nil {
			log.Fatal(err)
		}
		if _, err := io.ReadFull(screen, one); err != nil {
			log.Fatal(err)
		}
		if i >= warmUp {
			latencies = append(latencies, float64(time.Since(began).Microseconds())/1e3)
		}
		time.Sleep(2 * time.Millisecond)
	}
	typed.Close()
	go io.Copy(io.Discard, screen)
	if err := <-over; err != nil {
		result.Errors++
		result.LastError = err.Error()
	}
	slices.Sort(latencies)
	result.Sessions = 1
	result.P50 = latencies[len(latencies)/2]
	result.P99 = latencies[len(latencies)*99/100]
	return result
}

func (l *load) idle(concurrency int) Result {
	var result Result
	var ready, over sync.WaitGroup
	var mu sync.Mutex
	pipes := make([]*io.PipeWriter, concurrency)
	limit := make(chan struct{}, 8)
	for i := range concurrency {
		limit <- struct{}{}
		in, typed := io.Pipe()
		pipes[i] = typed
		ready.Add(1)
		over.Add(1)
		var settled sync.Once
		settle := func() { settled.Do(func() { ready.Done(); <-limit }) }
		go func() {
			defer over.Done()
			err := l.run(in, &counter{first: settle})
			settle()
			if err != nil {
				mu.Lock()
				result.Errors++
				result.LastError = err.Error()
				mu.Unlock()
			}
		}()
		go typed.Write([]byte("x\n"))
	}
	ready.Wait()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	for _, typed := range pipes {
		typed.Close()
	}
	over.Wait()
	result.Sessions = concurrency
	return result
}
