"""`recorder anchor`: what is remembered outside of the store, and to take the store as it is without it."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

import click

from k8sproxy.common.cli import Failed, json_option, print_json
from recorder.cli.common import config_option, execute, print_table, printable, read_config


@click.group("anchor", short_help="Show the anchor outside of the store, or accept the store as it is.")
def command() -> None:
    """The anchor is how far the signed chains had come, kept where whoever writes the store cannot write."""


@command.command("show")
@config_option
@json_option
def show(path: Path, as_json: bool) -> None:
    """Print what each place of the anchor remembers."""
    found = execute(_show(path))
    if as_json:
        print_json(
            [
                {"anchor": name, "chain": chain, "number": number, "sha256": sha256}
                for name, chain, number, sha256 in found
            ]
        )
    else:
        print_table(
            ("ANCHOR", "CHAIN", "NUMBER", "SHA256"), [(one, two, str(three), four) for one, two, three, four in found]
        )


async def _show(path: Path) -> list[tuple[str, str, int, str]]:
    from recorder.cli.opening import open_read_only
    from recorder.proof.witness import Witnesses
    from recorder.retention.service import KeepingError, witnesses

    config = read_config(path)
    async with open_read_only(config) as store:
        try:
            anchors = Witnesses(witnesses(config, store.blobs))
        except KeepingError as error:
            raise Failed(str(error)) from None
        try:
            return [
                (witness.name, chain, head.number, head.sha256)
                for witness in anchors.all
                for chain, head in sorted((await witness.recall()).items())
            ]
        finally:
            await anchors.aclose()


@command.command("accept")
@config_option
@click.option("--reason", required=True, metavar="TEXT", help="The reason, for people who verify the store later.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def accept(path: Path, reason: str, yes: bool) -> None:
    """Take what is in the store for the truth: after a restore from a backup, where the anchor is lost, or where the
    key in force is lost and a new one is to follow it. The recorder must be stopped.

    What the anchor remembers and the store has not is given up. Who accepted that, when, why and what is signed, and
    `recorder verify` tells it at every check.
    """
    if not reason.strip() or len(reason) > 500:
        raise click.UsageError("--reason must have 1 to 500 characters")
    if not yes:
        click.confirm("What is missing from the store now will not be reported as missing again. Continue?", abort=True)
    for line in execute(_accept(path, reason)):
        click.echo(printable(line))


async def _accept(path: Path, reason: str) -> list[str]:
    from k8sproxy.common.errors import StartError
    from recorder.opening import open_store
    from recorder.proof.register import Register
    from recorder.proof.witness import Witnesses
    from recorder.retention.service import KeepingError, public_keys, signer, witnesses

    config = read_config(path)
    try:
        own = signer(config)
        if own is None:
            raise Failed("there is no proof.key, so there is nothing to sign with")
        keys = public_keys(config, own)
        store = open_store(config)
        anchors = Witnesses(witnesses(config, store.blobs))
    except (KeepingError, StartError) as error:
        raise Failed(printable(str(error))) from None
    # Opened, so that a recorder on the same folder is found by its lock.
    await store.open()
    try:
        register = Register(store.blobs, own, name=config.store.instance, keys=keys, witnesses=anchors)
        return await register.accept(f"{getpass.getuser()}@{socket.gethostname()}", reason)
    finally:
        await store.aclose()
        await anchors.aclose()
