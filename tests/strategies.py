"""Hypothesis strategies that several rooms' tests share: splits and mutations of bytes, targets, peers and rules."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from k8sproxy.common.tailnet.peer import Peer

METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "TRACE"])
UPGRADES = st.sampled_from(["", "", "websocket", "SPDY/3.1", "WebSocket", "h2c"])


@st.composite
def splits(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data in pieces, as a network may hand it over; no piece is empty, and together they are the data."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    edges = [0, *[cut for cut in cuts if cut < len(data)], len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """The data with up to four bytes changed, put in, taken out or doubled."""
    mutated = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(mutated)))
        kind = draw(st.sampled_from("cidp"))
        if kind == "i" or place == len(mutated):
            mutated.insert(place, draw(st.integers(0, 255)))
        elif kind == "c":
            mutated[place] = draw(st.integers(0, 255))
        elif kind == "d":
            del mutated[place]
        else:
            end = min(len(mutated), place + draw(st.integers(1, 16)))
            mutated[end:end] = mutated[place:end]
    return bytes(mutated)


# Segments that RequestInfo's rules know, names as users give them, and what an attacker would put between.
_WORDS = [
    *("api", "apis", "v1", "apps", "namespaces", "default", "pods", "services", "nodes", "web-0", "exec", "attach"),
    *(
        "proxy",
        "watch",
        "log",
        "status",
        "finalize",
        "ephemeralcontainers",
        "portforward",
        "metrics",
        "run",
        "n1:10250",
    ),
    *(
        "system%3Aadmin",
        "a b",
        "%2e%2e",
        "..",
        ".",
        "",
        "%65xec",
        "a%2Fb",
        "%5C",
        "\\",
        "%00",
        "%",
        "%zz",
        "é",
        "\x00",
        "#",
    ),
]
_QUERIES = [
    *("watch=true", "watch=0", "watch=False", "watch", "%77atch=1", "limit=5", "fieldSelector=metadata.name%3Dx"),
    *("fieldSelector=metadata.name=a,metadata.name!=b", "fieldSelector=metadata.name%3D..", "labelSelector=a%3Db"),
    *("a;b=c", "watch=%zz", "", "+watch=1", "command=sh&command=-c"),
]


def targets() -> st.SearchStrategy[str]:
    """Request targets: real ones, nearly real ones and anything else, as one character a byte (and beyond)."""
    path = st.lists(st.sampled_from(_WORDS), max_size=10).map(lambda words: "/" + "/".join(words))
    resource = st.lists(st.sampled_from(_WORDS[:24]), max_size=7).flatmap(
        lambda words: st.sampled_from(["/api/v1/", "/apis/apps/v1/"]).map(lambda prefix: prefix + "/".join(words))
    )
    query = st.lists(st.sampled_from(_QUERIES), max_size=3).map(lambda pairs: "?" + "&".join(pairs) if pairs else "")
    likely = st.tuples(st.one_of(path, resource), query).map("".join)
    return st.one_of(likely, likely, st.text(max_size=60), st.text(max_size=60).map("/api/v1/namespaces/".__add__))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)

_GROUPS = st.one_of(st.sampled_from(["system:masters", "dev", "ops team"]), st.text(max_size=6))
rules = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {},
        optional={
            "impersonate": st.fixed_dictionaries({}, optional={"groups": st.lists(_GROUPS, max_size=3)}) | json_values,
            "recorder": st.just(["tag:rec"]) | json_values,
            "recorderAddrs": st.lists(st.sampled_from(["100.64.0.9:80", "[fd7a::9]:80"]), max_size=2) | json_values,
            "enforceRecorder": st.booleans() | json_values,
            "EnforceRecorder": st.booleans(),
            "enableEvents": st.booleans() | json_values,
        },
    ),
)


@st.composite
def peers(draw: st.DrawFn) -> Peer:
    """Any peer that WhoIs could tell of, with rules under either name, both or none."""
    names = st.sampled_from(
        ["tailscale.com/cap/kubernetes", "https://tailscale.com/cap/kubernetes", "example.com/cap/x"]
    )
    return Peer(
        address="100.64.0.7",
        stable_id="n7",
        node_name=draw(st.sampled_from(["laptop.tail1.ts.net.", "laptop", ".", ""]) | st.text(max_size=12)),
        tags=tuple(draw(st.lists(st.sampled_from(["tag:ci", "tag:k8s"]) | st.text(max_size=4), max_size=2))),
        login_name=draw(
            st.sampled_from(["ann@example.com", "", "system:admin", "tagged-devices"]) | st.text(max_size=9)
        ),
        capabilities=draw(st.dictionaries(names, st.lists(rules, max_size=3).map(tuple), max_size=2)),
    )
