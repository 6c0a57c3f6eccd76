"""Taking in what senders send: one port, HTTP/1.1 and h2c, for whom the tailnet vouches."""
