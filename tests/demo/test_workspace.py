"""The demo's folder: for its owner only, for one run at a time, and clean afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from demo.workspace import Busy, kubeconfig, workspace


def test_what_is_written_is_private_and_gone_in_the_end(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    with workspace(root) as space:
        path = space.write("a.kubeconfig", {"a": 1})
        assert (root.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
        socket = space.socket("x.sock")
        socket.touch()
        (space.pods / "web").mkdir()
    assert sorted(entry.name for entry in root.iterdir()) == ["lock"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with workspace(tmp_path / "demo"), pytest.raises(Busy), workspace(tmp_path / "demo"):
        pass
    with workspace(tmp_path / "demo"):
        pass


def test_sockets_get_a_path_that_is_short_enough(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 30)
    with workspace(root) as space:
        sockets = space.sockets
        assert len(str(space.socket("tailscaled.sock")).encode()) <= 107
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not sockets.exists()


def test_kubeconfigs_hold_no_credentials_but_a_placeholder() -> None:
    content = kubeconfig("demo", "https://k8s", b"PEM", proxy_url="socks5://x")
    assert content["users"] == [{"name": "demo", "user": {"token": "unused"}}]
    assert content["clusters"][0]["cluster"]["proxy-url"] == "socks5://x"
    assert yaml.safe_load(yaml.safe_dump(content)) == content
    assert kubeconfig("demo", "https://k8s", b"PEM", token="t")["users"][0]["user"] == {"token": "t"}
