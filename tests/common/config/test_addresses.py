from __future__ import annotations

from pathlib import Path

import pytest

from k8sproxy.common.config.addresses import AdminAddress, ListenAddress, parse_admin_address, parse_listen_address


@pytest.mark.parametrize("text", ["tailnet:443", "127.0.0.1:8443", "[::1]:8443", "[fd7a:115c:a1e0::1]:0"])
def test_addresses_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_listen_address(text)) == text


@pytest.mark.parametrize(
    "value",
    [
        "", "443", ":443", "localhost:443", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:٤٤٣", "::1:443", "[127.0.0.1]:443", "[::1:443", "[fe80::1%eth0]:443", "tailnet:x", 443, None,
        "127.0.0.1:443 ", "127.1:443",
    ],
)  # fmt: skip
def test_what_is_no_address(value: object) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_listen_address(value)


@pytest.mark.parametrize(
    ("text", "tailnet", "loopback"),
    [
        ("tailnet:1", True, False),
        ("100.64.0.1:1", True, False),
        ("100.128.0.1:1", False, False),
        ("[fd7a:115c:a1e0::1]:1", True, False),
        ("127.8.8.8:1", False, True),
        ("[::1]:1", False, True),
        ("0.0.0.0:1", False, False),
    ],
)
def test_what_reaches_an_address(text: str, tailnet: bool, loopback: bool) -> None:
    address = parse_listen_address(text)
    assert (address.is_tailnet, address.is_loopback) == (tailnet, loopback)


@pytest.mark.parametrize(
    ("one", "two", "overlap"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("127.0.0.1:1", "0.0.0.0:1", True),
        ("[::1]:1", "[::]:1", True),
        ("[::]:1", "0.0.0.0:1", False),
        ("tailnet:1", "tailnet:1", True),
        ("tailnet:1", "0.0.0.0:1", True),
        ("tailnet:1", "100.64.0.9:1", True),
        ("tailnet:1", "127.0.0.1:1", False),
    ],
)
def test_which_addresses_exclude_each_other(one: str, two: str, overlap: bool) -> None:
    a, b = parse_listen_address(one), parse_listen_address(two)
    assert a.overlaps(b) is overlap
    assert b.overlaps(a) is overlap


def test_admin_addresses() -> None:
    assert parse_admin_address("127.0.0.1:9002") == AdminAddress(tcp=ListenAddress("127.0.0.1", 9002))
    assert parse_admin_address("unix:/run/a.sock") == AdminAddress(unix=Path("/run/a.sock"))
    assert str(parse_admin_address("unix:/run/a.sock")) == "unix:/run/a.sock"
    assert str(parse_admin_address("[::1]:1")) == "[::1]:1"
    for value in ("unix:", "unix:" + "x" * 108, "unix:a\0b", "tailnet:1", "100.64.0.1:1", "localhost:1", 5):
        with pytest.raises(ValueError, match="must"):
            parse_admin_address(value)


@pytest.mark.parametrize(
    ("text", "dialled"),
    [("127.0.0.1:1", True), ("[::1]:1", True), ("127.0.0.2:1", False), ("tailnet:1", False), ("100.64.0.1:1", False)],
)
def test_what_a_userspace_daemon_dials(text: str, dialled: bool) -> None:
    assert parse_listen_address(text).is_dialled_from_tailnet is dialled
