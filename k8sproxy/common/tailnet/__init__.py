"""Who is calling: the local tailscaled, asked over its LocalAPI."""
