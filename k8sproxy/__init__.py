"""kubectl over a tailnet: the connection itself is the identity.

The flow, one way:

    bytes -> listener -> Connection -> whois -> Peer -> decide() -> Decision -> rewrite() -> UpstreamHead
                                                                              -> upstream -> relay -> bytes

    protocol/   what the bytes mean (pure)              tailnet/    who is calling (LocalAPI, WhoIs, certificates)
    policy/     what the caller may do (pure)           dataplane/  moving the bytes (listener, handler, relay)
    recording/  what is kept of a session               config/     the file; cli, app, assembly, admin, telemetry
"""

__version__ = "0.1.0"
