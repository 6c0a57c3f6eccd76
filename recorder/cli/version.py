"""`recorder version`."""

from __future__ import annotations

import json

import click

from k8sproxy.common.build import describe_build, is_compiled
from recorder import __version__


@click.command("version", short_help="Print the version.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Print the version, those of what matters most beneath it, and whether the hot modules are compiled."""
    import importlib.metadata
    import platform

    names = ("h2", "zstandard", "obstore", "uvloop")
    versions = {"version": __version__, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    if as_json:
        click.echo(json.dumps({**versions, "compiled": is_compiled()}, indent=2))
    else:
        beneath = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "version")
        click.echo(f"recorder {__version__} ({beneath}, {describe_build()})")
