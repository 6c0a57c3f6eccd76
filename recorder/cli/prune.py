"""`recorder prune`: what is old goes, what is held stays."""

from __future__ import annotations

import getpass
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
    from recorder.holds import Hold, Match
    from recorder.proof.keys import PublicKeys, Signer
    from recorder.retention import Doomed, Plan, Pruner
    from recorder.store.store import Store

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
@click.option("--release", is_flag=True, help="Release the holds ID...")
@click.option("--holds", "list_holds", is_flag=True, help="List the holds.")
@click.option("--reason", default="", help="Why: it is kept with the hold, or with the removal.")
@click.option(
    "--key", "key_file", type=EXISTING_FILE, metavar="FILE", help="--store: the key that removals are signed with."
)
@click.option("--unsigned", is_flag=True, help="Remove without a key: verify will call it missing if it was sealed.")
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
    reason: str,
    key_file: Path | None,
    unsigned: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove what the configuration's retention says is to go, or the sessions ID... by hand (--reason).

    \b
    recorder prune --config FILE --dry-run
    recorder prune --config FILE --hold ID --reason "case 4711"
    recorder prune --config FILE --hold-matching user=ana@example.com --reason "case 4711"
    recorder prune --config FILE --holds
    recorder prune --config FILE --release ID

    A running recorder prunes by itself every hour, and its folder is its own meanwhile: stop it to remove by hand.
    Holds can be placed and released at any time. Removals are written down and signed before the bytes go.
    """
    modes = [hold, bool(hold_matching), release, list_holds]
    if sum(modes) > 1 or (any(modes) and dry_run) or (list_holds and identifiers):
        raise click.UsageError("one at a time: --hold, --hold-matching, --release, --holds or removing")
    if (hold or release) and not identifiers:
        raise click.UsageError("which? give an ID")
    if (hold or hold_matching or (identifiers and not release)) and not reason.strip():
        raise click.UsageError("say why: --reason TEXT")
    if len(reason) > 500:
        raise click.UsageError("--reason has at most 500 characters")
    if hold or hold_matching:
        placed = execute(_hold(where, identifiers, _match(hold_matching), reason))
        _print_holds(placed, as_json)
    elif release:
        _print_holds(execute(_release(where, identifiers)), as_json, "released")
    elif list_holds:
        _print_holds(execute(_holds(where)), as_json)
    else:
        signer, keys = _signing(where, key_file)
        if signer is None and not unsigned and not dry_run:
            raise click.UsageError("which key are removals signed with? proof.key, --key FILE, or --unsigned")
        execute(_prune(where, identifiers, reason, signer, keys, dry_run, yes, as_json))


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
    from recorder.proof.keys import KeyFault, Signer

    try:
        if key_file is not None:
            return Signer.load(key_file), None
        own = signer(where.store(), make=False)
        return own, public_keys(where.store(), own)
    except (KeepingError, KeyFault) as error:
        raise Failed(str(error)) from None


def _me() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return "somebody by hand"


# -- holds


async def _hold(where: Where, identifiers: Sequence[str], match: Match | None, reason: str) -> list[Hold]:
    from recorder.cli.library import open_read_only
    from recorder.holds import Hold, Holds
    from recorder.model import new_id

    async with open_read_only(where.store()) as store:
        placed = [Hold(identifier, time.time(), _me(), reason) for identifier in identifiers]
        for hold in placed:
            try:
                await store.get(hold.id)
            except KeyError:
                # It may run, and be in the recorder's journal alone; but a misspelt id must not look like a hold.
                raise Failed(f"there is no session {printable(hold.id, 60)} in the store yet") from None
        if match is not None:
            placed.append(Hold(new_id(), time.time(), _me(), reason, match))
        for hold in placed:
            await Holds(store.blobs).add(hold)
        return placed


async def _release(where: Where, identifiers: Sequence[str]) -> list[Hold]:
    from recorder.cli.library import open_read_only
    from recorder.holds import Holds

    released: list[Hold] = []
    async with open_read_only(where.store()) as store:
        for identifier in identifiers:
            try:
                released.append(await Holds(store.blobs).release(identifier))
            except KeyError:
                raise Failed(f"there is no hold {printable(identifier, 60)}") from None
    return released


async def _holds(where: Where) -> list[Hold]:
    from recorder.cli.library import open_read_only
    from recorder.holds import Holds

    async with open_read_only(where.store()) as store:
        return await Holds(store.blobs).all()


def _print_holds(holds: Sequence[Hold], as_json: bool, what: str = "") -> None:
    from recorder.web.words import rfc3339

    if as_json:
        print_json([hold.values() | {"at": rfc3339(hold.at)} for hold in holds])
        return
    if not holds:
        click.echo("nothing is held", err=True)
        return
    rows = []
    for hold in holds:
        match = "this session" if hold.match is None else _words(hold.match)
        rows.append((hold.id, what or rfc3339(hold.at)[:19], hold.by, match, hold.reason))
    print_table(("ID", "SINCE" if not what else "", "BY", "WHAT", "REASON"), rows)


def _words(match: Match) -> str:
    return ", ".join(f"{name} {' or '.join(globs)}" for name, globs in match.values().items()) or "everything"


# -- removing


@asynccontextmanager
async def _open(where: Where, read_only: bool) -> AsyncIterator[Store]:
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
    try:
        await store.open()
    except StoreError as error:
        hint = ": stop it, or let it prune by itself" if "another recorder" in str(error) else ""
        raise Failed(f"{error}{hint}") from None
    try:
        yield store
    finally:
        await store.aclose()


async def _prune(
    where: Where,
    identifiers: Sequence[str],
    reason: str,
    signer: Signer | None,
    keys: PublicKeys | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    from recorder.keeping import rules
    from recorder.retention import Pruner

    async with _open(where, dry_run) as store:
        by = f"prune by {_me()}" if identifiers else "prune by rule"
        pruner = Pruner(store, rules(where.store().retention), signer=signer, keys=keys, by=by)
        if not dry_run:
            await pruner.repair()
        plan = await _chosen(store, pruner, identifiers, reason) if identifiers else await pruner.plan()
        if not as_json:
            _print_plan(plan)
        if plan.held and identifiers:
            raise Failed("what is held is not removed: release it first")
        if plan.doomed and not dry_run and not yes:
            click.confirm(f"Remove {len(plan.doomed)} for good?", abort=True, err=True)
        gone: list[Doomed] = []
        if not dry_run:
            with progress_bar("removed") as progress:
                gone = await pruner.prune(plan, lambda done: progress(done, len(plan.doomed)))
    if as_json:
        print_json(_values(plan, gone))
    elif not dry_run:
        click.echo(f"removed {len(gone)}")
    elif not plan.doomed:
        click.echo("nothing is to go")


async def _chosen(store: Store, pruner: Pruner, identifiers: Sequence[str], reason: str) -> Plan:
    from recorder.holds import Holds
    from recorder.retention import Doomed, Plan

    plan = Plan()
    for identifier in dict.fromkeys(identifiers):
        try:
            recording = await store.get(identifier)
        except KeyError:
            raise Failed(f"there is no session {printable(identifier, 60)}") from None
        doomed = Doomed(identifier, reason, recording)
        hold = await Holds(store.blobs).holding(recording)
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
    }
