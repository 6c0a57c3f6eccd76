"""Renews the vendored player: python tools/vendor_player.py VERSION

Fetches that version of asciinema-player from npm (`npm pack`, so npm must be there), and puts the built bundle, its
style sheet and its licence into recorder/web/static/vendor, with a VERSION file that says where they are from. Run
tests/recorder/web/test_browser.py afterwards: it holds the player to the pages' Content-Security-Policy, and the
drivers in static/playback.js to the player's.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

TARGET = Path(__file__).parent.parent / "recorder" / "web" / "static" / "vendor"
FILES = ("dist/bundle/asciinema-player.min.js", "dist/bundle/asciinema-player.css", "LICENSE")


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+\.\d+\.\d+", sys.argv[1]):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"asciinema-player@{sys.argv[1]}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(Path(folder).glob("*.tgz"))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        with tarfile.open(archive) as packed:
            for name in FILES:
                member = packed.extractfile(f"package/{name}")
                if member is None:
                    sys.exit(f"{name} is not a file of this version")
                (TARGET / Path(name).name).write_bytes(member.read())
        (TARGET / "VERSION").write_text(
            f"asciinema-player {sys.argv[1]}\n"
            f"from npm: {archive.name}, sha512-{digest}\n"
            f"files, unchanged: {', '.join(FILES)}\n"
        )


if __name__ == "__main__":
    main()
