package main

import (
	_ "github.com/creack/pty"
	_ "k8s.io/cri-streaming/pkg/streaming/portforward"
	_ "k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

func main() {}
