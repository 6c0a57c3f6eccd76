"""The certificates that clients are shown: from files, from the tailnet, or of the listener's own CA."""
