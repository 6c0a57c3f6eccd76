"""Moving the bytes: the listener takes connections, the handler is the spine, upstream and relay do the rest.

Beside them, what connections need before they carry anything: the certificates shown to clients (certificates, localca)
and the proxy's own account at a cluster (credentials, kubeconfig, execplugin)."""
