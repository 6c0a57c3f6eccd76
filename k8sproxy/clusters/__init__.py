"""How a cluster is reached: its kubeconfig, the proxy's own account there, and exec plugins."""
