"""What both programs stand on: errors, logs, sockets, the tailnet, shared formats, reading a configuration file."""
