"""Which requests a browser sends for a stranger's page; Go's net/http.CrossOriginProtection is the measure."""

from __future__ import annotations

import pytest

from k8sproxy.protocol.http1 import Fields, parse_fields
from k8sproxy.request.browsers import canonical_origin, is_cross_site, is_led_in, opens_document

HOST = "k8s.tail1.ts.net"


def fields(*lines: str, host: str = HOST) -> Fields:
    return parse_fields("\r\n".join((f"Host: {host}", *lines, "", "")).encode("latin-1"), max_count=50)


# Each was given to Go 1.26's CrossOriginProtection.Check as a POST, and Go said the same.
AS_GO = [
    ("", HOST, True),
    ("https://k8s.tail1.ts.net", HOST, True),
    ("http://k8s.tail1.ts.net", HOST, True),
    ("https://k8s.tail1.ts.net/", HOST, True),
    ("https://k8s.tail1.ts.net/k8s/clusters/prod", HOST, True),  # Headlamp: its kubeconfig's server URL
    ("https://k8s.tail1.ts.net/a?b=c#d", HOST, True),
    ("//k8s.tail1.ts.net", HOST, True),
    ("https://k8s.tail1.ts.net:8443/x", f"{HOST}:8443", True),
    ("https://[fd7a:115c:a1e0::1]:8443", "[fd7a:115c:a1e0::1]:8443", True),
    ("null", HOST, False),
    ("https://evil.example", HOST, False),
    ("https://k8s.tail1.ts.net.evil.example", HOST, False),
    ("https://evil.example/k8s.tail1.ts.net", HOST, False),
    ("https://evil.example/https://k8s.tail1.ts.net", HOST, False),
    ("https://evil.example?k8s.tail1.ts.net", HOST, False),
    ("https://evil.example#@k8s.tail1.ts.net", HOST, False),
    ("https://k8s.tail1.ts.net@evil.example", HOST, False),
    ("https://k8s.tail1.ts.net:8443", HOST, False),
    ("https://k8s.tail1.ts.net", f"{HOST}:8443", False),
    ("k8s.tail1.ts.net", HOST, False),
    ("https:k8s.tail1.ts.net", HOST, False),
    ("https:///k8s.tail1.ts.net", HOST, False),
    ("/k8s.tail1.ts.net", HOST, False),
    ("http://127.0.0.1:8001", HOST, False),
    ("https://k8s.tail1.ts.net https://evil.example", HOST, False),
    ("https://k8s.tail1.ts.net/%zz", HOST, False),
    ("1https://k8s.tail1.ts.net", HOST, False),
    ("file://", HOST, False),
]


@pytest.mark.parametrize(("origin", "host", "own"), AS_GO)
def test_an_origin_is_read_as_go_reads_it(origin: str, host: str, own: bool) -> None:
    assert is_cross_site(fields(f"Origin: {origin}", host=host)) is not own


@pytest.mark.parametrize(("origin", "host", "own"), AS_GO)
def test_what_sec_fetch_site_says_comes_first(origin: str, host: str, own: bool) -> None:
    for site in "same-origin", "none":
        assert not is_cross_site(fields(f"Origin: {origin}", f"Sec-Fetch-Site: {site}", host=host))
    for site in "cross-site", "same-site", "Same-Origin", "else":
        assert is_cross_site(fields(f"Origin: {origin}", f"Sec-Fetch-Site: {site}", host=host))


def test_case_and_the_usual_port_do_not_matter() -> None:
    assert not is_cross_site(fields("Origin: HTTPS://K8S.tail1.ts.net:443"))
    assert not is_cross_site(fields("Origin: https://k8s.tail1.ts.net", host=f"{HOST}:443"))
    assert is_cross_site(fields("Origin: http://k8s.tail1.ts.net:443"))


def test_of_several_values_all_must_be_accepted() -> None:
    own, other = f"Origin: https://{HOST}", "Origin: https://evil.example"
    assert is_cross_site(fields(own, other)) and is_cross_site(fields(other, own))
    assert is_cross_site(fields("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"))
    assert not is_cross_site(fields("Sec-Fetch-Site:", own))


def test_allowed_origins() -> None:
    allowed = {b"http://127.0.0.1:8001", b"https://console.example"}
    for lines in (
        ("Origin: http://127.0.0.1:8001",),
        ("Origin: https://Console.example:443", "Sec-Fetch-Site: cross-site"),
    ):
        assert is_cross_site(fields(*lines))
        assert not is_cross_site(fields(*lines), allowed)
    for line in (
        *("https://127.0.0.1:8001", "http://127.0.0.1", "http://127.0.0.1:8001/", "null", "http://localhost:8001"),
        *("//127.0.0.1:8001", "http://127.0.0.1:8001@evil.example", "https://console.example.evil.example"),
    ):
        assert is_cross_site(fields(f"Origin: {line}"), allowed), line
        assert is_cross_site(fields(f"Origin: {line}", "Origin: http://127.0.0.1:8001"), allowed), line
    # Without an Origin there is nothing to compare.
    assert is_cross_site(fields("Sec-Fetch-Site: cross-site"), allowed)


def test_null_is_not_an_origin() -> None:
    assert canonical_origin(b"null") == canonical_origin(b"") == canonical_origin(b"https://a/") == b""
    assert is_cross_site(fields("Origin: null"), {b"null", b""})


@pytest.mark.parametrize(
    "said",
    [
        ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document"),
        ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: same-site"),
        ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: cross-site", "Sec-Fetch-User: ?1"),
        ("Sec-Fetch-Dest: iframe", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate"),
        *((f"Sec-Fetch-Dest: {dest}",) for dest in ("frame", "fencedframe", "embed", "object", "serviceworker")),
        ("Service-Worker: script", "Sec-Fetch-Site: same-origin"),
    ],
)
def test_who_is_led_in(said: tuple[str, ...]) -> None:
    assert is_led_in(fields(*said)) and is_led_in(fields(*reversed(said)))


@pytest.mark.parametrize(
    "said",
    [
        (),
        ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: none", "Sec-Fetch-Dest: document"),
        ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Dest: document"),
        ("Sec-Fetch-Mode: navigate",),
        # What a page in its sandbox is made of: to the browser each piece is of another site.
        *(
            (f"Sec-Fetch-Dest: {dest}", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Site: cross-site")
            for dest in ("script", "style", "image", "font", "empty")
        ),
    ],
)
def test_who_comes_by_themselves(said: tuple[str, ...]) -> None:
    assert not is_led_in(fields(*said))


def test_what_opens_a_document() -> None:
    html = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    for line in html, "Sec-Fetch-Dest: document", "Sec-Fetch-Mode: cors":
        found = fields(line)
        assert opens_document(found) and opens_document(found)
    for line in "Accept: */*", "Accept: application/json", "User-Agent: text/html":
        assert not opens_document(fields(line))
