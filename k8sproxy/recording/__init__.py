"""What is kept of a session: the cast, and its way to a recorder."""
