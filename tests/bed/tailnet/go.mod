module k8sproxy/tests/bed/tailnet

go 1.26

require tailscale.com v1.102.5
