"""What pyproject.toml can't say: the compiled build.

By itself this builds the pure wheel, and an editable install stays pure: a checkout has no compiled module that could
stand in for its changed source. With K8SPROXY_COMPILE=1 (make wheel, the Dockerfile) mypyc compiles the hot set
([tool.k8sproxy] in pyproject.toml) as one unit, so that its modules call each other directly. The sources go into that
wheel too, for tracebacks; Python prefers the compiled module beside them.
"""

from __future__ import annotations

import os
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext


def hot_set() -> list[str]:
    """The files that are compiled. Exits with a message where a pattern matches none: its module has moved."""
    patterns = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["k8sproxy"]["compiled"]
    files: list[str] = []
    for pattern in patterns:
        found = sorted(str(path) for path in Path().glob(pattern) if path.name != "__init__.py")
        if not found:
            sys.exit(f"pyproject.toml: [tool.k8sproxy] compiled: no file matches {pattern}")
        files += (path for path in found if path not in files)
    return files


class BuildInParallel(build_ext):
    """Runs gcc on as many files at once as there are cores. setuptools' own `parallel` is for extensions, and the hot
    set is one extension of many files."""

    def build_extensions(self) -> None:
        compiler: Any = self.compiler
        one_by_one = compiler.compile

        def compile_all(sources: list[str], *arguments: Any, **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as gcc:
                made = gcc.map(lambda source: one_by_one([source], *arguments, **options), sources)
                return [file for files in made for file in files]

        compiler.compile = compile_all
        super().build_extensions()


if os.environ.get("K8SPROXY_COMPILE") == "1":
    if {"editable_wheel", "develop", "--inplace", "-i"} & set(sys.argv):
        sys.exit("a checkout is never compiled in place: unset K8SPROXY_COMPILE, or build a wheel (make wheel)")
    from mypyc.build import mypycify

    # One C file a module: gcc takes far longer than the sum of them for all in one.
    setup(
        ext_modules=mypycify(hot_set(), opt_level="1", debug_level="0", multi_file=True, group_name="k8sproxy"),
        cmdclass={"build_ext": BuildInParallel},
    )
else:
    setup()
