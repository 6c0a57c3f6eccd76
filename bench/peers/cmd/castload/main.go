// Castload sends recorded sessions to a recorder as k8sproxy would: many on
// a connection, by HTTP/2 prior knowledge (the wire's version 2), DATA frames
// in front of text that was made before, so that it costs little.
//
//	castload --address 127.0.0.1:80 --sessions 500 --connections 16 --rate 100 --seconds 20 --pool FILE
//
// The pool is a file of lines, each the JSON string of an event without its
// quotes. Event k of session n is [k/100,"o","line (7n+k) of the pool"], so
// whoever has the pool knows what a recording must hold. A session's number
// is in its header ("sessionID").
//
// With --rate (MB/s, all sessions together) each event has a time at which it
// is due, spread evenly; one that the recorder's windows hold up is sent as
// soon as they let it, and "behind" says by how much. Without, every session
// sends what its window lets it. Ack latency is from the moment an event is
// handed to the kernel to the moment the ack that covers it is read.
//
// With --life sessions end after about so many seconds, at some moment, and a
// new one with the next number takes each one's place.
//
// It prints JSON lines: {"state":"open"} when all sessions are accepted,
// {"state":"sent"} when no more is sent and all is acked, and at the end
// {"state":"done", ..}. With --journal FILE that file has, at the end and
// whenever the recorder goes away, a line of each session: {"session":n,
// "sent":bytes,"acked":bytes,"ending":told the recorder so,"over":and was told
// that it is}.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var (
	address     = flag.String("address", "", "the recorder")
	source      = flag.String("from", "127.0.0.2", "the address that connections come from")
	sessions    = flag.Int("sessions", 500, "at once")
	connections = flag.Int("connections", 16, "that they are spread over")
	rate        = flag.Float64("rate", 0, "MB/s (10^6) of all sessions; 0: as fast as it goes")
	seconds     = flag.Float64("seconds", 10, "of sending")
	poolFile    = flag.String("pool", "", "file of texts")
	life        = flag.Float64("life", 0, "seconds that a session lasts on average; 0: to the end")
	first       = flag.Int("first", 0, "number of the first session")
	journal     = flag.String("journal", "", "file for what was sent and acked")

	pool [][]byte
	stop atomic.Bool
	next atomic.Int64 // number of the next session
)

// mark is an event that is not acked yet.
type mark struct {
	end int64
	at  time.Time
}

type session struct {
	number int
	stream uint32
	window int64
	owed   []time.Time // when each event that could not be sent yet was due
	count  int         // events sent
	sent   int64
	acked  int64
	marks  []mark
	status string
	rest   []byte // of an ack line
	until  time.Time
	ending bool
	over   bool
}

type connection struct {
	net      net.Conn
	framer   *http2.Framer
	mu       sync.Mutex
	wake     *sync.Cond
	window   int64
	initial  int64
	maxFrame int64
	sessions []*session
	live     []*session // those that send
	byStream map[uint32]*session
	accepted int
	ended    int
	dead     error
	ack      []float32 // milliseconds
	behind   []float32
}

func main() {
	flag.Parse()
	text, err := os.ReadFile(*poolFile)
	if err != nil {
		log.Fatal(err)
	}
	pool = bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	next.Store(int64(*first))
	all := make([]*connection, *connections)
	for i := range all {
		if all[i], err = open(i); err != nil {
			log.Fatal(err)
		}
	}
	lost := false
	each := func(work func(*connection) error) {
		var group sync.WaitGroup
		var failed atomic.Bool
		for _, c := range all {
			group.Go(func() {
				if err := work(c); err != nil {
					failed.Store(true)
					fmt.Fprintln(os.Stderr, err)
				}
			})
		}
		group.Wait()
		lost = lost || failed.Load()
	}
	each(func(c *connection) error {
		return c.until(func() bool { return c.accepted == len(c.sessions) })
	})
	say(map[string]any{"state": "open"})
	began := time.Now()
	time.AfterFunc(time.Duration(*seconds*float64(time.Second)), func() {
		stop.Store(true)
		for _, c := range all {
			c.mu.Lock()
			c.wake.Broadcast()
			c.mu.Unlock()
		}
	})
	each(func(c *connection) error { return c.send(began) })
	sending := time.Since(began).Seconds()
	each(func(c *connection) error {
		return c.until(func() bool {
			return !slices.ContainsFunc(c.sessions, func(s *session) bool { return s.acked < s.sent })
		})
	})
	acked := time.Since(began).Seconds()
	say(map[string]any{"state": "sent"})
	each(func(c *connection) error { return c.end() })
	report(all, sending, acked, time.Since(began).Seconds(), lost)
	if lost {
		os.Exit(1)
	}
}

func say(values map[string]any) {
	json.NewEncoder(os.Stdout).Encode(values)
}

func report(all []*connection, sending, acked, total float64, lost bool) {
	var bytes int64
	var ack, behind []float32
	var lines []byte
	for _, c := range all {
		c.mu.Lock()
		for _, s := range c.sessions {
			bytes += s.acked
			line, _ := json.Marshal(map[string]any{
				"session": s.number, "sent": s.sent, "acked": s.acked, "ending": s.ending, "over": s.over,
			})
			lines = append(append(lines, line...), '\n')
		}
		ack, behind = append(ack, c.ack...), append(behind, c.behind...)
		c.mu.Unlock()
	}
	if *journal != "" {
		if err := os.WriteFile(*journal, lines, 0o600); err != nil {
			log.Fatal(err)
		}
	}
	slices.Sort(ack)
	slices.Sort(behind)
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	cpu := float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
	say(map[string]any{
		"state": "done", "bytes": bytes, "events": len(ack), "lost": lost,
		"sending_s": sending, "acked_s": acked, "total_s": total, "mb_per_s": float64(bytes) / acked / 1e6,
		"ack_p50_ms": at(ack, 0.5), "ack_p99_ms": at(ack, 0.99), "ack_max_ms": at(ack, 1),
		"behind_p50_ms": at(behind, 0.5), "behind_p99_ms": at(behind, 0.99), "cpu_s": cpu,
	})
}

func at(sorted []float32, part float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(math.Ceil(part*float64(len(sorted)-1)))])
}

// open connects and begins its part of the sessions.
func open(index int) (*connection, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(*source)}}
	dialed, err := dialer.Dial("tcp", *address)
	if err != nil {
		return nil, err
	}
	c := &connection{net: dialed, window: 65535, initial: 65535, maxFrame: 16384, byStream: map[uint32]*session{}}
	c.wake = sync.NewCond(&c.mu)
	c.framer = http2.NewFramer(dialed, bufio.NewReaderSize(dialed, 64<<10))
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(dialed, http2.ClientPreface); err != nil {
		return nil, err
	}
	// Acks are never held up by a window, so none has to be given back.
	c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	c.framer.WriteWindowUpdate(0, 1<<30)
	settled := false
	for !settled { // before the first DATA: how large a frame may be
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return nil, err
		}
		if settings, is := frame.(*http2.SettingsFrame); is && !settings.IsAck() {
			c.settings(settings)
			settled = true
		} else if update, is := frame.(*http2.WindowUpdateFrame); is {
			c.window += int64(update.Increment)
		}
	}
	for n := index; n < *sessions; n += *connections {
		s, err := c.begin()
		if err != nil {
			return nil, err
		}
		c.live = append(c.live, s)
	}
	go c.read()
	return c, nil
}

// begin opens a session and sends its header line.
func (c *connection) begin() (*session, error) {
	s := &session{number: int(next.Add(1) - 1), stream: uint32(2*len(c.sessions) + 1), window: c.initial}
	if *life > 0 {
		s.until = time.Now().Add(time.Duration(*life * (0.5 + rand.Float64()) * float64(time.Second)))
	}
	c.sessions = append(c.sessions, s)
	c.byStream[s.stream] = s
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSizeLimit(0)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":authority", *address}, {":path", "/v2/record"},
	} {
		encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: s.stream, BlockFragment: block.Bytes(), EndHeaders: true,
	})
	head := header(s.number)
	s.sent = int64(len(head))
	s.window -= s.sent
	c.window -= s.sent
	return s, c.framer.WriteData(s.stream, false, head)
}

// renew ends the sessions whose time has come, each for a new one.
func (c *connection) renew(now time.Time) error {
	for i, s := range c.live {
		if s.until.IsZero() || now.Before(s.until) || c.window < 4096 {
			continue
		}
		s.ending = true
		if err := c.framer.WriteData(s.stream, true, nil); err != nil {
			return err
		}
		fresh, err := c.begin()
		if err != nil {
			return err
		}
		c.live[i] = fresh
	}
	return nil
}

func header(number int) []byte {
	line, _ := json.Marshal(map[string]any{
		"version": 2, "width": 120, "height": 40, "timestamp": 1_780_000_000, "command": "tail -f /var/log/app.log",
		"srcNode": fmt.Sprintf("laptop-%d.tail1234.ts.net.", number%50), "srcNodeID": "nSRCCNTRL",
		"srcNodeUserID": 7_000_000_000_000_001, "srcNodeUser": fmt.Sprintf("user%d@example.com", number%50),
		"sessionID": fmt.Sprint(number),
		"kubernetes": map[string]any{
			"PodName": fmt.Sprintf("app-%d", number), "Namespace": "shop", "Container": "app", "SessionType": "exec",
		},
	})
	return append(line, '\n')
}

func (c *connection) settings(frame *http2.SettingsFrame) {
	frame.ForeachSetting(func(setting http2.Setting) error {
		switch setting.ID {
		case http2.SettingInitialWindowSize:
			for _, s := range c.sessions {
				s.window += int64(setting.Val) - c.initial
			}
			c.initial = int64(setting.Val)
		case http2.SettingMaxFrameSize:
			c.maxFrame = int64(setting.Val)
		}
		return nil
	})
	c.framer.WriteSettingsAck()
}

func (c *connection) until(condition func() bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !condition() {
		if c.dead != nil {
			return c.dead
		}
		c.wake.Wait()
	}
	return nil
}

// read takes what the recorder says until it hangs up.
func (c *connection) read() {
	for {
		frame, err := c.framer.ReadFrame()
		c.mu.Lock()
		if err == nil {
			err = c.take(frame)
		}
		if err != nil {
			c.dead = err
		}
		c.wake.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *connection) take(frame http2.Frame) error {
	switch frame := frame.(type) {
	case *http2.SettingsFrame:
		if !frame.IsAck() {
			c.settings(frame)
		}
	case *http2.PingFrame:
		if !frame.IsAck() {
			return c.framer.WritePing(true, frame.Data)
		}
	case *http2.WindowUpdateFrame:
		if frame.StreamID == 0 {
			c.window += int64(frame.Increment)
		} else if s := c.byStream[frame.StreamID]; s != nil {
			s.window += int64(frame.Increment)
		}
	case *http2.MetaHeadersFrame:
		s := c.byStream[frame.StreamID]
		s.status = frame.PseudoValue("status")
		if s.status != "200" {
			return fmt.Errorf("session %d: status %s", s.number, s.status)
		}
		c.accepted++
	case *http2.DataFrame:
		s := c.byStream[frame.StreamID]
		if err := c.acks(s, frame.Data(), time.Now()); err != nil {
			return err
		}
		if frame.StreamEnded() {
			s.over = true
			c.ended++
		}
	case *http2.RSTStreamFrame:
		if s := c.byStream[frame.StreamID]; !s.over {
			return fmt.Errorf("session %d: reset, %v", s.number, frame.ErrCode)
		}
	case *http2.GoAwayFrame:
		return errors.New("the recorder goes away")
	}
	return nil
}

func (c *connection) acks(s *session, data []byte, now time.Time) error {
	s.rest = append(s.rest, data...)
	for {
		line, rest, whole := bytes.Cut(s.rest, []byte("\n"))
		if !whole {
			return nil
		}
		var told struct {
			Ack   int64
			Error string
		}
		if err := json.Unmarshal(line, &told); err != nil {
			return err
		}
		s.rest = rest
		if told.Error != "" {
			return fmt.Errorf("session %d: %s", s.number, told.Error)
		}
		if told.Ack > s.sent {
			return fmt.Errorf("session %d: %d bytes acked of %d", s.number, told.Ack, s.sent)
		}
		s.acked = max(s.acked, told.Ack)
		done := 0
		for done < len(s.marks) && s.marks[done].end <= s.acked {
			c.ack = append(c.ack, float32(now.Sub(s.marks[done].at).Seconds()*1e3))
			done++
		}
		s.marks = append(s.marks[:0], s.marks[done:]...)
	}
}

// send goes round the sessions until it is time to stop.
func (c *connection) send(began time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *rate == 0 {
		return c.sendAll()
	}
	size := float64(len(pool[0]) + 20)
	between := time.Duration(size / (*rate * 1e6) * float64(*connections) * float64(time.Second))
	due := began.Add(time.Duration(rand.Float64() * float64(between)))
	turn := 0
	for !stop.Load() && c.dead == nil {
		now := time.Now()
		if err := c.renew(now); err != nil {
			return err
		}
		for ; !due.After(now); due = due.Add(between) {
			s := c.live[turn]
			turn = (turn + 1) % len(c.live)
			s.owed = append(s.owed, due)
		}
		for _, s := range c.live {
			for len(s.owed) > 0 && c.fits(s) {
				c.behind = append(c.behind, float32(time.Since(s.owed[0]).Seconds()*1e3))
				s.owed = s.owed[1:]
				if err := c.event(s); err != nil {
					return err
				}
			}
		}
		timer := time.AfterFunc(time.Until(due), c.wake.Broadcast)
		c.wake.Wait()
		timer.Stop()
	}
	return c.dead
}

func (c *connection) sendAll() error {
	for !stop.Load() && c.dead == nil {
		idle := true
		if err := c.renew(time.Now()); err != nil {
			return err
		}
		for _, s := range c.live {
			if c.fits(s) {
				idle = false
				if err := c.event(s); err != nil {
					return err
				}
			}
		}
		if idle {
			c.wake.Wait()
		}
	}
	return c.dead
}

// text is what event s.count of the session is made of.
func (s *session) text() []byte {
	return pool[(7*s.number+s.count)%len(pool)]
}

func (c *connection) fits(s *session) bool {
	size := int64(len(s.text()) + 32)
	return size <= min(s.window, c.window)
}

// event sends the session's next one, in as few frames as there may be. c.mu is held but for the writing, which nothing
// but window updates (they are never written here) could come between.
func (c *connection) event(s *session) error {
	body := s.text()
	open := fmt.Appendf(nil, "[%d.%02d,\"o\",\"", s.count/100, s.count%100)
	size := int64(len(open) + len(body) + 3)
	if size > c.maxFrame {
		return fmt.Errorf("an event of %d bytes does not fit a frame of %d", size, c.maxFrame)
	}
	s.count++
	s.sent += size
	s.window -= size
	c.window -= size
	s.marks = append(s.marks, mark{s.sent, time.Now()})
	head := []byte{
		byte(size >> 16), byte(size >> 8), byte(size), 0, 0,
		byte(s.stream >> 24), byte(s.stream >> 16), byte(s.stream >> 8), byte(s.stream),
	}
	buffers := net.Buffers{append(head, open...), body, []byte("\"]\n")}
	c.mu.Unlock()
	_, err := buffers.WriteTo(c.net)
	c.mu.Lock()
	return err
}

// end closes the sessions and waits until the recorder has closed them too.
func (c *connection) end() error {
	c.mu.Lock()
	for _, s := range c.live {
		s.ending = true
		if err := c.framer.WriteData(s.stream, true, nil); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	c.mu.Unlock()
	return c.until(func() bool { return c.ended == len(c.sessions) })
}
