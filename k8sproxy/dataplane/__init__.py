"""Moving the bytes: the listener takes connections, the handler is the spine, upstream and relay do the rest."""
