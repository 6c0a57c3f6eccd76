"""`recorder prune`: what is old goes, what is held stays. Both are signed acts, where there is a key."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from k8sproxy.common.cli import EXISTING_FILE, Failed, json_option, print_json
from recorder.cli import holding
from recorder.cli.common import Where, execute, place_options, print_table, printable, progress_bar

if TYPE_CHECKING:
    from recorder.config import Config
    from recorder.proof.keys import PublicKeys, Signer
    from recorder.retention.holds import Match
    from recorder.retention.plan import Doomed, Plan
    from recorder.retention.pruner import Pruner
    from recorder.store.store import Store

# Seconds that the wiping of an index is waited for: one of several gigabytes.
_WIPING = 600.0
_MATCH = ("cluster", "namespace", "user", "type")


@click.command("prune", short_help="Remove old sessions by rule; place and release holds.")
@click.argument("identifiers", metavar="[ID]...", nargs=-1)
@place_options(running=False)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.option("--hold", is_flag=True, help="Hold the sessions ID...: nothing removes them until they are released.")
@click.option(
    "--hold-matching", multiple=True, metavar="FIELD=GLOB",
    help="Hold all sessions, also those to come, of a cluster, namespace, user or type; several fields are all meant.",
)  # fmt: skip
@click.option("--release", is_flag=True, help="Release the holds ID..., or the one hold of each session ID.")
@click.option("--holds", "list_holds", is_flag=True, help="List the holds.")
@click.option("--acts", "list_acts", is_flag=True, help="List all holds, releases, removals and reversals ever signed.")
@click.option("--reason", default="", help="The reason, which is kept with the hold, its release, or the removal.")
@click.option(
    "--by", "name", default="", envvar="RECORDER_BY", help="Your name; the name of your account is kept beside it."
)
@click.option("--key", "key_file", type=EXISTING_FILE, metavar="FILE", help="With --store: the key to sign with.")
@click.option(
    "--unsigned",
    is_flag=True,
    help="Do not sign. verify then reports a removed session as missing if it was sealed, and anyone who can write "
    "to the store can remove an unsigned hold.",
)
@click.option(
    "--despite-faults",
    is_flag=True,
    help="Remove also while verify finds faults, and sessions ID... that are not as they were sealed or can't be read; "
    "the act says so.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
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
        raise click.UsageError("use only one of --hold, --hold-matching, --release, --holds, --acts and removing")
    if (hold or release) and not identifiers:
        raise click.UsageError("give the ID of a session or a hold")
    if (hold or hold_matching or (identifiers and not release)) and not reason.strip():
        raise click.UsageError("give the reason: --reason TEXT")
    if max(len(reason), len(name)) > 500:
        raise click.UsageError("--reason and --by may have at most 500 characters")
    if list_holds:
        return holding.print_holds(execute(holding.listed(where, key_file)), as_json)
    if list_acts:
        return holding.print_acts(execute(holding.acts(where, key_file)), as_json)
    signer, keys = holding.signing(where, key_file)
    if signer is None and not unsigned and not dry_run:
        what = "holds and releases" if any(modes) else "removals"
        raise click.UsageError(f"{what} need a key to sign with: proof.key, --key FILE, or --unsigned")
    if unsigned:
        signer, keys = None, None
    if hold or hold_matching:
        placed = execute(holding.place(where, identifiers, _match(hold_matching), reason, _me(name), signer, keys))
        holding.print_holds(placed, as_json)
    elif release:
        released = execute(holding.release(where, identifiers, reason, _me(name), signer, keys))
        holding.print_holds(released, as_json, "released")
    else:
        by = _me(name) if identifiers else f"retention, run by {_me(name)}"
        execute(_prune(where, identifiers, reason, by, signer, keys, dry_run, despite_faults, yes, as_json))


def _match(pairs: Sequence[str]) -> Match | None:
    from recorder.retention.holds import Match

    if not pairs:
        return None
    found: dict[str, list[str]] = {name: [] for name in _MATCH}
    for pair in pairs:
        name, equals, glob = pair.partition("=")
        if not equals or name not in found or not glob:
            raise click.UsageError(f"--hold-matching must be FIELD=GLOB, with a FIELD of {', '.join(_MATCH)}")
        found[name].append(glob)
    return Match(*(tuple(found[name]) for name in _MATCH))


def _me(name: str) -> str:
    """Who does this: as they say, and by their account, which is the one behind sudo."""
    try:
        account = f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        account = "an unknown account"
    behind = os.environ.get("SUDO_USER", "")
    if behind and behind != account.partition("@")[0]:
        account = f"{behind} as {account}"
    return f"{name.strip()} ({account})" if name.strip() else account


# -- removing


@asynccontextmanager
async def _open(where: Where, read_only: bool, *, order: bool) -> AsyncIterator[tuple[Store, bool]]:
    """The store, and whether a recorder runs on it that does the removing. order: that will do."""
    from k8sproxy.common.errors import StartError
    from recorder.opening import open_store
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
    from recorder.cli.opening import open_index

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
            click.echo("recorder: the text of removed sessions leaves the index when the recorder starts", err=True)
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
    from recorder.retention.pruner import Pruner
    from recorder.retention.service import rules

    async with _open(where, dry_run, order=bool(identifiers) and signer is not None) as (store, runs):
        pruner = Pruner(store, rules(where.store().retention), signer=signer, keys=keys, by=by, despite=despite)
        if not dry_run and not runs:
            await pruner.repair()
        plan = await _chosen(store, pruner, identifiers, reason) if identifiers else await pruner.plan()
        if not as_json:
            _print_plan(plan)
        if plan.held and identifiers:
            raise Failed("a session that is held is not removed: release it first")
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
        click.echo("nothing is to be removed")
    for subject, what in plan.mismatches.items():
        click.echo(f"recorder: {subject} differs from what was sealed and is not removed: {printable(what)}", err=True)
    if plan.mismatches:
        raise click.exceptions.Exit(1)


async def _chosen(store: Store, pruner: Pruner, identifiers: Sequence[str], reason: str) -> Plan:
    from recorder.retention.plan import Doomed, Plan
    from recorder.store import DamagedError

    plan = Plan()
    for identifier in dict.fromkeys(identifiers):
        try:
            recording = await store.get(identifier)
        except KeyError:
            raise Failed(f"there is no session {printable(identifier, 60)}") from None
        except DamagedError as error:
            doomed = Doomed(identifier, reason, fault=str(error))
            hold = next((hold for hold in await pruner.holds.now() if hold.may_hold(identifier)), None)
        else:
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
        click.echo(
            f"recorder: {plan.over} bytes more than the limit remain: the other sessions are held, or a rule keeps "
            "them",
            err=True,
        )


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
