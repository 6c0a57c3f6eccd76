"""What is wrong with grants is said once a peer, of however many peers."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from k8sproxy.access.grants import CAPABILITY, UnknownField
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.dataplane import remarks
from k8sproxy.dataplane.remarks import Remarks


def peer(number: int) -> Peer:
    return Peer("100.64.0.1", f"n{number}", f"pc{number}.", login_name=f"u{number}@x")


def fields(*names: str) -> tuple[UnknownField, ...]:
    return tuple(UnknownField(CAPABILITY, 1, name, "") for name in names)


def test_once_a_peer_and_again_when_it_is_something_else() -> None:
    told = Remarks()
    with capture_logs() as logs:
        for names in (("a",), ("a",), ("b",), ("b",), ("a",)):
            told.tell(peer(1), fields(*names))
        told.tell(peer(2), fields("a"))
    assert [line["peer"] for line in logs] == ["u1@x"] * 3 + ["u2@x"]
    assert logs[0]["fields"] == [f"the capability {CAPABILITY}: rule 1 has the unknown field a"]
    assert logs[0]["node"] == "pc1" and logs[0]["more"] is None


def test_of_very_many_fields_the_first_are_named() -> None:
    with capture_logs() as logs:
        Remarks().tell(peer(1), fields(*map(str, range(100))))
    assert (len(logs[0]["fields"]), logs[0]["more"]) == (8, 92)


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remarks, "_REMEMBERED", 3)
    told = Remarks()
    with capture_logs() as logs:
        for number in (1, 2, 3, 4, 4, 3, 2, 1):
            told.tell(peer(number), fields("a"))
    assert [line["node"] for line in logs] == ["pc1", "pc2", "pc3", "pc4", "pc1"]
