"""What `recorder prune` does with holds and acts: places, releases, lists; and the key that it signs with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from k8sproxy.common.cli import Failed, print_json
from recorder.cli.common import Where, print_table, printable

if TYPE_CHECKING:
    from recorder.proof.actlog import ActLog
    from recorder.proof.acts import Acts
    from recorder.proof.keys import PublicKeys, Signer
    from recorder.retention.holds import Hold, Holds, Match
    from recorder.store.blobs import Blobs


def signing(where: Where, key_file: Path | None) -> tuple[Signer | None, PublicKeys | None]:
    from recorder.proof.keys import KeyFault, PublicKeys, Signer
    from recorder.retention.service import KeepingError, public_keys, signer

    try:
        own = Signer.load(key_file) if key_file is not None else signer(where.store())
        keys = public_keys(where.store(), own)
        return own, keys if len(keys) else PublicKeys([])
    except (KeepingError, KeyFault) as error:
        raise Failed(str(error)) from None


def log_of(where: Where, blobs: Blobs, signer: Signer | None, keys: PublicKeys | None) -> ActLog | None:
    from recorder.proof.actlog import ActLog
    from recorder.proof.witness import Witnesses
    from recorder.retention.service import KeepingError, witnesses

    if keys is None or not len(keys):
        return None
    try:
        anchors = Witnesses(witnesses(where.store(), blobs) if where.configured else [])
    except KeepingError as error:
        raise Failed(str(error)) from None
    return ActLog(blobs, keys, signer, witnesses=anchors)


async def reading(where: Where, key_file: Path | None, blobs: Blobs) -> ActLog:
    """To list only: with the keys there are, else with those in the store, which is said."""
    from recorder.crypt import stored
    from recorder.proof.actlog import ActLog
    from recorder.proof.chain import stored_keys

    try:
        _, keys = signing(where, key_file)
    except Failed:
        keys = None  # whoever lists need not be somebody who may sign
    if keys is None or not len(keys):
        click.echo(
            "recorder: signatures are checked with the store's own keys, so a forged one is not noticed", err=True
        )
        keys = await stored_keys(stored(blobs))
    return ActLog(blobs, keys)


async def place(
    where: Where,
    identifiers: Sequence[str],
    match: Match | None,
    reason: str,
    by: str,
    signer: Signer | None,
    keys: PublicKeys | None,
) -> list[Hold]:
    from recorder.cli.opening import open_read_only
    from recorder.crypt import stored
    from recorder.model import is_id, new_id
    from recorder.proof.keys import KeyFault
    from recorder.proof.removal import has_bytes
    from recorder.retention.holds import Hold, Holds
    from recorder.store import DamagedError

    async with open_read_only(where.store()) as store:
        wanted = [Hold(new_id(), time.time(), by, reason, None, identifier) for identifier in identifiers]
        for hold in wanted:
            try:
                await store.get(hold.recording)
            except DamagedError:
                continue  # it is there, and its id is all that a hold of it needs
            except KeyError:
                if is_id(hold.recording) and await has_bytes(stored(store.blobs), hold.recording):
                    continue
                # It may run, and be in the recorder's journal alone; but a misspelt id must not look like a hold.
                raise Failed(f"there is no session {printable(hold.recording, 60)} in the store yet") from None
        if match is not None:
            wanted.append(Hold(new_id(), time.time(), by, reason, match))
        holds = Holds(store.blobs, log_of(where, store.blobs, signer, keys))
        placed = []
        for hold in wanted:
            try:
                placed.append(await holds.add(hold))
            except KeyFault as error:
                raise Failed(f"{error}. The hold {hold.id} is placed, but it is not signed") from None
        return placed


async def release(
    where: Where,
    identifiers: Sequence[str],
    reason: str,
    by: str,
    signer: Signer | None,
    keys: PublicKeys | None,
) -> list[Hold]:
    from recorder.cli.opening import open_read_only
    from recorder.crypt import stored
    from recorder.proof.acts import ACTS
    from recorder.retention.holds import Holds

    released: list[Hold] = []
    async with open_read_only(where.store()) as store:
        if signer is None and [name async for name, _ in stored(store.blobs).names(ACTS)]:
            raise Failed("this store has signed acts, so an unsigned release does not count: give the key")
        holds = Holds(store.blobs, log_of(where, store.blobs, signer, keys))
        for identifier in identifiers:
            try:
                released.append(await holds.release(await _hold_of(holds, identifier), by=by, why=reason))
            except KeyError:
                raise Failed(f"there is no hold {printable(identifier, 60)}") from None
    return released


async def _hold_of(holds: Holds, identifier: str) -> str:
    """The id of the hold that is meant: its own, or that of the one session it holds."""
    from recorder.store import StoreError

    try:
        found = await holds.all()
    except StoreError:
        return identifier  # one that cannot be read is released by its own id
    known = [hold.id for hold in found if hold.held == identifier]
    if len(known) > 1 and identifier not in {hold.id for hold in found}:
        raise Failed(f"{printable(identifier, 60)} has {len(known)} holds: name one of them:  {', '.join(known)}")
    return known[0] if known else identifier


async def listed(where: Where, key_file: Path | None) -> list[Hold]:
    from recorder.cli.opening import open_read_only
    from recorder.retention.holds import Holds

    async with open_read_only(where.store()) as store:
        return await Holds(store.blobs, await reading(where, key_file, store.blobs)).all()


async def acts(where: Where, key_file: Path | None) -> Acts:
    from recorder.cli.opening import open_read_only

    async with open_read_only(where.store()) as store:
        return await (await reading(where, key_file, store.blobs)).read()


def print_acts(acts: Acts, as_json: bool) -> None:
    from recorder.web.words import rfc3339

    if as_json:
        print_json({"items": [act.values() | {"at": rfc3339(act.at)} for act in acts.believed], "faults": acts.faults})
    else:
        rows = []
        for act in acts.believed:
            for subject in act.subjects or ():
                why = subject.why or act.why
                rows.append((str(act.number), rfc3339(act.at)[:19], act.kind.value, subject.name, act.by, why))
        if rows:
            print_table(("ACT", "AT", "WHAT", "OF", "BY", "WHY"), rows)
        else:
            click.echo("no acts", err=True)
        for fault in acts.faults:
            click.echo(f"recorder: {printable(fault)}", err=True)
    if acts.faults:
        raise click.exceptions.Exit(1)


def print_holds(holds: Sequence[Hold], as_json: bool, what: str = "") -> None:
    from recorder.web.words import rfc3339

    if as_json:
        print_json([hold.values() | {"at": rfc3339(hold.at), "signed": hold.signed} for hold in holds])
        return
    if not holds:
        click.echo("nothing is held", err=True)
        return
    rows = []
    for hold in holds:
        match = hold.held if hold.match is None else _words(hold.match)
        signed = "yes" if hold.signed else "NO"
        rows.append((hold.id, what or rfc3339(hold.at)[:19], hold.by, match, signed, hold.reason))
    print_table(("ID", "SINCE" if not what else "", "BY", "WHAT", "SIGNED", "REASON"), rows)


def _words(match: Match) -> str:
    return ", ".join(f"{name} {' or '.join(globs)}" for name, globs in match.values().items()) or "everything"
