"""Sessions while they run: the tap beside the bytes, what is read of a session's streams, and their registry."""
