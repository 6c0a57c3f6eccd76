"""A Refusal as its client reads it."""

import json

import pytest

from k8sproxy.common.errors import Refusal


def test_status_object() -> None:
    refusal = Refusal(429, "too_many", "wait a little", retry_after=7)
    assert json.loads(refusal.body()) == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "k8sproxy: wait a little",
        "reason": "TooManyRequests",
        "code": 429,
        "details": {"retryAfterSeconds": 7},
    }


def test_status_without_a_reason_of_its_own() -> None:
    assert Refusal(431, "too_large", "too large").reason == ""


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("tailscaled knows no peer", b'299 - "k8sproxy: tailscaled knows no peer"'),
        ('the key "a\\b"', b'299 - "k8sproxy: the key \\"a\\\\b\\""'),
        ("one\r\nX-Other: two", b'299 - "k8sproxy: one??X-Other: two"'),
        ("für\x00\x7f", b'299 - "k8sproxy: f?r??"'),
    ],
)
def test_warning_is_one_line_of_ascii(message: str, value: bytes) -> None:
    assert Refusal(403, "cause", message).warning() == value
