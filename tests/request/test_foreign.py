"""Which answers are not the API server's own, and what is left of their fields for a browser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.request.foreign import DOCUMENT, GUARD_FIELDS, Guard, guard_of
from k8sproxy.request.requestinfo import request_info

PROXY = "/api/v1/namespaces/a/services/https:web:443/proxy"


@pytest.mark.parametrize(
    ("target", "root"),
    [
        (PROXY, PROXY),
        (f"{PROXY}/", PROXY),
        (f"{PROXY}/a/b?c=d", PROXY),
        (f"{PROXY}?path=/x", PROXY),
        (f"{PROXY}//x/../y%2Fz/proxy/", PROXY),
        ("/api/v1/namespaces/a/pods/web:80/proxy/x", "/api/v1/namespaces/a/pods/web:80/proxy"),
        ("/api/v1/namespaces/proxy/pods/proxy/proxy/x", "/api/v1/namespaces/proxy/pods/proxy/proxy"),
        ("/api/v1/nodes/n/proxy/logs/", "/api/v1/nodes/n/proxy"),
        ("/api/v1/nodes/n/proxy/logs/index.html", "/api/v1/nodes/n/proxy"),
        ("/api/v1/nodes/system%3An/proxy/pods", "/api/v1/nodes/system%3An/proxy"),
        ("/api/v1/watch/namespaces/a/pods/web/proxy", "/api/v1/watch/namespaces/a/pods/web/proxy"),
        ("/apis/cluster.karmada.io/v1alpha1/clusters/c/proxy/api/v1/nodes/n/proxy/logs",
         "/apis/cluster.karmada.io/v1alpha1/clusters/c/proxy"),
        ("/apis/x.io/v1/namespaces/a/widgets/w/proxy/x", "/apis/x.io/v1/namespaces/a/widgets/w/proxy"),
        # No cookie has a path of its own here.
        ("/apis/x.io/v1/widgets/w/deep/proxy/x", ""),
        ("/api/v1/proxy/namespaces/a/services/web/x", ""),
        ("/api/v1/proxy/nodes/n", ""),
        ("/logs", ""),
        ("/logs/", ""),
        ("/logs/x.html", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
def test_what_is_foreign(target: str, root: str, method: str) -> None:
    for upgrade in "", "websocket":
        info = request_info(method, target, upgrade)
        assert info.foreign and info.root == root


@pytest.mark.parametrize(
    "target",
    [
        *("/", "/api", "/apis/x.io/v1", "/version", "/openapi/v2", "/healthz", "/logsx", "/metrics", "/debug/pprof/"),
        *("/api/v1/pods", "/api/v1/namespaces/proxy/pods", "/api/v1/namespaces/a/pods/proxy", "/api/v1/nodes/proxy"),
        "/api/v1/namespaces/a/pods/web/log",
        "/api/v1/namespaces/proxy",
        "/api/v1/namespaces/a/pods/web/exec?command=proxy",
        "/api/v1/namespaces/a/configmaps/proxy?x=/proxy/",
        "/apis/x.io/v1/namespaces/proxy/widgets/proxy/status",
        "/apis/proxy/v1/proxies/x/status",
    ],
)
def test_what_is_the_api_servers_own(target: str) -> None:
    info = request_info("GET", target)
    assert not info.foreign and info.root == ""


def test_the_policy_is_added_to_that_of_the_application() -> None:
    own = b"Content-Security-Policy: default-src 'self'; sandbox allow-same-origin\r\nX-Content-Type-Options: x\r\n"
    out = guard_of(PROXY).fields(own + b"Content-Type: text/html\r\n")
    assert out.lower().count(b"content-security-policy:") == 2 and out.lower().count(b"x-content-type-options:") == 1
    assert own.split(b"\r\n")[0] in out and b"Content-Type: text/html\r\n" in out
    policy = out.split(b"Content-Security-Policy: ")[-1].split(b"\r\n")[0]
    assert policy.startswith(b"sandbox ") and policy.endswith(b"; frame-ancestors 'none'")
    for lost in b"allow-same-origin", b"allow-popups-to-escape-sandbox", b"allow-top-navigation", b"allow-storage":
        assert lost not in policy


def test_what_a_browser_keeps_for_the_origin_goes_no_further() -> None:
    lines = [
        *("Clear-Site-Data: *", "Strict-Transport-Security: max-age=1; includeSubDomains", "Service-Worker-Allowed: /"),
        *("NEL: {}", "Report-To: {}", "Reporting-Endpoints: a=b", "Accept-CH: DPR", "Critical-CH: DPR", "Expect-CT: x"),
        *("Refresh: 0; url=/", "Public-Key-Pins: x", "Set-Login: logged-out", 'Use-As-Dictionary: match="/*"'),
        *("Access-Control-Allow-Origin: *", "access-control-allow-credentials: true", "Origin-Agent-Cluster: ?1"),
        *(
            "WWW-Authenticate: Basic",
            "Set-Cookie2: a=b",
            "Sec-Session-Registration: x",
            "Activate-Storage-Access: load",
        ),
        *("Attribution-Reporting-Register-Source: {}", "Observe-Browsing-Topics: ?1", "Shared-Storage-Write: clear"),
        *("Attribution-Reporting-Register-OS-Source: x", "Attribution-Reporting-Register-OS-Trigger: x"),
        *("Ad-Auction-Signals: []", "Ad-Auction-Additional-Bid: x", "Accept-CH-Lifetime: 9", "Origin-Isolation: ?1"),
        *("Public-Key-Pins-Report-Only: x", "Secure-Session-Challenge: x", "Sec-Session-Challenge: x"),
        *("Origin-Trial: x", "Timing: kept", "Location: /kept", "Link: <kept>", "Content-Disposition: attachment"),
    ]
    block = "".join(f"{line}\r\n" for line in lines).encode()
    for case in block, block.upper(), block.lower():
        kept = Guard(True, b"/x/proxy").interim(case)
        assert len(kept.split(b"\r\n")) == 5 and kept.lower().count(b"kept") == 3
        assert guard_of("").fields(case) == kept + GUARD_FIELDS
        # The API server speaks for its own origin.
        assert DOCUMENT.fields(case) == case + GUARD_FIELDS and DOCUMENT.interim(case) == case


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a=b", "a=b; Path=/x/proxy"),
        ("a=b; Path=/", "a=b; Path=/x/proxy"),
        ("a=b; path=/; PATH=/api; Domain=ts.net; domain=.ts.net", "a=b; Path=/x/proxy"),
        ("a=b; Secure; HttpOnly; SameSite=None; Max-Age=1; Expires=Thu, 01 Jan 2037 00:00:00 GMT; Priority=High",
         "a=b; Secure; HttpOnly; SameSite=None; Max-Age=1; Expires=Thu, 01 Jan 2037 00:00:00 GMT; Priority=High; "
         "Path=/x/proxy"),
        ("a=b;Path\t=/;\tDomain =x", "a=b; Path=/x/proxy"),
        ("a=b; Whatever=1;;", "a=b; Path=/x/proxy"),
        ("__Host-a=b; Secure; Path=/", "__Host-a=b; Secure; Path=/x/proxy"),
        ("", "; Path=/x/proxy"),
    ],
)  # fmt: skip
def test_a_cookie_is_of_its_own_proxy_alone(sent: str, kept: str) -> None:
    block = f"Set-Cookie: {sent}\r\nset-cookie:{sent}\r\n".encode()
    assert Guard(True, b"/x/proxy").interim(block) == f"Set-Cookie: {kept}\r\n".encode() * 2
    assert Guard(True).interim(block) == b""


def test_a_path_that_no_cookie_can_name_has_none() -> None:
    assert guard_of(PROXY).cookie_path == PROXY.encode()
    for root in "", "/api/v1/nodes/system%3An/proxy", "/api/v1/nodes/a;b/proxy", "/api/v1/nodes/a,b/proxy":
        assert guard_of(root) == Guard(True, b"")


@given(st.lists(st.tuples(st.from_regex(rb"[!#-'*+\-.^-z|~]{1,12}", fullmatch=True), st.binary(max_size=20))))
def test_what_is_kept_is_kept_as_it_came(items: list[tuple[bytes, bytes]]) -> None:
    values = [(name, value.translate(None, b"\r\n\x00")) for name, value in items]
    block = b"".join(name + b":" + value + b"\r\n" for name, value in values)
    assert Guard(True, b"/x").fields(block).startswith(block)
