package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	v1 "k8s.io/api/core/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	utilexec "k8s.io/utils/exec"
)

// Runtime runs containers as process groups and commands beside them.
type Runtime struct {
	root    string
	address string // where pods listen, for port-forward

	mu         sync.Mutex
	containers map[string]*Container       // by containerKey
	commands   map[string]map[int]struct{} // process groups of exec'ed commands, by pod key
}

// Container is one run of a container.
type Container struct {
	Name    string
	Started time.Time
	Log     *Log

	spec  v1.Container
	pid   int
	stdin io.WriteCloser // nil where the container asks for none
	tty   *os.File       // nil where it asks for none

	done     chan struct{} // closed at the end; then:
	exitCode int
	finished time.Time
}

func NewRuntime(root, address string) *Runtime {
	return &Runtime{root: root, address: address, containers: map[string]*Container{}, commands: map[string]map[int]struct{}{}}
}

func podKey(namespace, pod string) string { return namespace + "_" + pod }

func containerKey(namespace, pod, name string) string { return podKey(namespace, pod) + "/" + name }

// Get is the container that ran last under this name.
func (r *Runtime) Get(namespace, pod, name string) *Container {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.containers[containerKey(namespace, pod, name)]
}

// Start starts a container of a pod. It is an error of the container, with a
// log that says why, if its command cannot be started.
func (r *Runtime) Start(pod *v1.Pod, spec v1.Container) (*Container, error) {
	dir := filepath.Join(r.root, podKey(pod.Namespace, pod.Name), spec.Name)
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o700); err != nil {
		return nil, err
	}
	log, err := NewLog(dir + ".log")
	if err != nil {
		return nil, err
	}
	c := &Container{Name: spec.Name, Started: time.Now(), Log: log, spec: spec, done: make(chan struct{})}
	cmd := r.command(pod, spec, commandOf(spec))
	var drain func()
	switch {
	case spec.TTY:
		cmd.SysProcAttr.Setpgid = false // pty sets a session, which is a group
		var tty *os.File
		if tty, err = pty.Start(cmd); err == nil {
			c.tty, c.stdin = tty, tty
			drain = func() { io.Copy(log.Stream(true), tty); tty.Close() }
		}
	default:
		if spec.Stdin {
			c.stdin, err = cmd.StdinPipe()
		}
		cmd.Stdout, cmd.Stderr = log.Stream(true), log.Stream(false)
		cmd.WaitDelay = time.Second // a grandchild may keep the pipe
		if err == nil {
			err = cmd.Start()
		}
	}
	if err != nil {
		fmt.Fprintf(log.Stream(false), "cannot start: %v\n", err)
		c.exitCode = 128
		c.end()
	} else {
		c.pid = cmd.Process.Pid
		go func() {
			if drain != nil {
				drain()
			}
			cmd.Wait()
			c.exitCode = exitCode(cmd.ProcessState)
			c.end()
		}()
	}
	r.mu.Lock()
	r.containers[containerKey(pod.Namespace, pod.Name, spec.Name)] = c
	r.mu.Unlock()
	return c, nil
}

func (c *Container) end() {
	c.finished = time.Now()
	c.Log.End()
	close(c.done)
}

func (c *Container) Running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// Stop ends the container: SIGTERM, then SIGKILL after the grace period.
func (c *Container) Stop(grace time.Duration) {
	if !c.Running() {
		return
	}
	syscall.Kill(-c.pid, syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(grace):
	}
	syscall.Kill(-c.pid, syscall.SIGKILL) // the rest of the group as well
	<-c.done
}

// Forget ends a pod's containers and the commands beside them.
func (r *Runtime) Forget(pod *v1.Pod, grace time.Duration) {
	prefix := podKey(pod.Namespace, pod.Name)
	var stopping sync.WaitGroup
	r.mu.Lock()
	for key, c := range r.containers {
		if filepath.Dir(key) == prefix {
			stopping.Go(func() { c.Stop(grace) })
			delete(r.containers, key)
		}
	}
	for pgid := range r.commands[prefix] {
		syscall.Kill(-pgid, syscall.SIGKILL)
	}
	delete(r.commands, prefix)
	r.mu.Unlock()
	stopping.Wait()
	os.RemoveAll(filepath.Join(r.root, prefix))
}

// StopAll ends everything at once: the bed is going down.
func (r *Runtime) StopAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.Running() {
			syscall.Kill(-c.pid, syscall.SIGKILL)
		}
	}
	for _, groups := range r.commands {
		for pgid := range groups {
			syscall.Kill(-pgid, syscall.SIGKILL)
		}
	}
}

// commandOf is the container's command. Without one an image's would run: a
// shell where somebody is to talk to it (kubectl debug -it), else something
// that stays.
func commandOf(spec v1.Container) []string {
	command := append(append([]string{}, spec.Command...), spec.Args...)
	switch {
	case len(command) > 0:
		return command
	case spec.Stdin:
		return []string{"sh"}
	}
	return []string{"sh", "-c", "echo started; exec sleep infinity"}
}

func (r *Runtime) command(pod *v1.Pod, spec v1.Container, argv []string) *exec.Cmd {
	dir := filepath.Join(r.root, podKey(pod.Namespace, pod.Name), spec.Name)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + filepath.Join(dir, "tmp"), "LANG=C.UTF-8",
		"HOSTNAME=" + pod.Name, "POD_NAMESPACE=" + pod.Namespace, "POD_IP=" + r.address,
	}
	if spec.TTY {
		cmd.Env = append(cmd.Env, "TERM=xterm")
	}
	for _, e := range spec.Env {
		if e.ValueFrom == nil {
			cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
		}
	}
	// A killed kubelet-lite takes its containers along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// Session is a container with the pod around it: what the streaming package
// runs commands in. One is made for each request.
type Session struct {
	runtime   *Runtime
	container *Container
	pod       *v1.Pod
}

var (
	_ remotecommand.Executor    = Session{}
	_ remotecommand.Attacher    = Session{}
	_ portforward.PortForwarder = Session{}
)

// ExecInContainer runs argv beside the container's process.
func (s Session) ExecInContainer(ctx context.Context, _, _, _ string, argv []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if len(argv) == 0 {
		return errors.New("no command")
	}
	spec := s.container.spec
	spec.TTY = tty
	cmd := s.runtime.command(s.pod, spec, argv)
	var err error
	if tty {
		cmd.SysProcAttr.Setpgid = false
		err = s.runTTY(cmd, in, out, resize)
	} else {
		err = s.runPipes(cmd, in, out, errs)
	}
	if cmd.ProcessState == nil {
		return err // it never ran
	}
	if code := exitCode(cmd.ProcessState); code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: code}
	}
	return nil
}

func (s Session) runPipes(cmd *exec.Cmd, in io.Reader, out, errs io.WriteCloser) error {
	if out != nil {
		cmd.Stdout = out
	}
	if errs != nil {
		cmd.Stderr = errs
	}
	cmd.WaitDelay = 2 * time.Second // a grandchild may keep the pipes
	if in != nil {
		// Not cmd.Stdin: Wait would then wait for the client to close it.
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		go func() { io.Copy(stdin, in); stdin.Close() }()
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer s.track(cmd.Process.Pid)()
	return cmd.Wait()
}

func (s Session) runTTY(cmd *exec.Cmd, in io.Reader, out io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
	tty, err := pty.Start(cmd)
	if err != nil {
		return err
	}
	defer tty.Close()
	defer s.track(cmd.Process.Pid)()
	go setSizes(tty, resize)
	if in != nil {
		go io.Copy(tty, in)
	}
	if out != nil {
		if _, err := io.Copy(out, tty); err != nil && !errors.Is(err, syscall.EIO) {
			tty.Close() // the client is gone: hang up, as a terminal does
		}
	}
	return cmd.Wait()
}

func setSizes(tty *os.File, resize <-chan remotecommand.TerminalSize) {
	for size := range resize {
		if size.Width > 0 && size.Height > 0 {
			pty.Setsize(tty, &pty.Winsize{Rows: size.Height, Cols: size.Width})
		}
	}
}

// track notes a command's process group until it ends, so that it goes when
// its pod does: a command outlives a client that just disappears.
func (s Session) track(pgid int) (untrack func()) {
	key := podKey(s.pod.Namespace, s.pod.Name)
	r := s.runtime
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.commands[key] == nil {
		r.commands[key] = map[int]struct{}{}
	}
	r.commands[key][pgid] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.commands[key], pgid)
	}
}

// AttachContainer joins the container's own process until it or the client ends.
func (s Session) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c := s.container
	if !c.Running() {
		return fmt.Errorf("container %s is not running", c.Name)
	}
	if c.tty != nil && resize != nil {
		go setSizes(c.tty, resize)
	}
	gone := make(chan struct{})
	var outWriter, errWriter io.Writer
	if out != nil {
		outWriter = out
	}
	if errs != nil {
		errWriter = errs
	}
	defer c.Log.Listen(outWriter, errWriter)()
	if in != nil && c.stdin != nil {
		go func() {
			_, err := io.Copy(c.stdin, in)
			if c.spec.StdinOnce && c.tty == nil {
				c.stdin.Close()
			}
			if err != nil {
				close(gone)
			}
		}()
	}
	select {
	case <-c.done:
	case <-gone:
	case <-ctx.Done():
	}
	return nil
}

// PortForward joins stream to a port that a process of the pod, or of
// anything else at this address, listens on.
func (s Session) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := dial(ctx, port, s.runtime.address)
	if err != nil {
		return fmt.Errorf("failed to connect to port %d of the pod: %w", port, err)
	}
	defer conn.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.Copy(conn, stream)
		conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	klog.V(4).InfoS("Port forward ended", "port", port, "err", err)
	return nil
}

// dial tries loopback first: that is "localhost" inside a real pod.
func dial(ctx context.Context, port int32, address string) (net.Conn, error) {
	var d net.Dialer
	text := strconv.Itoa(int(port))
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", text))
	if err != nil && address != "127.0.0.1" {
		return d.DialContext(ctx, "tcp", net.JoinHostPort(address, text))
	}
	return conn, err
}
