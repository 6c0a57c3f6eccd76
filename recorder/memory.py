"""Memory that is free is given back, so that what a busy minute took is not kept for good.

glibc serves large blocks by mmap, from a size on that it raises to that of the largest such block ever freed (32 MiB at
most), and keeps up to twice as much free at the top of each of its heaps, of which threads have up to eight a core. One
batch of the journal or one chunk is enough for that: with 500 busy sessions the difference is 70 MiB (mallopt(3)).
"""

from __future__ import annotations

import ctypes

# Bytes from which on a block is a mapping of its own: frames and what comes from sockets is below, and is used again at
# once; batches and chunks are above, where the kernel's work for their pages is a few per cent of what else they cost.
_MAPPED = 1 << 20
# Bytes that a heap may keep at its top.
_KEPT = 1 << 20
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def give_back() -> bool:
    """For the rest of the process's life. Whether there is such a thing here: another libc has other ways."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
