"""kubectl over a tailnet: the connection itself is the identity.

The flow, one way:

    bytes -> listener -> Evidence -> authenticators -> Caller                   who is calling
    head -> route, RequestInfo                                                  what is asked, and of which cluster
    Caller, what the route says -> Authority -> decide() -> Decision            what the caller may do
    Decision -> rewrite() -> UpstreamHead -> gates -> upstream -> relay -> bytes

    common/     what both programs stand on             protocol/   what the bytes mean (pure)
    request/    what is asked (pure)                    access/     what the caller may do (pure)
    authenticators/  who is calling                     clusters/   how a cluster is reached
    tls/        certificates and the listener's own CA  dataplane/  moving the bytes
    sessions/   sessions while they run                 recording/  what is kept of a session
    audit/      what is told about requests
    config/     the file; cli, app, assembly, admin, telemetry: the program around them
"""

__version__ = "0.1.0"
