package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"sync"
	"time"
)

// Log is what a container has written: a file of lines, each behind the time
// of its first byte, as the kubelet's own log files are. Whoever follows it is
// woken at each write; attached sessions get the bytes as they come.
type Log struct {
	path string

	mu        sync.Mutex
	file      *os.File
	midLine   bool
	grown     chan struct{} // closed and replaced at each write, closed for good at the end
	ended     bool
	listeners map[io.Writer]bool
}

func NewLog(path string) (*Log, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &Log{path: path, file: file, grown: make(chan struct{}), listeners: map[io.Writer]bool{}}, nil
}

// Stream is one of the container's outputs, written to the log and to those
// who listen to it.
func (l *Log) Stream(stdout bool) io.Writer { return logStream{l, stdout} }

type logStream struct {
	log    *Log
	stdout bool
}

func (s logStream) Write(p []byte) (int, error) {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	s.log.append(p)
	for w, stdout := range s.log.listeners {
		if stdout == s.stdout {
			if _, err := w.Write(p); err != nil {
				delete(s.log.listeners, w)
			}
		}
	}
	return len(p), nil
}

func (l *Log) append(p []byte) {
	stamp := time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z07:00") + " "
	var out bytes.Buffer
	for line := range bytes.Lines(p) {
		if !l.midLine {
			out.WriteString(stamp)
		}
		out.Write(line)
		l.midLine = !bytes.HasSuffix(line, []byte("\n"))
	}
	l.file.Write(out.Bytes())
	close(l.grown)
	l.grown = make(chan struct{})
}

// Listen sends what the container writes from now on; a writer may be nil.
func (l *Log) Listen(stdout, stderr io.Writer) (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stdout != nil {
		l.listeners[stdout] = true
	}
	if stderr != nil {
		l.listeners[stderr] = false
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.listeners, stdout)
		delete(l.listeners, stderr)
	}
}

// End says that no more will come.
func (l *Log) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.ended = true
		close(l.grown)
		l.file.Close()
	}
}

// LogOptions are those of the containerLogs path.
type LogOptions struct {
	Follow     bool
	Timestamps bool
	TailLines  int64     // -1: all
	LimitBytes int64     // -1: no limit
	Since      time.Time // zero: from the start
}

// Copy writes the log to w until its end, or until done where it follows.
func (l *Log) Copy(w io.Writer, flush func(), done <-chan struct{}, o LogOptions) error {
	file, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer file.Close()
	skip := int64(0)
	if o.TailLines >= 0 {
		all, err := io.ReadAll(file)
		if err != nil {
			return err
		}
		lines := int64(bytes.Count(all, []byte("\n")))
		if len(all) > 0 && all[len(all)-1] != '\n' {
			lines++
		}
		skip = max(0, lines-o.TailLines)
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	reader := bufio.NewReader(file)
	left := o.LimitBytes
	var partial []byte
	for {
		l.mu.Lock()
		grown, ended := l.grown, l.ended
		l.mu.Unlock()
		for {
			line, err := reader.ReadBytes('\n')
			line = append(partial, line...)
			partial = nil
			if err != nil && !ended {
				partial = line // the rest of the line is yet to be written
				break
			}
			if len(line) > 0 {
				if skip > 0 {
					skip--
				} else if n, writeErr := writeLine(w, line, o, left); writeErr != nil {
					return writeErr
				} else if left >= 0 {
					if left -= n; left <= 0 {
						return nil
					}
				}
			}
			if err != nil {
				break
			}
		}
		flush()
		if !o.Follow || ended {
			if len(partial) > 0 && skip == 0 {
				_, err := writeLine(w, partial, o, left)
				return err
			}
			return nil
		}
		select {
		case <-grown:
		case <-done:
			return nil
		}
	}
}

func writeLine(w io.Writer, line []byte, o LogOptions, left int64) (int64, error) {
	stamp, text, _ := bytes.Cut(line, []byte(" "))
	if !o.Since.IsZero() {
		if at, err := time.Parse(time.RFC3339Nano, string(stamp)); err == nil && at.Before(o.Since) {
			return 0, nil
		}
	}
	if o.Timestamps {
		text = line
	}
	if left >= 0 && int64(len(text)) > left {
		text = text[:left]
	}
	n, err := w.Write(text)
	return int64(n), err
}
