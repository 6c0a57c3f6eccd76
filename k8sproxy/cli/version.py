"""`k8sproxy version`."""

from __future__ import annotations

import click

from k8sproxy import __version__
from k8sproxy.cli.common import json_option, print_json
from k8sproxy.common.build import describe_build, is_compiled


@click.command("version", short_help="Print the version.")
@json_option
def command(as_json: bool) -> None:
    """Print the version, those of what matters most beneath it, and whether the hot modules are compiled."""
    import importlib.metadata
    import platform
    import ssl

    versions = {
        "version": __version__,
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION.split()[1],
        "uvloop": importlib.metadata.version("uvloop"),
    }
    if as_json:
        print_json({**versions, "compiled": is_compiled()})
    else:
        beneath = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "version")
        click.echo(f"k8sproxy {__version__} ({beneath}, {describe_build()})")
