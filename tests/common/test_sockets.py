"""Addresses as they are written, and listening sockets."""

from __future__ import annotations

from k8sproxy.common.sockets import join_address


def test_an_address_is_written_with_brackets_where_it_is_ipv6() -> None:
    assert join_address("100.64.0.7", 1) == "100.64.0.7:1"
    assert join_address("fd7a:115c:a1e0::7", 0) == "[fd7a:115c:a1e0::7]:0"
    assert join_address("::", 443) == "[::]:443"
    assert join_address("api.example", 6443) == "api.example:6443"
