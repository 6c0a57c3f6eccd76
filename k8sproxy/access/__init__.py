"""What the caller may do: a Peer and a request's head in, a Decision and the head for upstream out. Pure."""
