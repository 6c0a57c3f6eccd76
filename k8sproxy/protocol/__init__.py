"""What the bytes mean. Pure: bytes and numbers in, events or ProtocolError out; no I/O, no clock, no log."""
