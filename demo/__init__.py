"""`make demo`: the whole of k8sproxy on one machine, with stand-ins for what it usually stands between.

    kubectl --proxy-url--> tailnet (SOCKS5 a person) --> k8sproxy serve --> apiserver (or the cluster of --kubeconfig)
                              ^------- LocalAPI: who is it? -------'

The proxy and kubectl are the real ones. `tailnet` stands in for tailscaled and the network behind it, `apiserver` (with
`objects` and `remotecommand`) for a cluster: enough to see the proxy at work, and no proof of anything about the real
ones; tests/bed has those. Nothing in k8sproxy imports this package, and it isn't installed.
"""
