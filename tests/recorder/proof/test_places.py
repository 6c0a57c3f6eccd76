"""Where a file really is: links, mounts, and what is mounted inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recorder.proof.places import Mount, is_inside, place, read_mounts, same_volume


def test_by_its_path_and_by_links(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "deep").mkdir(parents=True)
    (store / "deep/seal.pem").touch()
    (tmp_path / "link.pem").symlink_to(store / "deep/seal.pem")
    (tmp_path / "folder").symlink_to(store / "deep")
    for path in (
        "store/seal.pem",
        "store/deep/none/x",
        "link.pem",
        "folder/seal.pem",
        "folder/new",
        "other/../store/x",
    ):
        assert is_inside(tmp_path / path, store), path
    for path in ("seal.pem", "store2/seal.pem", "store.pem"):
        assert not is_inside(tmp_path / path, store), path
    alias = tmp_path / "alias"
    alias.symlink_to(store)
    assert is_inside(store / "deep/seal.pem", alias) and is_inside(alias / "x", store)


def test_by_mounts() -> None:
    """As mountinfo of a pod with one volume has them, mounted twice by subPath."""
    mounts = (
        Mount("0:50", "/", "/"), Mount("8:1", "/recordings", "/var/lib/recorder"), Mount("8:1", "/keys", "/etc/keys"),
        Mount("8:1", "/recordings/sub", "/etc/hidden"), Mount("0:60", "/", "/etc/secret"),
        Mount("0:60", "/inner", "/var/lib/recorder/mounted"),
    )  # fmt: skip
    store = Path("/var/lib/recorder")
    assert place(Path("/etc/keys/seal.pem"), mounts) == ("8:1", "/keys/seal.pem")
    assert not is_inside(Path("/etc/keys/seal.pem"), store, mounts)
    assert is_inside(Path("/etc/hidden/seal.pem"), store, mounts)
    assert not is_inside(Path("/etc/secret/seal.pem"), store, mounts)
    assert is_inside(Path("/etc/secret/inner/seal.pem"), store, mounts)
    assert not is_inside(Path("/etc/seal.pem"), store, mounts)


def test_what_the_kernel_tells(tmp_path: Path) -> None:
    text = "36 35 98:0 /mnt1\\040x /mnt2\\134y rw,noatime master:1 - ext3 /dev/root rw\nshort line\n"
    (tmp_path / "mountinfo").write_text(text)
    assert read_mounts(tmp_path / "mountinfo") == (Mount("98:0", "/mnt1 x", "/mnt2\\y"),)
    assert read_mounts(tmp_path / "none") == ()
    assert read_mounts() and same_volume(tmp_path / "a", tmp_path / "b")
    assert not same_volume(Path("/proc/self"), tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_real_bind_mount(tmp_path: Path) -> None:
    script = """
        cd "$1"; mkdir -p store/sub etc other; mount --bind store/sub etc; mount --bind other store/sub
        exec "$2" -c 'from pathlib import Path; from recorder.proof.places import is_inside as i
s = Path("store"); print(i(Path("etc/seal.pem"), s), i(Path("other/seal.pem"), s), i(Path("seal.pem"), s))'
    """
    root = Path(__file__).parents[3]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", str(tmp_path), sys.executable],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stdout == "True True False\n", done.stderr
