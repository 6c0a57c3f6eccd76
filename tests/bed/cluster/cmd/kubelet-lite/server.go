package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Timeouts of the real kubelet (pkg/kubelet/server).
const (
	streamIdleTimeout     = 4 * time.Hour
	streamCreationTimeout = 30 * time.Second
)

// NewServer is the kubelet's API, on the kubelet's paths.
func NewServer(runtime *Runtime) http.Handler {
	s := &server{runtime}
	mux := http.NewServeMux()
	for _, method := range []string{"GET", "POST"} {
		for _, path := range []string{"/{namespace}/{pod}/{container}", "/{namespace}/{pod}/{uid}/{container}"} {
			mux.HandleFunc(method+" /exec"+path, s.exec)
			mux.HandleFunc(method+" /attach"+path, s.attach)
		}
		for _, path := range []string{"/{namespace}/{pod}", "/{namespace}/{pod}/{uid}"} {
			mux.HandleFunc(method+" /portForward"+path, s.portForward)
		}
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	return mux
}

type server struct{ runtime *Runtime }

// session finds the container that the path names, or answers 404.
func (s *server) session(w http.ResponseWriter, r *http.Request) (Session, bool) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	container := s.runtime.Get(namespace, name, r.PathValue("container"))
	if container == nil {
		http.Error(w, fmt.Sprintf("container not found (%q)", r.PathValue("container")), http.StatusNotFound)
		return Session{}, false
	}
	return Session{runtime: s.runtime, container: container, pod: pod}, true
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	session, ok := s.session(w, r)
	if !ok {
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, session, r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"),
		r.URL.Query()["command"], options, streamIdleTimeout, streamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	session, ok := s.session(w, r)
	if !ok {
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeAttach(w, r, session, r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"),
		options, streamIdleTimeout, streamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, Session{runtime: s.runtime}, r.PathValue("pod"), r.PathValue("uid"),
		options, streamIdleTimeout, streamCreationTimeout, portforward.SupportedProtocols)
}

// run is the kubelet's oldest way to a command: no streams, the output is the
// body. It is reached through nodes/{node}/proxy only.
func (s *server) run(w http.ResponseWriter, r *http.Request) {
	session, ok := s.session(w, r)
	if !ok {
		return
	}
	argv := strings.Split(r.FormValue("cmd"), " ")
	cmd := s.runtime.command(session.pod, session.container.spec, argv)
	output, err := cmd.CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(output)
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	session, ok := s.session(w, r)
	if !ok {
		return
	}
	options, err := logOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	flush := func() { http.NewResponseController(w).Flush() }
	w.Header().Set("Content-Type", "text/plain")
	session.container.Log.Copy(w, flush, r.Context().Done(), options)
}

func logOptions(r *http.Request) (o LogOptions, err error) {
	number := func(name string) int64 {
		text := r.FormValue(name)
		if text == "" {
			return -1
		}
		n, parseErr := strconv.ParseInt(text, 10, 64)
		if parseErr != nil {
			err = fmt.Errorf("invalid %s: %w", name, parseErr)
		}
		return n
	}
	o = LogOptions{
		Follow:     r.FormValue("follow") == "true",
		Timestamps: r.FormValue("timestamps") == "true",
		TailLines:  number("tailLines"),
		LimitBytes: number("limitBytes"),
	}
	if seconds := number("sinceSeconds"); seconds >= 0 {
		o.Since = time.Now().Add(-time.Duration(seconds) * time.Second)
	}
	if text := r.FormValue("sinceTime"); text != "" {
		o.Since, err = time.Parse(time.RFC3339, text)
	}
	if r.FormValue("previous") == "true" {
		err = fmt.Errorf("previous terminated container %q not found", r.PathValue("container"))
	}
	return o, err
}

func (s *server) pods(w http.ResponseWriter, r *http.Request) {
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []v1.Pod{}}
	s.runtime.mu.Lock()
	defer s.runtime.mu.Unlock()
	for key := range s.runtime.containers {
		pod, container, _ := strings.Cut(key, "/")
		namespace, name, _ := strings.Cut(pod, "_")
		list.Items = append(list.Items, v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec:       v1.PodSpec{Containers: []v1.Container{{Name: container}}},
		})
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(list)
}
