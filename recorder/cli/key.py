"""`recorder key`: make a key to sign with."""

from __future__ import annotations

from pathlib import Path

import click

from k8sproxy.common.cli import Failed


@click.command("key", short_help="Make a key that signs recordings and days.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def command(path: Path) -> None:
    """Make an Ed25519 key in FILE (mode 0600), and its public half in FILE.pub. A file that is there stays.

    It is for `proof.key`. Keep it outside of the store's folder. To change the key of a store, name the new one as
    proof.key and the one in force as proof.previousKey, and restart: both sign the hand-over.
    """
    from recorder.proof.keys import KeyFault, Signer

    try:
        signer = Signer.make_file(path)
    except KeyFault as error:
        raise Failed(str(error)) from None
    click.echo(f"{path}: the key {signer.id}; its public key is {path}.pub")
