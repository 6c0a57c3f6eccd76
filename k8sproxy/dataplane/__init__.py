"""Moving the bytes: the listener takes connections, connection is the spine, upstream and relay do the rest."""
