"""Who is calling: what a connection shows of its client, and who knows the caller by it.

Evidence         what one connection shows; the listener gathers it
Authenticator    knows the Caller by the evidence, or refuses
tailnet          the first one, and the only one yet: the local tailscaled knows the peer (WhoIs)
"""
