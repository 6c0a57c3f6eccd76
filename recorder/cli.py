"""The command line of the recorder. Its server is not there yet: every call says so and exits with 2."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script `recorder`."""
    sys.stderr.write("recorder: the recorder's server is not part of this release yet\n")
    sys.exit(2)
