"""recorder/memory.py: what was taken once is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
from pathlib import Path
from recorder.memory import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if {asked}:
    assert give_back()
large = bytearray(24 << 20)  # teaches glibc that blocks of this size come and go
del large
before = resident()
blocks = [bytearray(2 << 20) for _ in range(20)]
pins = bytearray(300 << 10)
blocks = None
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc has other ways")
def test_blocks_that_come_and_go_are_given_back() -> None:
    kept = [
        int(
            subprocess.run([sys.executable, "-c", _PROGRAM.format(asked=asked)], capture_output=True, check=True).stdout
        )
        for asked in (False, True)
    ]
    assert kept[0] >= 20 > 2 >= kept[1]
