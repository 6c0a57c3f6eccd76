// Stub-upstream answers like an API server at next to no cost, so that what
// is measured is the proxy in front of it. HTTP/1.1 over TLS, keep-alive.
//
//	/small          about 200 bytes of JSON
//	/20k            20,480 bytes of JSON
//	/big?bytes=N    N bytes
//	/watch          one line, then silence until the client goes
//	anything else   /small's answer
//	any upgrade     101, then what comes in goes back out
//
// Request bodies are read and thrown away. The parser knows what well-behaved
// clients and proxies send, and closes the connection on anything else.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"strconv"
	"strings"
)

const maxBig = 1 << 40

var (
	small = answer([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"default","uid":"5a1c0f6e-2d0f-4a57-9d3f-0f9d2f3f8a11","resourceVersion":"12345"},"status":{"phase":"Running","podIP":"10.0.0.7"}}` + "\n"))
	large = answer(append(append([]byte(`{"kind":"PodList","data":"`), bytes.Repeat([]byte("0123456789abcdef"), 1278)...), []byte(`"}`+"\n   ")...))
	chunk = bytes.Repeat([]byte("0123456789abcdef"), 4096)
)

const watch = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
	"26\r\n{\"type\":\"ADDED\",\"object\":{\"kind\":\"\"}}\n\r\n"

func answer(body []byte) []byte {
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body))
	return append([]byte(head), body...)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address:port")
	cert := flag.String("cert", "", "serving certificate")
	key := flag.String("key", "", "its key")
	flag.Parse()
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	ln, err := tls.Listen("tcp", *listen, config)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ln.Addr()) // for who asked for port 0
	for {
		conn, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn)
	}
}

func serve(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		request, err := read(reader)
		if err != nil {
			return
		}
		switch {
		case request.upgrade != "":
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\n", request.upgrade)
			io.Copy(conn, reader)
			return
		case strings.HasPrefix(request.target, "/20k"):
			_, err = conn.Write(large)
		case strings.HasPrefix(request.target, "/big?"):
			err = sendBig(conn, request.target)
		case strings.HasPrefix(request.target, "/watch"):
			io.WriteString(conn, watch)
			io.Copy(io.Discard, reader)
			return
		default:
			_, err = conn.Write(small)
		}
		if err != nil || request.close {
			return
		}
	}
}

type request struct {
	target  string
	upgrade string
	close   bool
}

func read(reader *bufio.Reader) (r request, err error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return r, err
	}
	words := bytes.Fields(line)
	if len(words) != 3 {
		return r, errors.New("bad request line")
	}
	r.target = string(words[1])
	length, chunked := int64(0), false
	for {
		line, err = reader.ReadSlice('\n')
		if err != nil {
			return r, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case equal(name, "content-length"):
			if length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return r, err
			}
		case equal(name, "transfer-encoding"):
			chunked = true
		case equal(name, "upgrade"):
			r.upgrade = string(value)
		case equal(name, "connection"):
			r.close = equal(value, "close")
		}
	}
	if chunked {
		return r, discardChunks(reader)
	}
	_, err = io.CopyN(io.Discard, reader, length)
	return r, err
}

func equal(a []byte, b string) bool { return len(a) == len(b) && strings.EqualFold(string(a), b) }

func discardChunks(reader *bufio.Reader) error {
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(strings.TrimSpace(line), 16, 64)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, reader, size+2); err != nil { // with its CRLF
			return err
		}
		if size == 0 {
			return nil
		}
	}
}

func sendBig(conn net.Conn, target string) error {
	parsed, err := url.Parse(target)
	if err != nil {
		return err
	}
	left, err := strconv.ParseInt(parsed.Query().Get("bytes"), 10, 64)
	if err != nil || left < 0 || left > maxBig {
		return errors.New("bad bytes")
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", left); err != nil {
		return err
	}
	for left > 0 {
		n, err := conn.Write(chunk[:min(left, int64(len(chunk)))])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
