"""Builds the wheels, and runs something against the compiled one.

    python -m tools.compiled wheels          both wheels, into dist/ (the compiled one needs gcc and Python's headers)
    python -m tools.compiled wheels --pure   the pure wheel alone
    python -m tools.compiled run -m pytest tests/protocol       runs Python in the environment with the compiled wheel

Wheels are built from a copy of the sources (build/wheel), so that nothing compiled, generated or left from an earlier
build lies in the checkout or gets into a wheel.

The environment (.venv-compiled) has the compiled wheel and takes all other packages from .venv. What it runs finds
tests, standins, bench and demo through a folder of links (build/beside) in which neither k8sproxy nor recorder is, and
PYTHONSAFEPATH keeps Python from looking into the working folder. K8SPROXY_COMPILED=1 tells tests/conftest.py to refuse
a run that imports a hot module from its source all the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

# Resolved: the compiled environment finds this file through a link.
ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
BUILD = ROOT / "build"
ENVIRONMENT = ROOT / ".venv-compiled"
PACKAGES = ("k8sproxy", "recorder")
# What the build reads, as the Dockerfile copies it.
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", *PACKAGES)
BESIDE = ("tests", "standins", "bench", "demo", "tools")
# sys.exit with it: nothing is broken, but there is nothing to compile with.
NO_COMPILER = 3


def hot_set() -> dict[str, list[str]]:
    """Each pattern of the hot set, with the names of its modules. setup.py stops at a pattern without any."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["k8sproxy"]["compiled"]
    found = {}
    for pattern in patterns:
        files = [path.relative_to(ROOT) for path in sorted(ROOT.glob(pattern)) if path.name != "__init__.py"]
        found[pattern] = [".".join(path.with_suffix("").parts) for path in files]
    return found


def missing() -> str:
    """What is missing to compile here; empty where nothing is."""
    compiler = (os.environ.get("CC") or "gcc").split()[0]
    if shutil.which(compiler) is None:
        return f"the C compiler {compiler} is not installed"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"Python's headers are not installed ({header})"
    return ""


def fingerprint() -> str:
    """What the compiled wheel depends on, as one short word: the sources, and the Python that runs."""
    digest = hashlib.sha256(sys.version.encode())
    for name in SOURCES:
        for path in sorted((ROOT / name).rglob("*")) if (ROOT / name).is_dir() else [ROOT / name]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build(*, compiled: bool) -> Path:
    """Build one wheel into dist/ and return its path."""
    for package in PACKAGES:
        for path in (*(ROOT / package).rglob("*.so"), *(ROOT / package).rglob("*.pyd")):
            sys.exit(f"{path.relative_to(ROOT)}: a compiled module in the checkout would hide its source; remove it")
    source = BUILD / ("wheel" if compiled else "wheel-pure")
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    environment = {**os.environ, "K8SPROXY_COMPILE": "1" if compiled else "0"}
    for path in DIST.glob("k8sproxy-*.whl"):
        if (path.name.endswith("-none-any.whl")) is not compiled:
            path.unlink()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(DIST), str(source)], check=True, env=environment)
    (wheel,) = (path for path in DIST.glob("k8sproxy-*.whl") if path.name.endswith("-none-any.whl") is not compiled)
    shutil.rmtree(source)
    print(f"{'compiled' if compiled else 'pure'}: {wheel.relative_to(ROOT)}", flush=True)
    return wheel


def wheels(*, pure_only: bool) -> None:
    """Build the wheels that can be built here, and say so where it is the pure one alone."""
    build(compiled=False)
    if pure_only:
        return
    if lack := missing():
        print(f"NOT COMPILED: {lack}. Only the pure wheel was built.", flush=True)
        return
    build(compiled=True)


def environment() -> Path:
    """The Python of an environment in which the compiled wheel of these sources is installed."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".fingerprint"
    wanted = fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if lack := missing():
        print(f"NOT COMPILED: {lack}", file=sys.stderr)
        sys.exit(NO_COMPILER)
    print("==> compiling the hot set (some minutes, once for each change of the sources)", flush=True)
    wheel = build(compiled=True)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    venv.create(ENVIRONMENT, symlinks=True, with_pip=False)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True)
    beside = BUILD / "beside"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name in BESIDE:
        (beside / name).symlink_to(ROOT / name)
    # A folder named in a .pth file is searched, but its own .pth files are not read: the checkout, which is installed
    # in .venv by one of those, is not found.
    (packages,) = (ENVIRONMENT / "lib").glob("python*/site-packages")
    (packages / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n{beside}\n")
    stamp.write_text(wanted)
    return python


def run(arguments: list[str]) -> int:
    """Run Python with the arguments in that environment; its exit status."""
    python = environment()
    variables = {**os.environ, "PYTHONSAFEPATH": "1", "K8SPROXY_COMPILED": "1"}
    return subprocess.run([str(python), *arguments], cwd=ROOT, env=variables, check=False).returncode


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["run"]:
        sys.exit(run(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m tools.compiled", description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("wheels", "run"))
    parser.add_argument("--pure", action="store_true", help="the pure wheel alone")
    wheels(pure_only=parser.parse_args().pure)


if __name__ == "__main__":
    main()
