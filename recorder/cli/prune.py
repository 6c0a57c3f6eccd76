"""`recorder prune`: what is old goes, what is held stays. Both are signed acts, where there is a key."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recorder.cli.common import (
    EXISTING_FILE,
    Failed,
    Where,
    execute,
    json_option,
    place_options,
    print_json,
    print_table,
    printable,
    progress_bar,
)

if TYPE_CHECKING:
    from recorder.config import Config
    from recorder.holds import Hold, Holds, Match
    from recorder.proof.actlog import ActLog
    from recorder.proof.acts import Acts
    from recorder.proof.keys import PublicKeys, Signer
    from recorder.retention import Doomed, Plan, Pruner
    from recorder.store.blobs import Blobs
    from recorder.store.store import Store

# Seconds that the wiping of an index is waited for: one of several gigabytes.
_WIPING = 600.0
_MATCH = ("cluster", "namespace", "user", "type")


@click.command("prune", short_help="Remove old sessions by rule; place and release holds.")
@click.argument("identifiers", metavar="[ID]...", nargs=-1)
@place_options(running=False)
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option("--hold", is_flag=True, help="Hold the sessions ID...: nothing removes them until they are released.")
@click.option(
    "--hold-matching", multiple=True, metavar="FIELD=GLOB",
    help="Hold all sessions, also those to come, of a cluster, namespace, user or type; several fields are all meant.",
)  # fmt: skip
@click.option("--release", is_flag=True, help="Release the holds ID..., or the one hold of each session ID.")
@click.option("--holds", "list_holds", is_flag=True, help="List the holds.")
@click.option("--acts", "list_acts", is_flag=True, help="List all holds, releases, removals and reversals ever signed.")
@click.option("--reason", default="", help="Why: it is kept with the hold, its release, or the removal.")
@click.option("--by", "name", default="", envvar="RECORDER_BY", help="Who you are; your account here is kept with it.")
@click.option("--key", "key_file", type=EXISTING_FILE, metavar="FILE", help="--store: the key to sign with.")
@click.option(
    "--unsigned",
    is_flag=True,
    help="Without a key. verify will call what is removed missing if it was sealed, and whoever can write to the store "
    "can take away an unsigned hold.",
)
@click.option(
    "--despite-faults",
    is_flag=True,
    help="Remove also while verify finds faults, and sessions ID... that are not as they were sealed; the act says so.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def command(
    where: Where,
    identifiers: tuple[str, ...],
    dry_run: bool,
    hold: bool,
    hold_matching: tuple[str, ...],
    release: bool,
    list_holds: bool,
    list_acts: bool,
    reason: str,
    name: str,
    key_file: Path | None,
    unsigned: bool,
    despite_faults: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove what the configuration's retention says is to go, or the sessions ID... by hand (--reason).

    \b
    recorder prune --config FILE --dry-run
    recorder prune --config FILE --hold ID --reason "case 4711"
    recorder prune --config FILE --hold-matching user=ana@example.com --reason "case 4711"
    recorder prune --config FILE --holds
    recorder prune --config FILE --release ID --reason "case 4711 is closed"

    A running recorder prunes by itself every hour. Where one runs on the folder, a removal by hand is signed and left
    to it: it removes within a minute. Holds can be placed and released at any time. What is held is held with the API
    events around it. Removals are signed before the bytes go, and what is not as it was sealed is not removed.
    """
    modes = [hold, bool(hold_matching), release, list_holds, list_acts]
    if sum(modes) > 1 or (any(modes) and dry_run) or ((list_holds or list_acts) and identifiers):
        raise click.UsageError("one at a time: --hold, --hold-matching, --release, --holds, --acts or removing")
    if (hold or release) and not identifiers:
        raise click.UsageError("which? give an ID")
    if (hold or hold_matching or (identifiers and not release)) and not reason.strip():
        raise click.UsageError("say why: --reason TEXT")
    if max(len(reason), len(name)) > 500:
        raise click.UsageError("--reason and --by have at most 500 characters")
    if list_holds:
        return _print_holds(execute(_holds(where, key_file)), as_json)
    if list_acts:
        return _print_acts(execute(_acts(where, key_file)), as_json)
    signer, keys = _signing(where, key_file)
    if signer is None and not unsigned and not dry_run:
        what = "holds and releases" if any(modes) else "removals"
        raise click.UsageError(f"which key are {what} signed with? proof.key, --key FILE, or --unsigned")
    if unsigned:
        signer, keys = None, None
    if hold or hold_matching:
        placed = execute(_hold(where, identifiers, _match(hold_matching), reason, _me(name), signer, keys))
        _print_holds(placed, as_json)
    elif release:
        released = execute(_release(where, identifiers, reason, _me(name), signer, keys))
        _print_holds(released, as_json, "released")
    else:
        by = _me(name) if identifiers else f"retention, run by {_me(name)}"
        execute(_prune(where, identifiers, reason, by, signer, keys, dry_run, despite_faults, yes, as_json))


def _match(pairs: Sequence[str]) -> Match | None:
    from recorder.holds import Match

    if not pairs:
        return None
    found: dict[str, list[str]] = {name: [] for name in _MATCH}
    for pair in pairs:
        name, equals, glob = pair.partition("=")
        if not equals or name not in found or not glob:
            raise click.UsageError(f"--hold-matching must be FIELD=GLOB, with a FIELD of {', '.join(_MATCH)}")
        found[name].append(glob)
    return Match(*(tuple(found[name]) for name in _MATCH))


def _signing(where: Where, key_file: Path | None) -> tuple[Signer | None, PublicKeys | None]:
    from recorder.keeping import KeepingError, public_keys, signer
    from recorder.proof.keys import KeyFault, PublicKeys, Signer

    try:
        own = Signer.load(key_file) if key_file is not None else signer(where.store())
        keys = public_keys(where.store(), own)
        return own, keys if len(keys) else PublicKeys([])
    except (KeepingError, KeyFault) as error:
        raise Failed(str(error)) from None


def _log(where: Where, blobs: Blobs, signer: Signer | None, keys: PublicKeys | None) -> ActLog | None:
    from recorder.keeping import KeepingError, witnesses
    from recorder.proof.actlog import ActLog
    from recorder.proof.witness import Witnesses

    if keys is None or not len(keys):
        return None
    try:
        anchors = Witnesses(witnesses(where.store(), blobs) if where.configured else [])
    except KeepingError as error:
        raise Failed(str(error)) from None
    return ActLog(blobs, keys, signer, witnesses=anchors)


async def _reading(where: Where, key_file: Path | None, blobs: Blobs) -> ActLog:
    """To list only: with the keys there are, else with those in the store, which is said."""
    from recorder.crypt import stored
    from recorder.proof.actlog import ActLog
    from recorder.proof.chain import stored_keys

    try:
        _, keys = _signing(where, key_file)
    except Failed:
        keys = None  # whoever lists need not be somebody who may sign
    if keys is None or not len(keys):
        click.echo("recorder: signatures are checked with the store's own keys, which shows no forgery", err=True)
        keys = await stored_keys(stored(blobs))
    return ActLog(blobs, keys)


def _me(name: str) -> str:
    """Who does this: as they say, and by their account, which is the one behind sudo."""
    try:
        account = f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        account = "somebody by hand"
    behind = os.environ.get("SUDO_USER", "")
    if behind and behind != account.partition("@")[0]:
        account = f"{behind} as {account}"
    return f"{name.strip()} ({account})" if name.strip() else account


# -- holds


async def _hold(
    where: Where,
    identifiers: Sequence[str],
    match: Match | None,
    reason: str,
    by: str,
    signer: Signer | None,
    keys: PublicKeys | None,
) -> list[Hold]:
    from recorder.cli.library import open_read_only
    from recorder.holds import Hold, Holds
    from recorder.model import new_id

    async with open_read_only(where.store()) as store:
        wanted = [Hold(new_id(), time.time(), by, reason, None, identifier) for identifier in identifiers]
        for hold in wanted:
            try:
                await store.get(hold.recording)
            except KeyError:
                # It may run, and be in the recorder's journal alone; but a misspelt id must not look like a hold.
                raise Failed(f"there is no session {printable(hold.recording, 60)} in the store yet") from None
        if match is not None:
            wanted.append(Hold(new_id(), time.time(), by, reason, match))
        holds = Holds(store.blobs, _log(where, store.blobs, signer, keys))
        return [await holds.add(hold) for hold in wanted]


async def _release(
    where: Where,
    identifiers: Sequence[str],
    reason: str,
    by: str,
    signer: Signer | None,
    keys: PublicKeys | None,
) -> list[Hold]:
    from recorder.cli.library import open_read_only
    from recorder.crypt import stored
    from recorder.holds import Holds
    from recorder.proof.acts import ACTS

    released: list[Hold] = []
    async with open_read_only(where.store()) as store:
        if signer is None and [name async for name, _ in stored(store.blobs).names(ACTS)]:
            raise Failed("this store has signed acts, and a release that is not signed would not count: give the key")
        holds = Holds(store.blobs, _log(where, store.blobs, signer, keys))
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
        raise Failed(f"{printable(identifier, 60)} has {len(known)} holds: say which: {', '.join(known)}")
    return known[0] if known else identifier


async def _holds(where: Where, key_file: Path | None) -> list[Hold]:
    from recorder.cli.library import open_read_only
    from recorder.holds import Holds

    async with open_read_only(where.store()) as store:
        return await Holds(store.blobs, await _reading(where, key_file, store.blobs)).all()


async def _acts(where: Where, key_file: Path | None) -> Acts:
    from recorder.cli.library import open_read_only

    async with open_read_only(where.store()) as store:
        return await (await _reading(where, key_file, store.blobs)).read()


def _print_acts(acts: Acts, as_json: bool) -> None:
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


def _print_holds(holds: Sequence[Hold], as_json: bool, what: str = "") -> None:
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


# -- removing


@asynccontextmanager
async def _open(where: Where, read_only: bool, *, order: bool) -> AsyncIterator[tuple[Store, bool]]:
    """The store, and whether a recorder runs on it that does the removing. order: that will do."""
    from recorder.app import StartError, open_store
    from recorder.store import StoreError

    config = where.store()
    if config.store.url is not None:
        # Its own journal: a running recorder's must not be written by two.
        config = config.model_copy(update={"store": config.store.model_copy(update={"instance": "prune"})})
    try:
        store = open_store(config, read_only=read_only)
    except StartError as error:
        raise Failed(printable(str(error))) from None
    runs = False
    try:
        await store.open()
    except StoreError as error:
        runs = "another recorder" in str(error)
        if not (runs and order):
            hint = ": stop it, or let it prune by itself" if runs else ""
            raise Failed(f"{error}{hint}") from None
        store = open_store(config, read_only=True)
        await store.open()
    try:
        async with _index_of(config, store, needed=not runs and not read_only):
            yield store, runs
    finally:
        await store.aclose()


@asynccontextmanager
async def _index_of(config: Config, store: Store, *, needed: bool) -> AsyncIterator[None]:
    """Let the index, if there is one, hear of what is removed, and wipe it: no recorder does it meanwhile."""
    from recorder.cli.library import open_index

    index = await open_index(config) if needed else None
    if index is None:
        yield
        return
    store.observers.append(index)
    index.watch(store)
    try:
        yield
        try:
            async with asyncio.timeout(_WIPING):
                await index.wiped()
        except TimeoutError:
            click.echo("recorder: the words of what is gone leave the index when the recorder starts", err=True)
    finally:
        store.observers.remove(index)
        await index.aclose()


async def _prune(
    where: Where,
    identifiers: Sequence[str],
    reason: str,
    by: str,
    signer: Signer | None,
    keys: PublicKeys | None,
    dry_run: bool,
    despite: bool,
    yes: bool,
    as_json: bool,
) -> None:
    from recorder.keeping import rules
    from recorder.retention import Pruner

    async with _open(where, dry_run, order=bool(identifiers) and signer is not None) as (store, runs):
        pruner = Pruner(store, rules(where.store().retention), signer=signer, keys=keys, by=by, despite=despite)
        if not dry_run and not runs:
            await pruner.repair()
        plan = await _chosen(store, pruner, identifiers, reason) if identifiers else await pruner.plan()
        if not as_json:
            _print_plan(plan)
        if plan.held and identifiers:
            raise Failed("what is held is not removed: release it first")
        if plan.doomed and not dry_run and not yes:
            click.confirm(f"Remove {len(plan.doomed)} for good?", abort=True, err=True)
            plan.evidence = None  # that may have taken a while
        gone: list[Doomed] = []
        if not dry_run and runs:
            gone = await pruner.order(plan)
        elif not dry_run:
            with progress_bar("removed") as progress:
                gone = await pruner.prune(plan, lambda done: progress(done, len(plan.doomed)))
    plan.mismatches |= pruner.mismatches
    if as_json:
        print_json(_values(plan, gone))
    elif runs:
        click.echo(f"signed the removal of {len(gone)}; the recorder that runs here removes within a minute")
    elif not dry_run:
        click.echo(f"removed {len(gone)}")
    elif not plan.doomed:
        click.echo("nothing is to go")
    for subject, what in plan.mismatches.items():
        click.echo(f"recorder: {subject} is not as it was sealed and is not removed: {printable(what)}", err=True)
    if plan.mismatches:
        raise click.exceptions.Exit(1)


async def _chosen(store: Store, pruner: Pruner, identifiers: Sequence[str], reason: str) -> Plan:
    from recorder.retention import Doomed, Plan

    plan = Plan()
    for identifier in dict.fromkeys(identifiers):
        try:
            recording = await store.get(identifier)
        except KeyError:
            raise Failed(f"there is no session {printable(identifier, 60)}") from None
        doomed = Doomed(identifier, reason, recording)
        hold = await pruner.holds.holding(recording)
        if hold is not None:
            plan.held.append((doomed, hold))
        else:
            plan.doomed.append(doomed)
    return plan


def _print_plan(plan: Plan) -> None:
    rows = [(doomed.subject, "goes", doomed.why, *_who(doomed)) for doomed in plan.doomed]
    rows += [(doomed.subject, "held", f"{hold.by}: {hold.reason}", *_who(doomed)) for doomed, hold in plan.held]
    if rows:
        print_table(("WHAT", "", "WHY", "STARTED", "WHO", "WHERE"), rows)
    if plan.over:
        click.echo(f"recorder: {plan.over} bytes too many remain: the rest is held, or a rule keeps it", err=True)


def _who(doomed: Doomed) -> tuple[str, str, str]:
    from recorder.web.words import rfc3339

    recording = doomed.recording
    if recording is None:
        return "", "", ""
    place = "/".join(filter(None, (recording.cluster, recording.namespace, recording.pod)))
    return rfc3339(recording.started)[:19], recording.user or recording.node, place


def _values(plan: Plan, gone: Sequence[Doomed]) -> dict[str, Any]:
    removed = {doomed.subject for doomed in gone}
    return {
        "doomed": [
            {"subject": doomed.subject, "why": doomed.why, "removed": doomed.subject in removed}
            for doomed in plan.doomed
        ],
        "held": [{"subject": doomed.subject, "hold": hold.values()} for doomed, hold in plan.held],
        "over": plan.over,
        "mismatches": plan.mismatches,
    }
